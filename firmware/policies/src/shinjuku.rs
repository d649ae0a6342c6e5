//! Shinjuku (paper section 7.2): FIFO with a slice of 30 µs. A task that has had its slice gives its CPU to one that waits, by an
//! MSI-X, and goes to the back of the queue; with nobody waiting who may run there, it runs on. A CPU whose task blocks or
//! yields finds its next one prestaged, as with FIFO; one that is preempted can't.

use crate::dispatch::Dispatch;
use crate::order::{Order, Waiting};
use crate::tasks::{Queue, State, TASKS, Task, Tasks};

/// How long a task runs before others.
pub const SLICE_NS: u64 = 30_000;
/// Tasks at the head of the queue that are asked whether they may run on a CPU, as with FIFO.
pub(crate) const LOOK: u32 = 8;

/// One queue, and a slice.
#[derive(Debug)]
pub struct OneQueue {
    queue: Queue,
    slice_ns: u64,
}

/// Shinjuku over the enclave's CPUs, for `N` tasks.
pub type Shinjuku<'m, const N: usize = TASKS> = Dispatch<'m, OneQueue, 1, N>;

impl<'m, const N: usize> Shinjuku<'m, N> {
    /// Shinjuku for `cpus` host CPUs, with the paper's slice. As to `memory`, see [`Dispatch::over`].
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task; N]) -> Self {
        Self::with_slice(cpus, memory, SLICE_NS)
    }

    /// Shinjuku with another slice.
    #[must_use]
    pub fn with_slice(cpus: u16, memory: &'m mut [Task; N], slice_ns: u64) -> Self {
        Self::over(cpus, memory, OneQueue { queue: Queue::default(), slice_ns })
    }
}

impl<const N: usize> Order<N> for OneQueue {
    const TIMED: bool = true;

    fn clear(&mut self) {
        self.queue = Queue::default();
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.queue.len()
    }

    #[inline(always)]
    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        self.queue.push_back(tasks, task);
    }

    #[inline(always)]
    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        self.queue.push_front(tasks, task);
    }

    #[inline(always)]
    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        self.queue.remove(tasks, task, state);
    }

    #[inline(always)]
    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        self.queue.first_for::<LOOK, N>(tasks, cpu)
    }

    #[inline(always)]
    fn slice_ns(&self, _list: usize) -> u64 {
        self.slice_ns
    }
}

#[cfg(test)]
mod tests;
