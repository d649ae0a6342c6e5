//! The two kernels that the driver is built for and booted with: Debian's own, and one that looks for mistakes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cache;
use super::config::Config;
use super::root::{Mount, Root};
use crate::paths;
use crate::process::Limits;
use crate::progress::Step;

/// Metadata, or a whole kernel: minutes on a quiet machine, and hours on one that has much else to do.
const BUILD: Limits = Limits { silence: Duration::from_secs(600), total: Duration::from_secs(4 * 3600) };

/// Kbuild's metadata of Debian's kernel, from its source and its configuration: headers bring all but the Rust part. What
/// rustc makes of the same source with the same flags has the same hashes, so that the modules load into the kernel that
/// Debian built.
const METADATA: &str = r#"
cp "$headers/.config" /kernel/build/.config
$make olddefconfig
$make prepare modules_prepare
cp "$headers/Module.symvers" "$headers/vmlinux" /kernel/build/
cp "/usr/lib/modules/$release/vmlinuz" /kernel/
"#;

/// A kernel from the same source, which QEMU boots as it is linked: packing it takes time, and unpacking it more. What only its
/// own link needs is removed: it is most of a gigabyte.
const WHOLE: &str = r#"
$make KCONFIG_ALLCONFIG=/kernel/debug.config allnoconfig
"#;
const WHOLE_BUILD: &str = r#"
$make vmlinux modules
cd /kernel/build
strip --strip-debug vmlinux
ln vmlinux /kernel/vmlinuz
rm -f vmlinux.* .tmp_vmlinux*
find . \( -path ./scripts -o -path ./tools -o -path ./rust \) -prune -o \
    \( -name '*.o' -o -name '*.a' -o -name '.*.cmd' \) -type f -exec rm {} +
"#;

/// Has what follows in a script run only where nobody else wants the processor. With a share of its own it is done no sooner, for there
/// is no idle time to be had, and what it is made beside is done later.
const GIVING_WAY: &str = "chrt --idle --pid 0 $$\n";

/// The types that a BPF program sees.
const TYPES: &str = r#"
bpftool btf dump file /kernel/build/vmlinux format c > /kernel/vmlinux.h
"#;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Debian's own, as it comes.
    Stock,
    /// The same source with what finds mistakes switched on (`host-driver/debug.config`), lockdep first of all.
    Debug,
}

impl Flavour {
    /// Its name, in paths and in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Debug => "debug",
        }
    }
}

/// A kernel that boots, and what modules for it are built with.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Which.
    pub flavour: Flavour,
    /// What `uname -r` says there.
    pub release: String,
    /// `build`, `vmlinuz` and `vmlinux.h`.
    dir: PathBuf,
    /// How Kbuild is called for it: with the C compiler that it was built with, for one thing.
    make: String,
}

impl Kernel {
    /// The kernel; makes what there is not yet.
    pub fn ready(root: &Root, flavour: Flavour) -> Result<Self> {
        Self::made(root, flavour, true)
    }

    /// As [`Kernel::ready`], and says nothing of it, and takes no processor that anything else wants.
    pub fn ready_quietly(root: &Root, flavour: Flavour) -> Result<Self> {
        Self::made(root, flavour, false)
    }

    fn made(root: &Root, flavour: Flavour, shows: bool) -> Result<Self> {
        let release = root.release()?;
        let headers = format!("/usr/src/linux-headers-{release}");
        let config = root.dir().join(format!("{}/.config", headers.trim_start_matches('/')));
        let config =
            fs::read_to_string(&config).with_context(|| format!("{} can't be read", config.display()))?;
        let config = Config::parse(&config);
        config.suits(&release)?;
        let compiler = config.value("CC_VERSION_TEXT").and_then(|text| text.split_whitespace().next());
        let compiler = compiler.with_context(|| format!("the kernel {release} names no C compiler"))?;
        let mut make = format!("make -C /source O=/kernel/build CC={compiler} HOSTCC={compiler}");
        let release = match flavour {
            Flavour::Stock => release,
            Flavour::Debug => release.split('+').next().unwrap_or_default().to_owned() + "+neap-debug",
        };
        if let Some((_, local)) = release.split_once('+') {
            make += &format!(" LOCALVERSION=+{local}");
        }
        let prelude = format!("release='{release}'\nheaders='{headers}'\nmake=\"{make} -j$(nproc)\"\n");
        let build = Build { root, release: &release, prelude: &prelude, config: &config, shows };
        let dir = match flavour {
            Flavour::Stock => {
                let inputs = (root.packages(), METADATA, TYPES, &prelude);
                cache::ready(flavour.name(), &inputs, |part| build.stock(part))?
            }
            Flavour::Debug => {
                let file = paths::root().join("host-driver/debug.config");
                let fragment =
                    fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
                let inputs = (root.packages(), WHOLE, WHOLE_BUILD, TYPES, &prelude, &fragment);
                cache::ready(flavour.name(), &inputs, |part| build.debug(part, &fragment))?
            }
        };
        Ok(Self { flavour, release, dir, make })
    }

