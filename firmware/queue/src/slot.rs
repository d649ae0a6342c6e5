//! The slot: one line that holds the latest word of its one writer. Decision slots and control lines are slots.
//!
//! The tag holds the low seven bits of the line's number, and moves with every line. The reader knows the tag that it took
//! last, and takes any other. The writer must not go round: it may write at most 126 lines that no reader has been
//! heard to take ([`SlotWriter::OUTSTANDING_MAX`]), or a reader stopped in the middle could mistake two lines for one.

use neap_abi::line::{Tag, WORDS};

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
        Self { number: line.read_any().map_or(0, |(_, tag)| u32::from(tag.byte() & 0x7f)) }
    }

    /// A writer that goes on after line `number`.
    #[must_use]
    #[inline(always)]
    pub const fn resume(number: u32) -> Self {
        Self { number }
    }

    /// Lines that may be written before the reader is heard of.
    pub const OUTSTANDING_MAX: u32 = 126;

    /// The number that the next line will have.
    #[must_use]
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.number.wrapping_add(1)
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
        line.publish_release(payload, Tag::of_number(self.number), last);
    }

    /// Stores one word of the last line anew, but not the one that was written last. It stays the same line: who has taken
    /// it is not told, and who takes it after may find the word either way.
    #[inline(always)]
    pub fn amend<const W: usize>(&self, line: &Line<W>, word: usize, payload: u64) {
        line.amend(word, payload, Tag::of_number(self.number));
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
        for of in 0..if cfg!(miri) { 140 } else { 1000u64 } {
            writer.write(&line, &[of; WORDS], 4);
            let taken = reader.take(&line).unwrap();
            assert_eq!((taken.payload, taken.tag), ([of; WORDS], Tag::of_number(writer.number())));
            assert_eq!(reader.take(&line), None);
        }
    }

    /// What is added to a line later makes no new line of it, and tears neither it nor the next.
    #[test]
    fn an_amended_line_is_the_same_line() {
        let line: Line = Line::default();
        let (mut writer, mut reader) = (SlotWriter::default(), SlotReader::default());
        writer.write(&line, &[1; WORDS], 4);
        let mut late = reader;
        assert_eq!(reader.take(&line).map(|taken| taken.payload), Some([1; WORDS]));
        writer.amend(&line, 3, 9);
        assert_eq!(reader.take(&line), None, "it was taken");
        assert_eq!(late.take(&line).map(|taken| taken.payload), Some([1, 1, 1, 9, 1, 1, 1, 1]));
        writer.write(&line, &[2; WORDS], 4);
        assert_eq!(reader.take(&line).map(|taken| taken.payload), Some([2; WORDS]));
    }

    #[test]
    fn the_latest_line_is_what_counts() {
        let line: Line = Line::default();
        let (mut writer, mut reader) = (SlotWriter::default(), SlotReader::default());
        for outstanding in (1..=SlotWriter::OUTSTANDING_MAX).step_by(if cfg!(miri) { 125 } else { 1 }) {
            for of in 0..outstanding {
                writer.write(&line, &[u64::from(of); WORDS], 0);
            }
            let taken = reader.take(&line).expect("lines written without being taken went round");
            assert_eq!(taken.payload, [u64::from(outstanding - 1); WORDS]);
        }
    }
}
