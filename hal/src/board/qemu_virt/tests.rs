//! The trees that QEMU 7.2 wrote for four cores, 128 MiB of memory and 16 MiB of window, whole and broken.
//!
//! Made with `-M virt,gic-version=G,dumpdtb=FILE -cpu neoverse-n1 -smp 4 -m 144M -numa …
//! -append "console=x neap.idle=poll:64 neap.exit=1"`, cut to their contents.

use core::num::NonZeroU32;

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::*;
use crate::board::bootargs::{BootArgError, Idle};

const GICV2: &[u8] = include_bytes!("../../../tests/data/virt-gicv2.dtb");
const GICV3: &[u8] = include_bytes!("../../../tests/data/virt-gicv3.dtb");

fn with(edit: impl FnOnce(&mut DeviceTree)) -> Result<Board, TreeError> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(GICV2).unwrap());
    edit(&mut tree);
    Board::from_tree(&tree.to_dtb())
}

fn node<'a>(tree: &'a mut DeviceTree, path: &str) -> &'a mut DeviceTreeNode {
    tree.find_node_mut(path).unwrap()
}

#[test]
fn a_machine_with_gicv2_is_read_whole() {
    let board = Board::from_tree(GICV2).unwrap();
    assert_eq!(board.memory, 0x4000_0000..0x4800_0000);
    assert_eq!(board.windows.as_slice(), core::slice::from_ref(&(0x4800_0000..0x4900_0000)));
    assert_eq!(board.cores, [0, 1, 2, 3]);
    assert_eq!(
        board.gic,
        gic::Layout::V2 {
            distributor: 0x0800_0000..0x0801_0000,
            cpu_interface: 0x0801_0000..0x0802_0000,
            message_frame: Some(0x0802_0000..0x0802_1000),
        }
    );
    assert_eq!(board.console, 0x0900_0000..0x0900_1000);
    assert_eq!(board.ecam, 0x40_1000_0000..0x40_2000_0000);
    assert_eq!(
        board.apertures,
        Apertures { low: 0x1000_0000..0x3eff_0000, high: Some(0x80_0000_0000..0x100_0000_0000) }
    );
    assert_eq!(board.conduit, Conduit::Hvc);
    assert_eq!(
        board.args,
        BootArgs { idle: Idle::Poll(NonZeroU32::new(64).unwrap()), exit: true, ..BootArgs::default() }
    );
}

#[test]
fn a_machine_with_gicv3_has_redistributors_and_no_message_frame() {
    assert_eq!(
        Board::from_tree(GICV3).unwrap().gic,
        gic::Layout::V3 { distributor: 0x0800_0000..0x0801_0000, redistributors: 0x080a_0000..0x0900_0000 }
    );
}

#[test]
fn what_is_missing_is_named() {
    let removals: [(&str, &str); 5] = [
        ("intc@8000000", "use gic-version=2 or gic-version=3"),
        ("pl011@9000000", "PL011 console"),
        ("pcie@10000000", "PCI host"),
        ("psci", "/psci"),
        ("cpus", "/cpus"),
    ];
    for (name, culprit) in removals {
        let error = with(|tree| {
            tree.root.remove_child(name).unwrap();
        })
        .unwrap_err();
        assert!(error.to_string().contains(culprit), "{name}: {error}");
    }
    let no_window = with(|tree| {
        tree.root.remove_child("memory@48000000").unwrap();
    });
    assert_eq!(no_window, Err(TreeError::NoWindow));
    let no_memory = with(|tree| {
        tree.root.remove_child("memory@40000000").unwrap();
    });
    assert_eq!(no_memory, Err(TreeError::Missing("memory on NUMA node 0")));
    let no_arguments = with(|tree| {
        tree.root.remove_child("chosen").unwrap();
    });
    assert_eq!(no_arguments.unwrap().args, BootArgs::default());
}

#[test]
fn properties_that_are_wrong_are_named() {
    type Case = (&'static str, &'static str, &'static [u8], &'static str);
    let cases: [Case; 8] = [
        ("/memory@48000000", "reg", &[0; 16], "memory: bad or missing `reg`"),
        ("/memory@48000000", "reg", &[0xff; 16], "memory: bad or missing `reg`"),
        ("/memory@48000000", "reg", &[1; 7], "memory: bad or missing `reg`"),
        ("/memory@48000000", "numa-node-id", &[1], "`numa-node-id`"),
        ("/psci", "method", b"svc\0", "`method`"),
        ("/pcie@10000000", "ranges", &[1; 5], "PCI host: bad or missing `ranges`"),
        ("/pcie@10000000", "ranges", &[], "PCI host: bad or missing `ranges`"),
        ("/chosen", "bootargs", b"neap.idle=nap\0", "neap.idle=nap"),
    ];
    for (path, property, value, culprit) in cases {
        let error = with(|tree| {
            let node = node(tree, path);
            node.remove_property(property).unwrap();
            node.add_property(DeviceTreeProperty::new(property, value).unwrap());
        })
        .unwrap_err();
        assert!(error.to_string().contains(culprit), "{path} {property}: {error}");
    }
}

