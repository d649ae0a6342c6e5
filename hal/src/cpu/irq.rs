//! Interrupts at the core: masked, unmasked, and slept on.
//!
//! A core of ours runs with its interrupts masked. A pending one still ends [`wait_for_interrupt`]
//! (DDI 0487 D1.6.2), and the core then asks the interrupt controller what it was: no exception is taken.

use aarch64_cpu::registers::{DAIF, ReadWriteable, Readable};

/// Masks interrupts on this core.
#[inline]
pub fn mask() {
    DAIF.modify(DAIF::I::Masked);
}

/// Lets interrupts through to the exception handler on this core.
#[inline]
pub fn unmask() {
    DAIF.modify(DAIF::I::Unmasked);
}

/// Whether interrupts are masked on this core.
#[inline]
pub fn masked() -> bool {
    DAIF.is_set(DAIF::I)
}

/// Sleeps until an interrupt is pending, masked or not. May return without one.
#[inline]
pub fn wait_for_interrupt() {
    // What was stored before the sleep must not wait in a store buffer for its end.
    super::barrier::complete_all();
    aarch64_cpu::asm::wfi();
}
