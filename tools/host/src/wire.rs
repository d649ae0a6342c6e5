//! The host's end of one agent's lines: the ring that it writes, the slots that it reads, and what it knows of both. The
//! lines may lie in a window or in this process's memory; the agent may be anywhere.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use neap_abi::{AgentControl, Ledger, Message, Outcome, Tag, Txn, TxnFlags};
use neap_queue::{CreditError, Full, Line, RingError, SharedProducer, SlotReader};

/// What the wire keeps for one CPU.
#[derive(Debug, Default)]
struct CpuEnd {
    reader: SlotReader,
    /// The tag of the line taken last.
    taken: Option<Tag>,
    /// The verdict that the CPU's next line carries.
    outcome: Option<(u32, Outcome)>,
}

/// No agent is excepted: every agent's credits are believed.
const ANY: u32 = u32::MAX;

/// The host's end of an agent's lines.
#[derive(Debug)]
pub struct Wire<'w> {
    producer: SharedProducer<'w>,
    slots: &'w [Line],
    agent_line: &'w Line,
    lines: u32,
    cpus: Vec<Mutex<CpuEnd>>,
    /// The agent whose credits count, or [`ANY`].
    incarnation: AtomicU32,
    poisoned: AtomicBool,
    /// Messages with their lines' numbers, if they are kept.
    kept: OnceLock<Mutex<Vec<(u32, Message)>>>,
}

impl<'w> Wire<'w> {
    /// The end of fresh lines, one slot a CPU.
    ///
    /// # Errors
    /// Lines that make no ring.
    pub fn new(messages: &'w [Line], slots: &'w [Line], agent_line: &'w Line) -> Result<Self, RingError> {
        Ok(Self {
            producer: SharedProducer::new(messages)?,
            slots,
            agent_line,
            lines: messages.len() as u32,
            cpus: slots.iter().map(|_| Mutex::default()).collect(),
            incarnation: AtomicU32::new(ANY),
            poisoned: AtomicBool::new(false),
            kept: OnceLock::new(),
        })
    }

    /// Writes one message, carrying also the verdict on the last txn that its CPU took. Returns the line's number.
    ///
    /// # Errors
    /// [`Full`]: the line was not written, and the verdict waits for the next. Nothing blocks.
    pub fn send(&self, mut message: Message) -> Result<u32, Full> {
        let mut end = self.cpu(message.cpu);
        if let Some(end) = &end
            && let Some((txn, outcome)) = end.outcome
        {
            (message.txn, message.outcome) = (txn, outcome);
        }
        let payload = message.to_payload();
        let number = self.producer.push(&payload).or_else(|Full| {
            // Off the hot path: decision lines have brought no news, so look at what the agent reports when idle.
            self.refresh_credits();
            self.producer.push(&payload)
        })?;
        if let Some(end) = &mut end {
            end.outcome = None;
        }
        if let Some(kept) = self.kept.get() {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push((number, message));
        }
        Ok(number)
    }

    /// Keeps every message from now on, for a trace.
    pub fn keep_messages(&self) {
        self.kept.get_or_init(Mutex::default);
    }

    /// The messages that were kept, in the order of the ring.
    #[must_use]
    pub fn kept_messages(&self) -> Vec<Message> {
        let Some(kept) = self.kept.get() else { return Vec::new() };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = kept.first().map_or(0, |(number, _)| *number);
        // CPUs that write at the same time come here in any order, at most a ring apart.
        kept.sort_by_key(|(number, _)| number.wrapping_sub(first.wrapping_sub(self.lines)));
        kept.into_iter().map(|(_, message)| message).collect()
    }

    /// Takes what lies in the slot of `cpu`, if it is new and whole, and the credits with it.
    pub fn read_txn(&self, cpu: u16) -> Option<Txn> {
        Some(self.read_line(cpu)?.0)
    }

