//! A Linux guest: QEMU with a kernel, an archive of files, and the functions of virtual IPUs.
//!
//! The guest has two serial lines. The first is its console, which goes to a file. On the second it reports, line by line.

use std::fs::{self, File as OsFile};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::initramfs::{self, File};
use super::qmp::Qmp;
use crate::machine::escaped;
use crate::process;

/// What every guest's kernel is told: to trust QEMU's clock rather than watch it, to end QEMU when it panics, and to
/// show warnings.
const WORDS: &str = "console=ttyS0 panic=-1 tsc=reliable loglevel=5";
/// PCI functions that a guest can have: one slot each.
const FUNCTIONS_MAX: usize = 16;
/// How long the guest's kernel may take to let a function go.
const UNPLUG: Duration = Duration::from_secs(60);
/// The console's file, in a guest's directory.
pub const CONSOLE: &str = "console";
/// Lines of the console that an error shows.
const TAIL: usize = 40;

/// What to boot with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// One PCI function for each enclave: the socket of its domain, and the domain's vectors.
    pub functions: Vec<(PathBuf, u16)>,
    /// More words for the kernel.
    pub words: Vec<String>,
    /// More files, `order.json` first of all.
    pub files: Vec<File>,
}

impl Boot {
    /// Nothing but CPUs.
    pub fn new(cpus: u32) -> Self {
        Self { cpus, memory_mib: 1024, functions: Vec::new(), words: Vec::new(), files: Vec::new() }
    }

    fn command(&self, mut command: Command, image: &Path, directory: &Path) -> Result<Command> {
        ensure!(
            self.functions.len() <= FUNCTIONS_MAX,
            "{} functions, and a guest has {FUNCTIONS_MAX} slots",
            self.functions.len()
        );
        let file = |name: &str| escaped(&directory.join(name));
        command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.args([
            "-chardev",
            &format!("file,id=console,path={}", file(CONSOLE)),
            "-serial",
            "chardev:console",
        ]);
        command.args(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"]);
        command.args(["-chardev", &format!("socket,id=qmp,path={},server=on,wait=off", file("qmp"))]);
        command.args(["-mon", "chardev=qmp,mode=control"]);
        for (index, (socket, vectors)) in self.functions.iter().enumerate() {
            // Each behind a port of its own, in order: so they can be unplugged, and so Linux finds them in this order.
            command.args(["-device", &format!("pcie-root-port,id=port{index},chassis={index},slot={index}")]);
            command.args(["-chardev", &format!("socket,id=vipu{index},path={}", escaped(socket))]);
            command.args([
                "-device",
                &format!(
                    "ivshmem-doorbell,id=neap{index},bus=port{index},chardev=vipu{index},vectors={vectors}"
                ),
            ]);
        }
        command.arg("-kernel").arg(image).arg("-initrd").arg(directory.join("initramfs"));
        command.args(["-append", &[&[WORDS.to_owned()], self.words.as_slice()].concat().join(" ")]);
        Ok(command)
    }
}

/// The command that boots a kernel's `image` with the archive `base`, and behind it the boot's own files. What it needs goes
/// into `directory`, and its console into a file there, [`CONSOLE`]; its reports come out of stdout, and what it hears goes
/// into stdin.
pub(super) fn command(
    qemu: Command,
    image: &Path,
    base: &Path,
    boot: &Boot,
    directory: &Path,
) -> Result<Command> {
    let mut archive = fs::read(base).with_context(|| format!("{} can't be read", base.display()))?;
    archive.extend(initramfs::run(&boot.files)?);
    fs::write(directory.join("initramfs"), archive).context("the guest's files can't be written")?;
    boot.command(qemu, image, directory)
}

/// A running guest. Dropped, it is gone.
pub struct Guest {
    child: Child,
    orders: ChildStdin,
    reports: Receiver<String>,
    directory: TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = process::stop(&mut self.child);
    }
}

