//! An agent's end of the wire.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Vec;
use neap_abi::ledger::DOORBELL_WORD;
use neap_abi::message::UnknownMessage;
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{
    AgentControl, AgentState, CPUS_MAX, Clock, Ledger, Message, MessageKind, Outcome, Txn, TxnFlags, Version,
};
use neap_queue::{Consumer, Line, RingError, SlotWriter};

use crate::{Decide, Doorbell};

/// What an agent is given before it starts: lines of its window, its doorbells, and nothing else.
#[derive(Debug)]
pub struct Bindings<'w, D> {
    /// The decision slots, one a host CPU; as many as the enclave has CPUs.
    pub slots: &'w [Line],
    /// The agent's own control line.
    pub control: &'w Line,
    /// Not zero when the supervisor wants the core back (visible revocation).
    pub revoke: &'w AtomicU64,
    /// Rings this enclave's CPUs.
    pub doorbell: D,
    /// The IPU core that the agent owns.
    pub core: u8,
    /// The IPU's peer number and the vector that wakes this core: where the host rings.
    pub wake: (u16, u16),
    /// The host's session.
    pub session: u32,
    /// The version that host and IPU speak.
    pub version: Version,
    /// Which agent of its enclave this is.
    pub incarnation: u32,
    /// Lines of the ring that earlier agents of the session have taken, modulo 2^32.
    pub taken: u32,
    /// Resyncs that agents of the session have asked for, the one that this agent starts with included.
    pub resyncs: u32,
    /// Whose time the policy is told, if it wants to know it.
    pub clock: Clock,
}

/// Why the libOS did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentError {
    /// The enclave has no such CPU.
    NoCpu {
        /// The CPU asked for.
        cpu: u16,
    },
    /// More lines lie in this CPU's slot, untaken, than a slot can tell apart.
    SlotBusy {
        /// The CPU.
        cpu: u16,
    },
    /// A group of no or too many members.
    GroupSize {
        /// How many.
        members: usize,
    },
    /// The agent has its queue: credits name no ring, so there is one.
    QueueExists,
    /// The lines make no ring.
    Ring(RingError),
    /// Private memory of another size than the agent was built for.
    Memory {
        /// Entries given.
        entries: usize,
        /// Entries wanted.
        wanted: usize,
    },
    /// More CPUs than slots can be kept track of.
    TooManyCpus {
        /// How many.
        cpus: usize,
    },
    /// A message of a kind or with an outcome that this version does not know, or from a CPU outside the enclave.
    Unknown(UnknownMessage),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCpu { cpu } => write!(f, "the enclave has no CPU {cpu}"),
            Self::SlotBusy { cpu } => {
                write!(f, "CPU {cpu} takes no decisions: its slot is full of untaken lines")
            }
            Self::GroupSize { members } => write!(f, "a group of {members} txns: it takes 1 to 255"),
            Self::QueueExists => f.write_str("the agent has a message queue already"),
            Self::Ring(error) => error.fmt(f),
            Self::Memory { entries, wanted } => {
                write!(f, "private memory for {entries} tasks, not for {wanted}")
            }
            Self::TooManyCpus { cpus } => write!(f, "{cpus} CPUs: an enclave has at most {CPUS_MAX}"),
            Self::Unknown(UnknownMessage { kind, outcome }) => {
                write!(f, "message of kind {kind} with outcome {outcome} is not known here")
            }
        }
    }
}

impl core::error::Error for AgentError {}

/// What [`Agent::pass_over`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// No line has come.
    Nothing,
    /// A line, which is passed over.
    Line,
    /// A resync begins; its first line is not taken yet.
    Resync,
}

/// What the libOS knows of one decision slot.
#[derive(Clone, Copy, Debug)]
struct Slot<'w> {
    line: &'w Line,
    writer: SlotWriter,
    /// The last txn that the host is known to have taken.
    taken: u32,
}

/// A doorbell that is not in its line's ledger yet.
#[derive(Clone, Copy, Debug)]
struct Rung {
    cpu: u16,
    /// The txn that it was rung for.
    id: u32,
    /// When; 0 for none.
    ticks: u64,
}

/// What an agent keeps of its bindings: what it does not look at again would only push the rest apart.
#[derive(Debug)]
struct Held<'w, D> {
    control: &'w Line,
    revoke: &'w AtomicU64,
    doorbell: D,
    core: u8,
    wake: (u16, u16),
    session: u32,
    version: Version,
    incarnation: u32,
    clock: Clock,
}

