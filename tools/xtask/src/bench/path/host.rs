//! A host in lock-step: one message, then everything that the agent makes of it, then the next.
//!
//! It enforces what a worker host enforces, by the same rules, but on one thread, with a clock that counts
//! messages: so that a script has one outcome, down to the last stamp.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::control::{AgentControl, AgentState, HostCommand, HostControl, policy_id};
use neap_abi::message::{Message, MessageKind, TASK_NONE, TaskFlags};
use neap_abi::{Operation, Outcome, RegionKind, Txn, TxnFlags, VERSION};
use neap_queue::{Line, Producer, SlotReader, SlotWriter};

use super::analysis::Sent;
use super::machine::{Machine, PATIENCE};

/// The peer that QEMU's function is: the first to connect.
const FIRMWARE_PEER: u16 = 0;
/// The vector that wakes the agent.
const WAKE_VECTOR: u16 = 0;
/// Virtual time from one message to the next, ns.
const STEP_NS: u64 = 1000;
/// Between two looks at the agent's control line.
const LOOK_US: u64 = 50;

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// There is no task of this number.
    Gone,
    /// It waits for a decision.
    Runnable,
    /// It runs on this CPU.
    Running(u16),
    /// It waits for something else.
    Blocked,
}

/// What a CPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// It waits for its doorbell.
    Idle,
    /// It runs this task.
    Running(u32),
    /// Something outside the enclave has it.
    Away,
}

/// The host's end of one session.
pub struct Host<'a> {
    machine: &'a Machine,
    ring: Producer<'a>,
    slots: &'a [Line],
    agent: &'a Line,
    tasks: Vec<TaskState>,
    cpus: Vec<CpuState>,
    sent: Vec<Sent>,
    steady: bool,
    resyncs: u32,
}

#[derive(Debug, Clone, Copy)]
struct TaskState {
    now: Task,
    stamp: u32,
}

#[derive(Debug, Clone, Copy)]
struct CpuState {
    now: Cpu,
    stamp: u32,
    reader: SlotReader,
    /// The last txn taken, and its verdict until a message has carried it.
    verdict: Outcome,
    txn: u32,
}

impl<'a> Host<'a> {
    /// Attaches to the firmware with `cpus` idle CPUs and room for `tasks` tasks, and tells the agent so.
    ///
    /// # Errors
    /// A firmware that refuses, or does not answer.
    pub fn attach(machine: &'a Machine, policy: &str, cpus: u16, tasks: u32) -> Result<Self> {
        let line = |kind| machine.lines(kind)?.first().context("a control region of no line");
        let idle = CpuState {
            now: Cpu::Idle,
            stamp: 0,
            reader: SlotReader::default(),
            verdict: Outcome::None,
            txn: 0,
        };
        let mut host = Self {
            machine,
            ring: Producer::new(machine.lines(RegionKind::Messages)?)?,
            slots: machine.lines(RegionKind::Slots)?,
            agent: line(RegionKind::AgentControl)?,
            tasks: vec![TaskState { now: Task::Gone, stamp: 0 }; tasks as usize],
            cpus: vec![idle; usize::from(cpus)],
            sent: Vec::new(),
            steady: false,
            resyncs: 0,
        };
        let attach = HostControl {
            command: HostCommand::Attach,
            peer: machine.peer().id(),
            cpus,
            session: 1,
            version: VERSION,
            features: machine.hello().features,
            policy: policy_id(policy),
        };
        SlotWriter::default().write(line(RegionKind::HostControl)?, &attach.to_payload(), 0);
        machine.peer().ring(FIRMWARE_PEER, WAKE_VECTOR)?;
        let control = host.wait("answer the attachment", |control| {
            control.session == 1 && control.state != AgentState::Waiting
        })?;
        ensure!(control.state == AgentState::Running, "the firmware refuses the host: {:?}", control.state);
        host.resyncs = control.resyncs;
        host.resync()?;
        Ok(host)
    }

    /// From now on, what is sent is measured.
    pub fn steady_from_here(&mut self) {
        self.steady = true;
    }

    /// What was sent, in order.
    pub fn into_sent(self) -> Vec<Sent> {
        self.sent
    }

