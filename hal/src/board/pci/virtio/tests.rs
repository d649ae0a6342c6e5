//! A disk against memory that stands for its registers and its queue.

use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::board::pci::tests::{Bus, FIRST, Function};
use crate::board::pci::{Address, COMMAND_MEMORY, Configuration};

#[repr(align(4096))]
struct Memory([u32; QUEUE_BYTES / 4]);

fn memory() -> &'static mut Memory {
    Box::leak(Box::new(Memory([0; QUEUE_BYTES / 4])))
}

#[repr(align(65536))]
struct Registers([u32; REGISTERS_BYTES as usize / 4]);

fn address<T>(of: &mut T) -> u64 {
    core::ptr::from_mut(of).expose_provenance() as u64
}

/// What QEMU's virtio-blk-pci shows: an I/O BAR, the MSI-X table, and the registers of version 1 in BAR 4, told of by
/// capabilities.
fn block() -> Function {
    let mut f = Function { registers: [0; 64], writable: [0; 64] };
    f.registers[0] = 0x1001_1af4;
    f.registers[1] = 1 << 20;
    f.writable[1] = 0xffff;
    f.registers[4] = 1;
    f.writable[4] = !0x7f;
    f.writable[5] = !0xfff;
    f.registers[8] = 0b1100;
    f.writable[8] = !0x3fff & !0xf;
    f.writable[9] = u32::MAX;
    f.registers[0x34 / 4] = 0x98;
    f.registers[0x98 / 4] = 0x84 << 8 | 0x11;
    let mut tell = |at: usize, next: u32, what: u32, offset: u32| {
        f.registers[at / 4] = what << 24 | 0x10 << 16 | next << 8 | 0x09;
        f.registers[at / 4 + 1] = 4;
        f.registers[at / 4 + 2] = offset;
        f.registers[at / 4 + 3] = 0x1000;
    };
    tell(0x84, 0x60, 5, 0);
    tell(0x60, 0x50, 2, 0x3000);
    tell(0x50, 0, 1, 0x100);
    f
}

fn bus() -> Bus {
    let mut bus = Bus::default();
    bus.0.insert(FIRST, block());
    bus
}

#[test]
fn what_is_left_comes_back() {
    let left =
        Left { notify: 0x3efe_3000, memory: 1 << 40 | 5, sectors: u64::MAX, writable: [1, 2 << 33, 3, 4] };
    let bytes: Vec<u8> = left.to_words().iter().flat_map(|word| word.to_be_bytes()).collect();
    assert_eq!(Left::from_bytes(&bytes), Some(left));
    assert_eq!(Left::from_bytes(&bytes[8..]), None);
}

#[test]
fn the_registers_of_a_disk_are_found_and_those_of_nothing_else() {
    let found = find(&bus(), FIRST).unwrap();
    assert_eq!(found.notify(0x3efe_0000), 0x3efe_3000);
    assert_eq!(find(&bus(), Address::new(5, 0)), None);
    for (register, value) in
        [(0, 0x1000_1af4), (0x64 / 4, 2), (0x54 / 4, 7), (0x58 / 4, 0xfff0), (0x98 / 4, 0x98 << 8)]
    {
        let mut bus = bus();
        bus.0.get_mut(&FIRST).unwrap().registers[register] = value;
        assert_eq!(find(&bus, FIRST), None, "register {register}");
    }
}

/// Starts what stands for a function: its registers say what they are given to say.
fn started(prepare: impl Fn(&mut Registers)) -> (bool, Bus, &'static mut Memory, Box<Registers>) {
    let mut bus = bus();
    let found = find(&bus, FIRST).unwrap();
    let mut registers = Box::new(Registers([0; REGISTERS_BYTES as usize / 4]));
    prepare(&mut registers);
    let memory = memory();
    let (at, place) = (address(registers.as_mut()), address(memory));
    // SAFETY: both stand for what they are called, and are as large and aligned as that.
    let done = unsafe { start(&mut bus, FIRST, &found, at, place) };
    (done, bus, memory, registers)
}

const COMMON: usize = 0x100 / 4;

/// A function that offers all features and a queue of 256. What is written to a register is read from it: so the status sticks.
fn willing(registers: &mut Registers) {
    registers.0[COMMON + 1] = u32::MAX;
    registers.0[COMMON + 6] = 256;
}

