//! The tasks of an enclave, and queues threaded through them.

/// What a policy remembers of a task: 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The stamp of the last message that spoke of it.
    pub stamp: u32,
    /// Where it stands.
    pub state: State,
    /// What its policy files it under: a service class, a group, a CPU. FIFO has no use for it.
    pub label: u8,
    /// The CPU it was last placed on.
    pub cpu: u16,
    /// First CPU that it may use.
    pub first_cpu: u16,
    /// CPUs from there on; 0 for all.
    pub cpu_count: u16,
    next: u32,
    previous: u32,
}

impl Task {
    /// What is remembered of a task that is not there: all zero.
    pub const ABSENT: Self = Self {
        stamp: 0,
        state: State::Absent,
        label: 0,
        cpu: 0,
        first_cpu: 0,
        cpu_count: 0,
        next: 0,
        previous: 0,
    };

    /// Whether the task may run on `cpu`.
    #[must_use]
    #[inline(always)]
    pub fn allows(&self, cpu: u16) -> bool {
        Self::affinity_allows(self.first_cpu, self.cpu_count, cpu)
    }

    /// Whether a task that may use `cpu_count` CPUs from `first_cpu` on (0: all) may run on `cpu`.
    #[must_use]
    #[inline(always)]
    pub const fn affinity_allows(first_cpu: u16, cpu_count: u16, cpu: u16) -> bool {
        cpu_count == 0 || cpu.wrapping_sub(first_cpu) < cpu_count
    }
}

/// Where a task stands, as far as the agent has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not in the enclave.
    #[default]
    Absent,
    /// Waiting for something other than a CPU.
    Blocked,
    /// In the run queue.
    Queued,
    /// With a CPU: in its slot, or running there.
    Placed,
}

/// Entries in a table of the usual size; what a host's task numbers are below.
pub const TASKS: usize = neap_abi::layout::TASKS_USUAL as usize;

/// The table of `N` tasks (a power of two), by task number, over memory handed in.
///
/// `N` is known when it is compiled, so that a number that was checked once needs no check at each access.
#[derive(Debug)]
pub struct Tasks<'m, const N: usize>(&'m mut [Task; N]);

impl<'m, const N: usize> Tasks<'m, N> {
    const POWER_OF_TWO: () = assert!(N.is_power_of_two());

    /// A table over memory that is all [`Task::ABSENT`], or is to be cleared first. It does not clear it itself: that takes
    /// longer than all else that an agent does before its first decision, and the resync that every agent begins with
    /// does it anyway.
    #[must_use]
    pub fn new(memory: &'m mut [Task; N]) -> Self {
        let () = Self::POWER_OF_TWO;
        Self(memory)
    }

    /// Whether there is an entry for a task's number.
    #[must_use]
    #[inline(always)]
    pub const fn holds(task: u32) -> bool {
        (task as usize) < N
    }

    /// The entry of a task that the table [`Tasks::holds`]; of any other number, some entry.
    #[must_use]
    #[inline(always)]
    pub fn entry(&mut self, task: u32) -> &mut Task {
        &mut self.0[task as usize & (N - 1)]
    }

    /// Makes every task absent. The one operation that takes time by the table's size; a resync is its cause.
    pub fn clear(&mut self) {
        self.0.fill(Task::default());
    }
}

const NONE: u32 = u32::MAX;

/// A queue of tasks, linked through the table: every operation takes constant time, and the table bounds it.
///
/// A task's `previous` means something only behind another, its `next` only before another: who takes the first or the
/// last need not go to its neighbour.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    length: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, length: 0 }
    }
}

impl Queue {
    /// How many tasks wait.
    #[must_use]
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether none waits.
    #[must_use]
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts a task at the end; one that waits already gives up its place.
    #[inline(always)]
    pub fn push_back<const N: usize>(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        if tasks.entry(task).state == State::Queued {
            self.step_out(tasks, task);
        }
        let entry = tasks.entry(task);
        entry.state = State::Queued;
        entry.previous = self.tail;
        if self.length == 0 {
            self.head = task;
        } else {
            tasks.entry(self.tail).next = task;
        }
        self.tail = task;
        self.length += 1;
    }

