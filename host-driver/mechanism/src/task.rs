//! A task, as the host knows it.
//!
//! | bits of the word | |
//! | --- | --- |
//! | 0..32 | stamp: moves at every change that is reported |
//! | 32..48 | CPU, where it is placed or runs |
//! | 48..52 | [`Phase`] |
//! | 52 | in flux: off its queue for a change of its properties, or its own event is at it |
//! | 53 | known: the agent has been told of it |
//! | 54 | it gives up its CPU by itself |
//! | 56..60 | enclave |

use crate::sync::figures;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

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

/// The bit of [`Word::in_flux`].
const IN_FLUX: u64 = 1 << 52;

/// A task's place in the table.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Task {
    word: AtomicU64,
    /// First CPU that it may use, and how many from there on (0: all).
    affinity: AtomicU32,
    /// Its process number, by which it is found.
    pid: figures::AtomicU32,
    /// When it last became runnable, in ns.
    pub(crate) since_ns: figures::AtomicU64,
    /// When it last began to run, in ns.
    pub(crate) ran_ns: figures::AtomicU64,
    /// The next free number, while this one is.
    next_free: AtomicU32,
    /// The next task that a CPU is to queue, while this one is.
    next_rescued: AtomicU32,
    /// Whether a CPU is to queue it.
    pub(crate) to_be_rescued: AtomicBool,
    /// Its stamp when it was last queued so while its agent had it.
    pub(crate) queued_stamp: figures::AtomicU32,
}

/// Attempts at a compare-and-swap of a task's word before it is taken out of the decisions' hands.
const ATTEMPTS: u32 = 4;

impl Task {
    /// Its word.
    #[must_use]
    pub fn word(&self) -> Word {
        Word::from_bits(self.word.load(Ordering::SeqCst))
    }

    /// Replaces its word by what `change` makes of it: the words before and after. Only the task's own events may do this; they
    /// come one after the other. All that comes in between are decisions, committed or taken back.
    pub(crate) fn update(&self, change: impl Fn(Word) -> Word) -> (Word, Word) {
        let mut bits = self.word.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let (before, after) = (Word::from_bits(bits), change(Word::from_bits(bits)));
            match self.word.compare_exchange(bits, after.to_bits(), Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return (before, after),
                Err(found) => bits = found,
            }
        }
        // Nobody but its own events touches the word of a task in flux.
        let before = Word::from_bits(self.word.fetch_or(IN_FLUX, Ordering::SeqCst));
        let after = change(before);
        self.word.store(after.to_bits(), Ordering::SeqCst);
        (before, after)
    }

    /// Replaces its word if it still is `from`, which is of a task that is not in flux.
    pub(crate) fn swap(&self, from: Word, to: Word) -> bool {
        !from.in_flux
            && self
                .word
                .compare_exchange(from.to_bits(), to.to_bits(), Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
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

    /// When it last began to run, in ns.
    pub(crate) fn ran_ns(&self) -> u64 {
        self.ran_ns.load(Ordering::Relaxed)
    }
}

const END: u32 = u32::MAX;

/// Attempts at a stack's head, each of which fails only because somebody else got further.
const STACK_ATTEMPTS: u32 = 1024;

/// Task numbers on a stack that is threaded through the table, whose head bears a count of its changes, so that no head is
/// mistaken for an earlier one: those that are free, or those that a CPU is to queue.
#[derive(Debug)]
pub(crate) struct Stack<const RESCUED: bool>(AtomicU64);

impl<const RESCUED: bool> Stack<RESCUED> {
    const fn next(task: &Task) -> &AtomicU32 {
        if RESCUED { &task.next_rescued } else { &task.next_free }
    }

    pub(crate) fn empty() -> Self {
        Self(AtomicU64::new(u64::from(END)))
    }

    /// Every number of the table, the lowest first.
    pub(crate) fn over(tasks: &[Task]) -> Self {
        let mut next = END;
        for (number, task) in tasks.iter().enumerate().rev() {
            Self::next(task).store(next, Ordering::Relaxed);
            next = number as u32;
        }
        Self(AtomicU64::new(u64::from(next)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) as u32 == END
    }

    /// Takes a number; none when there is none, or everybody takes one at this moment.
    pub(crate) fn take(&self, tasks: &[Task]) -> Option<u32> {
        let mut head = self.0.load(Ordering::Acquire);
        for _ in 0..STACK_ATTEMPTS {
            let number = head as u32;
            let next = Self::next(tasks.get(number as usize)?).load(Ordering::Relaxed);
            match self.0.compare_exchange(head, after(head, next), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(number),
                Err(found) => head = found,
            }
        }
        None
    }

    /// Puts a number there that is not there. False if it could not be, because everybody puts one there at this moment.
    pub(crate) fn give(&self, tasks: &[Task], number: u32) -> bool {
        let Some(task) = tasks.get(number as usize) else { return false };
        let mut head = self.0.load(Ordering::Acquire);
        for _ in 0..STACK_ATTEMPTS {
            Self::next(task).store(head as u32, Ordering::Relaxed);
            match self.0.compare_exchange(head, after(head, number), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(found) => head = found,
            }
        }
        false
    }
}

/// The head after `head` that is `number`.
const fn after(head: u64, number: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | number as u64
}
