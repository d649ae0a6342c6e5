//! What a scripted agent knows of its host: tasks and CPUs as messages tell, and the decisions that it has staged.
//!
//! Every stamp that is told is checked against what it can be: one step for the event, and one for each commit since.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags};

/// How long a decision may lie in an idle CPU's slot before the CPU is rung anew.
const NUDGE: Duration = Duration::from_millis(20);

/// Messages that an error shows.
const LAST: usize = 12;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// It waits for something other than a CPU.
    Blocked,
    /// It waits for a decision.
    Runnable,
    /// A decision for it was committed, or it runs without one.
    Placed(u16),
}

/// A task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub stand: Stand,
    /// As last told.
    pub stamp: u32,
    affinity: (u16, u16),
    /// Only the test decides for it.
    pub held: bool,
    /// Moves of its stamp since it was last told: commits, and what the test itself allows.
    moves: u32,
    /// Since when it waits, among all.
    arrival: u64,
    /// Where a decision of the policy's lies.
    choice: Option<(u16, u32)>,
}

impl Task {
    pub(super) fn allows(&self, cpu: u16) -> bool {
        self.affinity.1 == 0 || cpu.wrapping_sub(self.affinity.0) < self.affinity.1
    }
}

/// A decision that lies in a slot, as far as is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    pub id: u32,
    txn: Txn,
    since: Instant,
}

/// A CPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Cpu {
    /// It is there: it has been told of, and no higher class holds it.
    pub open: bool,
    /// The task that runs there by a decision.
    pub task: Option<u32>,
    /// As last told.
    pub stamp: u32,
    /// What lies in its slot, the latest last.
    pub staged: Vec<Staged>,
}

/// All that an agent knows.
#[derive(Debug, Default)]
pub(super) struct View {
    pub tasks: BTreeMap<u32, Task>,
    pub cpus: Vec<Cpu>,
    /// Tasks that have come, for whoever started them.
    pub newcomers: VecDeque<u32>,
    /// Those that come from now on are held.
    pub hold_new: bool,
    /// Decisions lie in the slots of idle CPUs for as long as they like.
    pub lets_lie: bool,
    /// Verdicts told, in order.
    pub verdicts: Vec<(u16, u32, Outcome)>,
    /// How often each was told.
    pub told: [u64; Outcome::ALL.len()],
    /// What came that can't be.
    pub oddities: Vec<String>,
    /// All messages, for whoever looks for one.
    pub messages: Vec<Message>,
    /// Stamps may move by any number: so many txns go about that nobody keeps count.
    pub lenient: bool,
    /// Resyncs that are complete.
    pub resyncs: u32,
    /// The last stamp of each number, over all its tasks.
    stamps: BTreeMap<u32, u32>,
    arrivals: u64,
}

impl View {
    /// Begins a session: only what was told in all of them stays.
    pub(super) fn begin(&mut self, cpus: u16) {
        self.tasks.clear();
        self.cpus = vec![Cpu::default(); usize::from(cpus)];
        self.verdicts.clear();
        self.resyncs = 0;
    }

    /// The driver was loaded anew: its stamps begin again.
    pub(super) fn forget_stamps(&mut self) {
        self.stamps.clear();
    }

    fn cpu(&mut self, cpu: u16) -> Option<&mut Cpu> {
        self.cpus.get_mut(usize::from(cpu))
    }

    /// How often an outcome was told.
    pub(super) fn told(&self, outcome: Outcome) -> u64 {
        self.told[outcome as usize]
    }

    /// Allows a task's stamp to have moved so often more when it is next told of.
    pub(super) fn allow_moves(&mut self, task: u32, moves: u32) {
        if let Some(task) = self.tasks.get_mut(&task) {
            task.moves += moves;
        }
    }

    fn staged_for(&self, task: u32) -> u32 {
        let all = self.cpus.iter().flat_map(|cpu| &cpu.staged);
        all.filter(|staged| staged.txn.task == task && staged.txn.operation == Operation::Run as u8).count()
            as u32
    }

