//! What the runtime is handed: where its image lies, which memory is left to it, and a device tree that says so.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};

/// The header of arm64's `Image` ends here.
const HEADER_BYTES: usize = 64;
/// Its magic, at byte 56.
const MAGIC: [u8; 4] = *b"ARM\x64";
/// An image is placed at its offset from a multiple of this.
const BASE_ALIGN: u64 = 2 << 20;

/// Why a machine's memory can't be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The runtime's part of an image is none.
    Header,
    /// It does not fit into memory.
    Room {
        /// Where it has to lie.
        image: Range<u64>,
        /// Where there is memory.
        memory: Range<u64>,
    },
    /// The firmware keeps what is needed.
    Kept {
        /// What for.
        what: &'static str,
        /// What it keeps of it.
        kept: Range<u64>,
    },
    /// The device tree.
    Tree(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => {
                f.write_str("its runtime is no arm64 Image: build it anew with `neap image build`")
            }
            Self::Room { image, memory } => {
                write!(f, "the runtime takes {image:#x?}, and memory is {memory:#x?}: give the machine more")
            }
            Self::Kept { what, kept } => {
                write!(f, "the firmware keeps {kept:#x?}, which is {what}'s: it can't be had")
            }
            Self::Tree(why) => write!(f, "the device tree can't be handed on: {why}"),
        }
    }
}

impl core::error::Error for Unfit {}

/// Where the runtime has to lie, by the header of its `Image`, in a memory that begins at `memory.start`.
///
/// # Errors
/// What is no image, or does not fit.
pub fn place(image: &[u8], memory: &Range<u64>) -> Result<Range<u64>, Unfit> {
    let header = image.get(..HEADER_BYTES).filter(|header| header[56..60] == MAGIC).ok_or(Unfit::Header)?;
    let word =
        |at: usize| header[at..at + 8].iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    let (offset, bytes) = (word(8), word(16).max(image.len() as u64));
    let base = memory.start.checked_next_multiple_of(BASE_ALIGN).ok_or(Unfit::Header)?;
    let start = base.checked_add(offset).ok_or(Unfit::Header)?;
    let placed = start..start.checked_add(bytes).ok_or(Unfit::Header)?;
    if placed.end > memory.end {
        return Err(Unfit::Room { image: placed, memory: memory.clone() });
    }
    Ok(placed)
}

/// What is left of `memory` when the firmware has kept its own: the piece with the image first, and the largest above the
/// image, if that is another. What is kept below the image stays as it is: the runtime only reads there.
///
/// # Errors
/// The firmware keeps what is the image's or a window's.
pub fn pieces(
    memory: &Range<u64>,
    windows: &[Range<u64>],
    image: &Range<u64>,
    kept: &[Range<u64>],
) -> Result<Vec<Range<u64>>, Unfit> {
    let overlap = |what, part: &Range<u64>| {
        let kept = kept.iter().find(|kept| kept.start < part.end && part.start < kept.end);
        kept.map_or(Ok(()), |kept| Err(Unfit::Kept { what, kept: kept.clone() }))
    };
    overlap("the runtime", image)?;
    windows.iter().try_for_each(|window| overlap("a window", window))?;
    let mut above: Vec<_> =
        kept.iter().filter(|kept| kept.start >= image.end && kept.start < memory.end).cloned().collect();
    above.sort_by_key(|kept| kept.start);
    above.push(memory.end..memory.end);
    let first = memory.start..above[0].start;
    let mut largest = image.end..first.end;
    let mut from = image.end;
    for kept in &above {
        let gap = from..kept.start.max(from);
        if gap.end - gap.start > largest.end - largest.start {
            largest = gap;
        }
        from = from.max(kept.end);
    }
    Ok(if largest.start == image.end { vec![first] } else { vec![first, largest] })
}

