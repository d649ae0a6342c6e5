//! The host's mechanism, as a kernel needs it: what is true of tasks and CPUs, and what a txn does to it.
//!
//! 1. Everything here may run under a runqueue's lock: no lock, no allocation, no panic, no unbounded loop.
//! 2. The state is atomics in memory that is handed in. A task's state and its stamp are one word, so that a decision is
//!    committed by one compare-and-swap, or not at all.
//! 3. What the IPU can write is an allegation: a [`wire::Wire`] reads it, `judge` refuses what cannot be.
//! 4. What hardware does (flushing a line, draining the write buffer, ringing) is the caller's [`Platform`].
//!
//! Kbuild compiles these files into the driver; cargo compiles them for tests, fuzzing and measurements.
#![cfg_attr(not(any(test, loom, feature = "fakes")), no_std)]
#![forbid(unsafe_code)]
// The kernel's compiler is older than the workspace's: it knows no let chains and none of the newer library.
#![allow(unknown_lints, clippy::collapsible_if, clippy::manual_is_multiple_of)]

pub mod counters;
pub mod cpu;
mod decide;
pub mod enclave;
pub mod events;
#[cfg(any(all(test, not(loom)), feature = "fakes"))]
pub mod fakes;
mod group;
mod judge;
mod lines;
pub mod resync;
mod sync;
pub mod task;
pub mod watch;
pub mod wire;

use neap_abi::{Message, Outcome, Txn};
use neap_queue::Line;

pub use counters::{Count, Counters};
pub use cpu::Cpu;
pub use decide::{Member, Taken};
pub use enclave::{Enclave, Level};
pub use events::{Custody, Mechanism};
pub use task::{Phase, Task, Word};
pub use wire::Wire;

/// Enclaves that one host can have: one PCI function each.
pub const ENCLAVES_MAX: usize = 8;

/// What the hardware does for a wire.
pub trait Platform {
    /// Monotonic time, in ns.
    fn now_ns(&self) -> u64;
    /// Has what was written to the link leave the CPU's write-combining buffer.
    fn drain(&self);
    /// Drops a decision slot's line from the caches (section 4.2.2); nothing on a coherent link.
    fn flush(&self, line: &Line);
    /// Begins to fetch a decision slot's line (section 4.3).
    fn prefetch(&self, line: &Line);
    /// Rings one of the IPU's vectors.
    fn ring(&self, peer: u16, vector: u16);
    /// A line was written.
    fn sent(&self, _message: &Message) {}
    /// A txn was taken, and this became of it.
    fn judged(&self, _cpu: u16, _txn: &Txn, _outcome: Outcome) {}
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;
