//! Miri, which finds undefined behaviour by interpreting the tests: it comes with nightly compilers only.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::target::Download;
use super::{lock, memory};
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;

/// The nightly that is installed where none has Miri: a fixed one, and not the user's own `nightly`, which stays.
const NIGHTLY: &str = "nightly-2026-05-20";
const INSTALL: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(900) };
const FAILED: &str = "rustup-miri";

/// A toolchain that has Miri, as rustup names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miri {
    /// "nightly", say.
    pub toolchain: String,
}

impl Miri {
    /// `cargo miri`, in the checkout.
    pub fn command(&self) -> Command {
        let mut command = Command::new("rustup");
        command.current_dir(paths::root()).args(["run", &self.toolchain, "cargo", "miri"]);
        // Left by the cargo that runs us, these would lead the other toolchain back to this one.
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env_remove(name);
        }
        command
    }
}

/// A toolchain with Miri; installs one where there is none.
pub fn miri() -> Result<Miri> {
    if let Some(miri) = present() {
        return Ok(miri);
    }
    let remedy =
        format!("run `rustup toolchain install {NIGHTLY} --component miri,rust-src` where rustup can fetch");
    if paths::find_program("rustup").is_none() {
        bail!("Miri needs a nightly compiler, and there is no rustup to bring one; install rustup");
    }
    if memory::failed_lately(FAILED) {
        bail!("Miri is missing, and rustup could not fetch it within the last hour; {remedy}");
    }
    let _lock = lock::take()?;
    if let Some(miri) = present() {
        return Ok(miri);
    }
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "miri,rust-src"]);
    // Rustup would replace itself too, unasked, and not always by a newer one.
    command.arg("--no-self-update");
    let step = Step::start(format!("installing Miri (rustup toolchain install {NIGHTLY})"));
    let mut watch = Download { step, last: 0 };
    let done = process::run(&mut command, INSTALL, &mut watch)?;
    if !done.ok() {
        memory::failed(FAILED);
        let words = done.all.lines().find(|line| line.starts_with("error")).unwrap_or_default();
        bail!("Miri is missing, and rustup did not bring it ({} {words}); {remedy}", done.verdict());
    }
    memory::worked(FAILED);
    watch.step.done();
    Ok(Miri { toolchain: NIGHTLY.to_owned() })
}

fn present() -> Option<Miri> {
    ["nightly", NIGHTLY].into_iter().find_map(|toolchain| {
        let mut command = Command::new("rustup");
        command.args(["component", "list", "--installed", "--toolchain", toolchain]);
        let list = process::output(&mut command, Limits::total(30)).ok()?;
        has_miri(&list).then(|| Miri { toolchain: toolchain.to_owned() })
    })
}

/// Whether a list of components has what `cargo miri` needs.
fn has_miri(list: &str) -> bool {
    let has = |name: &str| list.lines().any(|line| line.trim().starts_with(name));
    has("miri") && has("rust-src")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn miri_needs_the_library_s_sources_too() {
        assert!(has_miri("cargo-x86_64-unknown-linux-gnu\nmiri-x86_64-unknown-linux-gnu\nrust-src\n"));
        assert!(!has_miri("cargo-x86_64-unknown-linux-gnu\nmiri-x86_64-unknown-linux-gnu\n"));
        assert!(!has_miri("rust-src\n"));
        assert!(!has_miri(""));
    }
}
