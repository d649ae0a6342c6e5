//! What an agent leaves in its memory, and what the next one finds there.

use core::ops::Range;
use core::sync::atomic::AtomicU64;

use neap_hal::cpu::forbidden::{load_long, store_long};

/// What is left.
pub const PATTERN: u64 = 0x5ec2_e75e_5ec2_e75e;
/// Bytes of the stack, from its end on, that an agent here uses itself.
pub const STACK_USED: u64 = 16 << 10;

/// Memory of an agent's own, zeroed.
#[derive(Debug)]
pub struct Own<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> Own<WORDS> {
    /// So many words.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// Where it lies.
    #[must_use]
    pub fn range(&'static self) -> Range<u64> {
        let start = self.0.as_ptr().expose_provenance() as u64;
        start..start + size_of::<Self>() as u64
    }
}

/// Fills memory with [`PATTERN`].
pub fn fill(memory: Range<u64>) {
    memory.step_by(8).for_each(|address| store_long(address, PATTERN));
}

/// Where the first word lies that is not zero.
#[must_use]
pub fn find(memory: Range<u64>) -> Option<u64> {
    memory.step_by(8).find(|&address| load_long(address) != 0)
}
