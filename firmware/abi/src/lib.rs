//! The wire between a host and its IPU.
//!
//! 1. This crate has no dependency, no allocation and no unsafe code; the host driver compiles these same files.
//! 2. The unit is a 64-byte little-endian line that proves itself whole ([`line`]): nothing else orders it.
//! 3. What comes from the other side is an allegation. Decoding checks it and names what is wrong; it never panics.
//! 4. A field is never moved or reused. What a minor version adds lies in bits that were zero before it.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod crc;
pub mod epitaph;
pub mod grant;
pub mod hello;
pub mod image;
pub mod layout;
pub mod ledger;
pub mod line;
pub mod logring;
pub mod message;
pub mod outcome;
pub mod slots;
pub mod supervisor;
pub mod txn;
pub mod version;

pub use control::{AgentControl, AgentState, Clock, HostCommand, HostControl};
pub use epitaph::{Cause, Epitaph, EpitaphRecord};
pub use grant::Grant;
pub use hello::{Hello, HelloError, Region, RegionKind};
pub use image::{ImageError, ImageHeader};
pub use layout::{Layout, LayoutError};
pub use ledger::Ledger;
pub use line::{LINE_BYTES, Payload, Tag, WORDS};
pub use message::{Message, MessageKind, TaskFlags};
pub use outcome::Outcome;
pub use supervisor::{Books, Manage, ManagerLine, Reply, ReplyLine};
pub use txn::{Operation, Txn, TxnFlags};
pub use version::{VERSION, Version, VersionError};

/// Host CPUs that one enclave can hold: one decision slot and one vector each.
pub const CPUS_MAX: u16 = 256;
