//! An agent that listens as it should, and decides as it should not.

use neap_abi::txn::CREDIT_WORD;
use neap_abi::{Message, MessageKind, Outcome, TaskFlags, Txn};
use neap_agent::Doorbell;
use neap_agent_start::Given;
use neap_hal::cpu::call::relax;
use neap_queue::{Consumer, Line, SlotWriter};

use crate::{Told, say};

/// An agent's end of the wire, without the libOS between it and its lines.
#[derive(Debug)]
pub struct Liar<'a> {
    given: &'a Given,
    cpu: u16,
    ring: Consumer<'static>,
    slot: &'static Line,
    writer: SlotWriter,
    order: u32,
    /// The last task that was said to be able to run.
    runnable: Option<(u32, u32)>,
}

impl<'a> Liar<'a> {
    /// Says that it runs, and hears the host's whole state.
    ///
    /// # Panics
    /// Where its bindings make no agent.
    #[must_use]
    pub fn new(given: &'a Given, told: &Told) -> Self {
        say(given);
        let ring = Consumer::resume(given.messages, given.bindings.taken).expect("the grant names a ring");
        let slot = given.bindings.slots.get(usize::from(told.own_cpu)).expect("its CPU has a slot");
        let left = slot.read_any().map_or(0, |(payload, _)| Txn::from_payload(&payload).id);
        let writer = SlotWriter::resume(left);
        let mut liar = Self { given, cpu: told.own_cpu, ring, slot, writer, order: 0, runnable: None };
        while liar.hear().kind != MessageKind::ResyncEnd {}
        liar
    }

    /// The next message.
    pub fn hear(&mut self) -> Message {
        loop {
            let Some(payload) = self.ring.poll() else {
                relax();
                continue;
            };
            let Ok(message) = Message::from_payload(&payload) else { continue };
            if message.flags.has(TaskFlags::RUNNABLE) {
                self.runnable = Some((message.task, message.stamp));
            }
            return message;
        }
    }

    /// A task that can run, and its stamp.
    pub fn task(&mut self) -> (u32, u32) {
        loop {
            if let Some(task) = self.runnable {
                return task;
            }
            self.hear();
        }
    }

    /// The txn as an honest agent would sign it.
    #[must_use]
    pub fn signed(&mut self, txn: Txn) -> Txn {
        self.order += 1;
        Txn {
            id: self.writer.next(),
            credits: self.ring.taken(),
            order: self.order,
            incarnation: self.given.bindings.incarnation,
            ..txn
        }
    }

    /// Puts the txn into the slot of its CPU, as it is, and rings.
    pub fn publish(&mut self, txn: &Txn) {
        self.writer.write(self.slot, &txn.to_payload(), CREDIT_WORD);
        self.given.bindings.doorbell.ring(self.cpu);
    }

    /// Publishes the txn, signed, and waits for the host's verdict.
    pub fn lie(&mut self, txn: Txn) -> Outcome {
        let txn = self.signed(txn);
        self.publish(&txn);
        loop {
            let message = self.hear();
            if message.cpu == self.cpu && message.outcome != Outcome::None && message.txn == txn.id {
                return message.outcome;
            }
        }
    }

    /// Publishes each lie several times over, all of which has to be refused with `outcome`; then tells, and ends.
    ///
    /// # Panics
    /// Always: its last words say what the host said.
    pub fn insist(&mut self, txn: Txn, outcome: Outcome) -> ! {
        const TIMES: u32 = 8;
        for time in 1..=TIMES {
            let said = self.lie(txn);
            assert!(said == outcome, "time {time}: {}, and not {}", said.name(), outcome.name());
        }
        panic!("{} times {}", TIMES, outcome.name())
    }
}
