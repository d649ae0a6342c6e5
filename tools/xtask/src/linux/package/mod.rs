//! A Debian package of the host driver: what a machine with a card installs.
//!
//! 1. What it holds is what guests are booted with, without its debug information: for Debian's own kernel, ready to load.
//! 2. It is put together, and tried out, in the root: this machine's packages have no part in it.
//! 3. To install it switches nothing on but the module, where there is a function for it; to purge it leaves nothing.

mod check;
mod depends;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::kernel::{Flavour, Kernel};
use super::root::{Mount, Root};
use super::{initramfs, module};
use crate::firmware::cargo;
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;
use crate::setup::lock;

pub use check::check;

/// Neap's version, and so DKMS's.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What is taken as it is: where it lies in the package, and in the checkout.
const FILES: [(&str, &str); 5] = [
    ("usr/include/neap/neap.h", "host-driver/uapi/neap.h"),
    ("usr/lib/systemd/system/neap.service", "host-driver/package/neap.service"),
    ("usr/share/doc/neap/linux.md", "docs/linux.md"),
    ("usr/share/doc/neap/examples/modprobe.conf", "host-driver/package/modprobe.conf"),
    ("usr/share/doc/neap/examples/modules-load.conf", "host-driver/package/modules-load.conf"),
];
/// The package's own programs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// What DKMS builds the module of: directories, each with all below it that is source.
const SOURCES: [&str; 3] = ["firmware/abi/src", "firmware/queue/src", "host-driver"];
/// Files of those that are source by their name.
const SOURCE_NAMES: [&str; 3] = ["Kbuild", "Makefile", "LICENSE"];
/// Files of those that are source by the end of their name.
const SOURCE_ENDS: [&str; 3] = ["c", "h", "rs"];
/// Directories that the module has nothing of.
const NO_SOURCES: [&str; 3] = ["package", "target", "tests"];

/// Programs lose what only a debugger reads, but keep the module's BTF; then all that is known of the files is noted.
const FINISH: &str = r#"
cd /out/tree
strip --strip-debug usr/lib/modules/*/updates/neap.ko
strip usr/bin/neap
chmod -R u=rwX,go=rX .
sed -i "s/^Installed-Size: .*/Installed-Size: $(du -sk --apparent-size usr | cut -f1)/" DEBIAN/control
find usr -type f -exec md5sum {} + > DEBIAN/md5sums
dpkg-deb --root-owner-group --build /out/tree /out
"#;

/// A package.
#[derive(Clone, Debug)]
pub struct Package {
    /// The file.
    pub deb: PathBuf,
    root: Root,
    kernel: Kernel,
}

/// Builds the package, and all that goes into it.
pub fn build() -> Result<Package> {
    let root = Root::ready()?;
    let kernel = Kernel::ready(&root, Flavour::Stock)?;
    let module = module::build(&root, &kernel)?;
    let neap = initramfs::neap()?;
    let mut step = Step::start(format!("packing the host driver for Debian's kernel {}", kernel.release));
    let _lock = lock::take_for("linux-module")?;
    let out = out()?;
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("{} can't be removed", out.display()))?;
    }
    let version = version(&kernel.release);
    let tree = Tree { dir: out.join("tree"), release: &kernel.release };
    let program = fs::read(&neap).with_context(|| format!("{} can't be read", neap.display()))?;
    let depends = depends::of(&program, root.dir())?;
    tree.write("DEBIAN/control", &control(&version, &kernel.release, &depends), false)?;
    for script in SCRIPTS {
        let text = read(&format!("host-driver/package/{script}"))?;
        tree.write(&format!("DEBIAN/{script}"), &tree.filled(&text), true)?;
    }
    tree.copy("usr/bin/neap", &neap)?;
    tree.copy(&format!("usr/lib/modules/{}/updates/neap.ko", kernel.release), &module.ko)?;
    tree.copy("usr/lib/neap/neap.bpf.o", &module.bpf)?;
    for (to, from) in FILES {
        tree.copy(to, &paths::root().join(from))?;
    }
    tree.write("usr/share/doc/neap/copyright", &copyright()?, false)?;
    sources(&tree)?;
    let mounts = [Mount { from: &out, to: "/out", writable: true }];
    root.script(&mounts, FINISH, Limits::total(300), &mut step)?;
    let deb = out.join(format!("neap_{version}_amd64.deb"));
    ensure!(deb.is_file(), "dpkg-deb has made no {}", deb.display());
    step.done();
    Ok(Package { deb, root, kernel })
}

/// Where the package and its tree go.
fn out() -> Result<PathBuf> {
    let dir = paths::target_dir().join("linux");
    fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
    Ok(dir.join("package"))
}

/// The package's version: another kernel's is another.
fn version(release: &str) -> String {
    format!("{VERSION}+linux{}", release.trim_end_matches("-amd64"))
}

fn control(version: &str, release: &str, depends: &[String]) -> String {
    let depends = ["kmod"].into_iter().chain(depends.iter().map(String::as_str)).collect::<Vec<_>>();
    format!(
        "Package: neap\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: The Neap contributors\n\
         Section: kernel\n\
         Priority: optional\n\
         Installed-Size: 0\n\
         Depends: {}\n\
         Recommends: linux-image-{release}\n\
         Suggests: dkms\n\
         Description: scheduling by the agents of an IPU, for a Linux host\n \
         Tasks that ask for the class SCHED_EXT run when and where an agent on a SmartNIC\n \
         decides; all others are left to the kernel. This is the host's side: the driver, built\n \
         for Debian's kernel {release}, its sched_ext program, and what\n \
         attaches that: neap scx attach, or neap.service.\n \
         .\n \
         For other kernels there is the module's source, for DKMS.\n",
        depends.join(", ")
    )
}

