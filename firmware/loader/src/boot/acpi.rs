//! ACPI's tables, where the firmware has laid them, and PCI's memory, by the firmware's protocol.

use alloc::vec::Vec;
use core::ops::Range;

use neap_loader::acpi::{Described, HEADER_BYTES, Tables, Undescribed};
use uefi::boot;
use uefi::proto::pci::configuration::ResourceRangeType;
use uefi::proto::pci::root_bridge::PciRootBridgeIo;
use uefi::table::cfg::ConfigTableEntry;

use super::configured;
use super::disk::open;

/// The longest table, in bytes: more is none.
const TABLE_BYTES_MAX: usize = 1 << 20;
/// Where the root pointer (ACPI 6.5, 5.2.5.3) says where the list of tables is.
const XSDT_AT: usize = 24;

/// The device tree that says what the firmware's tables say; none where it has no tables.
pub fn tree() -> Option<Result<Vec<u8>, Undescribed>> {
    let pointer = configured(ConfigTableEntry::ACPI2_GUID)?;
    Some(described(pointer).map(|described| described.tree()))
}

fn described(pointer: u64) -> Result<Described, Undescribed> {
    // SAFETY: the firmware's word that its root pointer is there, of 36 bytes.
    let pointer = unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(pointer as usize), 36)
    };
    let list = word(&pointer[XSDT_AT..]).and_then(table).ok_or(Undescribed::Table("XSDT"))?;
    let find = |signature: &[u8; 4], name| {
        let mut all = list[HEADER_BYTES..].chunks_exact(8).filter_map(word).filter_map(table);
        all.find(|table| table.starts_with(signature)).ok_or(Undescribed::Table(name))
    };
    let tables = Tables {
        madt: find(b"APIC", "MADT")?,
        fadt: find(b"FACP", "FADT")?,
        mcfg: find(b"MCFG", "MCFG")?,
        spcr: find(b"SPCR", "SPCR")?,
        srat: find(b"SRAT", "SRAT")?,
    };
    Described::read(&tables, &apertures())
}

fn word(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The table there, whole.
fn table(address: u64) -> Option<&'static [u8]> {
    let start = core::ptr::with_exposed_provenance::<u8>(address as usize);
    if start.is_null() {
        return None;
    }
    // SAFETY: the firmware's word that a table is there, which begins with its header.
    let header = unsafe { core::slice::from_raw_parts(start, HEADER_BYTES) };
    let bytes = header[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)?;
    if !(HEADER_BYTES..=TABLE_BYTES_MAX).contains(&bytes) {
        return None;
    }
    // SAFETY: as above, and as long as its header says; the firmware keeps it.
    Some(unsafe { core::slice::from_raw_parts(start, bytes) })
}

/// The memory that the firmware has for the functions of PCI.
fn apertures() -> Vec<Range<u64>> {
    let bridges = boot::find_handles::<PciRootBridgeIo>().unwrap_or_default();
    let bridges = bridges.into_iter().filter_map(|handle| open::<PciRootBridgeIo>(handle).ok());
    let ranges = bridges.filter_map(|bridge| bridge.configuration().ok()).flatten();
    let memory = ranges.filter(|range| range.resource_range_type == ResourceRangeType::Memory);
    let memory =
        memory.map(|range| range.address_min..range.address_min.saturating_add(range.address_length));
    memory.filter(|range| !range.is_empty()).collect()
}
