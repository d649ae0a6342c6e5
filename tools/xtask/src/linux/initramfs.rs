//! What a guest boots into: one archive that all runs share, and a small one for each run behind it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use cpio::newc::{self, Builder, ModeFileType};

use super::kernel::Kernel;
use super::module::Module;
use super::root::{Mount, Root};
use crate::firmware::cargo;
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;
use crate::setup::{self, lock};

/// The first program, which makes the usual mounts and hands over to `neap guest`.
const INIT: &str = include_str!("init.sh");
/// Cargo features of the `neap` that goes into a guest.
pub(super) const FEATURES: &str = "linux";
/// Directories that must be there for a file or a mount to lie in.
const DIRECTORIES: [&str; 13] =
    ["bin", "dev", "etc", "lib", "lib/neap", "lib64", "proc", "root", "run", "sys", "tmp", "usr", "usr/lib"];

/// What is stripped, and what else the guest's programs need: a line for each of their libraries, then busybox's names.
const GATHER: &str = r#"
strip --strip-debug /out/neap.ko
strip /out/neap
ldd /out/neap /usr/bin/stress-ng
echo applets:
busybox --list
"#;

/// A file of an archive, by its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// From the root on, without a slash before it.
    pub path: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it can be run.
    pub executable: bool,
}

impl File {
    /// A file that is read.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into(), executable: false }
    }

    /// A file that is run.
    pub fn program(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { executable: true, ..Self::new(path, bytes) }
    }
}

/// An archive in the making: "newc", which the kernel unpacks, one behind the other if there are several.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> Result<()> {
        // Two entries of one number would be two names of one file.
        self.entries += 1;
        let entry = Builder::new(path).ino(self.entries).mode(mode).set_mode_file_type(kind);
        let length = u32::try_from(content.len()).with_context(|| format!("{path} is larger than 4 GiB"))?;
        let mut writer = entry.write(&mut self.bytes, length);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        self.add(path, ModeFileType::Directory, 0o755, &[])
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        let mode = if file.executable { 0o755 } else { 0o644 };
        self.add(&file.path, ModeFileType::Regular, mode, &file.bytes)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(newc::trailer(self.bytes)?)
    }
}

/// One run's archive: its files, in directories that the shared one has, or right at the root.
pub fn run(files: &[File]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for file in files {
        archive.file(file)?;
    }
    archive.finish()
}

/// The archive that all runs on `kernel` share: busybox, `neap`, the module, the BPF object and stress-ng, with their
/// libraries.
pub fn base(root: &Root, kernel: &Kernel, module: &Module) -> Result<PathBuf> {
    let neap = neap()?;
    let name = kernel.flavour.name();
    let mut step = Step::start(format!("packing the guest's files for the {name} kernel"));
    let _lock = lock::take_for("linux-module")?;
    let out = paths::target_dir().join("linux").join(format!("{name}-guest"));
    fs::create_dir_all(&out).with_context(|| format!("{} can't be made", out.display()))?;
    for (from, to) in [(&neap, "neap"), (&module.ko, "neap.ko"), (&module.bpf, "neap.bpf.o")] {
        let to = out.join(to);
        // The last one may be root's, and is not written to but replaced.
        let _ = fs::remove_file(&to);
        fs::copy(from, &to).with_context(|| format!("{} can't be copied", from.display()))?;
    }
    let mounts = [Mount { from: &out, to: "/out", writable: true }];
    let told = root.script(&mounts, GATHER, Limits::total(120), &mut ())?;
    let (libraries, applets) = told.out.split_once("applets:\n").context("no list of busybox's applets")?;
    let mut archive = Archive::default();
    for path in DIRECTORIES {
        archive.directory(path)?;
    }
    let gathered = |name: &str| read(&out.join(name));
    archive.file(&File::program("init", INIT))?;
    archive.file(&File::program("bin/neap", gathered("neap")?))?;
    archive.file(&File::new("lib/neap/neap.ko", gathered("neap.ko")?))?;
    archive.file(&File::new("lib/neap/neap.bpf.o", gathered("neap.bpf.o")?))?;
    archive.file(&File::program("bin/busybox", read(&root.dir().join("bin/busybox"))?))?;
    archive.file(&File::program("bin/stress-ng", read(&root.dir().join("usr/bin/stress-ng"))?))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    for path in libraries_in(libraries).with_context(|| {
        format!(
            "{} was built on this machine and does not run with the libraries of the guest",
            neap.display()
        )
    })? {
        let name = path.rsplit('/').next().unwrap_or_default();
        // All in one of the places where the loader looks by itself, but for the loader, which programs name.
        let to =
            if name.starts_with("ld-linux") { format!("lib64/{name}") } else { format!("usr/lib/{name}") };
        archive.file(&File::program(to, read(&root.dir().join(path.trim_start_matches('/')))?))?;
    }
    let path = out.join("base.cpio");
    let part = out.join("base.cpio.part");
    fs::write(&part, archive.finish()?).with_context(|| format!("{} can't be written", part.display()))?;
    fs::rename(&part, &path).with_context(|| format!("{} can't be put in place", path.display()))?;
    step.note("");
    step.done();
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} can't be read", path.display()))
}

