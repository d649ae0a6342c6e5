//! Agent images: what a supervisor is given to lay out, from the firmware's bundle or through the window.
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | CRC-32C of all after |
//! | 12 | 2 | format, [`FORMAT`] |
//! | 14 | 2 | number of segments |
//! | 16 | 4 | ABI version that the agent was built for, [`Version::to_bits`] |
//! | 20 | 4 | image_bytes: the whole image, this header included |
//! | 24 | 4 | entry, in bytes from [`space::IMAGE`](crate::grant::space::IMAGE) |
//! | 28 | 4 | stack_bytes |
//! | 32 | 32 | name, UTF-8, zero-filled |
//! | 64 | 4 | policy, [`policy_id`](crate::control::policy_id) |
//! | 68 | 2 | cores that it can use, [`CORES_MAX`] at most |
//! | 70 | 2 | zero |
//! | 72 | 20 each | segments: address 4, memory_bytes 4, file_offset 4, file_bytes 4, rights 4 |
//! | 152 | 104 | zero |
//! | 256 | | the segments' bytes |
//!
//! An image is an allegation. [`ImageHeader::check`] says all that is wrong with one, and needs nothing but its bytes.

use core::fmt;

use crate::crc::crc32c;
use crate::epitaph::printable;
use crate::version::{Version, VersionError};

/// "NEAPAGT" and a zero.
pub const MAGIC: [u8; 8] = *b"NEAPAGT\0";
/// The format that these files describe.
pub const FORMAT: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 256;
/// Bytes of a name.
pub const NAME_BYTES: usize = 32;
/// Segments at most.
pub const SEGMENTS_MAX: usize = 4;
/// Bytes of an image at most.
pub const IMAGE_BYTES_MAX: usize = 512 << 10;
/// Bytes of memory that an agent's segments take at most, whole pages each.
pub const MEMORY_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a stack at most.
pub const STACK_BYTES_MAX: u32 = 1 << 20;
/// Cores that one agent can have.
pub const CORES_MAX: u16 = 8;
/// Segments lie on pages of their own.
pub const PAGE_BYTES: u64 = 4096;

const SEGMENTS_AT: usize = 72;
const SEGMENT_BYTES: usize = 20;

/// What an agent may do with a segment, as bits.
pub mod rights {
    /// It may load from it; set for every segment.
    pub const READ: u32 = 1;
    /// It may store to it.
    pub const WRITE: u32 = 2;
    /// It may execute it.
    pub const EXECUTE: u32 = 4;
}

/// One segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies, in bytes from [`space::IMAGE`](crate::grant::space::IMAGE); on a page.
    pub address: u32,
    /// Bytes that it takes in memory.
    pub memory_bytes: u32,
    /// Where its bytes lie in the image.
    pub file_offset: u32,
    /// How many of them there are; the rest of its memory is zero.
    pub file_bytes: u32,
    /// What the agent may do with it, [`rights`].
    pub rights: u32,
}

impl Segment {
    /// Bytes of whole pages that it takes.
    #[must_use]
    pub const fn mapped_bytes(&self) -> u64 {
        (self.memory_bytes as u64).next_multiple_of(PAGE_BYTES)
    }
}

/// An image's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// The ABI version that the agent was built for.
    pub version: Version,
    /// Bytes of the whole image.
    pub image_bytes: u32,
    /// The image's CRC-32C, which names it.
    pub crc: u32,
    /// Where it starts, in bytes from [`space::IMAGE`](crate::grant::space::IMAGE).
    pub entry: u32,
    /// Bytes of each core's stack.
    pub stack_bytes: u32,
    /// Cores that it can use; it is given no more, and perhaps fewer.
    pub cores: u16,
    /// Its name, zero-filled.
    pub name: [u8; NAME_BYTES],
    /// Its policy's number.
    pub policy: u32,
    segments: [Segment; SEGMENTS_MAX],
    count: usize,
}

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Fewer bytes than a header, or than the header says.
    Truncated {
        /// Bytes that there are.
        bytes: u32,
        /// Bytes that it takes.
        needed: u32,
    },
    /// No image of an agent.
    Magic,
    /// Damaged.
    Checksum {
        /// As the header has it.
        stored: u32,
        /// As its bytes have it.
        computed: u32,
    },
    /// A format that this version does not know.
    Format {
        /// Its number.
        format: u16,
    },
    /// Larger than an image may be.
    TooLarge {
        /// Its bytes.
        bytes: u32,
    },
    /// Built for another ABI.
    Version(VersionError),
    /// No segment, or more than [`SEGMENTS_MAX`].
    SegmentCount {
        /// How many.
        count: u16,
    },
    /// A segment that is not on a page, empty, longer in the file than in memory, or outside image or space.
    SegmentBounds {
        /// Its place in the list.
        place: u8,
    },
    /// A segment that shares a page with another.
    SegmentOverlap {
        /// The later one's place in the list.
        place: u8,
    },
    /// A segment that can be written and executed, or not read, or with rights that this version does not know.
    SegmentRights {
        /// Its place in the list.
        place: u8,
    },
    /// More memory than an agent may have.
    TooMuchMemory {
        /// How many bytes.
        bytes: u64,
    },
    /// The entry is not in an executable segment's bytes, or misaligned.
    Entry {
        /// Where it is.
        entry: u32,
    },
    /// No stack, one that is not whole pages, or larger than may be.
    Stack {
        /// Its bytes.
        bytes: u32,
    },
    /// A name that is empty or no text.
    Name,
    /// No core, or more than [`CORES_MAX`].
    Cores {
        /// How many.
        cores: u16,
    },
}

