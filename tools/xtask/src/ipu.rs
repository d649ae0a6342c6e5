//! A running IPU for tests and measurements: the firmware on QEMU, and the server that joins it with this process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use neap_vipu::{Domain, Server, Window};
use tempfile::TempDir;

use crate::machine::{Machine, WINDOW_BYTES};
use crate::process;

/// Vectors of every peer: more than any test here has CPUs or cores.
pub const VECTORS: u16 = 16;

/// A running IPU. Dropped, it is gone.
pub struct Ipu {
    // In the order of their ends: QEMU before what it is connected to.
    qemu: Qemu,
    _server: Server,
    windows: Vec<Window>,
    directory: TempDir,
}

/// A QEMU that ends with us.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = process::stop(&mut self.0);
    }
}

impl Ipu {
    /// Boots `elf` on `cores` cores with `enclaves` windows and doorbell functions.
    ///
    /// # Errors
    /// What does not start.
    pub fn boot(qemu: &Path, elf: &Path, cores: u32, enclaves: usize) -> Result<Self> {
        Self::boot_with(qemu, elf, cores, enclaves, &[], |_| String::new())
    }

    /// As [`Ipu::boot`], with words for the firmware and a plugin: `plugin` is given the machine's directory and returns the argument of QEMU's
    /// `-plugin`, or nothing.
    ///
    /// # Errors
    /// What does not start.
    pub fn boot_with(
        qemu: &Path,
        elf: &Path,
        cores: u32,
        enclaves: usize,
        bootargs: &[String],
        plugin: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        Self::boot_by(cores, enclaves, |mut machine, directory| {
            machine.bootargs = bootargs.to_vec();
            let mut command = machine.command(qemu, elf)?;
            let plugin = plugin(directory);
            if !plugin.is_empty() {
                command.args(["-plugin", &plugin]);
            }
            Ok(command)
        })
    }

    /// As [`Ipu::boot`], by a command of one's own: `command` is given the machine and its directory.
    ///
    /// # Errors
    /// What does not start.
    pub fn boot_by(
        cores: u32,
        enclaves: usize,
        command: impl FnOnce(Machine, &Path) -> Result<Command>,
    ) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("neap-{}-", std::process::id())).tempdir()?;
        let name = directory.path().file_name().context("a temporary directory has a name")?;
        let name = name.to_string_lossy();
        let mut windows = Vec::new();
        let mut domains = Vec::new();
        for enclave in 0..enclaves {
            let window = Window::create(&format!("{name}.{enclave}"), WINDOW_BYTES)?;
            domains.push(Domain::new(socket_in(directory.path(), enclave), window.descriptor()?, VECTORS));
            windows.push(window);
        }
        let server = Server::start(domains)?;
        let first = windows.first().context("an IPU without an enclave")?;
        let mut machine = Machine::new(cores, first.path(), first.bytes());
        machine.windows = windows.iter().map(|window| (window.path().to_owned(), window.bytes())).collect();
        machine.doorbells =
            (0..enclaves).map(|enclave| (socket_in(directory.path(), enclave), VECTORS)).collect();
        let console = File::create(directory.path().join("console"))?;
        let mut command = command(machine, directory.path())?;
        command.stdin(Stdio::null()).stderr(console.try_clone()?).stdout(console);
        let qemu = Qemu(process::start(&mut command)?);
        Ok(Self { qemu, _server: server, windows, directory })
    }

    /// The socket of an enclave's domain.
    #[must_use]
    pub fn socket(&self, enclave: usize) -> PathBuf {
        socket_in(self.directory.path(), enclave)
    }

    /// An enclave's window.
    ///
    /// # Panics
    /// For an enclave that was not asked for.
    #[must_use]
    pub fn window(&self, enclave: usize) -> &Window {
        &self.windows[enclave]
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What its console has said, and whether it has ended.
    pub fn console(&mut self) -> String {
        let said = fs::read_to_string(self.directory.path().join("console")).unwrap_or_default();
        match self.qemu.0.try_wait() {
            Ok(Some(status)) => format!("{said}\n(QEMU has ended: {status})"),
            _ => said,
        }
    }

    /// Ends the machine; its files stay as long as this does.
    ///
    /// # Errors
    /// It can't be ended.
    pub fn stop(&mut self) -> Result<()> {
        process::stop(&mut self.qemu.0)
    }
}

fn socket_in(directory: &Path, enclave: usize) -> PathBuf {
    directory.join(format!("enclave{enclave}"))
}
