//! A generator that is memory, for tests: it remembers the last doorbell.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;

use super::{DoorbellPage, Registers};

/// What the fake's Doorbell holds while nobody has rung. A test must not ring vector 65,535 of peer 65,535.
const NOT_RUNG: u32 = u32::MAX;

/// A page of registers in memory.
pub struct Page(UnsafeCell<[u32; 4]>);

impl Page {
    /// A page whose IVPosition reads `position`.
    pub fn new(position: u32) -> Self {
        Self(UnsafeCell::new([0, 0, position, NOT_RUNG]))
    }

    /// The driver over this page.
    pub fn doorbell_page(&self) -> DoorbellPage<'_> {
        let registers = NonNull::from(&self.0).cast::<Registers>();
        // SAFETY: as long and as aligned as the registers, and in an `UnsafeCell` for `'_`. Several drivers over
        // one fake only store to the Doorbell and read what nobody writes; a fake stays on its thread (`!Sync`).
        DoorbellPage::new(unsafe { UniqueMmioPointer::new(registers) })
    }

    /// The last peer and vector rung since the last call, if any.
    pub fn take(&self) -> Option<(u16, u16)> {
        let doorbell = self.0.get().cast::<u32>().wrapping_add(3);
        // SAFETY: the fourth word of the cell; the fake stays on its thread, and nobody keeps a reference to it.
        let value = unsafe { doorbell.read_volatile() };
        // SAFETY: as for the read.
        unsafe { doorbell.write_volatile(NOT_RUNG) };
        (value != NOT_RUNG).then_some(((value >> 16) as u16, value as u16))
    }
}
