//! EL0: how a core is lent to an agent and taken back.
//!
//! [`enter`] gives the core to an agent and returns when it comes back. In between the core is the agent's: it runs in an
//! address space of its own, with interrupts unmasked, which it can't mask. An exception brings the core to the
//! handler of [`exception`](crate::cpu::exception); that either returns to the agent or calls [`leave`], which makes
//! `enter` return.
//!
//! Exceptions land on the same stack whether they come from the runtime or from an agent, and an agent's stack pointer
//! is the runtime's own register: `enter` keeps the runtime's in memory meanwhile.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::cpu::mmu::Space;
use crate::cpu::{CORES_MAX, power};

/// SPSR_EL1 of an agent: EL0t, AArch64, nothing masked.
const EL0_UNMASKED: u64 = 0;

/// What an agent gives its core back with; a number of the caller's choosing.
pub type Left = u64;

/// Where a core keeps the runtime's stack pointer while an agent has the core.
#[repr(C)]
struct Kept {
    stack: UnsafeCell<u64>,
    exception_stack: UnsafeCell<u64>,
}

// SAFETY: each core uses its own entry only, and never from two places at once: `enter` writes it before the agent runs,
// `leave` reads it after.
unsafe impl Sync for Kept {}

static KEPT: [Kept; CORES_MAX] =
    [const { Kept { stack: UnsafeCell::new(0), exception_stack: UnsafeCell::new(0) } }; CORES_MAX];

unsafe extern "C" {
    fn neap_enter_agent(
        kept: *const Kept,
        space: u64,
        entry: u64,
        stack: u64,
        spsr: u64,
        argument: u64,
    ) -> Left;
    fn neap_leave_agent(kept: *const Kept, map: u64, with: Left) -> !;
}

/// Opens to EL0 what an agent is to have of the running core's system registers, and nothing else: the virtual counter
/// (CNTKCTL_EL1.EL0VCTEN). Performance counters and debug stay closed.
pub fn prepare() {
    // SAFETY: these registers govern EL0 only, and no agent runs on this core yet.
    unsafe {
        core::arch::asm!(
            "msr cntkctl_el1, {counter}",
            "msr pmuserenr_el0, xzr",
            "msr mdscr_el1, xzr",
            "isb",
            counter = in(reg) 1u64 << 1,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Lends this core to an agent: it starts at `entry` with its stack pointer at `stack` and `argument` in x0, all other
/// registers zero. Returns what [`leave`] is called with.
///
/// # Safety
/// `space` is whole, and stays so until this returns; interrupts are masked, and the exception handler knows what to
/// do with exceptions from EL0.
pub unsafe fn enter(space: Space, entry: u64, stack: u64, argument: u64) -> Left {
    let kept = &KEPT[power::core() % CORES_MAX];
    // SAFETY: the caller's promise. The runtime is mapped in every space as in its own map, so execution goes on there.
    unsafe { neap_enter_agent(kept, space.ttbr0(), entry, stack, EL0_UNMASKED, argument) }
}

/// Takes this core back from its agent: [`enter`] returns `with`. The agent's registers are gone.
///
/// # Safety
/// Called from the handler of an exception from EL0, on a core that is inside [`enter`]. `map` is the runtime's own.
pub unsafe fn leave(map: super::mmu::Root, with: Left) -> ! {
    let kept = &KEPT[power::core() % CORES_MAX];
    // SAFETY: the caller's promise: `enter` has written what this reads, and its frame still stands.
    unsafe { neap_leave_agent(kept, map.address(), with) }
}

global_asm!(include_str!("el0.s"));
