//! Epitaphs: what a core that ended leaves for the host to read.
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | magic |
//! | 4 | 4 | CRC-32C of all after |
//! | 8 | 1 | cause |
//! | 9 | 1 | core |
//! | 10 | 2 | zero |
//! | 12 | 4 | session |
//! | 16 | 8 | messages consumed |
//! | 24 | 8 | time_ns since boot |
//! | 32 | 8 × 4 | ESR, ELR, FAR, SPSR |
//! | 64 | 8 × 32 | x0–x30, sp |
//! | 320 | 4 | source line |
//! | 324 | 60 | source file's last bytes, zero-filled |
//! | 384 | 128 | message, UTF-8, zero-filled |
//!
//! Since 1.2 a core's region holds the last [`EPITAPHS_KEPT`] of them, the newest first, and each is followed by
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 512 | 4 | CRC-32C of all after |
//! | 516 | 4 | incarnation |
//! | 520 | 4 | image's CRC-32C |
//! | 524 | 4 | number of the epitaph on this core, from 1 on |
//! | 528 | 32 | agent's name, UTF-8, zero-filled |
//! | 560 | 64 | payload of the last message that it is known to have taken; zero if none |
//! | 624 | 16 | zero |

use core::fmt::{self, Write};

use crate::crc::crc32c;
use crate::line::{Payload, WORDS};

/// Bytes in an epitaph.
pub const EPITAPH_BYTES: usize = 512;
/// Bytes of an epitaph with what 1.2 added.
pub const RECORD_BYTES: usize = 640;
/// Epitaphs that a core's region holds.
pub const EPITAPHS_KEPT: usize = 8;
/// Bytes of a core's region.
pub const EPITAPHS_BYTES: usize = EPITAPHS_KEPT * RECORD_BYTES;
/// Bytes of an epitaph's message.
const TEXT_BYTES: usize = 128;
/// "RIP." little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RIP.");

/// Why a core ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// A Rust panic.
    Panic = 1,
    /// A synchronous exception: ESR says which.
    Synchronous = 2,
    /// An SError.
    SystemError = 3,
    /// An interrupt where none may come.
    Interrupt = 4,
    /// An allocation on a core that may not allocate, or out of the supervisor's heap.
    Allocation = 5,
    /// It did not give its core back within the grace of a revocation (since 1.2, as all that follow).
    Abort = 6,
    /// The host waited too long for a decision that it owed.
    Late = 7,
    /// It rang far more often than it decided.
    Flood = 8,
    /// It broke the protocol: the host believes nothing of it.
    Poison = 9,
    /// It made a system call that there is not.
    Call = 10,
    /// It gave its core back unasked.
    Exit = 11,
}

impl Cause {
    /// The cause's name on every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Synchronous => "synchronous_exception",
            Self::SystemError => "system_error",
            Self::Interrupt => "interrupt",
            Self::Allocation => "allocation",
            Self::Abort => "abort",
            Self::Late => "late",
            Self::Flood => "flood",
            Self::Poison => "poison",
            Self::Call => "system_call",
            Self::Exit => "exit",
        }
    }

    /// From the wire.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Panic,
            2 => Self::Synchronous,
            3 => Self::SystemError,
            4 => Self::Interrupt,
            5 => Self::Allocation,
            6 => Self::Abort,
            7 => Self::Late,
            8 => Self::Flood,
            9 => Self::Poison,
            10 => Self::Call,
            11 => Self::Exit,
            _ => return None,
        })
    }
}

/// Who ended, why, and with what in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epitaph {
    /// Why.
    pub cause: Cause,
    /// Which core.
    pub core: u8,
    /// In which session.
    pub session: u32,
    /// How many messages its agent had consumed.
    pub messages: u64,
    /// When, in ns since boot.
    pub time_ns: u64,
    /// Exception syndrome (ESR_EL1), 0 for a panic.
    pub esr: u64,
    /// Where (ELR_EL1), 0 for a panic.
    pub elr: u64,
    /// The address at fault (FAR_EL1), 0 for a panic.
    pub far: u64,
    /// Saved state (SPSR_EL1), 0 for a panic.
    pub spsr: u64,
    /// x0 to x30 and the stack pointer, 0 for a panic.
    pub registers: [u64; 32],
    /// Source line of a panic.
    pub line: u32,
    /// Last bytes of the source file's name.
    pub file: [u8; 60],
    /// First bytes of the message.
    pub text: [u8; TEXT_BYTES],
}

/// Text cut at what an epitaph's message holds.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    bytes: [u8; TEXT_BYTES],
    length: usize,
}

