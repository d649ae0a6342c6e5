//! FIFO, run to completion (paper section 7.2), with one decision prestaged per host CPU where the run queue is deep
//! enough (section 5.1).

use heapless::Vec;
use neap_abi::message::TASK_NONE;
use neap_abi::{CPUS_MAX, Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::{Decide, Policy};

use crate::cpus::CpuSet;
use crate::tasks::{Queue, State, Task, Tasks};

/// Tasks at the head of the queue that are asked whether they may run on a CPU. FIFO is global: a task that may not is
/// passed over, and more than a few such in a row means that the enclave was cut wrongly.
const LOOK: u32 = 8;

/// What waits in a CPU's slot.
#[derive(Clone, Copy, Debug)]
struct Staged {
    task: u32,
    id: u32,
}

const NOTHING: Staged = Staged { task: TASK_NONE, id: 0 };

/// Global FIFO over the enclave's CPUs.
#[derive(Debug)]
pub struct Fifo<'m> {
    tasks: Tasks<'m>,
    queue: Queue,
    staged: Vec<Staged, { CPUS_MAX as usize }>,
    /// CPUs with nothing to run.
    idle: CpuSet,
    /// CPUs whose slot is empty, as far as we have heard, and that take decisions.
    open: CpuSet,
    /// Tasks in the queue above which one is prestaged: as many as there are CPUs, so that a task bound to one CPU
    /// early does not leave another idle.
    depth: u32,
    resyncing: bool,
}

impl<'m> Fifo<'m> {
    /// FIFO for `cpus` host CPUs (at most [`CPUS_MAX`]) and as many tasks as `memory` holds. It decides nothing before
    /// the host has sent its state: an attachment starts with a resync.
    #[must_use]
    pub fn new(cpus: u16, memory: &'m mut [Task]) -> Self {
        let cpus = cpus.min(CPUS_MAX);
        let mut staged = Vec::new();
        // At most CPUS_MAX, which is its capacity.
        let _ = staged.resize(usize::from(cpus), NOTHING);
        Self {
            tasks: Tasks::new(memory),
            queue: Queue::default(),
            staged,
            idle: CpuSet::default(),
            open: CpuSet::default(),
            depth: u32::from(cpus),
            resyncing: true,
        }
    }

