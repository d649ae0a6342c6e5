//! The performance counters that prove a cost: instructions retired and cycles (DDI 0487 D13).
//!
//! On QEMU the instruction counter exists, and is exact, only with `-icount` and a fixed shift.

use core::arch::asm;

/// INST_RETIRED, the architectural event number of "instruction architecturally executed".
const INST_RETIRED: u64 = 0x08;
/// PMCR_EL0: enable, reset both kinds of counters, count cycles in 64 bits.
const PMCR: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 6;

/// Both counters, since [`start`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions retired, modulo 2^32.
    pub instructions: u32,
    /// Core cycles.
    pub cycles: u64,
}

/// Whether this core counts retired instructions (PMCEID0_EL0).
pub fn counts_instructions() -> bool {
    let events: u64;
    // SAFETY: reads an identification register.
    unsafe {
        asm!("mrs {}, pmceid0_el0", out(reg) events, options(nomem, nostack, preserves_flags));
    }
    events >> INST_RETIRED & 1 == 1
}

/// Starts both counters of this core at zero, for EL1 and EL0.
pub fn start() {
    // SAFETY: the performance monitor is this module's alone, and changes nothing else that Rust can see.
    unsafe {
        asm!(
            "msr pmcr_el0, {control}",
            "msr pmccfiltr_el0, xzr",
            "msr pmevtyper0_el0, {event}",
            "msr pmcntenset_el0, {both}",
            "isb",
            control = in(reg) PMCR,
            event = in(reg) INST_RETIRED,
            both = in(reg) 1u64 << 31 | 1,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Reads both counters. The ISB makes earlier instructions count and keeps later ones out.
#[inline(always)]
pub fn read() -> Counts {
    let (instructions, cycles): (u64, u64);
    // SAFETY: reads two counters. No `nomem`: what is measured must not move across.
    unsafe {
        asm!(
            "isb",
            "mrs {instructions}, pmevcntr0_el0",
            "mrs {cycles}, pmccntr_el0",
            instructions = out(reg) instructions,
            cycles = out(reg) cycles,
            options(nostack, preserves_flags),
        );
    }
    Counts { instructions: instructions as u32, cycles }
}

impl Counts {
    /// What was counted between `earlier` and now.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            instructions: self.instructions.wrapping_sub(earlier.instructions),
            cycles: self.cycles.wrapping_sub(earlier.cycles),
        }
    }
}