impl Cut {
    /// What `args` say, as much as fits.
    #[must_use]
    #[inline]
    pub fn new(args: fmt::Arguments<'_>) -> Self {
        let mut cut = Self { bytes: [0; TEXT_BYTES], length: 0 };
        // It takes what fits and reports no error.
        let _ = cut.write_fmt(args);
        cut
    }

    /// The text's bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// The text.
    #[must_use]
    #[inline]
    pub fn text(&self) -> &str {
        core::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

impl Write for Cut {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let end = self.length + char.len_utf8();
            let Some(place) = self.bytes.get_mut(self.length..end) else { break };
            char.encode_utf8(place);
            self.length = end;
        }
        Ok(())
    }
}

impl Epitaph {
    /// An epitaph that says only who and why.
    #[must_use]
    pub const fn new(cause: Cause, core: u8) -> Self {
        Self {
            cause,
            core,
            session: 0,
            messages: 0,
            time_ns: 0,
            esr: 0,
            elr: 0,
            far: 0,
            spsr: 0,
            registers: [0; 32],
            line: 0,
            file: [0; 60],
            text: [0; TEXT_BYTES],
        }
    }

    /// The record as it lies in the window.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; EPITAPH_BYTES] {
        let mut out = [0; EPITAPH_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8] = self.cause as u8;
        out[9] = self.core;
        out[12..16].copy_from_slice(&self.session.to_le_bytes());
        let words = [self.messages, self.time_ns, self.esr, self.elr, self.far, self.spsr];
        for (word, bytes) in words.iter().chain(&self.registers).zip(out[16..320].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out[320..324].copy_from_slice(&self.line.to_le_bytes());
        out[324..384].copy_from_slice(&self.file);
        out[384..].copy_from_slice(&self.text);
        let crc = crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a record; none where no whole one lies.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; EPITAPH_BYTES] = bytes.get(..EPITAPH_BYTES)?.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC || u32_at(4) != crc32c(&bytes[8..]) {
            return None;
        }
        let cause = Cause::from_bits(bytes[8])?;
        let mut epitaph = Self::new(cause, bytes[9]);
        epitaph.session = u32_at(12);
        [epitaph.messages, epitaph.time_ns] = [u64_at(16), u64_at(24)];
        [epitaph.esr, epitaph.elr, epitaph.far, epitaph.spsr] =
            [u64_at(32), u64_at(40), u64_at(48), u64_at(56)];
        for (i, register) in epitaph.registers.iter_mut().enumerate() {
            *register = u64_at(64 + 8 * i);
        }
        epitaph.line = u32_at(320);
        epitaph.file.copy_from_slice(&bytes[324..384]);
        epitaph.text.copy_from_slice(&bytes[384..]);
        Some(epitaph)
    }

    /// Puts the end of `file` and the start of `text` in, as much as fits.
    pub fn set_source(&mut self, file: &str, line: u32, text: &str) {
        let file = file.as_bytes();
        let tail = &file[file.len().saturating_sub(self.file.len())..];
        self.file = [0; 60];
        self.file[..tail.len()].copy_from_slice(tail);
        self.line = line;
        self.set_text(text);
    }

    /// Puts the start of `text` in, as much as fits.
    pub fn set_text(&mut self, text: &str) {
        let text = text.as_bytes();
        let head = &text[..text.len().min(self.text.len())];
        self.text = [0; TEXT_BYTES];
        self.text[..head.len()].copy_from_slice(head);
    }

    /// The source file's name, as far as it is text.
    #[must_use]
    pub fn file(&self) -> &str {
        printable(&self.file)
    }

    /// The message, as far as it is text.
    #[must_use]
    pub fn text(&self) -> &str {
        printable(&self.text)
    }
}

/// An epitaph with what 1.2 added: which agent it was, and what it heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpitaphRecord {
    /// Who ended and why.
    pub epitaph: Epitaph,
    /// Which agent of its enclave; 0 for the runtime itself.
    pub incarnation: u32,
    /// Its image, by its CRC-32C.
    pub image_crc: u32,
    /// The how manyth epitaph of its core this is, from 1 on.
    pub number: u32,
    /// The agent's name, zero-filled.
    pub name: [u8; crate::image::NAME_BYTES],
    /// The last message that it is known to have taken.
    pub last_message: Option<Payload>,
}

