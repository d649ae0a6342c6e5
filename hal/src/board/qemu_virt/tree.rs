//! From a flattened device tree to a [`Board`].

use core::ops::Range;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{FromPropertyValue, Node, Property};
use heapless::Vec;

use super::{Board, ENCLAVES_MAX};
use crate::board::Conduit;
use crate::board::bootargs::{BootArgError, BootArgs};
use crate::board::gic;
use crate::board::pci::Apertures;
use crate::board::pci::virtio::Left;
use crate::cpu::CORES_MAX;

/// What is wrong with a device tree. The node is named by what it is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// There is none.
    #[error("no device tree at {address:#x}: start QEMU with -kernel and an ELF, or pass it in x0")]
    NoMagic {
        /// Where it should be.
        address: u64,
    },
    /// Its header says that it is bigger than any.
    #[error("the device tree claims {size} bytes; 2 MiB is the most")]
    TooBig {
        /// What it claims.
        size: u32,
    },
    /// Its structure is broken.
    #[error("the device tree is damaged: {0}")]
    Damaged(dtoolkit::error::FdtErrorKind),
    /// A node that must be there is not.
    #[error("the device tree has no {0}")]
    Missing(&'static str),
    /// A property is absent, or not what it should be.
    #[error("the device tree's {node}: bad or missing `{property}`")]
    Bad {
        /// The node.
        node: &'static str,
        /// Its property.
        property: &'static str,
    },
    /// No memory of NUMA node 1.
    #[error(
        "no window: give QEMU a second memory backend with share=on on NUMA node 1 \
         (-numa node,nodeid=1,memdev=..)"
    )]
    NoWindow,
    /// More memory backends than there can be enclaves.
    #[error("more than {ENCLAVES_MAX} windows: leave out NUMA nodes above {ENCLAVES_MAX}")]
    TooManyWindows,
    /// More cores than the image has stacks for.
    #[error("{0} cores, but the image has stacks for {CORES_MAX}: lower -smp")]
    TooManyCores(usize),
    /// An interrupt controller that no driver knows.
    #[error("no interrupt controller that is known: use gic-version=2 or gic-version=3")]
    UnknownController,
    /// The command line.
    #[error(transparent)]
    Argument(#[from] BootArgError),
}

/// Looks all of a tree over. That takes most of the instructions of a boot, so it is done once.
#[inline(never)]
pub(super) fn open(bytes: &[u8]) -> Result<Fdt<'_>, TreeError> {
    Fdt::new(bytes).map_err(|error| TreeError::Damaged(error.kind))
}

#[inline(never)]
pub(super) fn read(tree: &Fdt<'_>) -> Result<Board, TreeError> {
    let (root, chosen) = (tree.root(), chosen(tree));
    let (memory, spare, windows) = memories(root)?;
    let pcie = compatible(root, "pci-host-ecam-generic").ok_or(TreeError::Missing("PCI host"))?;
    let console = compatible(root, "arm,pl011").ok_or(TreeError::Missing("PL011 console"))?;
    Ok(Board {
        memory,
        spare,
        windows,
        confirm: value(chosen.as_ref(), "neap,confirm"),
        disk: value(chosen.as_ref(), "neap,disk").and_then(Left::from_bytes),
        cores: cores(root)?,
        gic: controller(root)?,
        console: register_block(console, 0, "PL011 console")?,
        ecam: register_block(pcie, 0, "PCI host")?,
        apertures: apertures(pcie)?,
        conduit: conduit(root)?,
        args: arguments(chosen.as_ref())?,
    })
}

fn compatible<'a>(parent: FdtNode<'a>, with: &str) -> Option<FdtNode<'a>> {
    parent.children().find(|node| is_compatible(node, with))
}

fn is_compatible(node: &FdtNode<'_>, with: &str) -> bool {
    node.compatible().is_some_and(|mut names| names.any(|name| name == with))
}

fn text<'a>(node: &FdtNode<'a>, property: &str) -> Option<&'a str> {
    node.property(property)?.value_as().ok()
}

/// The `index`th entry of `reg`, which must not be empty.
fn register_block(node: FdtNode<'_>, index: usize, name: &'static str) -> Result<Range<u64>, TreeError> {
    let bad = TreeError::Bad { node: name, property: "reg" };
    let reg = node.reg().ok().flatten().and_then(|mut reg| reg.nth(index));
    let block = reg.and_then(|reg| {
        let start = reg.address::<u64>().ok()?;
        let size = reg.size::<u64>().ok()?;
        (size > 0).then_some(start..start.checked_add(size)?)
    });
    block.ok_or(bad)
}

