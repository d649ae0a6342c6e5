//! The machines: what is where, and how it was found.

pub mod bootargs;
pub mod gic;
pub mod pci;
pub mod qemu_virt;

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod console;

/// The instruction that reaches the platform's firmware (SMC Calling Convention, DEN 0028).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// HVC, to EL2.
    Hvc,
    /// SMC, to EL3.
    Smc,
}
