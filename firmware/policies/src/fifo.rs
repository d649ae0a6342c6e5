//! FIFO, run to completion (paper section 7.2), with one decision prestaged per host CPU where the run queue is deep
//! enough (section 5.1).
//!
//! A decision is published, and its CPU rung, before the policy notes what it has done: the host should not wait for our
//! books.

use neap_abi::message::TASK_NONE;
use neap_abi::{CPUS_MAX, Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::{Decide, Policy};

use crate::cpus::CpuSet;
use crate::tasks::{Queue, State, TASKS, Task, Tasks};

/// Tasks at the head of the queue that are asked whether they may run on a CPU. FIFO is global: a task that may not is
/// passed over, and more than a few such in a row means that the enclave was cut wrongly.
const LOOK: u32 = 8;

/// What a CPU does, as far as we have heard: bits, so that one comparison asks all.
type Standing = u8;
/// It is not the enclave's at the moment, or has not been heard of.
const AWAY: Standing = 0;
/// It has nothing to run.
const IDLE: Standing = 1;
/// It runs a task.
const BUSY: Standing = 2;
/// A decision lies in its slot.
const STAGED: Standing = 4;

/// A host CPU, and the decision in its slot if it is STAGED.
#[derive(Clone, Copy, Debug)]
#[repr(align(16))]
struct Cpu {
    staged: u32,
    id: u32,
    standing: Standing,
}

const UNHEARD: Cpu = Cpu { staged: TASK_NONE, id: 0, standing: AWAY };

/// Global FIFO over the enclave's CPUs, for `N` tasks.
#[derive(Debug)]
pub struct Fifo<'m, const N: usize = TASKS> {
    tasks: Tasks<'m, N>,
    queue: Queue,
    cpus: [Cpu; CPUS_MAX as usize],
    count: u16,
    /// CPUs that are idle and have nothing in their slot.
    waiting: CpuSet,
    /// CPUs that are busy and have nothing in their slot.
    hungry: CpuSet,
    /// Tasks in the queue above which one is prestaged: as many as there are CPUs of the enclave by its last resync, so
    /// that a task bound to one CPU early does not leave another idle.
    depth: u32,
}

/// A task that an event brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It goes to the end of the queue.
    Back,
    /// It was first when it was chosen, and still is.
    Front,
}

