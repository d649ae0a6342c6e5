//! The state of a card's two slots, as it lies on its disk: which of them is booted, which is on trial. The loader, `neap flash`
//! and the runtime have to read it alike.
//!
//! It lies in two copies, written in turn: the newest whole one counts.
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `NEAPSLOT` |
//! | 8 | 4 | the copy's number: the newer has the higher one, modulo 2^32 |
//! | 12 | 1 | the good slot: 0 none, 1 A, 2 B |
//! | 13 | 1 | the slot on trial: likewise |
//! | 14 | 1 | 1 if it has been tried |
//! | 15 | 1 | why the last trial failed, as [`Failed`] |
//! | 16 | 4 | the least security version that is taken |
//! | 20 | 40 | zero |
//! | 60 | 4 | CRC-32C of what is before it |

use core::fmt;
use core::ops::Range;

use crate::crc::crc32c;

/// Bytes of a copy.
pub const COPY_BYTES: usize = 64;
/// Copies.
pub const COPIES: usize = 2;
/// They lie so far apart, in bytes: no block that a disk writes whole has both.
pub const COPY_STEP_BYTES: u64 = 4096;
/// Bytes of a sector, in which places on a disk are counted here, whatever its blocks are.
pub const SECTOR_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"NEAPSLOT";

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    const fn to_bits(slot: Option<Self>) -> u8 {
        match slot {
            None => 0,
            Some(Self::A) => 1,
            Some(Self::B) => 2,
        }
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(Self::A),
            2 => Some(Self::B),
            _ => None,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// Why the last trial failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Failed {
    /// It has not.
    #[default]
    Not = 0,
    /// The image was not confirmed before the next boot.
    Unconfirmed = 1,
    /// The image was refused.
    Refused = 2,
}

impl Failed {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Unconfirmed,
            2 => Self::Refused,
            _ => Self::Not,
        }
    }
}

/// Which slot is booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The slot whose image has been confirmed.
    pub good: Option<Slot>,
    /// The slot with a new image.
    pub trial: Option<Slot>,
    /// It has been entered once.
    pub is_tried: bool,
    /// What became of the last trial.
    pub failed: Failed,
    /// The least security version that is taken.
    pub security_version: u32,
}

/// What the copies say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// The state.
    pub state: State,
    /// Where the next one goes.
    next: usize,
    number: u32,
}

impl Copies {
    /// From both copies; a fresh disk has neither, and no good slot.
    #[must_use]
    pub fn read(copies: [&[u8; COPY_BYTES]; COPIES]) -> Self {
        let mut newest: Option<Self> = None;
        for (at, copy) in copies.into_iter().enumerate() {
            let Some((number, state)) = parse(copy) else { continue };
            let is_newer = newest.is_none_or(|other| number.wrapping_sub(other.number) < u32::MAX / 2);
            if is_newer {
                newest = Some(Self { state, next: (at + 1) % COPIES, number });
            }
        }
        newest.unwrap_or_default()
    }

    /// The number of the copy that counts; 0 where there is none.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// What to write for a new state, and over which copy: never over the one that counts.
    #[must_use]
    pub fn write(&mut self, state: State) -> (usize, [u8; COPY_BYTES]) {
        self.number = self.number.wrapping_add(1);
        self.state = state;
        let at = self.next;
        self.next = (at + 1) % COPIES;
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..12].copy_from_slice(&self.number.to_le_bytes());
        copy[12] = Slot::to_bits(state.good);
        copy[13] = Slot::to_bits(state.trial);
        copy[14] = u8::from(state.is_tried);
        copy[15] = state.failed as u8;
        copy[16..20].copy_from_slice(&state.security_version.to_le_bytes());
        let crc = crc32c(&copy[..60]);
        copy[60..].copy_from_slice(&crc.to_le_bytes());
        (at, copy)
    }
}

