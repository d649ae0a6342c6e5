//! From events on the agent's core to attempts: the walk from a line's first load to its decision.
//!
//! An **attempt** starts at a load of the message ring that touches another line than the attempt before, or
//! a word of the line that this attempt has loaded already: a retry. So of an agent that polls, only the
//! pass that sees the whole new line counts, from its first word on. It ends at the doorbell, else at its
//! last store to a decision slot, else at the load that starts the next attempt, by then on another line.
//! An attempt that ends in none of these was an empty poll or a torn line, and leaves no trace.

use std::ops::Range;

use crate::args::MeterArgs;
use crate::record::{Ending, Path};

/// Bytes in a line of the wire.
pub const LINE_BYTES: u64 = 64;

/// What an attempt keeps, in instructions: beyond, it is counted on but its path is marked cut. An agent
/// that sleeps between two messages walks far less than this.
pub const PATH_MAX: usize = 1 << 16;

/// Every word of a line, as a mask of its eight 8-byte words.
pub const WHOLE_LINE: u8 = 0xff;

/// One memory access of the agent's core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Physical address of the first byte.
    pub address: u64,
    /// Bytes touched: 1 to 64.
    pub bytes: u64,
    /// A store, not a load.
    pub store: bool,
    /// To a device, not to RAM.
    pub device: bool,
}

/// Offset of the Doorbell register in an ivshmem function's BAR 0 (QEMU, `docs/specs/ivshmem-spec.rst`).
const DOORBELL_OFFSET: u64 = 12;

/// Cuts the events of one core into attempts.
#[derive(Debug)]
pub struct Segmenter {
    ring: Range<u64>,
    slots: Range<u64>,
    doorbells: Range<u64>,
    ram_shift: u64,
    /// The instruction that is being executed: an access belongs to it.
    now: u64,
    open: Option<Open>,
    /// Kept between attempts, so that the steady state allocates nothing.
    spare: Vec<u64>,
}

#[derive(Debug)]
struct Open {
    path: Path,
    /// Instructions up to the last decisive store, inclusive.
    decided: usize,
    /// Instructions so far; exceeds `path.pcs.len()` once the path is cut.
    walked: usize,
}

impl Segmenter {
    /// A segmenter for the regions of `args`.
    #[must_use]
    pub fn new(args: &MeterArgs) -> Self {
        Self {
            ring: args.ring.clone(),
            slots: args.slots.clone(),
            doorbells: args.doorbells.clone(),
            ram_shift: args.ram_shift,
            now: 0,
            open: None,
            spare: Vec::with_capacity(PATH_MAX),
        }
    }

    /// The core is about to execute the instruction at `pc`.
    pub fn execute(&mut self, pc: u64) {
        self.now = pc;
        if let Some(open) = &mut self.open {
            open.walked += 1;
            if open.path.pcs.len() < PATH_MAX {
                open.path.pcs.push(pc);
            }
        }
    }

    /// The core's current instruction accessed memory. Says what the access meant to the measurement.
    pub fn access(&mut self, access: Access) -> Meaning {
        if access.device {
            let rung = access.store
                && self.doorbells.contains(&access.address)
                && access.address % 4096 == DOORBELL_OFFSET;
            return self.count(if rung { Meaning::Doorbell } else { Meaning::Other }, access.store);
        }
        let address = access.address.wrapping_sub(self.ram_shift);
        if access.store && self.slots.contains(&address) {
            return self.count(Meaning::SlotStore, true);
        }
        if access.store || !self.ring.contains(&address) {
            return self.count(Meaning::Other, access.store);
        }
        let offset = address - self.ring.start;
        let (line, words) = (offset / LINE_BYTES, words(offset % LINE_BYTES, access.bytes));
        match &mut self.open {
            Some(open) if open.path.line == line && open.path.words & words == 0 => {
                open.path.words |= words;
                open.path.ring_loads += 1;
                Meaning::RingLoad
            }
            _ => {
                let finished = self.close(Some(line));
                let mut pcs = std::mem::take(&mut self.spare);
                pcs.clear();
                pcs.push(self.now);
                let path = Path { line, words, ring_loads: 1, pcs, ..Path::default() };
                self.open = Some(Open { path, decided: 0, walked: 1 });
                Meaning::Started(finished)
            }
        }
    }

