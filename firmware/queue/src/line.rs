//! A line in shared memory.

use neap_abi::line::{PAYLOAD_MASK, Tag, WORDS};

use crate::sync::{AtomicU64, Ordering, fence};

/// Eight 64-bit words on a 64-byte boundary. (Loom explores lines of fewer.)
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line<const W: usize = WORDS>([AtomicU64; W]);

#[cfg(not(loom))]
const _: () =
    assert!(size_of::<Line>() == neap_abi::LINE_BYTES && align_of::<Line>() == neap_abi::LINE_BYTES);

impl<const W: usize> Default for Line<W> {
    fn default() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// A reader that looks at the first word's tag alone: wrong, and compiled in only to see that the simulator finds out
/// (`--cfg careless`).
const CARELESS: bool = cfg!(careless);

/// What `words` carry, if each of them carries it under `tag`. Taking the tag off each word is also the proof: what is
/// left in a top byte was another tag.
#[inline(always)]
fn opened<const W: usize>(mut words: [u64; W], tag: Tag) -> Option<[u64; W]> {
    let mut all = 0;
    for (number, word) in words.iter_mut().enumerate() {
        *word ^= tag.word();
        if number == 0 || !CARELESS {
            all |= *word;
        } else {
            // A careless reader takes the rest on trust.
            *word &= PAYLOAD_MASK;
        }
    }
    (all <= PAYLOAD_MASK).then_some(words)
}

impl<const W: usize> Line<W> {
    /// Writes `payload` under `tag`. Word by word, in no order that a reader may rely on.
    #[inline(always)]
    pub fn publish(&self, payload: &[u64; W], tag: Tag) {
        for (word, payload) in self.0.iter().zip(payload) {
            word.store(tag.seal(*payload), Ordering::Relaxed);
        }
    }

    /// As [`Line::publish`], and whoever reads word `last` with acquire sees all that came before this call.
    #[inline(always)]
    pub fn publish_release(&self, payload: &[u64; W], tag: Tag, last: usize) {
        for (i, (word, payload)) in self.0.iter().zip(payload).enumerate() {
            if i != last {
                word.store(tag.seal(*payload), Ordering::Relaxed);
            }
        }
        if let (Some(word), Some(payload)) = (self.0.get(last), payload.get(last)) {
            word.store(tag.seal(*payload), Ordering::Release);
        }
    }

    /// Stores one word of a line that lies there under `tag` anew: a reader finds the line as whole as before, with the one
    /// word or the other. Not the word that was stored with release: who reads this one with acquire would see less.
    #[inline(always)]
    pub fn amend(&self, word: usize, payload: u64, tag: Tag) {
        if let Some(word) = self.0.get(word) {
            word.store(tag.seal(payload), Ordering::Relaxed);
        }
    }

    /// The payload, if the whole line is there under `tag`.
    #[inline(always)]
    pub fn read(&self, tag: Tag) -> Option<[u64; W]> {
        opened(self.words(), tag)
    }

    /// The payload and its tag, if the line is whole under any; what its writer did before is then visible.
    #[inline(always)]
    pub fn read_any(&self) -> Option<([u64; W], Tag)> {
        let words = self.words();
        let tag = Tag::of(&words)?;
        let payload = opened(words, tag)?;
        fence(Ordering::Acquire);
        Some((payload, tag))
    }

    /// Whether nothing was ever written.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.words().iter().all(|word| *word == 0)
    }

    /// Makes the line fresh again: it proves nothing.
    pub fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The words as they lie there, tags and all: what a bus carries.
    #[must_use]
    #[inline(always)]
    pub fn words(&self) -> [u64; W] {
        core::array::from_fn(|i| self.0[i].load(Ordering::Relaxed))
    }

