//! The scheduling class that the IPU serves.

use std::io;

/// `SCHED_EXT` in `linux/sched.h`.
const SCHED_EXT: i32 = 7;

/// Puts the calling thread, and all that it starts from then on, into the class.
///
/// Async-signal-safe: one system call.
pub fn enter() -> io::Result<()> {
    set(SCHED_EXT)
}

/// Puts the calling thread, and all that it starts from then on, into the kernel's usual class.
pub fn leave() -> io::Result<()> {
    set(libc::SCHED_OTHER)
}

fn set(policy: i32) -> io::Result<()> {
    // SAFETY: a structure of one integer; all zero is a priority of 0, the only one that these classes have.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local, and 0 names the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