/// What is said in a tree to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words<'a> {
    /// Its command line.
    pub args: &'a str,
    /// Which slot it came from, and whether it is on trial: `neap,slot`.
    pub slot: &'a str,
    /// What was refused and why, if anything was: `neap,refused`.
    pub refused: Option<&'a str>,
    /// Agents that come with it, as its bundle has them, one behind the other: `neap,agents`.
    pub agents: &'a [u8],
    /// Where the routine lies that confirms it, if it is on trial: `neap,confirm`.
    pub confirm: Option<u64>,
    /// The disk that is left to it, in words of its own: `neap,disk`.
    pub disk: Option<&'a [u64]>,
}

/// The tree with these words, and with `pieces` for the memory of NUMA node 0.
///
/// # Errors
/// What is no tree, or has no such memory.
pub fn tree(tree: &[u8], words: &Words<'_>, pieces: &[Range<u64>]) -> Result<Vec<u8>, Unfit> {
    let fdt = Fdt::new(tree).map_err(|error| Unfit::Tree(error.to_string()))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let cells = |name: &str, otherwise: u32| {
        fdt.root().property(name).and_then(|cells| cells.value_as::<u32>().ok()).unwrap_or(otherwise)
    };
    let (address_cells, size_cells) = (cells("#address-cells", 2), cells("#size-cells", 1));
    let mut reg = Vec::new();
    for piece in pieces {
        push(&mut reg, address_cells, piece.start)?;
        push(&mut reg, size_cells, piece.end - piece.start)?;
    }
    let memory = tree.root.children_mut().find(|node| {
        let node: &DeviceTreeNode = node;
        let is = |name, value: &[u8]| node.property(name).map(|property| property.value() == value);
        is("device_type", b"memory\0") == Some(true) && is("numa-node-id", &[0; 4]) != Some(false)
    });
    let memory = memory.ok_or_else(|| Unfit::Tree("it has no memory on NUMA node 0".to_string()))?;
    set(memory, "reg", reg)?;
    if tree.root.child("chosen").is_none() {
        tree.root.add_child(DeviceTreeNode::new("chosen").map_err(|error| Unfit::Tree(error.to_string()))?);
    }
    let Some(chosen) = tree.root.child_mut("chosen") else {
        return Err(Unfit::Tree("no /chosen".to_string()));
    };
    set(chosen, "bootargs", words.args)?;
    set(chosen, "neap,slot", words.slot)?;
    if let Some(refused) = words.refused {
        set(chosen, "neap,refused", refused)?;
    }
    if !words.agents.is_empty() {
        set(chosen, "neap,agents", words.agents)?;
    }
    if let Some(confirm) = words.confirm {
        set(chosen, "neap,confirm", confirm)?;
    }
    if let Some(disk) = words.disk {
        let bytes: Vec<u8> = disk.iter().flat_map(|word| word.to_be_bytes()).collect();
        set(chosen, "neap,disk", bytes)?;
    }
    Ok(tree.to_dtb())
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) -> Result<(), Unfit> {
    let property = DeviceTreeProperty::new(name, value).map_err(|error| Unfit::Tree(error.to_string()))?;
    node.remove_property(name);
    node.add_property(property);
    Ok(())
}