/// An agent's end of the wire, with a subsystem's private extension `X` (paper section 3.2).
#[derive(Debug)]
pub struct Agent<'w, D, X = ()> {
    /// The subsystem's own part of the API.
    pub extension: X,
    bindings: Held<'w, D>,
    queue: Option<Consumer<'w>>,
    /// Messages taken in all: the credits.
    taken: u32,
    /// When what the policy decides next began: its message was whole, or it was told the time.
    seen_ticks: u64,
    rung: Rung,
    slots: Vec<Slot<'w>, { CPUS_MAX as usize }>,
    control: SlotWriter,
    /// Decisions made.
    order: u32,
    /// Ours, for the host to tell our txns from those of agents before us; zero where it is of 1.1.
    incarnation: u32,
    group: u32,
    doorbells: u32,
    unknown: u32,
    resyncs: u32,
}

impl<'w, D: Doorbell, X> Agent<'w, D, X> {
    /// An agent over its bindings.
    ///
    /// # Errors
    /// More slots than an enclave can have.
    pub fn new(bindings: Bindings<'w, D>, extension: X) -> Result<Self, AgentError> {
        let cpus = bindings.slots.len();
        let mut slots = Vec::new();
        for line in bindings.slots {
            // What an agent before us left there: our numbers go on after its, so that none is taken for another.
            let left = line.read_any().map_or(0, |(payload, _)| Txn::from_payload(&payload).id);
            let slot = Slot { line, writer: SlotWriter::resume(left), taken: left };
            slots.push(slot).map_err(|_| AgentError::TooManyCpus { cpus })?;
        }
        let control = SlotWriter::after(bindings.control);
        let knows_incarnations = bindings.version >= Version::AGENTS_COME_AND_GO;
        Ok(Self {
            extension,
            queue: None,
            taken: bindings.taken,
            seen_ticks: 0,
            rung: Rung { cpu: 0, id: 0, ticks: 0 },
            slots,
            control,
            order: 0,
            incarnation: if knows_incarnations { bindings.incarnation } else { 0 },
            group: 0,
            doorbells: 0,
            unknown: 0,
            resyncs: bindings.resyncs,
            bindings: Held {
                control: bindings.control,
                revoke: bindings.revoke,
                doorbell: bindings.doorbell,
                core: bindings.core,
                wake: bindings.wake,
                session: bindings.session,
                version: bindings.version,
                incarnation: bindings.incarnation,
                clock: bindings.clock,
            },
        })
    }

    /// Makes the message queue over `lines`, fresh and zeroed but for what earlier agents have taken (`CREATE_QUEUE`).
    ///
    /// # Errors
    /// Lines that make no ring; a second queue.
    pub fn create_queue(&mut self, lines: &'w [Line]) -> Result<(), AgentError> {
        if self.queue.is_some() {
            return Err(AgentError::QueueExists);
        }
        self.queue = Some(Consumer::resume(lines, self.taken).map_err(AgentError::Ring)?);
        Ok(())
    }

