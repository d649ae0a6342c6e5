//! The module and the BPF object, built for one kernel from this checkout.
//!
//! A warning is a failure, whoever gives it: rustc, clippy, gcc, objtool, modpost or clang.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::root::{Mount, Root};
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;
use crate::setup::lock;

/// Both take seconds.
const BUILD: Limits = Limits::total(600);

/// Clang, as libbpf's programs are built. `vmlinux.h` is made of the kernel's types, some of which have no names.
const BPF: &str = "clang -g -O2 -Wall -mcpu=v3 -target bpf -D__TARGET_ARCH_x86 -fms-extensions \
                   -Wno-microsoft-anon-tag -I/kernel -c /checkout/host-driver/bpf/neap.bpf.c -o /out/neap.bpf.o";

/// What is loaded into a guest.
#[derive(Clone, Debug)]
pub struct Module {
    /// `neap.ko`, with its debug information.
    pub ko: PathBuf,
    /// `neap.bpf.o`, with its.
    pub bpf: PathBuf,
}

/// Builds both for `kernel`.
pub fn build(root: &Root, kernel: &Kernel) -> Result<Module> {
    let name = kernel.flavour.name();
    let out = out(name)?;
    make(root, kernel, &out, "modules", &format!("building the host driver for the {name} kernel"))?;
    let what = format!("building the host driver's BPF program for the {name} kernel");
    compile(root, kernel, &out, BPF, &what)?;
    Ok(Module { ko: out.join("neap.ko"), bpf: out.join("neap.bpf.o") })
}

/// Checks the module's Rust: its form, and clippy's opinion of it and of the crates that it shares with us.
pub fn lint(root: &Root, kernel: &Kernel) -> Result<()> {
    let main = paths::root().join("host-driver/main.rs");
    let mut rustfmt = Command::new("rustfmt");
    // The edition is the kernel's, the rest this workspace's.
    rustfmt.current_dir(paths::root()).args(["--check", "--color=never", "--edition", "2021"]).arg(&main);
    let done = process::run(&mut rustfmt, Limits::total(60), &mut ())?;
    if !done.ok() {
        bail!("rustfmt has another form for the host driver than it is in:\n{}", done.tail(100));
    }
    let out = out(&format!("{}-clippy", kernel.flavour.name()))?;
    make(root, kernel, &out, "CLIPPY=1 modules", "linting the host driver (clippy)")
}

/// Where the objects for one kernel go.
fn out(name: &str) -> Result<PathBuf> {
    let out = paths::target_dir().join("linux").join(name);
    fs::create_dir_all(&out).with_context(|| format!("{} can't be made", out.display()))?;
    Ok(out)
}

fn make(root: &Root, kernel: &Kernel, out: &Path, goal: &str, what: &str) -> Result<()> {
    let script = format!("{} -j$(nproc) M=/checkout/host-driver MO=/out {goal}", kernel.make());
    compile(root, kernel, out, &script, what)
}

fn compile(root: &Root, kernel: &Kernel, out: &Path, script: &str, what: &str) -> Result<()> {
    let _lock = lock::take_for("linux-module")?;
    let checkout = paths::root();
    let mounts = [
        kernel.mount(),
        Mount { from: &checkout, to: "/checkout", writable: false },
        Mount { from: out, to: "/out", writable: true },
    ];
    let mut step = Step::start(what);
    let done = root.script(&mounts, script, BUILD, &mut step)?;
    if done.all.lines().any(is_warning) {
        // Nothing is built anew that stands: the next build would pass over what this one warned of.
        for entry in fs::read_dir(out).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        bail!("{what}: it builds, but not without warnings:\n{}", done.tail(200));
    }
    step.done();
    Ok(())
}

/// Whether a tool of Kbuild's warns in that line.
fn is_warning(line: &str) -> bool {
    ["warning:", "WARNING:", "Skipping BTF"].iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_s_warnings_are_known() {
        for line in [
            "warning: unused variable: `line`",
            "shim.c:7:5: warning: unused variable 'i' [-Wunused-variable]",
            "neap.o: warning: objtool: neap_read_txn+0x5: unreachable instruction",
            "WARNING: modpost: missing MODULE_DESCRIPTION() in neap.o",
            "Skipping BTF generation for neap.ko due to unavailability of vmlinux",
        ] {
            assert!(is_warning(line), "{line}");
        }
        assert!(!is_warning("  RUSTC [M] neap_abi.o") && !is_warning("  CC [M]  warning.o"));
    }
}
