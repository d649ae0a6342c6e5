//! From UEFI to the runtime.
//!
//! 1. What an image is, which slot is booted and what the runtime is handed are the library's; here is what UEFI knows.
//! 2. That a slot is tried is on the disk before anything of it is entered.
//! 3. What can't be booted says why, and a trial that fails here ends in a reset, which boots the other slot.

mod acpi;
mod confirm;
mod disk;
mod trouble;
mod watchdog;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use ed25519_dalek::VerifyingKey;
use neap_abi::slots::{Slot, State};
use neap_hal::board::pci::ecam::Ecam;
use neap_hal::board::pci::virtio::{self, Left, QUEUE_BYTES, REGISTERS_BYTES};
use neap_hal::board::pci::{Address, silence};
use neap_hal::board::qemu_virt::{Board, find_tree};
use neap_hal::cpu::loader;
use neap_hal::cpu::mmu::PAGE;
use neap_loader::bound::KEY_BYTES;
use neap_loader::handover::{self, Words};
use neap_loader::image::{PartKind, Refusal, Verified};
use neap_loader::keys::trusted;
use neap_loader::slots::{self, Choice};
use uefi::boot::{self, AllocateType, MemoryType};
use uefi::mem::memory_map::MemoryMap;
use uefi::runtime::{self, ResetType};
use uefi::{Guid, Status, guid, println};

use disk::{Disk, Leaving};
use trouble::Trouble;
use watchdog::Watchdog;

/// The board that this loader is for, as manifests name it.
const BOARD: &str = "qemu_virt";
/// The device tree in UEFI's configuration table (Embedded Base Boot Requirements).
const TREE: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");
/// How long a trouble stays readable before the firmware goes on, in seconds.
const READ_S: u64 = 3;

macro_rules! say {
    ($($words:tt)*) => { println!("neap loader: {}", format_args!($($words)*)) };
}

/// The loader, from UEFI's call on. It returns if it boots nothing.
pub fn run() -> Status {
    if let Err(error) = uefi::helpers::init() {
        return error.status();
    }
    match load() {
        Ok(never) => match never {},
        Err(trouble) => {
            say!("{trouble}");
            boot::stall(Duration::from_secs(READ_S));
            Status::LOAD_ERROR
        }
    }
}

/// What is never there.
enum Never {}

/// What is booted.
struct Chosen {
    /// Where it came from, in words.
    slot: String,
    /// What confirms it, if it is on trial.
    trial: Option<confirm::Ticket>,
    refused: Option<String>,
    image: Vec<u8>,
    /// What can be left to it of the disk that it came from.
    disk: Option<Leaving>,
}

fn load() -> Result<Never, Trouble> {
    let tree = tree()?;
    let board = Board::from_tree(tree)?;
    claim_windows(&board)?;
    let chosen = match disk::bound()? {
        Some(bound) => taken(bound).map_err(Trouble::Bound)?,
        None => choose(&Disk::find()?)?,
    };
    let trouble = match enter(&board, tree, &chosen) {
        Ok(never) => match never {},
        Err(trouble) => trouble,
    };
    if chosen.trial.is_some() {
        // It has had its one chance.
        say!("slot {}: {trouble}", chosen.slot);
        boot::stall(Duration::from_secs(READ_S));
        runtime::reset(ResetType::COLD, Status::LOAD_ERROR, None);
    }
    Err(trouble)
}

/// The image that is bound into the loader. There is no other, so it is not on trial, and no version is too old.
fn taken(bound: &[u8]) -> Result<Chosen, Refusal> {
    let there = bound.len() as u64;
    let (key, image) =
        bound.split_first_chunk::<KEY_BYTES>().ok_or(Refusal::Length { said: KEY_BYTES as u64, there })?;
    let key = VerifyingKey::from_bytes(key).map_err(|_| Refusal::Signature)?;
    let good = Verified::check(image, &[key])?.for_board(BOARD, 0)?;
    say!("booting the image that is bound into this application");
    Ok(Chosen {
        slot: "none, bound".to_string(),
        trial: None,
        refused: None,
        image: good.bytes().to_vec(),
        disk: None,
    })
}

