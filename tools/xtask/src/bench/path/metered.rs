//! The IPU under the meter: the firmware on QEMU with the plugin, and this process as its host.

use std::cell::RefCell;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use neap_abi::{Hello, HelloError, Region, RegionKind, VERSION};
use neap_host::window::HostWindow;
use neap_meter::api::{self, QemuVersion};
use neap_meter::args::{MeterArgs, VIRT_PCI_WINDOW};
use neap_meter::record::{self, Record};
use neap_queue::Line;
use neap_vipu::{Domain, Peer, Server, Window};
use tempfile::TempDir;

use crate::machine::{Machine, RAM_BYTES, WINDOW_BYTES};
use crate::process::{self, Limits};
use crate::{firmware, paths};

/// Where `-M virt` puts its RAM.
const RAM_BASE: u64 = 0x4000_0000;
/// Physical address of the window: it follows the private RAM.
pub const WINDOW_BASE: u64 = RAM_BASE + RAM_BYTES;
/// The core that the agent owns; core 0 supervises.
pub const AGENT_CORE: u32 = 1;
/// How long the firmware may take to anything, in a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a metered machine is made of, once for all runs.
pub struct Parts {
    qemu: PathBuf,
    version: QemuVersion,
    elf: PathBuf,
    agent: PathBuf,
    plugin: PathBuf,
}

impl Parts {
    /// Builds the plugin for this `qemu`; the firmware is `elf`, with `agent` in its bundle.
    ///
    /// # Errors
    /// A QEMU without a version, or a plugin that does not build.
    pub fn new(qemu: PathBuf, elf: PathBuf, agent: PathBuf) -> Result<Self> {
        let text = process::output(Command::new(&qemu).arg("--version"), Limits::total(20))?;
        let version = QemuVersion::parse(&text).context("QEMU does not say its version")?;
        let mut build = firmware::cargo();
        build
            .current_dir(paths::root())
            .env(api::VERSION_VARIABLE, api::declared_by(version).to_string())
            .args(["rustc", "--quiet", "--release", "--package", "neap-meter"])
            .args(["--features", "plugin", "--crate-type", "cdylib"]);
        process::output(&mut build, Limits::total(600)).context("the meter's plugin does not build")?;
        Ok(Self { qemu, version, elf, agent, plugin: paths::target_dir().join("release/libneap_meter.so") })
    }

    /// The meter's plugin.
    pub fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// All that runs on the machines: runtime and agent.
    pub fn elves(&self) -> [&Path; 2] {
        [&self.elf, &self.agent]
    }
}

/// Where the meter is to look, in physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    ring: Range<u64>,
    slots: Range<u64>,
}

impl Places {
    /// By a hello page.
    ///
    /// # Errors
    /// A page without ring or slots.
    pub fn of(hello: &Hello) -> Result<Self> {
        let at = |kind| {
            let Region { offset, bytes, .. } = region(hello, kind)?;
            anyhow::Ok(WINDOW_BASE + offset..WINDOW_BASE + offset + bytes)
        };
        Ok(Self { ring: at(RegionKind::Messages)?, slots: at(RegionKind::Slots)? })
    }
}

/// A running IPU and the host's end of its link. Dropped, it is gone.
pub struct Metered {
    // In the order of their ends: QEMU before what it is connected to.
    qemu: Qemu,
    peer: Peer,
    window: HostWindow,
    hello: Hello,
    _server: Server,
    _file: Window,
    directory: TempDir,
}

