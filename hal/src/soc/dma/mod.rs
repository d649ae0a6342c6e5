//! The DMA engine: moves bytes between the host's memory and the window.
//!
//! A channel is one 4 KiB register page ([`registers::Registers`]), so that the MMU can give it to one agent, and one
//! vector of the engine's, which starts it. The engine is itself a peer of the enclave's domain: it polls nothing,
//! and looks at a channel's page when that channel's vector is rung.
//!
//! **Starting.** The driver writes a descriptor and its ticket into the page and rings `engine_peer << 16 | channel`.
//! Both numbers stand in the page itself, with the ranges that the channel was granted; the engine wrote them, and
//! keeps its own copy: writing over them changes nothing but what the driver believes.
//!
//! **Completing.** The engine stores how much it moved, then the status word, which names the ticket. The driver
//! polls it, or has the engine ring a vector of its own.
//!
//! **Addresses** are IOVAs of the host on the host's side, and offsets from the window's start on the IPU's.
//! Addresses and length are multiples of 8 bytes, so that what moves is whole words.
//!
//! **Bounds.** A transfer lies inside one granted range on each side, with the right that it needs, or it is
//! refused before a byte moves. No descriptor, whatever its bits, does more than earn a [`Fault`].

pub mod registers;

mod channel;

#[cfg(any(test, feature = "fakes"))]
pub mod fake;

pub use channel::{Channel, Completion, Dma, DmaError, Error, ErrorKind, ErrorType};
pub use registers::{Access, Descriptor, Direction, Fault, Grant, Identity, Space, State, Status};