/// A number in as many cells.
fn push(reg: &mut Vec<u32>, cells: u32, value: u64) -> Result<(), Unfit> {
    match cells {
        2 => reg.extend([(value >> 32) as u32, value as u32]),
        1 if value >> 32 == 0 => reg.push(value as u32),
        _ => return Err(Unfit::Tree(alloc::format!("{value:#x} does not fit {cells} cells"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::single_range_in_vec_init, reason = "memory in one piece is such a list")]

    use neap_hal::board::pci::virtio::Left;
    use neap_hal::board::qemu_virt::Board;

    use super::*;

    const TREE: &[u8] = include_bytes!("../../../hal/tests/data/virt-gicv2.dtb");
    const MEMORY: Range<u64> = 0x4000_0000..0x4800_0000;
    const IMAGE: Range<u64> = 0x401f_f000..0x4036_0000;
    const LEFT: Left =
        Left { notify: 0x3efe_3000, memory: 0x4600_0000, sectors: 1 << 33, writable: [1, 2, 3, 1 << 8] };

    fn image(offset: u64, bytes: u64) -> Vec<u8> {
        let mut image = vec![0; 8192];
        image[8..16].copy_from_slice(&offset.to_le_bytes());
        image[16..24].copy_from_slice(&bytes.to_le_bytes());
        image[56..60].copy_from_slice(&MAGIC);
        image
    }

    #[test]
    fn an_image_lies_where_its_header_says_or_not_at_all() {
        assert_eq!(place(&image(0x1f_f000, 0x16_1000), &MEMORY), Ok(IMAGE));
        assert_eq!(place(&image(0, 1), &MEMORY), Ok(0x4000_0000..0x4000_2000), "no less than what there is");
        assert!(matches!(place(&image(0x1000, 128 << 20), &MEMORY), Err(Unfit::Room { .. })));
        for (offset, bytes) in [(u64::MAX, 1), (0, u64::MAX)] {
            assert_eq!(place(&image(offset, bytes), &MEMORY), Err(Unfit::Header));
        }
        assert_eq!(place(&[0; 8192], &MEMORY), Err(Unfit::Header));
        assert_eq!(place(&image(0, 1)[..63], &MEMORY), Err(Unfit::Header));
    }

    #[test]
    fn the_runtime_gets_what_the_firmware_does_not_keep() {
        let windows = [0x4800_0000..0x4900_0000];
        let pieces = |kept: &[Range<u64>]| pieces(&MEMORY, &windows, &IMAGE, kept);
        assert_eq!(pieces(&[]), Ok(vec![MEMORY]));
        // As AAVMF has it, in any order, and something below the image.
        let kept = [0x43c0_0000..0x43fe_0000, 0x4044_0000..0x4073_0000, 0x4000_0000..0x4000_1000];
        assert_eq!(pieces(&kept), Ok(vec![0x4000_0000..0x4044_0000, 0x43fe_0000..0x4800_0000]));
        assert_eq!(pieces(&[0x4700_0000..0x4701_0000]), Ok(vec![0x4000_0000..0x4700_0000]));
        for (kept, what) in
            [(0x4035_f000..0x4036_0000, "the runtime"), (0x48ff_f000..0x4a00_0000, "a window")]
        {
            assert_eq!(pieces(core::slice::from_ref(&kept)), Err(Unfit::Kept { what, kept }));
        }
    }

    #[test]
    fn the_runtime_reads_what_it_is_told() {
        let words = Words {
            args: "neap.exit=1",
            slot: "A",
            refused: Some("B: rotten"),
            agents: &[1, 2, 3],
            confirm: Some(7 << 12),
            disk: Some(&LEFT.to_words()),
        };
        let pieces = [0x4000_0000..0x4044_0000, 0x43fe_0000..0x4800_0000];
        let tree = tree(TREE, &words, &pieces).unwrap();
        let board = Board::from_tree(&tree).unwrap();
        assert_eq!((&board.memory, board.spare.as_ref()), (&pieces[0], Some(&pieces[1])));
        assert!(board.args.exit);
        assert_eq!(board.confirm, Some(7 << 12));
        assert_eq!(board.disk, Some(LEFT));
        let fdt = Fdt::new(&tree).unwrap();
        let chosen = fdt.root().child("chosen").unwrap();
        let text = |name| chosen.property(name).and_then(|text| text.value_as::<&str>().ok());
        assert_eq!((text("neap,slot"), text("neap,refused")), (Some("A"), Some("B: rotten")));
        let agents = chosen.property("neap,agents").and_then(|agents| agents.value_as::<&[u8]>().ok());
        assert_eq!(agents, Some(&[1, 2, 3][..]));
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for at in [0, 4, 8, 39, TREE.len() / 2] {
            assert!(matches!(tree(&TREE[..at], &Words::default(), &[MEMORY]), Err(Unfit::Tree(_))));
        }
    }
}