impl<'m, const N: usize> Fifo<'m, N> {
    /// FIFO for `cpus` host CPUs (at most [`CPUS_MAX`]). Its first message is a resync's first, which clears `memory`; only
    /// where that is fresh may another come before.
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task; N]) -> Self {
        let count = cpus.min(CPUS_MAX);
        Self {
            tasks: Tasks::new(memory),
            queue: Queue::default(),
            cpus: [UNHEARD; CPUS_MAX as usize],
            count,
            waiting: CpuSet::default(),
            hungry: CpuSet::default(),
            depth: u32::from(count),
        }
    }

    /// Tasks in the run queue.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.queue.len()
    }

    /// A CPU's entry. The libOS lets no number through that is not below [`CPUS_MAX`].
    #[inline(always)]
    fn cpu(&mut self, cpu: u16) -> &mut Cpu {
        &mut self.cpus[usize::from(cpu as u8)]
    }

    /// Puts a CPU into the set where it belongs.
    #[inline(always)]
    fn settle(&mut self, number: u16) {
        let standing = self.cpu(number).standing;
        self.waiting.set(number, standing == IDLE);
        self.hungry.set(number, standing == BUSY);
    }

    /// Publishes a decision for `cpu` and rings it unless it is ahead of time; then notes it.
    #[inline(always)]
    fn stage(&mut self, cpu: u16, task: u32, stamp: u32, flags: TxnFlags, decide: &mut impl Decide) -> bool {
        let txn = Txn { flags, ..decide.txn_create(cpu, task, stamp) };
        let Ok(id) = decide.txns_commit(&[txn]) else {
            // A CPU that takes no more lines is left alone until it is heard of.
            self.cpu(cpu).standing = AWAY;
            self.settle(cpu);
            return false;
        };
        let entry = self.cpu(cpu);
        (entry.staged, entry.id) = (task, id);
        entry.standing |= STAGED;
        self.waiting.remove(cpu);
        self.hungry.remove(cpu);
        self.tasks.entry(task).cpu = cpu;
        true
    }

    /// Stages the first task in the queue that may run on `cpu`.
    #[inline(always)]
    fn stage_first(&mut self, cpu: u16, flags: TxnFlags, decide: &mut impl Decide) -> bool {
        let Some((task, stamp)) = self.queue.first_for::<LOOK, N>(&mut self.tasks, cpu) else { return false };
        if self.stage(cpu, task, stamp, flags, decide) {
            self.queue.remove(&mut self.tasks, task, State::Placed);
        }
        true
    }

    /// A decision ahead of time, if the queue is deep enough and a CPU that runs has an empty slot: `cpu` if it can be.
    #[inline(always)]
    fn prestage(&mut self, cpu: u16, decide: &mut impl Decide) {
        if self.queue.len() <= self.depth {
            return;
        }
        let ahead = if self.cpu(cpu).standing == BUSY { Some(cpu) } else { self.hungry.first() };
        if let Some(ahead) = ahead {
            self.stage_first(ahead, TxnFlags::PRESTAGED, decide);
        }
    }

    /// The lowest CPU that waits and on which a task with this affinity may run.
    #[inline(always)]
    fn waiting_for(&self, first_cpu: u16, cpu_count: u16) -> Option<u16> {
        if cpu_count == 0 {
            return self.waiting.first();
        }
        self.waiting_in(first_cpu, cpu_count)
    }

    #[cold]
    fn waiting_in(&self, first_cpu: u16, cpu_count: u16) -> Option<u16> {
        self.waiting.and(&CpuSet::range(first_cpu, cpu_count)).first()
    }

    /// A task that can run has come. One decision at most.
    ///
    /// Before each message, no task in the queue could run on a CPU that waits. So only the CPU that reports and the task
    /// that it reports can meet, with each other or with one that waited for them.
    #[inline(always)]
    fn arrives(&mut self, message: &Message, place: Place, decide: &mut impl Decide) {
        let task = message.task;
        if !Tasks::<N>::holds(task) {
            return;
        }
        let waits = self.cpu(message.cpu).standing == IDLE;
        if waits && place == Place::Back && self.stage_first(message.cpu, TxnFlags(0), decide) {
            return self.queues(message);
        }
        let here = waits && Task::affinity_allows(message.first_cpu, message.cpu_count, message.cpu);
        let cpu =
            if here { Some(message.cpu) } else { self.waiting_for(message.first_cpu, message.cpu_count) };
        if let Some(cpu) = cpu
            && self.stage(cpu, task, message.stamp, TxnFlags(0), decide)
        {
            return self.leaves(message, State::Placed);
        }
        self.hear_of(message);
        match place {
            Place::Back => self.queue.push_back(&mut self.tasks, task),
            Place::Front => self.queue.push_front(&mut self.tasks, task),
        }
        self.prestage(message.cpu, decide);
    }

    /// A task that can run waits its turn.
    #[inline(always)]
    fn queues(&mut self, message: &Message) {
        if Tasks::<N>::holds(message.task) {
            self.hear_of(message);
            self.queue.push_back(&mut self.tasks, message.task);
        }
    }

    /// A CPU may need a task, now or soon. One decision at most.
    #[inline(always)]
    fn serves(&mut self, cpu: u16, decide: &mut impl Decide) {
        if self.cpu(cpu).standing != IDLE || !self.stage_first(cpu, TxnFlags(0), decide) {
            self.prestage(cpu, decide);
        }
    }

    /// A queued task may have come to fit a CPU that waits.
    #[cold]
    fn fits_again(&mut self, task: u32, decide: &mut impl Decide) {
        if !Tasks::<N>::holds(task) {
            return;
        }
        let entry = *self.tasks.entry(task);
        if entry.state == State::Queued
            && let Some(cpu) = self.waiting_for(entry.first_cpu, entry.cpu_count)
            && self.stage(cpu, task, entry.stamp, TxnFlags(0), decide)
        {
            self.queue.remove(&mut self.tasks, task, State::Placed);
        }
    }

    /// Takes note of the verdict on what `cpu` took from its slot. Returns the task that is queued again by it.
    #[inline(always)]
    fn verdict(&mut self, cpu: u16, txn: u32, outcome: Outcome, decide: &mut impl Decide) -> u32 {
        let entry = self.cpu(cpu);
        if entry.standing & STAGED == 0 || entry.id != txn {
            return TASK_NONE;
        }
        if outcome == Outcome::Committed {
            entry.standing = BUSY;
            return TASK_NONE;
        }
        entry.standing &= !STAGED;
        let task = entry.staged;
        self.refused(cpu, task, outcome, decide)
    }

    /// A refused task keeps its place at the head, unless the refusal says that it has none. Returns it if it does.
    #[cold]
    fn refused(&mut self, cpu: u16, task: u32, outcome: Outcome, decide: &mut impl Decide) -> u32 {
        let entry = self.tasks.entry(task);
        if entry.state != State::Placed || entry.cpu != cpu {
            // It has moved on since: another event has told what it does now.
            return TASK_NONE;
        }
        match outcome {
            Outcome::TaskGone | Outcome::InvalidTask | Outcome::NotPermitted => entry.state = State::Absent,
            Outcome::TaskNotRunnable => entry.state = State::Blocked,
            Outcome::TaskOnCpu => {}
            _ if outcome.task_remains() => {
                self.queue.push_front(&mut self.tasks, task);
                return task;
            }
            // The txn itself was wrong: what we hold is not what the host holds.
            _ => {
                entry.state = State::Blocked;
                decide.resync();
            }
        }
        TASK_NONE
    }

    /// Forgets all; slots are voided so that nothing decided on the old state is taken later.
    #[cold]
    fn begin_resync(&mut self, decide: &mut impl Decide) {
        self.tasks.clear();
        self.queue = Queue::default();
        self.waiting.clear();
        self.hungry.clear();
        for (number, cpu) in (0..self.count).zip(&mut self.cpus) {
            if cpu.standing & STAGED != 0 {
                let withdrawal = Txn { flags: TxnFlags::PRESTAGED, ..Txn::withdraw(number) };
                // A slot that takes no more lines is one whose CPU is gone: it is open again once heard of.
                let _ = decide.txns_commit(&[withdrawal]);
            }
            *cpu = UNHEARD;
        }
    }

    /// Every CPU that waits gets a decision, as far as tasks go.
    #[cold]
    fn end_resync(&mut self, decide: &mut impl Decide) {
        let ours = self.cpus.iter().filter(|cpu| cpu.standing != AWAY).count();
        self.depth = ours as u32;
        for cpu in 0..self.count {
            self.serves(cpu, decide);
            self.settle(cpu);
        }
    }

    /// The task's entry, with the stamp and CPUs that the message gives.
    #[inline(always)]
    fn hear_of(&mut self, message: &Message) -> &mut Task {
        let entry = self.tasks.entry(message.task);
        entry.stamp = message.stamp;
        entry.first_cpu = message.first_cpu;
        entry.cpu_count = message.cpu_count;
        entry
    }

    /// A task leaves the queue, if it was there, for `state`.
    #[inline(always)]
    fn leaves(&mut self, message: &Message, state: State) {
        if !Tasks::<N>::holds(message.task) {
            return;
        }
        let entry = self.hear_of(message);
        if entry.state == State::Queued {
            self.unqueue(message.task, state);
        } else {
            entry.state = state;
        }
    }

    /// A task stops, for `state`, and its CPU needs another.
    #[inline(always)]
    fn goes(&mut self, message: &Message, state: State, decide: &mut impl Decide) {
        // One that ran is not in the queue, so its CPU comes first. One that waited may be the queue's next.
        let ran = message.flags.has(TaskFlags::WAS_ON_CPU);
        if !ran {
            self.leaves(message, state);
        }
        self.serves(message.cpu, decide);
        if ran {
            self.leaves(message, state);
        }
    }

    #[cold]
    fn unqueue(&mut self, task: u32, state: State) {
        self.queue.remove(&mut self.tasks, task, state);
    }

    /// A CPU of a resync that runs `task`, or one that came back with none.
    // Scalars, not the message: a message that a function of its own may look at must lie in memory, for every message.
    #[cold]
    fn returns(&mut self, cpu: u16, task: u32) {
        if task != TASK_NONE {
            let entry = self.cpu(cpu);
            entry.standing = (entry.standing & STAGED) | BUSY;
        }
        if Tasks::<N>::holds(task) {
            let entry = self.tasks.entry(task);
            (entry.state, entry.cpu) = (State::Placed, cpu);
        }
    }
}

