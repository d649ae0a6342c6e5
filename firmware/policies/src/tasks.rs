//! The tasks of an enclave, and queues threaded through them.

/// What a policy remembers of a task: 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The stamp of the last message that spoke of it.
    pub stamp: u32,
    /// Where it stands.
    pub state: State,
    /// The CPU it was staged for or runs on.
    pub cpu: u16,
    /// First CPU that it may use.
    pub first_cpu: u16,
    /// CPUs from there on; 0 for all.
    pub cpu_count: u16,
    next: u32,
    previous: u32,
}

impl Task {
    /// Whether the task may run on `cpu`.
    #[must_use]
    #[inline(always)]
    pub fn allows(&self, cpu: u16) -> bool {
        self.cpu_count == 0 || cpu.wrapping_sub(self.first_cpu) < self.cpu_count
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
    /// In a decision slot.
    Staged,
    /// On a CPU.
    Running,
}

/// The table of tasks, by task number, over memory handed in.
#[derive(Debug)]
pub struct Tasks<'m>(&'m mut [Task]);

impl<'m> Tasks<'m> {
    /// An empty table; it holds tasks 0 to `memory.len()` − 1.
    #[must_use]
    pub fn new(memory: &'m mut [Task]) -> Self {
        memory.fill(Task::default());
        Self(memory)
    }

    /// A task, if there is room for its number.
    #[must_use]
    #[inline(always)]
    pub fn get(&mut self, task: u32) -> Option<&mut Task> {
        self.0.get_mut(task as usize)
    }

    /// Makes every task absent. The one operation that takes time by the table's size; a resync is its cause.
    pub fn clear(&mut self) {
        self.0.fill(Task::default());
    }
}

const NONE: u32 = u32::MAX;

/// A queue of tasks, linked through the table: every operation takes constant time, and the table bounds it.
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

    /// Puts a task at the end; false if it waits already, or the table has no room for it.
    #[inline(always)]
    pub fn push_back(&mut self, tasks: &mut Tasks<'_>, task: u32) -> bool {
        let tail = self.tail;
        if !Self::link(tasks, task, tail, NONE) {
            return false;
        }
        match tasks.get(tail) {
            Some(last) => last.next = task,
            None => self.head = task,
        }
        self.tail = task;
        self.length += 1;
        true
    }

    /// Puts a task at the front; false as for [`Queue::push_back`].
    pub fn push_front(&mut self, tasks: &mut Tasks<'_>, task: u32) -> bool {
        let head = self.head;
        if !Self::link(tasks, task, NONE, head) {
            return false;
        }
        match tasks.get(head) {
            Some(first) => first.previous = task,
            None => self.tail = task,
        }
        self.head = task;
        self.length += 1;
        true
    }

    #[inline(always)]
    fn link(tasks: &mut Tasks<'_>, task: u32, previous: u32, next: u32) -> bool {
        match tasks.get(task) {
            Some(entry) if entry.state != State::Queued => {
                entry.state = State::Queued;
                entry.previous = previous;
                entry.next = next;
                true
            }
            _ => false,
        }
    }

    /// Takes a task out, wherever it waits, and leaves it in `state`.
    #[inline(always)]
    pub fn remove(&mut self, tasks: &mut Tasks<'_>, task: u32, state: State) {
        let (previous, next) = match tasks.get(task) {
            Some(entry) if entry.state == State::Queued => {
                entry.state = state;
                (entry.previous, entry.next)
            }
            _ => return,
        };
        match tasks.get(previous) {
            Some(before) => before.next = next,
            None => self.head = next,
        }
        match tasks.get(next) {
            Some(after) => after.previous = previous,
            None => self.tail = previous,
        }
        self.length -= 1;
    }

    /// The first of the first `LOOK` tasks that may run on `cpu`.
    #[must_use]
    #[inline(always)]
    pub fn first_for<const LOOK: u32>(&self, tasks: &mut Tasks<'_>, cpu: u16) -> Option<(u32, u32)> {
        let mut task = self.head;
        for _ in 0..LOOK {
            let entry = tasks.get(task)?;
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
        fn behaves_as_a_deque(steps in prop::collection::vec((0u8..4, 0u32..12), 0..500)) {
            let mut memory = [Task::default(); 10];
            let mut tasks = Tasks::new(&mut memory);
            let mut queue = Queue::default();
            let mut model: VecDeque<u32> = VecDeque::new();
            for (step, task) in steps {
                let fits = task < 10 && !model.contains(&task);
                match step {
                    0 => {
                        prop_assert_eq!(queue.push_back(&mut tasks, task), fits);
                        if fits { model.push_back(task) }
                    }
                    1 => {
                        prop_assert_eq!(queue.push_front(&mut tasks, task), fits);
                        if fits { model.push_front(task) }
                    }
                    2 => {
                        queue.remove(&mut tasks, task, State::Blocked);
                        model.retain(|&t| t != task);
                    }
                    _ => {
                        let first = queue.first_for::<8>(&mut tasks, 0).map(|(task, _)| task);
                        prop_assert_eq!(first, model.front().copied());
                        if let Some(first) = first {
                            queue.remove(&mut tasks, first, State::Running);
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
        let mut memory = [Task::default(); 10];
        let mut tasks = Tasks::new(&mut memory);
        let mut queue = Queue::default();
        for task in 0..10 {
            assert!(queue.push_back(&mut tasks, task));
            if task < 7 {
                let entry = tasks.get(task).unwrap();
                (entry.first_cpu, entry.cpu_count) = (2, 2);
            }
        }
        assert_eq!(queue.first_for::<8>(&mut tasks, 2), Some((0, 0)));
        assert_eq!(queue.first_for::<8>(&mut tasks, 4), Some((7, 0)));
        assert_eq!(queue.first_for::<7>(&mut tasks, 4), None);
    }
}
