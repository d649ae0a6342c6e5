//! The virtual IPU's QEMU line, from 7.2 on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// Bytes of the window in tests and by default: 16 MiB.
pub const WINDOW_BYTES: u64 = 16 << 20;
/// Private RAM before the window, in bytes: 128 MiB, so that the window begins at 0x4800_0000.
pub const RAM_BYTES: u64 = 128 << 20;
/// Cores that GICv2 has interfaces for.
const GIC2_CORES_MAX: u32 = 8;

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores, core 0 being the supervisor's.
    pub cores: u32,
    /// The interrupt controller's architecture: 2, or 3 above eight cores.
    pub gic: u32,
    /// Enter at EL2, as with a hypervisor's hardware, and not at EL1.
    pub virtualization: bool,
    /// One window per enclave: its file, and its size in bytes.
    pub windows: Vec<(PathBuf, u64)>,
    /// One doorbell function per enclave: its server's socket, and its vectors.
    pub doorbells: Vec<(PathBuf, u16)>,
    /// The kernel's command line: `neap.key=value` words.
    pub bootargs: Vec<String>,
    /// One core at a time, a nanosecond an instruction: so that instructions are counted exactly.
    pub counted: bool,
}

/// UEFI, and the disk that it boots.
#[derive(Clone, Copy, Debug)]
pub struct Uefi<'a> {
    /// Its code.
    pub code: &'a Path,
    /// A copy of its variables that it may write to.
    pub variables: &'a Path,
    /// The disk.
    pub disk: &'a Path,
    /// Whether it describes the machine by ACPI's tables, and not by a device tree.
    pub by_acpi: bool,
}

impl Machine {
    /// Cores and a window, and nothing else.
    pub fn new(cores: u32, window: &Path, window_bytes: u64) -> Self {
        Self {
            cores,
            gic: if cores > GIC2_CORES_MAX { 3 } else { 2 },
            virtualization: false,
            windows: vec![(window.to_path_buf(), window_bytes)],
            doorbells: Vec::new(),
            bootargs: Vec::new(),
            counted: false,
        }
    }

    /// The command that boots `elf`, its console on stdout. Fails where QEMU would not take the machine.
    pub fn command(&self, qemu: &Path, elf: &Path) -> Result<Command> {
        let mut command = self.bare(qemu, "")?;
        // An image that is under test ends QEMU; a card has nobody who answers to that.
        command.args(["-semihosting-config", "enable=on,target=native"]);
        command.arg("-no-reboot");
        if !self.bootargs.is_empty() {
            command.args(["-append", &self.bootargs.join(" ")]);
        }
        command.arg("-kernel").arg(elf);
        Ok(command)
    }

    /// The command that has UEFI boot a disk, its console on stdout: with a watchdog that resets the machine. What words the
    /// firmware gets stands in the image. Fails as [`Machine::command`].
    pub fn command_of_disk(&self, qemu: &Path, uefi: &Uefi<'_>) -> Result<Command> {
        let Uefi { code, variables, disk, by_acpi } = uefi;
        // Without ACPI it hands a device tree on.
        let mut command = self.bare(qemu, if *by_acpi { "" } else { ",acpi=off" })?;
        let flash = |unit: u32, file: &Path, how: &str| {
            format!("if=pflash,unit={unit},format=raw,file={}{how}", escaped(file))
        };
        command.args(["-drive", &flash(0, code, ",readonly=on"), "-drive", &flash(1, variables, "")]);
        command.args(["-drive", &format!("if=none,id=disk,format=raw,file={}", escaped(disk))]);
        command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        Ok(command)
    }

