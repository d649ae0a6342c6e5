//! What all policies but FIFO share: tasks and CPUs as far as they have been heard of, decisions and the verdicts on them, what
//! is prestaged, whose slice is over, and how state is lost and found again. Who is next is an [`Order`]'s business.
//!
//! FIFO keeps its own: its path is counted by the instruction, and has no use for slices and lists.
//!
//! A decision that preempts names the CPU's stamp, so that it takes the CPU from nobody but the task it was meant for. Where a
//! prestaged decision lies in that CPU's slot, its task is the one that preempts, by a line that supersedes the other; the host
//! may have taken that one meanwhile, and then refuses the second. So a superseded decision is remembered until the verdict on
//! its successor.

use neap_abi::message::TASK_NONE;
use neap_abi::{CPUS_MAX, Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::{Decide, Policy};

use crate::chain::Chains;
use crate::cpus::CpuSet;
use crate::order::{Order, Waiting};
use crate::staleness::Staleness;
use crate::tasks::{State, Task, Tasks};

/// CPUs of a list that are looked at, from the longest at it on.
const CPUS_LOOK: usize = 4;

/// What a CPU does, as far as we have heard: bits.
type Standing = u8;
/// It is not the enclave's at the moment, or has not been heard of.
const AWAY: Standing = 0;
/// It has nothing to run.
const IDLE: Standing = 1;
/// It runs a task.
const BUSY: Standing = 2;
/// A decision lies in its slot.
const STAGED: Standing = 4;
/// That decision is ahead of time.
const AHEAD: Standing = 8;
/// That decision takes the CPU from the task that runs there.
const PREEMPTS: Standing = 16;
/// All that is said of the slot.
const SLOT: Standing = STAGED | AHEAD | PREEMPTS;

/// A host CPU, and the decision in its slot if it is STAGED.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    standing: Standing,
    /// The list in which its task runs.
    list: u8,
    staleness: Staleness,
    staged: u32,
    id: u32,
    /// The decision that the one in the slot supersedes.
    before: u32,
    before_id: u32,
    running: u32,
    /// The task that is preempted, until the host says so.
    victim: u32,
    stamp: u32,
    /// Since when its task runs.
    since_ns: u64,
    /// Since when its slice counts.
    slice_since_ns: u64,
}

const UNHEARD: Cpu = Cpu {
    standing: AWAY,
    list: 0,
    staleness: Staleness::ZERO,
    staged: TASK_NONE,
    id: 0,
    before: TASK_NONE,
    before_id: 0,
    running: TASK_NONE,
    victim: TASK_NONE,
    stamp: 0,
    since_ns: 0,
    slice_since_ns: 0,
};

/// A policy by its order of tasks, whose running tasks are kept in `L` lists, for `N` tasks.
#[derive(Debug)]
pub struct Dispatch<'m, O, const L: usize, const N: usize> {
    tasks: Tasks<'m, N>,
    order: O,
    cpus: [Cpu; CPUS_MAX as usize],
    count: u16,
    /// CPUs that are idle and have nothing in their slot.
    waiting: CpuSet,
    /// CPUs that are busy and have nothing in their slot.
    hungry: CpuSet,
    /// CPUs with a decision ahead of time in their slot.
    ahead: CpuSet,
    /// CPUs whose slice is not over, by list, in the order of its beginning: in a list all slices are equal.
    slices: Chains<L>,
    /// CPUs whose slice is over, by list.
    over: [CpuSet; L],
    /// CPUs of the enclave by its last resync.
    depth: u32,
    /// The latest time that we were told.
    now_ns: u64,
    /// Before it, nothing is preempted.
    look_ns: u64,
    /// A resync is being told.
    in_resync: bool,
}

/// A task that an event brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It goes behind others.
    Back,
    /// It was first when it was chosen, and still is.
    Front,
}

impl<'m, O: Order<N>, const L: usize, const N: usize> Dispatch<'m, O, L, N> {
    /// A policy for `cpus` host CPUs (at most [`CPUS_MAX`]) by `order`. Its first message is a resync's first, which clears
    /// `memory`; only where that is fresh may another come before.
    #[must_use]
    pub fn over(cpus: u16, memory: &'m mut [Task; N], order: O) -> Self {
        const { assert!(L == O::LISTS && L <= 8) };
        let count = cpus.min(CPUS_MAX);
        Self {
            tasks: Tasks::new(memory),
            order,
            cpus: [UNHEARD; CPUS_MAX as usize],
            count,
            waiting: CpuSet::default(),
            hungry: CpuSet::default(),
            ahead: CpuSet::default(),
            slices: Chains::default(),
            over: [CpuSet::default(); L],
            depth: u32::from(count),
            now_ns: 0,
            look_ns: 0,
            in_resync: false,
        }
    }

