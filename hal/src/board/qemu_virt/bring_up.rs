//! From the boot code's early map to a machine that is ready: tree, console, PCI, final map, interrupts, timer.

use core::ptr::NonNull;

use heapless::{String, Vec};
use safe_mmio::UniqueMmioPointer;

use super::tree::{self, chosen, value};
use super::{Board, TreeError, find_tree};
use crate::board::console;
use crate::board::gic::{CoreInterface, Gic, GicError, MessageFrame};
use crate::board::pci::ecam::{BUS_SIZE, Ecam};
use crate::board::pci::msix_table::{self, Entry};
use crate::board::pci::{self, Allocator, Ivshmem, PciError};
use crate::cpu::boot;
use crate::cpu::mmu::{self, PlanError, Root};
use crate::cpu::timer::{BadFrequency, Timer};
use crate::say;
use crate::soc::msix::DoorbellPage;

/// Where every `virt` has its PL011: so that a tree which can't be read can be complained about.
const CONSOLE: usize = 0x0900_0000;
/// The most ivshmem functions that are set up: one for each agent's core and one to spare.
pub const FUNCTIONS_MAX: usize = 16;

/// The longest text of what booted, in bytes.
pub const ORIGIN_BYTES_MAX: usize = 512;

/// A machine that is ready, seen from its first core.
pub struct Machine {
    /// What the tree said.
    pub board: Board,
    /// The map, for the other cores.
    pub map: Root,
    /// The interrupt controller.
    pub gic: Gic,
    /// The first core's half of it.
    pub interface: CoreInterface,
    /// What raises interrupts for PCI functions; none on GICv3.
    pub message_frame: Option<MessageFrame>,
    /// The ivshmem functions, their doorbells and MSI-X tables mapped.
    pub functions: Vec<Ivshmem, FUNCTIONS_MAX>,
    /// PCI's configuration space.
    pub configuration: Ecam,
    /// The timer, disarmed.
    pub timer: Timer,
    /// What the loader says of what it booted: the slot, and behind a line feed what it refused. Empty without one.
    pub origin: String<ORIGIN_BYTES_MAX>,
    /// The agents that the loader hands on. They lie below the image, where nobody writes.
    pub agents: &'static [u8],
    /// The functions whose doorbells have been taken, a bit each.
    doorbells_taken: u32,
}

impl Machine {
    /// The doorbells of the `index`th ivshmem function: once, `None` the second time or when there is none.
    pub fn take_doorbells(&mut self, index: usize) -> Option<DoorbellPage<'static>> {
        let function = self.functions.get(index)?;
        if self.doorbells_taken >> index & 1 == 1 {
            return None;
        }
        let registers =
            NonNull::new(core::ptr::with_exposed_provenance_mut(function.doorbell_page as usize))?;
        self.doorbells_taken |= 1 << index;
        // SAFETY: an ivshmem function's BAR 0, assigned and mapped as registers by `bring_up`, and given out once.
        Some(DoorbellPage::new(unsafe { UniqueMmioPointer::new(registers) }))
    }

    /// Lets others raise interrupts through the `index`th ivshmem function: its vector *n*, if it is `wanted`, becomes the
    /// message frame's *n*th interrupt. Returns for how many vectors; 0 where no frame is (GICv3). Whoever may ring the
    /// function, its own agent too, can raise these and no others.
    ///
    /// # Errors
    /// As [`pci::enable_msix`].
    pub fn receive_vectors(&mut self, index: usize, wanted: impl Fn(u16) -> bool) -> Result<u16, PciError> {
        let (Some(frame), Some(function)) = (self.message_frame, self.functions.get(index)) else {
            return Ok(0);
        };
        let count = function.vectors.min(frame.count.try_into().unwrap_or(u16::MAX));
        let table = core::ptr::with_exposed_provenance_mut::<Entry>(function.msix_table as usize);
        let mut aimed = 0;
        for vector in 0..count {
            if let Some(entry) = NonNull::new(table.wrapping_add(usize::from(vector))) {
                // SAFETY: `assign` checked that the table has as many entries; `bring_up` mapped it as registers; `&mut
                // self` keeps other users away, and there are no others.
                let entry = unsafe { UniqueMmioPointer::new(entry) };
                if wanted(vector) {
                    msix_table::aim(entry, frame.address, frame.first + u32::from(vector));
                    aimed += 1;
                } else {
                    msix_table::close(entry);
                }
            }
        }
        pci::enable_msix(&mut self.configuration, function.address, true)?;
        Ok(aimed)
    }
}