    /// Takes out a task that is to wait elsewhere: a resync has told of it what an event on its way then tells again.
    #[cold]
    fn step_out<const N: usize>(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        self.remove(tasks, task, State::Absent);
    }

    /// Puts a task that does not wait yet at the front.
    pub fn push_front<const N: usize>(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let entry = tasks.entry(task);
        if entry.state == State::Queued {
            return;
        }
        entry.state = State::Queued;
        entry.next = self.head;
        if self.length == 0 {
            self.tail = task;
        } else {
            tasks.entry(self.head).previous = task;
        }
        self.head = task;
        self.length += 1;
    }

    /// Takes a task out, wherever it waits, and leaves it in `state`.
    #[inline(always)]
    pub fn remove<const N: usize>(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        let entry = tasks.entry(task);
        if entry.state != State::Queued {
            return;
        }
        entry.state = state;
        let (previous, next) = (entry.previous, entry.next);
        self.length -= 1;
        if self.head == task {
            self.head = next;
        } else if self.tail == task {
            self.tail = previous;
        } else {
            tasks.entry(previous).next = next;
            tasks.entry(next).previous = previous;
        }
    }

    /// The first task.
    #[must_use]
    #[inline(always)]
    pub fn first(&self) -> Option<u32> {
        (self.length > 0).then_some(self.head)
    }

    /// The first of the first `LOOK` tasks that may run on `cpu`, with its stamp.
    #[must_use]
    #[inline(always)]
    pub fn first_for<const LOOK: u32, const N: usize>(
        &self,
        tasks: &mut Tasks<'_, N>,
        cpu: u16,
    ) -> Option<(u32, u32)> {
        let mut task = self.head;
        for _ in 0..LOOK.min(self.length) {
            let entry = tasks.entry(task);
            if entry.allows(cpu) {
                return Some((task, entry.stamp));
            }
            task = entry.next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Any run of operations is the run of a deque.
        #[test]
        fn behaves_as_a_deque(steps in prop::collection::vec((0u8..4, 0u32..16), 0..500)) {
            let mut memory = [Task::default(); 16];
            let mut tasks = Tasks::new(&mut memory);
            let mut queue = Queue::default();
            let mut model: VecDeque<u32> = VecDeque::new();
            for (step, task) in steps {
                let fits = !model.contains(&task);
                match step {
                    0 => {
                        queue.push_back(&mut tasks, task);
                        model.retain(|&t| t != task);
                        model.push_back(task);
                    }
                    1 => {
                        queue.push_front(&mut tasks, task);
                        if fits { model.push_front(task) }
                    }
                    2 => {
                        queue.remove(&mut tasks, task, State::Blocked);
                        model.retain(|&t| t != task);
                    }
                    _ => {
                        let first = queue.first_for::<8, 16>(&mut tasks, 0).map(|(task, _)| task);
                        prop_assert_eq!(first, model.front().copied());
                        if let Some(first) = first {
                            queue.remove(&mut tasks, first, State::Placed);
                            model.pop_front();
                        }
                    }
                }
                prop_assert_eq!(queue.len() as usize, model.len());
            }
        }
    }

    #[test]
    fn a_task_that_may_not_run_here_is_passed_over_up_to_a_bound() {
        let mut memory = [Task::default(); 16];
        let mut tasks = Tasks::new(&mut memory);
        let mut queue = Queue::default();
        for task in 0..10 {
            queue.push_back(&mut tasks, task);
            if task < 7 {
                let entry = tasks.entry(task);
                (entry.first_cpu, entry.cpu_count) = (2, 2);
            }
        }
        assert_eq!(queue.first_for::<8, 16>(&mut tasks, 2), Some((0, 0)));
        assert_eq!(queue.first_for::<8, 16>(&mut tasks, 4), Some((7, 0)));
        assert_eq!(queue.first_for::<7, 16>(&mut tasks, 4), None);
    }

    #[test]
    fn a_number_out_of_bounds_is_told_and_harmless() {
        let mut memory = [Task::default(); 16];
        let mut tasks = Tasks::new(&mut memory);
        assert!(Tasks::<16>::holds(15) && !Tasks::<16>::holds(16) && !Tasks::<16>::holds(u32::MAX));
        assert_eq!(tasks.entry(u32::MAX).state, State::Absent);
    }
}