    /// Lets one word of a posted write land, as a bus does that splits lines. A word out of bounds lands nowhere.
    pub fn land(&self, word: usize, value: u64) {
        if let Some(word) = self.0.get(word) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering::Relaxed;
    use neap_abi::line::Payload;

    fn permutations(order: &mut [usize; WORDS], from: usize, visit: &mut impl FnMut(&[usize; WORDS])) {
        if from == WORDS {
            return visit(order);
        }
        for i in from..WORDS {
            order.swap(from, i);
            permutations(order, from + 1, visit);
            order.swap(from, i);
        }
    }

    fn payload(of: u64) -> Payload {
        core::array::from_fn(|i| of << 8 | i as u64)
    }

    /// Every order in which eight 8-byte writes can land, every point between them at which a reader may look, every
    /// lap boundary: the line is seen whole when the last word has landed, and at no time before.
    #[test]
    fn a_torn_line_never_passes() {
        let mut orders = Vec::new();
        if cfg!(miri) {
            // Miri looks at the accesses, not at the orders.
            orders.extend([[0, 1, 2, 3, 4, 5, 6, 7], [7, 2, 5, 0, 3, 6, 1, 4]]);
        } else {
            permutations(&mut core::array::from_fn(|i| i), 0, &mut |order| orders.push(*order));
            assert_eq!(orders.len(), 40_320);
        }
        let line: Line = Line::default();
        let mut old = [0; WORDS];
        // Every pair of neighbouring tags; the first lap lies over fresh memory.
        for lap in 0..=if cfg!(miri) { 3 } else { 255 } {
            let (tag, new) = (Tag::of_lap(lap), payload(u64::from(lap)));
            for order in &orders {
                for (word, old) in line.0.iter().zip(old) {
                    word.store(old, Relaxed);
                }
                for (landed, &word) in order.iter().enumerate() {
                    assert_eq!(line.read(tag), None, "lap {lap} passed with {landed} words, order {order:?}");
                    line.0[word].store(tag.seal(new[word]), Relaxed);
                }
                assert_eq!(line.read(tag), Some(new));
            }
            old = core::array::from_fn(|i| tag.seal(new[i]));
        }
    }

    /// A reader is not atomic either: it may load each word at another point. What it can come to see is any mix of
    /// old and new words, and only the mix without an old one passes.
    #[test]
    fn any_mix_of_two_laps_fails() {
        let mut old = [0; WORDS];
        for lap in 0..=if cfg!(miri) { 1 } else { 255 } {
            let tag = Tag::of_lap(lap);
            let new: [u64; WORDS] = payload(u64::from(lap)).map(|word| tag.seal(word));
            for mix in 0..=255u32 {
                let words: [u64; WORDS] =
                    core::array::from_fn(|i| if mix >> i & 1 == 1 { new[i] } else { old[i] });
                assert_eq!(tag.proves(&words), mix == 255, "lap {lap}, mix {mix:#010b}");
                let whole_new = (mix == 255).then(|| payload(u64::from(lap)));
                assert_eq!(opened(words, tag), whole_new, "lap {lap}, mix {mix:#010b}");
                let whole = mix == 255 || (mix == 0 && lap > 0);
                assert_eq!(Tag::of(&words).is_some(), whole, "lap {lap}, mix {mix:#010b}");
            }
            old = new;
        }
    }

    /// The proof stands on every word: a reader that leaves any one out would let a torn line pass. If this fails, the
    /// two tests above could not.
    #[test]
    fn leaving_out_one_word_would_let_a_torn_line_pass() {
        for left_out in 0..WORDS {
            let tag = Tag::FIRST;
            let torn: [u64; WORDS] = core::array::from_fn(|i| if i == left_out { 0 } else { tag.seal(7) });
            let careless = torn.iter().enumerate().all(|(i, word)| i == left_out || tag.proves(&[*word]));
            assert!(careless && !tag.proves(&torn) && opened(torn, tag).is_none());
        }
    }

    #[test]
    fn random_bytes_prove_themselves_by_chance_only() {
        let line: Line = Line::default();
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..if cfg!(miri) { 100 } else { 100_000 } {
            for word in &line.0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.store(state, Relaxed);
            }
            assert_eq!(line.read_any(), None);
        }
    }
}
