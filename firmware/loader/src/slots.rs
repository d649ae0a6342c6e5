//! Two slots, and which of them is booted.
//!
//! The state lies in two copies, written in turn: the newest whole one counts. A flash writes the slot that is not booted, reads it
//! back, and then writes the state, which is one sector: until that is whole the other copy counts, which knows nothing of the new
//! image. A new image is tried once: that it is tried is written down before it is entered, so that whatever becomes of it the next
//! boot knows. Confirmed, it is the good one.
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

use neap_abi::crc::crc32c;

use crate::image::Refusal;

/// Bytes of a copy.
pub const COPY_BYTES: usize = 64;
/// Copies.
pub const COPIES: usize = 2;
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

    const fn from_bits(bits: u8) -> Option<Option<Self>> {
        match bits {
            0 => Some(None),
            1 => Some(Some(Self::A)),
            2 => Some(Some(Self::B)),
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
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Not),
            1 => Some(Self::Unconfirmed),
            2 => Some(Self::Refused),
            _ => None,
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

fn parse(copy: &[u8; COPY_BYTES]) -> Option<(u32, State)> {
    let word = |at: usize| u32::from_le_bytes([copy[at], copy[at + 1], copy[at + 2], copy[at + 3]]);
    if copy[..8] != MAGIC || crc32c(&copy[..60]) != word(60) {
        return None;
    }
    let state = State {
        good: Slot::from_bits(copy[12])?,
        trial: Slot::from_bits(copy[13])?,
        is_tried: copy[14] == 1,
        failed: Failed::from_bits(copy[15])?,
        security_version: word(16),
    };
    Some((word(8), state))
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The slot.
    pub slot: Slot,
    /// It is on trial: it has to be confirmed.
    pub on_trial: bool,
    /// What to write before it is entered; none where nothing changes.
    pub write: Option<State>,
    /// Why it is not the slot that was to be: a slot, and what was wrong with it.
    pub refused: Option<(Slot, Rejected)>,
}

/// What was wrong with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Its image.
    Image(Refusal),
    /// It was tried and not confirmed.
    Unconfirmed,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(refusal) => refusal.fmt(f),
            Self::Unconfirmed => f.write_str("it was tried once and was not confirmed"),
        }
    }
}

/// Neither slot can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nothing {
    /// What is wrong with each, A first.
    pub refused: [Refusal; 2],
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.refused;
        write!(f, "no slot can be booted; write an image to one with `neap flash`. A: {a}. B: {b}")
    }
}

impl core::error::Error for Nothing {}

impl State {
    /// Chooses. `check` says what is wrong with the image in a slot, the least security version being the one given.
    ///
    /// # Errors
    /// Neither slot can be booted.
    pub fn choose(self, mut check: impl FnMut(Slot, u32) -> Result<(), Refusal>) -> Result<Choice, Nothing> {
        let mut state = self;
        let mut refused = None;
        if let Some(slot) = state.trial {
            if state.is_tried {
                refused = Some((slot, Rejected::Unconfirmed));
                (state.trial, state.is_tried, state.failed) = (None, false, Failed::Unconfirmed);
            } else {
                match check(slot, state.security_version) {
                    Ok(()) => {
                        state.is_tried = true;
                        return Ok(Choice { slot, on_trial: true, write: Some(state), refused: None });
                    }
                    Err(refusal) => {
                        refused = Some((slot, Rejected::Image(refusal)));
                        (state.trial, state.is_tried, state.failed) = (None, false, Failed::Refused);
                    }
                }
            }
        }
        // The good one; where there is none, or that has rotted, the other, if it holds an image: better than nothing.
        let first = state.good.unwrap_or(Slot::A);
        let mut wrong = [None, None];
        for slot in [first, first.other()] {
            match check(slot, state.security_version) {
                Ok(()) => {
                    // What is booted where nothing is confirmed can become what is.
                    let on_trial = state.good.is_none();
                    if on_trial {
                        (state.trial, state.is_tried) = (Some(slot), true);
                    }
                    let write = (state != self).then_some(state);
                    return Ok(Choice { slot, on_trial, write, refused });
                }
                Err(refusal) => {
                    refused.get_or_insert((slot, Rejected::Image(refusal.clone())));
                    wrong[slot as usize] = Some(refusal);
                }
            }
        }
        let [a, b] = wrong.map(|refusal| refusal.unwrap_or(Refusal::Magic));
        Err(Nothing { refused: [a, b] })
    }

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

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A disk in miniature: an image is a number, whole if both halves agree, and 0 is none.
    #[derive(Clone, Debug)]
    struct Disk {
        slots: [[u8; 2]; 2],
        copies: [[u8; COPY_BYTES]; COPIES],
    }

