//! Two slots, and which of them is booted.
//!
//! The state ([`neap_abi::slots`]) says it. A flash writes the slot that is not booted, reads it back, and then writes the state,
//! which is one sector: until that is whole the other copy counts, which knows nothing of the new image. A new image is tried once:
//! that it is tried is written down before it is entered, so that whatever becomes of it the next boot knows. Confirmed, it is the
//! good one.

use core::fmt;

use neap_abi::slots::{Failed, Slot, State};

use crate::image::Refusal;

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

/// Chooses. `check` says what is wrong with the image in a slot, the least security version being the one given.
///
/// # Errors
/// Neither slot can be booted.
pub fn choose(
    before: State,
    mut check: impl FnMut(Slot, u32) -> Result<(), Refusal>,
) -> Result<Choice, Nothing> {
    let mut state = before;
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
                let write = (state != before).then_some(state);
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

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use neap_abi::slots::{COPIES, COPY_BYTES, Copies, Failed};

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
            choose(self.state().state, |slot, _| self.check(slot))
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
