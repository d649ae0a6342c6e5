//! The disk that the loader came from: its partitions, by their names.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use neap_abi::slots::{COPIES, COPY_BYTES, COPY_STEP_BYTES, Copies, SECTOR_BYTES, Slot, State, Writable};
use neap_hal::board::pci::Address;
use neap_loader::bound::{HEADERS_BYTES, find};
use neap_loader::image::IMAGE_BYTES_MAX;
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol};
use uefi::proto::ProtocolPointer;
use uefi::proto::device_path::{self, DevicePath, DevicePathNode};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;
use uefi::proto::media::disk::DiskIo;
use uefi::proto::media::partition::PartitionInfo;
use uefi::{CString16, Handle, Status, cstr16};

use super::trouble::Trouble;

/// Where the trusted keys lie on the partition of the loader.
const KEYS: &uefi::CStr16 = cstr16!("\\EFI\\NEAP\\KEYS");

/// The partitions that a card boots from.
pub struct Disk {
    state: Partition,
    slots: [Partition; 2],
    /// Its function, if it is one of PCI's first bus.
    function: Option<Address>,
    /// Its sectors.
    sectors: u64,
}

/// What of a disk can be left to an image.
pub struct Leaving {
    /// Its function.
    pub function: Address,
    /// Its sectors.
    pub sectors: u64,
    /// What of it may be written.
    pub writable: Writable,
}

/// A partition.
struct Partition {
    handle: Handle,
    /// Its own number, which no other has.
    id: [u8; 16],
    /// Its first byte on the disk.
    start: u64,
    bytes: u64,
}

/// Opens a protocol beside the drivers that use it: the disk stays theirs.
pub fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> Result<ScopedProtocol<P>, Status> {
    let params = OpenProtocolParams { handle, agent: boot::image_handle(), controller: None };
    // SAFETY: nobody takes a driver from its device while the loader runs, so the protocol outlives its use here.
    unsafe { boot::open_protocol::<P>(params, OpenProtocolAttributes::GetProtocol) }
        .map_err(|error| error.status())
}

impl Disk {
    /// Finds the partitions beside the one that the loader came from.
    pub fn find() -> Result<Self, Trouble> {
        let own = own_partition()?;
        let own = open::<DevicePath>(own)
            .map_err(|status| Trouble::Disk { what: "the loader's own disk", status })?;
        let function = function_of(&own);
        let own = disk_of(&own);
        let sectors = sectors_of(&own);
        let all = boot::find_handles::<PartitionInfo>().unwrap_or_default();
        let mut found: Vec<(String, Partition)> = Vec::new();
        for handle in all {
            let Ok(path) = open::<DevicePath>(handle) else { continue };
            if disk_of(&path) != own {
                continue;
            }
            if let Some(partition) = partition(handle) {
                found.push(partition);
            }
        }
        let mut take = |name: &'static str| {
            let at = found.iter().position(|(other, _)| other == name);
            at.map(|at| found.swap_remove(at).1).ok_or(Trouble::NoPartition { name })
        };
        Ok(Self { state: take("neap-state")?, slots: [take("neap-a")?, take("neap-b")?], function, sectors })
    }

    /// What can be left to the image from `slot`, if the state then says this; none if it is on no bus that is known.
    pub fn leaving(&self, slot: Slot, state: State) -> Option<Leaving> {
        let sector = |bytes: u64| bytes / SECTOR_BYTES as u64;
        let other = &self.slots[slot.other() as usize];
        let State { good, security_version, .. } = state;
        let slot = sector(other.start)..sector(other.start.saturating_add(other.bytes));
        let writable = Writable { state: sector(self.state.start), slot, good, security_version };
        Some(Leaving { function: self.function?, sectors: self.sectors, writable })
    }

    /// What tells this disk from all others: the state partition's own number.
    pub fn id(&self) -> [u8; 16] {
        self.state.id
    }

    /// Both copies of the state.
    pub fn copies(&self) -> Result<Copies, Trouble> {
        let mut copies = [[0; COPY_BYTES]; COPIES];
        for (offset, copy) in (0..).step_by(COPY_STEP_BYTES as usize).zip(&mut copies) {
            self.state.read(offset, copy).map_err(|status| Trouble::Disk { what: "neap-state", status })?;
        }
        let [first, second] = &copies;
        Ok(Copies::read([first, second]))
    }

    /// Writes a state over the copy that does not count, to the disk itself and not to a cache.
    pub fn write(&self, copies: &mut Copies, state: State) -> Result<(), Trouble> {
        let (at, copy) = copies.write(state);
        self.state
            .write(at as u64 * COPY_STEP_BYTES, &copy)
            .map_err(|status| Trouble::Disk { what: "neap-state", status })
    }

    /// All that a slot holds.
    pub fn slot(&self, slot: Slot) -> Result<Vec<u8>, Status> {
        let partition = &self.slots[slot as usize];
        let mut bytes = vec![0; partition.bytes.min(IMAGE_BYTES_MAX as u64) as usize];
        partition.read(0, &mut bytes)?;
        Ok(bytes)
    }
}