fn word(copy: &[u8; COPY_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([copy[at], copy[at + 1], copy[at + 2], copy[at + 3]])
}

/// Whether a copy counts: what it says can be, and is what was written.
fn counts(copy: &[u8; COPY_BYTES]) -> bool {
    copy[..8] == MAGIC
        && copy[12] <= Slot::ALL.len() as u8
        && copy[13] <= Slot::ALL.len() as u8
        && copy[15] <= Failed::Refused as u8
        && crc32c(&copy[..60]) == word(copy, 60)
}

fn parse(copy: &[u8; COPY_BYTES]) -> Option<(u32, State)> {
    let state = State {
        good: Slot::from_bits(copy[12]),
        trial: Slot::from_bits(copy[13]),
        is_tried: copy[14] == 1,
        failed: Failed::from_bits(copy[15]),
        security_version: word(copy, 16),
    };
    counts(copy).then(|| (word(copy, 8), state))
}

impl State {
    /// The slot that a flash writes: not the one that is booted, nor, where none is confirmed yet, the one that was tried.
    #[must_use]
    pub fn inactive(self) -> Slot {
        self.good.or(self.trial.filter(|_| self.is_tried)).map_or(Slot::A, Slot::other)
    }

    /// The state once the inactive slot holds a new image.
    #[must_use]
    pub fn flashed(self) -> Self {
        let trial = Some(self.inactive());
        Self { trial, is_tried: false, failed: Failed::Not, ..self }
    }

    /// The state while the inactive slot is being written: nothing is to be tried of it.
    #[must_use]
    pub fn flashing(self) -> Self {
        Self { trial: None, is_tried: false, ..self }
    }

    /// The state once the image on trial, of this security version, has shown that it works.
    #[must_use]
    pub fn confirmed(self, security_version: u32) -> Self {
        let Some(slot) = self.trial.filter(|_| self.is_tried) else { return self };
        Self {
            good: Some(slot),
            trial: None,
            is_tried: false,
            failed: Failed::Not,
            security_version: self.security_version.max(security_version),
        }
    }
}

/// What of a card's disk may be written while its image runs: the slot that is not booted, and the state, as long as that takes
/// back neither which slot is confirmed nor the least security version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writable {
    /// The state's first sector.
    pub state: u64,
    /// The slot's sectors.
    pub slot: Range<u64>,
    /// What a state has to call the good slot.
    pub good: Option<Slot>,
    /// What it has to have for the least security version.
    pub security_version: u32,
}

impl Writable {
    /// Words of [`Writable::to_words`].
    pub const WORDS: usize = 4;

    /// Whether `sectors` sectors may be written from `sector` on, of which `head` are the first bytes.
    #[must_use]
    pub fn allows(&self, sector: u64, sectors: u64, head: &[u8; COPY_BYTES]) -> bool {
        let end = sector.saturating_add(sectors);
        if self.slot.start <= sector && end <= self.slot.end {
            return true;
        }
        let apart = COPY_STEP_BYTES / SECTOR_BYTES as u64;
        let is_copy = sectors == 1 && (sector == self.state || sector == self.state.saturating_add(apart));
        // What is looked at is bytes, because the runtime has little room.
        is_copy
            && counts(head)
            && head[12] == Slot::to_bits(self.good)
            && word(head, 16) == self.security_version
    }

    /// As the loader hands it on.
    #[must_use]
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let said = u64::from(self.security_version) << 8 | u64::from(Slot::to_bits(self.good));
        [self.state, self.slot.start, self.slot.end, said]
    }

    /// From what the loader hands on.
    #[must_use]
    pub fn from_words([state, start, end, said]: [u64; Self::WORDS]) -> Self {
        let good = Slot::from_bits(said as u8);
        Self { state, slot: start..end, good, security_version: (said >> 8) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITABLE: Writable =
        Writable { state: 100, slot: 1000..1032, good: Some(Slot::A), security_version: 3 };

    fn copy(state: State) -> [u8; COPY_BYTES] {
        Copies::default().write(state).1
    }

    const FLASHED: State = State {
        good: Some(Slot::A),
        trial: Some(Slot::B),
        is_tried: false,
        failed: Failed::Not,
        security_version: 3,
    };

    #[test]
    fn the_slot_that_is_not_booted_may_be_written_and_nothing_beside_it() {
        let head = [0; COPY_BYTES];
        assert!(WRITABLE.allows(1000, 32, &head) && WRITABLE.allows(1031, 1, &head));
        for (sector, sectors) in
            [(999, 1), (999, 2), (1031, 2), (1032, 1), (0, 1), (u64::MAX, 1), (1000, u64::MAX)]
        {
            assert!(!WRITABLE.allows(sector, sectors, &head), "{sector} {sectors}");
        }
    }

    #[test]
    fn a_state_may_be_written_that_takes_nothing_back() {
        let head = copy(FLASHED);
        assert!(WRITABLE.allows(100, 1, &head) && WRITABLE.allows(108, 1, &head));
        for (sector, sectors) in [(99, 1), (101, 1), (107, 1), (109, 1), (100, 2), (100, 0)] {
            assert!(!WRITABLE.allows(sector, sectors, &head), "{sector} {sectors}");
        }
        for state in [
            State { security_version: 2, ..FLASHED },
            State { security_version: 4, ..FLASHED },
            State { good: Some(Slot::B), ..FLASHED },
            State { good: None, ..FLASHED },
        ] {
            assert!(!WRITABLE.allows(100, 1, &copy(state)), "{state:?}");
        }
        for byte in 0..COPY_BYTES {
            let mut damaged = head;
            damaged[byte] ^= 1;
            assert!(
                !WRITABLE.allows(100, 1, &damaged),
                "byte {byte}: what does not count may not take a copy's place"
            );
        }
    }

    #[test]
    fn what_the_loader_hands_on_comes_back() {
        assert_eq!(Writable::from_words(WRITABLE.to_words()), WRITABLE);
        let none = Writable { good: None, security_version: u32::MAX, ..WRITABLE };
        assert_eq!(Writable::from_words(none.to_words()), none);
    }
}
