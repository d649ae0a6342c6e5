//! The root: a Debian that has what a kernel and its modules are built with, and the kernel's source.
//!
//! Nothing is ever mounted but in a namespace of the command that needs it, so nothing stays mounted however it ends.

use std::fs;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cache;
use crate::process::{self, Finished, Limits, Watch};
use crate::progress::Step;
use crate::setup::{self, apt};

/// The suite whose rustc is the one that its backports' kernel was built with.
const SUITE: &str = "trixie";
/// What is installed from the suite: what `make` of a kernel with Rust and BTF calls, clang for
/// the BPF object, and what goes into a guest. The C compiler comes with the kernel's headers, which want the one that the kernel was built with.
const PACKAGES: [&str; 23] = [
    "bc",
    "bindgen",
    "bison",
    "busybox-static",
    "ca-certificates",
    "clang",
    "cpio",
    "flex",
    "kmod",
    "libbpf-dev",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "pahole",
    "perl",
    "python3",
    "rust-clippy",
    "rust-src",
    "rustc",
    "rustfmt",
    "stress-ng",
    "xz-utils",
];
/// What is installed from its backports: the kernel, and the QEMU that guests run on.
const BACKPORTS: [&str; 3] = ["linux-headers-amd64", "bpftool", "qemu-system-x86"];
/// Its source, and what unpacks it, which come first: unpacking takes long.
const SOURCE: [&str; 2] = ["linux-source", "xz-utils"];
/// What is left out of the packages, because unpacking it takes longer than all the rest.
const EXCLUDED: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/src/rustc-*/compiler/*",
    "/usr/src/rustc-*/src/tools/*",
    "/usr/src/rustc-*/tests/*",
];
/// Begins to unpack the kernel's source while all else is installed. Of the source, what is left out is a third of it, and a graphics
/// card's registers.
const UNPACK: &str = r#"
mkdir /source /unpacking
(
    tar -xf /usr/src/linux-source-*.tar.xz -C /source --strip-components=1 --exclude='*/drivers/gpu/drm/amd/include/*' \
        2> /unpacking/said || echo "tar: status $?" >> /unpacking/said
    mv /unpacking/said /unpacking/ended
) < /dev/null > /dev/null 2>&1 &
"#;
/// What is done in the new root after that. The kernel's image is no dependency of its headers.
const FINISH: &str = r#"
for headers in /usr/src/linux-headers-*-amd64; do
    release=${headers#/usr/src/linux-headers-}
    apt-get install -y --no-install-recommends "linux-binary-$release"
done
mkdir /checkout /out /kernel
echo "unpacking the kernel's source"
while [ ! -e /unpacking/ended ]; do sleep 0.2; done
[ ! -s /unpacking/ended ] || { cat /unpacking/ended >&2; false; }
rm -r /unpacking /usr/src/linux-source-*.tar.xz
apt-get clean
dpkg-query -W > /packages
"#;

/// What a command in the root sees of the machine.
const ENVIRONMENT: [&str; 4] = ["PATH=/usr/sbin:/usr/bin", "HOME=/tmp", "LC_ALL=C", "TERM=dumb"];

/// Becomes a program in the root. Arguments: the root; then mode, source and target of each mount; `--`; the program.
const ENTER: &str = r#"
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmp "$root/tmp"
while [ "$1" != -- ]; do
    mount --bind "$2" "$root$3"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root$3"
    shift 3
done
shift
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"#;

/// Making it: a slow mirror has to bring half a gigabyte.
const MAKE: Limits = Limits { silence: Duration::from_secs(180), total: Duration::from_secs(1800) };

/// A root that is ready. Nobody writes to it any more.
#[derive(Clone, Debug)]
pub struct Root {
    dir: PathBuf,
    /// Every package and its version, one a line.
    packages: String,
}

/// A directory of the machine inside the root.
#[derive(Clone, Copy, Debug)]
pub struct Mount<'a> {
    /// Where it is.
    pub from: &'a Path,
    /// Where it is seen: one of `/checkout`, `/out` and `/kernel`.
    pub to: &'static str,
    /// Whether it may be written to.
    pub writable: bool,
}

impl Root {
    /// The root; makes one where there is none.
    pub fn ready() -> Result<Self> {
        let recipe = Self::recipe();
        ensure!(
            cfg!(target_arch = "x86_64"),
            "the Linux guest is an x86 machine, made of amd64 packages, and this machine is none: run it on one that is"
        );
        let dir = cache::ready("root", &recipe, |part| {
            make(part).context(
                "no Debian root could be made, which the host driver and its kernels are built in; it takes root, or \
                 sudo without a password, Debian with a mirror in apt's sources, 6 GB of disk, and mount namespaces",
            )
        })?;
        let list = dir.join("packages");
        let packages =
            fs::read_to_string(&list).with_context(|| format!("{} can't be read", list.display()))?;
        Ok(Self { dir, packages })
    }

    /// What it is made by.
    fn recipe() -> impl Hash {
        (SUITE, PACKAGES, BACKPORTS, SOURCE, EXCLUDED, UNPACK, FINISH)
    }

    /// Whether one has been made.
    pub fn is_there() -> bool {
        cache::is_there("root", &Self::recipe())
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every package and its version, one a line: what is built in the root is built from these.
    pub fn packages(&self) -> &str {
        &self.packages
    }

    /// The release of the kernel whose headers are there: "7.3.4+deb13-amd64".
    pub fn release(&self) -> Result<String> {
        release_in(&self.packages).with_context(|| {
            format!(
                "the root has no linux-headers-<release>-amd64 of {SUITE}-backports: remove {} and try again",
                self.dir.display()
            )
        })
    }

    /// The root's `qemu-system-x86_64`, on the machine itself. Older ones than QEMU 11 lose races between a guest's CPUs, the
    /// more the busier the machine is: QEMU 7.2's when the kernel patches its own code (a CPU dies of an int3 that is there
    /// no more), QEMU 10's when it moves a PCI BAR while another CPU is at a register (QEMU ends itself, or the guest hangs).
    pub fn qemu(&self) -> Command {
        let at = |path: &str| self.dir.join(path);
        let mut command = Command::new(at("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(at("usr/lib/x86_64-linux-gnu"))
            .arg(at("usr/bin/qemu-system-x86_64"));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(at(data));
        }
        command
    }

    /// `program` in the root, which it can't write to but for `/tmp` and what is mounted so.
    pub fn command(&self, mounts: &[Mount<'_>], program: &str) -> Result<Command> {
        let mut command = alone(&["sh", "-c", ENTER, "enter"])?;
        command.arg(&self.dir);
        for mount in mounts {
            command.arg(if mount.writable { "rw" } else { "ro" }).arg(mount.from).arg(mount.to);
        }
        command.args(["--", "env", "-i"]).args(ENVIRONMENT).arg(program);
        Ok(command)
    }

    /// Runs a shell script in the root and returns what it wrote; a status other than 0 is an error.
    pub fn script(
        &self,
        mounts: &[Mount<'_>],
        script: &str,
        limits: Limits,
        watch: &mut dyn Watch,
    ) -> Result<Finished> {
        let mut command = self.command(mounts, "sh")?;
        let done = process::run(command.args(["-ec", script]), limits, watch)?;
        if !done.ok() {
            bail!("in {}: {}\n{}", self.dir.display(), done.verdict(), done.tail(40));
        }
        Ok(done)
    }
}

/// `words` as root in namespaces of its own, which end, with all that is in them, when we do.
fn alone(words: &[&str]) -> Result<Command> {
    let mut command = apt::as_root("setpriv")?;
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.args(words);
    Ok(command)
}

fn make(part: &Path) -> Result<()> {
    setup::mmdebstrap()?;
    ensure!(
        Path::new(apt::KEYRING).is_file(),
        "{} is missing, by which Debian's packages are verified; install debian-archive-keyring",
        apt::KEYRING
    );
    let mirror = apt::mirror()?;
    let backports = BACKPORTS.join(" ");
    let mut command = alone(&["mmdebstrap", "--mode=root", "--variant=apt", "--skip=cleanup/apt/lists"])?;
    command.arg(format!("--keyring={}", apt::KEYRING));
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    command.args(apt::ways()?.iter().map(|way| format!("--aptopt={way}")));
    command.arg("--dpkgopt=force-unsafe-io");
    command.args(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    let source = SOURCE.join(" ");
    command.arg(format!(
        "--essential-hook=APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install -y -t {SUITE}-backports --no-install-recommends \
         -oDPkg::Chroot-Directory=\"$1\" {source}"
    ));
    command.arg(format!("--essential-hook=chroot \"$1\" sh -e <<'END'\n{UNPACK}\nEND"));
    command.arg(format!(
        "--customize-hook=chroot \"$1\" apt-get install -y -t {SUITE}-backports --no-install-recommends {backports}"
    ));
    command.arg(format!("--customize-hook=chroot \"$1\" sh -e <<'END'\n{FINISH}\nEND"));
    command.arg(SUITE).arg(part);
    for suite in [SUITE.to_owned(), format!("{SUITE}-backports")] {
        command.arg(format!("deb {mirror} {suite} main"));
    }
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let mut step = Step::start("making a Debian root with a kernel's source, about 500 MB (mmdebstrap)");
    let done = process::run(&mut command, MAKE, &mut step)?;
    if !done.ok() {
        bail!("mmdebstrap: {}\n{}", done.verdict(), done.tail(20));
    }
    step.done();
    Ok(())
}

/// The one release among `dpkg-query -W`'s lines.
fn release_in(packages: &str) -> Option<String> {
    let names = packages.lines().filter_map(|line| line.split_whitespace().next());
    let release = |name: &str| {
        let release = name.strip_prefix("linux-headers-")?;
        (release.starts_with(|first: char| first.is_ascii_digit()) && release.ends_with("-amd64"))
            .then(|| release.to_owned())
    };
    names.filter_map(release).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_headers_of_the_architecture() {
        let packages = "bc\t1.07.1-4\nlinux-headers-7.3.4+deb13-amd64\t7.3.4-1~bpo13+1\n\
                        linux-headers-7.3.4+deb13-common\t7.3.4-1~bpo13+1\nlinux-headers-amd64\t7.3.4-1~bpo13+1\n";
        assert_eq!(release_in(packages).as_deref(), Some("7.3.4+deb13-amd64"));
        assert_eq!(release_in("linux-headers-amd64\t7.3.4-1\n"), None);
        assert_eq!(release_in(""), None);
    }
}
