//! The host's mechanism: what is true of tasks and CPUs, and what a txn does to it.
//!
//! A txn is committed if the stamps it names still hold, else refused with a reason and nothing is changed. The reasons
//! are asked in the order in which they are listed in [`Mechanism::commit`]: from what is wrong with the txn itself, by
//! what it names, to what has changed since.

use std::collections::BTreeMap;

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags, Version};

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// No task has this number.
    Free,
    /// May run, and waits for a CPU.
    Runnable,
    /// Runs on a CPU.
    OnCpu(u16),
    /// Waits for something else.
    Blocked,
}

/// A task, as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Where it stands.
    pub state: TaskState,
    /// Moves at every change.
    pub stamp: u32,
    /// First CPU that it may use.
    pub first_cpu: u16,
    /// CPUs from there on; 0 for all.
    pub cpu_count: u16,
    /// Whether it is this enclave's agent's to schedule.
    pub permitted: bool,
    /// When it last became runnable, in the order in which the agent is told; counts up.
    pub arrival: u64,
}

/// A CPU, as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Moves at every change.
    pub stamp: u32,
    /// Whether the machine has it running.
    pub online: bool,
    /// Whether no higher scheduling class holds it.
    pub available: bool,
    /// The task that runs there, or [`TASK_NONE`].
    pub task: u32,
    /// The last txn taken from its slot.
    pub txn: u32,
}

/// What the host does for a committed txn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The CPU.
    pub cpu: u16,
    /// The task that runs there from now on, or [`TASK_NONE`].
    pub task: u32,
    /// The task that ran there until now and is runnable again, or [`TASK_NONE`].
    pub preempted: u32,
    /// How long the task may run, in ns; 0 for as long as it likes.
    pub slice_ns: u64,
}

/// The verdict on one txn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The CPU whose slot held it.
    pub cpu: u16,
    /// Its number there.
    pub txn: u32,
    /// The outcome.
    pub outcome: Outcome,
    /// What to do, if it was committed and is not void.
    pub switch: Option<Switch>,
}

/// What standing the agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentStanding {
    /// Its txns count.
    Good,
    /// It broke the protocol: nothing that it staged counts until it is started afresh.
    Poisoned,
    /// It has ended.
    Gone,
}

/// The state of one enclave's tasks and CPUs.
#[derive(Debug)]
pub struct Mechanism {
    tasks: Vec<Task>,
    cpus: Vec<Cpu>,
    groups: BTreeMap<u32, Vec<Txn>>,
    version: Version,
    /// The agent's standing.
    pub agent: AgentStanding,
    arrivals: u64,
}

impl Mechanism {
    /// An enclave of `cpus` idle CPUs, with room for `tasks` tasks, whose agent speaks `version`.
    #[must_use]
    pub fn new(cpus: u16, tasks: u32, version: Version) -> Self {
        let free = Task {
            state: TaskState::Free,
            stamp: 0,
            first_cpu: 0,
            cpu_count: 0,
            permitted: true,
            arrival: 0,
        };
        let cpu = Cpu { stamp: 0, online: true, available: true, task: TASK_NONE, txn: 0 };
        Self {
            tasks: vec![free; tasks as usize],
            cpus: vec![cpu; usize::from(cpus)],
            groups: BTreeMap::new(),
            version,
            agent: AgentStanding::Good,
            arrivals: 0,
        }
    }

    /// A task by its number.
    #[must_use]
    pub fn task(&self, task: u32) -> Option<&Task> {
        self.tasks.get(task as usize)
    }

    /// A CPU by its number.
    #[must_use]
    pub fn cpu(&self, cpu: u16) -> Option<&Cpu> {
        self.cpus.get(usize::from(cpu))
    }

    /// CPUs in the enclave.
    #[must_use]
    pub fn cpus(&self) -> u16 {
        self.cpus.len() as u16
    }

    /// Task numbers with a task behind them, with the task.
    pub fn live_tasks(&self) -> impl Iterator<Item = (u32, &Task)> {
        (0..).zip(&self.tasks).filter(|(_, task)| task.state != TaskState::Free)
    }

    /// Gives a task number a task that may run on `cpu_count` CPUs from `first_cpu` on (0: all). False if it has one.
    pub fn create(&mut self, task: u32, first_cpu: u16, cpu_count: u16) -> bool {
        let arrival = self.next_arrival();
        match self.tasks.get_mut(task as usize) {
            Some(entry) if entry.state == TaskState::Free => {
                entry.state = TaskState::Runnable;
                entry.stamp = entry.stamp.wrapping_add(1);
                (entry.first_cpu, entry.cpu_count) = (first_cpu, cpu_count);
                entry.permitted = true;
                entry.arrival = arrival;
                true
            }
            _ => false,
        }
    }

