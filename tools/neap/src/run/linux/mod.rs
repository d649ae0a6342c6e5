//! The host of `--host linux`: a Linux guest in a QEMU of its own, with the driver in its kernel.

mod ear;
mod window;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::linux::{Boot, File, Kit};

pub use ear::Ear;
pub use window::add_from_window;

use crate::guest::order::Order;
use crate::report::Parameters;

/// The guest's own directory, in a run's.
pub const DIRECTORY: &str = "guest";
/// What the guest is told to do, where its init looks for it.
const ORDER: &str = "order.json";

/// The command that boots the guest of the run in `dir`, on the domain of `socket`.
pub fn command(dir: &Path, asked: &Parameters, kit: &Kit, socket: PathBuf) -> Result<Command> {
    let own = dir.join(DIRECTORY);
    fs::create_dir(&own).context("making the guest's directory")?;
    let mut boot = Boot::new(u32::from(asked.cpus));
    boot.functions = vec![(socket, asked.vectors())];
    boot.files = vec![File::new(ORDER, serde_json::to_vec(&Order::usual(asked.clone()))?)];
    kit.command(&boot, &own)
}

/// The guest's console, in a run's directory.
pub fn console(dir: &Path) -> PathBuf {
    dir.join(DIRECTORY).join(xtask::linux::CONSOLE)
}