    /// One write that can be cut.
    #[derive(Clone, Copy, Debug)]
    enum Write {
        Half(Slot, usize, u8),
        Copy(usize, [u8; COPY_BYTES]),
    }

    impl Disk {
        fn state(&self) -> Copies {
            Copies::read([&self.copies[0], &self.copies[1]])
        }

        /// Carries a write out, or only its first bytes.
        fn write(&mut self, write: Write, bytes: usize) {
            match write {
                Write::Half(slot, half, value) if bytes > 0 => self.slots[slot as usize][half] = value,
                Write::Half(..) => {}
                Write::Copy(at, copy) => {
                    let bytes = bytes.min(COPY_BYTES);
                    self.copies[at][..bytes].copy_from_slice(&copy[..bytes]);
                }
            }
        }

        fn check(&self, slot: Slot) -> Result<(), Refusal> {
            let [first, second] = self.slots[slot as usize];
            if first == 0 || first != second { Err(Refusal::Signature) } else { Ok(()) }
        }

        fn boots(&self) -> Result<Choice, Nothing> {
            self.state().state.choose(|slot, _| self.check(slot))
        }
    }

    /// The writes of a flash of `image`.
    fn flash(disk: &Disk, image: u8) -> Vec<Write> {
        let mut copies = disk.state();
        let slot = copies.state.inactive();
        let mut writes = Vec::new();
        let before = copies.state;
        if before.trial.is_some() {
            let (at, copy) = copies.write(before.flashing());
            writes.push(Write::Copy(at, copy));
        }
        writes.extend([0, 1].map(|half| Write::Half(slot, half, image)));
        let (at, copy) = copies.write(copies.state.flashed());
        writes.push(Write::Copy(at, copy));
        writes
    }

    fn boot(disk: &mut Disk) -> Choice {
        let choice = disk.boots().unwrap();
        if let Some(state) = choice.write {
            let (at, copy) = disk.state().write(state);
            disk.write(Write::Copy(at, copy), COPY_BYTES);
        }
        choice
    }

    #[test]
    fn a_copy_s_number_is_read_back() {
        let mut copies = Copies::default();
        for number in 1..4 {
            let (_, copy) = copies.write(State::default());
            assert_eq!(copies.number(), number);
            assert_eq!(Copies::read([&copy, &[0; COPY_BYTES]]).number(), number);
        }
    }

    fn confirm(disk: &mut Disk) {
        let mut copies = disk.state();
        let (at, copy) = copies.write(copies.state.confirmed(1));
        disk.write(Write::Copy(at, copy), COPY_BYTES);
    }

    fn installed() -> Disk {
        let mut disk = Disk { slots: [[0; 2]; 2], copies: [[0; COPY_BYTES]; COPIES] };
        for write in flash(&disk, 1) {
            disk.write(write, COPY_BYTES);
        }
        assert!(boot(&mut disk).on_trial);
        confirm(&mut disk);
        disk
    }

    #[test]
    fn a_new_image_is_tried_once_and_stays_when_it_is_confirmed() {
        let mut disk = installed();
        assert_eq!(boot(&mut disk).slot, Slot::A);
        for write in flash(&disk, 2) {
            disk.write(write, COPY_BYTES);
        }
        let tried = boot(&mut disk);
        assert_eq!((tried.slot, tried.on_trial), (Slot::B, true));
        confirm(&mut disk);
        let again = boot(&mut disk);
        assert_eq!((again.slot, again.on_trial, again.refused), (Slot::B, false, None));
    }