    /// Checks a stamp, and takes note of it.
    fn stamp(&mut self, message: &Message) {
        let (number, stamp) = (message.task, message.stamp);
        let staged = self.staged_for(number);
        let last = self.stamps.insert(number, stamp);
        let Some(task) = self.tasks.get_mut(&number) else {
            // A number that is given again goes on from where it was.
            if last.is_some_and(|last| stamp.wrapping_sub(last) > u32::MAX / 2) {
                self.oddities.push(format!("a stamp that goes back from {last:?}: {message:?}"));
            }
            return;
        };
        let step = stamp.wrapping_sub(task.stamp);
        let may = match message.kind {
            // They tell how things stand.
            MessageKind::TxnOutcome | MessageKind::ResyncCpu => 0..=task.moves + staged + 1,
            MessageKind::ResyncTask => 0..=u32::MAX / 2,
            // A commit whose verdict is still to come counts too.
            _ => 1..=1 + task.moves + staged,
        };
        let may = if self.lenient { 0..=u32::MAX / 2 } else { may };
        if !may.contains(&step) {
            self.oddities.push(format!("a stamp {step} after the last, not {may:?}: {message:?}, {task:?}"));
        }
        if matches!(message.kind, MessageKind::TxnOutcome | MessageKind::ResyncCpu) {
            return;
        }
        (task.stamp, task.moves) = (stamp, 0);
    }

    /// Takes note of one message; the CPU that is to be rung anew, if there is one.
    pub(super) fn note(&mut self, message: &Message) -> Option<u16> {
        self.messages.push(*message);
        self.verdict(message);
        let cpu = message.cpu;
        let idle = message.flags.has(TaskFlags::CPU_IDLE);
        if self.cpu(cpu).is_none() {
            self.oddities.push(format!("no such CPU: {message:?}"));
            return None;
        }
        if message.task != TASK_NONE {
            self.stamp(message);
        }
        let own = message.flags.has(TaskFlags::WAS_ON_CPU) || message.outcome != Outcome::None;
        if let Some(entry) = self.cpu(cpu).filter(|_| own) {
            let back = message.cpu_stamp.wrapping_sub(entry.stamp) > u32::MAX / 2;
            entry.stamp = message.cpu_stamp;
            if back {
                self.oddities.push(format!("a CPU's stamp that goes back: {message:?}"));
            }
        }
        self.event(message);
        let entry = self.cpu(cpu)?;
        if idle {
            entry.task = None;
            // It looked before our line landed: it sleeps over a decision.
            return (!entry.staged.is_empty()).then_some(cpu);
        }
        None
    }

