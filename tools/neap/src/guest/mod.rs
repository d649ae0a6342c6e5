//! The guest's end of `neap run --host linux`: what runs there after its init, as its only program.
//!
//! 1. Whatever happens, the run is told, and the machine is switched off: nothing here waits without a bound.
//! 2. The driver's counters and the workload's own count make the report; neither stands in for the other.
//! 3. The agent is managed through the driver, which alone writes to the manager's line.

pub mod order;

#[cfg(feature = "linux")]
mod channel;
#[cfg(feature = "linux")]
mod command;
#[cfg(feature = "linux")]
mod kmsg;
#[cfg(feature = "linux")]
mod life;
#[cfg(feature = "linux")]
mod module;
#[cfg(feature = "linux")]
mod processes;
#[cfg(feature = "linux")]
mod scheduler;
#[cfg(feature = "linux")]
mod service;
#[cfg(feature = "linux")]
pub mod tally;

#[cfg(feature = "linux")]
pub use life::run;
