//! The self-proving line.
//!
//! A line is eight 64-bit words. PCIe write-combining may deliver them one by one and in any order, and a
//! reader may look in between, so no word may vouch for another. Each carries the line's [`Tag`] in its top
//! byte and 56 bits of payload below it; a reader has the whole line exactly when all eight tags are the one
//! that it expects. A ring expects the tag of its lap, a slot any tag but the last one taken. Tags are never
//! zero, so fresh memory proves nothing.
//!
//! One byte is enough: when lap *n* is awaited, each word of the line holds lap *n* − 1 or lap *n*, because the
//! writer may not start lap *n* before the reader has taken lap *n* − 1 whole.

/// Bytes in a line, and its alignment.
pub const LINE_BYTES: usize = 64;
/// Words in a line.
pub const WORDS: usize = 8;
/// Bits of payload in a word.
pub const PAYLOAD_BITS: u32 = 56;
/// The payload's bits in a word.
pub const PAYLOAD_MASK: u64 = (1 << PAYLOAD_BITS) - 1;

/// What a line says: eight words of 56 bits each, the top bytes zero.
pub type Payload = [u64; WORDS];

/// The proof in each word of a line: one byte, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tag(u64);

impl Tag {
    /// The tag of a ring's first lap and of a slot's first line.
    pub const FIRST: Self = Self(1 << PAYLOAD_BITS);

    /// A tag from its byte; none for zero, which proves nothing.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        if byte == 0 { None } else { Some(Self((byte as u64) << PAYLOAD_BITS)) }
    }

    /// The tag's byte, 1 to 255.
    #[must_use]
    pub const fn byte(self) -> u8 {
        (self.0 >> PAYLOAD_BITS) as u8
    }

    /// The tag of lap number `lap` of a ring: 1 to 254, over and over.
    ///
    /// 254 is even, so that where line numbers come round at 2^32 (and the number of laps, a power of two, is
    /// followed by lap 0) two neighbouring laps still differ.
    #[must_use]
    #[inline(always)]
    pub const fn of_lap(lap: u32) -> Self {
        Self(((lap % 254 + 1) as u64) << PAYLOAD_BITS)
    }

    /// The tag of line number `number` of a slot: any 128 in a row differ, and none is zero.
    #[must_use]
    #[inline(always)]
    pub const fn of_number(number: u32) -> Self {
        Self(((number | 0x80) as u64) << PAYLOAD_BITS)
    }

    /// The tag of the lap after this one's; 254 is followed by 1.
    #[must_use]
    #[inline(always)]
    pub const fn next_lap(self) -> Self {
        let next = self.0.wrapping_add(Self::FIRST.0);
        if next == 255 << PAYLOAD_BITS { Self::FIRST } else { Self(next) }
    }

    /// The tag in its place in a word.
    #[must_use]
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The word that carries `payload` under this tag. Payload above 56 bits is cut off.
    #[must_use]
    #[inline(always)]
    pub const fn seal(self, payload: u64) -> u64 {
        (payload & PAYLOAD_MASK) | self.0
    }

    /// Whether every one of `words` carries this tag.
    #[must_use]
    #[inline(always)]
    pub fn proves<const W: usize>(self, words: &[u64; W]) -> bool {
        let mut difference = 0;
        for word in words {
            difference |= word ^ self.0;
        }
        difference <= PAYLOAD_MASK
    }

    /// The tag that all of `words` share; none for fresh or half-written memory.
    #[must_use]
    #[inline(always)]
    pub fn of<const W: usize>(words: &[u64; W]) -> Option<Self> {
        let tag = words.first()? & !PAYLOAD_MASK;
        if tag != 0 && Self(tag).proves(words) { Some(Self(tag)) } else { None }
    }
}

/// The words without their tags.
#[must_use]
#[inline(always)]
pub fn open<const W: usize>(mut words: [u64; W]) -> [u64; W] {
    for word in &mut words {
        *word &= PAYLOAD_MASK;
    }
    words
}

/// Bits `low..low + width` of `word`.
#[must_use]
#[inline(always)]
pub const fn field(word: u64, low: u32, width: u32) -> u64 {
    (word >> low) & ((1 << width) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_never_zero_and_differs_from_its_neighbours() {
        assert_eq!(Tag::of_lap(0), Tag::FIRST);
        for lap in 0..if cfg!(miri) { 300 } else { 1000 } {
            assert_ne!(Tag::of_lap(lap).byte(), 0);
            assert_ne!(Tag::of_lap(lap), Tag::of_lap(lap + 1));
            assert_eq!(Tag::of_lap(lap).next_lap(), Tag::of_lap(lap + 1));
        }
        assert_eq!(Tag::from_byte(0), None);
    }

    #[test]
    fn fresh_memory_proves_nothing() {
        for byte in 1..=255 {
            assert!(!Tag::from_byte(byte).unwrap().proves(&[0; WORDS]));
        }
        assert_eq!(Tag::of(&[0; WORDS]), None);
    }

    #[test]
    fn payload_cannot_reach_the_tag() {
        let tag = Tag::from_byte(7).unwrap();
        assert_eq!(tag.seal(u64::MAX) >> PAYLOAD_BITS, 7);
        assert_eq!(open([tag.seal(u64::MAX)])[0], PAYLOAD_MASK);
    }
}
