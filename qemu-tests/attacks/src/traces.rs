//! What an agent leaves in its memory, and what the next one finds there.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use neap_hal::cpu::forbidden::{load_long, store_long};

/// What is left.
pub const PATTERN: u64 = 0x5ec2_e75e_5ec2_e75e;
/// Bytes of the stack, from its end on, that an agent here uses itself.
pub const STACK_USED: u64 = 16 << 10;
/// Words of the agent's own.
const OWN_WORDS: usize = 64 << 10 >> 3;

/// Memory of the agent's own.
#[must_use]
pub fn own_memory() -> Range<u64> {
    static OWN: [AtomicU64; OWN_WORDS] = [const { AtomicU64::new(0) }; OWN_WORDS];
    // Stored to once, so that it lies in memory that can be.
    OWN[0].store(0, Ordering::Relaxed);
    let start = OWN.as_ptr().expose_provenance() as u64;
    start..start + size_of_val(&OWN) as u64
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
