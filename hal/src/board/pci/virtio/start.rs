//! The loader's half: finding the function's registers, and starting it.

use core::mem::offset_of;
use core::ptr::NonNull;

use safe_mmio::fields::{ReadPure, ReadPureWrite};
use safe_mmio::{UniqueMmioPointer, field, field_shared};

use super::{AVAILABLE_AT, DESCRIPTORS, QUEUE_BYTES, READY_AT, USED_AT};
use crate::board::pci::{
    Address, COMMAND_BUS_MASTER, COMMAND_MEMORY, Configuration, HEADER_BAR0, HEADER_COMMAND, capability,
    size_high, size_low,
};

/// How much of PCI's memory the function's registers get, at its end and on a multiple of this; its other BARs lie below.
pub const REGISTERS_BYTES: u64 = 64 << 10;

/// A block device, as a function of version 1 or as one that still answers to drivers from before it.
const BLOCK: [u32; 2] = [0x1042_1af4, 0x1001_1af4];
const CAPABILITY_VENDOR: u8 = 0x09;
/// What a capability tells the place of (§4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const BARS: u8 = 6;
const COMMAND_NO_INTX: u32 = 1 << 10;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// VIRTIO_BLK_F_FLUSH, of the first 32 features: what was written can be made durable.
const FEATURE_FLUSH: u32 = 1 << 9;
/// VIRTIO_F_VERSION_1, of the second 32.
const FEATURE_VERSION_1: u32 = 1;
const NO_VECTOR: u16 = 0xffff;
/// Reads of the status until a reset has to be over.
const RESET_READS_MAX: u32 = 100_000;

/// Where a function has its registers: the BAR, and offsets in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    bar: u8,
    common: u32,
    notify: u32,
}

impl Found {
    /// The register that makes the function look at its queue, once it is started with its registers at `registers`.
    #[must_use]
    pub fn notify(&self, registers: u64) -> u64 {
        registers + u64::from(self.notify)
    }
}

/// The registers that configure a function (§4.1.4.3).
#[repr(C)]
struct Common {
    device_feature_select: ReadPureWrite<u32>,
    device_feature: ReadPure<u32>,
    driver_feature_select: ReadPureWrite<u32>,
    driver_feature: ReadPureWrite<u32>,
    vector: ReadPureWrite<u16>,
    queues: ReadPure<u16>,
    status: ReadPureWrite<u8>,
    generation: ReadPure<u8>,
    queue_select: ReadPureWrite<u16>,
    queue_size: ReadPureWrite<u16>,
    queue_vector: ReadPureWrite<u16>,
    queue_enable: ReadPureWrite<u16>,
    queue_notify_off: ReadPure<u16>,
    /// Of the descriptors, of what is available, of what is used; the lower half first.
    addresses: [ReadPureWrite<u32>; 6],
}

const _: () = assert!(offset_of!(Common, status) == 0x14 && offset_of!(Common, queue_notify_off) == 0x1e);
const _: () = assert!(offset_of!(Common, addresses) == 0x20 && size_of::<Common>() == 0x38);

/// Finds the registers of a block device; none if the function is no such device, or has them elsewhere than they are looked for.
#[must_use]
pub fn find(configuration: &impl Configuration, function: Address) -> Option<Found> {
    if !BLOCK.contains(&configuration.read(function, 0)) {
        return None;
    }
    let place = |what: u8, bytes: u32| {
        let is_it = |header| header as u8 == CAPABILITY_VENDOR && (header >> 24) as u8 == what;
        let at = capability(configuration, function, is_it).ok().filter(|&at| at != 0 && at < 0xf0)?;
        let (bar, offset) =
            (configuration.read(function, at + 4) as u8, configuration.read(function, at + 8));
        let fits = bar < BARS && u64::from(offset) + u64::from(bytes) <= REGISTERS_BYTES;
        (fits && offset.is_multiple_of(4)).then_some((bar, offset))
    };
    let (bar, common) = place(COMMON, size_of::<Common>() as u32)?;
    let (other, notify) = place(NOTIFY, 2)?;
    (bar == other).then_some(Found { bar, common, notify })
}