/// The licences, and those of the crates that the program holds code of.
fn copyright() -> Result<String> {
    let mut tree = cargo();
    tree.current_dir(paths::root()).args(["tree", "--package", "neap", "--features", initramfs::FEATURES]);
    tree.args(["--edges", "normal", "--prefix", "none", "--format", "{p}: {l}"]);
    let tree = process::output(&mut tree, Limits::total(120))?;
    let mit = read("LICENSE-MIT")?;
    let mit = mit.trim().lines().skip_while(|line| !line.starts_with("Permission")).collect::<Vec<_>>();
    let text = read("host-driver/package/copyright")?;
    Ok(text.replace("@MIT@", &mit.join("\n")).replace("@CRATES@", &crates(&tree).join("\n")))
}

/// The crates of others in what `cargo tree` prints. Macros run when the program is built, and are not in it.
fn crates(tree: &str) -> Vec<&str> {
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    let mut crates: Vec<&str> =
        lines.filter(|line| !line.contains(" (/") && !line.contains(" (proc-macro)")).collect();
    crates.sort_unstable();
    crates.dedup();
    crates
}

/// Lays out what DKMS builds the module of.
fn sources(tree: &Tree<'_>) -> Result<()> {
    let top = format!("usr/src/neap-{VERSION}");
    tree.copy(&format!("{top}/dkms.conf"), &paths::root().join("host-driver/dkms.conf"))?;
    let mut left: Vec<PathBuf> = SOURCES.map(PathBuf::from).into();
    while let Some(dir) = left.pop() {
        let path = paths::root().join(&dir);
        for entry in fs::read_dir(&path).with_context(|| format!("{} can't be read", path.display()))? {
            let entry = entry.with_context(|| format!("{} can't be read", path.display()))?;
            let (name, inside) = (entry.file_name(), dir.join(entry.file_name()));
            let name = name.to_string_lossy();
            if entry.path().is_dir() {
                if !NO_SOURCES.contains(&name.as_ref()) {
                    left.push(inside);
                }
            } else if is_source(&name) {
                tree.copy(&format!("{top}/{}", inside.display()), &entry.path())?;
            }
        }
    }
    Ok(())
}

fn is_source(name: &str) -> bool {
    // What Kbuild has generated beside it is none.
    let end = name.rsplit_once('.').filter(|(stem, _)| !stem.ends_with(".mod")).map(|(_, end)| end);
    SOURCE_NAMES.contains(&name) || end.is_some_and(|end| SOURCE_ENDS.contains(&end))
}

/// A file of the checkout.
fn read(path: &str) -> Result<String> {
    let path = paths::root().join(path);
    fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))
}

/// What will be the package.
struct Tree<'a> {
    dir: PathBuf,
    release: &'a str,
}

impl Tree<'_> {
    /// A text with what it leaves open.
    fn filled(&self, text: &str) -> String {
        text.replace("@RELEASE@", self.release).replace("@VERSION@", VERSION)
    }

    fn write(&self, path: &str, text: &str, executable: bool) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.place(path)?;
        let mode = fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 });
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, mode))
            .with_context(|| format!("{} can't be written", path.display()))
    }

    fn copy(&self, path: &str, from: &Path) -> Result<()> {
        let to = self.place(path)?;
        fs::copy(from, to).with_context(|| format!("{} can't be copied", from.display()))?;
        Ok(())
    }

    fn place(&self, path: &str) -> Result<PathBuf> {
        let path = self.dir.join(path);
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dkms_has_the_version_of_the_workspace() {
        let conf = read("host-driver/dkms.conf").unwrap();
        assert!(conf.contains(&format!("PACKAGE_VERSION=\"{VERSION}\"\n")), "{VERSION}\n{conf}");
    }

    #[test]
    fn another_kernel_s_package_is_another() {
        assert_eq!(version("7.3.4+deb13-amd64"), format!("{VERSION}+linux7.3.4+deb13"));
        let control = control("1+linux7.3.4", "7.3.4+deb13-amd64", &["libc6 (>= 2.34)".to_owned()]);
        assert!(
            control.contains("\nDepends: kmod, libc6 (>= 2.34)\nRecommends: linux-image-7.3.4+deb13-amd64\n")
        );
        assert!(control.ends_with(".\n") && !control.contains("\n\n"), "{control}");
    }

    #[test]
    fn what_was_built_is_no_source() {
        for name in ["main.rs", "shim.c", "neap.bpf.c", "trace.h", "Kbuild", "Makefile", "LICENSE"] {
            assert!(is_source(name), "{name}");
        }
        for name in ["neap.mod.c", "neap.ko", "main.o", "libneap_abi.rmeta", ".main.o.cmd", "Cargo.toml"] {
            assert!(!is_source(name), "{name}");
        }
    }

    #[test]
    fn crates_of_others_are_named_once_and_macros_are_not() {
        let tree = "neap v0.1.0 (/somewhere/neap): MIT\nclap v4.6.7: MIT OR Apache-2.0\n\
                    serde_derive v1.0.2 (proc-macro): MIT\nclap v4.6.7: MIT OR Apache-2.0 (*)\nanyhow v1.0.1: MIT\n";
        assert_eq!(crates(tree), ["anyhow v1.0.1: MIT", "clap v4.6.7: MIT OR Apache-2.0"]);
    }
}
