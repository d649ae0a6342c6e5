//! QEMU's command line: the machine that stands in for the card.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use xtask::process::{Limits, output};
use xtask::setup::Version;

/// RAM that the firmware has to itself, in MiB; the window follows it.
const PRIVATE_MIB: u64 = 128;

/// What a machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The program.
    pub program: &'a Path,
    /// The firmware.
    pub elf: &'a Path,
    /// Cores of the IPU.
    pub cores: u16,
    /// The window's file.
    pub window: &'a Path,
    /// Its size, a multiple of 1 MiB.
    pub window_bytes: u64,
    /// The socket of the enclave's peer domain.
    pub socket: &'a Path,
    /// Vectors of each peer there.
    pub vectors: u16,
    /// Where the serial line goes.
    pub serial: &'a Path,
}

impl Machine<'_> {
    /// The command that boots it.
    pub fn command(&self) -> Command {
        let window_mib = self.window_bytes >> 20;
        // GICv2 has eight interfaces; its v2m frame needs no driver for an interrupt from the host.
        let gic = if self.cores <= 8 { 2 } else { 3 };
        let mut command = Command::new(self.program);
        command
            .args(["-M", &format!("virt,gic-version={gic}"), "-cpu", "neoverse-n1"])
            .args(["-accel", "tcg,thread=multi", "-smp", &self.cores.to_string()])
            .args(["-m", &format!("{}M", PRIVATE_MIB + window_mib), "-nodefaults", "-display", "none"])
            .args(["-object", &format!("memory-backend-ram,id=m0,size={PRIVATE_MIB}M")])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=m1,size={window_mib}M,mem-path={},share=on",
                value(self.window)
            ))
            .args(["-numa", "node,nodeid=0,memdev=m0", "-numa", "node,nodeid=1,memdev=m1"])
            .args(["-chardev", &format!("socket,id=c0,path={}", value(self.socket))])
            .arg("-device")
            .arg(format!("ivshmem-doorbell,chardev=c0,vectors={},addr=2.0,multifunction=on", self.vectors))
            .args(["-chardev", &format!("file,id=s0,path={}", value(self.serial)), "-serial", "chardev:s0"])
            .args(["-semihosting-config", "enable=on,target=native"])
            .arg("-kernel")
            .arg(self.elf)
            .stdin(Stdio::null());
        command
    }
}

/// A path as the value of one of QEMU's options, in which a comma is doubled.
fn value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The version that `program` says of itself.
pub fn version(program: &Path) -> Result<String> {
    let text = output(Command::new(program).arg("--version"), Limits::total(20))?;
    let version = text.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next());
    // Set-up has understood it already; here it is only repeated.
    debug_assert!(Version::after(&text, "version ").is_some());
    version.map(str::to_owned).with_context(|| format!("{} does not tell its version", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cores: u16) -> String {
        let machine = Machine {
            program: Path::new("qemu-system-aarch64"),
            elf: Path::new("/e/neap-runtime"),
            cores,
            window: Path::new("/dev/shm/a,b.window"),
            window_bytes: 16 << 20,
            socket: Path::new("/t/vipu.sock"),
            vectors: 16,
            serial: Path::new("/t/serial.log"),
        };
        format!("{:?}", machine.command()).replace('"', "")
    }

    #[test]
    fn the_window_is_memory_node_1_and_paths_survive() {
        let line = line(4);
        assert!(
            line.contains("-m 144M") && line.contains("size=16M,mem-path=/dev/shm/a,,b.window,share=on"),
            "{line}"
        );
        assert!(
            line.contains("-numa node,nodeid=1,memdev=m1") && line.contains("vectors=16,addr=2.0"),
            "{line}"
        );
    }

    #[test]
    fn the_interrupt_controller_follows_the_cores() {
        assert!(line(8).contains("gic-version=2") && line(16).contains("gic-version=3"));
    }
}
