//! The scheduling class that the IPU serves.

use std::io;

/// `SCHED_EXT` in `linux/sched.h`.
pub const SCHED_EXT: i32 = 7;

/// Puts the calling thread, and all that it starts from then on, into the class.
///
/// Async-signal-safe: one system call.
pub fn enter() -> io::Result<()> {
    set_policy(0, SCHED_EXT)
}

/// Puts the calling thread, and all that it starts from then on, into the kernel's usual class.
pub fn leave() -> io::Result<()> {
    set_policy(0, libc::SCHED_OTHER)
}

/// A thread's policy, with its flags; 0 names the calling thread (`sched_getscheduler(2)`).
pub fn policy(thread: i32) -> io::Result<i32> {
    // SAFETY: the call takes a number and touches no memory of ours.
    match unsafe { libc::sched_getscheduler(thread) } {
        policy if policy >= 0 => Ok(policy),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a thread a policy without priorities; 0 names the calling thread (`sched_setscheduler(2)`).
pub fn set_policy(thread: i32, policy: i32) -> io::Result<()> {
    // SAFETY: a structure of one integer; all zero is a priority of 0, the only one that these classes have.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local.
    match unsafe { libc::sched_setscheduler(thread, policy, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