    /// Tasks that wait.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.order.len()
    }

    #[cfg(test)]
    pub(crate) fn order_mut(&mut self) -> &mut O {
        &mut self.order
    }

    /// A CPU's entry. The libOS lets no number through that is not below [`CPUS_MAX`].
    #[inline(always)]
    fn cpu(&mut self, cpu: u16) -> &mut Cpu {
        &mut self.cpus[usize::from(cpu as u8)]
    }

    #[inline(always)]
    fn over_in(&mut self, list: u8) -> &mut CpuSet {
        // `L` is a power of two, as `Chains` asserts.
        &mut self.over[usize::from(list) & (L - 1)]
    }

    /// Puts a CPU into the sets where it belongs.
    #[inline(always)]
    fn settle(&mut self, number: u16) {
        let standing = self.cpu(number).standing;
        self.waiting.set(number, standing == IDLE);
        self.hungry.set(number, standing == BUSY);
        self.ahead.set(number, standing & AHEAD != 0);
    }

    /// A task begins to run on a CPU; what ran there has ended.
    fn begins(&mut self, cpu: u16, task: u32) {
        self.ends(cpu);
        let entry = *self.tasks.entry(task);
        if entry.state != State::Placed {
            // We have not decided so, or not lately: the host says that it runs.
            self.order.took(&entry);
            self.order_leave(task, State::Placed);
        }
        self.order.begins(&entry);
        self.tasks.entry(task).cpu = cpu;
        let (list, now_ns) = (self.order.list(entry.label) as u8, self.now_ns);
        let entry = self.cpu(cpu);
        (entry.running, entry.since_ns, entry.slice_since_ns, entry.list) = (task, now_ns, now_ns, list);
        if O::TIMED {
            self.slices.push_back(list.into(), cpu as u8);
        }
    }

    /// What runs on a CPU, if anything does, has ended.
    fn ends(&mut self, cpu: u16) {
        let now_ns = self.now_ns;
        let entry = self.cpu(cpu);
        let (task, ran_ns, list) = (entry.running, now_ns.saturating_sub(entry.since_ns), entry.list);
        if task == TASK_NONE {
            return;
        }
        entry.running = TASK_NONE;
        if O::TIMED {
            self.slices.remove(cpu as u8);
            self.over_in(list).remove(cpu);
        }
        let entry = self.tasks.entry(task);
        if entry.state == State::Placed {
            // What it does now, its own event tells.
            entry.state = State::Blocked;
            let entry = *entry;
            self.order.ran(&entry, ran_ns);
        }
    }

    /// A task is not, or no more, where it was placed.
    fn stops(&mut self, task: u32) {
        let entry = *self.tasks.entry(task);
        if entry.state != State::Placed {
            return;
        }
        if self.cpu(entry.cpu).running == task {
            self.ends(entry.cpu);
        } else {
            self.tasks.entry(task).state = State::Blocked;
            self.order.ran(&entry, 0);
        }
    }

    /// A task leaves the order, if it is in it, for `state`.
    fn order_leave(&mut self, task: u32, state: State) {
        if self.tasks.entry(task).state == State::Queued {
            self.order.remove(&mut self.tasks, task, state);
        } else {
            self.tasks.entry(task).state = state;
        }
    }

    /// Publishes a decision for `cpu` and rings it unless it is ahead of time; then notes it.
    #[inline(always)]
    fn stage(&mut self, cpu: u16, (task, stamp): Waiting, flags: TxnFlags, decide: &mut impl Decide) -> bool {
        let cpu_stamp = self.cpu(cpu).stamp;
        let flags = flags.with(O::FLAGS);
        let txn = Txn { flags, cpu_stamp, ..decide.txn_create(cpu, task, stamp) };
        let Ok(id) = decide.txns_commit(&[txn]) else {
            // A CPU that takes no more lines is left alone until it is heard of.
            self.cpu(cpu).standing = AWAY;
            self.settle(cpu);
            return false;
        };
        let entry = self.cpu(cpu);
        (entry.staged, entry.id) = (task, id);
        let ahead = if flags.has(TxnFlags::PRESTAGED) { AHEAD } else { 0 };
        let preempts = if flags.has(TxnFlags::PREEMPT) { PREEMPTS } else { 0 };
        entry.standing = (entry.standing & !SLOT) | STAGED | ahead | preempts;
        self.settle(cpu);
        let entry = self.tasks.entry(task);
        entry.cpu = cpu;
        let entry = *entry;
        if entry.state != State::Placed {
            self.order.took(&entry);
            self.order_leave(task, State::Placed);
        }
        true
    }

    /// Stages the next task for `cpu`.
    #[inline(always)]
    fn stage_first(&mut self, cpu: u16, decide: &mut impl Decide) -> bool {
        let Some(first) = self.order.first_for(&mut self.tasks, cpu) else { return false };
        self.stage(cpu, first, TxnFlags(0), decide)
    }

    /// A decision ahead of time, if enough tasks wait and a CPU that runs has an empty slot: `cpu` if it can be.
    #[inline(always)]
    fn prestage(&mut self, cpu: u16, decide: &mut impl Decide) {
        let ahead = if self.cpu(cpu).standing == BUSY { Some(cpu) } else { self.hungry.first() };
        let Some(ahead) = ahead else { return };
        if !self.order.is_deep(ahead, self.depth) {
            return;
        }
        let base = self.depth;
        let depth = self.cpu(ahead).staleness.depth(base);
        if depth > base && !self.order.is_deep(ahead, depth) {
            self.cpu(ahead).staleness.was_held_back();
            return;
        }
        if let Some(first) = self.order.ahead_for(&mut self.tasks, ahead) {
            self.stage(ahead, first, TxnFlags::PRESTAGED, decide);
        }
    }

    /// A CPU that waits and on which the task may run: the one where it was last, else the lowest.
    fn waiting_for(&self, entry: &Task) -> Option<u16> {
        if self.waiting.has(entry.cpu) && entry.allows(entry.cpu) {
            return Some(entry.cpu);
        }
        match entry.cpu_count {
            0 => self.waiting.first(),
            count => self.waiting.and(&CpuSet::range(entry.first_cpu, count)).first(),
        }
    }

    /// A task that can run has come. Two decisions at most: one for the CPU that reports it, and one for a CPU that waits for
    /// this very task.
    fn arrives(&mut self, message: &Message, place: Place, decide: &mut impl Decide) {
        let task = message.task;
        if !Tasks::<N>::holds(task) {
            return;
        }
        self.stops(task);
        self.queues(message, place);
        if self.cpu(message.cpu).standing == IDLE {
            self.stage_first(message.cpu, decide);
        }
        let entry = *self.tasks.entry(task);
        if entry.state != State::Queued || self.fits_again(task, decide) {
            return;
        }
        let cpu = self.order.waits_at(&entry).unwrap_or(message.cpu);
        self.prestage(cpu, decide);
    }

    /// A task that can run waits its turn.
    fn queues(&mut self, message: &Message, place: Place) {
        let task = message.task;
        if !Tasks::<N>::holds(task) {
            return;
        }
        let entry = self.hear_of(message);
        if entry.state == State::Queued {
            // A resync has told of it what an event on its way then tells again.
            self.order.remove(&mut self.tasks, task, State::Blocked);
        }
        match place {
            Place::Back => self.order.push_back(&mut self.tasks, task),
            Place::Front => self.order.push_front(&mut self.tasks, task),
        }
    }

    /// A CPU may need a task, now or soon. One decision at most.
    fn serves(&mut self, cpu: u16, decide: &mut impl Decide) {
        if self.cpu(cpu).standing != IDLE || !self.stage_first(cpu, decide) {
            self.prestage(cpu, decide);
        }
    }

    /// A queued task may have come to fit a CPU that waits. True if it has.
    fn fits_again(&mut self, task: u32, decide: &mut impl Decide) -> bool {
        if !Tasks::<N>::holds(task) {
            return false;
        }
        let entry = *self.tasks.entry(task);
        if entry.state != State::Queued {
            return false;
        }
        let Some(cpu) = self.waiting_for(&entry) else { return false };
        self.stage(cpu, (task, entry.stamp), TxnFlags(0), decide)
    }

    /// Takes note of the verdict on what `cpu` took from its slot. Returns the task that is queued again by it.
    fn verdict(&mut self, cpu: u16, txn: u32, outcome: Outcome, decide: &mut impl Decide) -> u32 {
        let entry = self.cpu(cpu);
        if entry.standing & STAGED == 0 || entry.id != txn {
            self.verdict_before(cpu, txn, outcome);
            return TASK_NONE;
        }
        let (task, was) = (entry.staged, entry.standing);
        entry.before = TASK_NONE;
        entry.standing &= !SLOT;
        if outcome == Outcome::Committed {
            entry.standing = BUSY;
            if was & AHEAD != 0 {
                entry.staleness.was_fresh();
            }
            self.begins(cpu, task);
            return TASK_NONE;
        }
        if was & AHEAD != 0 {
            entry.staleness.was_stale();
        }
        if was & PREEMPTS != 0 {
            self.runs_on(cpu);
        }
        self.refused(cpu, task, outcome, decide)
    }

    /// The verdict on a decision that another had superseded: the host had it already.
    #[cold]
    fn verdict_before(&mut self, cpu: u16, txn: u32, outcome: Outcome) {
        let entry = self.cpu(cpu);
        if entry.before == TASK_NONE || entry.before_id != txn {
            return;
        }
        let task = core::mem::replace(&mut entry.before, TASK_NONE);
        // What a resync's line brings is older than the state that it tells, and that is what counts.
        if outcome == Outcome::Committed && !self.in_resync {
            let entry = self.cpu(cpu);
            entry.standing = (entry.standing & SLOT) | BUSY;
            self.begins(cpu, task);
        }
    }

    /// A task was not preempted after all: if it still runs, its slice is over all the same.
    #[cold]
    fn runs_on(&mut self, cpu: u16) {
        let entry = self.cpu(cpu);
        let (list, runs) = (entry.list, entry.running != TASK_NONE && entry.running == entry.victim);
        entry.victim = TASK_NONE;
        if runs {
            self.slices.remove(cpu as u8);
            self.over_in(list).insert(cpu);
        }
    }

    /// A refused task keeps its place at the head, unless the refusal says that it has none. Returns it if it does.
    #[cold]
    fn refused(&mut self, cpu: u16, task: u32, outcome: Outcome, decide: &mut impl Decide) -> u32 {
        let entry = *self.tasks.entry(task);
        if entry.state != State::Placed || entry.cpu != cpu || self.cpu(cpu).running == task {
            // It has moved on since: another event has told what it does now.
            return TASK_NONE;
        }
        if outcome == Outcome::TaskOnCpu {
            return TASK_NONE;
        }
        self.order.ran(&entry, 0);
        let entry = self.tasks.entry(task);
        entry.state = State::Blocked;
        match outcome {
            Outcome::TaskGone | Outcome::InvalidTask | Outcome::NotPermitted => entry.state = State::Absent,
            Outcome::TaskNotRunnable => {}
            _ if outcome.task_remains() => {
                self.order.push_front(&mut self.tasks, task);
                return task;
            }
            // The txn itself was wrong: what we hold is not what the host holds.
            _ => decide.resync(),
        }
        TASK_NONE
    }

    /// Forgets all; slots are voided so that nothing decided on the old state is taken later.
    #[cold]
    fn begin_resync(&mut self, decide: &mut impl Decide) {
        self.in_resync = true;
        self.tasks.clear();
        self.order.clear();
        self.waiting.clear();
        self.hungry.clear();
        self.ahead.clear();
        self.slices.clear();
        self.over.iter_mut().for_each(CpuSet::clear);
        for (number, cpu) in (0..self.count).zip(&mut self.cpus) {
            if cpu.standing & STAGED != 0 {
                let withdrawal = Txn { flags: TxnFlags::PRESTAGED, ..Txn::withdraw(number) };
                // A slot that takes no more lines is one whose CPU is gone: it is open again once heard of.
                let _ = decide.txns_commit(&[withdrawal]);
                // The host may have taken it already.
                (cpu.before, cpu.before_id) = (cpu.staged, cpu.id);
            }
            let Cpu { staleness, before, before_id, .. } = *cpu;
            *cpu = Cpu { staleness, before, before_id, ..UNHEARD };
        }
    }

    /// Every CPU that waits gets a decision, as far as tasks go.
    #[cold]
    fn end_resync(&mut self, decide: &mut impl Decide) {
        self.in_resync = false;
        let ours = self.cpus.iter().filter(|cpu| cpu.standing != AWAY).count();
        self.depth = ours as u32;
        self.order.set_cpus(ours as u32);
        for cpu in 0..self.count {
            self.serves(cpu, decide);
            self.settle(cpu);
        }
    }

    /// The task's entry, with what the message gives.
    fn hear_of(&mut self, message: &Message) -> Task {
        let task = message.task;
        let before = *self.tasks.entry(task);
        let label = self.order.label(message, &before);
        let files = label != before.label && before.state == State::Queued;
        if files {
            // It waits elsewhere from now on.
            self.order.remove(&mut self.tasks, task, State::Blocked);
        }
        let entry = self.tasks.entry(task);
        entry.stamp = message.stamp;
        entry.first_cpu = message.first_cpu;
        entry.cpu_count = message.cpu_count;
        if before.state != State::Placed {
            // What is placed has been counted under its old label, and is told of again before it waits.
            entry.label = label;
        }
        if files {
            self.order.push_back(&mut self.tasks, task);
        }
        *self.tasks.entry(task)
    }

    /// A task waits no more and runs no more, for `state`.
    fn leaves(&mut self, message: &Message, state: State) {
        if !Tasks::<N>::holds(message.task) {
            return;
        }
        self.stops(message.task);
        self.hear_of(message);
        self.order_leave(message.task, state);
    }

    /// A task runs on the CPU that says so.
    fn runs(&mut self, message: &Message) {
        if !Tasks::<N>::holds(message.task) {
            return;
        }
        self.hear_of(message);
        if self.cpu(message.cpu).running != message.task {
            self.stops(message.task);
            self.begins(message.cpu, message.task);
        }
        let entry = self.cpu(message.cpu);
        entry.standing = (entry.standing & SLOT) | BUSY;
    }

    /// A task lost its CPU and can run. By a decision of ours it goes to the back; by the host's it keeps its turn.
    fn is_preempted(&mut self, message: &Message, decide: &mut impl Decide) {
        let entry = self.cpu(message.cpu);
        let ours = entry.victim != TASK_NONE && entry.victim == message.task;
        if ours {
            entry.victim = TASK_NONE;
        }
        self.arrives(message, if ours { Place::Back } else { Place::Front }, decide);
    }

    /// Looks whose slice is over.
    fn expire(&mut self, decide: &mut impl Decide) {
        for list in 0..L {
            let slice_ns = self.order.slice_ns(list);
            for _ in 0..CPUS_LOOK {
                let Some(number) = self.slices.first(list) else { break };
                let (cpu, now_ns) = (u16::from(number), self.now_ns);
                let entry = self.cpu(cpu);
                if now_ns.saturating_sub(entry.slice_since_ns) < slice_ns {
                    break;
                }
                if entry.standing & PREEMPTS != 0 {
                    // It was to give way a slice ago: the doorbell may be lost.
                    decide.nudge(cpu);
                    self.begin_slice(cpu);
                } else {
                    self.slices.remove(number);
                    self.over_in(list as u8).insert(cpu);
                }
            }
        }
    }

    /// A CPU's slice counts from now on.
    fn begin_slice(&mut self, cpu: u16) {
        let now_ns = self.now_ns;
        let entry = self.cpu(cpu);
        entry.slice_since_ns = now_ns;
        let list = entry.list;
        self.over_in(list).remove(cpu);
        self.slices.push_back(list.into(), cpu as u8);
    }

    /// A task has another slice, as if it had been chosen again.
    fn renew(&mut self, cpu: u16) {
        let now_ns = self.now_ns;
        let entry = self.cpu(cpu);
        let (running, ran_ns) = (entry.running, now_ns.saturating_sub(entry.since_ns));
        entry.since_ns = now_ns;
        let entry = *self.tasks.entry(running);
        if entry.state == State::Placed {
            self.order.ran(&entry, ran_ns);
            self.order.took(&entry);
        }
        self.begin_slice(cpu);
    }

    /// Takes a CPU whose slice is over from its task, for one that waits. One decision at most.
    fn preempt(&mut self, decide: &mut impl Decide) -> bool {
        for list in (0..L).rev() {
            for _ in 0..CPUS_LOOK {
                let over = self.over[list];
                // With an empty queue only what is staged waits.
                let found = if self.order.is_empty() { over.first_of(&self.ahead) } else { over.first() };
                let Some(cpu) = found else { break };
                if self.take_over(cpu, None, decide) {
                    return true;
                }
                // Nobody waits that it gives way to: it is asked again when another slice is over.
                self.renew(cpu);
            }
        }
        false
    }

    /// Takes a CPU whose slice is not over from its task, where one that waits can ask for that. One decision at most.
    fn overrule(&mut self, decide: &mut impl Decide) {
        let waits = self.order.urgent();
        for list in (0..L).rev() {
            let mut next = self.slices.first(list);
            for _ in 0..CPUS_LOOK {
                let Some(number) = next else { break };
                next = self.slices.after(number);
                let (cpu, now_ns) = (u16::from(number), self.now_ns);
                let entry = *self.cpu(cpu);
                let runs = self.tasks.entry(entry.running).label;
                let ran_ns = now_ns.saturating_sub(entry.since_ns);
                let staged = (entry.standing & AHEAD != 0).then(|| self.tasks.entry(entry.staged).label);
                let overrules =
                    |waits: Option<u8>| waits.is_some_and(|waits| self.order.overrules(waits, runs, ran_ns));
                if entry.standing & PREEMPTS == 0
                    && (overrules(waits) || overrules(staged))
                    && self.take_over(cpu, Some(ran_ns), decide)
                {
                    return;
                }
            }
        }
    }

    /// Preempts what runs on a CPU, whose slice is over or who has run for `early_ns` only, if one waits that it gives way to.
    fn take_over(&mut self, cpu: u16, early_ns: Option<u64>, decide: &mut impl Decide) -> bool {
        let entry = *self.cpu(cpu);
        if entry.standing & (BUSY | PREEMPTS) != BUSY || entry.running == TASK_NONE {
            return false;
        }
        let before = *self.tasks.entry(entry.staged);
        let staged = entry.standing & STAGED != 0;
        // What lies there may have been killed or bound elsewhere meanwhile, or run already.
        let ours =
            staged && before.state == State::Placed && before.cpu == cpu && entry.staged != entry.running;
        let good = ours && before.allows(cpu);
        let label = |tasks: &mut Tasks<'_, N>, task| tasks.entry(task).label;
        let next = match self.order.first_for(&mut self.tasks, cpu) {
            Some(first) if !good || self.order.is_before(label(&mut self.tasks, first.0), before.label) => {
                first
            }
            _ if good => (entry.staged, before.stamp),
            _ => return false,
        };
        let (waits, runs) = (label(&mut self.tasks, next.0), label(&mut self.tasks, entry.running));
        let yields = match early_ns {
            None => self.order.gives_way(runs, waits),
            Some(ran_ns) => self.order.overrules(waits, runs, ran_ns),
        };
        if !yields || !self.stage(cpu, next, TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU), decide) {
            return false;
        }
        if staged {
            let superseded = self.cpu(cpu);
            (superseded.before, superseded.before_id) = (entry.staged, entry.id);
            if ours && entry.staged != next.0 {
                superseded.staleness.was_stale();
                self.order.ran(&before, 0);
                self.tasks.entry(entry.staged).state = State::Blocked;
                self.order.push_front(&mut self.tasks, entry.staged);
            }
        }
        self.cpu(cpu).victim = entry.running;
        self.begin_slice(cpu);
        true
    }

    /// A CPU that found nothing may not have looked everywhere. One decision at most.
    fn looks_again(&mut self, decide: &mut impl Decide) -> bool {
        !self.order.is_empty() && self.waiting.first().is_some_and(|waits| self.stage_first(waits, decide))
    }

    /// Whether somebody waits for a slice to end.
    fn awaits(&self) -> bool {
        !self.order.is_empty() || !self.ahead.is_empty()
    }
}

