//! FIFO with a queue for each CPU, run to completion: FIFO's other variant. A task waits where it ran last, unless the queue there
//! is longer than that of one other CPU, chosen in turn (the shorter of two choices); a CPU that finds its own queue empty
//! steals from others.
//!
//! Against the global queue a task finds its cache warm, and what is prestaged for a CPU is what would run there anyway; in
//! return order holds in each queue only, and a thief looks into [`STEAL_LOOK`] queues and no more: it asks the next ones at the
//! next message.

use neap_abi::{CPUS_MAX, Message};

use crate::cpus::CpuSet;
use crate::dispatch::Dispatch;
use crate::order::{Order, Waiting};
use crate::shinjuku::LOOK;
use crate::tasks::{Queue, State, TASKS, Task, Tasks};

/// Queues that a CPU without a task looks into.
pub const STEAL_LOOK: usize = 4;

/// A queue for each CPU.
#[derive(Debug)]
pub struct Cores {
    queues: [Queue; CPUS_MAX as usize],
    /// CPUs in whose queues tasks wait.
    filled: CpuSet,
    waiting: u32,
    cpus: u16,
    /// The other choice, by turns.
    other: u16,
    /// Where the next thief begins.
    victim: u16,
}

/// FIFO with a queue for each of the enclave's CPUs, for `N` tasks.
pub type FifoPerCore<'m, const N: usize = TASKS> = Dispatch<'m, Cores, 1, N>;

impl<'m, const N: usize> FifoPerCore<'m, N> {
    /// FIFO per core for `cpus` host CPUs. As to `memory`, see [`Dispatch::over`].
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task; N]) -> Self {
        let queues = [Queue::default(); CPUS_MAX as usize];
        let cpus_max = cpus.clamp(1, CPUS_MAX);
        let order =
            Cores { queues, filled: CpuSet::default(), waiting: 0, cpus: cpus_max, other: 0, victim: 0 };
        Self::over(cpus, memory, order)
    }
}

impl Cores {
    #[inline(always)]
    fn queue(&mut self, cpu: u8) -> &mut Queue {
        &mut self.queues[usize::from(cpu)]
    }

    /// Keeps the books of a queue that has changed by one task.
    #[inline(always)]
    fn note(&mut self, cpu: u8, before: u32) {
        let after = self.queue(cpu).len();
        self.filled.set(cpu.into(), after > 0);
        self.waiting = self.waiting.wrapping_add(after).wrapping_sub(before);
    }

    /// Where a task is to wait that ran last on `last` and may use `cpu_count` CPUs from `first_cpu` on (0: all).
    #[inline(always)]
    fn home(&mut self, last: u16, first_cpu: u16, cpu_count: u16) -> u8 {
        let (first, count) = match cpu_count {
            0 => (0, self.cpus),
            _ => (first_cpu.min(self.cpus.saturating_sub(1)), cpu_count.min(self.cpus)),
        };
        self.other = self.other.wrapping_add(1);
        // A count of zero can't be; to the compiler it can.
        let turn = self.other.checked_rem(count).unwrap_or(0);
        let other = first.saturating_add(turn).min(self.cpus.saturating_sub(1)) as u8;
        let last = last as u8;
        let may_stay = u16::from(last) < self.cpus && u16::from(last).wrapping_sub(first) < count;
        if may_stay && self.queue(last).len() <= self.queue(other).len() { last } else { other }
    }
}

impl<const N: usize> Order<N> for Cores {
    const TIMED: bool = false;
    const STEALS: bool = true;

    fn clear(&mut self) {
        self.queues = [Queue::default(); CPUS_MAX as usize];
        self.filled.clear();
        self.waiting = 0;
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.waiting
    }

    #[inline(always)]
    fn label(&mut self, message: &Message, entry: &Task) -> u8 {
        let may_stay = Task::affinity_allows(message.first_cpu, message.cpu_count, entry.label.into());
        if entry.state == State::Queued && may_stay {
            return entry.label;
        }
        let last = if entry.state == State::Absent { message.cpu } else { entry.cpu };
        self.home(last, message.first_cpu, message.cpu_count)
    }

    #[inline(always)]
    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let cpu = tasks.entry(task).label;
        let before = self.queue(cpu).len();
        self.queue(cpu).push_back(tasks, task);
        self.note(cpu, before);
    }

    #[inline(always)]
    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let cpu = tasks.entry(task).label;
        let before = self.queue(cpu).len();
        self.queue(cpu).push_front(tasks, task);
        self.note(cpu, before);
    }

    #[inline(always)]
    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        let cpu = tasks.entry(task).label;
        let before = self.queue(cpu).len();
        self.queue(cpu).remove(tasks, task, state);
        self.note(cpu, before);
    }

    #[inline(always)]
    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        if let Some(own) = self.ahead_for(tasks, cpu) {
            return Some(own);
        }
        for _ in 0..STEAL_LOOK {
            let victim = self.filled.first_from(self.victim)?;
            self.victim = victim.wrapping_add(1);
            if let Some(theirs) = self.queue(victim as u8).first_for::<LOOK, N>(tasks, cpu) {
                return Some(theirs);
            }
        }
        None
    }

    #[inline(always)]
    fn is_deep(&self, cpu: u16, depth: u32) -> bool {
        // A CPU's share of the depth: with one task staged there is still one for a thief.
        self.queues[usize::from(cpu as u8)].len() > depth.checked_div(self.cpus.into()).unwrap_or(depth)
    }

    #[inline(always)]
    fn ahead_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        self.queue(cpu as u8).first_for::<LOOK, N>(tasks, cpu)
    }

    #[inline(always)]
    fn waits_at(&self, entry: &Task) -> Option<u16> {
        Some(entry.label.into())
    }
}

#[cfg(test)]
mod tests;
