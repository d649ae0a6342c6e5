//! The link: memory on its two sides, what the host writes on its way to the card, and what it reads.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use neap_abi::{Message, MessageKind, TaskFlags};
use neap_agent::{Doorbell, Policy};
use neap_host::trace::Step;
use neap_queue::Line;
use rand::RngExt;

use super::{Event, Request, World, mix};
use crate::faults::FaultKind;

/// Words of a line.
pub(super) const WORDS: usize = 8;
/// While the link is down a read says so.
const ABSENT: [u64; WORDS] = [u64::MAX; WORDS];

/// Memory on one side of the link.
#[derive(Debug)]
pub struct Lines {
    pub(super) messages: Vec<Line>,
    pub(super) slots: Vec<Line>,
    pub(super) control: Line,
}

impl Lines {
    fn new(messages: usize, cpus: u16) -> Self {
        let lines = |count| (0..count).map(|_| Line::default()).collect();
        Self { messages: lines(messages), slots: lines(usize::from(cpus)), control: Line::default() }
    }
}

/// Both sides.
#[derive(Debug)]
pub struct Memory {
    /// The card's DRAM.
    pub(super) card: Lines,
    /// What the host has of it: what it has written, and its cache.
    pub(super) host: Lines,
    pub(super) revoke: AtomicU64,
    pub(super) rung: RefCell<Vec<u16>>,
}

impl Memory {
    /// A ring of `messages` lines (a power of two), and a slot for each of `cpus`.
    #[must_use]
    pub fn new(messages: usize, cpus: u16) -> Self {
        Self {
            card: Lines::new(messages, cpus),
            host: Lines::new(messages, cpus),
            revoke: AtomicU64::new(0),
            rung: RefCell::new(Vec::new()),
        }
    }
}

/// The doorbell's page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bell<'w>(pub(super) &'w RefCell<Vec<u16>>);

impl Doorbell for Bell<'_> {
    fn ring(&self, cpu: u16) {
        self.0.borrow_mut().push(cpu);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) line: u32,
    pub(super) words: [u64; WORDS],
    pub(super) left: u8,
    pub(super) epoch: u32,
}

impl<'w, P: Policy> World<'w, P> {
    /// Tells the agent of an event; the line leaves the CPU after `write_ns`.
    pub(super) fn tell(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags, write_ns: u64) {
        let message = self.message(kind, cpu, task, flags);
        self.emit(message, write_ns);
    }

