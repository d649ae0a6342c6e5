//! Set-up: checks what the commands need, and installs what is missing.
//!
//! 1. With everything there, it says nothing and takes no time worth noticing.
//! 2. It says what it installs before it does, shows how far it is, and never waits without a bound.
//! 3. Where it can't, its error names what is missing, what was tried, and the one thing to do about it.
//! 4. Any number of processes may be here at once: one installs, the others wait for it and look again.

pub(crate) mod apt;
mod llvm;
pub(crate) mod lock;
mod memory;
mod miri;
mod packages;
mod qemu;
mod target;
mod uefi;
mod version;

pub use llvm::{Llvm, llvm};
pub use miri::{Miri, miri};
pub use packages::{libelf, mmdebstrap};
pub use qemu::qemu;
pub use target::{loader_target, target};
pub use uefi::{Uefi, uefi};
pub use version::Version;

/// Everything that `neap` needs: QEMU and the firmware's target.
pub fn all() -> anyhow::Result<()> {
    qemu()?;
    target()
}
