//! A machine that its firmware describes by ACPI's tables and not by a device tree: what the runtime has to know of it is read here, and
//! told to it as the tree that it reads (Server Base Boot Requirements: MADT, FADT, MCFG, SPCR, SRAT).
//!
//! Tables are outside bytes: whatever they hold, a field that is not there is an error that names its table. Of some hundred fields a dozen
//! matter, and what the packaged readers of them do is unsafe or wants a nightly compiler; so they are read here, byte by byte.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// Bytes before what a table says: signature, length, checksum and who made it (ACPI 6.5, 5.2.6).
pub const HEADER_BYTES: usize = 36;
/// Bytes of each of the interrupt controller's blocks of registers (SBSA: a page of 64 KiB).
const BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of a bus in PCI's configuration space.
const BUS_BYTES: u64 = 1 << 20;

/// The tables, each whole, with its header.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Cores and interrupt controller.
    pub madt: &'a [u8],
    /// How firmware is called.
    pub fadt: &'a [u8],
    /// PCI's configuration space.
    pub mcfg: &'a [u8],
    /// The console.
    pub spcr: &'a [u8],
    /// Memory, by node.
    pub srat: &'a [u8],
}

/// Why a machine can't be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undescribed {
    /// A table that has to be there.
    Table(&'static str),
    /// What has to be in a table, or is cut off.
    Lacks {
        /// The table.
        table: &'static str,
        /// What of it.
        what: &'static str,
    },
    /// The console is no PL011.
    Console {
        /// SPCR's number of its kind.
        kind: u8,
    },
    /// The interrupt controller is of no version that is known.
    Gic {
        /// MADT's number.
        version: u8,
    },
    /// Memory for PCI functions.
    Apertures,
}

impl fmt::Display for Undescribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "ACPI has no table {table}"),
            Self::Lacks { table, what } => write!(f, "ACPI's table {table} lacks {what}"),
            Self::Console { kind } => {
                write!(f, "the console is of kind {kind}, and only a PL011 (3) is known")
            }
            Self::Gic { version } => {
                write!(f, "the interrupt controller is GICv{version}, and GICv2 and GICv3 are known")
            }
            Self::Apertures => f.write_str("the firmware tells no memory below 4 GiB for PCI's functions"),
        }
    }
}

impl core::error::Error for Undescribed {}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Gic {
    V2 { distributor: u64, interface: u64, frame: Option<u64> },
    V3 { distributor: u64, redistributors: Range<u64> },
}

/// A machine, as far as the runtime has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// MPIDRs, in MADT's order.
    cores: Vec<u64>,
    gic: Gic,
    by_hvc: bool,
    console: u64,
    ecam: Range<u64>,
    /// With their nodes.
    memory: Vec<(u32, Range<u64>)>,
    /// Below 4 GiB, and above if there is some.
    apertures: (Range<u64>, Option<Range<u64>>),
}

impl Described {
    /// Reads the tables; `apertures` is the memory that the firmware has for PCI's functions, in any order.
    ///
    /// # Errors
    /// The first thing that is not there, or not known.
    pub fn read(tables: &Tables<'_>, apertures: &[Range<u64>]) -> Result<Self, Undescribed> {
        let below = |range: &&Range<u64>| range.end <= 1 << 32;
        let largest = |low: bool| {
            let ranges = apertures.iter().filter(|range| below(range) == low);
            ranges.max_by_key(|range| range.end - range.start).cloned()
        };
        let (cores, gic) = madt(tables.madt)?;
        Ok(Self {
            cores,
            gic,
            by_hvc: by_hvc(tables.fadt)?,
            console: console(tables.spcr)?,
            ecam: ecam(tables.mcfg)?,
            memory: memory(tables.srat)?,
            apertures: (largest(true).ok_or(Undescribed::Apertures)?, largest(false)),
        })
    }

