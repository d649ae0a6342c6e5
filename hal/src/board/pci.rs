//! PCI, as much as it takes to own an ivshmem function: finding it, giving its BARs addresses, pointing its
//! MSI-X table at the interrupt controller. Sources: PCI Express Base Specification 5.0 §7.5 and §7.7.2, QEMU's
//! `docs/specs/ivshmem-spec.txt`.
//!
//! What a function says about itself is an allegation: sizes, pointers and counts are checked before use.

use core::ops::Range;

/// A function on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    device: u8,
    function: u8,
}

impl Address {
    /// Function `function` of device `device`, modulo 8 and 32.
    pub const fn new(device: u8, function: u8) -> Self {
        Self { device: device % 32, function: function % 8 }
    }

    /// Where its configuration space starts in an ECAM (§7.2.2), in bytes.
    pub const fn ecam_offset(self) -> u64 {
        (self.device as u64) << 15 | (self.function as u64) << 12
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// Reads and writes configuration space: the real one is an ECAM, a test's is a table.
pub trait Configuration {
    /// The 32-bit register at `offset`, a multiple of 4 below 256. All ones where no function is.
    fn read(&self, function: Address, offset: u8) -> u32;
    /// Writes the 32-bit register at `offset`, a multiple of 4 below 256.
    fn write(&mut self, function: Address, offset: u8, value: u32);
}

/// Where the host bridge forwards memory accesses to PCI; bus addresses are the CPU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apertures {
    /// For 32-bit BARs.
    pub low: Range<u64>,
    /// For 64-bit BARs, if the bridge has one.
    pub high: Option<Range<u64>>,
}

/// An ivshmem-doorbell function, ready for use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ivshmem {
    /// Which one.
    pub address: Address,
    /// BAR 0: the page with the Doorbell register at +12 and nothing else on it.
    pub doorbell_page: u64,
    /// BAR 1: the MSI-X table.
    pub msix_table: u64,
    /// BAR 1's size in bytes, at least a page.
    pub msix_table_size: u64,
    /// Entries in the MSI-X table.
    pub vectors: u16,
}

/// Vendor and device of ivshmem: 1af4:1110.
pub const IVSHMEM: u32 = 0x1110_1af4;

const HEADER_COMMAND: u8 = 0x04;
const HEADER_CLASS: u8 = 0x08;
const HEADER_TYPE: u8 = 0x0c;
const HEADER_BAR0: u8 = 0x10;
const HEADER_CAPABILITIES: u8 = 0x34;
const COMMAND_IO: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;
const PAGE: u64 = 4096;
/// Capabilities are 4-aligned in 192 bytes: a list with more entries is a loop.
const CAPABILITIES_MAX: usize = 48;

/// Why a function can't be used. Each names the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// A BAR is not what ivshmem has there.
    #[error("PCI {function}: BAR {bar} reads {value:#010x} when sized: not an ivshmem-doorbell's")]
    BadBar {
        /// The function.
        function: Address,
        /// The BAR's number.
        bar: u8,
        /// What it answered to all ones.
        value: u32,
    },
    /// The bridge's aperture has no room for a BAR.
    #[error("PCI {function}: no room for {size:#x} bytes of BAR {bar}: fewer functions or a smaller window")]
    NoRoom {
        /// The function.
        function: Address,
        /// The BAR's number.
        bar: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// The function has no MSI-X, which ivshmem-plain has not.
    #[error("PCI {0}: no MSI-X capability: use ivshmem-doorbell, not ivshmem-plain")]
    NoMsix(Address),
    /// The capability list points nowhere or to itself.
    #[error("PCI {0}: the capability list does not end")]
    CapabilityLoop(Address),
    /// The MSI-X table is not at the start of BAR 1, or does not fit it.
    #[error("PCI {function}: MSI-X table of {vectors} entries at {location:#x} is not BAR 1's")]
    BadTable {
        /// The function.
        function: Address,
        /// Its table's BAR and offset as the capability has them.
        location: u32,
        /// Its entries.
        vectors: u16,
    },
}

