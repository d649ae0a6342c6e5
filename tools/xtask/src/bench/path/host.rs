//! A host in lock-step: one message, then everything that the agent makes of it, then the next.
//!
//! Its mechanism is the worker host's, but it runs on one thread, with a clock that counts messages: so a
//! script has one outcome, down to the last stamp.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::control::{AgentControl, AgentState, Clock, HostCommand, HostControl, policy_id};
use neap_abi::ledger::{TICKS_MASK, ticks_between};
use neap_abi::message::{Message, MessageKind, TASK_NONE, TaskFlags};
use neap_abi::{Ledger, Outcome, RegionKind, Txn, TxnFlags, VERSION};
use neap_host::mechanism::{Mechanism, TaskState};
use neap_queue::{Line, Producer, SlotReader, SlotWriter};
use serde::Serialize;

use super::analysis::{REFUSAL, Sent};
use super::metered::{Metered, PATIENCE};

/// Virtual time from one message to the next, ns.
const STEP_NS: u64 = 1000;
/// Between two looks at the agent's control line, us.
const LOOK_US: u64 = 50;
/// The number of the session; the machine sees no other.
const SESSION: u32 = 1;

/// What the ledgers of the txns that were taken show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ledgers {
    /// Txns taken.
    pub txns: u64,
    /// Those that were seen, decided and published in this order, modulo 2^24, and if they are not prestaged rung for after
    /// that; those that are prestaged were not rung for.
    pub in_order: u64,
    /// Those that were rung for.
    pub rung: u64,
}

impl Ledgers {
    /// Takes note of a txn's.
    pub fn note(&mut self, txn: &Txn, ledger: &Ledger) {
        /// Who is later by more than half a lap is earlier.
        const HALF: u32 = TICKS_MASK as u32 / 2;
        let Ledger { seen_ticks, decided_ticks, published_ticks, doorbell_ticks } = *ledger;
        let follows = |earlier, later| ticks_between(earlier, later).is_some_and(|ticks| ticks <= HALF);
        let prestaged = txn.flags.has(TxnFlags::PRESTAGED);
        let rings = if prestaged { doorbell_ticks == 0 } else { follows(published_ticks, doorbell_ticks) };
        let in_order = follows(seen_ticks, decided_ticks) && follows(decided_ticks, published_ticks) && rings;
        self.txns += 1;
        self.in_order += u64::from(in_order);
        self.rung += u64::from(doorbell_ticks != 0);
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: Self) {
        self.txns += other.txns;
        self.in_order += other.in_order;
        self.rung += other.rung;
    }

    /// Whether ledgers are kept. One in a hundred may look out of order: a core that a busy machine holds for half a lap,
    /// 0.13 s, between two entries; a counter whose low bits are zero.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.rung > 0 && self.in_order * 100 >= self.txns * 99
    }
}

/// The host's end of one session.
pub struct Host<'a> {
    machine: &'a Metered,
    mechanism: Mechanism,
    ring: Producer<'a>,
    slots: &'a [Line],
    agent: &'a Line,
    readers: Vec<SlotReader>,
    /// By CPU: the verdict that its next message carries.
    verdicts: Vec<Outcome>,
    sent: Vec<Sent>,
    ledgers: Ledgers,
    steady: bool,
    resyncs: u32,
}

