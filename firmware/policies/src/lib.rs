//! Policies: pure, bounded decisions.
//!
//! 1. A policy sees messages and makes txns. It touches no hardware and knows no clock but the one that it is handed.
//! 2. It allocates nothing once it runs: its memory is handed in, its tables are bounded.
//! 3. No message makes it loop over tasks; what it does for one is bounded by a constant.
//! 4. The host decides what is true. A refusal is news, not an error.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod chain;
pub mod cpus;
pub mod dispatch;
pub mod fifo;
pub mod fifo_per_core;
pub mod mq_shinjuku;
pub mod order;
pub mod shinjuku;
pub mod staleness;
pub mod tasks;
pub mod vm;

#[cfg(test)]
mod model;

pub use fifo::Fifo;
pub use fifo_per_core::FifoPerCore;
pub use mq_shinjuku::MqShinjuku;
pub use shinjuku::Shinjuku;
pub use tasks::{TASKS, Task};
pub use vm::Vm;
