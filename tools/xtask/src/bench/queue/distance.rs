//! How far apart two CPUs are: what it takes to hand a cache line over.
//!
//! A virtual machine's topology is a tale, and its host moves its CPUs about: the two may be hardware threads of one
//! core at one moment and sit in two clusters at the next. What tells is time: one word that two threads advance by
//! turns with compare-and-swap, and nothing else. Looked at on a virtual machine of an EPYC 7003, where one thread
//! alone takes 3.2 ns for a compare-and-swap:
//!
//! | the two CPUs             | hand-over, one way | beside one alone | two busy loops slow each other |
//! |--------------------------|--------------------|------------------|--------------------------------|
//! | threads of one core      | 10 to 11 ns        | 3.3              | by 1.2 to 1.4                  |
//! | cores with one L3 cache  | 23 to 30 ns        | 7 to 9           | no                             |
//! | cores with two L3 caches | 85 to 125 ns       | 27 to 39         | no                             |
//!
//! The last column is the proof that only the first row is one core. The limit is [`CORES_FROM`] times the time alone,
//! so that it moves with the clock and the make of the CPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::contest::LOOKS_BEFORE_YIELD;

/// Hand-overs that take this many times one thread's own compare-and-swap, or more, go from core to core: the
/// middle of the 3.3 and the 7 seen. Where it errs, one core's threads taken for two cores cost the ring, not its peers.
pub const CORES_FROM: f64 = 5.0;

/// Chunks of one look; their median counts, so that an interruption does not.
const CHUNKS: usize = 9;
const TURNS_PER_CHUNK: u32 = 50;

/// Where the two CPUs were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Two hardware threads of one core: they share its first cache, and no line moves.
    SharedCore,
    /// On two cores: what one wrote, the other has to fetch.
    Cores,
}

impl Place {
    /// The one place at which all `hand_overs_ns` were taken, where one thread alone takes `alone_ns`; none if the
    /// CPUs moved in between, or nothing was taken.
    pub fn of(hand_overs_ns: impl IntoIterator<Item = f64>, alone_ns: f64) -> Option<Self> {
        let mut places = hand_overs_ns
            .into_iter()
            .map(|ns| if ns >= alone_ns * CORES_FROM { Self::Cores } else { Self::SharedCore });
        let first = places.next()?;
        places.all(|place| place == first).then_some(first)
    }
}

/// Which of the two threads, and the count from which it advances first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that begins.
    Ping = 0,
    /// The one that answers.
    Pong = 1,
}

/// The word that is handed over, once there and back per turn, for one look. Alone on its cache line (x86 fetches them
/// in pairs).
#[derive(Default)]
#[repr(align(128))]
pub struct Probe(AtomicU64);

impl Probe {
    /// Nanoseconds per hand-over, one way; to be called by both sides at once.
    pub fn hand_over_ns(&self, side: Side) -> f64 {
        median_of_chunks(side as u64, 2, |count| {
            let mut looks = 0u32;
            // No pause between looks: it would take longer than what is measured.
            while !self.advance(count) {
                looks += 1;
                if looks.is_multiple_of(LOOKS_BEFORE_YIELD) {
                    thread::yield_now();
                }
            }
        })
    }

    /// Nanoseconds that this thread takes for the same on a line that nobody else wants: the best of many looks, since
    /// whatever disturbs only lengthens.
    pub fn alone_ns() -> f64 {
        let look = || {
            let probe = Self::default();
            median_of_chunks(0, 1, |count| assert!(probe.advance(count), "nobody else advances it"))
        };
        (0..200).map(|_| look()).fold(f64::INFINITY, f64::min)
    }

    #[inline(always)]
    fn advance(&self, count: u64) -> bool {
        self.0.compare_exchange(count, count + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// The median time of one step, of `steps` that each of `turn`'s calls stands for; it gets the counts from `first` on.
#[inline(always)]
fn median_of_chunks(first: u64, steps: u32, mut turn: impl FnMut(u64)) -> f64 {
    let mut count = first;
    let mut chunks = [0.0; CHUNKS];
    for chunk in &mut chunks {
        let start = Instant::now();
        for _ in 0..TURNS_PER_CHUNK {
            turn(count);
            count += u64::from(steps);
        }
        *chunk = start.elapsed().as_nanos() as f64 / f64::from(steps * TURNS_PER_CHUNK);
    }
    chunks.sort_by(f64::total_cmp);
    chunks[CHUNKS / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_seen_are_told_apart() {
        for alone_ns in [2.9, 3.2] {
            for ns in [10.0, 10.6, 11.5] {
                assert_eq!(Place::of([ns], alone_ns), Some(Place::SharedCore), "{ns} beside {alone_ns}");
            }
            for ns in [22.8, 30.0, 85.0, 125.0, 4_000.0] {
                assert_eq!(Place::of([ns], alone_ns), Some(Place::Cores), "{ns} beside {alone_ns}");
            }
        }
    }

    #[test]
    fn a_slower_clock_moves_the_limit() {
        assert_eq!(Place::of([22.8], 3.2), Some(Place::Cores));
        assert_eq!(Place::of([22.8], 5.0), Some(Place::SharedCore));
    }

    #[test]
    fn whoever_moved_was_at_no_place() {
        assert_eq!(Place::of([10.0, 10.0, 26.0], 3.2), None);
        assert_eq!(Place::of([26.0, 110.0, 10.0], 3.2), None);
        assert_eq!(Place::of([26.0, 110.0], 3.2), Some(Place::Cores), "one pair of cores or another");
        assert_eq!(Place::of([], 3.2), None);
    }

    #[test]
    fn both_sides_take_every_turn() {
        let probe = Probe::default();
        thread::scope(|scope| {
            scope.spawn(|| probe.hand_over_ns(Side::Ping));
            assert!(probe.hand_over_ns(Side::Pong) > 0.0);
        });
        assert_eq!(probe.0.into_inner(), 2 * u64::from(TURNS_PER_CHUNK) * CHUNKS as u64);
    }
}