    /// Moves a task to another state, with its stamp and, if it leaves one, its CPU's.
    pub fn change(&mut self, task: u32, state: TaskState) {
        let arrival = self.next_arrival();
        let Some(entry) = self.tasks.get_mut(task as usize) else { return };
        if let TaskState::OnCpu(cpu) = entry.state
            && let Some(cpu) = self.cpus.get_mut(usize::from(cpu))
        {
            cpu.task = TASK_NONE;
            cpu.stamp = cpu.stamp.wrapping_add(1);
        }
        entry.state = state;
        entry.stamp = entry.stamp.wrapping_add(1);
        if state == TaskState::Runnable {
            entry.arrival = arrival;
        }
    }

    /// Changes the CPUs that a task may use.
    pub fn set_affinity(&mut self, task: u32, first_cpu: u16, cpu_count: u16) {
        if let Some(entry) = self.tasks.get_mut(task as usize) {
            (entry.first_cpu, entry.cpu_count) = (first_cpu, cpu_count);
            entry.stamp = entry.stamp.wrapping_add(1);
        }
    }

    /// Takes a task from the agent's hands, or gives it back.
    pub fn set_permitted(&mut self, task: u32, permitted: bool) {
        if let Some(entry) = self.tasks.get_mut(task as usize) {
            entry.permitted = permitted;
        }
    }

    /// Says whether a CPU is online and available.
    pub fn set_cpu(&mut self, cpu: u16, online: bool, available: bool) {
        if let Some(cpu) = self.cpus.get_mut(usize::from(cpu)) {
            (cpu.online, cpu.available) = (online, available);
            cpu.stamp = cpu.stamp.wrapping_add(1);
        }
    }

    fn next_arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Decides on a txn taken from the slot of `cpu`. A member of a group gives no verdict until the group is complete;
    /// then come the verdicts on all, this one's among them.
    pub fn commit(&mut self, cpu: u16, txn: &Txn) -> Vec<Verdict> {
        // A CPU speaks for one txn at a time: what it had given to an incomplete group is void now.
        let mut verdicts = self.break_groups_of(cpu);
        if txn.flags.has(TxnFlags::GROUP) && txn.operation != Operation::Withdraw as u8 {
            verdicts.extend(self.join(cpu, txn));
        } else {
            let outcome = self.judge(cpu, txn);
            verdicts.push(self.enforce(cpu, txn, outcome));
        }
        for verdict in &verdicts {
            if let Some(cpu) = self.cpus.get_mut(usize::from(verdict.cpu)) {
                cpu.txn = verdict.txn;
            }
        }
        verdicts
    }

    /// Voids the txns that wait for their groups, e.g. because the agent has ended.
    pub fn break_groups(&mut self) -> Vec<Verdict> {
        let groups = std::mem::take(&mut self.groups);
        groups.into_values().flatten().map(|txn| refusal(txn.cpu, &txn, Outcome::GroupFailed)).collect()
    }

    fn break_groups_of(&mut self, cpu: u16) -> Vec<Verdict> {
        let broken: Vec<u32> = self
            .groups
            .iter()
            .filter(|(_, members)| members.iter().any(|m| m.cpu == cpu))
            .map(|(&g, _)| g)
            .collect();
        let members = broken.iter().filter_map(|group| self.groups.remove(group)).flatten();
        members.map(|txn| refusal(txn.cpu, &txn, Outcome::GroupFailed)).collect()
    }

    /// Puts a txn with the others of its group; the verdicts, when it is complete or cannot be.
    fn join(&mut self, cpu: u16, txn: &Txn) -> Vec<Verdict> {
        let members = self.groups.get(&txn.group).map_or(&[][..], Vec::as_slice);
        let shape = txn.cpu == cpu
            && (1..=self.cpus.len()).contains(&usize::from(txn.group_size))
            && members.iter().all(|member| member.group_size == txn.group_size && member.task != txn.task);
        if !shape {
            let mut verdicts = vec![refusal(cpu, txn, Outcome::InvalidGroup)];
            let others = self.groups.remove(&txn.group).unwrap_or_default();
            verdicts.extend(others.iter().map(|member| refusal(member.cpu, member, Outcome::GroupFailed)));
            return verdicts;
        }
        let members = self.groups.entry(txn.group).or_default();
        members.push(*txn);
        if members.len() < usize::from(txn.group_size) {
            return Vec::new();
        }
        let members = self.groups.remove(&txn.group).unwrap_or_default();
        let outcomes: Vec<Outcome> = members.iter().map(|member| self.judge(member.cpu, member)).collect();
        let all = outcomes.iter().all(|&outcome| outcome == Outcome::Committed);
        let verdict = |(member, outcome): (&Txn, Outcome)| {
            let outcome = if !all && outcome == Outcome::Committed { Outcome::GroupFailed } else { outcome };
            self.enforce(member.cpu, member, outcome)
        };
        members.iter().zip(outcomes).map(verdict).collect()
    }

