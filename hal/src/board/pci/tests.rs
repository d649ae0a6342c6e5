//! The walk over PCI, against functions that behave and functions that lie.

use std::collections::BTreeMap;

use super::*;

/// One function's configuration space: registers, and which of their bits a write reaches.
#[derive(Clone)]
pub(super) struct Function {
    pub registers: [u32; 64],
    pub writable: [u32; 64],
}

#[derive(Default)]
pub(super) struct Bus(pub BTreeMap<Address, Function>);

impl Configuration for Bus {
    fn read(&self, function: Address, offset: u8) -> u32 {
        assert_eq!(offset % 4, 0);
        self.0.get(&function).map_or(u32::MAX, |f| f.registers[usize::from(offset / 4)])
    }

    fn write(&mut self, function: Address, offset: u8, value: u32) {
        assert_eq!(offset % 4, 0);
        if let Some(f) = self.0.get_mut(&function) {
            let (index, mask) = (usize::from(offset / 4), f.writable[usize::from(offset / 4)]);
            f.registers[index] = f.registers[index] & !mask | value & mask;
        }
    }
}

/// What QEMU's ivshmem-doorbell shows: BAR 0 of 256 bytes, BAR 1 of the table and its pending bits, BAR 2 of
/// the window, 64-bit and prefetchable, MSI-X behind another capability.
fn ivshmem(vectors: u16, bar1_size: u32, window_size: u64) -> Function {
    let mut f = Function { registers: [0; 64], writable: [0; 64] };
    f.registers[0] = IVSHMEM;
    f.registers[1] = STATUS_CAPABILITIES;
    f.writable[1] = 0xffff;
    f.writable[4] = !(256 - 1);
    f.writable[5] = !(bar1_size - 1);
    f.registers[6] = 0b1100;
    f.writable[6] = !(window_size - 1) as u32 & !0xf;
    f.writable[7] = (!(window_size - 1) >> 32) as u32;
    f.registers[0x34 / 4] = 0x40;
    f.registers[0x40 / 4] = 0x80 << 8 | 0x10;
    f.registers[0x80 / 4] = (u32::from(vectors) - 1) << 16 | u32::from(CAPABILITY_MSIX);
    f.writable[0x80 / 4] = MSIX_ENABLE | MSIX_FUNCTION_MASK;
    f.registers[0x84 / 4] = 1;
    f
}

fn apertures() -> Apertures {
    Apertures { low: 0x1000_0000..0x3eff_0000, high: Some(0x80_0000_0000..0x100_0000_0000) }
}

pub(super) const FIRST: Address = Address::new(2, 0);
const SECOND: Address = Address::new(2, 1);

fn two_functions() -> Bus {
    let mut bus = Bus::default();
    let mut bridge = ivshmem(1, 4096, 4096);
    bridge.registers[0] = 0x0008_1b36;
    bus.0.insert(Address::new(0, 0), bridge);
    let mut first = ivshmem(16, 4096, 16 << 20);
    first.registers[3] = 1 << 23;
    bus.0.insert(FIRST, first);
    bus.0.insert(SECOND, ivshmem(256, 8192, 1 << 30));
    // A device of one function that echoes it at all numbers must not be found eight times.
    bus.0.insert(Address::new(4, 1), ivshmem(16, 4096, 16 << 20));
    bus
}

#[test]
fn only_functions_that_exist_and_are_ivshmem_are_found() {
    let found: Vec<_> = find_ivshmem(&two_functions()).collect();
    assert_eq!(found, [FIRST, SECOND]);
    assert_eq!(FIRST.to_string(), "00:02.0");
    assert_eq!(find_ivshmem(&Bus::default()).count(), 0);
}

