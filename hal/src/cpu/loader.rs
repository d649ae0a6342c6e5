//! What the loader needs of the core: entering an image as arm64's boot protocol has it, and the routine that stays behind.

use core::arch::global_asm;
use core::ops::Range;

use super::cache;
use super::mmu::{self, early};

global_asm!(include_str!("resident.s"));

unsafe extern "C" {
    static neap_resident: u8;
    static neap_resident_data: u8;
    static neap_enter_end: u8;
    fn neap_enter(tree: u64, image: u64) -> !;
}

/// What the routine reads, right behind itself. Each is an address, but for `bytes` and `attributes`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Resident {
    table: u64,
    sctlr: u64,
    tcr: u64,
    mair: u64,
    /// The end of the stack that the firmware's service runs on.
    pub stack_end: u64,
    /// A byte that is cleared when the image is confirmed: what ends a watchdog. 0 where there is none.
    pub watchdog: u64,
    /// The firmware's SetVariable.
    pub set_variable: u64,
    /// The variable's name.
    pub name: u64,
    /// Its vendor.
    pub vendor: u64,
    /// Its attributes.
    pub attributes: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its value.
    pub value: u64,
}

impl Resident {
    /// With all to be filled in but the translation, which is that of `table`.
    pub fn new(table: &early::Table) -> Self {
        Self {
            table: core::ptr::from_ref(table) as u64,
            sctlr: mmu::SCTLR,
            tcr: mmu::TCR,
            mair: mmu::MAIR,
            stack_end: 0,
            watchdog: 0,
            set_variable: 0,
            name: 0,
            vendor: 0,
            attributes: 0,
            bytes: 0,
            value: 0,
        }
    }

    /// Copies the routine to the beginning of `page` and this behind it. What follows is free: returns where that begins.
    ///
    /// # Panics
    /// Never: both are some hundred bytes.
    pub fn put(&self, page: &mut [u8; mmu::PAGE as usize]) -> usize {
        let code = (&raw const neap_resident as usize)..(&raw const neap_resident_data as usize);
        // SAFETY: the routine's own instructions, between its two labels.
        let code = unsafe {
            core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(code.start), code.len())
        };
        let words = [
            self.table,
            self.sctlr,
            self.tcr,
            self.mair,
            self.stack_end,
            self.watchdog,
            self.set_variable,
            self.name,
            self.vendor,
            self.attributes,
            self.bytes,
            self.value,
        ];
        let data = words.iter().flat_map(|word| word.to_le_bytes());
        let end = code.len() + size_of::<Self>();
        for (to, byte) in page.iter_mut().zip(code.iter().copied().chain(data)) {
            *to = byte;
        }
        end
    }
}

/// Enters an image as arm64's boot protocol has it: translation and caches off, interrupts masked, `tree` in x0. What lies in
/// `written` is brought from the caches to memory first.
///
/// # Safety
/// An image of this machine's must be at `image`, and nobody may need the caller's memory any more: the firmware has let go.
pub unsafe fn enter(tree: u64, image: u64, written: &[Range<u64>]) -> ! {
    for range in written {
        cache::clean(range.clone());
    }
    // The last instructions run from memory too.
    cache::clean(neap_enter as *const () as u64..&raw const neap_enter_end as u64);
    // SAFETY: the caller's promise.
    unsafe { neap_enter(tree, image) }
}