    /// The line that tells of an event.
    pub(super) fn message(&self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Message {
        self.labelled(self.mechanism.message(kind, cpu, task, flags))
    }

    /// A message with the class and group of its task's request.
    fn labelled(&self, message: Message) -> Message {
        match self.jobs.get(message.task as usize).and_then(|job| job.request) {
            Some(Request { class, group, .. }) => Message { class, group, ..message },
            None => message,
        }
    }

    pub(super) fn emit(&mut self, mut message: Message, write_ns: u64) {
        if self.host_decides {
            self.host_kick();
            return;
        }
        message.time_ns = self.clock.now_ns();
        if self.resync_due {
            return;
        }
        if self.outbox.is_empty() {
            if !self.send(message, write_ns) {
                self.resync_due = true;
            }
            return;
        }
        if let Some((txn, outcome)) = self.wire.take_txn_outcome(message.cpu) {
            (message.txn, message.outcome) = (txn, outcome);
        }
        self.outbox.push_back(message);
        self.pump();
    }

    pub(super) fn pump(&mut self) {
        if self.host_decides {
            return;
        }
        if self.resync_due {
            self.wire.refresh_credits();
            if self.wire.room() < self.wire.lines() / 2 {
                return;
            }
            self.resync_due = false;
            self.seen.resyncs += 1;
            self.resync_since_ns = Some(self.clock.now_ns());
            let lines = self.mechanism.resync();
            self.outbox = lines.into_iter().map(|message| self.labelled(message)).collect();
        }
        let write_ns = self.setup.costs.write_ns;
        while let Some(&message) = self.outbox.front() {
            if !self.send(message, write_ns) {
                break;
            }
            self.outbox.pop_front();
        }
    }

    pub(super) fn send(&mut self, message: Message, write_ns: u64) -> bool {
        let Ok(number) = self.wire.send(message) else { return false };
        self.told.push_back(message.kind);
        let lines = self.memory.host.messages.len() as u32;
        let line = number & (lines - 1);
        let words = self.memory.host.messages[line as usize].words();
        words.iter().for_each(|&word| mix(&mut self.seen.trace_hash, word));
        if let Some(recorder) = &mut self.recorder
            && let Some((payload, _)) = self.memory.host.messages[line as usize].read_any()
            && let Ok(message) = Message::from_payload(&payload)
        {
            recorder.steps.push(Step { message, decisions: Vec::new() });
        }
        if !self.link_up {
            return true;
        }
        let mut transit_ns = write_ns + self.setup.costs.transit_ns;
        if self.befalls(FaultKind::DelayedWrite) {
            transit_ns += self.rng.random_range(1_000..200_000);
        }
        let flight = Flight { line, words, left: WORDS as u8, epoch: self.epoch };
        let number = match self.flights_free.pop() {
            Some(number) => {
                self.flights[number as usize] = flight;
                number
            }
            None => {
                self.flights.push(flight);
                self.flights.len() as u32 - 1
            }
        };
        if self.befalls(FaultKind::SplitWrite) {
            for word in 0..WORDS as u8 {
                let after_ns = transit_ns + self.rng.random_range(0..20_000);
                self.clock.after(after_ns, Event::LandWord(number, word));
            }
        } else {
            self.clock.after(transit_ns, Event::Land(number));
        }
        true
    }

    pub(super) fn land(&mut self, number: u32, word: Option<u8>) {
        let flight = self.flights[number as usize];
        let line = &self.memory.card.messages[flight.line as usize];
        let whole = flight.epoch == self.epoch;
        match word {
            None => {
                self.flights_free.push(number);
                if whole {
                    flight.words.iter().enumerate().for_each(|(i, &value)| line.land(i, value));
                }
            }
            Some(word) => {
                if whole {
                    line.land(usize::from(word), flight.words[usize::from(word)]);
                }
                let left = &mut self.flights[number as usize].left;
                *left -= 1;
                if *left == 0 {
                    self.flights_free.push(number);
                }
            }
        }
        if whole {
            self.agent_soon();
        }
    }

    pub(super) fn doorbell(&mut self, cpu: u16, at_ns: u64) {
        if !self.link_up {
            return;
        }
        let mut at_ns = at_ns + self.setup.costs.ring_transit_ns;
        if self.befalls(FaultKind::LostRing) {
            return;
        }
        if self.befalls(FaultKind::LateRing) {
            at_ns += self.rng.random_range(1_000..500_000);
        }
        if self.befalls(FaultKind::DoubledRing) {
            let again_ns = self.rng.random_range(1..50_000);
            self.clock.at(at_ns + again_ns, Event::Ring(cpu));
        }
        self.clock.at(at_ns, Event::Ring(cpu));
    }

    /// The card answers a read of a slot; what the cache holds already is not read again.
    pub(super) fn sample(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        if self.cpus[at].cached {
            return;
        }
        self.cpus[at].cached = true;
        let words = if self.link_up { self.memory.card.slots[at].words() } else { ABSENT };
        let line = &self.memory.host.slots[at];
        words.iter().enumerate().for_each(|(i, &word)| line.land(i, word));
    }

    pub(super) fn flush(&mut self, cpu: u16) {
        if !self.befalls(FaultKind::StaleLine) {
            self.cpus[usize::from(cpu)].cached = false;
        }
    }

    /// A read that nothing has prepared: sampled on its way, looked at when it is back.
    pub(super) fn read_then(&mut self, cpu: u16, after_ns: u64, then: fn(u16, u32) -> Event) {
        let generation = self.cpus[usize::from(cpu)].generation;
        let costs = &self.setup.costs;
        let (transit_ns, read_ns) = (costs.transit_ns, costs.read_ns);
        self.clock.after(after_ns + transit_ns.min(read_ns), Event::Sample(cpu, generation));
        self.clock.after(after_ns + read_ns, then(cpu, generation));
    }
}
