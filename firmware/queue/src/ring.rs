//! The message ring: any number of lines, a power of two, from one side to the other.
//!
//! The writer keeps count of what it wrote, the reader of what it took; neither count lies in shared memory. The reader
//! knows a new line by its lap's tag. The writer knows room by credits: the count of lines taken, which comes back by
//! another way (in decision lines, in the agent's control line) whenever the reader has something to say.

use core::fmt;

use neap_abi::line::{Tag, WORDS};

use crate::line::Line;
use crate::sync::{AtomicU32, Ordering};

/// The ring has no room: the line was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Lines that no ring can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingError {
    /// How many lines were given; a power of two from 2 to 2^24 was wanted.
    pub lines: usize,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a ring of {} lines: it takes a power of two, from 2 to 2^24", self.lines)
    }
}

impl core::error::Error for RingError {}

/// Credits that cannot be: more lines taken than written, or fewer than already known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditError {
    /// Lines taken, as alleged.
    pub alleged: u32,
    /// Lines written.
    pub written: u32,
}

impl fmt::Display for CreditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lines said to be taken of {} written: the agent is at fault",
            self.alleged, self.written
        )
    }
}

impl core::error::Error for CreditError {}

fn checked<const W: usize>(lines: &[Line<W>]) -> Result<u32, RingError> {
    let count = lines.len();
    if (2..=1 << 24).contains(&count) && count.is_power_of_two() {
        Ok(count as u32)
    } else {
        Err(RingError { lines: count })
    }
}

/// The tag of the lap in which line `number` is written, for a ring of 2^`shift` lines.
const fn tag_of(number: u32, shift: u32) -> Tag {
    Tag::of_lap(number.wrapping_shr(shift))
}

/// The tag of the lap after that of `tag`, which begins with line `number`.
#[inline(always)]
const fn next_lap(tag: Tag, number: u32) -> Tag {
    // Where line numbers come round, so do laps.
    if number == 0 { Tag::FIRST } else { tag.next_lap() }
}

/// The writing end, for one writer.
#[derive(Debug)]
pub struct Producer<'a, const W: usize = WORDS> {
    lines: &'a [Line<W>],
    written: u32,
    taken: u32,
    tag: Tag,
}

impl<'a, const W: usize> Producer<'a, W> {
    /// The writing end of a fresh ring.
    ///
    /// # Errors
    /// A number of lines that is no power of two, or out of bounds.
    pub fn new(lines: &'a [Line<W>]) -> Result<Self, RingError> {
        checked(lines)?;
        Ok(Self { lines, written: 0, taken: 0, tag: Tag::FIRST })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`Full`]: no room that the writer knows of. Ask for credits, or drop and resync.
    #[inline(always)]
    pub fn push(&mut self, payload: &[u64; W]) -> Result<(), Full> {
        let mask = self.lines.len() as u32 - 1;
        let place = self.written & mask;
        let (Some(line), true) =
            (self.lines.get(place as usize), self.written.wrapping_sub(self.taken) <= mask)
        else {
            return Err(Full);
        };
        line.publish(payload, self.tag);
        self.written = self.written.wrapping_add(1);
        if place == mask {
            self.tag = next_lap(self.tag, self.written);
        }
        Ok(())
    }

    /// Takes note that the reader has taken `taken` lines in all, modulo 2^32.
    ///
    /// # Errors
    /// A number that cannot be; the writer keeps what it knew.
    #[inline(always)]
    pub fn credit(&mut self, taken: u32) -> Result<(), CreditError> {
        if self.written.wrapping_sub(taken) > self.written.wrapping_sub(self.taken) {
            return Err(CreditError { alleged: taken, written: self.written });
        }
        self.taken = taken;
        Ok(())
    }

    /// Lines written in all, modulo 2^32.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written
    }
}

/// The writing end, for many writers: each line is reserved by one compare-and-swap in the writers' own memory, then
/// written by whoever reserved it. Lines that land out of turn wait for the reader to come to them.
#[derive(Debug)]
pub struct SharedProducer<'a, const W: usize = WORDS> {
    lines: &'a [Line<W>],
    written: AtomicU32,
    taken: AtomicU32,
}