/// Why a machine can't be brought up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BringUpError {
    /// The device tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The ECAM is smaller than a bus.
    #[error("PCI's configuration space holds less than one bus")]
    SmallEcam,
    /// Too many ivshmem functions.
    #[error("more than {FUNCTIONS_MAX} ivshmem functions: leave some out")]
    TooManyFunctions,
    /// The map.
    #[error(transparent)]
    Map(#[from] PlanError),
    /// The interrupt controller.
    #[error(transparent)]
    Gic(#[from] GicError),
    /// The timer.
    #[error(transparent)]
    Timer(#[from] BadFrequency),
}

/// Brings the machine up. The console prints from here on, even when this fails.
///
/// # Errors
/// [`BringUpError`] names what is wrong with the machine.
///
/// # Safety
/// Once, on the first core, with what `neap_primary` was given: the early map is on, and nobody uses a device.
#[inline(never)]
pub unsafe fn bring_up(x0: u64) -> Result<Machine, BringUpError> {
    if let Some(registers) = NonNull::new(core::ptr::with_exposed_provenance_mut(CONSOLE)) {
        // SAFETY: a `virt` has a PL011 there, nobody has opened it yet, and both maps have it as registers (the final
        // one because the tree names it; a tree that names another is not this board's and is refused below).
        unsafe { console::open(registers) };
    }
    // SAFETY: the boot protocol's promise about x0; the start of memory is readable on this board.
    let tree = tree::open(unsafe { find_tree(x0) }?)?;
    let chosen = chosen(&tree);
    let mut origin = String::new();
    // No name is cut out of another here: what says that a cut fails is among the image's largest code.
    for (what, name, before) in [("neap,slot", "slot", ""), ("neap,refused", "refused", "\n")] {
        if let Some(words) = value::<&str>(chosen.as_ref(), what) {
            say!("neap: {name} {words}");
            // What has no room is cut.
            let _ = before.chars().chain(words.chars()).try_for_each(|char| origin.push(char));
        }
    }
    // A tree above the image lies in memory that will be others'.
    let is_kept = |agents: &&[u8]| (agents.as_ptr_range().end as u64) <= boot::image().text.start;
    let agents = value(chosen.as_ref(), "neap,agents").filter(is_kept).unwrap_or_default();
    let board = tree::read(&tree)?;
    if board.console.start != CONSOLE as u64 {
        return Err(TreeError::Missing("PL011 console at 0x900_0000").into());
    }

    let bus = board.ecam.start..board.ecam.start + BUS_SIZE.min(board.ecam.end - board.ecam.start);
    // SAFETY: the tree's ECAM, which early and final map have as registers, and which only this instance uses.
    let mut configuration = unsafe { Ecam::new(&bus) }.ok_or(BringUpError::SmallEcam)?;
    let found: Vec<pci::Address, FUNCTIONS_MAX> = {
        let mut found = Vec::new();
        for function in pci::find_ivshmem(&configuration) {
            found.push(function).map_err(|_| BringUpError::TooManyFunctions)?;
        }
        found
    };
    let mut allocator = Allocator::new(&board.apertures);
    let mut functions = Vec::new();
    for function in found {
        let function = pci::assign(&mut configuration, &mut allocator, function)?;
        functions.push(function).map_err(|_| BringUpError::TooManyFunctions)?;
    }

    let blocks = functions.iter().flat_map(|function: &Ivshmem| {
        [
            function.doorbell_page..function.doorbell_page + mmu::PAGE,
            function.msix_table..function.msix_table + function.msix_table_size,
        ]
    });
    let map = mmu::build(&board.plan(&boot::image(), blocks)?)?;
    // SAFETY: the plan has the image, all stacks, memory, and every register block that is used from here on.
    unsafe { map.activate() };

    // SAFETY: the tree's controller, mapped as registers, and this is the only driver.
    let gic = unsafe { Gic::new(&board.gic, board.cores.len()) }?;
    let interface = gic.join()?;
    // SAFETY: as above.
    let message_frame = unsafe { MessageFrame::find(&board.gic) };
    Ok(Machine {
        timer: Timer::new()?,
        board,
        map,
        gic,
        interface,
        message_frame,
        functions,
        configuration,
        origin,
        agents,
        doorbells_taken: 0,
    })
}
