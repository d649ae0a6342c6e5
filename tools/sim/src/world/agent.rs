//! The agent: the libOS and a policy, taken a message at a time, for as long as that takes.

use neap_abi::{AgentControl, AgentState, MessageKind, Operation, Txn, TxnFlags, Version};
use neap_agent::{Agent, AgentError, Bindings, Clock as AgentClock, Decide, Policy};
use neap_host::mechanism::AgentStanding;
use neap_host::wire::Wire;
use neap_queue::Line;

use super::link::Bell;
use super::{Event, World, mix};

/// An agent that waits for a moment looks at its clock so often.
const POLL_NS: u64 = 500;

pub(super) struct Home<'w, P> {
    pub(super) agent: Agent<'w, Bell<'w>>,
    pub(super) policy: P,
    /// It has heard its first resync begin.
    pub(super) begun: bool,
    pub(super) number: u32,
    pub(super) hangs: bool,
    /// The latest of the messages' times.
    pub(super) latest_ns: u64,
}

/// Counts and digests what a policy decides.
pub(super) struct Deciding<'a, D> {
    pub(super) inner: &'a mut D,
    pub(super) made: u32,
    pub(super) digest: &'a mut u64,
    /// CPUs of another enclave, by bit, and the first of them that is decided for.
    pub(super) foreign: u64,
    pub(super) outside: Option<u16>,
    /// What is decided ahead is kept back until its CPU asks, where nothing is prestaged.
    pub(super) back: Option<&'a mut Back>,
}

/// Decisions kept back, by CPU, and the number of the last one published there.
pub(super) struct Back(pub(super) Vec<(Option<Txn>, u32)>);

impl<D: Decide> Decide for Deciding<'_, D> {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        if let (Some(back), [txn]) = (&mut self.back, txns)
            && let Some((kept, last)) = back.0.get_mut(usize::from(txn.cpu))
        {
            if txn.flags == TxnFlags::PRESTAGED && txn.operation == Operation::Run as u8 {
                *kept = Some(Txn { flags: TxnFlags(0), ..*txn });
                // As the slot will number it.
                return Ok(last.wrapping_add(1));
            }
            self.made += 1;
            let id = self.inner.txns_commit(txns)?;
            (*kept, *last) = (None, id);
            return Ok(id);
        }
        self.made += txns.len() as u32;
        for txn in txns {
            if txn.cpu < 64 && self.foreign >> txn.cpu & 1 != 0 {
                self.outside.get_or_insert(txn.cpu);
            }
            txn.to_payload().iter().for_each(|&word| mix(self.digest, word));
        }
        self.inner.txns_commit(txns)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.made += txns.len() as u32;
        self.inner.txns_commit_group(txns)
    }

    fn nudge(&mut self, cpu: u16) {
        let kept = self.back.as_mut().and_then(|back| back.0.get_mut(usize::from(cpu))?.0.take());
        match kept {
            Some(txn) => drop(self.txns_commit(&[txn])),
            None => self.inner.nudge(cpu),
        }
    }

    fn resync(&mut self) {
        self.inner.resync();
    }
}
impl<'w, P: Policy> World<'w, P> {
    pub(super) fn new_agent(&mut self) {
        let goes_on = self.setup.version >= Version::AGENTS_COME_AND_GO && self.agents > 0 && !self.anew;
        let mut taken = 0;
        if goes_on {
            // As the supervisor counts: the control line may be older than the slots.
            let control = AgentControl::from_payload(&self.memory.card.control.words());
            let slots = self.memory.card.slots.iter().filter_map(Line::read_any);
            let alleged = slots.map(|(payload, _)| Txn::from_payload(&payload).credits);
            for credits in alleged.chain(control.map(|control| control.credits)) {
                if credits.wrapping_sub(taken) < u32::MAX / 2 {
                    taken = credits;
                }
            }
        } else if self.agents > 0 {
            // Another session: lines of an earlier one must prove nothing in this.
            self.epoch += 1;
            self.told.clear();
            for lines in [&self.memory.card, &self.memory.host] {
                lines.messages.iter().chain(&lines.slots).for_each(Line::clear);
            }
            self.memory.card.control.clear();
            self.cpus.iter_mut().for_each(|cpu| cpu.cached = false);
            self.wire =
                Wire::new(&self.memory.host.messages, &self.memory.host.slots, &self.memory.card.control)
                    .expect("it was a ring before");
            self.resyncs_asked = 0;
        }
        self.anew = false;
        self.agents += 1;
        let number = self.agents;
        let named = (self.setup.version >= Version::AGENTS_COME_AND_GO).then_some(number);
        self.mechanism.agent = AgentStanding::Good;
        self.mechanism.incarnation = named;
        self.wire.succeed(named);
        let memory = self.memory;
        let bindings = Bindings {
            slots: &memory.card.slots,
            control: &memory.card.control,
            revoke: &memory.revoke,
            doorbell: Bell(&memory.rung),
            core: 1,
            wake: (0, 0),
            session: number,
            version: self.setup.version,
            incarnation: number,
            taken,
            resyncs: self.resyncs_asked,
            clock: self.setup.clock,
        };
        let mut agent = Agent::new(bindings, ()).expect("CPUs within bounds");
        agent.create_queue(&memory.card.messages).expect("a fresh ring");
        agent.report(AgentState::Running, false);
        let policy = (self.make)();
        self.home = Some(Home { agent, policy, begun: false, number, hangs: false, latest_ns: 0 });
        self.host_decides = false;
        self.watchdog.reset();
        self.outbox.clear();
        self.resync_due = !self.setup.is_told;
        self.pump();
        if goes_on {
            // What was meant for the one before may fill the ring: it is passed over, or there is never room for a resync.
            self.agent_soon();
        }
    }