impl<'a, const W: usize> SharedProducer<'a, W> {
    /// The writing end of a fresh ring.
    ///
    /// # Errors
    /// A number of lines that is no power of two, or out of bounds.
    pub fn new(lines: &'a [Line<W>]) -> Result<Self, RingError> {
        checked(lines)?;
        Ok(Self { lines, written: AtomicU32::new(0), taken: AtomicU32::new(0) })
    }

    /// Writes one line and returns its number.
    ///
    /// # Errors
    /// [`Full`]: no room that the writers know of.
    #[inline]
    pub fn push(&self, payload: &[u64; W]) -> Result<u32, Full> {
        // A ring has two lines at least, which a kernel's compiler does not know.
        let mask = (self.lines.len() as u32).wrapping_sub(1);
        let mut number = self.written.load(Ordering::Relaxed);
        loop {
            // Acquire: the credit's reader is done with the line that is written anew.
            if number.wrapping_sub(self.taken.load(Ordering::Acquire)) > mask {
                return Err(Full);
            }
            let next = number.wrapping_add(1);
            match self.written.compare_exchange_weak(number, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => number = found,
            }
        }
        if let Some(line) = self.lines.get((number & mask) as usize) {
            line.publish(payload, tag_of(number, self.lines.len().trailing_zeros()));
        }
        Ok(number)
    }

    /// As [`Producer::credit`]; older credits than those known are passed over, since decision lines of several CPUs
    /// are read in any order.
    ///
    /// # Errors
    /// More lines taken than written.
    #[inline]
    pub fn credit(&self, taken: u32) -> Result<(), CreditError> {
        let mut known = self.taken.load(Ordering::Relaxed);
        loop {
            let ahead = taken.wrapping_sub(known);
            if ahead == 0 || ahead > u32::MAX / 2 {
                return Ok(());
            }
            // The reader's word came by a way that orders nothing here, so a plain load may be behind it. Before somebody is
            // blamed, the count is read as it stands.
            if ahead > self.written.load(Ordering::Relaxed).wrapping_sub(known) {
                let written = self.written.fetch_add(0, Ordering::SeqCst);
                if ahead > written.wrapping_sub(known) {
                    return Err(CreditError { alleged: taken, written });
                }
            }
            match self.taken.compare_exchange_weak(known, taken, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(found) => known = found,
            }
        }
    }

    /// Lines written in all, modulo 2^32.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lines that can be written before the next credit.
    #[must_use]
    pub fn room(&self) -> u32 {
        let used = self.written.load(Ordering::Relaxed).wrapping_sub(self.taken.load(Ordering::Relaxed));
        (self.lines.len() as u32).saturating_sub(used)
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer<'a, const W: usize = WORDS> {
    lines: &'a [Line<W>],
    taken: u32,
    tag: Tag,
}

impl<'a, const W: usize> Consumer<'a, W> {
    /// The reading end of a fresh ring.
    ///
    /// # Errors
    /// A number of lines that is no power of two, or out of bounds.
    pub fn new(lines: &'a [Line<W>]) -> Result<Self, RingError> {
        Self::resume(lines, 0)
    }

    /// The reading end of a ring of which an earlier reader has taken `taken` lines, modulo 2^32.
    ///
    /// # Errors
    /// As [`Consumer::new`].
    pub fn resume(lines: &'a [Line<W>], taken: u32) -> Result<Self, RingError> {
        let count = checked(lines)?;
        Ok(Self { lines, taken, tag: tag_of(taken, count.trailing_zeros()) })
    }

    /// The next line, if all of it has landed. It is free for the writer once [`Consumer::taken`] has been published
    /// with release.
    #[inline(always)]
    pub fn poll(&mut self) -> Option<[u64; W]> {
        let mask = self.lines.len() as u32 - 1;
        let place = self.taken & mask;
        let payload = self.lines.get(place as usize)?.read(self.tag)?;
        self.taken = self.taken.wrapping_add(1);
        if place == mask {
            self.tag = next_lap(self.tag, self.taken);
        }
        Some(payload)
    }

    /// The next line, if it has landed, without taking it.
    #[must_use]
    pub fn peek(&self) -> Option<[u64; W]> {
        let place = self.taken as usize & (self.lines.len() - 1);
        self.lines.get(place)?.read(self.tag)
    }

    /// Whether the next line has landed, without taking it.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.peek().is_some()
    }

