//! Confirmation: the image on trial has a variable set through the firmware, because the disk's state is not its own to write, and the next boot
//! reads it. The variable names the disk and the number of the state's copy that the trial began with: no other trial's.

use core::ptr::NonNull;

use neap_hal::cpu::loader::Resident;
use neap_hal::cpu::mmu::{PAGE, early};
use uefi::boot::{self, AllocateType, MemoryType};
use uefi::runtime::{self, VariableAttributes, VariableVendor};
use uefi::{CStr16, Status, cstr16, guid};

use super::trouble::Trouble;

const NAME: &CStr16 = cstr16!("NeapConfirmed");
const VENDOR: VariableVendor = VariableVendor(guid!("0d0f1d5c-6b0f-4c60-9d4e-3f1c2a77e5b1"));
/// The stack of the firmware's service, in pages: UEFI asks for 8 KiB at least.
const STACK_PAGES: usize = 8;

/// What the variable holds.
pub type Ticket = [u8; 20];

/// What confirms the trial that began with that copy of a disk's state.
pub fn ticket(disk: [u8; 16], copy: u32) -> Ticket {
    let mut ticket = [0; 20];
    ticket[..4].copy_from_slice(&copy.to_le_bytes());
    ticket[4..].copy_from_slice(&disk);
    ticket
}

/// Whether the firmware holds that ticket.
pub fn holds(ticket: &Ticket) -> bool {
    let mut buffer = [0; 64];
    runtime::get_variable(NAME, &VENDOR, &mut buffer).is_ok_and(|(value, _)| value == ticket)
}

/// Forgets whatever ticket there is.
pub fn forget() {
    // Where there is none there is nothing to forget.
    let _ = runtime::delete_variable(NAME, &VENDOR);
}

/// Leaves the routine in memory that the firmware keeps, and returns where it is entered. `watchdog` is the byte that ends it,
/// and `memory` tells the gigabytes that hold memory.
pub fn leave(ticket: &Ticket, watchdog: Option<u64>, memory: impl Fn(u64) -> bool) -> Result<u64, Trouble> {
    let table = pages(MemoryType::RUNTIME_SERVICES_DATA, 1 + STACK_PAGES)?;
    let code = pages(MemoryType::RUNTIME_SERVICES_CODE, 1)?;
    // SAFETY: whole pages, just allocated, and never given back.
    let (table, page) = unsafe {
        table.cast::<early::Table>().write(early::Table::with(memory));
        (&*table.as_ptr().cast::<early::Table>(), &mut *code.as_ptr().cast::<[u8; PAGE as usize]>())
    };
    let start = code.as_ptr().expose_provenance() as u64;
    let mut resident = Resident::new(table);
    let [name, vendor, value] = put(page, &resident, ticket).map(|at| start + at as u64);
    resident.stack_end =
        core::ptr::from_ref(table).expose_provenance() as u64 + (1 + STACK_PAGES as u64) * PAGE;
    resident.watchdog = watchdog.unwrap_or(0);
    resident.set_variable =
        set_variable().ok_or(Trouble::Memory { what: "a variable", status: Status::UNSUPPORTED })?;
    (resident.name, resident.vendor, resident.value) = (name, vendor, value);
    resident.bytes = ticket.len() as u64;
    let attributes = VariableAttributes::NON_VOLATILE
        | VariableAttributes::BOOTSERVICE_ACCESS
        | VariableAttributes::RUNTIME_ACCESS;
    resident.attributes = attributes.bits().into();
    resident.put(page);
    Ok(start)
}

/// Puts the routine and what it points to into the page; where name, vendor and value lie in it.
fn put(page: &mut [u8; PAGE as usize], resident: &Resident, ticket: &Ticket) -> [usize; 3] {
    let mut at = resident.put(page);
    let name = NAME.to_u16_slice_with_nul().iter().flat_map(|unit| unit.to_le_bytes());
    let mut place = |bytes: &mut dyn Iterator<Item = u8>| {
        let start = at;
        for (to, byte) in page.iter_mut().skip(start).zip(bytes) {
            *to = byte;
            at += 1;
        }
        at = at.next_multiple_of(8);
        start
    };
    [place(&mut { name }), place(&mut VENDOR.0.to_bytes().into_iter()), place(&mut ticket.iter().copied())]
}

fn set_variable() -> Option<u64> {
    let table = uefi::table::system_table_raw()?;
    // SAFETY: the firmware's own tables, which are there as long as it is.
    let services = unsafe { table.as_ref().runtime_services.as_ref() }?;
    Some(services.set_variable as *const () as u64)
}

fn pages(kind: MemoryType, count: usize) -> Result<NonNull<u8>, Trouble> {
    boot::allocate_pages(AllocateType::AnyPages, kind, count)
        .map_err(|error| Trouble::Memory { what: "the confirmation", status: error.status() })
}