    /// Ends the measurement: the open attempt, if it came to a decision.
    pub fn finish(&mut self) -> Option<Path> {
        self.close(None)
    }

    /// Takes back a path that has been written, for its memory.
    pub fn recycle(&mut self, path: Path) {
        self.spare = path.pcs;
    }

    fn count(&mut self, meaning: Meaning, store: bool) -> Meaning {
        if let Some(open) = &mut self.open {
            let path = &mut open.path;
            match meaning {
                Meaning::Doorbell => path.doorbells += 1,
                Meaning::SlotStore => path.slot_stores += 1,
                _ if store => path.other_stores += 1,
                _ => path.other_loads += 1,
            }
            // A slot may be filled after the doorbell, for the next decision: off the path.
            if meaning == Meaning::Doorbell || meaning == Meaning::SlotStore && path.doorbells == 0 {
                open.decided = open.walked;
            }
        }
        meaning
    }

    /// Closes the open attempt; `next` is the line of the load that does so, whose instruction is not part
    /// of it.
    fn close(&mut self, next: Option<u64>) -> Option<Path> {
        let Open { mut path, decided, walked } = self.open.take()?;
        let (ending, instructions) = if path.doorbells > 0 {
            (Ending::Doorbell, decided)
        } else if path.slot_stores > 0 {
            (Ending::Prestage, decided)
        } else if path.words == WHOLE_LINE && next.is_some_and(|line| line != path.line) {
            (Ending::Consumed, walked - 1)
        } else {
            self.spare = path.pcs;
            return None;
        };
        path.ending = ending;
        path.instructions = instructions as u64;
        path.pcs.truncate(instructions);
        Some(path)
    }
}

/// What one access meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// The first load of a new attempt; what the attempt before came to, unless to nothing.
    Started(Option<Path>),
    /// A further load of this attempt's line.
    RingLoad,
    /// A store to a decision slot.
    SlotStore,
    /// A doorbell.
    Doorbell,
    /// None of these.
    Other,
}

