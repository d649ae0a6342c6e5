//! The host's mechanism: what is true of an enclave's tasks and CPUs, and what a txn does to it.
//!
//! Numbers of tasks and CPUs are the host's, over all enclaves: [`Owners`] says whose each is. A txn is committed if the stamps it names still hold, else refused with a reason and nothing is changed. The reasons
//! are asked in the order in which they are listed in [`Mechanism::commit`]: from what is wrong with the txn itself, by
//! what it names, to what has changed since.

use std::collections::BTreeMap;
use std::sync::Arc;

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags, Version};

use crate::ownership::{Owner, Owners};

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// No task of the enclave has this number.
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
    /// Its service class; 0 for none.
    pub class: u8,
    /// Its group; 0 for none.
    pub group: u32,
}

impl Task {
    /// Whether it may run on `cpu`.
    #[must_use]
    pub const fn may_use(&self, cpu: u16) -> bool {
        self.cpu_count == 0 || cpu.wrapping_sub(self.first_cpu) < self.cpu_count
    }
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

impl Verdict {
    /// As much as it tells of its txn.
    #[must_use]
    pub fn of_member(&self) -> Txn {
        let task = self.switch.map_or(TASK_NONE, |switch| switch.task);
        Txn { id: self.txn, ..Txn::run(self.cpu, task, 0) }
    }
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
    owners: Arc<Owners>,
    enclave: u16,
    tasks: Vec<Task>,
    cpus: Vec<Cpu>,
    /// Runnable tasks by their arrival.
    runnable: BTreeMap<u64, u32>,
    groups: BTreeMap<u32, Vec<Txn>>,
    version: Version,
    /// The agent's standing.
    pub agent: AgentStanding,
    /// The agent whose txns count; none where any agent's do.
    pub incarnation: Option<u32>,
    arrivals: u64,
}

impl Mechanism {
    /// The only enclave of a host, of `cpus` idle CPUs, with room for `tasks` tasks, whose agent speaks `version`.
    #[must_use]
    pub fn new(cpus: u16, tasks: u32, version: Version) -> Self {
        let mut only = Self::sharing(Arc::new(Owners::new(cpus, tasks)), 0, version);
        for cpu in 0..cpus {
            only.adopt_cpu(cpu);
        }
        only
    }