    fn event(&mut self, message: &Message) {
        let (cpu, task) = (message.cpu, message.task);
        let runnable = message.flags.has(TaskFlags::RUNNABLE);
        match message.kind {
            MessageKind::TaskNew => {
                self.newcomers.push_back(task);
                let held = self.hold_new;
                let new = Task {
                    stand: Stand::Blocked,
                    stamp: message.stamp,
                    affinity: (0, 0),
                    held,
                    moves: 0,
                    arrival: 0,
                    choice: None,
                };
                self.tasks.insert(task, new);
                self.hears(message, Stand::Runnable);
            }
            MessageKind::TaskWakeup
            | MessageKind::TaskPreempt
            | MessageKind::TaskYield
            | MessageKind::TaskLatchFailure => self.hears(message, Stand::Runnable),
            MessageKind::TaskAffinityChanged | MessageKind::TaskPriorityChanged => {
                let stand = self.tasks.get(&task).map_or(Stand::Blocked, |task| task.stand);
                self.hears(message, if runnable { Stand::Runnable } else { stand });
            }
            MessageKind::TaskBlocked => self.hears(message, Stand::Blocked),
            MessageKind::TaskDead | MessageKind::TaskDeparted => {
                self.tasks.remove(&task);
            }
            MessageKind::TaskOnCpu => {
                self.hears(message, Stand::Placed(cpu));
                if let Some(entry) = self.cpu(cpu) {
                    entry.task = Some(task);
                }
            }
            MessageKind::CpuBusy => {
                if let Some(entry) = self.cpu(cpu) {
                    entry.open = false;
                }
            }
            MessageKind::CpuAvailable => {
                if let Some(entry) = self.cpu(cpu) {
                    entry.open = true;
                }
            }
            MessageKind::ResyncBegin => {
                self.tasks.clear();
                for cpu in &mut self.cpus {
                    *cpu = Cpu { stamp: cpu.stamp, ..Cpu::default() };
                }
            }
            MessageKind::ResyncTask => {
                let new = Task {
                    stand: Stand::Runnable,
                    stamp: message.stamp,
                    affinity: (0, 0),
                    held: self.hold_new,
                    moves: 0,
                    arrival: 0,
                    choice: None,
                };
                self.tasks.insert(task, new);
                self.hears(message, Stand::Runnable);
            }
            MessageKind::ResyncCpu => {
                if let Some(entry) = self.cpu(cpu) {
                    entry.open = true;
                    entry.stamp = message.cpu_stamp;
                    entry.task = (task != TASK_NONE).then_some(task);
                }
                if task != TASK_NONE {
                    let held = self.hold_new;
                    let new = Task {
                        stand: Stand::Placed(cpu),
                        stamp: message.stamp,
                        affinity: (message.first_cpu, message.cpu_count),
                        held,
                        moves: 0,
                        arrival: 0,
                        choice: None,
                    };
                    self.tasks.insert(task, new);
                }
            }
            MessageKind::ResyncEnd => self.resyncs += 1,
            _ => {}
        }
        if message.flags.has(TaskFlags::WAS_ON_CPU)
            && let Some(entry) = self.cpu(cpu)
            && entry.task == Some(task)
        {
            entry.task = None;
        }
    }