/// Private memory: what the image is in, and what the loader left beside what the firmware keeps; and the windows.
#[expect(clippy::type_complexity, reason = "three things, named where they go")]
fn memories(
    root: FdtNode<'_>,
) -> Result<(Range<u64>, Option<Range<u64>>, Vec<Range<u64>, ENCLAVES_MAX>), TreeError> {
    let (mut private, mut spare) = (None, None);
    // In the order of their nodes, whatever the tree's.
    let mut found: Vec<(u32, Range<u64>), ENCLAVES_MAX> = Vec::new();
    for node in root.children() {
        if text(&node, "device_type") != Some("memory") {
            continue;
        }
        let numa_node = match node.property("numa-node-id") {
            None => 0,
            Some(property) => property
                .value_as::<u32>()
                .map_err(|_| TreeError::Bad { node: "memory", property: "numa-node-id" })?,
        };
        let range = register_block(node, 0, "memory")?;
        if numa_node == 0 {
            private = Some(range);
            spare = register_block(node, 1, "memory").ok();
        } else {
            let place = found.iter().take_while(|(other, _)| *other < numa_node).count();
            found.insert(place, (numa_node, range)).map_err(|_| TreeError::TooManyWindows)?;
        }
    }
    let windows: Vec<_, ENCLAVES_MAX> = found.into_iter().map(|(_, range)| range).collect();
    if windows.is_empty() {
        return Err(TreeError::NoWindow);
    }
    Ok((private.ok_or(TreeError::Missing("memory on NUMA node 0"))?, spare, windows))
}

fn cores(root: FdtNode<'_>) -> Result<Vec<u64, CORES_MAX>, TreeError> {
    let cpus = root.child("cpus").ok_or(TreeError::Missing("/cpus"))?;
    let is_core = |node: &FdtNode<'_>| text(node, "device_type") == Some("cpu");
    let mut cores = Vec::new();
    for node in cpus.children().filter(is_core) {
        let mpidr = node
            .reg()
            .ok()
            .flatten()
            .and_then(|mut reg| reg.next()?.address::<u64>().ok())
            .ok_or(TreeError::Bad { node: "cpu", property: "reg" })?;
        cores.push(mpidr).map_err(|_| TreeError::TooManyCores(cpus.children().filter(is_core).count()))?;
    }
    if cores.is_empty() {
        return Err(TreeError::Missing("cpu"));
    }
    Ok(cores)
}

fn controller(root: FdtNode<'_>) -> Result<gic::Layout, TreeError> {
    const NAME: &str = "interrupt controller";
    let node = root
        .children()
        .find(|node| node.property("interrupt-controller").is_some() && is_gic(node))
        .ok_or(TreeError::UnknownController)?;
    let first = register_block(node, 0, NAME)?;
    let second = register_block(node, 1, NAME)?;
    if is_compatible(&node, "arm,gic-v3") {
        return Ok(gic::Layout::V3 { distributor: first, redistributors: second });
    }
    let message_frame = compatible(node, "arm,gic-v2m-frame")
        .map(|frame| register_block(frame, 0, "GICv2m frame"))
        .transpose()?;
    Ok(gic::Layout::V2 { distributor: first, cpu_interface: second, message_frame })
}

fn is_gic(node: &FdtNode<'_>) -> bool {
    ["arm,gic-v3", "arm,cortex-a15-gic", "arm,gic-400"].iter().any(|name| is_compatible(node, name))
}

/// The host bridge's memory ranges, from CPU addresses; on this machine bus addresses are the same.
fn apertures(pcie: FdtNode<'_>) -> Result<Apertures, TreeError> {
    let bad = TreeError::Bad { node: "PCI host", property: "ranges" };
    let (mut low, mut high) = (None, None);
    for range in pcie.ranges().ok().flatten().ok_or(bad.clone())? {
        // Three cells (IEEE 1275 PCI binding): the space in bits 25:24 of the first, then the bus address.
        let Ok(child) = range.child_bus_address::<u128>() else {
            return Err(bad);
        };
        let (Ok(start), Ok(size)) = (range.parent_bus_address::<u64>(), range.length::<u64>()) else {
            return Err(bad);
        };
        let space = child >> 64 & 0x0300_0000;
        let end = start.checked_add(size).ok_or(bad.clone())?;
        if space >= 0x0200_0000 && child as u64 != start {
            return Err(bad);
        }
        match space {
            0x0200_0000 if end <= 1 << 32 => low = Some(start..end),
            0x0300_0000 => high = Some(start..end),
            _ => {}
        }
    }
    Ok(Apertures { low: low.ok_or(bad)?, high })
}

/// Where what is chosen for this boot stands. Finding it takes a walk, so it is done once for all that is read there.
pub(super) fn chosen<'a>(tree: &Fdt<'a>) -> Option<FdtNode<'a>> {
    tree.root().child("chosen")
}

/// A property, if it is there and of this form.
pub(super) fn value<'a, T: FromPropertyValue<'a>>(node: Option<&FdtNode<'a>>, what: &str) -> Option<T> {
    node?.property(what)?.value_as().ok()
}

fn conduit(root: FdtNode<'_>) -> Result<Conduit, TreeError> {
    let psci = root.child("psci").ok_or(TreeError::Missing("/psci"))?;
    match text(&psci, "method") {
        Some("hvc") => Ok(Conduit::Hvc),
        Some("smc") => Ok(Conduit::Smc),
        _ => Err(TreeError::Bad { node: "/psci", property: "method" }),
    }
}

fn arguments(chosen: Option<&FdtNode<'_>>) -> Result<BootArgs, TreeError> {
    let Some(property) = chosen.and_then(|chosen| chosen.property("bootargs")) else {
        return Ok(BootArgs::default());
    };
    let line =
        property.value_as::<&str>().map_err(|_| TreeError::Bad { node: "/chosen", property: "bootargs" })?;
    Ok(BootArgs::parse(line)?)
}
