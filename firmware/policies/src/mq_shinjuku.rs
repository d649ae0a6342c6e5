//! Multi-queue Shinjuku (paper section 7.3.2): Shinjuku with a queue for each SLO class, which a request's own text names and
//! the RPC stack passes on as its task's class.
//!
//! A more urgent class is served first. Its tasks do not wait for a slice's end either where a less urgent one runs: with all
//! CPUs busy, the one of the least urgent class that has run longest gives way, once it has run for [`RUN_MIN_NS`]. At its
//! slice's end a task gives way to its own class and to more urgent ones.
//!
//! No class starves: after [`PASSED_MAX`] decisions in a row that passed over others, one of those is due, each in turn, and goes
//! before all until a task of it has begun to run; that one then runs for [`RUN_MIN_NS`] at least. So a class gets one in at most
//! `PASSED_MAX × (CLASSES − 1)` decisions.

use neap_abi::Message;

use crate::dispatch::Dispatch;
use crate::order::{Order, Waiting};
use crate::shinjuku::{LOOK, SLICE_NS};
use crate::tasks::{Queue, State, TASKS, Task, Tasks};

/// Classes that are told apart: 1 is the most urgent; what is beyond the last, and what has none (0), are of the last.
pub const CLASSES: usize = 8;
/// How long a task runs before a more urgent class may take its CPU: some times what a preemption costs.
pub const RUN_MIN_NS: u64 = 10_000;
/// Decisions in a row that pass over a class with tasks that wait.
pub const PASSED_MAX: u32 = 32;

const LAST: u8 = CLASSES as u8 - 1;

/// A queue for each class.
#[derive(Debug)]
pub struct Classes {
    queues: [Queue; CLASSES],
    slices_ns: [u64; CLASSES],
    waiting: u32,
    /// Classes with tasks that wait, by bit.
    filled: u8,
    /// Decisions that passed over some class, since one was last due.
    passed: u32,
    /// The class that is due.
    due: Option<u8>,
    /// The class to be due next.
    turn: u8,
}

/// Multi-queue Shinjuku over the enclave's CPUs, for `N` tasks.
pub type MqShinjuku<'m, const N: usize = TASKS> = Dispatch<'m, Classes, CLASSES, N>;

impl<'m, const N: usize> MqShinjuku<'m, N> {
    /// Multi-queue Shinjuku for `cpus` host CPUs, with the paper's slice for each class. As to `memory`, see
    /// [`Dispatch::over`].
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task; N]) -> Self {
        Self::with_slices(cpus, memory, [SLICE_NS; CLASSES])
    }

    /// With a slice for each class, from the most urgent on.
    #[must_use]
    pub fn with_slices(cpus: u16, memory: &'m mut [Task; N], slices_ns: [u64; CLASSES]) -> Self {
        let queues = [Queue::default(); CLASSES];
        Self::over(
            cpus,
            memory,
            Classes { queues, slices_ns, waiting: 0, filled: 0, passed: 0, due: None, turn: 1 },
        )
    }
}

impl Classes {
    #[inline(always)]
    fn queue(&mut self, label: u8) -> &mut Queue {
        &mut self.queues[usize::from(label) % CLASSES]
    }

    /// Keeps the books of a queue that has changed by one task.
    #[inline(always)]
    fn note(&mut self, label: u8, before: u32) {
        let after = self.queue(label).len();
        self.waiting = self.waiting.wrapping_add(after).wrapping_sub(before);
        let bit = 1 << (label & LAST);
        self.filled = (self.filled & !bit) | if after == 0 { 0 } else { bit };
    }

    /// How urgent a class is at the moment: the lower, the more.
    #[inline(always)]
    fn rank(&self, label: u8) -> u8 {
        if self.due == Some(label) { 0 } else { label + 1 }
    }
}

impl<const N: usize> Order<N> for Classes {
    const TIMED: bool = true;
    const LISTS: usize = CLASSES;
    const URGENT: bool = true;

    fn clear(&mut self) {
        self.queues = [Queue::default(); CLASSES];
        (self.waiting, self.filled, self.passed, self.due) = (0, 0, 0, None);
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.waiting
    }

    #[inline(always)]
    fn label(&mut self, message: &Message, _entry: &Task) -> u8 {
        message.class.wrapping_sub(1).min(LAST)
    }

    #[inline(always)]
    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let label = tasks.entry(task).label;
        let before = self.queue(label).len();
        self.queue(label).push_back(tasks, task);
        self.note(label, before);
    }

    #[inline(always)]
    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let label = tasks.entry(task).label;
        let before = self.queue(label).len();
        self.queue(label).push_front(tasks, task);
        self.note(label, before);
    }

    #[inline(always)]
    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        let label = tasks.entry(task).label;
        let before = self.queue(label).len();
        self.queue(label).remove(tasks, task, state);
        self.note(label, before);
    }

    #[inline(always)]
    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        if let Some(due) = self.due
            && let Some(first) = self.queue(due).first_for::<LOOK, N>(tasks, cpu)
        {
            return Some(first);
        }
        let mut filled = self.filled;
        for _ in 0..CLASSES {
            if filled == 0 {
                return None;
            }
            let class = filled.trailing_zeros() as u8;
            if let Some(first) = self.queue(class).first_for::<LOOK, N>(tasks, cpu) {
                return Some(first);
            }
            filled &= filled - 1;
        }
        None
    }

    #[inline(always)]
    fn took(&mut self, entry: &Task) {
        let class = entry.label & LAST;
        let passed = self.filled & (u8::MAX << class << 1);
        if passed == 0 {
            return;
        }
        self.passed += 1;
        if self.passed >= PASSED_MAX {
            let from_turn = passed & (u8::MAX << (self.turn & LAST));
            let due = (if from_turn == 0 { passed } else { from_turn }).trailing_zeros() as u8;
            (self.passed, self.due, self.turn) = (0, Some(due), due + 1);
        }
    }

    #[inline(always)]
    fn begins(&mut self, entry: &Task) {
        if self.due == Some(entry.label) {
            self.due = None;
        }
    }

    #[inline(always)]
    fn list(&self, label: u8) -> usize {
        usize::from(label)
    }

    #[inline(always)]
    fn slice_ns(&self, list: usize) -> u64 {
        self.slices_ns[list % CLASSES]
    }

    #[inline(always)]
    fn urgent(&self) -> Option<u8> {
        match self.due {
            Some(due) if self.filled >> (due & LAST) & 1 == 1 => Some(due),
            _ => (self.filled != 0).then_some(self.filled.trailing_zeros() as u8),
        }
    }

    #[inline(always)]
    fn overrules(&self, waits: u8, runs: u8, ran_ns: u64) -> bool {
        self.rank(waits) < self.rank(runs) && ran_ns >= RUN_MIN_NS
    }

    #[inline(always)]
    fn gives_way(&self, runs: u8, waits: u8) -> bool {
        self.rank(waits) <= self.rank(runs)
    }

    #[inline(always)]
    fn is_before(&self, a: u8, b: u8) -> bool {
        self.rank(a) < self.rank(b)
    }
}

#[cfg(test)]
mod tests;