    /// Enclave `enclave` of a host of several, without a CPU yet.
    #[must_use]
    pub fn sharing(owners: Arc<Owners>, enclave: u16, version: Version) -> Self {
        let free = Task {
            state: TaskState::Free,
            stamp: 0,
            first_cpu: 0,
            cpu_count: 0,
            permitted: true,
            arrival: 0,
            class: 0,
            group: 0,
        };
        let cpu = Cpu { stamp: 0, online: true, available: true, task: TASK_NONE, txn: 0 };
        Self {
            tasks: vec![free; owners.tasks() as usize],
            cpus: vec![cpu; usize::from(owners.cpus())],
            owners,
            enclave,
            runnable: BTreeMap::new(),
            groups: BTreeMap::new(),
            version,
            agent: AgentStanding::Good,
            incarnation: None,
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

    /// CPUs of the host.
    #[must_use]
    pub fn cpus(&self) -> u16 {
        self.cpus.len() as u16
    }

    /// Whether a CPU is the enclave's.
    #[must_use]
    pub fn owns_cpu(&self, cpu: u16) -> bool {
        self.owners.cpu(cpu) == Owner::Enclave(self.enclave)
    }

    /// The enclave's CPUs, in order.
    pub fn own_cpus(&self) -> impl Iterator<Item = (u16, &Cpu)> {
        (0..).zip(&self.cpus).filter(|&(cpu, _)| self.owns_cpu(cpu))
    }

    /// Task numbers with a task behind them, with the task.
    pub fn live_tasks(&self) -> impl Iterator<Item = (u32, &Task)> {
        (0..).zip(&self.tasks).filter(|(_, task)| task.state != TaskState::Free)
    }

    /// The runnable task that arrived first of those that may run on `cpu`.
    #[must_use]
    pub fn first_runnable_on(&self, cpu: u16) -> Option<u32> {
        let may_run = |task: &&u32| self.task(**task).is_some_and(|task| task.permitted && task.may_use(cpu));
        self.runnable.values().find(may_run).copied()
    }

    /// Takes in a CPU that is nobody's, idle. False if it is somebody's.
    pub fn adopt_cpu(&mut self, cpu: u16) -> bool {
        if !self.owners.give_cpu(cpu, None, Some(self.enclave)) {
            return false;
        }
        if let Some(entry) = self.cpus.get_mut(usize::from(cpu)) {
            let stamp = entry.stamp.wrapping_add(1);
            *entry = Cpu { stamp, online: true, available: true, task: TASK_NONE, txn: 0 };
        }
        true
    }

    /// Takes what runs on a CPU from it, if anything does: it waits again, in its old place. Returns the task.
    pub fn preempt(&mut self, cpu: u16) -> Option<u32> {
        let task = self.cpus.get(usize::from(cpu))?.task;
        let arrival = self.task(task)?.arrival;
        self.change(task, TaskState::Runnable);
        let entry = self.tasks.get_mut(task as usize)?;
        self.runnable.remove(&entry.arrival);
        entry.arrival = arrival;
        self.runnable.insert(arrival, task);
        Some(task)
    }

    /// Gives up an idle CPU: from now on it is nobody's.
    pub fn release_cpu(&mut self, cpu: u16) {
        if let Some(entry) = self.cpus.get_mut(usize::from(cpu)) {
            entry.stamp = entry.stamp.wrapping_add(1);
        }
        self.owners.give_cpu(cpu, Some(self.enclave), None);
    }

    /// Gives a task number a task that may run on `cpu_count` CPUs from `first_cpu` on (0: all). False if it has one, in
    /// whatever enclave.
    pub fn create(&mut self, task: u32, first_cpu: u16, cpu_count: u16) -> bool {
        if !self.owners.give_task(task, None, Some(self.enclave)) {
            return false;
        }
        let arrival = self.next_arrival();
        if let Some(entry) = self.tasks.get_mut(task as usize) {
            entry.state = TaskState::Runnable;
            entry.stamp = entry.stamp.wrapping_add(1);
            (entry.first_cpu, entry.cpu_count) = (first_cpu, cpu_count);
            entry.permitted = true;
            (entry.class, entry.group) = (0, 0);
            entry.arrival = arrival;
            self.runnable.insert(arrival, task);
        }
        true
    }

    /// Moves a task to another state, with its stamp and, if it leaves one, its CPU's. One that becomes free has its
    /// number no more.
    pub fn change(&mut self, task: u32, state: TaskState) {
        let arrival = self.next_arrival();
        let Some(entry) = self.tasks.get_mut(task as usize) else { return };
        if let TaskState::OnCpu(cpu) = entry.state
            && let Some(cpu) = self.cpus.get_mut(usize::from(cpu))
        {
            cpu.task = TASK_NONE;
            cpu.stamp = cpu.stamp.wrapping_add(1);
        }
        if entry.state == TaskState::Runnable {
            self.runnable.remove(&entry.arrival);
        }
        entry.state = state;
        entry.stamp = entry.stamp.wrapping_add(1);
        match state {
            TaskState::Runnable => {
                entry.arrival = arrival;
                self.runnable.insert(arrival, task);
            }
            TaskState::Free => {
                self.owners.give_task(task, Some(self.enclave), None);
            }
            TaskState::OnCpu(_) | TaskState::Blocked => {}
        }
    }

    /// Changes the CPUs that a task may use.
    pub fn set_affinity(&mut self, task: u32, first_cpu: u16, cpu_count: u16) {
        if let Some(entry) = self.tasks.get_mut(task as usize) {
            (entry.first_cpu, entry.cpu_count) = (first_cpu, cpu_count);
            entry.stamp = entry.stamp.wrapping_add(1);
        }
    }

    /// Says of which class and group a task is, before the agent hears of it.
    pub fn set_class(&mut self, task: u32, class: u8, group: u32) {
        if let Some(entry) = self.tasks.get_mut(task as usize) {
            (entry.class, entry.group) = (class, group);
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
            && (1..=self.own_cpus().count()).contains(&usize::from(txn.group_size))
            && members.iter().all(|member| member.group_size == txn.group_size && member.task != txn.task);
        if !shape {
            let foreign = matches!(self.owners.cpu(txn.cpu), Owner::Nobody | Owner::Enclave(_))
                && !self.owns_cpu(txn.cpu);
            let outcome = if foreign { Outcome::NotPermitted } else { Outcome::InvalidGroup };
            let mut verdicts = vec![refusal(cpu, txn, outcome)];
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

    /// Whether a txn was decided by another agent than the one whose txns count.
    #[must_use]
    pub fn is_of_another_agent(&self, txn: &Txn) -> bool {
        self.version >= Version::AGENTS_COME_AND_GO
            && self.incarnation.is_some_and(|agent| agent != txn.incarnation)
    }

    /// The outcome that a txn would have now. Changes nothing.
    fn judge(&self, slot: u16, txn: &Txn) -> Outcome {
        match self.agent {
            AgentStanding::Good => {}
            AgentStanding::Poisoned => return Outcome::Poisoned,
            AgentStanding::Gone => return Outcome::NoAgent,
        }
        if self.is_of_another_agent(txn) {
            return Outcome::NoAgent;
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
        match self.owners.cpu(txn.cpu) {
            Owner::Enclave(owner) if owner == self.enclave => {}
            Owner::Enclave(_) | Owner::Nobody => return Outcome::NotPermitted,
            Owner::Absent => return Outcome::InvalidCpu,
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
            // Its number may be that of another enclave's task by now.
            let taken = matches!(self.owners.task(txn.task), Owner::Enclave(owner) if owner != self.enclave);
            return if taken { Outcome::NotPermitted } else { Outcome::TaskGone };
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
        if !task.may_use(slot) {
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
            (message.class, message.group) = (entry.class, entry.group);
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
        let voice = self.voice();
        let mut begin = Message::new(MessageKind::ResyncBegin, voice);
        begin.argument = self.runnable.len() as u64;
        let mut lines = vec![begin];
        for &task in self.runnable.values() {
            lines.push(self.message(MessageKind::ResyncTask, voice, task, TaskFlags::RUNNABLE));
        }
        for (number, cpu) in self.own_cpus() {
            if !cpu.online || !cpu.available {
                lines.push(self.message(MessageKind::CpuBusy, number, TASK_NONE, TaskFlags(0)));
                continue;
            }
            let flags = if cpu.task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
            lines.push(self.message(MessageKind::ResyncCpu, number, cpu.task, flags));
        }
        lines.push(Message::new(MessageKind::ResyncEnd, voice));
        lines
    }

    /// The CPU in whose name the host says what no CPU reports: the enclave's first, or 0 while it has none.
    #[must_use]
    pub fn voice(&self) -> u16 {
        self.own_cpus().next().map_or(0, |(cpu, _)| cpu)
    }
}

fn refusal(cpu: u16, txn: &Txn, outcome: Outcome) -> Verdict {
    Verdict { cpu, txn: txn.id, outcome, switch: None }
}

#[cfg(test)]
mod tests;