    /// As [`Wire::read_txn`], with the txn's ledger as far as it is entered.
    pub fn read_line(&self, cpu: u16) -> Option<(Txn, Ledger)> {
        let mut end = self.cpu(cpu)?;
        let taken = end.reader.take(self.slots.get(usize::from(cpu))?)?;
        end.taken = Some(taken.tag);
        let (txn, ledger) = (Txn::from_payload(&taken.payload), Ledger::from_payload(&taken.payload));
        // What an agent that has ended left behind says nothing against its successor.
        if !self.counts(&txn) {
            return Some((txn, ledger));
        }
        // The tag follows from the id: a line that says otherwise is no libOS's.
        if Txn::tag(txn.id) != taken.tag || self.producer.credit(txn.credits).is_err() {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        Some((txn, ledger))
    }

    /// Whether a decision of the present agent lies in the slot of `cpu`, not yet taken.
    #[must_use]
    pub fn has_untaken(&self, cpu: u16) -> bool {
        let (Some(end), Some(line)) = (self.cpu(cpu), self.slots.get(usize::from(cpu))) else { return false };
        let lies = line.read_any();
        lies.is_some_and(|(payload, tag)| end.taken != Some(tag) && self.counts(&Txn::from_payload(&payload)))
    }

    /// Whether a decision lies in the slot of `cpu`, untaken, that takes the CPU from what runs there. It is left there.
    #[must_use]
    pub fn preempts(&self, cpu: u16) -> bool {
        let (Some(end), Some(line)) = (self.cpu(cpu), self.slots.get(usize::from(cpu))) else { return false };
        line.read_any().is_some_and(|(payload, tag)| {
            let txn = Txn::from_payload(&payload);
            end.taken != Some(tag) && self.counts(&txn) && txn.flags.has(TxnFlags::PREEMPT)
        })
    }

    fn counts(&self, txn: &Txn) -> bool {
        let agent = self.incarnation.load(Ordering::Relaxed);
        agent == ANY || agent == txn.incarnation
    }

    /// Keeps the verdict on txn `txn` for the next line of `cpu`.
    pub fn set_txn_outcome(&self, cpu: u16, txn: u32, outcome: Outcome) {
        if let Some(mut end) = self.cpu(cpu) {
            end.outcome = Some((txn, outcome));
        }
    }

    /// Takes the verdict that waits for the next line of `cpu`, for a line that is itself kept waiting.
    pub fn take_txn_outcome(&self, cpu: u16) -> Option<(u32, Outcome)> {
        self.cpu(cpu)?.outcome.take()
    }

    /// Another agent takes over: only its txns bring credits, what was poisoned is forgiven, and verdicts on its
    /// predecessor's txns are not its business.
    pub fn succeed(&self, incarnation: Option<u32>) {
        self.incarnation.store(incarnation.unwrap_or(ANY), Ordering::Relaxed);
        for cpu in 0..self.cpus.len() as u16 {
            self.take_txn_outcome(cpu);
        }
        self.poisoned.store(false, Ordering::Relaxed);
    }

    /// What the agent last said of itself.
    #[must_use]
    pub fn agent(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.agent_line.read_any()?.0)
    }

    /// Takes the credits from the agent's control line. True if they can be.
    pub fn refresh_credits(&self) -> bool {
        match self.agent().map(|agent| self.producer.credit(agent.credits)) {
            Some(Err(CreditError { .. })) => {
                self.poisoned.store(true, Ordering::Relaxed);
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    /// Whether the agent has broken the protocol.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Lines that fit the ring before the next credit.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.producer.room()
    }

    /// Messages that the agent is known to have taken, modulo 2^32.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.producer.written().wrapping_sub(self.lines - self.producer.room())
    }

    /// Lines in the ring.
    #[must_use]
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Messages sent, modulo 2^32.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.producer.written()
    }

    fn cpu(&self, cpu: u16) -> Option<MutexGuard<'_, CpuEnd>> {
        Some(self.cpus.get(usize::from(cpu))?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::MessageKind;
    use neap_queue::SlotWriter;

    fn lines(count: usize) -> Vec<Line> {
        (0..count).map(|_| Line::default()).collect()
    }

    #[test]
    fn what_an_agent_that_has_ended_left_says_nothing_against_its_successor() {
        let (messages, slots, control) = (lines(8), lines(2), Line::default());
        let wire = Wire::new(&messages, &slots, &control).unwrap();
        wire.send(Message::new(MessageKind::Nop, 0)).unwrap();
        wire.succeed(Some(2));
        let mut writer = SlotWriter::default();
        let junk = Txn { id: 1, credits: 77, incarnation: 1, ..Txn::run(0, 0, 0) };
        writer.write(&slots[0], &junk.to_payload(), 4);
        assert!(!wire.has_untaken(0));
        assert_eq!((wire.read_txn(0), wire.poisoned()), (Some(junk), false));
        let good = Txn { id: 2, credits: 1, incarnation: 2, ..junk };
        writer.write(&slots[0], &good.to_payload(), 4);
        assert!(wire.has_untaken(0) && !wire.has_untaken(1) && !wire.has_untaken(2));
        assert_eq!((wire.read_txn(0), wire.poisoned()), (Some(good), false));
        assert!(!wire.has_untaken(0), "it is taken");
        let own = Txn { id: 3, incarnation: 2, ..junk };
        writer.write(&slots[0], &own.to_payload(), 4);
        assert_eq!((wire.read_txn(0), wire.poisoned()), (Some(own), true));
    }

    #[test]
    fn messages_are_kept_with_the_verdicts_that_they_carried() {
        let (messages, slots, control) = (lines(8), lines(2), Line::default());
        let wire = Wire::new(&messages, &slots, &control).unwrap();
        wire.send(Message::new(MessageKind::Nop, 0)).unwrap();
        assert!(wire.kept_messages().is_empty());
        wire.keep_messages();
        wire.set_txn_outcome(1, 9, Outcome::Committed);
        wire.send(Message::new(MessageKind::TaskNew, 0)).unwrap();
        wire.send(Message::new(MessageKind::TaskDead, 1)).unwrap();
        let kept = wire.kept_messages();
        assert_eq!(kept.iter().map(|kept| kept.txn).collect::<Vec<_>>(), [0, 9]);
        assert_eq!(kept[1].outcome, Outcome::Committed);
    }

    #[test]
    fn a_successor_hears_no_verdict_on_its_predecessors_txns() {
        let (messages, slots, control) = (lines(8), lines(2), Line::default());
        let wire = Wire::new(&messages, &slots, &control).unwrap();
        wire.set_txn_outcome(1, 9, Outcome::Committed);
        wire.succeed(Some(2));
        assert_eq!(wire.take_txn_outcome(1), None);
    }
}
