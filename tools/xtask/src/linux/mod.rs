//! A Linux guest for the host driver, as code: from nothing but Debian's mirror to a kernel that has booted.
//!
//! 1. Debian's own kernel takes the module as it is; a second kernel, built from the same source, looks for mistakes.
//! 2. What takes minutes is made once for all checkouts, and appears when it is whole (`cache`); what comes from the
//!    checkout is built anew when it changed.
//! 3. Nothing stays behind on the machine: mounts live in namespaces, guests end with their [`Guest`].

mod cache;
mod config;
mod guest;
mod initramfs;
mod kernel;
mod module;
pub mod package;
mod qmp;
mod root;
mod smoke;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

pub use guest::{Boot, CONSOLE, Guest, complaints};
pub use initramfs::File;
pub use kernel::{Flavour, Kernel};
pub use module::Module;
pub use root::Root;
pub use smoke::smoke;

use crate::progress::Step;

/// Everything that a guest is booted from.
#[derive(Clone, Debug)]
pub struct Kit {
    /// The kernel.
    pub kernel: Kernel,
    /// The driver, built for it.
    pub module: Module,
    /// What it was made in, and QEMU runs from.
    root: Root,
    /// The archive that all its guests share.
    base: PathBuf,
}

impl Kit {
    /// With Debian's own kernel. The first takes some minutes, all after it seconds.
    pub fn stock() -> Result<Self> {
        Self::ready(Flavour::Stock, &mut Times::default())
    }

    /// With the kernel that looks for mistakes. The first takes many minutes, all after it seconds.
    pub fn debug() -> Result<Self> {
        Self::ready(Flavour::Debug, &mut Times::default())
    }

    /// As the others, and notes how long each step took.
    pub fn ready(flavour: Flavour, times: &mut Times) -> Result<Self> {
        let name = flavour.name();
        let _early = if Root::is_there() { None } else { Some(initramfs::Early::start()?) };
        let root = times.step("root", Root::ready)?;
        let kernel = times.step(&format!("{name} kernel"), || Kernel::ready(&root, flavour))?;
        let module = times.step(&format!("{name} module"), || module::build(&root, &kernel))?;
        let base = times.step(&format!("{name} files"), || initramfs::base(&root, &kernel, &module))?;
        Ok(Self { kernel, module, root, base })
    }

    /// Boots a guest.
    pub fn boot(&self, boot: &Boot) -> Result<Guest> {
        Guest::start(self.qemu(), &self.kernel.image(), &self.base, boot)
    }

    /// The command that boots a guest with its files in `directory`, for who looks after it by himself: its reports come out
    /// of stdout, and what it hears goes into stdin.
    pub fn command(&self, boot: &Boot, directory: &Path) -> Result<Command> {
        guest::command(self.qemu(), &self.kernel.image(), &self.base, boot, directory)
    }

    /// A command that is `qemu-system-x86_64`, without its arguments.
    #[must_use]
    pub fn qemu(&self) -> Command {
        self.root.qemu()
    }
}

/// How often it is looked whether something is there.
const LOOK: Duration = Duration::from_millis(100);

/// A kernel that is made beside what else is, from processors that others leave: rustc makes one crate of a kernel after another, and
/// guests wait for much.
pub struct Beside {
    flavour: Flavour,
    thread: JoinHandle<Result<()>>,
}

impl Beside {
    /// Begins as soon as somebody has made the root.
    #[must_use]
    pub fn begin(flavour: Flavour) -> Self {
        let make = move || {
            while !Root::is_there() {
                thread::sleep(LOOK);
            }
            Kernel::ready_quietly(&Root::ready()?, flavour).map(|_| ())
        };
        Self { flavour, thread: thread::spawn(make) }
    }

    /// Waits for it.
    pub fn end(self) -> Result<()> {
        if !self.thread.is_finished() {
            let mut step =
                Step::start(format!("finishing the {} kernel, for some minutes", self.flavour.name()));
            while !self.thread.is_finished() {
                step.tick();
                thread::sleep(LOOK);
            }
            step.done();
        }
        self.thread
            .join()
            .map_err(|_| anyhow!("whoever made the {} kernel has panicked", self.flavour.name()))?
    }
}

/// Checks the in-kernel Rust: its form, and clippy's opinion.
pub fn lint() -> Result<()> {
    let (root, kernel) = stock()?;
    module::lint(&root, &kernel)
}

/// The module and its BPF program, built for Debian's own kernel.
pub fn module() -> Result<Module> {
    let (root, kernel) = stock()?;
    module::build(&root, &kernel)
}

/// What modules for Debian's own kernel are built in, and with.
fn stock() -> Result<(Root, Kernel)> {
    let root = Root::ready()?;
    let kernel = Kernel::ready(&root, Flavour::Stock)?;
    Ok((root, kernel))
}

/// How long each step took.
#[derive(Clone, Debug, Default)]
pub struct Times(pub Vec<(String, Duration)>);

impl Times {
    /// Does one.
    pub fn step<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let done = step()?;
        self.0.push((name.to_owned(), started.elapsed()));
        Ok(done)
    }
}
