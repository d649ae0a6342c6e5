//! QEMU's `virt` machine, as its device tree describes it.
//!
//! Nothing here is assumed but where the tree is: QEMU puts it at the start of memory for an ELF kernel, and
//! its address into x0 for a Linux image.

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
mod bring_up;
mod tree;

use core::ops::Range;

use heapless::Vec;

use crate::board::Conduit;
use crate::board::bootargs::BootArgs;
use crate::board::gic;
use crate::board::pci::Apertures;
use crate::board::pci::virtio::{Left, QUEUE_BYTES};
use crate::cpu::CORES_MAX;
use crate::cpu::mmu::{Image, Kind, PAGE, Plan, PlanError};

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub use bring_up::{BringUpError, Machine, bring_up};
pub use tree::TreeError;

/// The most windows, and so enclaves: functions of one PCI device.
pub const ENCLAVES_MAX: usize = 8;

/// Where QEMU leaves the tree when it loads an ELF.
pub const TREE_OF_ELF: u64 = 0x4000_0000;

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// Private memory; the image is in it.
    pub memory: Range<u64>,
    /// More of it, above what the firmware keeps: then it is this that is free, and not what follows the image.
    pub spare: Option<Range<u64>>,
    /// What the host sees too, one window an enclave: memory of the NUMA nodes from 1 on, in their order.
    pub windows: Vec<Range<u64>, ENCLAVES_MAX>,
    /// The cores' MPIDR affinities; the first is the one that boots.
    pub cores: Vec<u64, CORES_MAX>,
    /// The interrupt controller.
    pub gic: gic::Layout,
    /// The PL011's registers.
    pub console: Range<u64>,
    /// PCI's configuration space.
    pub ecam: Range<u64>,
    /// PCI's memory space.
    pub apertures: Apertures,
    /// How to reach PSCI.
    pub conduit: Conduit,
    /// The command line.
    pub args: BootArgs,
    /// The routine that confirms an image on trial; none where it is not on trial.
    pub confirm: Option<u64>,
    /// The disk that the loader has left.
    pub disk: Option<Left>,
}

impl Board {
    /// Reads a device tree.
    ///
    /// # Errors
    /// [`TreeError`] names the node and what is wrong with it.
    pub fn from_tree(tree: &[u8]) -> Result<Self, TreeError> {
        tree::read(&tree::open(tree)?)
    }

    /// What to map: `image` with the stacks of all cores, memory around it, the window, the console, the
    /// interrupt controller, PCI's configuration space, and `registers`, of which each is widened to whole pages.
    ///
    /// # Errors
    /// [`PlanError`] names a region that can't be, for instance an image that is not in memory.
    pub fn plan(
        &self,
        image: &Image,
        registers: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<Plan, PlanError> {
        let mut plan = Plan::new();
        plan.add_image(image, self.cores.len())?;
        if self.memory.start < image.text.start {
            plan.add(self.memory.start..image.text.start, Kind::Constants)?;
        }
        plan.add(self.free_memory(image), Kind::Data)?;
        if let Some(routine) = self.confirm {
            plan.add(pages(&(routine..routine + 1)), Kind::Text)?;
        }
        for window in &self.windows {
            plan.add(window.clone(), Kind::Data)?;
        }
        if let Some(disk) = &self.disk {
            plan.add(disk.memory..disk.memory.saturating_add(QUEUE_BYTES as u64), Kind::Data)?;
            plan.add(pages(&(disk.notify..disk.notify.saturating_add(1))), Kind::Registers)?;
        }
        plan.add(pages(&self.console), Kind::Registers)?;
        plan.add(pages(&self.ecam), Kind::Registers)?;
        for block in self.gic.registers().chain(registers) {
            plan.add(pages(&block), Kind::Registers)?;
        }
        Ok(plan)
    }

    /// Private memory that nobody has: above the image.
    pub fn free_memory(&self, image: &Image) -> Range<u64> {
        self.spare.clone().unwrap_or(image.end.next_multiple_of(PAGE)..self.memory.end)
    }
}

fn pages(range: &Range<u64>) -> Range<u64> {
    range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE)
}

/// The device tree's bytes: at `x0`, which is what x0 held at boot, or where QEMU puts it for an ELF.
///
/// # Errors
/// [`TreeError::NoMagic`] and [`TreeError::TooBig`].
///
/// # Safety
/// Both places must be memory that can be read for as long as the image runs and that nobody writes. `x0` may be 0.
pub unsafe fn find_tree(x0: u64) -> Result<&'static [u8], TreeError> {
    /// A flattened tree starts with this, big-endian (Devicetree Specification 0.4 §5.2); its size follows.
    const MAGIC: u32 = 0xd00d_feed;
    /// What QEMU reserves for it, and what the boot protocol of Linux allows.
    const SIZE_MAX: u32 = 2 << 20;

    let address = if x0 != 0 && x0.is_multiple_of(8) { x0 } else { TREE_OF_ELF };
    let start = core::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the caller's promise, for the eight bytes of magic and size; the address is 8-aligned.
    let [magic, size] = unsafe { start.cast::<[u32; 2]>().read() }.map(u32::from_be);
    if magic != MAGIC {
        return Err(TreeError::NoMagic { address });
    }
    if size > SIZE_MAX {
        return Err(TreeError::TooBig { size });
    }
    // SAFETY: the caller's promise, now for as many bytes as the tree says that it has.
    Ok(unsafe { core::slice::from_raw_parts(start, size as usize) })
}

#[cfg(test)]
mod tests;