    /// The next message, if all of it has landed (`POLL_MESSAGE`).
    ///
    /// # Errors
    /// A message that means nothing here. It is counted, and the host asked for a resync.
    #[inline(always)]
    pub fn poll_message(&mut self) -> Result<Option<Message>, AgentError> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        let Some(payload) = queue.poll() else { return Ok(None) };
        self.seen_ticks = self.bindings.doorbell.ticks();
        self.taken = queue.taken();
        let message = match Message::from_payload(&payload) {
            Ok(message) => message,
            Err(unknown) => return Err(self.refuse(unknown)),
        };
        let Some(slot) = self.slots.get_mut(usize::from(message.cpu)) else {
            return Err(
                self.refuse(UnknownMessage { kind: message.kind as u8, outcome: message.outcome as u8 })
            );
        };
        if message.outcome != Outcome::None {
            slot.taken = message.txn;
        }
        Ok(Some(message))
    }

    /// What is decided next rests on the time, not on a message.
    #[inline(always)]
    pub(crate) fn see_time(&mut self) {
        self.seen_ticks = self.bindings.doorbell.ticks();
    }

    /// Whether a message waits, without taking it.
    #[must_use]
    pub fn has_message(&self) -> bool {
        self.queue.as_ref().is_some_and(Consumer::ready)
    }

    /// Takes and passes over what was meant for the agent before this one: all up to the next resync's beginning.
    pub(crate) fn pass_over(&mut self) -> Passed {
        let Some(next) = self.queue.as_ref().and_then(Consumer::peek) else { return Passed::Nothing };
        if Message::from_payload(&next).is_ok_and(|message| message.kind == MessageKind::ResyncBegin) {
            return Passed::Resync;
        }
        // Its verdicts are on txns that are not ours: only the line counts.
        if let Some(queue) = &mut self.queue
            && queue.poll().is_some()
        {
            self.taken = queue.taken();
        }
        Passed::Line
    }

    #[cold]
    fn refuse(&mut self, unknown: UnknownMessage) -> AgentError {
        self.unknown = self.unknown.wrapping_add(1);
        self.resync();
        AgentError::Unknown(unknown)
    }

    /// Whether the supervisor wants the core back.
    #[must_use]
    #[inline(always)]
    pub fn revoked(&self) -> bool {
        self.bindings.revoke.load(Ordering::Relaxed) != 0
    }

    /// Whose time the policy is told.
    #[must_use]
    #[inline(always)]
    pub fn clock(&self) -> Clock {
        self.bindings.clock
    }

    /// Messages taken in all, modulo 2^32.
    #[must_use]
    #[inline(always)]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Host CPUs in the enclave.
    #[must_use]
    pub fn cpus(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Writes the control line: state, credits and counts.
    pub fn report(&mut self, state: AgentState, asleep: bool) {
        let line = AgentControl {
            state,
            core: self.bindings.core,
            asleep,
            peer: self.bindings.wake.0,
            vector: self.bindings.wake.1,
            session: self.bindings.session,
            version: self.bindings.version,
            credits: self.taken(),
            resyncs: self.resyncs,
            decisions: u64::from(self.order),
            unknown: self.unknown,
            doorbells: u64::from(self.doorbells),
            incarnation: self.bindings.incarnation,
        };
        // Word 3, the credits, last: the lines taken are done with.
        self.control.write(self.bindings.control, &line.to_payload(), 3);
    }

    #[inline(always)]
    fn publish(&mut self, txn: &Txn, decided_ticks: u64, published_ticks: u64) -> Result<u32, AgentError> {
        let credits = self.taken;
        let cpu = txn.cpu;
        let Some(slot) = self.slots.get_mut(usize::from(cpu)) else { return Err(AgentError::NoCpu { cpu }) };
        let id = slot.writer.next();
        if id.wrapping_sub(slot.taken) > SlotWriter::OUTSTANDING_MAX {
            return Err(AgentError::SlotBusy { cpu });
        }
        self.order = self.order.wrapping_add(1);
        let txn = Txn { id, credits, order: self.order, incarnation: self.incarnation, ..*txn };
        let mut payload = txn.to_payload();
        Ledger::enter(&mut payload, self.seen_ticks, decided_ticks, published_ticks);
        slot.writer.write(slot.line, &payload, CREDIT_WORD);
        Ok(id)
    }

    /// Enters the last doorbell into the ledger of its line, if another has not taken that line's place. The policy is done by
    /// now, and the host on its way.
    #[inline(always)]
    pub(crate) fn enter_doorbell(&mut self) {
        let Rung { cpu, id, ticks } = self.rung;
        if ticks == 0 {
            return;
        }
        self.rung.ticks = 0;
        if let Some(slot) = self.slots.get(usize::from(cpu))
            && slot.writer.number() == id
        {
            slot.writer.amend(slot.line, DOORBELL_WORD, Ledger::rung(id, ticks));
        }
    }

    #[inline(always)]
    fn ring(&mut self, cpu: u16) {
        self.bindings.doorbell.ring(cpu);
        self.doorbells = self.doorbells.wrapping_add(1);
    }
}

impl<D: Doorbell, X> Decide for Agent<'_, D, X> {
    #[inline(always)]
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        let decided_ticks = self.bindings.doorbell.ticks();
        let mut last = Ok(0);
        let mut published = 0;
        for txn in txns {
            // Nothing lies between the first one's decision and its line: one look at the counter says both.
            let published_ticks = if published == 0 { decided_ticks } else { self.bindings.doorbell.ticks() };
            last = self.publish(txn, decided_ticks, published_ticks);
            if last.is_err() {
                break;
            }
            published += 1;
        }
        // All lines first: a group's members should find each other there.
        for txn in txns.iter().take(published) {
            if !txn.flags.has(TxnFlags::PRESTAGED) {
                self.ring(txn.cpu);
            }
        }
        if let (Ok(id), Some(txn)) = (last, txns.last())
            && !txn.flags.has(TxnFlags::PRESTAGED)
        {
            self.rung = Rung { cpu: txn.cpu, id, ticks: self.bindings.doorbell.ticks() };
        }
        last
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        let members = txns.len();
        let Ok(size @ 1..) = u8::try_from(members) else { return Err(AgentError::GroupSize { members }) };
        for txn in txns.iter() {
            let cpu = txn.cpu;
            let slot = self.slots.get(usize::from(cpu)).ok_or(AgentError::NoCpu { cpu })?;
            if slot.writer.next().wrapping_sub(slot.taken) > SlotWriter::OUTSTANDING_MAX {
                return Err(AgentError::SlotBusy { cpu });
            }
        }
        self.group = self.group % 0xff_ffff + 1;
        for txn in txns.iter_mut() {
            txn.flags = txn.flags.with(TxnFlags::GROUP);
            txn.group_size = size;
            txn.group = self.group;
        }
        self.txns_commit(txns)
    }

    #[inline(always)]
    fn nudge(&mut self, cpu: u16) {
        if usize::from(cpu) < self.slots.len() {
            self.ring(cpu);
        }
    }

    #[cold]
    fn resync(&mut self) {
        self.resyncs = self.resyncs.wrapping_add(1);
        self.report(AgentState::Running, false);
    }
}
