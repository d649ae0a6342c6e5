//! How a core waits and how it ends: it parks, or it ends the simulator that it runs on.

pub use super::call::relax;

/// Sleeps for good, interrupts masked.
pub fn park() -> ! {
    super::irq::mask();
    loop {
        super::irq::wait_for_interrupt();
    }
}

/// Ends QEMU with `code` as its exit status, by semihosting's SYS_EXIT. Only for tests, and only where a
/// debugger or QEMU's `-semihosting-config enable=on` answers: elsewhere it is an undefined instruction.
pub fn exit_simulator(code: u8) -> ! {
    semihosting::process::exit(i32::from(code))
}

/// The number that this core was started with; the first core's is 0. The boot code leaves it in TPIDR_EL1.
#[inline(always)]
pub fn core() -> usize {
    use aarch64_cpu::registers::{Readable, TPIDR_EL1};
    TPIDR_EL1.get() as usize
}
