//! `cargo xtask qemu-run ELF`: cargo's runner for the card's target.

use std::path::Path;

use anyhow::{Context, Result};
use neap_vipu::Window;

use crate::machine::{Machine, WINDOW_BYTES};
use crate::setup;

/// Boots `elf` on two cores with the terminal as its console, and returns the status that it ends with.
/// `words` go to the firmware's command line.
pub fn run(elf: &Path, words: &[String]) -> Result<i32> {
    let qemu = setup::qemu()?;
    let window = Window::create(&format!("neap-{}-run", std::process::id()), WINDOW_BYTES)?;
    let mut machine = Machine::new(2, window.path(), window.bytes());
    machine.bootargs = words.to_vec();
    let status =
        machine.command(&qemu, elf)?.status().with_context(|| format!("{} can't start", qemu.display()))?;
    // A signal has no code; a shell shows one as 128 and more.
    Ok(status.code().unwrap_or(128))
}