impl ImageError {
    /// The error's number on the wire, and its detail: with [`ImageError::in_words`] a host can say what is wrong.
    #[must_use]
    pub const fn to_bits(&self) -> u64 {
        let (code, detail) = match *self {
            Self::Truncated { bytes, .. } => (1, bytes as u64),
            Self::Magic => (2, 0),
            Self::Checksum { computed, .. } => (3, computed as u64),
            Self::Format { format } => (4, format as u64),
            Self::TooLarge { bytes } => (5, bytes as u64),
            Self::Version(error) => (6, error.theirs.to_bits() as u64),
            Self::SegmentCount { count } => (7, count as u64),
            Self::SegmentBounds { place } => (8, place as u64),
            Self::SegmentOverlap { place } => (9, place as u64),
            Self::SegmentRights { place } => (10, place as u64),
            Self::TooMuchMemory { bytes } => (11, bytes & 0xffff_ffff),
            Self::Entry { entry } => (12, entry as u64),
            Self::Stack { bytes } => (13, bytes as u64),
            Self::Name => (14, 0),
            Self::Cores { cores } => (15, cores as u64),
        };
        code | detail << 8
    }

    /// What [`ImageError::to_bits`] stands for, in words.
    #[must_use]
    pub const fn in_words(bits: u64) -> &'static str {
        match bits as u8 {
            1 => "it is truncated",
            2 => "it is no agent's image",
            3 => "its checksum is wrong",
            4 => "its format is unknown",
            5 => "it is too large",
            6 => "it was built for an ABI too far from the IPU's",
            7 => "it has no segment, or too many",
            8 => "a segment is out of bounds",
            9 => "two segments overlap",
            10 => "a segment has rights that it may not have (writable and executable, or unknown)",
            11 => "it takes too much memory",
            12 => "its entry is not in its code",
            13 => "its stack is none, or too large",
            14 => "it has no name",
            15 => "it asks for no core, or for too many",
            _ => "it is refused for a reason that this version does not know",
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("agent image: ")?;
        f.write_str(Self::in_words(self.to_bits()))?;
        match self {
            Self::Truncated { bytes, needed } => write!(f, ": {bytes} bytes of {needed}"),
            Self::Checksum { stored, computed } => {
                write!(f, ": {stored:#010x} stored, {computed:#010x} computed")
            }
            Self::Version(error) => write!(f, ": {error}"),
            Self::SegmentBounds { place }
            | Self::SegmentOverlap { place }
            | Self::SegmentRights { place } => write!(f, ": segment {place}"),
            Self::Format { format } => write!(f, ": {format}"),
            Self::SegmentCount { count } | Self::Cores { cores: count } => write!(f, ": {count}"),
            Self::TooLarge { bytes } | Self::Stack { bytes } => write!(f, ": {bytes} bytes"),
            Self::TooMuchMemory { bytes } => write!(f, ": {bytes} bytes"),
            Self::Entry { entry } => write!(f, ": {entry:#x}"),
            Self::Magic | Self::Name => Ok(()),
        }
    }
}

impl core::error::Error for ImageError {}

/// The 32-bit number at `at`; zero beyond the end, which every check of a length comes before.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