    /// Messages sent.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Lines in the message ring.
    pub fn ring_lines(&self) -> Result<usize> {
        Ok(self.machine.lines(RegionKind::Messages)?.len())
    }

    /// What task `task` does.
    pub fn task(&self, task: u32) -> Task {
        self.tasks[task as usize].now
    }

    /// What CPU `cpu` does.
    pub fn cpu(&self, cpu: u16) -> Cpu {
        self.cpus[usize::from(cpu)].now
    }

    /// Numbers of the tasks in a state.
    pub fn tasks(&self, wanted: impl Fn(Task) -> bool) -> Vec<u32> {
        (0..).zip(&self.tasks).filter(|(_, task)| wanted(task.now)).map(|(number, _)| number).collect()
    }

    /// A task that does not run becomes `now`; `cpu` says so.
    pub fn task_event(&mut self, kind: MessageKind, cpu: u16, task: u32, now: Task) -> Result<()> {
        let state = &mut self.tasks[task as usize];
        *state = TaskState { now, stamp: state.stamp.wrapping_add(1) };
        self.send(kind, cpu, task, TaskFlags(0))
    }

    /// A running task leaves its CPU and becomes `now`. The CPU takes its next decision, if one lies ready,
    /// and tells of both in one message.
    pub fn leave(&mut self, kind: MessageKind, task: u32, now: Task) -> Result<()> {
        let Task::Running(cpu) = self.task(task) else { bail!("task {task} does not run") };
        let state = &mut self.tasks[task as usize];
        *state = TaskState { now, stamp: state.stamp.wrapping_add(1) };
        self.cpus[usize::from(cpu)].now = Cpu::Idle;
        self.take(cpu);
        self.send(kind, cpu, task, TaskFlags::WAS_ON_CPU)
    }

    /// CPU `cpu` becomes `now`, or stays what it is and tells that something happened there.
    pub fn cpu_event(&mut self, kind: MessageKind, cpu: u16, now: Cpu) -> Result<()> {
        self.cpus[usize::from(cpu)].now = now;
        let task = if let Cpu::Running(task) = now { task } else { TASK_NONE };
        self.send(kind, cpu, task, TaskFlags(0))
    }

    /// Tells the agent everything from the beginning.
    fn resync(&mut self) -> Result<()> {
        let known = self.tasks(|task| task != Task::Gone);
        self.send_with(MessageKind::ResyncBegin, 0, TASK_NONE, TaskFlags(0), known.len() as u64)?;
        for task in known {
            let cpu = if let Task::Running(cpu) = self.task(task) { cpu } else { 0 };
            self.send(MessageKind::ResyncTask, cpu, task, TaskFlags(0))?;
        }
        for cpu in 0..self.cpus.len() as u16 {
            let task = if let Cpu::Running(task) = self.cpu(cpu) { task } else { TASK_NONE };
            self.send(MessageKind::ResyncCpu, cpu, task, TaskFlags(0))?;
        }
        self.send(MessageKind::ResyncEnd, 0, TASK_NONE, TaskFlags(0))
    }

