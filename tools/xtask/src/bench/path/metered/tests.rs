//! The plugin on the QEMU at hand, against a program whose every count is known.

use std::fs;
use std::process::Command;

use neap_meter::attempt::WHOLE_LINE;
use neap_meter::record::{Ending, Path, Totals};

use super::*;
use crate::setup;

/// Where the program looks for messages, and where it puts decisions: both in the window.
const PLACES: Places = Places {
    ring: WINDOW_BASE + 0x1000..WINDOW_BASE + 0x1100,
    slots: WINDOW_BASE + 0x4000..WINDOW_BASE + 0x4400,
};
/// It rings at offset 12 of the PL011's page, a register that is none.
const DOORBELLS: Range<u64> = 0x0900_0000..0x0900_1000;

/// For each of four lines: three empty polls, then the whole line. Line 0 is only consumed, line 1 fills a
/// slot, lines 2 and 3 fill one, ring, and fill another.
const PROGRAM: [u32; 32] = [
    0xd2a9_0000, //        mov x0, #0x48000000
    0xf282_0000, //        movk x0, #0x1000
    0xd2a9_0001, //        mov x1, #0x48000000
    0xf288_0001, //        movk x1, #0x4000
    0xd2a1_2002, //        mov x2, #0x9000000
    0xd280_000a, //        mov x10, #0
    0x8b0a_180c, // line:  add x12, x0, x10, lsl #6
    0xd280_006f, //        mov x15, #3
    0xf940_018d, // poll:  ldr x13, [x12]
    0xd100_05ef, //        sub x15, x15, #1
    0xb5ff_ffcf, //        cbnz x15, poll
    0xa940_398d, //        ldp x13, x14, [x12]
    0xa941_4590, //        ldp x16, x17, [x12, #16]
    0xa942_4d92, //        ldp x18, x19, [x12, #32]
    0xa943_5594, //        ldp x20, x21, [x12, #48]
    0xb400_00ca, //        cbz x10, next
    0xf82a_782d, //        str x13, [x1, x10, lsl #3]
    0x3608_008a, //        tbz w10, #1, next
    0xd503_3abf, //        dmb ishst
    0xb900_0c4d, //        str w13, [x2, #12]
    0xf900_002d, //        str x13, [x1]
    0x9100_054a, // next:  add x10, x10, #1
    0xf100_115f, //        cmp x10, #4
    0x54ff_fde1, //        b.ne line
    0x5280_0300, //        mov w0, #0x18 (SYS_EXIT)
    0x1000_0061, //        adr x1, block
    0xd45e_0000, //        hlt #0xf000
    0xd503_201f, //        nop
    0x0002_0026, // block: ADP_Stopped_ApplicationExit
    0,
    0, //                  exit status
    0,
];
const BASE: u64 = 0x4020_0000;
const LINE: usize = 6;
const WHOLE: usize = 11;

fn elf() -> Vec<u8> {
    let code: Vec<u8> = PROGRAM.into_iter().flat_map(u32::to_le_bytes).collect();
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    bytes.resize(16, 0);
    bytes.extend([2u16, 183].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(1u32.to_le_bytes());
    bytes.extend([BASE, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([64u16, 56, 1, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend([1u32, 7].into_iter().flat_map(u32::to_le_bytes));
    let length = code.len() as u64;
    bytes.extend([120, BASE, BASE, length, length, 4096].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(code);
    bytes
}

/// The addresses of the program's instructions `range`, as the core walks them.
fn walk(range: impl IntoIterator<Item = usize>) -> Vec<u64> {
    range.into_iter().map(|index| BASE + 4 * index as u64).collect()
}

#[test]
fn the_plugin_counts_a_known_program_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let (elf_file, out) = (directory.path().join("program.elf"), directory.path().join(RECORDS));
    fs::write(&elf_file, elf()).unwrap();
    let parts = Parts::new(setup::qemu().unwrap(), elf_file.clone(), elf_file).unwrap();
    let args = MeterArgs { core: 0, doorbells: DOORBELLS, ..meter_args(&parts, &PLACES, out.clone()) };
    let mut command = Command::new(&parts.qemu);
    command
        .args(["-M", "virt", "-cpu", "neoverse-n1", "-nodefaults", "-display", "none"])
        .args(["-semihosting-config", "enable=on,target=native", "-m", "144M"])
        .args([
            "-object",
            "memory-backend-ram,id=m0,size=128M",
            "-object",
            "memory-backend-ram,id=m1,size=16M",
        ])
        .args(["-numa", "node,nodeid=0,memdev=m0", "-numa", "node,nodeid=1,memdev=m1"])
        .arg("-kernel")
        .arg(&parts.elf)
        .arg("-plugin")
        .arg(format!("{},{args}", parts.plugin.display()));
    process::output(&mut command, Limits::total(60)).unwrap();

    let records = record::read(&fs::read(out).unwrap()).unwrap();
    let [
        Record::FirstPoll(poll),
        Record::Path(consumed),
        Record::FirstDecision(decision),
        Record::Path(prestage),
        Record::Path(doorbell),
        Record::Path(last),
        Record::End(end),
    ] = &records[..]
    else {
        panic!("{records:#?}")
    };
    assert_eq!(poll, &Totals { instructions: vec![9] });
    assert_eq!(decision, &Totals { instructions: vec![42] });
    assert_eq!(end, &Totals { instructions: vec![97] });

    let shape = |path: &Path| (path.line, path.words, path.ending, path.instructions);
    assert_eq!(shape(consumed), (0, WHOLE_LINE, Ending::Consumed, 10));
    assert_eq!(shape(prestage), (1, WHOLE_LINE, Ending::Prestage, 6));
    assert_eq!(shape(doorbell), (2, WHOLE_LINE, Ending::Doorbell, 9));
    assert_eq!(shape(last), (3, WHOLE_LINE, Ending::Doorbell, 9));
    assert_eq!(consumed.pcs, walk((WHOLE..=15).chain(21..24).chain(LINE..8)));
    assert_eq!(prestage.pcs, walk(WHOLE..=16));
    assert_eq!(doorbell.pcs, walk(WHOLE..=19));
    assert_eq!((last.slot_stores, last.doorbells, last.other_loads, last.other_stores), (2, 1, 0, 0));
}
