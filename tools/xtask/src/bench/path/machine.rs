//! The IPU under the meter: the firmware on QEMU with the plugin, and this process as its host.

use std::cell::RefCell;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use neap_abi::hello::HELLO_BYTES;
use neap_abi::{Hello, HelloError, Region, RegionKind, VERSION};
use neap_meter::api::{self, QemuVersion};
use neap_meter::args::{MeterArgs, VIRT_PCI_WINDOW};
use neap_meter::record::{self, Record};
use neap_queue::Line;
use neap_vipu::{Domain, Mapping, Peer, Server, Window};
use tempfile::TempDir;

use crate::process::{self, Limits};
use crate::{firmware, paths};

/// Private RAM: node 0 of the machine.
const PRIVATE_BYTES: u64 = 128 << 20;
/// The window: node 1.
const WINDOW_BYTES: u64 = 16 << 20;
/// Where `-M virt` puts its RAM.
const RAM_BASE: u64 = 0x4000_0000;
/// Physical address of the window: it follows the private RAM.
pub const WINDOW_BASE: u64 = RAM_BASE + PRIVATE_BYTES;
/// The core that the agent owns; core 0 supervises.
pub const AGENT_CORE: u32 = 1;
/// How long the firmware may take to anything, in a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a metered machine is made of, once for all runs.
pub struct Parts {
    qemu: PathBuf,
    version: QemuVersion,
    elf: PathBuf,
    plugin: PathBuf,
}

impl Parts {
    /// Builds the plugin for this `qemu`.
    ///
    /// # Errors
    /// A QEMU without a version, or a plugin that does not build.
    pub fn new(qemu: PathBuf, elf: PathBuf) -> Result<Self> {
        let text = process::output(Command::new(&qemu).arg("--version"), Limits::total(20))?;
        let version = QemuVersion::parse(&text).context("QEMU does not say its version")?;
        let mut build = Command::new(firmware::cargo());
        build
            .current_dir(paths::root())
            .env(api::VERSION_VARIABLE, api::declared_by(version).to_string())
            .args(["rustc", "--quiet", "--release", "--package", "neap-meter"])
            .args(["--features", "plugin", "--crate-type", "cdylib"]);
        process::output(&mut build, Limits::total(600)).context("the meter's plugin does not build")?;
        Ok(Self { qemu, version, elf, plugin: paths::target_dir().join("release/libneap_meter.so") })
    }

    /// The firmware that the machines boot.
    pub fn elf(&self) -> &Path {
        &self.elf
    }
}

/// Where the meter is to look, in physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    ring: Range<u64>,
    slots: Range<u64>,
}

impl Places {
    fn of(hello: &Hello) -> Result<Self> {
        let at = |kind| {
            let Region { offset, bytes, .. } = region(hello, kind)?;
            anyhow::Ok(WINDOW_BASE + offset..WINDOW_BASE + offset + bytes)
        };
        Ok(Self { ring: at(RegionKind::Messages)?, slots: at(RegionKind::Slots)? })
    }
}

/// A running IPU and the host's end of its link. Dropped, it is gone.
pub struct Machine {
    // In the order of their ends: QEMU before what it is connected to.
    qemu: Qemu,
    peer: Peer,
    mapping: Mapping,
    hello: Hello,
    _server: Server,
    _window: Window,
    directory: TempDir,
}

