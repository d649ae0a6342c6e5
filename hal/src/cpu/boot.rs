//! From reset to Rust, on the first core and on those that PSCI starts.
//!
//! The image enters at EL1 or at EL2 (it then drops to EL1 for good); EL3 is the platform firmware's, and
//! an image entered there parks. With its first dozen instructions a core turns its caches and its MMU on:
//! the first core with [a map of whole gigabytes](EARLY) that any board of this family agrees with, a later
//! core with the map that the first one built and hands over in the PSCI context, so that no core ever
//! reads, uncached, memory that another has written through its cache.
//!
//! Rust runs at EL1 on `SP_EL0`; exceptions land on `SP_EL1`. Each core has a main stack and an exception
//! stack of its own, each with a guard page below it that [`mmu`](crate::cpu::mmu) leaves unmapped, so that
//! a stack overflow is a fault with a stack left to report it.
//!
//! The image's owner defines two functions, which this module calls and which never return:
//!
//! ```ignore
//! #[unsafe(no_mangle)]
//! extern "C" fn neap_primary(device_tree: usize, boot_level: u64) -> ! { .. }
//! #[unsafe(no_mangle)]
//! extern "C" fn neap_secondary(core: usize) -> ! { .. }
//! ```
//!
//! `device_tree` is what x0 held at entry, unchecked. `boot_level` is the exception level of entry, 1 or 2.
//! `core` is the number that [`psci::start_core`](crate::cpu::psci::start_core) was given.

use core::arch::global_asm;
use core::mem::MaybeUninit;

use crate::cpu::CORES_MAX;
use crate::cpu::mmu::{EXCEPTION_STACK_SIZE, Image, PAGE, STACKS_SIZE, early};

/// The first core's first translation table: see [`early`]. The boot code fills it in, which takes less of the image than it.
#[unsafe(link_section = ".bss.uninit.early")]
static mut EARLY: MaybeUninit<early::Table> = MaybeUninit::uninit();

unsafe extern "C" {
    static __stacks: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __image_end: u8;
    fn _secondary();
}

/// The running image's layout.
pub fn image() -> Image {
    Image {
        text: (&raw const __text_start as u64)..(&raw const __text_end as u64),
        rodata: (&raw const __rodata_start as u64)..(&raw const __rodata_end as u64),
        data: (&raw const __data_start as u64)..(&raw const __data_end as u64),
        stacks: &raw const __stacks as u64,
        end: &raw const __image_end as u64,
    }
}

/// Where PSCI shall start a core.
pub(crate) fn secondary_entry() -> u64 {
    _secondary as *const () as u64
}

const _: () = assert!(CORES_MAX.is_power_of_two() && CORES_MAX <= PAGE as usize);

global_asm!(
    include_str!("boot.s"),
    early_table = sym EARLY,
    early_registers = const early::REGISTERS,
    early_memory = const early::IMAGE_GIB << 30 | early::MEMORY,
    early_memory_at = const early::IMAGE_GIB * 8,
    stacks_shift = const STACKS_SIZE.trailing_zeros(),
    exception_stack_top = const PAGE + EXCEPTION_STACK_SIZE,
    core_mask = const PAGE - 1,
    mair = const crate::cpu::mmu::MAIR,
    tcr = const crate::cpu::mmu::TCR,
    sctlr = const crate::cpu::mmu::SCTLR,
    sctlr_wxn = const crate::cpu::mmu::SCTLR_WXN,
);
