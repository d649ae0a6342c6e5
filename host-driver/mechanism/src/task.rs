//! A task, as the host knows it.
//!
//! | bits of the word | |
//! | --- | --- |
//! | 0..32 | stamp: moves at every change that is reported |
//! | 32..48 | CPU, where it is placed or runs |
//! | 48..52 | [`Phase`] |
//! | 52 | in flux: off its queue for a change of its properties |
//! | 53 | known: the agent has been told of it |
//! | 54 | it gives up its CPU by itself |
//! | 56..60 | enclave |

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// No task has this number.
    Free = 0,
    /// Waits for something other than a CPU.
    Blocked = 1,
    /// May run, and waits for its agent's decision.
    Runnable = 2,
    /// A decision was committed: it is about to run on its CPU.
    Placed = 3,
    /// Runs.
    OnCpu = 4,
    /// Runs or waits under the host's own rule: not the agent's to schedule until it next asks.
    Host = 5,
}

impl Phase {
    const fn from_bits(bits: u64) -> Self {
        match bits & 15 {
            1 => Self::Blocked,
            2 => Self::Runnable,
            3 => Self::Placed,
            4 => Self::OnCpu,
            5 => Self::Host,
            _ => Self::Free,
        }
    }
}

/// A task's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its stamp.
    pub stamp: u32,
    /// Its CPU, in the phases that have one.
    pub cpu: u16,
    /// Where it stands.
    pub phase: Phase,
    /// Off its queue for a moment, for a change of its properties: no decision on it can be carried out.
    pub in_flux: bool,
    /// The agent has been told of it.
    pub known: bool,
    /// It gives up its CPU by itself.
    pub yields: bool,
    /// Its enclave.
    pub enclave: u8,
}

impl Word {
    /// From its bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            stamp: bits as u32,
            cpu: (bits >> 32) as u16,
            phase: Phase::from_bits(bits >> 48),
            in_flux: bits >> 52 & 1 == 1,
            known: bits >> 53 & 1 == 1,
            yields: bits >> 54 & 1 == 1,
            enclave: (bits >> 56) as u8 & 15,
        }
    }

    /// To its bits.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.stamp as u64
            | (self.cpu as u64) << 32
            | (self.phase as u64) << 48
            | (self.in_flux as u64) << 52
            | (self.known as u64) << 53
            | (self.yields as u64) << 54
            | (self.enclave as u64 & 15) << 56
    }

    /// The word after a change that is reported.
    #[must_use]
    pub const fn moved(self, phase: Phase) -> Self {
        Self { stamp: self.stamp.wrapping_add(1), phase, in_flux: false, yields: false, ..self }
    }
}

/// A task's place in the table.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Task {
    word: AtomicU64,
    /// First CPU that it may use, and how many from there on (0: all).
    affinity: AtomicU32,
    /// Its process number, by which it is found.
    pid: AtomicU32,
    /// When it last became runnable, in ns.
    pub(crate) since_ns: AtomicU64,
    /// When it last began to run, in ns.
    pub(crate) ran_ns: AtomicU64,
    pub(crate) next_free: AtomicU32,
}

/// Attempts at a compare-and-swap of a task's word. Its own events are one after the other, under its runqueue's lock, and
/// all that comes in between is a decision's commit, of which there is at most one for each.
const ATTEMPTS: u32 = 16;

impl Task {
    /// Its word.
    #[must_use]
    pub fn word(&self) -> Word {
        Word::from_bits(self.word.load(Ordering::Acquire))
    }

    /// Replaces its word by what `change` makes of it: the words before and after. Only the task's own events may do
    /// this; they come one after the other.
    pub(crate) fn update(&self, change: impl Fn(Word) -> Word) -> (Word, Word) {
        let mut bits = self.word.load(Ordering::Acquire);
        for _ in 0..ATTEMPTS {
            let (before, after) = (Word::from_bits(bits), change(Word::from_bits(bits)));
            match self.word.compare_exchange(bits, after.to_bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return (before, after),
                Err(found) => bits = found,
            }
        }
        // Decisions on one task cannot come faster than its events. If they do, its event still counts.
        let before = Word::from_bits(bits);
        let after = change(before);
        self.word.store(after.to_bits(), Ordering::Release);
        (before, after)
    }

    /// Replaces its word if it still is `from`.
    pub(crate) fn swap(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.to_bits(), to.to_bits(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// First CPU that it may use, and how many from there on (0: all).
    #[must_use]
    pub fn affinity(&self) -> (u16, u16) {
        let bits = self.affinity.load(Ordering::Relaxed);
        (bits as u16, (bits >> 16) as u16)
    }

    pub(crate) fn set_affinity(&self, first_cpu: u16, cpu_count: u16) {
        self.affinity.store(u32::from(first_cpu) | u32::from(cpu_count) << 16, Ordering::Relaxed);
    }

    /// When it last became runnable, in ns.
    #[must_use]
    pub fn since_ns(&self) -> u64 {
        self.since_ns.load(Ordering::Relaxed)
    }
}

/// Task numbers that are free: a stack threaded through the table, whose head bears a count of its changes, so that no
/// head is mistaken for an earlier one.
#[derive(Debug)]
pub(crate) struct FreeList(AtomicU64);

const END: u32 = u32::MAX;

impl FreeList {
    /// Every number of the table, the lowest first.
    pub(crate) fn over(tasks: &[Task]) -> Self {
        let mut next = END;
        for (number, task) in tasks.iter().enumerate().rev() {
            task.next_free.store(next, Ordering::Relaxed);
            next = number as u32;
        }
        Self(AtomicU64::new(u64::from(next)))
    }

    /// Takes a number; none when all are taken, or everybody takes one at this moment.
    pub(crate) fn take(&self, tasks: &[Task]) -> Option<u32> {
        let mut head = self.0.load(Ordering::Acquire);
        for _ in 0..1024 {
            let number = head as u32;
            let next = tasks.get(number as usize)?.next_free.load(Ordering::Relaxed);
            let after = (head >> 32).wrapping_add(1) << 32 | u64::from(next);
            match self.0.compare_exchange(head, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(number),
                Err(found) => head = found,
            }
        }
        None
    }

    /// Gives a number back. False if it stays taken, because everybody gives one back at this moment.
    pub(crate) fn give(&self, tasks: &[Task], number: u32) -> bool {
        let Some(task) = tasks.get(number as usize) else { return false };
        let mut head = self.0.load(Ordering::Acquire);
        for _ in 0..1024 {
            task.next_free.store(head as u32, Ordering::Relaxed);
            let after = (head >> 32).wrapping_add(1) << 32 | u64::from(number);
            match self.0.compare_exchange(head, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(found) => head = found,
            }
        }
        false
    }
}
