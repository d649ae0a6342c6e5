//! The virtual IPU: what joins two QEMUs, or QEMU and a process, as PCIe would.
//!
//! 1. One socket is one peer domain, and one enclave. A domain hears of its own peers and of nobody else's:
//!    the Doorbell value is `peer << 16 | vector`, so page tables alone would not keep enclaves apart.
//! 2. Everything is bounded: peers, vectors, what waits to be sent, and how long it may wait.
//! 3. A peer may die, babble or stop reading at any byte. It is dropped for a named reason, and nobody else
//!    notices more than its leaving.
//! 4. The DMA engine believes no register: it moves what its own bounds allow, or says which fault it found.
//! 5. What this process made (sockets, window files, threads) is gone when its owner is dropped.

pub mod dma;
pub mod peer;
pub mod server;
pub mod window;

mod wire;

#[cfg(test)]
#[path = "../tests/seed/mod.rs"]
mod seed;

pub use peer::{Change, Peer, PeerError};
pub use server::{Domain, Event, LeaveReason, RefuseReason, Server, ServerError};
pub use window::{Mapping, Window, WindowError};
pub use wire::{PEERS_MAX, VECTORS_MAX};