    /// The tree that says the same.
    #[must_use]
    pub fn tree(&self) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        property(&mut tree.root, "#address-cells", 2u32);
        property(&mut tree.root, "#size-cells", 2u32);
        for (node, range) in &self.memory {
            let memory = child(&mut tree.root, format!("memory@{:x}", range.start));
            property(memory, "device_type", "memory");
            property(memory, "numa-node-id", *node);
            property(memory, "reg", reg(&[range]).as_slice());
        }
        let cpus = child(&mut tree.root, "cpus");
        property(cpus, "#address-cells", 2u32);
        property(cpus, "#size-cells", 0u32);
        for mpidr in &self.cores {
            let core = child(cpus, format!("cpu@{mpidr:x}"));
            property(core, "device_type", "cpu");
            property(core, "reg", [(mpidr >> 32) as u32, *mpidr as u32]);
        }
        let psci = child(&mut tree.root, "psci");
        property(psci, "compatible", "arm,psci-1.0");
        property(psci, "method", if self.by_hvc { "hvc" } else { "smc" });
        let block = |start: u64| start..start + BLOCK_BYTES;
        let (compatible, start, blocks, frame) = match &self.gic {
            Gic::V2 { distributor, interface, frame } => {
                ("arm,cortex-a15-gic", *distributor, block(*interface), *frame)
            }
            Gic::V3 { distributor, redistributors } => {
                ("arm,gic-v3", *distributor, redistributors.clone(), None)
            }
        };
        let gic = child(&mut tree.root, format!("intc@{start:x}"));
        property(gic, "compatible", compatible);
        property(gic, "interrupt-controller", "");
        property(gic, "#address-cells", 2u32);
        property(gic, "#size-cells", 2u32);
        property(gic, "reg", reg(&[&block(start), &blocks]).as_slice());
        if let Some(frame) = frame {
            let messages = child(gic, format!("v2m@{frame:x}"));
            property(messages, "compatible", "arm,gic-v2m-frame");
            property(messages, "reg", reg(&[&(frame..frame + 4096)]).as_slice());
        }
        let console = child(&mut tree.root, format!("pl011@{:x}", self.console));
        property(console, "compatible", "arm,pl011");
        property(console, "reg", reg(&[&(self.console..self.console + 4096)]).as_slice());
        let pcie = child(&mut tree.root, format!("pcie@{:x}", self.ecam.start));
        property(pcie, "compatible", "pci-host-ecam-generic");
        property(pcie, "#address-cells", 3u32);
        property(pcie, "#size-cells", 2u32);
        property(pcie, "reg", reg(&[&self.ecam]).as_slice());
        // Each with its space (IEEE 1275's binding for PCI), and on the bus where it is for a core.
        let low = (0x0200_0000u32, &self.apertures.0);
        let high = self.apertures.1.as_ref().map(|high| (0x0300_0000, high));
        let ranges = [low].into_iter().chain(high).flat_map(|(space, range)| {
            let mut cells = [space, (range.start >> 32) as u32, range.start as u32].to_vec();
            cells.extend(reg(&[range]));
            cells
        });
        property(pcie, "ranges", ranges.collect::<Vec<u32>>().as_slice());
        tree.to_dtb()
    }
}

fn child(parent: &mut DeviceTreeNode, name: impl Into<String>) -> &mut DeviceTreeNode {
    parent.add_child_mut(DeviceTreeNode::new_unchecked(name))
}

fn property(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

/// Start and length of each, two cells a number.
fn reg(ranges: &[&Range<u64>]) -> Vec<u32> {
    let numbers = ranges.iter().flat_map(|range| [range.start, range.end - range.start]);
    numbers.flat_map(|number| [(number >> 32) as u32, number as u32]).collect()
}

/// Numbers in a table or an entry of it.
struct Field<'a> {
    bytes: &'a [u8],
    table: &'static str,
    what: &'static str,
}

impl Field<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], Undescribed> {
        let Self { bytes, table, what } = *self;
        let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
        field.copied().ok_or(Undescribed::Lacks { table, what })
    }

    fn u32(&self, at: usize) -> Result<u32, Undescribed> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Undescribed> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    /// A range, where both its start and its length stand; none that is empty or leaves the address space.
    fn range(&self, start: u64, bytes: u64) -> Result<Range<u64>, Undescribed> {
        let Self { table, what, .. } = *self;
        let end = start.checked_add(bytes).filter(|end| *end > start);
        end.map(|end| start..end).ok_or(Undescribed::Lacks { table, what })
    }
}

/// The entries of a table from byte `at` on: each begins with its kind and its length.
fn entries(table: &[u8], at: usize) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = table.get(at..).unwrap_or_default();
    core::iter::from_fn(move || {
        let (&[kind, bytes], _) = rest.split_first_chunk::<2>()?;
        let (entry, behind) = rest.split_at_checked(usize::from(bytes).max(2))?;
        rest = behind;
        Some((kind, entry))
    })
}