    /// Tasks in the run queue.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.queue.len()
    }

    /// Takes note of the verdict on what `cpu` took from its slot. Returns the task that is queued again by it.
    #[inline(always)]
    fn verdict(&mut self, message: &Message, decide: &mut impl Decide) -> u32 {
        let Some(staged) = self.staged.get_mut(usize::from(message.cpu)) else { return TASK_NONE };
        if staged.id != message.txn || staged.task == TASK_NONE {
            return TASK_NONE;
        }
        let task = staged.task;
        *staged = NOTHING;
        self.open.insert(message.cpu);
        let Some(entry) = self.tasks.get(task) else { return TASK_NONE };
        if message.outcome == Outcome::Committed {
            self.idle.remove(message.cpu);
            if entry.state == State::Staged && entry.cpu == message.cpu {
                entry.state = State::Running;
            }
            return TASK_NONE;
        }
        if entry.state == State::Staged && entry.cpu == message.cpu {
            return self.refused(task, message.outcome, decide);
        }
        TASK_NONE
    }

    /// A refused task keeps its place at the head, unless the refusal says that it has none. Returns it if it does.
    #[cold]
    fn refused(&mut self, task: u32, outcome: Outcome, decide: &mut impl Decide) -> u32 {
        let Some(entry) = self.tasks.get(task) else { return TASK_NONE };
        match outcome {
            Outcome::TaskGone | Outcome::InvalidTask | Outcome::NotPermitted => entry.state = State::Absent,
            Outcome::TaskNotRunnable => entry.state = State::Blocked,
            Outcome::TaskOnCpu => entry.state = State::Running,
            _ if outcome.task_remains() => {
                entry.state = State::Blocked;
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

    /// Stages `task`, as seen at `stamp`, for `cpu`; rings it unless the decision is ahead of time.
    #[inline(always)]
    fn stage(&mut self, cpu: u16, task: u32, stamp: u32, flags: TxnFlags, decide: &mut impl Decide) {
        self.open.remove(cpu);
        let txn = Txn { flags, ..decide.txn_create(cpu, task, stamp) };
        // A CPU that takes no more lines stays closed until it is heard of.
        let Ok(id) = decide.txns_commit(&[txn]) else { return };
        self.queue.remove(&mut self.tasks, task, State::Staged);
        if let Some(entry) = self.tasks.get(task) {
            entry.cpu = cpu;
        }
        if let Some(staged) = self.staged.get_mut(usize::from(cpu)) {
            *staged = Staged { task, id };
        }
    }

    /// The lowest CPU that waits and on which `task` may run, with the task's stamp.
    #[inline(always)]
    fn idle_for(&mut self, task: u32) -> Option<(u16, u32)> {
        let entry = self.tasks.get(task).filter(|entry| entry.state == State::Queued)?;
        let cpu = if entry.cpu_count == 0 {
            self.idle.first_of(&self.open)?
        } else {
            let range = CpuSet::range(entry.first_cpu, entry.cpu_count);
            self.idle.and(&self.open).first_of(&range)?
        };
        Some((cpu, entry.stamp))
    }

    /// One decision at most: for the CPU that waits, for the task that came, or else one ahead of time.
    ///
    /// Before each message, no task in the queue could run on a CPU that waits; so only the CPU and the task that the
    /// message speaks of can meet.
    #[inline(always)]
    fn dispatch(&mut self, cpu: u16, arrived: u32, decide: &mut impl Decide) {
        if self.queue.is_empty() {
            return;
        }
        let open = self.open.has(cpu);
        if open
            && self.idle.has(cpu)
            && let Some((task, stamp)) = self.queue.first_for::<LOOK>(&mut self.tasks, cpu)
        {
            return self.stage(cpu, task, stamp, TxnFlags(0), decide);
        }
        if arrived != TASK_NONE
            && let Some((idle, stamp)) = self.idle_for(arrived)
        {
            return self.stage(idle, arrived, stamp, TxnFlags(0), decide);
        }
        if self.queue.len() > self.depth
            && let Some(ahead) = if open { Some(cpu) } else { self.open.first() }
            && let Some((task, stamp)) = self.queue.first_for::<LOOK>(&mut self.tasks, ahead)
        {
            self.stage(ahead, task, stamp, TxnFlags::PRESTAGED, decide);
        }
    }

    /// Forgets all; slots are voided so that nothing decided on the old state is taken later.
    #[cold]
    fn begin_resync(&mut self, decide: &mut impl Decide) {
        self.resyncing = true;
        self.tasks.clear();
        self.queue = Queue::default();
        self.idle.clear();
        self.open.clear();
        for (cpu, staged) in (0u16..).zip(&mut self.staged) {
            if staged.task != TASK_NONE {
                *staged = NOTHING;
                let withdrawal = Txn { flags: TxnFlags::PRESTAGED, ..Txn::withdraw(cpu) };
                // A slot that takes no more lines is one whose CPU is gone: it is open again once heard of.
                let _ = decide.txns_commit(&[withdrawal]);
            }
        }
    }

    /// Every CPU that waits gets a decision, as far as tasks go.
    #[cold]
    fn end_resync(&mut self, decide: &mut impl Decide) {
        self.resyncing = false;
        for cpu in 0..self.staged.len() as u16 {
            self.dispatch(cpu, TASK_NONE, decide);
        }
    }

    /// The task's entry with the stamp and CPUs that the message gives.
    #[inline(always)]
    fn heard_of(&mut self, message: &Message) -> Option<&mut Task> {
        let entry = self.tasks.get(message.task)?;
        entry.stamp = message.stamp;
        entry.first_cpu = message.first_cpu;
        entry.cpu_count = message.cpu_count;
        Some(entry)
    }

    /// A task that can run joins the queue's end.
    #[inline(always)]
    fn runnable(&mut self, message: &Message) {
        if self.heard_of(message).is_some() {
            self.queue.push_back(&mut self.tasks, message.task);
        }
    }

    /// A task leaves the queue, if it was there, for `state`.
    #[inline(always)]
    fn leaves(&mut self, message: &Message, state: State) {
        let Some(entry) = self.heard_of(message) else { return };
        if entry.state == State::Queued {
            self.queue.remove(&mut self.tasks, message.task, state);
        } else {
            entry.state = state;
        }
    }

    /// A CPU of a resync that runs `task`, or one that came back with none.
    // Scalars, not the message: a message that a function of its own may look at must lie in memory, for every message.
    #[cold]
    fn cpu_returns(&mut self, cpu: u16, task: u32) {
        if let Some(staged) = self.staged.get(usize::from(cpu))
            && staged.task == TASK_NONE
        {
            self.open.insert(cpu);
        }
        if let Some(entry) = self.tasks.get(task) {
            entry.state = State::Running;
            entry.cpu = cpu;
        }
    }
}

impl Policy for Fifo<'_> {
    #[inline(always)]
    fn message(&mut self, message: &Message, decide: &mut impl Decide) {
        let again = if message.outcome == Outcome::None { TASK_NONE } else { self.verdict(message, decide) };
        let mut arrived = TASK_NONE;
        match message.kind {
            MessageKind::TaskNew | MessageKind::TaskWakeup | MessageKind::ResyncTask => {
                if message.flags.has(TaskFlags::RUNNABLE) && !message.flags.has(TaskFlags::ON_CPU) {
                    self.runnable(message);
                    arrived = message.task;
                } else {
                    let running = message.flags.has(TaskFlags::ON_CPU);
                    self.leaves(message, if running { State::Running } else { State::Blocked });
                }
            }
            MessageKind::TaskYield => {
                self.runnable(message);
                arrived = message.task;
            }
            MessageKind::TaskBlocked => self.leaves(message, State::Blocked),
            MessageKind::TaskDead | MessageKind::TaskDeparted => self.leaves(message, State::Absent),
            // It was first when it was chosen, and still is.
            MessageKind::TaskPreempt | MessageKind::TaskLatchFailure => {
                if self.heard_of(message).is_some() {
                    self.queue.push_front(&mut self.tasks, message.task);
                    arrived = message.task;
                }
            }
            MessageKind::TaskSwitchto | MessageKind::TaskOnCpu => self.leaves(message, State::Running),
            MessageKind::TaskAffinityChanged | MessageKind::TaskPriorityChanged => {
                let _ = self.heard_of(message);
                arrived = message.task;
            }
            MessageKind::CpuBusy => {
                self.idle.remove(message.cpu);
                self.open.remove(message.cpu);
                return;
            }
            MessageKind::CpuAvailable => self.cpu_returns(message.cpu, TASK_NONE),
            MessageKind::ResyncCpu => self.cpu_returns(message.cpu, message.task),
            MessageKind::ResyncBegin => return self.begin_resync(decide),
            MessageKind::ResyncEnd => return self.end_resync(decide),
            MessageKind::Nop
            | MessageKind::CpuTick
            | MessageKind::CpuTimerExpired
            | MessageKind::CpuNotIdle
            | MessageKind::CpuAgentBlocked
            | MessageKind::CpuAgentWakeup
            | MessageKind::TxnOutcome => {}
        }
        if message.flags.has(TaskFlags::CPU_IDLE) {
            self.idle.insert(message.cpu);
        }
        if self.resyncing {
            return;
        }
        if message.flags.has(TaskFlags::CPU_IDLE)
            && self.staged.get(usize::from(message.cpu)).is_some_and(|staged| staged.task != TASK_NONE)
        {
            // The host looked before our line landed: it sleeps over a decision.
            return decide.nudge(message.cpu);
        }
        if again != TASK_NONE {
            self.dispatch(message.cpu, again, decide);
        }
        self.dispatch(message.cpu, arrived, decide);
    }
}

#[cfg(test)]
mod tests;
