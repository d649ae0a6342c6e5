//! For tests and fuzzing: a host's memory with no hardware, a kernel in miniature that reports its events in the order in which
//! sched_ext does, and an agent's books.

mod agent;
mod host;
mod kernel;

pub use agent::{Agent, Believed};
pub use host::{Hardware, Host, Judged, Memory};
pub use kernel::{Kernel, Place};