    #[test]
    fn one_that_is_not_confirmed_gives_way_at_the_next_boot() {
        let mut disk = installed();
        for write in flash(&disk, 2) {
            disk.write(write, COPY_BYTES);
        }
        assert_eq!(boot(&mut disk).slot, Slot::B);
        let back = boot(&mut disk);
        assert_eq!((back.slot, back.refused), (Slot::A, Some((Slot::B, Rejected::Unconfirmed))));
        assert_eq!(disk.state().state.failed, Failed::Unconfirmed);
        assert_eq!(boot(&mut disk).refused, None, "it is told of once");
    }

    #[test]
    fn a_bad_one_is_not_entered() {
        let mut disk = installed();
        for write in flash(&disk, 2) {
            disk.write(write, COPY_BYTES);
        }
        disk.slots[1][1] = 9;
        let choice = boot(&mut disk);
        assert_eq!((choice.slot, choice.on_trial), (Slot::A, false));
        assert!(matches!(choice.refused, Some((Slot::B, Rejected::Image(Refusal::Signature)))));
    }

    #[test]
    fn what_boots_where_nothing_is_confirmed_is_on_trial_and_no_flash_writes_over_it() {
        let mut disk = Disk { slots: [[0; 2]; 2], copies: [[0; COPY_BYTES]; COPIES] };
        for write in flash(&disk, 1) {
            disk.write(write, COPY_BYTES);
        }
        assert!(boot(&mut disk).on_trial);
        // The second image is bad, and comes before the first was confirmed.
        for write in flash(&disk, 2) {
            disk.write(write, COPY_BYTES);
        }
        assert_eq!(disk.slots[0], [1; 2]);
        disk.slots[1][1] = 9;
        let again = boot(&mut disk);
        assert_eq!((again.slot, again.on_trial), (Slot::A, true));
        confirm(&mut disk);
        assert_eq!(disk.state().state.good, Some(Slot::A));
    }

    #[test]
    fn where_nothing_boots_both_reasons_are_told() {
        let disk = Disk { slots: [[0; 2]; 2], copies: [[0; COPY_BYTES]; COPIES] };
        let words = alloc::string::ToString::to_string(&disk.boots().unwrap_err());
        assert!(words.contains("neap flash") && words.contains("A: ") && words.contains("B: "), "{words}");
    }

    #[test]
    fn a_confirmation_that_nobody_asked_for_changes_nothing() {
        let state = State { good: Some(Slot::A), trial: Some(Slot::B), ..State::default() };
        assert_eq!(state.confirmed(9), state, "it has not been tried");
    }

    proptest! {
        /// Whatever is done, and wherever power is cut in it, what was confirmed or has been tried boots.
        #[test]
        fn a_cut_anywhere_leaves_a_disk_that_boots(
            steps in proptest::collection::vec((0u8..4, 0usize..6, 0usize..=COPY_BYTES), 1..40)
        ) {
            let mut disk = installed();
            let mut image = 1u8;
            for (what, cut_at, bytes) in steps {
                match what {
                    0 | 1 => {
                        image = image % 250 + 1;
                        for (at, write) in flash(&disk, image).into_iter().enumerate() {
                            if what == 1 && at == cut_at {
                                disk.write(write, bytes);
                                break;
                            }
                            disk.write(write, COPY_BYTES);
                        }
                    }
                    2 => drop(boot(&mut disk)),
                    _ => confirm(&mut disk),
                }
                let choice = disk.boots();
                prop_assert!(choice.is_ok(), "{:?}", disk);
                let good = disk.state().state.good;
                prop_assert!(good.is_some_and(|good| disk.check(good).is_ok()), "the good slot has rotted: {:?}", disk);
            }
        }
    }
}
