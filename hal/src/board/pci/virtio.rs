//! A disk behind virtio (Virtual I/O Device 1.2, §2.7, §4.1 and §5.2), which the loader leaves to the runtime: it starts the
//! function, with one queue that takes one request at a time, and the runtime finds the queue where it was left. All that the
//! function reads and writes lies in memory that nobody else has, [`QUEUE_BYTES`] of it: the queue, then the bytes of a request.
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 48 | three descriptors: the request's head, its bytes, its status |
//! | 64 | 14 | what is available |
//! | 128 | 38 | what is used |
//! | 256 | 16 | the head: kind, 0, sector |
//! | 272 | 1 | the status: 0 if it was done |
//! | 512 | 4 | 1 once the function is started |
//! | 4096 | 64 KiB | the bytes |

mod start;
mod used;

pub use start::{Found, REGISTERS_BYTES, find, start};
pub use used::{Disk, Request};

/// Bytes of one request at most.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Bytes of the memory that a queue takes.
pub const QUEUE_BYTES: usize = BUFFER_AT + REQUEST_BYTES_MAX;

const BUFFER_AT: usize = 4096;
const AVAILABLE_AT: usize = 64;
const USED_AT: usize = 128;
const HEAD_AT: usize = 256;
const STATUS_AT: usize = 272;
const READY_AT: usize = 512;
/// The queue's length: a power of two that has room for a request's three descriptors.
const DESCRIPTORS: u16 = 4;

/// A disk as the loader leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The register that makes the function look at its queue.
    pub notify: u64,
    /// The queue's memory.
    pub memory: u64,
    /// Sectors of the disk, of 512 bytes.
    pub sectors: u64,
    /// What of it may be written, in whatever words loader and runtime have for that.
    pub writable: [u64; 4],
}

impl Left {
    /// Words of [`Left::to_words`].
    pub const WORDS: usize = 7;

    /// As a device tree's property has it, in as many cells of 64 bits.
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let [first, second, third, fourth] = self.writable;
        [self.notify, self.memory, self.sectors, first, second, third, fourth]
    }

    /// From such a property's bytes; none if there are not as many.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: &[[u8; 8]; Self::WORDS] = bytes.as_chunks().0.try_into().ok()?;
        let [notify, memory, sectors, writable @ ..] = words.map(u64::from_be_bytes);
        Some(Self { notify, memory, sectors, writable })
    }
}

#[cfg(test)]
mod tests;