impl Guest {
    /// Boots a kernel's `image` with the archive `base`, and behind it the boot's own files.
    pub fn start(qemu: Command, image: &Path, base: &Path, boot: &Boot) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("neap-guest-{}-", std::process::id())).tempdir()?;
        let remarks = OsFile::create(directory.path().join("qemu"))?;
        let mut command = command(qemu, image, base, boot, directory.path())?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(remarks);
        let mut child = process::start(&mut command)?;
        let (sender, reports) = mpsc::channel();
        let lines = BufReader::new(child.stdout.take().context("QEMU has no stdout")?);
        thread::spawn(move || forward(lines, &sender));
        let orders = child.stdin.take().context("QEMU has no stdin")?;
        Ok(Self { child, orders, reports, directory })
    }

    /// Says a line to the guest, on the line on which it reports.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let said = self.orders.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.orders.flush());
        said.context("the guest hears nothing more")
    }

    /// The guest's next report, if it is there.
    pub fn heard(&mut self) -> Result<Option<String>> {
        match self.reports.try_recv() {
            Ok(line) => Ok(Some(line)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the guest has ended"),
        }
    }

    /// The guest's next report, waiting for one up to `timeout`; nothing when it has ended and said all.
    pub fn report(&mut self, timeout: Duration) -> Result<Option<String>> {
        match self.reports.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest has reported nothing for {} s\n{}", timeout.as_secs(), self.tail())
            }
        }
    }

    /// Waits until the guest has switched itself off.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for QEMU")? {
                return Ok(status);
            }
            if started.elapsed() > timeout {
                bail!(
                    "the guest has not switched itself off within {} s\n{}",
                    timeout.as_secs(),
                    self.tail()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Unplugs the function `index`, and waits until the guest's kernel has let it go.
    pub fn unplug(&mut self, index: usize) -> Result<()> {
        self.unplugger(index)().with_context(|| self.tail())
    }

    /// As [`Guest::unplug`], for another thread: whoever looks after the guest may have to go on.
    pub fn unplugger(&self, index: usize) -> impl FnOnce() -> Result<()> + Send + use<> {
        let socket = self.directory.path().join("qmp");
        move || {
            let device = format!("neap{index}");
            let unplugged = Qmp::connect(&socket).and_then(|mut qmp| qmp.unplug(&device, UNPLUG));
            unplugged.with_context(|| format!("unplugging {device}"))
        }
    }

    /// The console's file.
    pub fn console_path(&self) -> PathBuf {
        self.directory.path().join(CONSOLE)
    }

    /// What the console has shown.
    pub fn console(&self) -> String {
        fs::read(self.console_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The console's end, and what QEMU remarked, for an error.
    pub fn tail(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let remarks = fs::read_to_string(self.directory.path().join("qemu")).unwrap_or_default();
        format!("its console ends:\n{}\n{remarks}", lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }

    /// Ends the guest; its files stay as long as this does.
    pub fn stop(&mut self) -> Result<()> {
        process::stop(&mut self.child)
    }
}

/// Hands on lines until their writer or their reader is gone.
fn forward(mut lines: impl BufRead, to: &mpsc::Sender<String>) {
    let mut bytes = Vec::new();
    while lines.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if !line.is_empty() && to.send(line).is_err() {
            break;
        }
        bytes.clear();
    }
}

/// The lines of a console in which a kernel complains: of itself, of the driver, of the driver's locks, or of its own tests.
pub fn complaints(console: &str) -> Vec<&str> {
    const SIGNS: [&str; 10] = [
        "BUG:",
        "WARNING:",
        "INFO: possible",
        "INFO: task",
        "INFO: rcu",
        "Oops",
        "Kernel panic",
        "general protection fault",
        "rust_kernel: panicked",
        "] not ok ",
    ];
    let complains = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
    console.lines().filter(complains).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_slots_in_order() {
        let mut boot = Boot::new(2);
        boot.functions = vec![("/a,b".into(), 4), ("/c".into(), 8)];
        boot.words = vec!["nohz_full=1".into()];
        let command = boot.command(Command::new("qemu"), Path::new("/vmlinuz"), Path::new("/d")).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = words.join(" ");
        assert!(line.contains("socket,id=vipu0,path=/a,,b"), "{line}");
        assert!(line.contains("ivshmem-doorbell,id=neap1,bus=port1,chardev=vipu1,vectors=8"), "{line}");
        assert!(line.find("id=port0").unwrap() < line.find("id=port1").unwrap(), "{line}");
        assert!(words.last().unwrap().ends_with(" nohz_full=1"), "{line}");
        boot.functions = vec![("/a".into(), 1); FUNCTIONS_MAX + 1];
        assert!(boot.command(Command::new("qemu"), Path::new("/v"), Path::new("/d")).is_err());
    }

    #[test]
    fn a_kernel_s_complaints_are_found() {
        let console = "[    0.000000] Linux version 7.3.4\n[    1.2] [Firmware Bug]: TSC\n\
                       [    2.0] WARNING: possible circular locking dependency detected\n\
                       [    3.0] BUG: scheduling while atomic: swapper/0/0\n[    4.0] neap: loaded\n";
        assert_eq!(complaints(console).len(), 2);
    }
}