impl Metered {
    /// Boots the firmware for `cpus` host CPUs and waits for its hello page; with `places`, under the meter.
    ///
    /// # Errors
    /// What does not start, or a firmware that says no hello: then its console's last words too.
    pub fn boot(parts: &Parts, cpus: u16, places: Option<&Places>) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("neap-{}-", std::process::id())).tempdir()?;
        let name = directory.path().file_name().context("a temporary directory has a name")?;
        let file = Window::create(&name.to_string_lossy(), WINDOW_BYTES)?;
        let socket = directory.path().join("enclave");
        let server = Server::start(vec![Domain::new(&socket, file.descriptor()?, cpus)])?;
        let mut machine = Machine::new(2, file.path(), file.bytes());
        machine.doorbells.push((socket.clone(), cpus));
        let mut command = machine.command(&parts.qemu, &parts.elf)?;
        if let Some(places) = places {
            let args = meter_args(parts, places, directory.path().join(RECORDS));
            command.arg("-plugin").arg(format!("{},{args}", parts.plugin.display()));
        }
        let qemu = Qemu::start(&mut command, &directory.path().join(CONSOLE))?;
        let window = HostWindow::new(file.map()?);
        let hello = wait_for_hello(&window, || qemu.check())
            .with_context(|| format!("the firmware's console:\n{}", console(directory.path())))?;
        // The firmware's function connected when QEMU started: it is there before us.
        let peer = Peer::connect(&socket, cpus, PATIENCE)?;
        Ok(Self { qemu, peer, window, hello, _server: server, _file: file, directory })
    }

    /// Where ring and slots lie.
    ///
    /// # Errors
    /// A hello page without them.
    pub fn places(&self) -> Result<Places> {
        Places::of(&self.hello)
    }

    /// The hello page.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Our end of the doorbells.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The lines of a region of the window.
    ///
    /// # Errors
    /// The hello page names no such region.
    pub fn lines(&self, kind: RegionKind) -> Result<&[Line]> {
        Ok(self.window.lines(&self.hello, kind)?)
    }

    /// Whether QEMU still runs; its console's last words if not.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&self) -> Result<()> {
        self.qemu.check().with_context(|| format!("the firmware's console:\n{}", self.console()))
    }

    /// The console's last lines, for an error.
    pub fn console(&self) -> String {
        console(self.directory.path())
    }

    /// Ends the machine and returns what the meter recorded.
    ///
    /// # Errors
    /// No records, or not this meter's.
    pub fn records(mut self) -> Result<Vec<Record>> {
        process::stop(self.qemu.0.get_mut())?;
        let file = self.directory.path().join(RECORDS);
        Ok(record::read(&fs::read(&file).context("the meter left no records: QEMU did not load it")?)?)
    }
}

/// The plugin's arguments, with the records going to `out`.
pub fn meter_args(parts: &Parts, places: &Places, out: PathBuf) -> MeterArgs {
    MeterArgs {
        out,
        core: AGENT_CORE,
        ring: places.ring.clone(),
        slots: places.slots.clone(),
        doorbells: VIRT_PCI_WINDOW,
        ram_shift: api::ram_shift(parts.version, RAM_BASE, RAM_BYTES),
        enter: 0,
    }
}

/// Name of the meter's file in a machine's directory.
pub const RECORDS: &str = "path.records";
/// Name of the console's file.
const CONSOLE: &str = "console";

fn region(hello: &Hello, kind: RegionKind) -> Result<Region> {
    hello.region(kind, 0).with_context(|| format!("the hello page has no region {kind:?}"))
}

/// Waits for the firmware's hello page; `check` fails where it will never come.
///
/// # Errors
/// A page that is wrong, or does not come.
pub fn wait_for_hello(window: &HostWindow, check: impl Fn() -> Result<()>) -> Result<Hello> {
    let begun = Instant::now();
    loop {
        match window.hello(VERSION) {
            Ok(hello) => return Ok(hello),
            // Not written yet, or half written.
            Err(HelloError::Magic { .. } | HelloError::Checksum { .. }) if begun.elapsed() < PATIENCE => {
                check()?;
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("the firmware's hello page"),
        }
    }
}

fn console(directory: &Path) -> String {
    let text = fs::read(directory.join(CONSOLE)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The QEMU process, ended when dropped.
struct Qemu(RefCell<Child>);

impl Qemu {
    fn start(command: &mut Command, console: &Path) -> Result<Self> {
        let console = File::create(console)?;
        command.stdin(Stdio::null()).stderr(console.try_clone()?).stdout(console);
        Ok(Self(RefCell::new(process::start(command)?)))
    }

    fn check(&self) -> Result<()> {
        match self.0.borrow_mut().try_wait()? {
            None => Ok(()),
            Some(status) => bail!("QEMU ended: {status}"),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Nobody is left to tell, and what it holds is removed anyway.
        let _ = process::stop(self.0.get_mut());
    }
}

#[cfg(test)]
mod tests;
