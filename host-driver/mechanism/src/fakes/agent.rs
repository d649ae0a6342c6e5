//! An agent's books, from nothing but what it is told, and its hand.

use std::collections::{BTreeMap, VecDeque};

use neap_abi::message::TASK_NONE;
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{
    AgentControl, AgentState, Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags,
};
use neap_queue::{Consumer, SlotWriter};

use super::host::Window;
use crate::judge::may_use;

/// What an agent believes of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed {
    /// It waits for a decision.
    pub runnable: bool,
    /// Its stamp.
    pub stamp: u32,
    /// The CPUs that it may use.
    pub affinity: (u16, u16),
}

/// A CPU's slot, and what the agent believes of the CPU.
#[derive(Clone, Debug, Default)]
struct Slot {
    writer: SlotWriter,
    /// Txns on which no verdict has been heard, nor on a later one; the last of them may lie there.
    staged: VecDeque<Txn>,
    idle: bool,
    away: bool,
    stamp: u32,
}

/// An agent.
#[derive(Debug)]
pub struct Agent<'m> {
    window: &'m Window,
    queue: Consumer<'m>,
    control: SlotWriter,
    slots: Vec<Slot>,
    tasks: BTreeMap<u32, Believed>,
    incarnation: u32,
    group: u32,
    resyncs: u32,
    /// Between a resync's first line and its last.
    in_resync: bool,
}

impl<'m> Agent<'m> {
    /// Agent `incarnation` over an enclave's lines, of which earlier agents have taken `taken`.
    ///
    /// # Panics
    /// A ring of the wrong size.
    #[must_use]
    pub fn new(window: &'m Window, taken: u32, incarnation: u32) -> Self {
        let slot = |line: &neap_queue::Line| {
            let left = line.read_any().map_or(0, |(payload, _)| Txn::from_payload(&payload).id);
            Slot { writer: SlotWriter::resume(left), idle: true, ..Slot::default() }
        };
        Self {
            window,
            queue: Consumer::resume(&window.messages, taken).expect("a ring's size is a power of two"),
            control: SlotWriter::after(&window.agent),
            slots: window.slots.iter().map(slot).collect(),
            tasks: BTreeMap::new(),
            incarnation,
            group: 0,
            resyncs: 0,
            in_resync: false,
        }
    }

