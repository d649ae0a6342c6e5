//! Translation tables: who may do what with which physical address.
//!
//! Addresses are mapped one to one. What changes is the memory type and the rights: instructions can't be
//! written, data can't be executed (`SCTLR_EL1.WXN` says so a second time), registers are Device-nGnRE
//! (stores post and stay in order, DDI 0487 B2.7.2), everything else is Normal, write-back, inner
//! shareable: the window too, whose coherence with PCIe is the SoC's affair.
//!
//! [`Plan`] is portable and checked; building the tables from it is the card's.

use core::ops::Range;

use heapless::Vec;

/// The translation granule, in bytes.
pub const PAGE: u64 = 4096;
/// The first address beyond the map: 39 bits, which is a root table at level 1.
pub const ADDRESS_END: u64 = 1 << 39;
/// The most regions in one plan: two stacks for each of 16 cores, the image's three parts, memory around it, the
/// windows, and a board's register blocks.
pub const REGIONS_MAX: usize = 96;

/// MAIR_EL1: attribute 0 is Device-nGnRE, attribute 1 Normal write-back, read and write allocating.
pub const MAIR: u64 = 0xff04;
/// TCR_EL1: 39-bit addresses by TTBR0 (T0SZ 25), walks write-back and inner shareable, 4 KiB granule,
/// TTBR1 off (EPD1), 40-bit physical addresses (IPS 2).
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
/// SCTLR_EL1: its RES1 bits, MMU (M), caches (C, I), stack alignment (SA, SA0), no trap of EL0's WFI and WFE.
pub const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 12 | 1 << 16 | 1 << 18;
/// SCTLR_EL1.WXN: what can be written can't be executed, whatever a table says.
pub const SCTLR_WXN: u64 = 1 << 19;

/// What a region is for; from it follow its memory type and its rights at EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Instructions: read and execute.
    Text,
    /// Constants: read.
    Constants,
    /// Memory: read and write.
    Data,
    /// Registers: read and write, Device-nGnRE.
    Registers,
}

/// Why a region can't be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A region does not start and end on a page.
    #[error("region {start:#x}..{end:#x} is not made of whole 4 KiB pages: align it")]
    NotPages {
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A region is empty, or ends before it starts.
    #[error("region {start:#x}..{end:#x} is empty: leave it out, or check where its size comes from")]
    Empty {
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A region reaches beyond the 39 bits that the tables translate.
    #[error("region {start:#x}..{end:#x} ends above 512 GiB, beyond what the tables translate")]
    TooHigh {
        /// Its first address.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// Two regions share an address.
    #[error("region {start:#x}..{end:#x} overlaps the region that starts at {other:#x}")]
    Overlap {
        /// The later region's first address.
        start: u64,
        /// Its end.
        end: u64,
        /// The first address of the one that was there before.
        other: u64,
    },
    /// More than [`REGIONS_MAX`] regions.
    #[error("more than {REGIONS_MAX} regions in one plan")]
    Full,
    /// The table pool has no page left.
    #[error("the pool of translation tables is empty: {0} tables were not enough")]
    NoTable(usize),
    /// The paging library refused a region.
    #[error("no table entry for the region at {start:#x}")]
    Refused {
        /// Its first address.
        start: u64,
    },
}

/// A checked list of regions to map.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    regions: Vec<(Range<u64>, Kind), REGIONS_MAX>,
}

impl Plan {
    /// A plan that maps nothing.
    pub const fn new() -> Self {
        Self { regions: Vec::new() }
    }

    /// Adds one region.
    ///
    /// # Errors
    /// [`PlanError`] names the region and what is wrong with it; the plan is then unchanged.
    pub fn add(&mut self, range: Range<u64>, kind: Kind) -> Result<(), PlanError> {
        let Range { start, end } = range;
        if start % PAGE != 0 || end % PAGE != 0 {
            return Err(PlanError::NotPages { start, end });
        }
        if start >= end {
            return Err(PlanError::Empty { start, end });
        }
        if end > ADDRESS_END {
            return Err(PlanError::TooHigh { start, end });
        }
        if let Some((other, _)) =
            self.regions.iter().find(|(other, _)| start < other.end && other.start < end)
        {
            return Err(PlanError::Overlap { start, end, other: other.start });
        }
        self.regions.push((range, kind)).map_err(|_| PlanError::Full)
    }

    /// The regions, in the order in which they were added.
    pub fn regions(&self) -> impl Iterator<Item = (&Range<u64>, Kind)> {
        self.regions.iter().map(|(range, kind)| (range, *kind))
    }

    /// What `address` is mapped as, if it is.
    pub fn kind_at(&self, address: u64) -> Option<Kind> {
        self.regions().find(|(range, _)| range.contains(&address)).map(|(_, kind)| kind)
    }
}

/// What an agent may do with a part of its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Instructions: read and execute.
    Execute,
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Registers: read and write, Device-nGnRE.
    Registers,
}