/// Hands out addresses from the bridge's apertures, upwards and never again.
#[derive(Debug)]
pub struct Allocator {
    low: Range<u64>,
    high: Option<Range<u64>>,
}

impl Allocator {
    /// All of `apertures`.
    pub fn new(apertures: &Apertures) -> Self {
        Self { low: apertures.low.clone(), high: apertures.high.clone() }
    }

    /// `size` bytes, a power of two, aligned to themselves and to a page.
    fn take(range: &mut Range<u64>, size: u64) -> Option<u64> {
        let size = size.max(PAGE);
        let start = range.start.checked_next_multiple_of(size)?;
        let end = start.checked_add(size)?;
        (end <= range.end).then(|| {
            range.start = end;
            start
        })
    }
}

/// Finds the ivshmem functions of bus 0, in order of address.
pub fn find_ivshmem(configuration: &impl Configuration) -> impl Iterator<Item = Address> {
    (0..32).flat_map(move |device| {
        let first = Address::new(device, 0);
        let functions = if configuration.read(first, 0) == u32::MAX {
            0
        } else if configuration.read(first, HEADER_TYPE) >> 23 & 1 == 1 {
            8
        } else {
            1
        };
        (0..functions)
            .map(move |function| Address::new(device, function))
            .filter(move |&function| configuration.read(function, 0) == IVSHMEM)
    })
}

/// Has every function of bus 0 but bridges answer to no access and make none, as after a reset: the addresses that firmware
/// gave them may be given to others.
pub fn silence(configuration: &mut impl Configuration) {
    const BRIDGE: u32 = 0x06;
    for number in 0..=u8::MAX {
        let function = Address::new(number >> 3, number);
        if configuration.read(function, 0) != u32::MAX
            && configuration.read(function, HEADER_CLASS) >> 24 != BRIDGE
        {
            // The upper half is the status, whose bits are cleared by ones.
            let command = configuration.read(function, HEADER_COMMAND) & 0xffff;
            let off = command & !(COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER);
            configuration.write(function, HEADER_COMMAND, off);
        }
    }
}