impl<const N: usize> Policy for Fifo<'_, N> {
    #[inline(always)]
    fn message(&mut self, message: &Message, decide: &mut impl Decide) {
        let cpu = message.cpu;
        let again = match message.outcome {
            Outcome::None => TASK_NONE,
            outcome => self.verdict(cpu, message.txn, outcome, decide),
        };
        if message.flags.has(TaskFlags::CPU_IDLE) {
            let entry = self.cpu(cpu);
            entry.standing = (entry.standing & STAGED) | IDLE;
            if entry.standing & STAGED != 0 {
                // The host looked before our line landed: it sleeps over a decision.
                decide.nudge(cpu);
            }
        }
        match message.kind {
            MessageKind::TaskNew | MessageKind::TaskWakeup => {
                if message.flags.0 & (TaskFlags::RUNNABLE.0 | TaskFlags::ON_CPU.0) == TaskFlags::RUNNABLE.0 {
                    self.arrives(message, Place::Back, decide);
                } else {
                    let running = message.flags.has(TaskFlags::ON_CPU);
                    self.leaves(message, if running { State::Placed } else { State::Blocked });
                }
            }
            MessageKind::TaskYield => self.arrives(message, Place::Back, decide),
            MessageKind::TaskPreempt | MessageKind::TaskLatchFailure => {
                self.arrives(message, Place::Front, decide);
            }
            MessageKind::TaskBlocked => self.goes(message, State::Blocked, decide),
            MessageKind::TaskDead | MessageKind::TaskDeparted => self.goes(message, State::Absent, decide),
            MessageKind::TaskSwitchto | MessageKind::TaskOnCpu => self.leaves(message, State::Placed),
            MessageKind::TaskAffinityChanged | MessageKind::TaskPriorityChanged => {
                if Tasks::<N>::holds(message.task) {
                    self.hear_of(message);
                }
                self.fits_again(message.task, decide);
            }
            MessageKind::CpuBusy => self.cpu(cpu).standing &= STAGED,
            MessageKind::CpuAvailable => self.serves(cpu, decide),
            // Nothing is decided before the state is whole.
            MessageKind::ResyncTask => self.queues(message),
            MessageKind::ResyncCpu => {
                self.returns(cpu, message.task);
                return;
            }
            MessageKind::ResyncBegin => self.begin_resync(decide),
            MessageKind::ResyncEnd => self.end_resync(decide),
            MessageKind::Nop
            | MessageKind::CpuTick
            | MessageKind::CpuTimerExpired
            | MessageKind::CpuNotIdle
            | MessageKind::CpuAgentBlocked
            | MessageKind::CpuAgentWakeup
            | MessageKind::TxnOutcome => self.serves(cpu, decide),
        }
        self.settle(cpu);
        if again != TASK_NONE {
            // A task came back to the queue beside what the message itself brought: both may fit a CPU that waits.
            self.fits_again(again, decide);
            self.fits_again(message.task, decide);
        }
    }
}

#[cfg(test)]
mod tests;