    /// Lines taken in all, modulo 2^32: the credits.
    #[must_use]
    #[inline(always)]
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring<const N: usize>() -> [Line; N] {
        core::array::from_fn(|_| Line::default())
    }

    fn line(of: u64) -> [u64; WORDS] {
        core::array::from_fn(|i| of.wrapping_mul(31).wrapping_add(i as u64) & neap_abi::line::PAYLOAD_MASK)
    }

    #[test]
    fn only_powers_of_two_make_a_ring() {
        for count in [0, 1, 3, 6] {
            let lines: Vec<Line> = (0..count).map(|_| Line::default()).collect();
            assert_eq!(Producer::new(&lines).err(), Some(RingError { lines: count }));
            assert_eq!(Consumer::new(&lines).err(), Some(RingError { lines: count }));
            assert_eq!(SharedProducer::new(&lines).err(), Some(RingError { lines: count }));
        }
    }

    #[test]
    fn a_full_ring_keeps_what_it_has() {
        let lines = ring::<4>();
        let (mut producer, mut consumer) = (Producer::new(&lines).unwrap(), Consumer::new(&lines).unwrap());
        for of in 0..4 {
            producer.push(&line(of)).unwrap();
        }
        for _ in 0..100 {
            assert_eq!(producer.push(&line(99)), Err(Full));
        }
        assert_eq!(consumer.poll(), Some(line(0)));
        assert_eq!(producer.push(&line(4)), Err(Full), "no credit yet");
        producer.credit(consumer.taken()).unwrap();
        producer.push(&line(4)).unwrap();
        for of in 1..5 {
            assert_eq!(consumer.poll(), Some(line(of)));
        }
        assert_eq!(consumer.poll(), None);
    }

    #[test]
    fn impossible_credits_are_refused() {
        let lines = ring::<4>();
        let mut producer = Producer::new(&lines).unwrap();
        let shared = SharedProducer::new(&lines).unwrap();
        producer.push(&line(0)).unwrap();
        shared.push(&line(0)).unwrap();
        assert_eq!(producer.credit(2), Err(CreditError { alleged: 2, written: 1 }));
        assert_eq!(shared.credit(2), Err(CreditError { alleged: 2, written: 1 }));
        assert_eq!(producer.credit(1), Ok(()));
        assert_eq!(shared.credit(1), Ok(()));
        assert_eq!(producer.credit(0), Err(CreditError { alleged: 0, written: 1 }), "credits never go back");
        assert_eq!(shared.credit(0), Ok(()), "an old decision line is no fault");
        assert_eq!(shared.room(), 4);
    }

    #[test]
    fn two_lines_of_neighbouring_laps_never_share_a_tag() {
        for shift in (1..=24).step_by(if cfg!(miri) { 23 } else { 1 }) {
            let mut number = 0u32;
            for _ in 0..if cfg!(miri) { 20 } else { 1000 } {
                let next = number.wrapping_add(1 << shift);
                assert_ne!(tag_of(number, shift), tag_of(next, shift));
                number = next;
            }
            assert_ne!(
                tag_of(u32::MAX - (1 << shift) + 1, shift),
                tag_of(0, shift),
                "where line numbers come round"
            );
        }
    }