/// Gives the BARs of one ivshmem function their addresses and lets it answer and interrupt.
///
/// BAR 0 gets a page of its own, so that it can be mapped alone: it is an enclave's doorbell. BAR 1 is aligned to its
/// own size. BAR 2, the host's view of the window, is parked in the high aperture before memory decoding goes on: nobody
/// here uses it, and unassigned it would answer at address 0.
///
/// # Errors
/// [`PciError`] names the function and the culprit; it then does not answer.
pub fn assign(
    configuration: &mut impl Configuration,
    allocator: &mut Allocator,
    function: Address,
) -> Result<Ivshmem, PciError> {
    let command = configuration.read(function, HEADER_COMMAND) & 0xffff;
    configuration.write(function, HEADER_COMMAND, command & !(COMMAND_MEMORY | COMMAND_BUS_MASTER));

    let doorbell_size = size_low(configuration, function, 0)?;
    let table_size = size_low(configuration, function, 1)?.max(PAGE);
    let window_size = size_high(configuration, function, 2)?;
    let vectors = msix_vectors(configuration, function, table_size)?;

    let low = |allocator: &mut Allocator, bar, size| {
        Allocator::take(&mut allocator.low, size).ok_or(PciError::NoRoom { function, bar, size })
    };
    let doorbell_page = low(allocator, 0, doorbell_size)?;
    let msix_table = low(allocator, 1, table_size)?;
    let parked = allocator
        .high
        .as_mut()
        .and_then(|high| Allocator::take(high, window_size))
        .ok_or(PciError::NoRoom { function, bar: 2, size: window_size })?;

    configuration.write(function, HEADER_BAR0, doorbell_page as u32);
    configuration.write(function, HEADER_BAR0 + 4, msix_table as u32);
    configuration.write(function, HEADER_BAR0 + 8, parked as u32);
    configuration.write(function, HEADER_BAR0 + 12, (parked >> 32) as u32);
    configuration.write(function, HEADER_COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
    Ok(Ivshmem { address: function, doorbell_page, msix_table, msix_table_size: table_size, vectors })
}

/// Lets the function raise its MSI-X vectors, or stops it.
///
/// # Errors
/// [`PciError::NoMsix`] and [`PciError::CapabilityLoop`].
pub fn enable_msix(
    configuration: &mut impl Configuration,
    function: Address,
    enable: bool,
) -> Result<(), PciError> {
    let capability = msix_capability(configuration, function)?;
    let value = configuration.read(function, capability) & !(MSIX_ENABLE | MSIX_FUNCTION_MASK);
    configuration.write(function, capability, value | if enable { MSIX_ENABLE } else { 0 });
    Ok(())
}

/// The size of a 32-bit memory BAR.
fn size_low(configuration: &mut impl Configuration, function: Address, bar: u8) -> Result<u64, PciError> {
    let offset = HEADER_BAR0 + 4 * bar;
    configuration.write(function, offset, u32::MAX);
    let value = configuration.read(function, offset);
    let size = u64::from(!(value & !0xf)) + 1;
    if value & 0b111 != 0 || !size.is_power_of_two() || size > 1 << 31 {
        return Err(PciError::BadBar { function, bar, value });
    }
    Ok(size)
}

/// The size of a 64-bit memory BAR.
fn size_high(configuration: &mut impl Configuration, function: Address, bar: u8) -> Result<u64, PciError> {
    let offset = HEADER_BAR0 + 4 * bar;
    configuration.write(function, offset, u32::MAX);
    configuration.write(function, offset + 4, u32::MAX);
    let value = configuration.read(function, offset);
    let mask = u64::from(configuration.read(function, offset + 4)) << 32 | u64::from(value & !0xf);
    let size = (!mask).wrapping_add(1);
    if value & 0b111 != 0b100 || !size.is_power_of_two() {
        return Err(PciError::BadBar { function, bar, value });
    }
    Ok(size)
}

/// The first capability whose header is wanted; 0 if there is none.
fn capability(
    configuration: &impl Configuration,
    function: Address,
    wanted: impl Fn(u32) -> bool,
) -> Result<u8, PciError> {
    if configuration.read(function, HEADER_COMMAND) & STATUS_CAPABILITIES == 0 {
        return Ok(0);
    }
    let mut offset = configuration.read(function, HEADER_CAPABILITIES) as u8 & !3;
    for _ in 0..CAPABILITIES_MAX {
        if offset == 0 {
            return Ok(0);
        }
        let header = configuration.read(function, offset);
        if wanted(header) {
            return Ok(offset);
        }
        offset = (header >> 8) as u8 & !3;
    }
    Err(PciError::CapabilityLoop(function))
}

fn msix_capability(configuration: &impl Configuration, function: Address) -> Result<u8, PciError> {
    match capability(configuration, function, |header| header as u8 == CAPABILITY_MSIX)? {
        0 => Err(PciError::NoMsix(function)),
        offset => Ok(offset),
    }
}

/// The number of MSI-X vectors, having checked that their table starts BAR 1 and fits it.
fn msix_vectors(
    configuration: &impl Configuration,
    function: Address,
    table_size: u64,
) -> Result<u16, PciError> {
    let capability = msix_capability(configuration, function)?;
    let vectors = (configuration.read(function, capability) >> 16 & 0x7ff) as u16 + 1;
    // The capability's second register: BAR number in the low three bits, offset above.
    let location = configuration.read(function, capability.saturating_add(4) & !3);
    if location != 1 || u64::from(vectors) * 16 > table_size {
        return Err(PciError::BadTable { function, location, vectors });
    }
    Ok(vectors)
}

pub mod virtio;

/// The real configuration space.
#[cfg(all(
    target_arch = "aarch64",
    any(all(target_os = "none", feature = "el1"), all(target_os = "uefi", feature = "loader"))
))]
pub mod ecam {
    use core::ops::Range;
    use core::ptr::NonNull;