/// Cores and interrupt controller (ACPI 6.5, 5.2.12.14 to 5.2.12.17).
fn madt(table: &[u8]) -> Result<(Vec<u64>, Gic), Undescribed> {
    const NAME: &str = "MADT";
    /// It can be used.
    const ENABLED: u32 = 1;
    let (mut cores, mut interface, mut distributor) = (Vec::new(), 0, None);
    let (mut frame, mut redistributors) = (None, None);
    for (kind, bytes) in entries(table, HEADER_BYTES + 8) {
        let field = |what| Field { bytes, table: NAME, what };
        match kind {
            0x0b => {
                let core = field("a core's fields");
                if core.u32(12)? & ENABLED != 0 {
                    interface = core.u64(32)?;
                    cores.push(core.u64(68)?);
                }
            }
            0x0c => {
                let gic = field("the distributor's fields");
                let [version] = gic.bytes(20)?;
                distributor = Some((gic.u64(8)?, version));
            }
            0x0d => frame = Some(field("the message frame's fields").u64(8)?),
            0x0e => {
                let of = field("the redistributors' fields");
                redistributors = Some(of.range(of.u64(4)?, of.u32(12)?.into())?);
            }
            _ => {}
        }
    }
    let lacks = |what| Undescribed::Lacks { table: NAME, what };
    if cores.is_empty() {
        return Err(lacks("a core"));
    }
    let (distributor, version) = distributor.ok_or(lacks("an interrupt controller"))?;
    let gic = match version {
        2 if interface == 0 => return Err(lacks("the interrupt controller's interface")),
        2 => Gic::V2 { distributor, interface, frame },
        3 | 4 => Gic::V3 { distributor, redistributors: redistributors.ok_or(lacks("the redistributors"))? },
        version => return Err(Undescribed::Gic { version }),
    };
    Ok((cores, gic))
}

/// Whether PSCI is called by HVC (ACPI 6.5, 5.2.9, "ARM Architecture Boot Flags").
fn by_hvc(table: &[u8]) -> Result<bool, Undescribed> {
    const PSCI: u16 = 1;
    const HVC: u16 = 2;
    let fadt = Field { bytes: table, table: "FADT", what: "PSCI" };
    let flags = u16::from_le_bytes(fadt.bytes(129)?);
    if flags & PSCI == 0 {
        return Err(Undescribed::Lacks { table: "FADT", what: "PSCI" });
    }
    Ok(flags & HVC != 0)
}

/// The console's registers (SPCR, "Base Address").
fn console(table: &[u8]) -> Result<u64, Undescribed> {
    const PL011: u8 = 3;
    let spcr = Field { bytes: table, table: "SPCR", what: "the console's address" };
    let [kind] = spcr.bytes(36)?;
    if kind != PL011 {
        return Err(Undescribed::Console { kind });
    }
    spcr.u64(44)
}

/// The first segment's configuration space (PCI Firmware Specification 3.3, 4.1.2).
fn ecam(table: &[u8]) -> Result<Range<u64>, Undescribed> {
    let mcfg = Field { bytes: table, table: "MCFG", what: "PCI's configuration space" };
    let at = HEADER_BYTES + 8;
    let [first, last] = mcfg.bytes(at + 10)?;
    let buses = u64::from(last.saturating_sub(first)) + 1;
    mcfg.range(mcfg.u64(at)?, buses * BUS_BYTES)
}