    /// The image that QEMU boots.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Where a root sees it: `build` for Kbuild, and `vmlinux.h`.
    pub(super) fn mount(&self) -> Mount<'_> {
        Mount { from: &self.dir, to: "/kernel", writable: false }
    }

    /// The command line of `make` in a root, up to the module's directory.
    pub(super) fn make(&self) -> &str {
        &self.make
    }
}

/// Making one.
struct Build<'a> {
    root: &'a Root,
    release: &'a str,
    /// Sets what the scripts speak of.
    prelude: &'a str,
    /// Debian's.
    config: &'a Config<'a>,
    /// Whether somebody is shown how far it is.
    shows: bool,
}

impl Build<'_> {
    fn stock(&self, part: &Path) -> Result<()> {
        let rustc = self.root.script(&[], "rustc --version", Limits::total(60), &mut ())?;
        self.config.built_with(self.release, &rustc.out)?;
        let what = format!("making the Rust metadata of Debian's kernel {}", self.release);
        self.run(part, &[METADATA, TYPES], &what)?;
        // Kconfig switches off in silence what the root's tools can't build.
        let made = made(part, ".config")?;
        Config::parse(&made).suits(self.release).context("as it is configured with what the root has")?;
        self.check_release(part)
    }

    fn debug(&self, part: &Path, fragment: &str) -> Result<()> {
        fs::create_dir_all(part).with_context(|| format!("{} can't be made", part.display()))?;
        let file = part.join("debug.config");
        fs::write(&file, fragment).with_context(|| format!("{} can't be written", file.display()))?;
        self.run(part, &[WHOLE], "configuring the kernel that looks for mistakes")?;
        let made = made(part, ".config")?;
        let lacks = Config::parse(&made).lacks(fragment);
        ensure!(
            lacks.is_empty(),
            "host-driver/debug.config asks for what the kernel {} does not have, or not together with the rest:\n{}",
            self.release,
            lacks.join("\n")
        );
        self.run(
            part,
            &[WHOLE_BUILD, TYPES],
            "building the kernel that looks for mistakes, for some minutes",
        )?;
        self.check_release(part)
    }

    fn run(&self, part: &Path, scripts: &[&str], what: &str) -> Result<()> {
        let build = part.join("build");
        fs::create_dir_all(&build).with_context(|| format!("{} can't be made", build.display()))?;
        let mounts = [Mount { from: part, to: "/kernel", writable: true }];
        // What is made for later is not waited for.
        let script = if self.shows { "" } else { GIVING_WAY }.to_owned() + self.prelude + &scripts.concat();
        let mut step = self.shows.then(|| Step::start(what));
        self.root.script(&mounts, &script, BUILD, &mut step)?;
        if let Some(step) = step {
            step.done();
        }
        Ok(())
    }

    /// A source of another release than the headers' makes modules that the kernel refuses.
    fn check_release(&self, part: &Path) -> Result<()> {
        let made = made(part, "include/config/kernel.release")?;
        ensure!(
            made.trim() == self.release,
            "the package linux-source makes a kernel {}, and linux-headers-amd64 is of {}: one of the two was updated \
             first. Wait for the other, then remove the root from Neap's cache",
            made.trim(),
            self.release
        );
        Ok(())
    }
}

/// A file of what was built.
fn made(part: &Path, file: &str) -> Result<String> {
    let file = part.join("build").join(file);
    fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))
}
