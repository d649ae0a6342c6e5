//! What code at EL0 can do that Rust can't name: a hint, and the runtime's system calls.
//!
//! The calls' numbers are the caller's: this module knows only how one is made.

use core::arch::asm;

/// Tells whoever shares this core's hardware that it only waits: a YIELD, which costs an N1 nothing and lets a simulator
/// with one thread go on to the next core. (`core::hint::spin_loop` is an ISB here, which empties the pipeline just when a
/// message may have come.)
#[inline(always)]
pub fn relax() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Makes system call `NUMBER`, which changes no register and returns.
#[inline(always)]
pub fn call<const NUMBER: u16>(argument: u64) {
    // SAFETY: a call that returns changes nothing of its caller's but what it says; not `nomem`: others may have written
    // memory meanwhile.
    unsafe { asm!("svc #{}", const NUMBER, in("x0") argument, options(nostack, preserves_flags)) };
}

/// Makes system call `NUMBER`, which does not return.
pub fn last_call<const NUMBER: u16>(arguments: [u64; 5]) -> ! {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the core goes back to the runtime, and this agent is no more. Should the runtime return, the next
    // instruction is one that it ends an agent for.
    unsafe {
        asm!(
            "svc #{}",
            "udf #0",
            const NUMBER,
            in("x0") a,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            options(noreturn, nostack),
        )
    }
}
