//! The VM policy (paper section 7.3.3, after Tableau): virtual machines share the CPUs fairly, each of their vCPUs runs for a
//! quantum of 5 to 10 ms, preempted at moments 1 ms apart, with no tick on any host CPU.
//!
//! A task is a vCPU, its message's group the VM. Each group has a virtual time, by which its vCPUs have run in all: one that is
//! given a CPU adds a quantum in advance, and what it really ran is put in that one's place when it leaves. Of the groups with
//! vCPUs that wait, the next few of a ring are asked and the one behind the others is served; so groups whose vCPUs run for
//! unequal times, or which have unequally many, still get equal time, as far as they want it. One that slept comes back
//! [`SAVED`] quanta behind the others at most, so that it shuts out nobody. That bounds the tail: who waits is asked once in
//! `GROUPS / GROUPS_LOOK` decisions, and others can be before it by what they are behind, and no more.
//!
//! The quantum is 10 ms while few vCPUs wait and 5 ms where many do: what a quantum costs in switches a deep queue gets back in
//! waiting. At its end a vCPU gives way unless its group is behind that of the one that waits. A vCPU whose group is [`LAG`]
//! quanta ahead of a waiting one's gives way before its quantum's end, but not before it has run for a millisecond.

use neap_abi::{Message, TxnFlags};

use crate::chain::Chains;
use crate::dispatch::Dispatch;
use crate::order::{Order, Waiting};
use crate::tasks::{Queue, State, TASKS, Task, Tasks};

/// The quantum where nobody waits.
pub const QUANTUM_MAX_NS: u64 = 10_000_000;
/// The quantum under load.
pub const QUANTUM_MIN_NS: u64 = 5_000_000;
/// Waiting vCPUs for each CPU from which on it is that.
const LOADED: u32 = 4;
/// Preemptions are decided upon at moments so far apart.
pub const GRAIN_NS: u64 = 1_000_000;
/// Groups that are told apart. The first is of tasks with no group, and of all groups for which there is no room.
pub const GROUPS: usize = 64;
/// How far behind the others a group can come back that slept, in quanta.
pub const SAVED: u64 = 2;
/// How far a group must be ahead of one that waits to give way early, in quanta.
pub const LAG: u64 = 2;
/// Groups that are asked for a vCPU before one is found.
const GROUPS_LOOK: usize = 4;
/// vCPUs of a group that are asked whether they may run on a CPU.
const LOOK: u32 = 4;
/// Places in which a group's number is looked for.
const PROBES: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    queue: Queue,
    number: u32,
    /// vCPUs that have a CPU or are promised one.
    placed: u32,
    /// Its virtual time.
    time_ns: u64,
}

/// A ring of groups.
#[derive(Debug)]
pub struct Groups {
    groups: [Group; GROUPS],
    /// Those with vCPUs that wait.
    ring: Chains<1>,
    waiting: u32,
    cpus: u32,
    /// The virtual time of the groups that are served.
    time_ns: u64,
}

/// The VM policy over the enclave's CPUs, for `N` vCPUs.
pub type Vm<'m, const N: usize = TASKS> = Dispatch<'m, Groups, 1, N>;

impl<'m, const N: usize> Vm<'m, N> {
    /// The VM policy for `cpus` host CPUs. As to `memory`, see [`Dispatch::over`].
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task; N]) -> Self {
        let groups = [Group::default(); GROUPS];
        let order = Groups { groups, ring: Chains::default(), waiting: 0, cpus: cpus.into(), time_ns: 0 };
        Self::over(cpus, memory, order)
    }
}

impl Groups {
    #[inline(always)]
    fn group(&mut self, label: u8) -> &mut Group {
        &mut self.groups[usize::from(label) % GROUPS]
    }

    #[inline(always)]
    fn time_ns(&self, label: u8) -> u64 {
        self.groups[usize::from(label) % GROUPS].time_ns
    }

    /// The quantum by load.
    #[inline(always)]
    fn quantum_ns(&self) -> u64 {
        const SPAN_NS: u64 = QUANTUM_MAX_NS - QUANTUM_MIN_NS;
        let full = self.cpus.saturating_mul(LOADED).max(1);
        QUANTUM_MAX_NS - SPAN_NS * u64::from(self.waiting.min(full)) / u64::from(full)
    }