impl<O: Order<N>, const L: usize, const N: usize> Policy for Dispatch<'_, O, L, N> {
    const TIMED: bool = O::TIMED;

    #[inline(always)]
    fn message(&mut self, message: &Message, decide: &mut impl Decide) {
        let cpu = message.cpu;
        if !matches!(message.kind, MessageKind::ResyncBegin | MessageKind::ResyncEnd) {
            self.cpu(cpu).stamp = message.cpu_stamp;
        }
        let again = match message.outcome {
            Outcome::None => TASK_NONE,
            outcome => self.verdict(cpu, message.txn, outcome, decide),
        };
        if message.flags.has(TaskFlags::CPU_IDLE) {
            self.ends(cpu);
            let entry = self.cpu(cpu);
            entry.standing = (entry.standing & SLOT) | IDLE;
            let standing = entry.standing;
            self.settle(cpu);
            if standing & STAGED != 0 {
                // The host looked before our line landed: it sleeps over a decision.
                decide.nudge(cpu);
            }
        }
        match message.kind {
            MessageKind::TaskNew | MessageKind::TaskWakeup => {
                if message.flags.0 & (TaskFlags::RUNNABLE.0 | TaskFlags::ON_CPU.0) == TaskFlags::RUNNABLE.0 {
                    self.arrives(message, Place::Back, decide);
                } else if message.flags.has(TaskFlags::ON_CPU) {
                    self.runs(message);
                } else {
                    self.leaves(message, State::Blocked);
                }
            }
            MessageKind::TaskYield => self.arrives(message, Place::Back, decide),
            MessageKind::TaskPreempt => self.is_preempted(message, decide),
            MessageKind::TaskLatchFailure => self.arrives(message, Place::Front, decide),
            MessageKind::TaskBlocked => {
                self.leaves(message, State::Blocked);
                self.serves(cpu, decide);
            }
            MessageKind::TaskDead | MessageKind::TaskDeparted => {
                self.leaves(message, State::Absent);
                self.serves(cpu, decide);
            }
            MessageKind::TaskSwitchto | MessageKind::TaskOnCpu => self.runs(message),
            MessageKind::TaskAffinityChanged | MessageKind::TaskPriorityChanged => {
                if Tasks::<N>::holds(message.task) {
                    self.hear_of(message);
                }
                self.fits_again(message.task, decide);
            }
            MessageKind::CpuBusy => {
                self.ends(cpu);
                self.cpu(cpu).standing &= SLOT;
            }
            MessageKind::CpuAvailable => self.serves(cpu, decide),
            // Nothing is decided before the state is whole.
            MessageKind::ResyncTask => self.queues(message, Place::Back),
            MessageKind::ResyncCpu => {
                if message.task != TASK_NONE {
                    self.runs(message);
                }
                return;
            }
            MessageKind::ResyncBegin => self.begin_resync(decide),
            MessageKind::ResyncEnd => self.end_resync(decide),
            MessageKind::Nop
            | MessageKind::CpuTick
            | MessageKind::CpuTimerExpired
            | MessageKind::CpuNotIdle
            | MessageKind::CpuAgentBlocked
            | MessageKind::CpuAgentWakeup => self.serves(cpu, decide),
            MessageKind::TxnOutcome => {
                if message.flags.has(TaskFlags::ON_CPU) && self.cpu(cpu).running != message.task {
                    self.runs(message);
                }
                self.serves(cpu, decide);
            }
        }
        self.settle(cpu);
        if again != TASK_NONE {
            // A task came back to the queue beside what the message itself brought: both may fit a CPU that waits.
            self.fits_again(again, decide);
            self.fits_again(message.task, decide);
        } else if O::STEALS {
            self.looks_again(decide);
        }
    }

    #[inline(always)]
    fn time(&mut self, now_ns: u64, decide: &mut impl Decide) -> bool {
        if !O::TIMED {
            return false;
        }
        self.now_ns = self.now_ns.max(now_ns);
        if O::GRAIN_NS > 0 {
            if self.now_ns < self.look_ns {
                return self.awaits();
            }
            self.look_ns = self.now_ns - self.now_ns % O::GRAIN_NS + O::GRAIN_NS;
        }
        self.expire(decide);
        if O::STEALS && self.looks_again(decide) {
            return self.awaits();
        }
        if !self.preempt(decide) && O::URGENT && self.awaits() {
            self.overrule(decide);
        }
        self.awaits()
    }
}

#[cfg(test)]
mod tests;