    /// All but what is booted, on a machine with `options`.
    fn bare(&self, qemu: &Path, options: &str) -> Result<Command> {
        match self.gic {
            2 if self.cores > GIC2_CORES_MAX => {
                bail!(
                    "GICv2 has {GIC2_CORES_MAX} interfaces, and {} cores were asked for: use GICv3",
                    self.cores
                )
            }
            2 | 3 => {}
            other => bail!("there is no GICv{other} here: use 2 or 3"),
        }
        if self.doorbells.len() > 8 {
            bail!("{} doorbell functions, and a PCI device has 8", self.doorbells.len());
        }
        let windows_bytes: u64 = self.windows.iter().map(|(_, bytes)| bytes).sum();
        let mut command = Command::new(qemu);
        let mut machine = format!("virt,gic-version={}{options}", self.gic);
        if self.virtualization {
            machine += ",virtualization=on";
        }
        // Two cores at least even for one: below that, QEMU makes the guest's atomics plain stores, which a
        // process at the other end of the window would see.
        let cores = format!("{},maxcpus={}", self.cores, self.cores.max(2));
        let accelerator = if self.counted { "tcg,thread=single" } else { "tcg,thread=multi" };
        command.args(["-M", &machine, "-cpu", "neoverse-n1", "-accel", accelerator, "-smp", &cores]);
        if self.counted {
            command.args(["-icount", "shift=0,align=off,sleep=off"]);
        }
        command.args(["-nodefaults", "-display", "none"]);
        command.args(["-chardev", "stdio,id=console", "-serial", "chardev:console"]);
        command.args(["-m", &format!("{}M", (RAM_BYTES + windows_bytes) >> 20)]);
        command.args(["-object", &format!("memory-backend-ram,id=m0,size={}M", RAM_BYTES >> 20)]);
        command.args(["-numa", "node,nodeid=0,memdev=m0"]);
        for (node, (window, bytes)) in (1..).zip(&self.windows) {
            command.args([
                "-object",
                &format!("memory-backend-file,id=m{node},size={bytes},mem-path={},share=on", escaped(window)),
                "-numa",
                &format!("node,nodeid={node},memdev=m{node}"),
            ]);
        }
        for (index, (socket, vectors)) in self.doorbells.iter().enumerate() {
            command.args(["-chardev", &format!("socket,id=c{index},path={}", escaped(socket))]);
            command.args([
                "-device",
                &format!(
                    "ivshmem-doorbell,chardev=c{index},vectors={vectors},addr=2.{index},multifunction=on"
                ),
            ]);
        }
        Ok(command)
    }
}

/// A path inside one of QEMU's comma-separated lists.
pub(crate) fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let command = machine.command(Path::new("qemu"), Path::new("/elf")).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn the_window_follows_the_ram() {
        let line = line(&Machine::new(2, Path::new("/dev/shm/a,b"), WINDOW_BYTES));
        assert!(line.contains("-m 144M"), "{line}");
        assert!(line.contains("mem-path=/dev/shm/a,,b,share=on"), "{line}");
        assert!(line.ends_with("-kernel /elf"), "{line}");
    }

    #[test]
    fn one_core_still_has_real_atomics() {
        assert!(line(&Machine::new(1, Path::new("/w"), WINDOW_BYTES)).contains("-smp 1,maxcpus=2"));
        assert!(line(&Machine::new(4, Path::new("/w"), WINDOW_BYTES)).contains("-smp 4,maxcpus=4"));
    }

    #[test]
    fn the_interrupt_controller_fits_the_cores() {
        assert!(line(&Machine::new(8, Path::new("/w"), WINDOW_BYTES)).contains("gic-version=2"));
        assert!(line(&Machine::new(16, Path::new("/w"), WINDOW_BYTES)).contains("gic-version=3"));
        let wrong = Machine { gic: 2, ..Machine::new(16, Path::new("/w"), WINDOW_BYTES) };
        let error = wrong.command(Path::new("qemu"), Path::new("/elf")).unwrap_err();
        assert!(error.to_string().contains("use GICv3"), "{error}");
    }

    #[test]
    fn uefi_has_its_variables_a_disk_and_a_watchdog_and_boots_again() {
        let machine = Machine::new(2, Path::new("/w"), WINDOW_BYTES);
        let uefi = Uefi {
            code: Path::new("/c"),
            variables: Path::new("/v"),
            disk: Path::new("/d,1"),
            by_acpi: false,
        };
        let command = machine.command_of_disk(Path::new("qemu"), &uefi).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = words.join(" ");
        assert!(line.contains("unit=0,format=raw,file=/c,readonly=on"), "{line}");
        assert!(line.contains("unit=1,format=raw,file=/v -drive"), "{line}");
        assert!(
            line.contains("acpi=off") && line.contains("file=/d,,1") && line.contains("i6300esb"),
            "{line}"
        );
        assert!(!line.contains("-no-reboot") && !line.contains("-kernel"), "{line}");
    }

    #[test]
    fn doorbells_and_words_for_the_firmware() {
        let mut machine = Machine::new(2, Path::new("/w"), WINDOW_BYTES);
        machine.doorbells = vec![("/a".into(), 16), ("/b".into(), 4)];
        machine.bootargs = vec!["neap.a=1".into(), "neap.b=2".into()];
        let command = machine.command(Path::new("qemu"), Path::new("/elf")).unwrap();
        assert!(command.get_args().any(|word| word == "neap.a=1 neap.b=2"));
        assert!(line(&machine).contains("ivshmem-doorbell,chardev=c1,vectors=4,addr=2.1,multifunction=on"));
    }
}