impl EpitaphRecord {
    /// The record as it lies in the window.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[..EPITAPH_BYTES].copy_from_slice(&self.epitaph.to_bytes());
        out[516..520].copy_from_slice(&self.incarnation.to_le_bytes());
        out[520..524].copy_from_slice(&self.image_crc.to_le_bytes());
        out[524..528].copy_from_slice(&self.number.to_le_bytes());
        out[528..560].copy_from_slice(&self.name);
        let words = self.last_message.unwrap_or([0; WORDS]);
        for (word, bytes) in words.iter().zip(out[560..624].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c(&out[516..]);
        out[512..516].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a record; none where no whole one lies.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.get(..RECORD_BYTES)?.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(512) != crc32c(&bytes[516..]) {
            return None;
        }
        let epitaph = Epitaph::from_bytes(bytes)?;
        let mut name = [0; crate::image::NAME_BYTES];
        name.copy_from_slice(&bytes[528..560]);
        let words: Payload =
            core::array::from_fn(|i| u64::from(u32_at(560 + 8 * i)) | u64::from(u32_at(564 + 8 * i)) << 32);
        Some(Self {
            epitaph,
            incarnation: u32_at(516),
            image_crc: u32_at(520),
            number: u32_at(524),
            name,
            last_message: (words != [0; WORDS]).then_some(words),
        })
    }

    /// All whole records of a core's region, the newest first.
    pub fn all(region: &[u8]) -> impl Iterator<Item = Self> + '_ {
        region.chunks_exact(RECORD_BYTES).map_while(Self::from_bytes)
    }

    /// The agent's name, as far as it is text; empty for the runtime itself.
    #[must_use]
    pub fn name(&self) -> &str {
        printable(&self.name)
    }
}

/// The text in a zero-filled field, as far as it is one.
pub(crate) fn printable(bytes: &[u8]) -> &str {
    let bytes = bytes.split(|&b| b == 0).next().unwrap_or(bytes);
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Epitaph {
        let mut epitaph = Epitaph::new(Cause::Synchronous, 3);
        epitaph.session = 9;
        epitaph.messages = 1 << 40;
        epitaph.time_ns = 77;
        [epitaph.esr, epitaph.elr, epitaph.far, epitaph.spsr] =
            [0x9600_0045, 0x4020_1234, 0xdead_beef, 0x3c5];
        epitaph.registers = core::array::from_fn(|i| i as u64);
        epitaph.set_source("firmware/runtime/src/main.rs", 42, "index out of bounds");
        epitaph
    }

    #[test]
    fn round_trip() {
        let epitaph = example();
        assert_eq!(Epitaph::from_bytes(&epitaph.to_bytes()), Some(epitaph));
        assert_eq!((epitaph.file(), epitaph.text()), ("firmware/runtime/src/main.rs", "index out of bounds"));
    }

    #[test]
    fn a_region_of_records_is_read_newest_first_and_up_to_the_first_damage() {
        let record = |number| EpitaphRecord {
            epitaph: example(),
            incarnation: 7,
            image_crc: 0xdead_beef,
            number,
            name: *b"fifo\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            last_message: Some([1, 2, 3, 4, 5, 6, 7, 8]),
        };
        let mut region = [0; EPITAPHS_BYTES];
        assert_eq!(EpitaphRecord::all(&region).count(), 0);
        for (place, number) in region.chunks_exact_mut(RECORD_BYTES).zip([3, 2, 1]) {
            place.copy_from_slice(&record(number).to_bytes());
        }
        assert!(EpitaphRecord::all(&region).eq([record(3), record(2), record(1)]));
        assert_eq!(record(3).name(), "fifo");
        // A host of 1.1 finds the newest where it always was.
        assert_eq!(Epitaph::from_bytes(&region), Some(example()));
        for at in [0, 100, 511, 512, 530, 600, 639] {
            let mut damaged = region;
            damaged[RECORD_BYTES + at] ^= 1;
            assert_eq!(EpitaphRecord::all(&damaged).count(), 1, "byte {at}");
        }
    }

    #[test]
    fn every_cause_has_its_number() {
        for bits in 0..=255 {
            assert!(
                Cause::from_bits(bits).is_none_or(|cause| cause as u8 == bits && !cause.name().is_empty())
            );
        }
        assert_eq!(Cause::from_bits(11), Some(Cause::Exit));
    }

    #[test]
    fn any_byte_wrong_is_no_epitaph() {
        let bytes = example().to_bytes();
        for i in (0..bytes.len()).step_by(if cfg!(miri) { 37 } else { 1 }) {
            let mut bad = bytes;
            bad[i] ^= 0x10;
            assert_eq!(Epitaph::from_bytes(&bad), None, "byte {i}");
        }
        assert_eq!(Epitaph::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn long_texts_keep_the_part_that_tells() {
        let mut epitaph = Epitaph::new(Cause::Panic, 0);
        let long = "é".repeat(200);
        epitaph.set_source(&long, 1, &long);
        assert!(epitaph.text().chars().all(|c| c == 'é'));
        epitaph.file[0] = 0xff;
        assert_eq!(epitaph.file(), "");
    }
}