    /// Over the boundary of 2^32 lines, too.
    #[test]
    fn counts_come_round() {
        let lines = ring::<2>();
        let start = u32::MAX - 5;
        let tag = tag_of(start, 1);
        let mut producer = Producer { lines: &lines, written: start, taken: start, tag };
        let mut consumer = Consumer { lines: &lines, taken: start, tag };
        for of in 0..20 {
            producer.push(&line(of)).unwrap();
            assert_eq!(consumer.poll(), Some(line(of)));
            assert_eq!(consumer.poll(), None);
            producer.credit(consumer.taken()).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 256 }))]

        /// Any run of pushes, polls and credits is the run of a bounded queue that learns of room late.
        #[test]
        fn behaves_as_a_queue(shift in 1u32..5, steps in prop::collection::vec(0u8..3, 0..2000)) {
            let lines: Vec<Line> = (0..1 << shift).map(|_| Line::default()).collect();
            let mut producer = Producer::new(&lines).unwrap();
            let mut consumer = Consumer::new(&lines).unwrap();
            let (mut pushed, mut polled, mut credited) = (0u64, 0u64, 0u64);
            for step in steps {
                match step {
                    0 => {
                        let room = pushed - credited < lines.len() as u64;
                        prop_assert_eq!(producer.push(&line(pushed)).is_ok(), room);
                        pushed += u64::from(room);
                    }
                    1 => {
                        let expected = (polled < pushed).then(|| line(polled));
                        polled += u64::from(expected.is_some());
                        prop_assert_eq!(consumer.poll(), expected);
                    }
                    _ => {
                        producer.credit(consumer.taken()).unwrap();
                        credited = polled;
                    }
                }
            }
        }

        /// Whatever bytes lie in a ring, polling ends and never panics.
        #[test]
        fn random_bytes_are_survived(words in prop::collection::vec(any::<u64>(), 32), tags in any::<[u8; 4]>()) {
            let lines = ring::<4>();
            for ((line, words), tag) in lines.iter().zip(words.chunks_exact(8)).zip(tags) {
                line.publish(&core::array::from_fn(|i| words[i]), Tag::from_byte(tag).unwrap_or(Tag::FIRST));
            }
            let mut consumer = Consumer::new(&lines).unwrap();
            let taken = core::iter::from_fn(|| consumer.poll()).count();
            prop_assert!(taken <= 4 * 255);
        }
    }

    /// Whoever takes over reads on where the one before had stopped, wherever that was, also where numbers come round.
    #[test]
    fn a_reader_that_takes_over_reads_on() {
        for start in [0u32, 1, 7, 8, 9, 2031, 2032, 4_000_000, u32::MAX - 9] {
            let lines = ring::<8>();
            let producer = SharedProducer {
                lines: &lines,
                written: AtomicU32::new(start),
                taken: AtomicU32::new(start),
            };
            let mut first = Consumer::resume(&lines, start).unwrap();
            for of in 0..3 {
                producer.push(&line(of)).unwrap();
            }
            assert_eq!(first.poll(), Some(line(0)));
            assert_eq!(first.peek(), Some(line(1)));
            let mut second = Consumer::resume(&lines, first.taken()).unwrap();
            for of in 1..30 {
                assert_eq!(second.poll(), Some(line(of)), "from {start}");
                producer.credit(second.taken()).unwrap();
                producer.push(&line(of + 2)).unwrap();
            }
        }
    }

    #[test]
    fn two_threads_lose_nothing() {
        let lines: Vec<Line> = (0..64).map(|_| Line::default()).collect();
        let credit = std::sync::atomic::AtomicU32::new(0);
        const COUNT: u64 = if cfg!(miri) { 60 } else { 200_000 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut producer = Producer::new(&lines).unwrap();
                for of in 0..COUNT {
                    while producer.push(&line(of)).is_err() {
                        producer.credit(credit.load(std::sync::atomic::Ordering::Acquire)).unwrap();
                        std::thread::yield_now();
                    }
                }
            });
            let mut consumer = Consumer::new(&lines).unwrap();
            for of in 0..COUNT {
                let got = loop {
                    match consumer.poll() {
                        Some(payload) => break payload,
                        None => {
                            credit.store(consumer.taken(), std::sync::atomic::Ordering::Release);
                            std::thread::yield_now();
                        }
                    }
                };
                assert_eq!(got, line(of));
            }
        });
    }

    #[test]
    fn many_writers_lose_nothing() {
        let lines: Vec<Line> = (0..16).map(|_| Line::default()).collect();
        let producer = SharedProducer::new(&lines).unwrap();
        const EACH: u64 = if cfg!(miri) { 15 } else { 20_000 };
        std::thread::scope(|scope| {
            for writer in 0..3u64 {
                let producer = &producer;
                scope.spawn(move || {
                    for of in 0..EACH {
                        while producer.push(&[writer, of, 0, 0, 0, 0, 0, writer ^ of]).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut consumer = Consumer::new(&lines).unwrap();
            let mut next = [0; 3];
            for _ in 0..3 * EACH {
                let got = loop {
                    match consumer.poll() {
                        Some(payload) => break payload,
                        None => std::thread::yield_now(),
                    }
                };
                producer.credit(consumer.taken()).unwrap();
                assert_eq!(got[7], got[0] ^ got[1]);
                assert_eq!(got[1], next[got[0] as usize], "each writer's lines come in its order");
                next[got[0] as usize] += 1;
            }
            assert_eq!(next, [EACH; 3]);
        });
    }
}
