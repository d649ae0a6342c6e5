//! The context switch: threads of the class take turns on one CPU, and each says when it began.
//!
//! One thread runs. It is told to block, notes the time, and blocks; whoever the agent chose next notes the time as its
//! first act. Whether the choice lay ready by then the driver's counters say, which are read before and after, while the thread
//! that runs spins. Two threads make one that runs and one that waits, which FIFO does not prestage; more than there are
//! CPUs make the queue deep, and then it does. A switch during which anything else was counted is no sample.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::driver::class;

/// How long a switch may take.
const SWITCH: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_micros(50);
const STACK_BYTES: usize = 256 << 10;

/// What the driver has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Decisions that lay ready.
    pub hits: u64,
    /// Looks that found none.
    pub misses: u64,
}

/// Switches, in ns, by what the driver counted meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// With a decision that lay ready.
    pub hits: Vec<u64>,
    /// Without.
    pub misses: Vec<u64>,
    /// Of which the counters do not tell, because others counted meanwhile.
    pub unclear: u64,
}

impl Switches {
    fn take(&mut self, took_ns: u64, before: Counted, after: Counted) {
        match (after.hits - before.hits, after.misses - before.misses) {
            (1, 0) => self.hits.push(took_ns),
            (0, 1) => self.misses.push(took_ns),
            _ => self.unclear += 1,
        }
    }
}

/// What the threads share.
#[derive(Default)]
struct Shared {
    /// Threads that are up.
    up: AtomicUsize,
    /// Turns that have begun.
    turns: AtomicU64,
    /// When the last began, and when the one before ended.
    began_ns: AtomicU64,
    ended_ns: AtomicU64,
    /// Turns up to this number are to end.
    end: AtomicU64,
    over: AtomicBool,
    each: Vec<Each>,
}

/// What is each thread's own.
#[derive(Default)]
struct Each {
    /// It waits for its turn.
    waits: AtomicBool,
    /// Its turn may begin.
    may: AtomicBool,
}

/// The threads; they end when this is dropped.
struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<io::Result<()>>>,
}

impl Threads {
    /// Starts `count` threads of the class on `cpu`, each waiting for its turn.
    fn start(cpu: usize, count: usize) -> Result<Self> {
        let each = (0..count).map(|_| Each::default()).collect();
        let shared = Arc::new(Shared { each, ..Shared::default() });
        let mut threads = Self { shared: Arc::clone(&shared), handles: Vec::new() };
        for number in 0..count {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().stack_size(STACK_BYTES).name(format!("switch-{number}"));
            let handle =
                thread.spawn(move || take_turns(&shared, number, cpu)).context("starting a thread")?;
            threads.handles.push(handle);
        }
        let since = Instant::now();
        while shared.up.load(Ordering::Acquire) < count {
            if let Some(at) = threads.handles.iter().position(JoinHandle::is_finished) {
                let ended = threads.handles.swap_remove(at).join();
                match ended {
                    Ok(Err(error)) => return Err(error).context("a thread can't enter SCHED_EXT"),
                    _ => bail!("a thread ended before its turn"),
                }
            }
            ensure!(since.elapsed() < SWITCH, "threads of SCHED_EXT on CPU {cpu} do not come to run");
            thread::sleep(LOOK);
        }
        Ok(threads)
    }

    /// Lets the turn of each that waits for it come.
    fn wake(&self) {
        for (each, handle) in self.shared.each.iter().zip(&self.handles) {
            if each.waits.load(Ordering::Acquire) && !each.may.swap(true, Ordering::AcqRel) {
                handle.thread().unpark();
            }
        }
    }

    /// Waits until turn `number` has begun.
    fn await_turn(&self, number: u64) -> Result<()> {
        let since = Instant::now();
        while self.shared.turns.load(Ordering::Acquire) < number {
            ensure!(since.elapsed() < SWITCH, "no switch in {} s", SWITCH.as_secs());
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        for handle in &self.handles {
            handle.thread().unpark();
        }
        let since = Instant::now();
        for handle in self.handles.drain(..) {
            while !handle.is_finished() && since.elapsed() < SWITCH {
                thread::sleep(LOOK);
            }
            if handle.is_finished() {
                let _ = handle.join();
            }
        }
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Keeps the calling thread on `cpu`.
pub fn stay_on(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

fn take_turns(shared: &Shared, number: usize, cpu: usize) -> io::Result<()> {
    stay_on(cpu)?;
    class::enter()?;
    let each = &shared.each[number];
    each.waits.store(true, Ordering::Relaxed);
    shared.up.fetch_add(1, Ordering::Release);
    let over = || shared.over.load(Ordering::Acquire);
    loop {
        each.waits.store(true, Ordering::Release);
        while !each.may.load(Ordering::Acquire) {
            if over() {
                return Ok(());
            }
            thread::park();
        }
        let began_ns = now_ns();
        each.waits.store(false, Ordering::Relaxed);
        each.may.store(false, Ordering::Release);
        shared.began_ns.store(began_ns, Ordering::Relaxed);
        let turn = shared.turns.fetch_add(1, Ordering::Release) + 1;
        while shared.end.load(Ordering::Acquire) < turn {
            if over() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        shared.ended_ns.store(now_ns(), Ordering::Release);
    }
}

/// Takes `count` switches among `threads` threads on `cpu`, which is not the caller's, and adds them to `switches`. Between
/// two of them the agent has `settle` for what it does ahead of time.
pub fn measure(
    switches: &mut Switches,
    cpu: usize,
    threads: usize,
    count: u32,
    settle: Duration,
    counted: &dyn Fn() -> Result<Counted>,
) -> Result<()> {
    let threads = Threads::start(cpu, threads)?;
    let shared = &threads.shared;
    threads.wake();
    threads.await_turn(1)?;
    for _ in 0..count {
        thread::sleep(settle);
        let before = counted()?;
        // One whose CPU was taken from it, for something of a higher class, may have begun the next already.
        let turn = shared.turns.load(Ordering::Acquire);
        shared.end.store(turn, Ordering::Release);
        threads.await_turn(turn + 1)?;
        let after = counted()?;
        let ended_ns = shared.ended_ns.load(Ordering::Acquire);
        match shared.began_ns.load(Ordering::Relaxed).checked_sub(ended_ns) {
            Some(took_ns) => switches.take(took_ns, before, after),
            None => switches.unclear += 1,
        }
        threads.wake();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_counters_do_not_tell_is_no_sample() {
        let mut switches = Switches::default();
        let of = |hits, misses| Counted { hits, misses };
        switches.take(7, of(3, 4), of(4, 4));
        switches.take(8, of(3, 4), of(3, 5));
        switches.take(9, of(3, 4), of(4, 5));
        switches.take(9, of(3, 4), of(3, 4));
        switches.take(9, of(3, 4), of(5, 4));
        assert_eq!(switches, Switches { hits: vec![7], misses: vec![8], unclear: 3 });
    }

    /// The threads take turns whatever schedules them: where no such class is, the error says so, and where it is without a
    /// scheduler, the kernel's own does it.
    #[test]
    fn threads_take_turns_or_say_why_not() {
        let mut switches = Switches::default();
        let counted = std::cell::Cell::new(Counted::default());
        let count = || {
            counted.set(Counted { hits: counted.get().hits + 1, ..counted.get() });
            Ok(counted.get())
        };
        match measure(&mut switches, 0, 3, 5, Duration::ZERO, &count) {
            Ok(()) => assert_eq!(switches.hits.len() as u64 + switches.unclear, 5),
            Err(error) => assert!(format!("{error:#}").contains("SCHED_EXT"), "{error:#}"),
        }
    }
}