/// Chooses a slot, and writes to the disk that it is tried.
fn choose(disk: &Disk) -> Result<Chosen, Trouble> {
    let text = disk::keys()?;
    let mut keys = Vec::new();
    for key in trusted(&text) {
        match key {
            Ok(key) => keys.push(key),
            Err(line) => say!("line {line} of \\EFI\\NEAP\\KEYS is no key"),
        }
    }
    let mut copies = disk.copies()?;
    let mut read: [Option<Vec<u8>>; 2] = [None, None];
    let mut check = |slot: Slot, least: u32| -> Result<u32, Refusal> {
        let bytes = disk.slot(slot).map_err(|status| Refusal::Unreadable { why: status.to_string() })?;
        let good = Verified::check(&bytes, &keys)?.for_board(BOARD, least)?;
        let version = good.manifest.security_version;
        read[slot as usize] = Some(bytes);
        Ok(version)
    };
    let State { trial, is_tried, security_version: least, .. } = copies.state;
    if let Some(slot) = trial.filter(|_| is_tried)
        && confirm::holds(&confirm::ticket(disk.id(), copies.number()))
        && let Ok(version) = check(slot, least)
    {
        let state = copies.state.confirmed(version);
        disk.write(&mut copies, state)?;
        say!("slot {slot} has confirmed itself, and stays");
    }
    confirm::forget();
    let mut versions = [0; 2];
    let choice = slots::choose(copies.state, |slot, least| {
        versions[slot as usize] = check(slot, least)?;
        Ok(())
    });
    let Choice { slot, on_trial, write, refused } = choice?;
    let refused = refused.map(|(slot, why)| format!("{slot}: {why}"));
    let trial = if on_trial { ", on trial" } else { "" };
    match &refused {
        Some(refused) => say!("slot {}; booting slot {slot}{trial}", refused.replacen(": ", " refused: ", 1)),
        None => say!("booting slot {slot}{trial}"),
    }
    if let Some(state) = write {
        disk.write(&mut copies, state)?;
    }
    let image = read[slot as usize].take().unwrap_or_default();
    // Nothing is written before it is confirmed, and so it is that state which has to stay.
    let lasting = if on_trial { copies.state.confirmed(versions[slot as usize]) } else { copies.state };
    let left = disk.leaving(slot, lasting);
    let slot = format!("{slot}{trial}");
    let trial = on_trial.then(|| confirm::ticket(disk.id(), copies.number()));
    Ok(Chosen { slot, trial, refused, image, disk: left })
}

/// Lays the image and its tree out, leaves the firmware, and enters it.
fn enter(board: &Board, tree: &[u8], chosen: &Chosen) -> Result<Never, Trouble> {
    // It was checked when it was chosen; this finds its parts again.
    let (manifest, _) =
        neap_loader::image::Manifest::alleged(&chosen.image).map_err(|_| handover::Unfit::Header)?;
    let parts = |kind| {
        let parts = manifest.parts.iter().filter(move |part| part.kind == kind);
        parts.filter_map(|part| chosen.image.get(part.offset as usize..)?.get(..part.bytes as usize))
    };
    let runtime = parts(PartKind::Runtime).next().ok_or(handover::Unfit::Header)?;
    let agents = parts(PartKind::Agent).collect::<Vec<_>>().concat();
    let image = handover::place(runtime, &board.memory)?;
    claim(&image, "the runtime's place")?;
    // SAFETY: claimed, and so nobody else's.
    unsafe { put(runtime, image.start) };

    let mut dog = if chosen.trial.is_some() { Watchdog::find() } else { None };
    let confirm = if let Some(ticket) = &chosen.trial {
        if dog.is_none() {
            say!("no i6300esb watchdog: an image that hangs stays until somebody resets the machine");
        }
        let gibs = memory_of(|_| true)?;
        let memory = |gib| gibs.iter().any(|range| range.start >> 30 <= gib && gib <= (range.end - 1) >> 30);
        let end = dog.as_ref().map(|dog| dog.end(board.ecam.start));
        Some(confirm::leave(ticket, end, memory)?)
    } else {
        None
    };

    let kept = memory_of(|kind| !is_left(kind))?;
    let pieces = handover::pieces(&board.memory, &board.windows, &image, &kept)?;
    let Chosen { slot, refused, .. } = chosen;
    let disk = match &chosen.disk {
        Some(leaving) => leave(board, leaving)?,
        None => None,
    };
    let left = disk.as_ref().map(|(_, _, left)| left.to_words());
    let words = Words {
        args: &manifest.args,
        slot,
        refused: refused.as_deref(),
        agents: &agents,
        confirm,
        disk: left.as_ref().map(<[u64; _]>::as_slice),
    };
    let tree = handover::tree(tree, &words, &pieces)?;
    // The runtime has to take it; if not, its words are better read here.
    Board::from_tree(&tree)?;
    let place = boot::allocate_pages(
        AllocateType::MaxAddress(image.start - 1),
        MemoryType::LOADER_DATA,
        tree.len().div_ceil(PAGE as usize),
    );
    let place = place.map_err(|error| Trouble::Memory { what: "the device tree", status: error.status() })?;
    let place = place.as_ptr().expose_provenance() as u64;
    // SAFETY: just allocated.
    unsafe { put(&tree, place) };

    let routine = confirm.map(|routine| routine..routine + PAGE);
    let queue = disk.as_ref().map(|(_, _, left)| left.memory..left.memory + QUEUE_BYTES as u64);
    let written: Vec<_> =
        [image.clone(), place..place + tree.len() as u64].into_iter().chain(routine).chain(queue).collect();
    if let Some(dog) = &mut dog
        && let Err(error) = dog.arm()
    {
        say!("the watchdog can't be armed: {}", error.status());
    }
    drop(dog);
    // SAFETY: no protocol is open, and what follows uses none and allocates nothing.
    let _ = unsafe { boot::exit_boot_services(None) };
    // SAFETY: the tree's own configuration space, which the firmware has mapped and does not use any more.
    if let Some(mut bus) = unsafe { Ecam::new(&board.ecam) } {
        silence(&mut bus);
        if let Some((function, found, left)) = &disk {
            // SAFETY: `leave` has made the places that it asks for, and the firmware's driver has let go of it.
            unsafe { virtio::start(&mut bus, *function, found, registers(board), left.memory) };
        }
    }
    // SAFETY: a signed image's runtime, at the place that it says; the firmware is left.
    unsafe { loader::enter(place, image.start, &written) }
}

