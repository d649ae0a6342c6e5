//! The Neoverse N1 core: how it starts, sleeps, orders its stores, counts, and falls.
//!
//! Sources: Arm Architecture Reference Manual for A-profile (DDI 0487), the PSCI specification (DEN 0022),
//! the semihosting specification.

pub mod mmu;
pub mod syndrome;
pub mod timer;

#[cfg(all(
    target_arch = "aarch64",
    any(all(target_os = "none", feature = "el1"), all(target_os = "uefi", feature = "loader"))
))]
pub mod barrier;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod boot;
#[cfg(all(
    target_arch = "aarch64",
    any(all(target_os = "none", feature = "el1"), all(target_os = "uefi", feature = "loader"))
))]
pub mod cache;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod call;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod el0;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod exception;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "forbidden"))]
pub mod forbidden;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod irq;
#[cfg(all(target_arch = "aarch64", target_os = "uefi", feature = "loader"))]
pub mod loader;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod pmu;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod power;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod psci;
#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub mod resident;

/// The most cores that one image serves: what one Mount Evans has, and what the interrupt controllers of
/// QEMU's `virt` address without more than one redistributor region.
pub const CORES_MAX: usize = 16;