impl Partition {
    fn media(&self) -> Result<u32, Status> {
        Ok(open::<BlockIO>(self.handle)?.media().media_id())
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Status> {
        let media = self.media()?;
        open::<DiskIo>(self.handle)?.read_disk(media, offset, to).map_err(|error| error.status())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Status> {
        let media = self.media()?;
        open::<DiskIo>(self.handle)?.write_disk(media, offset, bytes).map_err(|error| error.status())?;
        open::<BlockIO>(self.handle)?.flush_blocks().map_err(|error| error.status())
    }
}

/// A partition and its name, if it is one of a GPT.
fn partition(handle: Handle) -> Option<(String, Partition)> {
    let info = open::<PartitionInfo>(handle).ok()?;
    // A copy, because the entry is packed.
    let entry = *info.gpt_partition_entry()?;
    let name = entry.partition_name;
    let units = name.iter().map(|unit| u16::from(*unit)).take_while(|unit| *unit != 0);
    let name = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    let block_bytes = u64::from(open::<BlockIO>(handle).ok()?.media().block_size());
    let bytes = entry.num_blocks()?.checked_mul(block_bytes)?;
    let start = entry.starting_lba.checked_mul(block_bytes)?;
    Some((name, Partition { handle, id: entry.unique_partition_guid.to_bytes(), start, bytes }))
}

/// How many sectors the disk with that path has; 0 if it is not to be found.
fn sectors_of(path: &[&DevicePathNode]) -> u64 {
    let all = boot::find_handles::<BlockIO>().unwrap_or_default();
    let disk = all.into_iter().find(|&handle| {
        open::<DevicePath>(handle).is_ok_and(|other| other.node_iter().eq(path.iter().copied()))
    });
    let Some(Ok(blocks)) = disk.map(open::<BlockIO>) else { return 0 };
    let media = blocks.media();
    media.last_block().saturating_add(1).saturating_mul(u64::from(media.block_size()) / SECTOR_BYTES as u64)
}

/// A path without its last node: of a partition, the disk.
fn disk_of(path: &DevicePath) -> Vec<&DevicePathNode> {
    let mut nodes: Vec<_> = path.node_iter().collect();
    nodes.pop();
    nodes
}

/// The function of PCI's first bus that a path leads through, if it leads through no bridge.
fn function_of(path: &DevicePath) -> Option<Address> {
    let mut functions =
        path.node_iter().filter_map(|node| <&device_path::hardware::Pci>::try_from(node).ok());
    let only = functions.next()?;
    functions.next().is_none().then(|| Address::new(only.device(), only.function()))
}

fn own_partition() -> Result<Handle, Trouble> {
    let trouble = |status| Trouble::Disk { what: "the loader's own image", status };
    let image = open::<LoadedImage>(boot::image_handle()).map_err(trouble)?;
    image.device().ok_or(trouble(Status::NOT_FOUND))
}

/// What is bound into the loader, as the firmware has loaded it: a key, and an image.
pub fn bound() -> Result<Option<&'static [u8]>, Trouble> {
    let trouble = |status| Trouble::Disk { what: "the loader's own image", status };
    let image = open::<LoadedImage>(boot::image_handle()).map_err(trouble)?;
    let (base, bytes) = image.info();
    let bytes = bytes as usize;
    // SAFETY: the firmware's word on where it has loaded us and how much that is; nobody writes to headers.
    let headers = unsafe { core::slice::from_raw_parts(base.cast::<u8>(), bytes.min(HEADERS_BYTES)) };
    let Some(section) = find(headers).filter(|section| section.end <= bytes) else { return Ok(None) };
    // SAFETY: as above; it lies within what was loaded, and the section is nobody's but ours, to be read.
    Ok(Some(unsafe { core::slice::from_raw_parts(base.cast::<u8>().add(section.start), section.len()) }))
}

/// The file of trusted keys.
pub fn keys() -> Result<String, Trouble> {
    let system = boot::get_image_file_system(boot::image_handle())
        .map_err(|error| Trouble::Disk { what: "the loader's own file system", status: error.status() })?;
    let path: CString16 = KEYS.into();
    uefi::fs::FileSystem::new(system).read_to_string(path.as_ref()).map_err(|_| Trouble::NoKeys)
}