#[test]
fn more_cores_than_stacks_are_refused_and_counted() {
    let error = with(|tree| {
        let cpus = node(tree, "/cpus");
        for extra in 0..CORES_MAX {
            let mut copy = DeviceTreeNode::new(std::format!("cpu@{:x}", 0x100 + extra)).unwrap();
            copy.add_property(DeviceTreeProperty::new("device_type", "cpu").unwrap());
            copy.add_property(DeviceTreeProperty::new("reg", 0x100 + extra as u32).unwrap());
            cpus.add_child(copy);
        }
    })
    .unwrap_err();
    assert_eq!(error, TreeError::TooManyCores(CORES_MAX + 4));
}

#[test]
fn what_a_loader_left_is_free_and_its_routine_can_be_executed() {
    const ROUTINE: u64 = 0x43c0_0000;
    let board = with(|tree| {
        let memory = node(tree, "/memory@40000000");
        let pieces = [0x4000_0000_u64, 0x44_0000, 0x4400_0000, 0x400_0000];
        let cells: std::vec::Vec<u32> =
            pieces.iter().flat_map(|word| [(word >> 32) as u32, *word as u32]).collect();
        memory.property_mut("reg").unwrap().set_value(cells.as_slice());
        node(tree, "/chosen").add_property(DeviceTreeProperty::new("neap,confirm", ROUTINE).unwrap());
    })
    .unwrap();
    let image = Image {
        text: 0x4020_0000..0x4020_8000,
        rodata: 0x4020_8000..0x4020_a000,
        data: 0x4020_a000..0x4020_c000,
        stacks: 0x4021_0000,
        end: 0x4031_0000,
    };
    assert_eq!(board.free_memory(&image), 0x4400_0000..0x4800_0000);
    let plan = board.plan(&image, None).unwrap();
    let kinds = [ROUTINE - 1, ROUTINE, ROUTINE + 4095, ROUTINE + 4096, 0x4031_0000, 0x4400_0000];
    let kinds = kinds.map(|address| plan.kind_at(address));
    assert_eq!(kinds, [None, Some(Kind::Text), Some(Kind::Text), None, None, Some(Kind::Data)]);
}

#[test]
fn unknown_words_of_ours_stop_the_boot() {
    let error = with(|tree| {
        let chosen = node(tree, "/chosen");
        chosen.remove_property("bootargs");
        chosen.add_property(DeviceTreeProperty::new("bootargs", "neap.speed=11").unwrap());
    })
    .unwrap_err();
    assert!(matches!(error, TreeError::Argument(BootArgError::UnknownKey(_))));
}

#[test]
fn damage_is_an_error_or_another_tree_and_never_a_panic() {
    // Every byte in turn, with three kinds of damage each.
    for at in 0..GICV2.len() {
        for damage in [0x01, 0x80, 0xff] {
            let mut tree = GICV2.to_vec();
            tree[at] ^= damage;
            let _ = Board::from_tree(&tree);
        }
    }
    for len in (0..GICV2.len()).step_by(61) {
        assert!(Board::from_tree(&GICV2[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn the_tree_is_found_by_its_magic() {
    #[repr(align(8))]
    struct Aligned([u8; 64]);
    let find = |head: [u8; 8]| {
        let mut bytes = Aligned([0; 64]);
        bytes.0[..8].copy_from_slice(&head);
        let address = (&raw const bytes).expose_provenance() as u64;
        // SAFETY: 64 aligned bytes, which nobody writes while they are looked at.
        unsafe { find_tree(address) }.map(<[u8]>::len)
    };
    assert!(matches!(find([0; 8]), Err(TreeError::NoMagic { .. })));
    assert_eq!(find([0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 64]), Ok(64));
    assert_eq!(find([0xd0, 0x0d, 0xfe, 0xed, 0x10, 0, 0, 64]), Err(TreeError::TooBig { size: 0x1000_0040 }));
}

#[test]
fn the_plan_keeps_the_guard_pages_out_and_the_image_unwritten() {
    let board = Board::from_tree(GICV2).unwrap();
    let image = Image {
        text: 0x4020_0000..0x4020_8000,
        rodata: 0x4020_8000..0x4020_a000,
        data: 0x4020_a000..0x4020_c000,
        stacks: 0x4021_0000,
        end: 0x4031_0000,
    };
    let doorbell = 0x1000_0000..0x1000_0100;
    let plan = board.plan(&image, Some(doorbell)).unwrap();
    let kinds = [
        (0x4000_0000, Some(Kind::Constants)),
        (0x4020_0000, Some(Kind::Text)),
        (0x4020_8000, Some(Kind::Constants)),
        (0x4020_a000, Some(Kind::Data)),
        (0x4020_c000, None),
        (0x4021_0000, None),
        (0x4021_1000, Some(Kind::Data)),
        (0x4021_4000, None),
        (0x4021_5000, Some(Kind::Data)),
        (0x4021_ffff, Some(Kind::Data)),
        (0x4022_0000, None),
        (0x4031_0000, Some(Kind::Data)),
        (0x47ff_ffff, Some(Kind::Data)),
        (0x4800_0000, Some(Kind::Data)),
        (0x4900_0000, None),
        (0x0900_0000, Some(Kind::Registers)),
        (0x0802_0040, Some(Kind::Registers)),
        (0x1000_0fff, Some(Kind::Registers)),
        (0x1000_1000, None),
    ];
    for (address, kind) in kinds {
        assert_eq!(plan.kind_at(address), kind, "{address:#x}");
    }
    let in_the_window = 0x4800_0000..0x4800_1000;
    assert!(matches!(board.plan(&image, Some(in_the_window)), Err(PlanError::Overlap { .. })));
}
