//! End-to-end tests on QEMU: what no test on the developer's machine can see.
//!
//! 1. One program a subject, numbered in order of dependency: when several fail, the first is to blame.
//! 2. A program ends QEMU by semihosting, with [`PASS`] when all held. `cases.toml` says for each how QEMU is started
//!    and what it must print.
//! 3. No test looks at a clock that it did not arm itself.
//!
//! Built for the developer's machine these programs are empty.
#![no_std]

/// Every check held.
pub const PASS: u8 = 42;
/// A check failed; the console says which.
pub const FAIL: u8 = 1;
/// An exception that the test did not ask for.
pub const UNEXPECTED_EXCEPTION: u8 = 2;
/// The machine could not be brought up.
pub const NO_MACHINE: u8 = 3;

#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
pub use card::{machine, on_exception, on_secondary, pass};

/// Makes `fn(level: u64, machine: Machine) -> !` the test. The machine is up when it starts.
#[macro_export]
macro_rules! test_program {
    ($test:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn neap_primary(device_tree: usize, boot_level: u64) -> ! {
            let test: fn(u64, neap_hal::board::qemu_virt::Machine) -> ! = $test;
            test(boot_level, $crate::machine(device_tree as u64))
        }
    };
}
