//! Two threads, one queue each way, and the time that verified items take.
//!
//! Two workloads, the same code for every queue:
//! - **stream**: one thread writes as fast as there is room, the other reads.
//! - **turns**: one thread keeps `in_flight` items under way, the other verifies each and sends it back.
//!
//! A measure counts only if both threads had their CPU all along: a machine that other work keeps busy would measure
//! its scheduler. One that was disturbed is taken again. The threads look how far apart their CPUs are right before and
//! right after ([`super::distance`]), without a break in which they could be moved.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::contestants::{Receiver, Sender, Words};
use super::distance::{Probe, Side};

/// What the two threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One writes, one reads.
    Stream,
    /// Items go there and back, so many of them at a time.
    Turns {
        /// Items under way.
        in_flight: u64,
    },
}

impl Workload {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Turns { .. } => "turns",
        }
    }
}

/// One measure of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// Verified items per second; an item that went there and back is one.
    pub items_per_s: f64,
    /// Measures that were disturbed before this one.
    pub disturbed: u32,
    /// How far apart the two CPUs were right before and right after it: nanoseconds per hand-over of a line.
    pub hand_over_ns: [f64; 2],
}

/// A queue that can be measured.
pub trait Contestant {
    /// Sends `items` items through, and times them.
    fn measure(&mut self, workload: Workload, items: u64) -> Result<Measure>;
}

/// A queue there and a queue back.
pub struct Pair<S, R> {
    there: (S, R),
    back: (S, R),
    next: u64,
    cpus: [usize; 2],
}

/// How often a disturbed measure is taken again before the least disturbed one counts.
const ATTEMPTS: u32 = 40;
/// The share of the time for which each thread must have had its CPU.
const UNDISTURBED: f64 = 0.98;
/// Looks in vain after which a thread yields its CPU: its peer may be waiting for it.
pub const LOOKS_BEFORE_YIELD: u32 = 2_000;

/// The CPUs of the two threads: the first two of those that this process may use.
///
/// # Errors
/// Fewer than two.
pub fn cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(None).context("the CPUs that this process may use can't be asked for")?;
    let mut ours = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    match (ours.next(), ours.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => bail!("this process may use one CPU only; the queues take two"),
    }
}

/// Item number `number`: no two items share a word, and all 56 bits change from lap to lap.
#[inline(always)]
pub fn item(number: u64) -> Words {
    let first = (number.wrapping_mul(0x9e_3779_b97f_4a15) << 3) & neap_abi::line::PAYLOAD_MASK;
    std::array::from_fn(|i| first | i as u64)
}

/// Every bit in which `words` is not item number `number`.
#[inline(always)]
fn difference(words: &Words, number: u64) -> u64 {
    words.iter().zip(item(number)).fold(0, |all, (word, wanted)| all | (word ^ wanted))
}

/// Waits for `ready`, spinning, and yields when that takes long.
#[inline(always)]
fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let mut looks = 0u32;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        looks += 1;
        spin_loop();
        if looks.is_multiple_of(LOOKS_BEFORE_YIELD) {
            thread::yield_now();
        }
    }
}

#[inline(always)]
fn send(sender: &mut impl Sender, words: Words) {
    wait(|| sender.push(words).then_some(()));
}

/// Writes items `from..to`.
#[inline(never)]
fn produce(sender: &mut impl Sender, from: u64, to: u64) {
    for number in from..to {
        send(sender, item(number));
    }
}

/// Reads and verifies items `from..to`; every bit that was wrong.
#[inline(never)]
fn consume(receiver: &mut impl Receiver, from: u64, to: u64) -> u64 {
    (from..to).fold(0, |wrong, number| wrong | difference(&wait(|| receiver.pop()), number))
}

/// Verifies items `from..to` and sends each back; every bit that was wrong.
#[inline(never)]
fn answer(receiver: &mut impl Receiver, sender: &mut impl Sender, from: u64, to: u64) -> u64 {
    let mut wrong = 0;
    for number in from..to {
        let words = wait(|| receiver.pop());
        wrong |= difference(&words, number);
        send(sender, words);
    }
    wrong
}

/// Keeps `in_flight` of the items `from..to` under way and verifies those that come back; every bit that was wrong.
#[inline(never)]
fn ask(sender: &mut impl Sender, receiver: &mut impl Receiver, from: u64, to: u64, in_flight: u64) -> u64 {
    produce(sender, from, to.min(from + in_flight));
    let mut wrong = 0;
    for number in from..to {
        wrong |= difference(&wait(|| receiver.pop()), number);
        if number + in_flight < to {
            send(sender, item(number + in_flight));
        }
    }
    wrong
}

/// Time that this thread has had its CPU.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// What one thread found.
struct Found {
    wrong: u64,
    took: Duration,
    /// The share of `took` for which the thread had its CPU.
    share: f64,
    hand_over_ns: [f64; 2],
}