/// The 8-byte words of a line that `bytes` bytes at `offset` touch, as a mask.
fn words(offset: u64, bytes: u64) -> u8 {
    let last = (offset + bytes.max(1) - 1).min(LINE_BYTES - 1) / 8;
    (offset / 8..=last).fold(0, |mask, word| mask | 1 << word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 0x4800_1000;
    const SLOTS: u64 = 0x4800_4000;
    const DOORBELL: u64 = 0x1000_000c;

    /// Drives a segmenter with a synthetic core whose every instruction is 4 bytes after the last.
    struct Core {
        segmenter: Segmenter,
        pc: u64,
        paths: Vec<Path>,
    }

    impl Core {
        fn new() -> Self {
            let args =
                MeterArgs::parse(["out=x", "ring=0x48001000-0x48002000", "slots=0x48004000-0x48004400"]);
            Self { segmenter: Segmenter::new(&args.unwrap()), pc: 0x4020_0000, paths: Vec::new() }
        }

        fn step(&mut self) -> u64 {
            self.pc += 4;
            self.segmenter.execute(self.pc);
            self.pc
        }

        fn run(&mut self, instructions: usize) {
            (0..instructions).for_each(|_| {
                self.step();
            });
        }

        fn access(&mut self, address: u64, store: bool, device: bool) -> u64 {
            let pc = self.step();
            let access = Access { address, bytes: 8, store, device };
            if let Meaning::Started(Some(path)) = self.segmenter.access(access) {
                self.paths.push(path);
            }
            pc
        }

        fn load_word(&mut self, line: u64, word: u64) -> u64 {
            self.access(RING + line * LINE_BYTES + word * 8, false, false)
        }

        /// Loads a whole line; the address of the first load.
        fn load_line(&mut self, line: u64) -> u64 {
            let first = self.load_word(line, 0);
            (1..8).for_each(|word| {
                self.load_word(line, word);
            });
            first
        }

        fn finish(mut self) -> Vec<Path> {
            self.paths.extend(self.segmenter.finish());
            self.paths
        }
    }

    #[test]
    fn a_doorbell_ends_the_path_and_what_follows_is_off_it() {
        let mut core = Core::new();
        let first = core.load_line(0);
        core.run(5);
        core.access(SLOTS + 64, true, false);
        core.access(0x4030_0000, true, false);
        core.access(0x4030_0000, false, false);
        let doorbell = core.access(DOORBELL, true, true);
        core.run(7);
        core.access(SLOTS + 128, true, false);
        core.run(3);
        core.load_word(1, 0);
        let paths = core.finish();
        let [path] = &paths[..] else { panic!("{paths:?}") };
        assert_eq!((path.ending, path.line, path.words), (Ending::Doorbell, 0, WHOLE_LINE));
        assert_eq!(path.instructions, 8 + 5 + 4);
        assert_eq!((path.pcs[0], *path.pcs.last().unwrap()), (first, doorbell));
        assert_eq!(path.pcs.len() as u64, path.instructions);
        assert_eq!((path.ring_loads, path.slot_stores, path.doorbells), (8, 2, 1));
        assert_eq!((path.other_loads, path.other_stores), (1, 1));
    }

    #[test]
    fn empty_polls_and_torn_lines_leave_no_trace() {
        let mut core = Core::new();
        for _ in 0..100 {
            core.load_word(3, 0);
            core.run(4);
        }
        for word in 0..6 {
            core.load_word(3, word);
        }
        let first = core.load_line(3);
        core.run(10);
        core.access(DOORBELL, true, true);
        let paths = core.finish();
        assert_eq!(paths.len(), 1);
        assert_eq!((paths[0].instructions, paths[0].pcs[0]), (8 + 10 + 1, first));
    }

    #[test]
    fn without_a_doorbell_the_last_slot_store_ends_the_path() {
        let mut core = Core::new();
        core.load_line(0);
        core.run(2);
        core.access(SLOTS, true, false);
        let last = core.access(SLOTS + 8, true, false);
        core.run(9);
        core.load_word(1, 0);
        let paths = core.finish();
        assert_eq!((paths[0].ending, paths[0].instructions), (Ending::Prestage, 8 + 2 + 2));
        assert_eq!(paths[0].pcs.last(), Some(&last));
    }

    #[test]
    fn a_line_without_a_decision_ends_before_the_load_of_the_next() {
        let mut core = Core::new();
        core.load_line(0);
        core.run(6);
        core.load_line(1);
        core.run(2);
        core.load_word(1, 0);
        let paths = core.finish();
        assert_eq!(paths.len(), 1, "line 1 was only polled again");
        assert_eq!((paths[0].ending, paths[0].instructions), (Ending::Consumed, 8 + 6));
    }

    #[test]
    fn a_partly_loaded_line_that_is_left_was_not_consumed() {
        let mut core = Core::new();
        core.load_word(0, 0);
        core.load_word(1, 0);
        assert!(core.finish().is_empty());
    }

    #[test]
    fn other_devices_and_other_registers_are_no_doorbell() {
        let mut core = Core::new();
        core.load_line(0);
        core.access(DOORBELL - 4, true, true);
        core.access(0x0900_000c, true, true);
        core.access(DOORBELL, false, true);
        assert!(core.finish().is_empty());
    }

    #[test]
    fn wide_loads_touch_several_words() {
        assert_eq!(words(0, 8), 0b1);
        assert_eq!(words(56, 8), 0b1000_0000);
        assert_eq!(words(16, 16), 0b1100);
        assert_eq!(words(32, 32), 0b1111_0000);
        assert_eq!(words(4, 8), 0b11);
        assert_eq!(words(60, 16), 0b1000_0000);
    }

    #[test]
    fn a_long_attempt_is_counted_on_but_kept_short() {
        let mut core = Core::new();
        core.load_line(0);
        core.run(PATH_MAX);
        core.access(DOORBELL, true, true);
        let paths = core.finish();
        assert_eq!(paths[0].instructions, 8 + PATH_MAX as u64 + 1);
        assert!(paths[0].is_cut());
        assert_eq!(paths[0].pcs.len(), PATH_MAX);
    }

    #[test]
    fn misreported_ram_addresses_are_set_right() {
        let mut core = Core::new();
        core.segmenter.ram_shift = 0x1000_0000_u64.wrapping_sub(0x4800_0000);
        core.access(RING.wrapping_add(core.segmenter.ram_shift), false, false);
        core.access(SLOTS.wrapping_add(core.segmenter.ram_shift), true, false);
        let paths = core.finish();
        assert_eq!((paths[0].ending, paths[0].line), (Ending::Prestage, 0));
    }
}
