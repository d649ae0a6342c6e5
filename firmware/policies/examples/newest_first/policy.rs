//! The newest task first: a policy of one stack, with a slice of 100 µs.

use neap_policies::dispatch::Dispatch;
use neap_policies::order::{Order, Waiting};
use neap_policies::tasks::{Queue, State, Task, Tasks};

#[derive(Debug, Default)]
pub struct Stack(Queue);

pub type NewestFirst<'m, const N: usize> = Dispatch<'m, Stack, 1, N>;

pub fn newest_first<const N: usize>(cpus: u16, memory: &mut [Task; N]) -> NewestFirst<'_, N> {
    Dispatch::over(cpus, memory, Stack::default())
}

impl<const N: usize> Order<N> for Stack {
    const TIMED: bool = true;
    fn clear(&mut self) {
        self.0 = Queue::default();
    }
    fn len(&self) -> u32 {
        self.0.len()
    }
    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        self.0.push_front(tasks, task);
    }
    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        self.0.push_front(tasks, task);
    }
    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        self.0.remove(tasks, task, state);
    }
    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        self.0.first_for::<8, N>(tasks, cpu)
    }
    fn slice_ns(&self, _list: usize) -> u64 {
        100_000
    }
}