/// Runs `work` on `cpu`, once the other thread runs too, between two looks at how far apart the CPUs are.
fn timed(
    cpu: usize,
    ready: &AtomicU32,
    probes: &[Probe; 2],
    side: Side,
    work: impl FnOnce() -> u64,
) -> Found {
    let mut only = CpuSet::new();
    only.set(cpu);
    // Where pinning is not allowed the threads run where they may; the looks before and after say where that was.
    let _ = sched_setaffinity(None, &only);
    ready.fetch_add(1, Ordering::AcqRel);
    wait(|| (ready.load(Ordering::Acquire) == 2).then_some(()));
    let before = probes[0].hand_over_ns(side);
    let (cpu_before, start) = (cpu_time(), Instant::now());
    let wrong = work();
    let took = start.elapsed();
    let share = (cpu_time() - cpu_before).as_secs_f64() / took.as_secs_f64();
    let after = probes[1].hand_over_ns(side);
    Found { wrong, took, share, hand_over_ns: [before, after] }
}

impl<S: Sender, R: Receiver> Pair<S, R> {
    /// A contestant of two fresh queues, measured on `cpus`.
    pub fn new(there: (S, R), back: (S, R), cpus: [usize; 2]) -> Self {
        Self { there, back, next: 0, cpus }
    }

    /// One attempt: how long the verified items took, the smaller share of its CPU that a thread had, and the hand-overs.
    fn attempt(&mut self, workload: Workload, items: u64) -> Result<Found> {
        let (from, to) = (self.next, self.next + items);
        self.next = to;
        let [here, there] = self.cpus;
        let (there_sender, there_receiver) = (&mut self.there.0, &mut self.there.1);
        let (back_sender, back_receiver) = (&mut self.back.0, &mut self.back.1);
        let (ready, probes) = (AtomicU32::new(0), [Probe::default(), Probe::default()]);
        let (mine, theirs) = thread::scope(|scope| {
            let mine = scope.spawn(|| {
                timed(here, &ready, &probes, Side::Ping, || match workload {
                    Workload::Stream => consume(there_receiver, from, to),
                    Workload::Turns { .. } => answer(there_receiver, back_sender, from, to),
                })
            });
            let theirs = scope.spawn(|| {
                timed(there, &ready, &probes, Side::Pong, || match workload {
                    Workload::Stream => {
                        produce(there_sender, from, to);
                        0
                    }
                    Workload::Turns { in_flight } => ask(there_sender, back_receiver, from, to, in_flight),
                })
            });
            (mine.join(), theirs.join())
        });
        let panicked = "a thread of the measurement panicked";
        let (mine, theirs) = (mine.ok().context(panicked)?, theirs.ok().context(panicked)?);
        let wrong = mine.wrong | theirs.wrong;
        ensure!(wrong == 0, "items {from} to {to} came out of order or torn (bits {wrong:#x} differ)");
        let took = if workload == Workload::Stream { mine.took } else { theirs.took };
        Ok(Found { wrong, took, share: mine.share.min(theirs.share), hand_over_ns: mine.hand_over_ns })
    }
}

impl<S: Sender, R: Receiver> Contestant for Pair<S, R> {
    fn measure(&mut self, workload: Workload, items: u64) -> Result<Measure> {
        let (mut best, mut disturbed) = (self.attempt(workload, items)?, 0);
        while best.share < UNDISTURBED {
            disturbed += 1;
            if disturbed == ATTEMPTS {
                break;
            }
            let found = self.attempt(workload, items)?;
            if found.share > best.share {
                best = found;
            }
        }
        let items_per_s = items as f64 / best.took.as_secs_f64();
        Ok(Measure { items_per_s, disturbed, hand_over_ns: best.hand_over_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::super::contestants::Ring;
    use super::*;

    /// Where there are no such CPUs the threads run unpinned.
    const CPUS: [usize; 2] = [0, 1];

    /// A receiver that spoils one item.
    struct Spoilt<R>(R, u32);

    impl<R: Receiver> Receiver for Spoilt<R> {
        fn pop(&mut self) -> Option<Words> {
            let mut words = self.0.pop()?;
            self.1 += 1;
            if self.1 == 500 {
                words[3] ^= 1 << 55;
            }
            Some(words)
        }
    }

    #[test]
    fn both_workloads_go_over_many_laps() {
        let (there, back) = (Ring::new(), Ring::new());
        let mut pair = Pair::new(there.split().unwrap(), back.split().unwrap(), CPUS);
        for workload in [Workload::Stream, Workload::Turns { in_flight: 1 }, Workload::Turns { in_flight: 7 }]
        {
            let found = pair.attempt(workload, 5_000).unwrap();
            assert!(!found.took.is_zero() && found.hand_over_ns.iter().all(|&ns| ns > 0.0));
        }
        assert_eq!(pair.next, 15_000);
    }

    #[test]
    fn one_wrong_bit_ends_the_run() {
        for workload in [Workload::Stream, Workload::Turns { in_flight: 1 }] {
            let (there, back) = (Ring::new(), Ring::new());
            let ((sender, receiver), (answers, answered)) = (there.split().unwrap(), back.split().unwrap());
            let ends = ((sender, Spoilt(receiver, 0)), (answers, Spoilt(answered, 1_000)));
            let error = Pair::new(ends.0, ends.1, CPUS).attempt(workload, 1_000).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("torn"), "{error}");
        }
    }
}
