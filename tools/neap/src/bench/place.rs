//! Where a figure was taken: on a card, in a virtual machine, or under emulation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use neap_host::device::Device;
use serde::Serialize;

use crate::driver;

/// The function that QEMU has in an IPU's place: ivshmem-doorbell.
const VIRTUAL_IPU: (u16, u16) = (0x1af4, 0x1110);

/// What a figure is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// An emulator's IPU, and most often an emulator's CPU: it shows that all works, and no nanosecond.
    Emulated,
    /// A card that was handed to a virtual machine: interrupts take the hypervisor's way.
    VirtualMachine,
    /// A machine and its card.
    Hardware,
}

impl Where {
    /// In words, for a table's cell.
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::VirtualMachine => "virtual machine",
            Self::Hardware => "hardware",
        }
    }
}

/// A device's function, and what it sits in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its address on the bus.
    pub function: String,
    /// Vendor and device, as `lspci -n` has them.
    pub id: String,
    /// What the machine calls itself.
    pub machine: Option<String>,
    /// Whether the CPU says that a hypervisor runs it.
    pub hypervisor: bool,
    /// What its figures are worth.
    #[serde(rename = "where")]
    pub worth: Where,
    #[serde(skip)]
    sys: PathBuf,
}

impl Place {
    /// Of an open device.
    pub fn of(device: &Device) -> Result<Self> {
        let number = device.info()?.enclave;
        Self::find(Path::new("/sys"), number, hypervisor())
    }

    fn find(sys: &Path, number: u32, hypervisor: bool) -> Result<Self> {
        let driver = driver::Device::of(&sys.join("kernel/debug/neap"), number);
        let state =
            driver.state().context("is debugfs mounted (mount -t debugfs none /sys/kernel/debug)?")?;
        let function =
            state.function.context("the driver does not say where its function is: it is older")?;
        let dir = sys.join("bus/pci/devices").join(&function);
        let number = |name: &str| {
            let text =
                fs::read_to_string(dir.join(name)).with_context(|| format!("{function} has no {name}"))?;
            u16::from_str_radix(text.trim().trim_start_matches("0x"), 16)
                .with_context(|| format!("{name} of {function} is {text}"))
        };
        let id = (number("vendor")?, number("device")?);
        let machine = fs::read_to_string(sys.join("class/dmi/id/sys_vendor")).ok();
        let machine = machine.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        let in_qemu = machine.as_deref() == Some("QEMU");
        let worth = match () {
            // It exists in QEMU only, whatever runs the CPU.
            () if id == VIRTUAL_IPU => Where::Emulated,
            () if hypervisor || in_qemu => Where::VirtualMachine,
            () => Where::Hardware,
        };
        let id = format!("{:04x}:{:04x}", id.0, id.1);
        Ok(Self { function, id, machine, hypervisor, worth, sys: dir })
    }

    /// Where its window lies on the bus: the first byte's address, and the bytes.
    pub fn window(&self) -> Result<(u64, u64)> {
        let path = self.sys.join("resource");
        let text = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
        let line = text.lines().nth(2).with_context(|| format!("{} has no BAR 2", path.display()))?;
        let mut numbers =
            line.split_whitespace().map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
        let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("{}: `{line}` is no BAR", path.display());
        };
        ensure!(first < last, "{} has no BAR 2", path.display());
        Ok((first, last - first + 1))
    }
}

/// Whether the CPU says that a hypervisor runs it.
fn hypervisor() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::x86_64::__cpuid(1).ecx >> 31 & 1 == 1
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that never was, as its `/sys`.
    fn machine(vendor: &str, device: &str, dmi: &str) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "kernel/debug/neap/0/state",
            "function 0000:01:00.0\nlevel ipu\nagent_state Running\nlink up\nfault none\n",
        );
        write("bus/pci/devices/0000:01:00.0/vendor", vendor);
        write("bus/pci/devices/0000:01:00.0/device", device);
        write(
            "bus/pci/devices/0000:01:00.0/resource",
            "0xfebd1000 0xfebd10ff 0x40200\n0x0 0x0 0x0\n0xfe000000 0xfe3fffff 0x14220c\n",
        );
        write("class/dmi/id/sys_vendor", dmi);
        sys
    }

    #[test]
    fn a_figure_is_worth_what_it_was_taken_on() {
        let virtual_ipu = machine("0x1af4\n", "0x1110\n", "QEMU\n");
        for hypervisor in [false, true] {
            let place = Place::find(virtual_ipu.path(), 0, hypervisor).unwrap();
            assert_eq!((place.worth, place.id.as_str()), (Where::Emulated, "1af4:1110"));
            assert_eq!(place.window().unwrap(), (0xfe00_0000, 4 << 20));
        }
        let card = machine("0x8086\n", "0x1452\n", "Some Maker\n");
        assert_eq!(Place::find(card.path(), 0, false).unwrap().worth, Where::Hardware);
        assert_eq!(Place::find(card.path(), 0, true).unwrap().worth, Where::VirtualMachine);
        let passed_on = machine("0x8086\n", "0x1452\n", "QEMU\n");
        assert_eq!(Place::find(passed_on.path(), 0, false).unwrap().worth, Where::VirtualMachine);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Place::find(Path::new("/no/sys"), 3, false).unwrap_err();
        assert!(format!("{error:#}").contains("/no/sys/kernel/debug/neap/3/state"), "{error:#}");
        let card = machine("0x8086", "words", "");
        let error = format!("{:#}", Place::find(card.path(), 0, false).unwrap_err());
        assert!(error.contains("device of 0000:01:00.0 is words"), "{error}");
    }
}