/// Makes ready what the disk is left with; none if it is no disk that can be.
fn leave(board: &Board, leaving: &Leaving) -> Result<Option<(Address, virtio::Found, Left)>, Trouble> {
    let Leaving { function, sectors, ref writable } = *leaving;
    // SAFETY: the tree's configuration space, which the firmware has mapped; only read.
    let bus = unsafe { Ecam::new(&board.ecam) };
    let Some(found) = bus.and_then(|bus| virtio::find(&bus, function)) else {
        say!("the disk at PCI {function} is none of virtio's: no host can write to it while the image runs");
        return Ok(None);
    };
    let pages = boot::allocate_pages(
        AllocateType::AnyPages,
        MemoryType::RUNTIME_SERVICES_DATA,
        QUEUE_BYTES.div_ceil(PAGE as usize),
    );
    let queue =
        pages.map_err(|error| Trouble::Memory { what: "the disk's queue", status: error.status() })?;
    // SAFETY: just allocated, so long.
    unsafe { queue.as_ptr().write_bytes(0, QUEUE_BYTES) };
    let memory = queue.as_ptr().expose_provenance() as u64;
    let notify = found.notify(registers(board));
    let left = Left { notify, memory, sectors, writable: writable.to_words() };
    Ok(Some((function, found, left)))
}

/// Where the disk's registers come to lie: at the end of PCI's memory, whose beginning the runtime gives to others.
fn registers(board: &Board) -> u64 {
    (board.apertures.low.end & !(REGISTERS_BYTES - 1)).saturating_sub(REGISTERS_BYTES)
}

/// Where the firmware has laid what goes by that name.
fn configured(guid: Guid) -> Option<u64> {
    uefi::system::with_config_table(|table| {
        table.iter().find(|entry| entry.guid == guid).map(|entry| entry.address.expose_provenance() as u64)
    })
}

/// The firmware's device tree, or one that says what its ACPI tables say.
fn tree() -> Result<&'static [u8], Trouble> {
    let Some(address) = configured(TREE) else {
        let tree = acpi::tree().ok_or(Trouble::NoTree)?.map_err(Trouble::Acpi)?;
        return Ok(Vec::leak(tree));
    };
    // SAFETY: the firmware says that a tree is there, and keeps it.
    Ok(unsafe { find_tree(address) }?)
}

/// Takes what is free of the windows, so that nothing of the loader's comes to lie where the host reads and writes.
fn claim_windows(board: &Board) -> Result<(), Trouble> {
    let free = memory_of(|kind| kind == MemoryType::CONVENTIONAL)?;
    for (window, free) in board.windows.iter().flat_map(|window| free.iter().map(move |free| (window, free)))
    {
        let part = window.start.max(free.start)..window.end.min(free.end);
        if part.start < part.end {
            claim(&part, "a window")?;
        }
    }
    Ok(())
}

fn claim(part: &Range<u64>, what: &'static str) -> Result<(), Trouble> {
    let start = part.start & !(PAGE - 1);
    let pages = (part.end - start).div_ceil(PAGE) as usize;
    boot::allocate_pages(AllocateType::Address(start), MemoryType::LOADER_DATA, pages)
        .map(drop)
        .map_err(|error| Trouble::Memory { what, status: error.status() })
}

/// The memory of the kinds that are wanted.
fn memory_of(wanted: impl Fn(MemoryType) -> bool) -> Result<Vec<Range<u64>>, Trouble> {
    let map = boot::memory_map(MemoryType::LOADER_DATA)
        .map_err(|error| Trouble::Memory { what: "its own list of memory", status: error.status() })?;
    let is_memory = |kind| ![MemoryType::MMIO, MemoryType::MMIO_PORT_SPACE].contains(&kind);
    let entries =
        map.entries().filter(|entry| is_memory(entry.ty) && wanted(entry.ty) && entry.page_count > 0);
    Ok(entries.map(|entry| entry.phys_start..entry.phys_start + entry.page_count * PAGE).collect())
}

/// Whether the firmware leaves memory of that kind when it is left itself.
fn is_left(kind: MemoryType) -> bool {
    [
        MemoryType::CONVENTIONAL,
        MemoryType::LOADER_CODE,
        MemoryType::LOADER_DATA,
        MemoryType::BOOT_SERVICES_CODE,
        MemoryType::BOOT_SERVICES_DATA,
    ]
    .contains(&kind)
}

/// Copies bytes to where they have to lie.
///
/// # Safety
/// As many bytes must be there, and nobody else's.
unsafe fn put(bytes: &[u8], to: u64) {
    let to = core::ptr::with_exposed_provenance_mut::<u8>(to as usize);
    // SAFETY: the caller's promise; what was just allocated is nowhere that `bytes` is.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}