/// Starts the function, which nobody drives: its registers at `registers`, its queue in `memory`. Whether it was started stands in
/// that memory too.
///
/// # Safety
/// `registers`, [`REGISTERS_BYTES`] long and on a multiple of them, is mapped as registers and is no other function's, nor is as
/// much below it; `memory` is [`QUEUE_BYTES`] of zeroed memory at its own physical address, from now on the function's.
pub unsafe fn start(
    configuration: &mut impl Configuration,
    function: Address,
    found: &Found,
    registers: u64,
    memory: u64,
) -> bool {
    let command = configuration.read(function, HEADER_COMMAND) & 0xffff;
    if place_bars(configuration, function, found.bar, registers).is_none() {
        return false;
    }
    let on = command | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
    configuration.write(function, HEADER_COMMAND, on);
    let common =
        core::ptr::with_exposed_provenance_mut::<Common>((registers + u64::from(found.common)) as usize);
    let Some(common) = NonNull::new(common) else { return false };
    // SAFETY: the caller's promise, and `find` has seen that the registers lie within.
    let started = initialise(unsafe { UniqueMmioPointer::new(common) }, memory);
    let ready = core::ptr::with_exposed_provenance_mut::<u32>(memory as usize + READY_AT);
    const { assert!(READY_AT + 4 <= QUEUE_BYTES) };
    // SAFETY: the caller's memory, which nobody else has but the function, and that does not look there.
    unsafe { ready.write_volatile(started.into()) };
    started
}

/// Gives every BAR a place, so that none answers where others are put: that of the registers its own, the rest below. None if
/// one is larger than it may be.
fn place_bars(
    configuration: &mut impl Configuration,
    function: Address,
    bar: u8,
    registers: u64,
) -> Option<()> {
    let mut below = registers;
    let mut number = 0;
    while number < BARS {
        let offset = HEADER_BAR0 + 4 * number;
        let kind = configuration.read(function, offset);
        let is_wide = kind & 0b111 == 0b100;
        let size = match kind & 0b111 {
            0b000 => size_low(configuration, function, number).ok(),
            0b100 => size_high(configuration, function, number).ok(),
            // Of I/O, which stays off.
            _ => None,
        };
        if number == bar && size.is_none_or(|size| size > REGISTERS_BYTES) {
            return None;
        }
        // A BAR that is not there reads 0 when it is sized.
        if let Some(size) = size.filter(|&size| size <= REGISTERS_BYTES) {
            let place = if number == bar {
                registers
            } else {
                below = below.checked_sub(size)? & !(size - 1);
                below
            };
            configuration.write(function, offset, place as u32);
            if is_wide {
                configuration.write(function, offset + 4, (place >> 32) as u32);
            }
        }
        number += if is_wide { 2 } else { 1 };
    }
    Some(())
}

/// The initialisation of §3.1.1, with the one queue. False if the function does not take what is offered.
fn initialise(mut common: UniqueMmioPointer<'_, Common>, memory: u64) -> bool {
    field!(common, status).write(0);
    if !(0..RESET_READS_MAX).any(|_| field_shared!(common, status).read() == 0) {
        return false;
    }
    field!(common, status).write(ACKNOWLEDGE);
    field!(common, status).write(ACKNOWLEDGE | DRIVER);
    for (select, needed) in [(0, FEATURE_FLUSH), (1, FEATURE_VERSION_1)] {
        field!(common, device_feature_select).write(select);
        let offered = field_shared!(common, device_feature).read();
        if offered & needed != needed {
            return false;
        }
        field!(common, driver_feature_select).write(select);
        field!(common, driver_feature).write(needed);
    }
    field!(common, status).write(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if field_shared!(common, status).read() & FEATURES_OK == 0 {
        return false;
    }
    field!(common, vector).write(NO_VECTOR);
    field!(common, queue_select).write(0);
    // The register to notify is at its own offset only for a queue whose is 0.
    if field_shared!(common, queue_size).read() < DESCRIPTORS
        || field_shared!(common, queue_notify_off).read() != 0
    {
        return false;
    }
    field!(common, queue_size).write(DESCRIPTORS);
    field!(common, queue_vector).write(NO_VECTOR);
    let places = [0, AVAILABLE_AT, USED_AT].map(|at| memory + at as u64);
    let halves = places.into_iter().flat_map(|place| [place as u32, (place >> 32) as u32]);
    for (mut register, half) in field!(common, addresses).split().into_iter().zip(halves) {
        register.write(half);
    }
    field!(common, queue_enable).write(1);
    field!(common, status).write(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    true
}