#[test]
fn a_function_that_is_started_has_its_queue_and_answers_nowhere_else() {
    let (done, bus, memory, mut registers) = started(willing);
    assert!(done);
    assert_eq!(memory.0[READY_AT / 4], 1);
    let (at, place) = (address(registers.as_mut()), address(memory));
    assert_eq!(registers.0[COMMON + 5] & 0xff, 0xf, "acknowledged, driven, features, started");
    assert_eq!(registers.0[COMMON + 3], 1, "version 1");
    assert_eq!(registers.0[COMMON + 6] & 0xffff, 4);
    assert_eq!(registers.0[COMMON + 7] & 0xffff, 1, "enabled");
    let address =
        |at: usize| u64::from(registers.0[COMMON + at + 1]) << 32 | u64::from(registers.0[COMMON + at]);
    assert_eq!([8, 10, 12].map(address), [place, place + 64, place + 128]);
    let bar = |number: u8| bus.read(FIRST, 0x10 + 4 * number);
    assert_eq!(u64::from(bar(5)) << 32 | u64::from(bar(4) & !0xf), at);
    assert_eq!(u64::from(bar(1)), (at - 0x1000) & 0xffff_ffff, "the table lies below");
    assert_eq!(bus.read(FIRST, 4) & COMMAND_MEMORY, COMMAND_MEMORY);
    assert_eq!(bus.read(FIRST, 4) & 1, 0, "I/O stays off");
}

#[test]
fn a_function_that_will_not_is_left_alone() {
    for (what, prepare) in [
        ("no features", (|registers| registers.0[COMMON + 6] = 256) as fn(&mut Registers)),
        ("a queue of two", |registers| {
            registers.0[COMMON + 1] = u32::MAX;
            registers.0[COMMON + 6] = 2;
        }),
        ("a queue that is notified elsewhere", |registers| {
            willing(registers);
            registers.0[COMMON + 7] = 1 << 16;
        }),
    ] {
        let (done, _, memory, mut registers) = started(prepare);
        assert!(!done, "{what}");
        let left = Left {
            notify: address(registers.as_mut()),
            memory: address(memory),
            sectors: 1,
            writable: [0; 4],
        };
        // SAFETY: memory that stands for it.
        assert!(unsafe { Disk::new(&left) }.is_none(), "{what}");
    }
}

#[test]
fn a_request_is_a_chain_that_the_function_can_follow_and_ends_when_it_says() {
    let (_, _, memory, mut registers) = started(willing);
    let base = address(memory);
    let left =
        Left { notify: address(registers.as_mut()) + 0x3000, memory: base, sectors: 8, writable: [0; 4] };
    registers.0[0x3000 / 4] = u32::MAX;
    // SAFETY: memory that stands for it.
    let mut disk = unsafe { Disk::new(&left) }.unwrap();
    let word = |at: usize| {
        // SAFETY: within the queue's memory; the disk reaches it by atomics.
        unsafe { core::ptr::with_exposed_provenance::<u32>(base as usize + at).read_volatile() }
    };
    let set = |at: usize, value: u32| {
        // SAFETY: as above.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(base as usize + at).write_volatile(value) };
    };
    let pointed =
        |descriptor: usize| u64::from(word(16 * descriptor + 4)) << 32 | u64::from(word(16 * descriptor));
    for (number, (request, head, bytes, flags)) in [
        (Request::Read(5 << 32 | 7, 512), [0, 0, 7, 5], 512, 3 | 2 << 16),
        (Request::Write(9, 65_536), [1, 0, 9, 0], 65_536, 1 | 2 << 16),
    ]
    .into_iter()
    .enumerate()
    {
        disk.begin(request);
        assert_eq!([0, 4, 8, 12].map(|at| word(HEAD_AT + at)), head);
        assert_eq!([0, 1, 2].map(pointed), [HEAD_AT, BUFFER_AT, STATUS_AT].map(|at| base + at as u64));
        assert_eq!([0, 1, 2].map(|descriptor| word(16 * descriptor + 8)), [16, bytes, 1]);
        assert_eq!([0, 1, 2].map(|descriptor| word(16 * descriptor + 12)), [1 | 1 << 16, flags, 2]);
        assert_eq!(word(AVAILABLE_AT), 1 | (number as u32 + 1) << 16);
        assert_eq!(disk.end(), None, "it has not ended");
        set(STATUS_AT, number as u32);
        set(USED_AT, (number as u32 + 1) << 16);
        assert_eq!(disk.end(), Some(number == 0), "the second fails");
    }
    disk.begin(Request::Flush);
    assert_eq!((word(12), word(HEAD_AT)), (1 | 2 << 16, 4), "behind the head comes the status");
    assert_eq!(registers.0[0x3000 / 4] & 0xffff, 0, "queue 0 was named");
}