    /// Lines taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.queue.taken()
    }

    /// What it believes of a task.
    #[must_use]
    pub fn believes(&self, task: u32) -> Option<Believed> {
        self.tasks.get(&task).copied()
    }

    /// Tasks that it believes to wait for a decision.
    pub fn runnable(&self) -> impl Iterator<Item = (u32, Believed)> {
        self.tasks.iter().map(|(&task, &believed)| (task, believed)).filter(|(_, task)| task.runnable)
    }

    /// Whether it believes that a CPU waits for a decision.
    #[must_use]
    pub fn believes_idle(&self, cpu: u16) -> bool {
        self.slots.get(usize::from(cpu)).is_some_and(|slot| slot.idle && !slot.away)
    }

    /// The txn on which it waits to hear of a CPU.
    #[must_use]
    pub fn awaits(&self, cpu: u16) -> Option<Txn> {
        self.slots.get(usize::from(cpu))?.staged.back().copied()
    }

    /// The last stamp that it has heard of a CPU.
    #[must_use]
    pub fn cpu_stamp(&self, cpu: u16) -> u32 {
        self.slots.get(usize::from(cpu)).map_or(0, |slot| slot.stamp)
    }

    /// Reads at most `lines` lines; how many there were.
    ///
    /// # Panics
    /// A line that means nothing.
    pub fn read(&mut self, lines: u32) -> u32 {
        for read in 0..lines {
            let Some(payload) = self.queue.poll() else { return read };
            self.hear(&Message::from_payload(&payload).expect("the host writes what it knows"));
        }
        lines
    }

    fn hear(&mut self, message: &Message) {
        let Some(slot) = self.slots.get_mut(usize::from(message.cpu)) else { return };
        slot.stamp = message.cpu_stamp;
        if message.outcome != Outcome::None {
            if let Some(at) = slot.staged.iter().position(|txn| txn.id == message.txn) {
                let txn = slot.staged[at];
                slot.staged.drain(..=at);
                let runs = txn.operation == Operation::Run as u8;
                if message.outcome == Outcome::Committed && runs {
                    slot.idle = false;
                    if let Some(task) = self.tasks.get_mut(&txn.task) {
                        task.runnable &= task.stamp != txn.stamp;
                    }
                }
            }
        }
        if message.flags.has(TaskFlags::CPU_IDLE) {
            slot.idle = true;
        }
        let believed = Believed {
            runnable: message.flags.has(TaskFlags::RUNNABLE),
            stamp: message.stamp,
            affinity: (message.first_cpu, message.cpu_count),
        };
        match message.kind {
            MessageKind::ResyncBegin => {
                self.tasks.clear();
                self.in_resync = true;
                for slot in &mut self.slots {
                    slot.staged.clear();
                    (slot.idle, slot.away) = (false, true);
                }
            }
            MessageKind::ResyncCpu | MessageKind::CpuAvailable => {
                slot.away = false;
                slot.idle = message.flags.has(TaskFlags::CPU_IDLE);
            }
            MessageKind::ResyncEnd => self.in_resync = false,
            MessageKind::CpuBusy => slot.away = true,
            MessageKind::TaskDead | MessageKind::TaskDeparted => {
                self.tasks.remove(&message.task);
            }
            MessageKind::TaskAffinityChanged if !believed.runnable => {
                if let Some(task) = self.tasks.get_mut(&message.task) {
                    *task = Believed { runnable: task.runnable, ..believed };
                }
            }
            MessageKind::TxnOutcome | MessageKind::Nop => {}
            _ if message.task != TASK_NONE => {
                self.tasks.insert(message.task, believed);
            }
            _ => {}
        }
    }

    /// Publishes a txn as it is, but for what the libOS fills in. False if the slot takes no more.
    pub fn publish(&mut self, slot: u16, txn: Txn) -> bool {
        let (credits, incarnation) = (self.taken(), self.incarnation);
        let (Some(line), Some(slot)) =
            (self.window.slots.get(usize::from(slot)), self.slots.get_mut(usize::from(slot)))
        else {
            return false;
        };
        if self.in_resync || slot.staged.len() >= SlotWriter::OUTSTANDING_MAX as usize {
            return false;
        }
        let txn = Txn { id: slot.writer.next(), credits, incarnation, ..txn };
        slot.writer.write(line, &txn.to_payload(), CREDIT_WORD);
        slot.staged.push_back(txn);
        true
    }

    /// A number for the next group.
    pub fn next_group(&mut self) -> u32 {
        self.group = self.group % 0xff_ffff + 1;
        self.group
    }

    /// Decides as a good agent does: each CPU that waits gets the first task that may run there. The CPUs to ring.
    pub fn serve(&mut self) -> Vec<u16> {
        let mut rung = Vec::new();
        let mut given = Vec::new();
        for cpu in 0..self.slots.len() as u16 {
            if !self.believes_idle(cpu) {
                continue;
            }
            if self.awaits(cpu).is_some() {
                // It has missed what lies there, or not told yet.
                rung.push(cpu);
                continue;
            }
            let fits = |(task, believed): &(u32, Believed)| {
                may_use(believed.affinity, cpu) && !given.contains(task) && !self.is_staged(*task)
            };
            let Some((task, believed)) = self.runnable().find(fits) else { continue };
            if self.publish(cpu, Txn::run(cpu, task, believed.stamp)) {
                given.push(task);
                rung.push(cpu);
            }
        }
        rung
    }

    fn is_staged(&self, task: u32) -> bool {
        self.slots.iter().any(|slot| slot.staged.back().is_some_and(|txn| txn.task == task))
    }

    /// Says in its control line how far it has read, and asks for a resync if `resync` says so.
    pub fn report(&mut self, resync: bool) {
        self.resyncs += u32::from(resync);
        let line = AgentControl {
            state: AgentState::Running,
            credits: self.taken(),
            resyncs: self.resyncs,
            incarnation: self.incarnation,
            ..AgentControl::NOTHING
        };
        self.control.write(&self.window.agent, &line.to_payload(), 3);
    }

    /// Flags of a group's member.
    #[must_use]
    pub fn member(txn: Txn, group: u32, size: u8) -> Txn {
        Txn { flags: txn.flags.with(TxnFlags::GROUP), group, group_size: size, ..txn }
    }
}