/// Cargo, building the `neap` that goes into a guest.
fn building() -> Command {
    let mut command = cargo();
    command.current_dir(paths::root()).args(["build", "--release", "--package", "neap", "--bin", "neap"]);
    if !FEATURES.is_empty() {
        command.args(["--features", FEATURES]);
    }
    command
}

/// Cargo at work before its product is asked for, while others wait for a mirror. What it has to say is said when that is.
pub(super) struct Early(Child);

impl Early {
    pub(super) fn start() -> Result<Self> {
        setup::libelf()?;
        let mut command = building();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(process::start(&mut command)?))
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        // By now it has ended, or nobody wants its product.
        let _ = process::stop(&mut self.0);
    }
}

/// Builds the `neap` that goes into a guest.
pub(super) fn neap() -> Result<PathBuf> {
    setup::libelf()?;
    let mut command = building();
    let mut step = Step::start("building neap for the guest");
    let done = process::run(&mut command, Limits::total(1200), &mut step)?;
    if !done.ok() {
        bail!("neap does not build for the guest: {}\n{}", done.verdict(), done.tail(100));
    }
    step.done();
    Ok(paths::target_dir().join("release/neap"))
}

/// The paths in what `ldd` prints, each once; an error where it found a library missing or too old.
fn libraries_in(ldd: &str) -> Result<Vec<&str>> {
    let mut paths: Vec<&str> = Vec::new();
    for line in ldd.lines() {
        if line.contains("not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/') && !word.ends_with(':'));
        paths.extend(path.filter(|path| !paths.contains(path)));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_prints_is_understood() {
        let ldd = "/out/neap:\n\tlinux-vdso.so.1 (0x00007ffc2)\n\tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x7f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n/usr/bin/stress-ng:\n\
                   \tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x7f)\n";
        let paths = libraries_in(ldd).unwrap();
        assert_eq!(paths, ["/lib/x86_64-linux-gnu/libelf.so.1", "/lib64/ld-linux-x86-64.so.2"]);
        let old = "/out/neap: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.42' not found (required by /out/neap)\n";
        assert!(libraries_in(old).unwrap_err().to_string().contains("GLIBC_2.42"));
        assert!(libraries_in("\tlibelf.so.1 => not found\n").is_err());
    }

    #[test]
    fn an_archive_reads_back_as_it_was_written() {
        let files =
            [File::new("order.json", "{}"), File::program("smoke", "#!/bin/sh\n"), File::new("empty", "")];
        let archive = run(&files).unwrap();
        assert_eq!(archive.len() % 4, 0, "another may follow it");
        let mut rest = archive.as_slice();
        for file in &files {
            let mut reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            assert_eq!((entry.name(), entry.nlink()), (file.path.as_str(), 1));
            assert_eq!(entry.mode(), if file.executable { 0o100_755 } else { 0o100_644 });
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            assert_eq!(bytes, file.bytes);
            rest = reader.finish().unwrap();
        }
        assert!(newc::Reader::new(rest).unwrap().entry().is_trailer());
    }
}