    fn send(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Result<()> {
        self.send_with(kind, cpu, task, flags, 0)
    }

    /// Sends one message, with what the states say, and lets the agent come to rest.
    fn send_with(
        &mut self,
        kind: MessageKind,
        cpu: u16,
        task: u32,
        mut flags: TaskFlags,
        argument: u64,
    ) -> Result<()> {
        let reporter = &mut self.cpus[usize::from(cpu)];
        reporter.stamp = reporter.stamp.wrapping_add(1);
        if reporter.now == Cpu::Idle {
            flags = flags.with(TaskFlags::CPU_IDLE);
        }
        let mut message = Message::new(kind, cpu);
        message.outcome = std::mem::replace(&mut reporter.verdict, Outcome::None);
        message.txn = reporter.txn;
        message.cpu_stamp = reporter.stamp;
        message.task = task;
        message.argument = argument;
        message.time_ns = STEP_NS * (1 + self.sent.len() as u64);
        if let Some(state) = self.tasks.get(task as usize) {
            message.stamp = state.stamp;
            flags = match state.now {
                Task::Runnable => flags.with(TaskFlags::RUNNABLE),
                Task::Running(on) if on == cpu => flags.with(TaskFlags::RUNNABLE).with(TaskFlags::ON_CPU),
                _ => flags,
            };
        }
        message.flags = flags;
        if self.ring.push(&message.to_payload()).is_err() {
            bail!("the message ring is full, though every message was answered: the agent gives no credits");
        }
        self.sent.push(Sent { kind: kind.name(), steady: self.steady });
        self.settle()
    }

    /// Waits until the agent has taken every message and found no other; then the CPUs that it rang take their
    /// decisions.
    fn settle(&mut self) -> Result<()> {
        // Either the agent sees the message before it sleeps, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.control().is_some_and(|control| control.asleep) {
            self.machine.peer().ring(FIRMWARE_PEER, WAKE_VECTOR)?;
        }
        let written = self.ring.written();
        let control = self.wait("take a message", |control| control.credits == written)?;
        self.ring.credit(control.credits)?;
        for cpu in 0..self.cpus.len() as u16 {
            let rung = self.machine.peer().wait(cpu, Some(Duration::ZERO))? > 0;
            if rung && self.cpu(cpu) != Cpu::Away && self.take(cpu).is_refusal() {
                self.send(MessageKind::TxnOutcome, cpu, TASK_NONE, TaskFlags(0))?;
            }
        }
        if control.resyncs != self.resyncs {
            ensure!(!self.steady, "the agent asks for a resync in steady state: it and the host disagree");
            self.resyncs = control.resyncs;
            self.resync()?;
        }
        Ok(())
    }

    /// CPU `cpu` takes what lies in its slot, if it can use it: the verdict.
    fn take(&mut self, cpu: u16) -> Outcome {
        let Some(slot) = self.slots.get(usize::from(cpu)) else { return Outcome::None };
        let state = &mut self.cpus[usize::from(cpu)];
        let Some(taken) = state.reader.take(slot) else { return Outcome::None };
        let txn = Txn::from_payload(&taken.payload);
        let outcome = self.judge(cpu, &txn);
        if outcome == Outcome::Committed && txn.operation == Operation::Run as u8 {
            self.tasks[txn.task as usize].now = Task::Running(cpu);
            self.cpus[usize::from(cpu)].now = Cpu::Running(txn.task);
        }
        let state = &mut self.cpus[usize::from(cpu)];
        (state.verdict, state.txn) = (outcome, txn.id);
        outcome
    }

    fn judge(&self, cpu: u16, txn: &Txn) -> Outcome {
        let Some(operation) = Operation::from_bits(txn.operation) else { return Outcome::UnknownOperation };
        if operation != Operation::Run {
            return if operation == Operation::Idle { Outcome::Committed } else { Outcome::Withdrawn };
        }
        let state = &self.cpus[usize::from(cpu)];
        let Some(task) = self.tasks.get(txn.task as usize) else { return Outcome::InvalidTask };
        if txn.cpu != cpu {
            Outcome::InvalidCpu
        } else if !txn.flags.valid() {
            Outcome::InvalidFlags
        } else if txn.flags.has(TxnFlags::CHECK_CPU) && txn.cpu_stamp != state.stamp {
            Outcome::CpuStale
        } else if task.now == Task::Gone {
            Outcome::TaskGone
        } else if task.stamp != txn.stamp {
            Outcome::TaskStale
        } else {
            match task.now {
                Task::Runnable if state.now == Cpu::Idle => Outcome::Committed,
                Task::Runnable => Outcome::CpuUnavailable,
                Task::Running(_) => Outcome::TaskOnCpu,
                _ => Outcome::TaskNotRunnable,
            }
        }
    }

    fn control(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.agent.read_any()?.0)
    }

    /// Waits until the agent's control line is as `wanted`.
    fn wait(&self, what: &str, wanted: impl Fn(&AgentControl) -> bool) -> Result<AgentControl> {
        let begun = Instant::now();
        loop {
            let control = self.control();
            if let Some(control) = control.filter(&wanted) {
                return Ok(control);
            }
            self.machine.check()?;
            if begun.elapsed() > PATIENCE {
                bail!(
                    "the agent did not {what} in {} s; its last word: {control:?}; the console:\n{}",
                    PATIENCE.as_secs(),
                    self.machine.console()
                );
            }
            thread::sleep(Duration::from_micros(LOOK_US));
        }
    }
}
