//! Policies: pure, bounded decisions.
//!
//! 1. A policy sees messages and makes txns. It touches no hardware and knows no clock but the one in the messages.
//! 2. It allocates nothing once it runs: its memory is handed in, its tables are bounded.
//! 3. No message makes it loop over tasks; what it does for one is bounded by a constant.
//! 4. The host decides what is true. A refusal is news, not an error.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cpus;
pub mod fifo;
pub mod tasks;

pub use fifo::Fifo;
pub use tasks::{TASKS, Task};