/// Memory and its nodes (ACPI 6.5, 5.2.16.2).
fn memory(table: &[u8]) -> Result<Vec<(u32, Range<u64>)>, Undescribed> {
    const ENABLED: u32 = 1;
    let mut memory = Vec::new();
    for (_, bytes) in entries(table, HEADER_BYTES + 12).filter(|(kind, _)| *kind == 1) {
        let field = Field { bytes, table: "SRAT", what: "a memory's fields" };
        if field.u32(28)? & ENABLED != 0 {
            memory.push((field.u32(2)?, field.range(field.u64(8)?, field.u64(16)?)?));
        }
    }
    if memory.is_empty() {
        return Err(Undescribed::Lacks { table: "SRAT", what: "memory" });
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use neap_hal::board::qemu_virt::Board;
    use proptest::prelude::*;

    use super::*;

    fn table(bytes: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut table = vec![0; bytes];
        for (at, field) in fields {
            table[*at..at + field.len()].copy_from_slice(field);
        }
        table
    }

    fn core(mpidr: u64, enabled: u8) -> Vec<u8> {
        let fields: [(usize, &[u8]); 4] = [
            (0, &[0x0b, 80]),
            (12, &[enabled]),
            (32, &0x0801_0000u64.to_le_bytes()),
            (68, &mpidr.to_le_bytes()),
        ];
        table(80, &fields)
    }

    /// The tables of a `virt` with two cores, as QEMU has them.
    fn virt(gic: u8) -> [Vec<u8>; 5] {
        let mut madt = vec![0; HEADER_BYTES + 8];
        madt.extend(table(24, &[(0, &[0x0c, 24]), (8, &0x0800_0000u64.to_le_bytes()), (20, &[gic])]));
        madt.extend([core(0, 1), core(1, 1), core(2, 0)].concat());
        if gic == 2 {
            madt.extend(table(24, &[(0, &[0x0d, 24]), (8, &0x0802_0000u64.to_le_bytes())]));
        } else {
            let fields: [(usize, &[u8]); 3] =
                [(0, &[0x0e, 16]), (4, &0x080a_0000u64.to_le_bytes()), (12, &0xf6_0000u32.to_le_bytes())];
            madt.extend(table(16, &fields));
        }
        let fadt = table(276, &[(129, &[3, 0])]);
        let mcfg = table(60, &[(44, &0x40_1000_0000u64.to_le_bytes()), (54, &[0, 255])]);
        let spcr = table(80, &[(36, &[3]), (44, &0x0900_0000u64.to_le_bytes())]);
        let memory = |node: u8, start: u64, bytes: u64, enabled: u8| {
            let fields: [(usize, &[u8]); 5] = [
                (0, &[1, 40, node]),
                (8, &start.to_le_bytes()),
                (16, &bytes.to_le_bytes()),
                (28, &[enabled]),
                (38, &[0]),
            ];
            table(40, &fields)
        };
        let mut srat = vec![0; HEADER_BYTES + 12];
        srat.extend(memory(1, 0x4800_0000, 16 << 20, 1));
        srat.extend(memory(0, 0x4000_0000, 128 << 20, 1));
        srat.extend(memory(2, 0, 0, 0));
        [madt, fadt, mcfg, spcr, srat]
    }

    fn tables(of: &[Vec<u8>; 5]) -> Tables<'_> {
        let [madt, fadt, mcfg, spcr, srat] = of;
        Tables { madt, fadt, mcfg, spcr, srat }
    }

    const APERTURES: [Range<u64>; 3] =
        [0x80_0000_0000..0x100_0000_0000, 0x3eff_0000..0x3f00_0000, 0x1000_0000..0x3eff_0000];

    #[test]
    fn the_runtime_reads_of_both_the_same_machine() {
        let trees: [(u8, &[u8]); 2] = [
            (2, include_bytes!("../../../hal/tests/data/virt-gicv2.dtb")),
            (3, include_bytes!("../../../hal/tests/data/virt-gicv3.dtb")),
        ];
        for (gic, tree) in trees {
            let virt = virt(gic);
            let described = Described::read(&tables(&virt), &APERTURES).unwrap();
            let told = described.tree();
            let (told, theirs) = (Board::from_tree(&told).unwrap(), Board::from_tree(tree).unwrap());
            assert_eq!(told.gic, theirs.gic);
            assert_eq!((&told.console, &told.ecam), (&theirs.console, &theirs.ecam));
            assert_eq!((told.conduit, &told.apertures), (theirs.conduit, &theirs.apertures));
            assert_eq!((&told.memory, &told.windows), (&theirs.memory, &theirs.windows));
            assert_eq!(told.cores[..], [0, 1], "the third can't be used");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let good = virt(3);
        let read = |change: &dyn Fn(&mut [Vec<u8>; 5])| {
            let mut changed = good.clone();
            change(&mut changed);
            Described::read(&tables(&changed), &APERTURES).map(drop)
        };
        let lacks = |table, what| Err(Undescribed::Lacks { table, what });
        assert_eq!(read(&|tables| tables[0].truncate(44)), lacks("MADT", "a core"));
        assert_eq!(read(&|tables| tables[0][44 + 20] = 9), Err(Undescribed::Gic { version: 9 }));
        assert_eq!(read(&|tables| tables[1][129] = 0), lacks("FADT", "PSCI"));
        assert_eq!(read(&|tables| tables[2].truncate(44)), lacks("MCFG", "PCI's configuration space"));
        assert_eq!(read(&|tables| tables[3][36] = 18), Err(Undescribed::Console { kind: 18 }));
        assert_eq!(read(&|tables| tables[4].truncate(48)), lacks("SRAT", "memory"));
        assert_eq!(
            Described::read(&tables(&good), &APERTURES[..1]).map(drop),
            Err(Undescribed::Apertures),
            "only above 4 GiB"
        );
    }

    proptest! {
        #[test]
        fn whatever_stands_in_tables_nothing_panics(
            which in 0..5usize,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            kept in any::<prop::sample::Index>(),
        ) {
            let mut virt = virt(3);
            for (at, byte) in changes {
                let at = at.index(virt[which].len());
                virt[which][at] = byte;
            }
            let kept = kept.index(virt[which].len() + 1);
            virt[which].truncate(kept);
            if let Ok(described) = Described::read(&tables(&virt), &APERTURES) {
                // Whether it makes a machine is the runtime's to say.
                let _ = Board::from_tree(&described.tree());
            }
        }
    }
}