    /// The outcome that a txn would have now. Changes nothing.
    fn judge(&self, slot: u16, txn: &Txn) -> Outcome {
        match self.agent {
            AgentStanding::Good => {}
            AgentStanding::Poisoned => return Outcome::Poisoned,
            AgentStanding::Gone => return Outcome::NoAgent,
        }
        if self.version.minor == 0 && txn.order != 0 {
            return Outcome::UnsupportedVersion;
        }
        let operation = match Operation::from_bits(txn.operation) {
            None => return Outcome::UnknownOperation,
            Some(Operation::Withdraw) => return Outcome::Withdrawn,
            Some(operation) => operation,
        };
        if !txn.flags.valid() {
            return Outcome::InvalidFlags;
        }
        let Some(cpu) = self.cpus.get(usize::from(txn.cpu)).filter(|_| txn.cpu == slot) else {
            return Outcome::InvalidCpu;
        };
        if !cpu.online {
            return Outcome::CpuOffline;
        }
        if !cpu.available {
            return Outcome::CpuUnavailable;
        }
        if txn.flags.has(TxnFlags::CHECK_CPU) && txn.cpu_stamp != cpu.stamp {
            return Outcome::CpuStale;
        }
        if operation == Operation::Idle {
            return Outcome::Committed;
        }
        if cpu.task != TASK_NONE && cpu.task != txn.task && !txn.flags.has(TxnFlags::PREEMPT) {
            return Outcome::CpuUnavailable;
        }
        let Some(task) = self.tasks.get(txn.task as usize) else { return Outcome::InvalidTask };
        if task.state == TaskState::Free {
            return Outcome::TaskGone;
        }
        if !task.permitted {
            return Outcome::NotPermitted;
        }
        if task.state == TaskState::OnCpu(slot) && txn.flags.has(TxnFlags::ALLOW_ON_CPU) {
            return Outcome::Committed;
        }
        if task.stamp != txn.stamp {
            return Outcome::TaskStale;
        }
        match task.state {
            TaskState::OnCpu(_) => return Outcome::TaskOnCpu,
            TaskState::Blocked => return Outcome::TaskNotRunnable,
            TaskState::Free | TaskState::Runnable => {}
        }
        if task.cpu_count != 0 && slot.wrapping_sub(task.first_cpu) >= task.cpu_count {
            return Outcome::Affinity;
        }
        Outcome::Committed
    }

    /// Carries a committed txn out.
    fn enforce(&mut self, slot: u16, txn: &Txn, outcome: Outcome) -> Verdict {
        if outcome != Outcome::Committed {
            return refusal(slot, txn, outcome);
        }
        let idle = txn.operation == Operation::Idle as u8;
        let task = if idle { TASK_NONE } else { txn.task };
        let before = self.cpus.get(usize::from(slot)).map_or(TASK_NONE, |cpu| cpu.task);
        let preempted = if before == task { TASK_NONE } else { before };
        if before != task {
            if before != TASK_NONE {
                self.change(before, TaskState::Runnable);
            }
            if !idle {
                self.change(task, TaskState::OnCpu(slot));
            }
            if let Some(cpu) = self.cpus.get_mut(usize::from(slot)) {
                cpu.task = task;
                cpu.stamp = cpu.stamp.wrapping_add(1);
            }
        }
        let switch = Switch { cpu: slot, task, preempted, slice_ns: txn.slice_ns };
        Verdict { cpu: slot, txn: txn.id, outcome, switch: Some(switch) }
    }

    /// The line that reports an event of `task` on `cpu`, with the stamps and affinity as they are.
    #[must_use]
    pub fn message(&self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Message {
        let mut message = Message { flags, ..Message::new(kind, cpu) };
        if let Some(entry) = self.tasks.get(task as usize) {
            message.task = task;
            message.stamp = entry.stamp;
            (message.first_cpu, message.cpu_count) = (entry.first_cpu, entry.cpu_count);
        }
        if let Some(cpu) = self.cpus.get(usize::from(cpu)) {
            message.cpu_stamp = cpu.stamp;
            message.txn = cpu.txn;
        }
        message
    }

    /// The whole state as lines: runnable tasks in the order of their arrival, then each CPU.
    #[must_use]
    pub fn resync(&self) -> Vec<Message> {
        let mut waiting: Vec<(u64, u32)> = self
            .live_tasks()
            .filter(|(_, task)| task.state == TaskState::Runnable)
            .map(|(number, task)| (task.arrival, number))
            .collect();
        waiting.sort_unstable();
        let mut begin = Message::new(MessageKind::ResyncBegin, 0);
        begin.argument = waiting.len() as u64;
        let mut lines = vec![begin];
        for (_, task) in waiting {
            lines.push(self.message(MessageKind::ResyncTask, 0, task, TaskFlags::RUNNABLE));
        }
        for (number, cpu) in (0u16..).zip(&self.cpus) {
            if !cpu.online || !cpu.available {
                lines.push(self.message(MessageKind::CpuBusy, number, TASK_NONE, TaskFlags(0)));
                continue;
            }
            let flags = if cpu.task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
            lines.push(self.message(MessageKind::ResyncCpu, number, cpu.task, flags));
        }
        lines.push(Message::new(MessageKind::ResyncEnd, 0));
        lines
    }
}

fn refusal(cpu: u16, txn: &Txn, outcome: Outcome) -> Verdict {
    Verdict { cpu, txn: txn.id, outcome, switch: None }
}

#[cfg(test)]
mod tests;
