//! What one policy's order of tasks is to [`Dispatch`](crate::dispatch::Dispatch), which has the rest: who is next for a CPU,
//! for how long, and who must give way to whom.

use neap_abi::{Message, TxnFlags};

use crate::tasks::{State, Task, Tasks};

/// A task that waits, and the stamp it was last heard of with.
pub type Waiting = (u32, u32);

/// An order of waiting tasks, over the table of `N` tasks. Every operation is bounded by a constant.
///
/// A task is in the order if its state is [`State::Queued`], and only then.
pub trait Order<const N: usize> {
    /// Whether there are slices, and so a clock.
    const TIMED: bool;
    /// Lists of running tasks that are kept apart, each with one slice: a power of two, 8 at most.
    const LISTS: usize = 1;
    /// Whether a waiting task may end another's slice early.
    const URGENT: bool = false;
    /// Moments between which nothing is preempted, in ns; 0 for any time.
    const GRAIN_NS: u64 = 0;
    /// Whether a CPU that finds nothing has not looked everywhere, and is to look again.
    const STEALS: bool = false;
    /// Flags of every decision.
    const FLAGS: TxnFlags = TxnFlags(0);

    /// Empties it, at a resync's beginning.
    fn clear(&mut self);

    /// Learns how many CPUs there are, at a resync's end.
    fn set_cpus(&mut self, cpus: u32) {
        let _ = cpus;
    }

    /// Tasks that wait.
    fn len(&self) -> u32;

    /// Whether none does.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label that a message gives its task; `entry` is what is known of it.
    fn label(&mut self, message: &Message, entry: &Task) -> u8 {
        let _ = (message, entry);
        0
    }

    /// A task waits, behind others like it. It does not wait yet.
    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32);

    /// A task waits, before others like it. It does not wait yet.
    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32);

    /// A task that waits does so no more, and is left in `state`.
    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State);

    /// The next for `cpu`.
    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting>;

    /// Whether more than `depth` tasks wait that `cpu` could have one of ahead of time.
    fn is_deep(&self, cpu: u16, depth: u32) -> bool {
        let _ = cpu;
        self.len() > depth
    }

    /// The next for `cpu` ahead of time.
    fn ahead_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        self.first_for(tasks, cpu)
    }

    /// The CPU at which a task waits, where tasks wait at CPUs.
    fn waits_at(&self, entry: &Task) -> Option<u16> {
        let _ = entry;
        None
    }

    /// A task is about to be given to a CPU, and to be taken from the order if it is in it.
    fn took(&mut self, entry: &Task) {
        let _ = entry;
    }

    /// A task that was given to a CPU begins to run.
    fn begins(&mut self, entry: &Task) {
        let _ = entry;
    }

    /// A task that had been given to a CPU has left it again after `ran_ns`.
    fn ran(&mut self, entry: &Task, ran_ns: u64) {
        let _ = (entry, ran_ns);
    }

    /// The list in which running tasks with a label are kept, below [`Order::LISTS`]. The higher, the sooner do they give way.
    fn list(&self, label: u8) -> usize {
        let _ = label;
        0
    }

    /// The slice of tasks in a list.
    fn slice_ns(&self, list: usize) -> u64 {
        let _ = list;
        u64::MAX
    }

    /// The label of a task that may end another's slice early, if there is such a one.
    fn urgent(&self) -> Option<u8> {
        None
    }

    /// Whether a task labelled `waits` ends the slice early of one labelled `runs`, which has run for `ran_ns`.
    fn overrules(&self, waits: u8, runs: u8, ran_ns: u64) -> bool {
        let _ = (waits, runs, ran_ns);
        false
    }

    /// Whether one labelled `runs`, with its slice over, gives way to one labelled `waits`.
    fn gives_way(&self, runs: u8, waits: u8) -> bool {
        let _ = (runs, waits);
        true
    }

    /// Whether one labelled `a` goes before one labelled `b` whenever it came.
    fn is_before(&self, a: u8, b: u8) -> bool {
        let _ = (a, b);
        false
    }
}
