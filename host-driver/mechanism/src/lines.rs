//! What is told, and when: an event that takes a task from its CPU waits until the CPU has looked at its slot, so that one line
//! carries both the event and the verdict. All else is told at once.

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Outcome, TaskFlags, Txn};

use crate::Platform;
use crate::counters::Count;
use crate::cpu::{Cpu, Look, give_verdict};
use crate::enclave::{Enclave, Level};
use crate::events::{Mechanism, Wires};
use crate::judge::is_of_another_agent;
use crate::sync::{Ordering, in_order};
use crate::task::Word;
use crate::wire::Wire;

impl Mechanism<'_> {
    /// The line that reports an event of a task on a CPU, with stamps and affinity as they are.
    #[must_use]
    pub fn message(&self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Message {
        let stamp = self.task(task).map_or(0, |task| task.word().stamp);
        self.message_at(kind, cpu, task, stamp, flags)
    }

    /// The line that reports what a task came to by its own event: `word`.
    pub(crate) fn event(
        &self,
        kind: MessageKind,
        cpu: u16,
        task: u32,
        word: Word,
        flags: TaskFlags,
    ) -> Message {
        self.message_at(kind, cpu, task, word.stamp, flags)
    }

    fn message_at(&self, kind: MessageKind, cpu: u16, task: u32, stamp: u32, flags: TaskFlags) -> Message {
        let mut message = Message { flags, ..Message::new(kind, cpu) };
        if let Some(entry) = self.task(task) {
            (message.task, message.stamp) = (task, stamp);
            (message.first_cpu, message.cpu_count) = entry.affinity();
        }
        if let Some(cpu) = self.cpu(cpu) {
            message.cpu_stamp = cpu.stamp();
            message.txn = cpu.txn.load(Ordering::Relaxed);
        }
        message
    }

    /// A CPU of the enclave that an event which no CPU of it reports is reported in the name of.
    pub(crate) fn reporter(&self, enclave: u8, cpu: u16) -> u16 {
        let owns = |number: u16| self.cpu(number).is_some_and(|cpu| cpu.owner() == Some(enclave));
        if owns(cpu) { cpu } else { self.voice(enclave) }
    }

    /// The enclave's first CPU, or 0 while it has none.
    #[must_use]
    pub fn voice(&self, enclave: u8) -> u16 {
        self.cpus_of(enclave).next().map_or(0, |(number, _)| number)
    }

    /// Keeps an event's line until its CPU has looked at its slot and switches. If it has looked already, the verdict goes with it.
    pub(crate) fn keep<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, message: Message) {
        let Some(entry) = self.cpu(cpu) else { return };
        if entry.event.is_there() {
            self.flush(wires, enclave, cpu, entry);
        }
        entry.event.put(&message.to_payload());
    }

    /// Tells what waits on a CPU: its event, its verdict, or both in one line. By the CPU itself, or under its runqueue's lock.
    pub(crate) fn flush<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, entry: &Cpu) {
        let look = entry.take_look();
        let Some(payload) = entry.event.take() else {
            if entry.has_verdict() {
                self.tell_verdict(wires, enclave, cpu, entry);
            }
            return;
        };
        let Ok(mut message) = Message::from_payload(&payload) else { return };
        message.cpu_stamp = entry.stamp();
        if look == Look::Miss {
            entry.counters.one(Count::PrestageMisses);
        }
        self.send(wires, enclave, message, entry, Some(entry), look == Look::Hit);
    }

    /// A line about a CPU that no event is there to carry: the verdict that waits, if one does, and whether it is idle.
    pub(crate) fn tell_verdict<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, entry: &Cpu) {
        let task = entry.task();
        let flags = if task == TASK_NONE { TaskFlags(0) } else { TaskFlags::ON_CPU };
        let message = self.message(MessageKind::TxnOutcome, cpu, task, flags);
        self.send(wires, enclave, message, entry, Some(entry), false);
    }

    /// A CPU has lost a task, or what it executed: if it is idle and the agent believes otherwise, the agent is told. It may never
    /// switch, and so have no other occasion.
    pub(crate) fn tell_if_idle<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, entry: &Cpu) {
        in_order();
        if entry.is_untold() {
            self.tell_verdict(wires, enclave, cpu, entry);
        }
    }

    /// Tells of an event at once; `cpu` is the one that writes. Under the lock of its runqueue, if the event is a task's there.
    pub(crate) fn tell<W: Wires>(&self, wires: &W, enclave: u8, message: Message, cpu: u16) {
        let Some(writer) = self.cpu(cpu) else { return };
        // What waits to be told of the same task comes first, or the agent would end with the older of the two.
        let waits = writer.event.get().and_then(|payload| Message::from_payload(&payload).ok());
        if waits.is_some_and(|waits| waits.task == message.task && message.task != TASK_NONE) {
            self.flush(wires, writer.owner().unwrap_or(enclave), cpu, writer);
        }
        self.send(wires, enclave, message, writer, None, false);
    }

    /// Tells of a CPU, with the verdict that waits there.
    pub(crate) fn tell_of_cpu<W: Wires>(&self, wires: &W, enclave: u8, entry: &Cpu, message: Message) {
        self.send(wires, enclave, message, entry, Some(entry), false);
    }

    /// Takes note of a verdict. An agent is not told what became of another's txns.
    pub(crate) fn verdict<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        cpu: u16,
        txn: &Txn,
        outcome: Outcome,
    ) {
        let (Some(entry), Some(wire)) = (self.cpu(cpu), wires.wire(number)) else { return };
        wire.platform.judged(cpu, txn, outcome);
        entry.counters.outcome(outcome);
        if is_of_another_agent(enclave, txn) {
            return;
        }
        let earlier = entry.set_verdict(txn.id, outcome);
        if earlier != 0 {
            let mut message = self.message(MessageKind::TxnOutcome, cpu, TASK_NONE, TaskFlags(0));
            give_verdict(earlier, &mut message);
            self.send(wires, number, message, entry, None, false);
        }
    }

    /// The verdict on what a CPU took, if it runs nothing new by it. If no event waits for it, it gets a line of its own.
    pub(crate) fn conclude<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        cpu: u16,
        txn: &Txn,
        outcome: Outcome,
    ) {
        let Some(entry) = self.cpu(cpu) else { return };
        self.verdict(wires, number, enclave, cpu, txn, outcome);
        if !entry.event.is_there() && entry.has_verdict() {
            self.tell_verdict(wires, number, cpu, entry);
        }
    }

    /// Writes a line, with the verdict that waits on `verdict_of` and whether that is idle; or counts it where a resync will make
    /// it good.
    fn send<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        mut message: Message,
        writer: &Cpu,
        verdict_of: Option<&Cpu>,
        hit: bool,
    ) {
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return };
        if enclave.level() != Level::Ipu {
            return;
        }
        if enclave.resync_due() {
            writer.counters.one(Count::MessagesDropped);
            return enclave.lose();
        }
        if message.time_ns == 0 {
            message.time_ns = wires.now_ns();
        }
        if let Some(cpu) = verdict_of {
            give_verdict(cpu.take_verdict(), &mut message);
            if message.kind != MessageKind::CpuBusy {
                message.flags = message.flags.with(cpu.idle_flag());
            }
        }
        let (sent, cost) = wire.send(&message, writer, hit);
        if sent.is_err() {
            writer.counters.one(Count::MessagesDropped);
            return enclave.lose();
        }
        if hit {
            writer.counters.one(Count::PrestageHits);
            writer.counters.add(Count::HitUncachedReads, cost.uncached_reads);
            writer.counters.add(Count::HitLineWrites, cost.line_writes);
        }
    }

    /// Writes a line of a resync.
    pub(crate) fn say<P: Platform>(wire: &Wire<'_, P>, message: &Message, writer: &Cpu) -> bool {
        wire.send(message, writer, false).0.is_ok()
    }
}