#[test]
fn bars_do_not_share_a_page_and_are_aligned_to_their_size() {
    let mut bus = two_functions();
    let mut allocator = Allocator::new(&apertures());
    let first = assign(&mut bus, &mut allocator, FIRST).unwrap();
    let second = assign(&mut bus, &mut allocator, SECOND).unwrap();
    assert_eq!((first.vectors, second.vectors), (16, 256));
    assert_eq!((first.doorbell_page, first.msix_table), (0x1000_0000, 0x1000_1000));
    assert_eq!(second.doorbell_page, 0x1000_2000);
    assert_eq!((second.msix_table, second.msix_table_size), (0x1000_4000, 8192));
    for (function, doorbell, table, parked) in [
        (FIRST, 0x1000_0000u32, 0x1000_1000u32, 0x80_0000_0000u64),
        (SECOND, 0x1000_2000, 0x1000_4000, 0x80_4000_0000),
    ] {
        let registers = &bus.0[&function].registers;
        assert_eq!(registers[4], doorbell);
        assert_eq!(registers[5], table);
        assert_eq!(u64::from(registers[7]) << 32 | u64::from(registers[6] & !0xf), parked);
        assert_eq!(registers[1] & 0xffff, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    }
}

#[test]
fn msix_goes_on_and_off() {
    let mut bus = two_functions();
    bus.0.get_mut(&FIRST).unwrap().registers[0x80 / 4] |= MSIX_FUNCTION_MASK;
    enable_msix(&mut bus, FIRST, true).unwrap();
    assert_eq!(bus.read(FIRST, 0x80) >> 30, 0b10);
    enable_msix(&mut bus, FIRST, false).unwrap();
    assert_eq!(bus.read(FIRST, 0x80) >> 30, 0);
}

#[test]
fn liars_are_named_and_left_deaf() {
    type Lie = (&'static str, fn(&mut Function));
    let lies: [Lie; 8] = [
        ("BAR 0", |f| f.registers[4] = 1),
        ("BAR 0", |f| f.writable[4] = 0),
        ("BAR 1", |f| f.writable[5] = 0xffff_0ff0),
        ("BAR 2", |f| f.registers[6] = 0),
        ("no MSI-X", |f| f.registers[1] &= !STATUS_CAPABILITIES),
        ("no MSI-X", |f| f.registers[0x40 / 4] = 0x10),
        ("does not end", |f| f.registers[0x40 / 4] = 0x40 << 8 | 0x10),
        ("MSI-X table", |f| f.registers[0x84 / 4] = 2),
    ];
    for (culprit, lie) in lies {
        let mut bus = two_functions();
        lie(bus.0.get_mut(&FIRST).unwrap());
        let error = assign(&mut bus, &mut Allocator::new(&apertures()), FIRST).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("00:02.0") && text.contains(culprit), "{text}");
        assert_eq!(bus.0[&FIRST].registers[1] & COMMAND_MEMORY, 0, "{text}");
    }
}

#[test]
fn a_table_larger_than_its_bar_is_refused() {
    let mut bus = two_functions();
    bus.0.insert(FIRST, ivshmem(257, 4096, 4096));
    assert!(matches!(
        assign(&mut bus, &mut Allocator::new(&apertures()), FIRST),
        Err(PciError::BadTable { vectors: 257, .. })
    ));
}

#[test]
fn an_aperture_that_is_full_is_named_with_the_bar_that_did_not_fit() {
    let cases = [
        (0x1000_0000..0x1000_0000, apertures().high, 0),
        (0x1000_0000..0x1000_1000, apertures().high, 1),
        (apertures().low, Some(0x80_0000_0000..0x80_0080_0000), 2),
        (apertures().low, None, 2),
        (u64::MAX - 10..u64::MAX, apertures().high, 0),
    ];
    for (low, high, culprit) in cases {
        let mut allocator = Allocator::new(&Apertures { low, high });
        let error = assign(&mut two_functions(), &mut allocator, FIRST).unwrap_err();
        assert!(matches!(error, PciError::NoRoom { bar, .. } if bar == culprit), "{error}");
    }
}

#[test]
fn what_is_silenced_answers_nothing_and_bridges_go_on() {
    const ALL_ON: u32 = STATUS_CAPABILITIES | COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 10;
    let mut bus = two_functions();
    let bridge = Address::new(0, 0);
    for function in bus.0.values_mut() {
        function.registers[1] = ALL_ON;
    }
    bus.0.get_mut(&bridge).unwrap().registers[2] = 0x0604_0000;
    silence(&mut bus);
    assert_eq!(bus.read(bridge, HEADER_COMMAND), ALL_ON);
    for function in [FIRST, SECOND] {
        assert_eq!(bus.read(function, HEADER_COMMAND), STATUS_CAPABILITIES | 1 << 10);
    }
}