    pub(super) fn agent_soon(&mut self) {
        let Some(home) = &self.home else { return };
        if self.agent_due || home.hangs {
            return;
        }
        self.agent_due = true;
        let number = home.number;
        let at_ns = self.clock.now_ns().max(self.agent_busy_ns) + self.message_ns();
        self.clock.at(at_ns, Event::Agent(number));
    }

    /// What the next message costs the agent.
    pub(super) fn message_ns(&self) -> u64 {
        let costs = &self.setup.costs;
        match self.told.front() {
            Some(MessageKind::TxnOutcome) => costs.outcome_ns,
            Some(MessageKind::TaskDead | MessageKind::TaskBlocked) => costs.message_ns + costs.uncached_ns,
            _ => costs.message_ns,
        }
    }

    pub(super) fn agent(&mut self, number: u32) {
        self.agent_due = false;
        let now_ns = self.clock.now_ns();
        let Some(home) = self.home.as_mut().filter(|home| home.number == number && !home.hangs) else {
            return;
        };
        let mut deciding = Deciding {
            inner: &mut home.agent,
            made: 0,
            digest: &mut self.seen.trace_hash,
            foreign: self.setup.foreign,
            outside: None,
            back: if self.setup.costs.prestages { None } else { Some(&mut self.back) },
        };
        let mut waits = false;
        let mut took = false;
        let by_messages = P::TIMED && self.setup.clock == AgentClock::Messages;
        match deciding.inner.poll_message() {
            Ok(Some(message)) => {
                self.told.pop_front();
                if message.kind == MessageKind::ResyncBegin {
                    home.begun = true;
                }
                if message.kind == MessageKind::ResyncEnd {
                    self.resync_since_ns = None;
                }
                self.seen.messages += 1;
                // What was meant for nobody is passed over, as the libOS's loop does.
                if home.begun {
                    if by_messages {
                        home.latest_ns = home.latest_ns.max(message.time_ns);
                        home.policy.time(home.latest_ns, &mut deciding);
                    }
                    home.policy.message(&message, &mut deciding);
                }
                took = true;
            }
            Ok(None) => deciding.inner.report(AgentState::Running, false),
            Err(_) => drop(self.told.pop_front()),
        }
        if P::TIMED && home.begun && !by_messages {
            waits = home.policy.time(now_ns, &mut deciding);
        }
        let (made, outside) = (deciding.made, deciding.outside);
        if took && let Some(recorder) = &mut self.recorder {
            recorder.took(&self.memory.card.slots);
        }
        self.seen.decisions += u64::from(made);
        if let Some(cpu) = outside {
            self.violated(format!("a decision for CPU {cpu}, which is another enclave's"));
        }
        let costs = self.setup.costs;
        let mut busy_ns = now_ns + u64::from(made) * costs.open_ns;
        let rung: Vec<u16> = std::mem::take(&mut *self.memory.rung.borrow_mut());
        for cpu in rung {
            busy_ns += costs.send_ns;
            self.doorbell(cpu, busy_ns);
        }
        self.agent_busy_ns = busy_ns;
        let home = self.home.as_mut().expect("it was there above");
        if home.agent.has_message() {
            self.agent_due = true;
            let message_ns = self.message_ns();
            self.clock.at(busy_ns + message_ns, Event::Agent(number));
        } else if waits {
            self.agent_due = true;
            self.clock.at(busy_ns + POLL_NS, Event::Agent(number));
        } else {
            home.agent.report(AgentState::Running, false);
        }
    }
}