impl ImageHeader {
    /// A header for `segments`, whose bytes are to follow it; `write` then seals it. None for more than fit.
    #[must_use]
    pub fn new(
        version: Version,
        name: &str,
        policy: u32,
        entry: u32,
        stack_bytes: u32,
        list: &[Segment],
    ) -> Option<Self> {
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        segments.get_mut(..list.len())?.copy_from_slice(list);
        let mut text = [0; NAME_BYTES];
        text.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        let end = list.iter().map(|segment| segment.file_offset + segment.file_bytes).max().unwrap_or(0);
        let image_bytes = end.max(HEADER_BYTES as u32);
        let count = list.len();
        Some(Self {
            version,
            image_bytes,
            crc: 0,
            entry,
            stack_bytes,
            cores: 1,
            name: text,
            policy,
            segments,
            count,
        })
    }

    /// Writes the header before the segments' bytes, which stand in `image` already, and seals all of it.
    pub fn write(&self, image: &mut [u8]) {
        let Some(head) = image.get_mut(..HEADER_BYTES) else { return };
        head.fill(0);
        head[0..8].copy_from_slice(&MAGIC);
        head[12..14].copy_from_slice(&FORMAT.to_le_bytes());
        head[14..16].copy_from_slice(&(self.count as u16).to_le_bytes());
        for (at, word) in [
            (16, self.version.to_bits()),
            (20, self.image_bytes),
            (24, self.entry),
            (28, self.stack_bytes),
            (64, self.policy),
            (68, self.cores.into()),
        ] {
            head[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        head[32..64].copy_from_slice(&self.name);
        for (segment, place) in
            self.segments().iter().zip(head[SEGMENTS_AT..].chunks_exact_mut(SEGMENT_BYTES))
        {
            let words = [
                segment.address,
                segment.memory_bytes,
                segment.file_offset,
                segment.file_bytes,
                segment.rights,
            ];
            for (word, bytes) in words.iter().zip(place.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        let crc = crc32c(&image[12..]);
        image[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Checks all of an image, of which `bytes` begin with the header and hold at least the whole of it, as an IPU that
    /// speaks `ours`.
    ///
    /// # Errors
    /// The first thing wrong, by name.
    pub fn check(bytes: &[u8], ours: Version) -> Result<Self, ImageError> {
        let there = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if bytes.len() < HEADER_BYTES {
            return Err(ImageError::Truncated { bytes: there, needed: HEADER_BYTES as u32 });
        }
        if bytes[..8] != MAGIC {
            return Err(ImageError::Magic);
        }
        let image_bytes = u32_at(bytes, 20);
        if image_bytes as usize > IMAGE_BYTES_MAX {
            return Err(ImageError::TooLarge { bytes: image_bytes });
        }
        let needed = image_bytes.max(HEADER_BYTES as u32);
        let Some(bytes) = bytes.get(..image_bytes as usize).filter(|image| image.len() >= HEADER_BYTES)
        else {
            return Err(ImageError::Truncated { bytes: there, needed });
        };
        let (stored, computed) = (u32_at(bytes, 8), crc32c(&bytes[12..]));
        if stored != computed {
            return Err(ImageError::Checksum { stored, computed });
        }
        let format = u32_at(bytes, 12) as u16;
        if format != FORMAT {
            return Err(ImageError::Format { format });
        }
        let version = Version::from_bits(u32_at(bytes, 16));
        ours.negotiate(version).map_err(ImageError::Version)?;
        let count = (u32_at(bytes, 12) >> 16) as u16;
        if count == 0 || usize::from(count) > SEGMENTS_MAX {
            return Err(ImageError::SegmentCount { count });
        }
        let mut header = Self {
            version,
            image_bytes,
            crc: stored,
            entry: u32_at(bytes, 24),
            stack_bytes: u32_at(bytes, 28),
            cores: u32_at(bytes, 68) as u16,
            name: [0; NAME_BYTES],
            policy: u32_at(bytes, 64),
            segments: [Segment::default(); SEGMENTS_MAX],
            count: usize::from(count),
        };
        header.name.copy_from_slice(&bytes[32..64]);
        if header.name().is_empty() {
            return Err(ImageError::Name);
        }
        for (place, segment) in header.segments.iter_mut().take(usize::from(count)).enumerate() {
            let word = |index: usize| u32_at(bytes, SEGMENTS_AT + place * SEGMENT_BYTES + 4 * index);
            *segment = Segment {
                address: word(0),
                memory_bytes: word(1),
                file_offset: word(2),
                file_bytes: word(3),
                rights: word(4),
            };
        }
        header.check_segments()?;
        header.check_rest()?;
        Ok(header)
    }

    fn check_segments(&self) -> Result<(), ImageError> {
        let mut memory_bytes = 0;
        for (place, segment) in (0u8..).zip(self.segments()) {
            let start = u64::from(segment.address);
            let end = start + segment.mapped_bytes();
            let file_end = u64::from(segment.file_offset) + u64::from(segment.file_bytes);
            if start % PAGE_BYTES != 0
                || segment.memory_bytes == 0
                || segment.file_bytes > segment.memory_bytes
                || (segment.file_offset as usize) < HEADER_BYTES
                || file_end > u64::from(self.image_bytes)
                || end > crate::grant::space::IMAGE_SPAN
            {
                return Err(ImageError::SegmentBounds { place });
            }
            let apart = |other: &Segment| {
                end <= u64::from(other.address) || u64::from(other.address) + other.mapped_bytes() <= start
            };
            if !self.segments().iter().take(usize::from(place)).all(apart) {
                return Err(ImageError::SegmentOverlap { place });
            }
            let known = rights::READ | rights::WRITE | rights::EXECUTE;
            let both = rights::WRITE | rights::EXECUTE;
            if segment.rights & !known != 0
                || segment.rights & rights::READ == 0
                || segment.rights & both == both
            {
                return Err(ImageError::SegmentRights { place });
            }
            memory_bytes += segment.mapped_bytes();
        }
        if memory_bytes > MEMORY_BYTES_MAX {
            return Err(ImageError::TooMuchMemory { bytes: memory_bytes });
        }
        Ok(())
    }

    fn check_rest(&self) -> Result<(), ImageError> {
        let entry = self.entry;
        let inside = |segment: &Segment| {
            segment.rights & rights::EXECUTE != 0
                && entry
                    .checked_sub(segment.address)
                    .is_some_and(|at| at.saturating_add(4) <= segment.file_bytes)
        };
        if entry % 4 != 0 || !self.segments().iter().any(inside) {
            return Err(ImageError::Entry { entry });
        }
        let cores = self.cores;
        if cores == 0 || cores > CORES_MAX {
            return Err(ImageError::Cores { cores });
        }
        let bytes = self.stack_bytes;
        if bytes == 0 || bytes > STACK_BYTES_MAX || u64::from(bytes) % PAGE_BYTES != 0 {
            return Err(ImageError::Stack { bytes });
        }
        Ok(())
    }

    /// The segments, in the header's order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        self.segments.get(..self.count).unwrap_or_default()
    }

    /// The agent's name, as far as it is text.
    #[must_use]
    pub fn name(&self) -> &str {
        printable(&self.name)
    }

    /// Bytes of whole pages that its segments and its stacks take on `cores` cores.
    #[must_use]
    pub fn memory_bytes(&self, cores: u16) -> u64 {
        let stacks = u64::from(self.stack_bytes) * u64::from(cores);
        self.segments().iter().map(Segment::mapped_bytes).sum::<u64>() + stacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::policy_id;
    use crate::version::VERSION;

    const BYTES: usize = HEADER_BYTES + 96;

    fn segments() -> [Segment; 2] {
        [
            Segment {
                address: 0,
                memory_bytes: 64,
                file_offset: HEADER_BYTES as u32,
                file_bytes: 64,
                rights: rights::READ | rights::EXECUTE,
            },
            Segment {
                address: 0x1000,
                memory_bytes: 0x3000,
                file_offset: HEADER_BYTES as u32 + 64,
                file_bytes: 32,
                rights: rights::READ | rights::WRITE,
            },
        ]
    }

    fn image_of(change: impl FnOnce(&mut ImageHeader)) -> [u8; BYTES] {
        let mut header =
            ImageHeader::new(VERSION, "fifo", policy_id("fifo"), 8, 0x4000, &segments()).unwrap();
        change(&mut header);
        let mut image = [0x5a; BYTES];
        header.write(&mut image);
        image
    }

    fn refusal(change: impl FnOnce(&mut ImageHeader)) -> ImageError {
        ImageHeader::check(&image_of(change), VERSION).unwrap_err()
    }

    #[test]
    fn a_good_image_is_read_as_it_was_written() {
        let image = image_of(|_| {});
        let header = ImageHeader::check(&image, VERSION).unwrap();
        assert_eq!((header.name(), header.policy, header.entry), ("fifo", policy_id("fifo"), 8));
        assert_eq!(header.segments(), segments());
        assert_eq!(header.memory_bytes(2), 0x1000 + 0x3000 + 2 * 0x4000);
        assert_eq!(header.image_bytes as usize, BYTES);
        let mut longer = [0; BYTES + 100];
        longer[..BYTES].copy_from_slice(&image);
        assert_eq!(
            ImageHeader::check(&longer, VERSION),
            Ok(header),
            "what lies behind it is not its business"
        );
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let image = image_of(|_| {});
        for length in (0..BYTES).step_by(if cfg!(miri) { 50 } else { 1 }) {
            assert!(ImageHeader::check(&image[..length], VERSION).is_err(), "cut at {length}");
        }
        for bit in (0..8 * BYTES).step_by(if cfg!(miri) { 301 } else { 1 }) {
            let mut flipped = image;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ImageHeader::check(&flipped, VERSION).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn whatever_an_image_says_of_itself_is_checked() {
        use ImageError as E;
        let far = Version { major: 9, minor: 0 };
        assert!(matches!(refusal(|h| h.version = far), E::Version(_)));
        let older = Version { minor: VERSION.minor - 1, ..VERSION };
        assert!(
            ImageHeader::check(&image_of(|h| h.version = older), VERSION).is_ok(),
            "one minor older is taken"
        );
        assert_eq!(refusal(|h| h.name = [0; NAME_BYTES]), E::Name);
        assert_eq!(refusal(|h| h.name[0] = 0xff), E::Name);
        assert_eq!(refusal(|h| h.count = 0), E::SegmentCount { count: 0 });
        assert_eq!(refusal(|h| h.segments[0].address = 8), E::SegmentBounds { place: 0 });
        assert_eq!(refusal(|h| h.segments[1].memory_bytes = 0), E::SegmentBounds { place: 1 });
        assert_eq!(refusal(|h| h.segments[1].memory_bytes = 31), E::SegmentBounds { place: 1 });
        assert_eq!(refusal(|h| h.segments[0].file_offset = 0), E::SegmentBounds { place: 0 });
        assert_eq!(refusal(|h| h.segments[0].file_offset = u32::MAX), E::SegmentBounds { place: 0 });
        assert_eq!(refusal(|h| h.segments[1].address = !4095), E::SegmentBounds { place: 1 });
        assert_eq!(refusal(|h| h.segments[1].address = 0), E::SegmentOverlap { place: 1 });
        assert_eq!(refusal(|h| h.segments[0].memory_bytes = 0x1001), E::SegmentOverlap { place: 1 });
        assert_eq!(refusal(|h| h.segments[0].rights = 7), E::SegmentRights { place: 0 });
        assert_eq!(refusal(|h| h.segments[1].rights = 2), E::SegmentRights { place: 1 });
        assert_eq!(refusal(|h| h.segments[1].rights = 11), E::SegmentRights { place: 1 });
        assert_eq!(
            refusal(|h| h.segments[1].memory_bytes = 4 << 20),
            E::TooMuchMemory { bytes: (4 << 20) + 0x1000 }
        );
        assert_eq!(refusal(|h| h.entry = 6), E::Entry { entry: 6 });
        assert_eq!(refusal(|h| h.entry = 64), E::Entry { entry: 64 });
        assert_eq!(refusal(|h| h.entry = 0x1000), E::Entry { entry: 0x1000 });
        assert_eq!(refusal(|h| h.entry = u32::MAX - 3), E::Entry { entry: u32::MAX - 3 });
        assert_eq!(refusal(|h| h.cores = 0), E::Cores { cores: 0 });
        assert_eq!(refusal(|h| h.cores = 9), E::Cores { cores: 9 });
        assert_eq!(refusal(|h| h.stack_bytes = 0), E::Stack { bytes: 0 });
        assert_eq!(refusal(|h| h.stack_bytes = 100), E::Stack { bytes: 100 });
        assert_eq!(refusal(|h| h.stack_bytes = 2 << 20), E::Stack { bytes: 2 << 20 });
        assert_eq!(refusal(|h| h.image_bytes = 3), E::Truncated { bytes: BYTES as u32, needed: 256 });
        assert_eq!(refusal(|h| h.image_bytes = 1 << 30), E::TooLarge { bytes: 1 << 30 });
    }

    #[test]
    fn an_error_is_told_by_its_number_too() {
        let error = refusal(|h| h.segments[0].rights = 7);
        assert!(ImageError::in_words(error.to_bits()).contains("writable and executable"));
        assert_eq!(ImageError::in_words(0), ImageError::in_words(200));
    }
}