/// A part of an agent's address space: pages of its own, or a secure binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Where the agent has it.
    pub address: Range<u64>,
    /// What lies there.
    pub physical: u64,
    /// What the agent may do with it.
    pub access: Access,
}

/// Pages of tables that one agent's space takes at most: the root, one table of its gigabyte, and one for each 2 MiB
/// with something in it: eight of image, eight of stacks, one of bindings.
pub const TABLES_PER_SPACE: usize = 19;

/// What one core's stacks take, in bytes: a guard page, the exception stack, a guard page, the main stack. The
/// linker script reserves this [`CORES_MAX`](crate::cpu::CORES_MAX) times at `__stacks`.
pub const STACKS_SIZE: u64 = 64 * 1024;
/// The exception stack, in bytes: two nested frames of 832 bytes and the formatting of an epitaph fit
/// several times.
pub const EXCEPTION_STACK_SIZE: u64 = 12 * 1024;

/// Where the linker script put the image's parts, each on pages of its own.
#[derive(Debug, Clone)]
pub struct Image {
    /// Instructions.
    pub text: Range<u64>,
    /// Constants.
    pub rodata: Range<u64>,
    /// Initialised, zeroed and uninitialised data, but no stack.
    pub data: Range<u64>,
    /// The first core's stacks; the others' follow.
    pub stacks: u64,
    /// The end of everything, stacks included; memory above is free.
    pub end: u64,
}

impl Image {
    /// The exception stack and the main stack of `core`, without the guard page below each.
    pub fn stacks_of(&self, core: usize) -> [Range<u64>; 2] {
        let base = self.stacks + core as u64 * STACKS_SIZE;
        let exception = base + PAGE;
        let main = exception + EXCEPTION_STACK_SIZE + PAGE;
        [exception..exception + EXCEPTION_STACK_SIZE, main..base + STACKS_SIZE]
    }
}

impl Plan {
    /// Adds an image and the stacks of its first `cores` cores; their guard pages stay unmapped.
    ///
    /// # Errors
    /// As [`Plan::add`].
    pub fn add_image(&mut self, image: &Image, cores: usize) -> Result<(), PlanError> {
        self.add(image.text.clone(), Kind::Text)?;
        self.add(image.rodata.clone(), Kind::Constants)?;
        self.add(image.data.clone(), Kind::Data)?;
        for stack in (0..cores).flat_map(|core| image.stacks_of(core)) {
            self.add(stack, Kind::Data)?;
        }
        Ok(())
    }
}

/// The map before there is a plan.
pub mod early {
    /// The gigabyte that holds the image, and on the boards of this family all memory that boot needs. The
    /// linker scripts in `ld/` put the image there.
    pub const IMAGE_GIB: u64 = 1;
    /// Descriptor bits (DDI 0487 D8.3): valid block, accessed, EL1 read and write, not EL0's to execute.
    const BLOCK: u64 = 1 | 1 << 10 | 1 << 54;
    const INNER_SHAREABLE: u64 = 3 << 8;
    const NORMAL: u64 = 1 << 2;
    const NEVER_AT_EL1: u64 = 1 << 53;

    /// The entry of the gigabyte at 0, if that is registers, which no core reads or fetches on speculation.
    pub const REGISTERS: u64 = BLOCK | NEVER_AT_EL1;
    /// Likewise, if it is memory. The other gigabytes' entries have their address beside.
    pub const MEMORY: u64 = BLOCK | NORMAL | INNER_SHAREABLE;

    /// A level 1 table of 512 blocks of 1 GiB. The boot code makes one in which the image's is memory and all others are
    /// registers.
    #[repr(C, align(4096))]
    pub struct Table([u64; 512]);