impl<'a> Host<'a> {
    /// Attaches to the firmware with `cpus` idle CPUs and room for `tasks` tasks, and tells the agent so.
    ///
    /// # Errors
    /// A firmware that refuses, or does not answer.
    pub fn attach(machine: &'a Metered, policy: &str, cpus: u16, tasks: u32) -> Result<Self> {
        let line = |kind| machine.lines(kind)?.first().context("a control region of no line");
        let mut host = Self {
            machine,
            mechanism: Mechanism::new(cpus, tasks, VERSION),
            ring: Producer::new(machine.lines(RegionKind::Messages)?)?,
            slots: machine.lines(RegionKind::Slots)?,
            agent: line(RegionKind::AgentControl)?,
            readers: vec![SlotReader::default(); usize::from(cpus)],
            verdicts: vec![Outcome::None; usize::from(cpus)],
            sent: Vec::new(),
            ledgers: Ledgers::default(),
            steady: false,
            resyncs: 0,
        };
        let attach = HostControl {
            command: HostCommand::Attach,
            peer: machine.peer().id(),
            cpus,
            session: SESSION,
            version: VERSION,
            features: machine.hello().features,
            policy: policy_id(policy),
            confirmed: 0,
            clock: Clock::Own,
        };
        SlotWriter::default().write(line(RegionKind::HostControl)?, &attach.to_payload(), 0);
        // The firmware may sleep; before its first word it can't be rung, and wakes by its timer.
        if let Some(control) = host.control() {
            machine.peer().ring(control.peer, control.vector)?;
        }
        let control = host.wait("answer the attachment", |control| {
            control.session == SESSION && control.state != AgentState::Waiting
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

    /// What the ledgers of the txns that were taken show.
    pub fn ledgers(&self) -> Ledgers {
        self.ledgers
    }

    /// Messages sent.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Lines in the message ring.
    pub fn ring_lines(&self) -> Result<usize> {
        Ok(self.machine.lines(RegionKind::Messages)?.len())
    }

    /// Where a task stands.
    pub fn task(&self, task: u32) -> TaskState {
        self.mechanism.task(task).map_or(TaskState::Free, |task| task.state)
    }

    /// Whether `cpu` is the enclave's at the moment.
    pub fn is_available(&self, cpu: u16) -> bool {
        self.mechanism.cpu(cpu).is_some_and(|cpu| cpu.available)
    }

    /// Whether `cpu` is the enclave's and has nothing to run.
    pub fn is_idle(&self, cpu: u16) -> bool {
        self.mechanism.cpu(cpu).is_some_and(|cpu| cpu.available && cpu.task == TASK_NONE)
    }

    /// A new task, which may run; `cpu` says so.
    pub fn create(&mut self, cpu: u16, task: u32) -> Result<()> {
        ensure!(self.mechanism.create(task, 0, 0), "task {task} is there already");
        self.send(MessageKind::TaskNew, cpu, task, TaskFlags(0))
    }

    /// A task that does not run becomes `state`; `cpu` says so.
    pub fn change(&mut self, kind: MessageKind, cpu: u16, task: u32, state: TaskState) -> Result<()> {
        self.mechanism.change(task, state);
        self.send(kind, cpu, task, TaskFlags(0))
    }

    /// The CPUs that a task may use are set anew, to all; `cpu` says so.
    pub fn set_affinity(&mut self, cpu: u16, task: u32) -> Result<()> {
        self.mechanism.set_affinity(task, 0, 0);
        self.send(MessageKind::TaskAffinityChanged, cpu, task, TaskFlags(0))
    }

    /// A running task leaves its CPU and becomes `state`. The CPU takes its next decision, if one lies ready,
    /// and tells of both in one message.
    pub fn leave(&mut self, kind: MessageKind, task: u32, state: TaskState) -> Result<()> {
        let TaskState::OnCpu(cpu) = self.task(task) else { bail!("task {task} does not run") };
        self.mechanism.change(task, state);
        self.take(cpu);
        self.send(kind, cpu, task, TaskFlags::WAS_ON_CPU)
    }

    /// Something outside the enclave takes an idle CPU.
    pub fn cpu_goes(&mut self, cpu: u16) -> Result<()> {
        self.mechanism.set_cpu(cpu, true, false);
        self.send(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0))
    }

    /// The CPU comes back, idle.
    pub fn cpu_returns(&mut self, cpu: u16) -> Result<()> {
        self.mechanism.set_cpu(cpu, true, true);
        self.send(MessageKind::CpuAvailable, cpu, TASK_NONE, TaskFlags(0))
    }

    /// A CPU's timer ticks.
    pub fn tick(&mut self, cpu: u16) -> Result<()> {
        let task = self.mechanism.cpu(cpu).map_or(TASK_NONE, |cpu| cpu.task);
        self.send(MessageKind::CpuTick, cpu, task, TaskFlags(0))
    }

    /// Tells the agent everything from the beginning.
    fn resync(&mut self) -> Result<()> {
        self.mechanism.resync().into_iter().try_for_each(|message| self.push(message))
    }

    fn send(&mut self, kind: MessageKind, cpu: u16, task: u32, mut flags: TaskFlags) -> Result<()> {
        if self.is_idle(cpu) {
            flags = flags.with(TaskFlags::CPU_IDLE);
        }
        flags = match self.task(task) {
            TaskState::Runnable => flags.with(TaskFlags::RUNNABLE),
            TaskState::OnCpu(on) if on == cpu => flags.with(TaskFlags::RUNNABLE).with(TaskFlags::ON_CPU),
            _ => flags,
        };
        let mut message = self.mechanism.message(kind, cpu, task, flags);
        message.outcome = std::mem::replace(&mut self.verdicts[usize::from(cpu)], Outcome::None);
        self.push(message)
    }

    /// Sends one message and lets the agent come to rest.
    fn push(&mut self, mut message: Message) -> Result<()> {
        message.time_ns = STEP_NS * (1 + self.sent.len() as u64);
        if self.ring.push(&message.to_payload()).is_err() {
            bail!("the message ring is full, though every message was answered: the agent gives no credits");
        }
        let kind = if message.outcome.is_refusal() { REFUSAL } else { message.kind.name() };
        self.sent.push(Sent { kind, steady: self.steady });
        self.settle()
    }

    /// Waits until the agent has taken every message and found no other; then the CPUs that it rang take their
    /// decisions.
    fn settle(&mut self) -> Result<()> {
        // Either the agent sees the message before it sleeps, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if let Some(control) = self.control().filter(|control| control.asleep) {
            self.machine.peer().ring(control.peer, control.vector)?;
        }
        let written = self.ring.written();
        let control = self.wait("take a message", |control| control.credits == written)?;
        self.ring.credit(control.credits)?;
        for cpu in 0..self.mechanism.cpus() {
            let rung = self.machine.peer().wait(cpu, Some(Duration::ZERO))? > 0;
            if rung && self.is_idle(cpu) && self.take(cpu).is_refusal() {
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

    /// CPU `cpu` takes what lies in its slot, if it has not yet: the verdict.
    fn take(&mut self, cpu: u16) -> Outcome {
        let at = usize::from(cpu);
        let Some(taken) = self.slots.get(at).and_then(|slot| self.readers[at].take(slot)) else {
            return Outcome::None;
        };
        let txn = Txn::from_payload(&taken.payload);
        self.ledgers.note(&txn, &Ledger::from_payload(&taken.payload));
        for verdict in self.mechanism.commit(cpu, &txn) {
            self.verdicts[usize::from(verdict.cpu)] = verdict.outcome;
        }
        self.verdicts[at]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_in_order_modulo_its_bits_or_not_at_all() {
        let entries = |[seen_ticks, decided_ticks, published_ticks, doorbell_ticks]: [u32; 4]| Ledger {
            seen_ticks,
            decided_ticks,
            published_ticks,
            doorbell_ticks,
        };
        let now = Txn::run(0, 0, 0);
        let prestaged = Txn { flags: TxnFlags::PRESTAGED, ..now };
        let in_order = |txn: &Txn, ticks| {
            let mut ledgers = Ledgers::default();
            ledgers.note(txn, &entries(ticks));
            ledgers.in_order == 1
        };
        assert!(in_order(&now, [5, 6, 6, 9]) && in_order(&now, [0xff_fffe, 0xff_ffff, 1, 2]));
        assert!(in_order(&prestaged, [5, 6, 7, 0]));
        for ticks in [[6, 5, 7, 9], [5, 7, 6, 9], [5, 6, 9, 7], [5, 6, 7, 0], [0, 6, 7, 9], [0; 4]] {
            assert!(!in_order(&now, ticks), "{ticks:?}");
        }
        assert!(!in_order(&prestaged, [5, 6, 7, 9]), "nobody is rung for it");
    }

    #[test]
    fn ledgers_that_are_not_kept_do_not_hold() {
        assert!(!Ledgers::default().hold());
        assert!(Ledgers { txns: 200, in_order: 198, rung: 90 }.hold());
        assert!(!Ledgers { txns: 200, in_order: 197, rung: 90 }.hold());
        assert!(!Ledgers { txns: 200, in_order: 200, rung: 0 }.hold(), "no doorbell was entered");
    }
}
