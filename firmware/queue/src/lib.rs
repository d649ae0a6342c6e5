//! Rings and slots over self-proving lines.
//!
//! 1. One writer to a line, and every line proves itself whole: no head or tail crosses the link, and no fence
//!    stands between payload and flag.
//! 2. A full ring never overwrites and never blocks. The writer is told, counts, and its enclave is resynced.
//! 3. Credits come back apart from the ring, in decision lines and on idle, and are only ever an allegation: one that
//!    cannot be is refused and named.
//! 4. Nothing here allocates, panics, or is unsafe.
#![cfg_attr(not(any(test, loom)), no_std)]
#![forbid(unsafe_code)]

mod line;
pub mod ring;
pub mod slot;
mod sync;

pub use line::Line;
pub use ring::{Consumer, CreditError, Full, Producer, RingError, SharedProducer};
pub use slot::{SlotReader, SlotWriter, Taken};