    impl Table {
        /// With memory in each gigabyte that `memory` holds for, and registers in all others.
        pub fn with(memory: impl Fn(u64) -> bool) -> Self {
            let entry = |gib: usize| {
                let gib = gib as u64;
                gib << 30 | if memory(gib) { MEMORY } else { REGISTERS }
            };
            Self(core::array::from_fn(entry))
        }
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub use tables::{Root, Space, build, build_space, tables};

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
mod tables {
    use core::arch::asm;
    use core::mem::{ManuallyDrop, MaybeUninit};
    use core::ptr::NonNull;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use aarch64_paging::descriptor::{El1Attributes, PhysicalAddress};
    use aarch64_paging::paging::{
        Constraints, El1And0, MemoryRegion, PageTable, RootTable, Translation, VaRange,
    };

    use super::{Access, Kind, Mapped, PAGE, Plan, PlanError, SCTLR, SCTLR_WXN};

    /// Tables in the pool. A board takes about a dozen: one or two for each gigabyte with something in it.
    const TABLES: usize = 32;

    #[repr(C, align(4096))]
    struct Pool([MaybeUninit<PageTable<El1Attributes>>; TABLES]);

    #[unsafe(link_section = ".bss.uninit.tables")]
    static mut POOL: Pool = Pool([const { MaybeUninit::uninit() }; TABLES]);
    /// How many tables of the pool are taken; they are never given back.
    static TAKEN: AtomicUsize = AtomicUsize::new(0);

    /// The runtime's own tables, as far as they are taken.
    pub fn tables() -> core::ops::Range<u64> {
        let start = &raw const POOL as u64;
        start..start + TAKEN.load(Ordering::Relaxed).min(TABLES) as u64 * PAGE
    }

    /// Hands out tables of the pool, which is mapped one to one. [`build`] asks it for no more than there are: a
    /// table beyond the pool's end is the last one again, and [`build`] reports it before anyone uses it.
    struct Bump;

    impl Translation<El1Attributes> for Bump {
        fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
            let index = TAKEN.fetch_add(1, Ordering::Relaxed).min(TABLES - 1);
            // SAFETY: the index is in bounds, and each is handed out once, so no reference to this table exists
            // (the last one may be handed out again, but then `build` fails and its tables are never used).
            let table = unsafe { &mut POOL.0[index] };
            let table = NonNull::from(table.write(PageTable::EMPTY));
            (table, PhysicalAddress(table.as_ptr().expose_provenance()))
        }

        unsafe fn deallocate_table(&mut self, _table: NonNull<PageTable<El1Attributes>>) {
            // A map lives as long as the image.
        }

        fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
            NonNull::new(core::ptr::with_exposed_provenance_mut(pa.0))
                .expect("a table of the pool is not at address 0")
        }
    }

    /// A finished map: the address of its root table.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Root(u64);

    /// Builds the tables for `plan`.
    ///
    /// # Errors
    /// [`PlanError::NoTable`] and [`PlanError::Refused`]; the running map is untouched.
    pub fn build(plan: &Plan) -> Result<Root, PlanError> {
        let mut root = ManuallyDrop::new(RootTable::with_va_range(Bump, 1, El1And0, VaRange::Lower));
        for (range, kind) in plan.regions() {
            root.map_range(
                &MemoryRegion::new(range.start as usize, range.end as usize),
                PhysicalAddress(range.start as usize),
                attributes(kind),
                Constraints::empty(),
            )
            .map_err(|_| PlanError::Refused { start: range.start })?;
            if TAKEN.load(Ordering::Relaxed) > TABLES {
                return Err(PlanError::NoTable(TABLES));
            }
        }
        Ok(Root(root.to_physical().0 as u64))
    }

    fn attributes(kind: Kind) -> El1Attributes {
        let common = El1Attributes::VALID | El1Attributes::ACCESSED | El1Attributes::UXN;
        let memory = common | El1Attributes::ATTRIBUTE_INDEX_1 | El1Attributes::INNER_SHAREABLE;
        match kind {
            Kind::Text => memory | El1Attributes::READ_ONLY,
            Kind::Constants => memory | El1Attributes::READ_ONLY | El1Attributes::PXN,
            Kind::Data => memory | El1Attributes::PXN,
            Kind::Registers => common | El1Attributes::ATTRIBUTE_INDEX_0 | El1Attributes::PXN,
        }
    }

