//! The loader, a UEFI application: it boots the image of one of two slots. Built for another machine it is empty.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod boot;

#[cfg(target_os = "uefi")]
#[uefi::entry]
fn main() -> uefi::Status {
    boot::run()
}

#[cfg(not(target_os = "uefi"))]
fn main() {}