    /// The entry of a group, a fresh one if it has none; the first where there is no room.
    fn entry_of(&mut self, number: u32) -> u8 {
        if number == 0 {
            return 0;
        }
        let mut free = None;
        // The top bits of a product with an odd number spread what is dense.
        let from = number.wrapping_mul(0x9e37_79b1) >> 26;
        for probe in 0..PROBES {
            let label = (from.wrapping_add(probe) % GROUPS as u32) as u8;
            if label == 0 {
                continue;
            }
            let group = self.group(label);
            if group.number == number {
                return label;
            }
            if free.is_none() && group.queue.is_empty() && group.placed == 0 {
                free = Some(label);
            }
        }
        let Some(label) = free else { return 0 };
        *self.group(label) = Group { number, ..Group::default() };
        label
    }

    /// Keeps the books of a group whose queue has changed by one vCPU.
    fn note(&mut self, label: u8, before: u32) {
        let came_back_ns = self.time_ns.saturating_sub(SAVED * QUANTUM_MAX_NS);
        let group = self.group(label);
        let after = group.queue.len();
        if before == 0 && group.placed == 0 {
            group.time_ns = group.time_ns.max(came_back_ns);
        }
        if before == 0 && after > 0 {
            self.ring.push_back(0, label % GROUPS as u8);
        } else if after == 0 {
            self.ring.remove(label % GROUPS as u8);
        }
        self.waiting = self.waiting.wrapping_add(after).wrapping_sub(before);
    }
}

impl<const N: usize> Order<N> for Groups {
    const TIMED: bool = true;
    const URGENT: bool = true;
    const GRAIN_NS: u64 = GRAIN_NS;
    const STEALS: bool = true;
    const FLAGS: TxnFlags = TxnFlags::TICKLESS;

    fn clear(&mut self) {
        self.groups = [Group::default(); GROUPS];
        self.ring.clear();
        (self.waiting, self.time_ns) = (0, 0);
    }

    fn set_cpus(&mut self, cpus: u32) {
        self.cpus = cpus;
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.waiting
    }

    fn label(&mut self, message: &Message, _entry: &Task) -> u8 {
        self.entry_of(message.group)
    }

    fn push_back(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let label = tasks.entry(task).label;
        let group = self.group(label);
        let before = group.queue.len();
        group.queue.push_back(tasks, task);
        self.note(label, before);
    }

    fn push_front(&mut self, tasks: &mut Tasks<'_, N>, task: u32) {
        let label = tasks.entry(task).label;
        let group = self.group(label);
        let before = group.queue.len();
        group.queue.push_front(tasks, task);
        self.note(label, before);
    }

    fn remove(&mut self, tasks: &mut Tasks<'_, N>, task: u32, state: State) {
        let label = tasks.entry(task).label;
        let group = self.group(label);
        let before = group.queue.len();
        group.queue.remove(tasks, task, state);
        self.note(label, before);
    }

    fn first_for(&mut self, tasks: &mut Tasks<'_, N>, cpu: u16) -> Option<Waiting> {
        let mut best: Option<(u64, Waiting)> = None;
        for _ in 0..GROUPS_LOOK.min(usize::from(self.ring.len(0))) {
            let label = self.ring.first(0)?;
            let group = self.group(label);
            let time_ns = group.time_ns;
            if best.is_none_or(|(other_ns, _)| time_ns < other_ns)
                && let Some(first) = group.queue.first_for::<LOOK, N>(tasks, cpu)
            {
                best = Some((time_ns, first));
            }
            self.ring.push_back(0, label);
        }
        best.map(|(_, first)| first)
    }

    fn took(&mut self, entry: &Task) {
        let group = self.group(entry.label);
        let time_ns = group.time_ns;
        group.placed = group.placed.saturating_add(1);
        group.time_ns = time_ns.saturating_add(QUANTUM_MAX_NS);
        self.time_ns = self.time_ns.max(time_ns);
    }

    fn ran(&mut self, entry: &Task, ran_ns: u64) {
        let group = self.group(entry.label);
        group.placed = group.placed.saturating_sub(1);
        group.time_ns = group.time_ns.saturating_sub(QUANTUM_MAX_NS).saturating_add(ran_ns);
    }

    #[inline(always)]
    fn slice_ns(&self, _list: usize) -> u64 {
        self.quantum_ns()
    }

    fn urgent(&self) -> Option<u8> {
        self.ring.first(0)
    }

    fn overrules(&self, waits: u8, runs: u8, ran_ns: u64) -> bool {
        let lag_ns = self.time_ns(runs).saturating_sub(self.time_ns(waits));
        ran_ns >= GRAIN_NS && lag_ns > LAG * QUANTUM_MAX_NS
    }

    fn gives_way(&self, runs: u8, waits: u8) -> bool {
        self.time_ns(waits) <= self.time_ns(runs)
    }
}

#[cfg(test)]
mod tests;
