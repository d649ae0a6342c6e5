//! The cycle ledger: when a txn's agent saw, decided, published and rang, in bits of its line that the txn leaves over.
//!
//! | word | bits 32.. | |
//! | --- | --- | --- |
//! | 2 | seen 24 | the message that led to the txn was whole |
//! | 3 | doorbell 24 | the doorbell had been rung; stored after it |
//! | 4 | published 24 | the line was about to be stored |
//! | 6 | decided 24 | the policy had made up its mind: its txns came to the libOS |
//!
//! Each is the low 24 bits of the agent's counter, which the hello page gives the frequency of
//! ([`crate::Hello::counter_hz`]). Zero is not kept: by an agent that keeps none, or not yet, or, once in 2^24 ticks, by
//! chance. The ledger is no part of the decision, and nothing is decided by it: an older reader passes it over.

use crate::line::{Payload, field};

/// The bits of the counter that are kept.
pub const TICKS_MASK: u64 = 0xff_ffff;
/// The word of a line that the doorbell's ticks go to, when it has been rung.
pub const DOORBELL_WORD: usize = 3;

const SEEN_WORD: usize = 2;
const PUBLISHED_WORD: usize = 4;
const DECIDED_WORD: usize = 6;

/// The four entries of one txn, 24 bits each; 0 where one is not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// When the agent saw the message that led to the txn; where the time did, when it looked at the clock.
    pub seen_ticks: u32,
    /// When the policy's txns came to the libOS: one entry for all of a commit.
    pub decided_ticks: u32,
    /// When the libOS was about to store the line; of a commit's first, that is when it came.
    pub published_ticks: u32,
    /// When the doorbell had been rung; never for a prestaged txn, and of several that rest on one message for the last alone.
    pub doorbell_ticks: u32,
}

/// The low bits of a counter, where they lie in a word.
#[inline(always)]
const fn entry(ticks: u64) -> u64 {
    (ticks & TICKS_MASK) << 32
}

impl Ledger {
    /// Enters a counter's values, of which the low bits are kept, into a txn's payload. The doorbell is not rung yet.
    #[inline(always)]
    pub const fn enter(payload: &mut Payload, seen_ticks: u64, decided_ticks: u64, published_ticks: u64) {
        payload[SEEN_WORD] |= entry(seen_ticks);
        payload[DECIDED_WORD] |= entry(decided_ticks);
        payload[PUBLISHED_WORD] |= entry(published_ticks);
    }

    /// The payload of word [`DOORBELL_WORD`] of txn `id`, once it has been rung for.
    #[must_use]
    #[inline(always)]
    pub const fn rung(id: u32, ticks: u64) -> u64 {
        id as u64 | entry(ticks)
    }

    /// From a txn's payload. Every payload has one; what an agent enters is an allegation.
    #[must_use]
    pub const fn from_payload(words: &Payload) -> Self {
        Self {
            seen_ticks: field(words[SEEN_WORD], 32, 24) as u32,
            decided_ticks: field(words[DECIDED_WORD], 32, 24) as u32,
            published_ticks: field(words[PUBLISHED_WORD], 32, 24) as u32,
            doorbell_ticks: field(words[DOORBELL_WORD], 32, 24) as u32,
        }
    }
}

/// Ticks from one entry to a later one, modulo 2^24; none where either is not kept.
#[must_use]
pub const fn ticks_between(earlier: u32, later: u32) -> Option<u32> {
    if earlier == 0 || later == 0 {
        return None;
    }
    Some(later.wrapping_sub(earlier) & TICKS_MASK as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PAYLOAD_MASK;
    use crate::txn::Txn;

    /// Numbers of all sizes, the same in each run.
    fn random() -> impl FnMut() -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> (state & 0x1f)
        }
    }

    /// Any txn under any ledger: each is read back whole, and neither knows of the other.
    #[test]
    fn txn_and_ledger_share_a_line_and_no_bit() {
        let mut random = random();
        for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
            let plain: Payload = core::array::from_fn(|_| random() & PAYLOAD_MASK);
            let txn = Txn::from_payload(&plain);
            let ticks = [random(), random(), random(), random()];
            let mut payload = txn.to_payload();
            assert_eq!(Ledger::from_payload(&payload), Ledger::default(), "a txn alone has no ledger");
            Ledger::enter(&mut payload, ticks[0], ticks[1], ticks[2]);
            let kept = ticks.map(|ticks| (ticks & TICKS_MASK) as u32);
            let [seen_ticks, decided_ticks, published_ticks, doorbell_ticks] = kept;
            let entered = Ledger { seen_ticks, decided_ticks, published_ticks, doorbell_ticks: 0 };
            assert_eq!((Txn::from_payload(&payload), Ledger::from_payload(&payload)), (txn, entered));
            payload[DOORBELL_WORD] = Ledger::rung(txn.id, ticks[3]);
            let rung = Ledger { doorbell_ticks, ..entered };
            assert_eq!((Txn::from_payload(&payload), Ledger::from_payload(&payload)), (txn, rung));
            assert!(payload.iter().all(|word| word & !PAYLOAD_MASK == 0));
        }
    }

    #[test]
    fn ticks_come_round_and_zero_is_no_time() {
        assert_eq!(ticks_between(5, 9), Some(4));
        assert_eq!(ticks_between(7, 7), Some(0));
        assert_eq!(ticks_between(0xff_fffe, 3), Some(5));
        assert_eq!((ticks_between(0, 9), ticks_between(9, 0)), (None, None));
    }
}