    /// Entries of a table.
    const ENTRIES: usize = 512;
    /// Bit 0 of an entry that is one (DDI 0487 D8.3).
    const VALID: u64 = 1;

    /// The tables of one space, handed out in order.
    struct Own {
        next: u64,
        end: u64,
    }

    impl Translation<El1Attributes> for Own {
        fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
            // As in `Bump`: one beyond the end is the last one again, and `build_space` then fails.
            let address = self.next.min(self.end - PAGE);
            self.next += PAGE;
            let table: NonNull<PageTable<El1Attributes>> =
                NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
                    .expect("no page of memory is at address 0");
            // SAFETY: the caller of `build_space` gave these pages away, mapped and aligned.
            unsafe { table.write(PageTable::EMPTY) };
            (table, PhysicalAddress(address as usize))
        }

        unsafe fn deallocate_table(&mut self, _table: NonNull<PageTable<El1Attributes>>) {
            // The pages go back to their owner all at once, with the space.
        }

        fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
            NonNull::new(core::ptr::with_exposed_provenance_mut(pa.0))
                .expect("no page of memory is at address 0")
        }
    }

    /// An agent's address space: its root table and its number.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Space {
        root: u64,
        asid: u8,
    }

    impl Space {
        /// What TTBR0_EL1 holds while the agent runs.
        pub(crate) fn ttbr0(self) -> u64 {
            self.root | u64::from(self.asid) << 48
        }
    }

    /// Builds an agent's address space out of `mapped`, with the runtime's own map beside it, which only the runtime can
    /// use. Nothing else is mapped.
    ///
    /// # Errors
    /// [`PlanError`]: what can't be mapped, overlaps the runtime's gigabytes, or takes more tables than there are.
    ///
    /// # Safety
    /// `tables` are whole pages of memory, mapped for the runtime, and the space's alone for as long as it is used;
    /// `asid` is used by no other space meanwhile, and [`Space::forget`] was called on the last one that had it.
    pub unsafe fn build_space(
        runtime: Root,
        asid: u8,
        tables: core::ops::Range<u64>,
        mapped: &[Mapped],
    ) -> Result<Space, PlanError> {
        let count = ((tables.end - tables.start) / PAGE) as usize;
        let own = Own { next: tables.start, end: tables.end };
        let mut root = ManuallyDrop::new(RootTable::with_va_range(own, 1, El1And0, VaRange::Lower));
        for part in mapped {
            let start = part.address.start;
            root.map_range(
                &MemoryRegion::new(start as usize, part.address.end as usize),
                PhysicalAddress(part.physical as usize),
                user_attributes(part.access),
                Constraints::empty(),
            )
            .map_err(|_| PlanError::Refused { start })?;
            if root.translation().next > tables.end {
                return Err(PlanError::NoTable(count));
            }
        }
        let address = root.to_physical().0 as u64;
        let entries = |table: u64| core::ptr::with_exposed_provenance_mut::<u64>(table as usize);
        for gib in 0..ENTRIES {
            // SAFETY: both are root tables of 512 entries; the runtime's does not change any more, and nobody walks the
            // space yet.
            let (theirs, place) = unsafe { (entries(runtime.0).add(gib).read(), entries(address).add(gib)) };
            if theirs & VALID == 0 {
                continue;
            }
            // SAFETY: as above.
            if unsafe { place.read() } & VALID != 0 {
                return Err(PlanError::Refused { start: (gib as u64) << 30 });
            }
            // SAFETY: as above.
            unsafe { place.write(theirs) };
        }
        crate::cpu::barrier::complete_tables();
        Ok(Space { root: address, asid })
    }

    fn user_attributes(access: Access) -> El1Attributes {
        let common = El1Attributes::VALID
            | El1Attributes::ACCESSED
            | El1Attributes::USER
            | El1Attributes::NON_GLOBAL
            | El1Attributes::PXN;
        let memory = common | El1Attributes::ATTRIBUTE_INDEX_1 | El1Attributes::INNER_SHAREABLE;
        match access {
            Access::Execute => memory | El1Attributes::READ_ONLY,
            Access::Read => memory | El1Attributes::READ_ONLY | El1Attributes::UXN,
            Access::Write => memory | El1Attributes::UXN,
            Access::Registers => common | El1Attributes::ATTRIBUTE_INDEX_0 | El1Attributes::UXN,
        }
    }

    impl Space {
        /// Takes all that any core remembers of the space out of its TLB, so that its number and its pages can be used
        /// again.
        pub fn forget(self) {
            // SAFETY: forgetting a translation changes no memory; the space is in use on no core, or the core walks its
            // tables again.
            unsafe {
                asm!(
                    "dsb ishst",
                    "tlbi aside1is, {asid}",
                    "dsb ish",
                    "isb",
                    asid = in(reg) u64::from(self.asid) << 48,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    impl Root {
        /// The root table's address, which is page-aligned.
        pub fn address(self) -> u64 {
            self.0
        }

        /// Makes this the running core's map.
        ///
        /// # Safety
        /// The map must hold what runs and what it uses, with the rights it needs: the text, both stacks of this
        /// core, data and constants, the registers in use.
        pub unsafe fn activate(self) {
            // The old map has blocks where the new one has pages. Both in the TLB at once would be a conflict
            // (DDI 0487 D8.16, break-before-make), so the MMU is off while they change places; no instruction in
            // between touches memory, and the text is clean in memory because the loader wrote it.
            //
            // SAFETY: the caller vouches for the map; the sequence is architecturally complete, and uses registers only.
            unsafe {
                asm!(
                    "dsb sy",
                    "msr sctlr_el1, {off}",
                    "isb",
                    "msr ttbr0_el1, {root}",
                    "isb",
                    "tlbi vmalle1",
                    "dsb nsh",
                    "isb",
                    "msr sctlr_el1, {on}",
                    "isb",
                    off = in(reg) SCTLR & !0b101,
                    on = in(reg) SCTLR | SCTLR_WXN,
                    root = in(reg) self.0,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_checked() {
        let mut plan = Plan::new();
        plan.add(0x1000..0x3000, Kind::Text).unwrap();
        assert_eq!(
            plan.add(0x3000..0x3010, Kind::Data),
            Err(PlanError::NotPages { start: 0x3000, end: 0x3010 })
        );
        #[expect(clippy::reversed_empty_ranges, reason = "the case under test")]
        let reversed = 0x4000..0x3000;
        assert!(matches!(plan.add(reversed, Kind::Data), Err(PlanError::Empty { .. })));
        assert!(matches!(plan.add(0x5000..0x5000, Kind::Data), Err(PlanError::Empty { .. })));
        assert!(matches!(
            plan.add(ADDRESS_END - PAGE..ADDRESS_END + PAGE, Kind::Data),
            Err(PlanError::TooHigh { .. })
        ));
        assert_eq!(
            plan.add(0x2000..0x4000, Kind::Data),
            Err(PlanError::Overlap { start: 0x2000, end: 0x4000, other: 0x1000 })
        );
        plan.add(0x3000..0x4000, Kind::Registers).unwrap();
        assert_eq!(plan.kind_at(0x2fff), Some(Kind::Text));
        assert_eq!(plan.kind_at(0x3000), Some(Kind::Registers));
        assert_eq!(plan.kind_at(0x4000), None);
        assert_eq!(plan.regions().count(), 2);
    }

    #[test]
    fn a_plan_has_room_for_every_core_and_then_says_full() {
        let mut plan = Plan::new();
        for i in 0..REGIONS_MAX as u64 {
            plan.add(i * PAGE..(i + 1) * PAGE, Kind::Data).unwrap();
        }
        let next = REGIONS_MAX as u64 * PAGE;
        assert_eq!(plan.add(next..next + PAGE, Kind::Data), Err(PlanError::Full));
    }

    #[test]
    fn the_early_map_fits_the_translation_it_is_used_with() {
        assert_eq!(TCR & 0x3f, 64 - ADDRESS_END.trailing_zeros() as u64);
        assert_eq!(size_of::<early::Table>() as u64, PAGE);
        // Valid, accessed, EL1's alone to write; what is registers is nobody's to execute.
        for entry in [early::MEMORY, early::REGISTERS] {
            assert_eq!(entry & 0b11 | entry & 1 << 10 | entry & 0b11 << 6, 1 | 1 << 10);
        }
        assert_eq!((early::REGISTERS >> 2 & 7, early::REGISTERS >> 53 & 0b11), (0, 0b11));
        assert_eq!((early::MEMORY >> 2 & 7, early::MEMORY >> 53 & 0b11), (1, 0b10));
    }
}