    /// A task is told of. One that the agent has not heard of since its last resync was blocked then.
    fn hears(&mut self, message: &Message, stand: Stand) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let held = self.hold_new;
        let task = self.tasks.entry(message.task).or_insert(Task {
            stand,
            stamp: message.stamp,
            affinity: (0, 0),
            held,
            moves: 0,
            arrival,
            choice: None,
        });
        if stand == Stand::Runnable && task.stand != Stand::Runnable {
            task.arrival = arrival;
        }
        task.stand = stand;
        task.affinity = (message.first_cpu, message.cpu_count);
    }

    fn verdict(&mut self, message: &Message) {
        if message.outcome == Outcome::None {
            return;
        }
        let (cpu, id) = (message.cpu, message.txn);
        self.told[message.outcome as usize] += 1;
        self.verdicts.push((cpu, id, message.outcome));
        let Some(entry) = self.cpu(cpu) else { return };
        let staged = entry.staged.iter().find(|staged| staged.id == id).copied();
        // What lay there before is never taken.
        let (later, done): (Vec<_>, Vec<_>) = entry
            .staged
            .drain(..)
            .partition(|staged| staged.id != id && staged.id.wrapping_sub(id) < u32::MAX / 2);
        entry.staged = later;
        for task in self.tasks.values_mut() {
            let void = |staged: &Staged| staged.id != id && task.choice == Some((cpu, staged.id));
            if done.iter().any(void) {
                task.choice = None;
            }
        }
        let Some(entry) = self.cpu(cpu) else { return };
        let Some(staged) = staged else {
            // One of before a resync may still be told.
            return;
        };
        let run = staged.txn.operation == Operation::Run as u8;
        let committed = message.outcome == Outcome::Committed;
        let keeps = entry.task == Some(staged.txn.task);
        if committed && run {
            entry.task = Some(staged.txn.task);
        }
        if let Some(task) = self.tasks.get_mut(&staged.txn.task).filter(|_| run) {
            if task.choice == Some((cpu, id)) {
                task.choice = None;
            }
            if committed && !keeps {
                task.stand = Stand::Placed(cpu);
                task.moves += 1;
            }
        }
    }

    /// A decision was put into a slot.
    pub(super) fn staged(&mut self, slot: u16, txn: Txn) {
        if let Some(entry) = self.cpu(slot) {
            entry.staged.push(Staged { id: txn.id, txn, since: Instant::now() });
        }
    }

    /// What a first-come policy decides now: a CPU, a task and its stamp, and how.
    pub(super) fn decide(&mut self, prestages: bool) -> Option<Txn> {
        // From the last CPU on: on the first is the puppet.
        for cpu in (0..self.cpus.len() as u16).rev() {
            let entry = &self.cpus[usize::from(cpu)];
            if !entry.open || !entry.staged.is_empty() || (entry.task.is_some() && !prestages) {
                continue;
            }
            let flags = if entry.task.is_some() { TxnFlags::PRESTAGED } else { TxnFlags(0) };
            let waits = |task: &Task| {
                task.stand == Stand::Runnable && !task.held && task.choice.is_none() && task.allows(cpu)
            };
            let first =
                self.tasks.iter().filter(|(_, task)| waits(task)).min_by_key(|(_, task)| task.arrival);
            if let Some((&number, task)) = first {
                return Some(Txn { flags, ..Txn::run(cpu, number, task.stamp) });
            }
        }
        None
    }

    /// The policy's decision `txn` was put into a slot.
    pub(super) fn chosen(&mut self, txn: &Txn) {
        if let Some(task) = self.tasks.get_mut(&txn.task) {
            task.choice = Some((txn.cpu, txn.id));
        }
    }

    /// The verdict on a txn, if it was told.
    pub(super) fn verdict_on(&self, cpu: u16, txn: u32) -> Option<Outcome> {
        let found = self.verdicts.iter().rev().find(|&&(of, id, _)| (of, id) == (cpu, txn));
        found.map(|&(_, _, outcome)| outcome)
    }

    /// Idle CPUs in whose slots something has lain for long; each is told of once in a while.
    pub(super) fn asleep_over(&mut self) -> Vec<u16> {
        let mut found = Vec::new();
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            let idle = cpu.open && cpu.task.is_none() && !self.lets_lie;
            if let Some(staged) =
                cpu.staged.last_mut().filter(|staged| idle && staged.since.elapsed() > NUDGE)
            {
                staged.since = Instant::now();
                found.push(number);
            }
        }
        found
    }

    /// In words, for an error.
    pub(super) fn in_words(&self) -> String {
        let mut words = String::from("the agent's view:");
        for (number, cpu) in self.cpus.iter().enumerate() {
            let ids: Vec<u32> = cpu.staged.iter().map(|staged| staged.id).collect();
            words += &format!("\n  CPU {number}: open {}, task {:?}, staged {ids:?}", cpu.open, cpu.task);
        }
        for (number, task) in &self.tasks {
            let Task { stand, stamp, affinity, held, choice, .. } = task;
            words += &format!(
                "\n  task {number}: {stand:?}, stamp {stamp}, cpus {}+{}, held {held}, chosen {choice:?}",
                affinity.0, affinity.1
            );
        }
        for message in self.messages.iter().rev().take(LAST).rev() {
            words += &format!("\n  {}", told(message));
        }
        words
    }
}

/// A message in a line, for an error.
pub(super) fn told(message: &Message) -> String {
    let Message { kind, cpu, task, stamp, txn, outcome, flags, time_ns, first_cpu, cpu_count, .. } = message;
    format!(
        "{:.6} {} cpu {cpu} task {} stamp {stamp} cpus {first_cpu}+{cpu_count} txn {txn} {} flags {:#x}",
        *time_ns as f64 / 1e9,
        kind.name(),
        *task as i32,
        outcome.name(),
        flags.0
    )
}
