//! The plugin's arguments: `-plugin libneap_meter.so,out=…,core=…,ring=…,slots=…`.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Where the agent's path begins and ends, in physical addresses, and where the records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterArgs {
    /// The file of records, created anew.
    pub out: PathBuf,
    /// The agent's core, as QEMU numbers its vCPUs.
    pub core: u32,
    /// The lines of the message ring.
    pub ring: Range<u64>,
    /// The decision slots.
    pub slots: Range<u64>,
    /// Where the doorbell functions' BAR 0 pages lie: the machine's 32-bit PCI window.
    pub doorbells: Range<u64>,
    /// What QEMU's RAM addresses are off by ([`crate::api::ram_shift`]).
    pub ram_shift: u64,
    /// Where the runtime lends a core to an agent, as a virtual address; 0 where nobody asks.
    pub enter: u64,
}

/// `-M virt`'s 32-bit PCI window (QEMU, `hw/arm/virt.c`, `VIRT_PCIE_MMIO`).
pub const VIRT_PCI_WINDOW: Range<u64> = 0x1000_0000..0x3eff_0000;

/// Why an argument list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A word the meter does not know.
    #[error("unknown argument `{0}`: the meter takes out, core, ring, slots, doorbells, ram-shift and enter")]
    Unknown(String),
    /// A value that is no number or no range.
    #[error("`{0}` has a value of the wrong form: numbers are hexadecimal with 0x, ranges `start-end`")]
    Malformed(String),
    /// An argument without a default is absent.
    #[error("`{0}` is missing")]
    Missing(&'static str),
}

impl MeterArgs {
    /// Reads the words that QEMU hands a plugin.
    ///
    /// # Errors
    /// [`ArgsError`], naming the word.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, ArgsError> {
        let (mut out, mut core, mut ring, mut slots) = (None, 1, None, None);
        let (mut doorbells, mut ram_shift, mut enter) = (VIRT_PCI_WINDOW, 0, 0);
        for word in words {
            let malformed = || ArgsError::Malformed(word.to_owned());
            let (key, value) = word.split_once('=').ok_or_else(|| ArgsError::Unknown(word.to_owned()))?;
            match key {
                "out" => out = Some(PathBuf::from(value)),
                "core" => core = value.parse().map_err(|_| malformed())?,
                "ring" => ring = Some(range(value).ok_or_else(malformed)?),
                "slots" => slots = Some(range(value).ok_or_else(malformed)?),
                "doorbells" => doorbells = range(value).ok_or_else(malformed)?,
                "ram-shift" => ram_shift = number(value).ok_or_else(malformed)?,
                "enter" => enter = number(value).ok_or_else(malformed)?,
                _ => return Err(ArgsError::Unknown(word.to_owned())),
            }
        }
        Ok(Self {
            out: out.ok_or(ArgsError::Missing("out"))?,
            core,
            ring: ring.ok_or(ArgsError::Missing("ring"))?,
            slots: slots.ok_or(ArgsError::Missing("slots"))?,
            doorbells,
            ram_shift,
            enter,
        })
    }
}

/// What follows `-plugin PATH,` on QEMU's command line.
impl fmt::Display for MeterArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "out={},core={},ring={:#x}-{:#x},slots={:#x}-{:#x},doorbells={:#x}-{:#x},ram-shift={:#x},enter={:#x}",
            self.out.display(),
            self.core,
            self.ring.start,
            self.ring.end,
            self.slots.start,
            self.slots.end,
            self.doorbells.start,
            self.doorbells.end,
            self.ram_shift,
            self.enter
        )
    }
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let range = number(start)?..number(end)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> MeterArgs {
        MeterArgs {
            out: "/tmp/records".into(),
            core: 3,
            ring: 0x4800_1000..0x4800_2000,
            slots: 0x4800_4000..0x4800_4400,
            doorbells: VIRT_PCI_WINDOW,
            ram_shift: 0xffff_ffff_c800_0000,
            enter: 0x4020_1234,
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        assert_eq!(MeterArgs::parse(args().to_string().split(',')), Ok(args()));
    }

    #[test]
    fn each_refusal_names_its_culprit() {
        let refused = |words: &str| MeterArgs::parse(words.split(',')).unwrap_err();
        assert_eq!(refused("out=a,ring=0x0-0x40"), ArgsError::Missing("slots"));
        assert_eq!(refused("out=a,depth=3"), ArgsError::Unknown("depth=3".into()));
        assert_eq!(refused("verbose"), ArgsError::Unknown("verbose".into()));
        for word in ["ring=0x40-0x40", "ring=64-128", "slots=0x40", "core=one", "ram-shift=1"] {
            assert_eq!(refused(word), ArgsError::Malformed(word.into()));
        }
    }
}
