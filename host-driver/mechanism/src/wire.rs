//! The host's end of one function's lines: the ring that it writes, the slots that it reads. All that stands in them is the
//! IPU's allegation.

use neap_abi::line::Payload;
use neap_abi::{AgentControl, Message, Txn};
use neap_queue::{Full, Line, RingError, SharedProducer};

use crate::Platform;
use crate::counters::Count;
use crate::cpu::Cpu;
use crate::enclave::Enclave;
use crate::sync::figures;
use crate::sync::{AtomicBool, Ordering, fence};

/// The lines of one function, mapped as its hello page says.
#[derive(Debug)]
pub struct Wire<'w, P> {
    producer: SharedProducer<'w>,
    slots: &'w [Line],
    agent_line: &'w Line,
    lines: u32,
    /// The agent sleeps when idle: it has to be rung.
    sleeps: bool,
    /// Where it is rung: peer << 16 | vector.
    bell: figures::AtomicU32,
    poisoned: AtomicBool,
    /// What the hardware does.
    pub platform: P,
}

/// What a slot holds for its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The txn, as the IPU has it.
    pub txn: Txn,
    /// Its line's payload.
    pub payload: Payload,
    /// Its line's tag.
    pub tag: u8,
}

/// What a line cost on the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Reads that went over it.
    pub(crate) uncached_reads: u64,
    /// Lines that were written.
    pub(crate) line_writes: u64,
}

impl<'w, P: Platform> Wire<'w, P> {
    /// The end of a fresh ring, one slot a CPU.
    ///
    /// # Errors
    /// Lines that make no ring.
    pub fn new(
        messages: &'w [Line],
        slots: &'w [Line],
        agent_line: &'w Line,
        sleeps: bool,
        platform: P,
    ) -> Result<Self, RingError> {
        Ok(Self {
            producer: SharedProducer::new(messages)?,
            slots,
            agent_line,
            lines: messages.len() as u32,
            sleeps,
            bell: figures::AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
            platform,
        })
    }

    /// Says where the agent is rung.
    pub fn set_bell(&self, peer: u16, vector: u16) {
        self.bell.store(u32::from(peer) << 16 | u32::from(vector), Ordering::Relaxed);
    }

    /// Rings the agent.
    pub fn ring(&self) {
        let bell = self.bell.load(Ordering::Relaxed);
        self.platform.ring((bell >> 16) as u16, bell as u16);
    }

    /// Writes one line and sees it off. `cpu` is the one that writes, and counts. On the way of a `hit` an agent that may sleep
    /// is rung without a look, since looking is an uncached read.
    ///
    /// # Errors
    /// [`Full`]: the line was not written.
    pub(crate) fn send(&self, message: &Message, cpu: &Cpu, hit: bool) -> (Result<u32, Full>, Cost) {
        let payload = message.to_payload();
        let mut cost = Cost::default();
        let number = match self.producer.push(&payload) {
            Ok(number) => number,
            Err(Full) => {
                // Off the hot path: decision lines have brought no news, so look at what the agent says when idle.
                cost.uncached_reads = 1;
                self.refresh_credits();
                match self.producer.push(&payload) {
                    Ok(number) => number,
                    Err(Full) => return (Err(Full), cost),
                }
            }
        };
        cost.line_writes = 1;
        self.platform.drain();
        self.platform.sent(message);
        cpu.counters.one(Count::Messages);
        if self.sleeps && (hit || self.sleeps_now(&mut cost)) {
            cpu.counters.one(Count::Rings);
            self.ring();
        }
        cpu.counters.add(Count::UncachedReads, cost.uncached_reads);
        (Ok(number), cost)
    }

    /// Whether the agent sleeps. Either it sees our line, or we see that it sleeps: it says so, fences, and looks again, as we do.
    fn sleeps_now(&self, cost: &mut Cost) -> bool {
        fence(Ordering::SeqCst);
        cost.uncached_reads = cost.uncached_reads.wrapping_add(1);
        let Some(agent) = self.agent() else { return false };
        self.set_bell(agent.peer, agent.vector);
        agent.asleep
    }

    /// Begins to fetch the slot of `cpu`.
    pub(crate) fn prefetch(&self, cpu: u16) {
        if let Some(line) = self.slots.get(usize::from(cpu)) {
            self.platform.prefetch(line);
        }
    }

    /// Drops what the caches hold of the slot of `cpu`.
    pub(crate) fn flush(&self, cpu: u16) {
        if let Some(line) = self.slots.get(usize::from(cpu)) {
            self.platform.flush(line);
        }
    }

    /// What lies in the slot of `cpu`, if it is whole and not what was taken last. The line leaves the caches, so that the next
    /// look does not see it again.
    pub(crate) fn look(&self, number: u16, taken: u8) -> Option<Offer> {
        let line = self.slots.get(usize::from(number))?;
        let found = line.read_any();
        self.platform.flush(line);
        let (payload, tag) = found?;
        let tag = tag.byte();
        (tag != taken).then(|| Offer { txn: Txn::from_payload(&payload), payload, tag })
    }

    /// As [`Wire::look`], and takes it with its credits. Those of an agent that does not count are not asked: what an agent
    /// that has ended left behind says nothing against its successor.
    pub(crate) fn take(&self, number: u16, cpu: &Cpu, enclave: &Enclave) -> Option<Offer> {
        let offer = self.look(number, cpu.taken.load(Ordering::Relaxed) as u8)?;
        cpu.taken.store(u32::from(offer.tag), Ordering::Relaxed);
        cpu.rings.store(0, Ordering::Relaxed);
        let counts = enclave.agent().is_none_or(|agent| agent == offer.txn.incarnation);
        // The tag follows from the id: a line that says otherwise is no libOS's.
        if counts
            && (Txn::tag(offer.txn.id).byte() != offer.tag
                || self.producer.credit(offer.txn.credits).is_err())
        {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        if self.poisoned() {
            enclave.poison();
        }
        Some(offer)
    }

    /// What the agent last said of itself: an uncached read.
    #[must_use]
    pub fn agent(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.agent_line.read_any()?.0)
    }

    /// Takes the credits from the agent's control line.
    pub fn refresh_credits(&self) {
        if let Some(agent) = self.agent() {
            if self.producer.credit(agent.credits).is_err() {
                self.poisoned.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether the agent has broken the protocol.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Another agent: what was poisoned is forgiven.
    pub fn forgive(&self) {
        self.poisoned.store(false, Ordering::Relaxed);
    }

    /// Lines that fit the ring before the next credit.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.producer.room()
    }

    /// Lines in the ring.
    #[must_use]
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Lines written, modulo 2^32.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.producer.written()
    }

    /// Decision slots.
    #[must_use]
    pub fn slots(&self) -> u16 {
        self.slots.len() as u16
    }
}