    use safe_mmio::UniqueMmioPointer;
    use safe_mmio::fields::ReadPureWrite;

    use super::{Address, Configuration};

    /// The registers of bus 0: 256 functions of 4 KiB (§7.2.2).
    pub const BUS_SIZE: u64 = 1 << 20;
    const REGISTERS: usize = BUS_SIZE as usize / 4;

    /// Bus 0 of an ECAM.
    pub struct Ecam {
        registers: UniqueMmioPointer<'static, [ReadPureWrite<u32>; REGISTERS]>,
    }

    impl Ecam {
        /// The ECAM at `range`; `None` when it is smaller than a bus.
        ///
        /// # Safety
        /// `range` must be an ECAM, mapped as registers for as long as the image runs, and nobody else's.
        pub unsafe fn new(range: &Range<u64>) -> Option<Self> {
            if range.end.checked_sub(range.start)? < BUS_SIZE {
                return None;
            }
            let registers = NonNull::new(core::ptr::with_exposed_provenance_mut(range.start as usize))?;
            Some(Self {
                // SAFETY: the caller's promise, and the size was checked.
                registers: unsafe { UniqueMmioPointer::new(registers) },
            })
        }
    }

    fn index(function: Address, offset: u8) -> usize {
        (function.ecam_offset() as usize + usize::from(offset)) / 4 % REGISTERS
    }

    impl Configuration for Ecam {
        fn read(&self, function: Address, offset: u8) -> u32 {
            self.registers
                .as_slice()
                .get(index(function, offset))
                .map_or(u32::MAX, |register| register.read())
        }

        fn write(&mut self, function: Address, offset: u8, value: u32) {
            if let Some(mut register) = self.registers.as_mut_slice().get(index(function, offset)) {
                register.write(value);
            }
        }
    }
}

/// MSI-X tables (§7.7.2): entries of address, data and mask.
pub mod msix_table {
    use core::mem::offset_of;

    use safe_mmio::fields::ReadPureWrite;
    use safe_mmio::{UniqueMmioPointer, field};

    /// One entry.
    #[repr(C, align(16))]
    #[derive(Debug)]
    pub struct Entry {
        address_low: ReadPureWrite<u32>,
        address_high: ReadPureWrite<u32>,
        data: ReadPureWrite<u32>,
        /// Bit 0 masks the vector.
        control: ReadPureWrite<u32>,
    }

    const _: () = assert!(offset_of!(Entry, data) == 8 && offset_of!(Entry, control) == 12);
    const _: () = assert!(size_of::<Entry>() == 16);

    /// Makes a vector a store of `data` to `address`, and unmasks it.
    pub fn aim(mut entry: UniqueMmioPointer<'_, Entry>, address: u64, data: u32) {
        field!(entry, control).write(1);
        field!(entry, address_low).write(address as u32);
        field!(entry, address_high).write((address >> 32) as u32);
        field!(entry, data).write(data);
        field!(entry, control).write(0);
    }

    /// Masks a vector, whatever it was before.
    pub fn close(mut entry: UniqueMmioPointer<'_, Entry>) {
        field!(entry, control).write(1);
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use core::ptr::NonNull;

        #[test]
        fn an_aimed_vector_is_unmasked_and_stores_what_it_should() {
            #[repr(align(16))]
            struct Memory([u32; 8]);
            let mut memory = Memory([u32::MAX; 8]);
            let entries = NonNull::from(&mut memory).cast::<Entry>();
            // SAFETY: 32 aligned bytes of memory stand for two entries, and this is the only way to the second.
            let entry = unsafe { UniqueMmioPointer::new(entries.add(1)) };
            aim(entry, 0x12_0802_0040, 81);
            assert_eq!(memory.0, [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x0802_0040, 0x12, 81, 0]);
            let entries = NonNull::from(&mut memory).cast::<Entry>();
            // SAFETY: as above.
            close(unsafe { UniqueMmioPointer::new(entries.add(1)) });
            assert_eq!(memory.0[7], 1);
        }
    }
}

#[cfg(test)]
mod tests;