impl Machine {
    /// Boots the firmware for `cpus` host CPUs and waits for its hello page; with `places`, under the meter.
    ///
    /// # Errors
    /// What does not start, or a firmware that says no hello: then its console's last words too.
    pub fn boot(parts: &Parts, cpus: u16, places: Option<&Places>) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("neap-{}-", std::process::id())).tempdir()?;
        let name = directory.path().file_name().context("a temporary directory has a name")?;
        let window = Window::create(&name.to_string_lossy(), WINDOW_BYTES)?;
        let socket = directory.path().join("enclave");
        let server = Server::start(vec![Domain::new(&socket, window.descriptor()?, cpus)])?;
        let mut command = command(parts, cpus, directory.path(), &window);
        if let Some(places) = places {
            let args = meter_args(parts, places, directory.path().join(RECORDS));
            command.arg("-plugin").arg(format!("{},{args}", parts.plugin.display()));
        }
        let qemu = Qemu::start(&mut command)?;
        let mapping = window.map()?;
        let hello = wait_for_hello(&qemu, &mapping)
            .with_context(|| format!("the firmware's console:\n{}", console(directory.path())))?;
        // The firmware's function connected when QEMU started: it is there before us.
        let peer = Peer::connect(&socket, cpus, PATIENCE)?;
        Ok(Self { qemu, peer, mapping, hello, _server: server, _window: window, directory })
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
        let Region { offset, bytes, .. } = region(&self.hello, kind)?;
        let count = usize::try_from(bytes)? / size_of::<Line>();
        let offset = usize::try_from(offset)?;
        // SAFETY: the hello page was checked against the mapping's length: the region lies inside it and begins
        // on a page. A line is eight atomic words, valid for any bytes and for writers elsewhere, and the
        // mapping lives as long as `self`.
        Ok(unsafe {
            std::slice::from_raw_parts(self.mapping.base().add(offset).cast::<Line>().as_ptr(), count)
        })
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

fn meter_args(parts: &Parts, places: &Places, out: PathBuf) -> MeterArgs {
    MeterArgs {
        out,
        core: AGENT_CORE,
        ring: places.ring.clone(),
        slots: places.slots.clone(),
        doorbells: VIRT_PCI_WINDOW,
        ram_shift: api::ram_shift(parts.version, RAM_BASE, PRIVATE_BYTES),
    }
}

/// Name of the meter's file in a machine's directory.
const RECORDS: &str = "path.records";
/// Name of the console's file.
const CONSOLE: &str = "console";

fn command(parts: &Parts, cpus: u16, directory: &Path, window: &Window) -> Command {
    let mut command = Command::new(&parts.qemu);
    command
        .args(["-M", "virt,gic-version=2", "-cpu", "neoverse-n1", "-accel", "tcg,thread=multi", "-smp", "2"])
        .args(["-nodefaults", "-display", "none", "-semihosting-config", "enable=on,target=native"])
        .args(["-m", &format!("{}M", (PRIVATE_BYTES + WINDOW_BYTES) >> 20)])
        .args(["-object", &format!("memory-backend-ram,id=m0,size={}M", PRIVATE_BYTES >> 20)])
        .arg("-object")
        .arg(format!(
            "memory-backend-file,id=m1,size={}M,mem-path={},share=on",
            WINDOW_BYTES >> 20,
            window.path().display()
        ))
        .args(["-numa", "node,nodeid=0,memdev=m0", "-numa", "node,nodeid=1,memdev=m1"])
        .args(["-chardev", &format!("file,id=console,path={}", directory.join(CONSOLE).display())])
        .args(["-serial", "chardev:console"])
        .args(["-chardev", &format!("socket,id=c0,path={}", directory.join("enclave").display())])
        .args(["-device", &format!("ivshmem-doorbell,chardev=c0,vectors={cpus},addr=2.0,multifunction=on")])
        .arg("-kernel")
        .arg(&parts.elf)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn region(hello: &Hello, kind: RegionKind) -> Result<Region> {
    hello.region(kind, 0).with_context(|| format!("the hello page has no region {kind:?}"))
}

fn wait_for_hello(qemu: &Qemu, mapping: &Mapping) -> Result<Hello> {
    let begun = Instant::now();
    loop {
        match read_hello(mapping) {
            Ok(hello) => return Ok(hello),
            // Not written yet, or half written.
            Err(HelloError::Magic { .. } | HelloError::Checksum { .. }) if begun.elapsed() < PATIENCE => {
                qemu.check()?;
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).context("the firmware's hello page"),
        }
    }
}

fn read_hello(mapping: &Mapping) -> Result<Hello, HelloError> {
    let mut page = [0; HELLO_BYTES];
    for (at, byte) in page.iter_mut().enumerate().take(mapping.bytes()) {
        // SAFETY: `at` is inside the mapping; the firmware may write there at any time, hence volatile.
        *byte = unsafe { mapping.base().add(at).as_ptr().read_volatile() };
    }
    Hello::read(&page, mapping.bytes() as u64, VERSION)
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
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(RefCell::new(command.spawn().context("starting QEMU")?)))
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
