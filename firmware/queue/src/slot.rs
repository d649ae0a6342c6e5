//! The slot: one line that holds the latest word of its one writer. Decision slots and control lines are slots.
//!
//! The tag is the low byte of the line's number, and moves with every line. The reader knows the number that it took
//! last, and takes any other. The writer must not go round: it may write at most 254 lines that no reader has been
//! heard to take ([`SlotWriter::OUTSTANDING_MAX`]), or a reader stopped in the middle could mistake two lines for one.

use neap_abi::line::{Tag, WORDS};
use neap_abi::txn::Txn;

use crate::line::Line;

/// What a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken<const W: usize = WORDS> {
    /// The line's payload.
    pub payload: [u64; W],
    /// Its tag.
    pub tag: Tag,
}

/// The writing end.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotWriter {
    number: u32,
}

impl SlotWriter {
    /// A writer that goes on after whatever line stands there, for one who takes over from another.
    #[must_use]
    pub fn after(line: &Line) -> Self {
        Self { number: line.read_any().map_or(0, |(_, tag)| u32::from(tag.byte())) }
    }

    /// Lines that may be written before the reader is heard of.
    pub const OUTSTANDING_MAX: u32 = 254;

    /// The number that the next line will have; its low byte, never zero, is its tag.
    #[must_use]
    #[inline(always)]
    pub fn next(&self) -> u32 {
        Txn::next_id(self.number)
    }

    /// The number of the last line written, 0 before the first.
    #[must_use]
    #[inline(always)]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Writes the next line: word `last` after the others and with release, so that all that came before is visible
    /// to a reader of this line.
    #[inline(always)]
    pub fn write<const W: usize>(&mut self, line: &Line<W>, payload: &[u64; W], last: usize) {
        self.number = self.next();
        // The low byte of a number is never zero.
        if let Some(tag) = Txn::tag(self.number) {
            line.publish_release(payload, tag, last);
        }
    }
}

/// The reading end.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotReader {
    last: Option<Tag>,
}

impl SlotReader {
    /// The slot's line, if it is whole and not the one taken last.
    #[inline(always)]
    pub fn take<const W: usize>(&mut self, line: &Line<W>) -> Option<Taken<W>> {
        let (payload, tag) = line.read_any()?;
        if self.last == Some(tag) {
            return None;
        }
        self.last = Some(tag);
        Some(Taken { payload, tag })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_taken_once() {
        let line: Line = Line::default();
        let (mut writer, mut reader) = (SlotWriter::default(), SlotReader::default());
        assert_eq!(reader.take(&line), None);
        for of in 0..1000u64 {
            writer.write(&line, &[of; WORDS], 4);
            let taken = reader.take(&line).unwrap();
            assert_eq!((taken.payload, u32::from(taken.tag.byte())), ([of; WORDS], writer.number() & 0xff));
            assert_eq!(reader.take(&line), None);
        }
    }

    #[test]
    fn the_latest_line_is_what_counts() {
        let line: Line = Line::default();
        let (mut writer, mut reader) = (SlotWriter::default(), SlotReader::default());
        for outstanding in 1..=SlotWriter::OUTSTANDING_MAX {
            for of in 0..outstanding {
                writer.write(&line, &[u64::from(of); WORDS], 0);
            }
            let taken = reader.take(&line).expect("lines written without being taken went round");
            assert_eq!(taken.payload, [u64::from(outstanding - 1); WORDS]);
        }
    }
}
