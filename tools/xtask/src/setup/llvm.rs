//! LLVM's tools that know the Neoverse N1's pipeline: for `bench path` only.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Version, apt, lock};
use crate::paths;
use crate::process::{self, Limits};

/// The oldest whose neoverse-n1 has a model of its own pipeline.
const OLDEST: Version = Version::new(17, 0);
/// Debian's packages, the newest first.
const PACKAGES: [&str; 6] = ["llvm-22", "llvm-21", "llvm-20", "llvm-19", "llvm-18", "llvm-17"];

/// The tools, of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Llvm {
    /// llvm-mca: what a run of instructions costs on a pipeline.
    pub mca: PathBuf,
    /// llvm-objdump: instructions as text that llvm-mca reads.
    pub objdump: PathBuf,
    /// Which LLVM: its models change.
    pub version: Version,
}

/// The newest LLVM there is; installs one where there is none.
pub fn llvm() -> Result<Llvm> {
    if let Some(llvm) = present() {
        return Ok(llvm);
    }
    let _lock = lock::take()?;
    if let Some(llvm) = present() {
        return Ok(llvm);
    }
    install().with_context(|| {
        format!("llvm-mca is missing. Install LLVM {OLDEST} or newer (on Debian: `apt-get install llvm-19` as root)")
    })?;
    present().context("LLVM was installed, but there is no llvm-mca with llvm-objdump in PATH")
}

fn present() -> Option<Llvm> {
    let suffixes = PACKAGES.iter().filter_map(|package| package.strip_prefix("llvm"));
    suffixes.chain([""]).find_map(|suffix| {
        let mca = paths::find_program(&format!("llvm-mca{suffix}"))?;
        let objdump = paths::find_program(&format!("llvm-objdump{suffix}"))?;
        let text = process::output(Command::new(&mca).arg("--version"), Limits::total(20)).ok()?;
        let version = Version::after(&text, "LLVM version ").filter(|version| *version >= OLDEST)?;
        Some(Llvm { mca, objdump, version })
    })
}

fn install() -> Result<()> {
    if !apt::present() {
        bail!("this system has no apt-get, which is all that set-up can install it with");
    }
    apt::refresh_for("llvm")?;
    match PACKAGES.iter().find(|package| apt::candidate(package).is_some()) {
        Some(package) => apt::install(package, None),
        None => bail!("the distribution has none of {}", PACKAGES.join(", ")),
    }
}
