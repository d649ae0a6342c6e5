//! Cache maintenance by address, to the point of coherency (DDI 0487 D7.5.9).
//!
//! Nothing between agent and host needs it: the window is write-back and coherent with inbound PCIe. It is for memory
//! that somebody reads without the caches: a core before its MMU is on, a DMA engine that does not snoop.

use core::arch::asm;
use core::ops::Range;

/// The smallest data cache line of any level, in bytes (CTR_EL0.DminLine).
fn line_bytes() -> u64 {
    let ctr: u64;
    // SAFETY: reads an identification register.
    unsafe {
        asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags));
    }
    4 << (ctr >> 16 & 0xf)
}

/// Writes the lines that hold `range` back to memory; they stay in the cache.
pub fn clean(range: Range<u64>) {
    let line = line_bytes();
    let mut address = range.start & !(line - 1);
    while address < range.end {
        // SAFETY: cleaning changes no value that any observer can read; an unmapped address faults.
        unsafe {
            asm!("dc cvac, {}", in(reg) address, options(nostack, preserves_flags));
        }
        address += line;
    }
    super::barrier::complete_all();
}

/// Writes the lines that hold `range` back to memory and drops them, so that the next read is memory's.
pub fn clean_and_invalidate(range: Range<u64>) {
    let line = line_bytes();
    let mut address = range.start & !(line - 1);
    while address < range.end {
        // SAFETY: what is dirty is written back before it is dropped; an unmapped address faults.
        unsafe {
            asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags));
        }
        address += line;
    }
    super::barrier::complete_all();
}

/// Makes instructions that were stored in `range` the ones that every core fetches (DDI 0487 B2.4.4): the lines go to the
/// point of unification, and all cores' instruction caches are emptied. A core that runs them next has come by an
/// exception return, which is the context synchronisation that the sequence ends with.
pub fn publish_instructions(range: Range<u64>) {
    let line = line_bytes();
    let mut address = range.start & !(line - 1);
    while address < range.end {
        // SAFETY: cleaning changes no value that any observer can read; an unmapped address faults.
        unsafe {
            asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags));
        }
        address += line;
    }
    // SAFETY: an instruction cache holds nothing that memory does not.
    unsafe {
        asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags));
    }
}
