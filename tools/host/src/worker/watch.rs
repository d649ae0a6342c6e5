//! The watch over an enclave: its agent's health, who decides when that fails, and how the IPU comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neap_abi::control::{INCARNATION_MASK, came_after};
use neap_abi::message::TASK_NONE;
use neap_abi::{AgentControl, AgentState, Manage, Version};

use super::enclave::{Enclave, State, attachment, named_by};
use crate::event::{EventKind, Fault, Level};
use crate::link::OwnedLink;
use crate::manager::Manager;
use crate::mechanism::AgentStanding;
use crate::report::FallbackReport;
use crate::spare::SpareAgent;
use neap_mechanism::watch::{Beat, Blame};

/// Housekeeping's period: alarms, credits, resyncs, the agent's health.
pub(super) const BEAT: Duration = Duration::from_millis(1);
/// Between two points of the queue's timeline.
const SAMPLE: Duration = Duration::from_millis(20);
/// Beats from one look at the hello page to the next.
const HELLO_BEATS: u64 = 100;
/// Doorbells without a new line that make a flood, for one CPU within [`FLOOD_BEATS`]. An agent rings once a line.
const FLOOD_RINGS: u32 = 5000;
/// See [`FLOOD_RINGS`].
const FLOOD_BEATS: u64 = 1000;
/// How long an IPU that has come back may take to answer an attachment anew, and how long until the next is tried.
const REATTACH: Duration = Duration::from_secs(2);

impl Enclave {
    /// One beat of housekeeping, `gap` after the last, of which some thread waited `stalled` for a processor.
    pub(super) fn beat(self: &Arc<Self>, gap: Duration, stalled: Duration) {
        // What was heard of others is asked below; an error leaves that as it was.
        let _ = self.peer.poll_changes();
        let mut state = self.lock();
        let state = &mut *state;
        if state.closing {
            return;
        }
        let now = Instant::now();
        state.beats += 1;
        self.wake_due(state, now);
        self.look(state);
        self.look_at_link(state);
        self.guard(state, gap, stalled);
        self.come_back(state);
        self.reattach(state, now);
        if state.resync_due || !state.outbox.is_empty() {
            self.pump(state);
        }
        if now.duration_since(state.sampled) >= SAMPLE {
            state.sampled = now;
            let depth = state.fifo.waiting() as u64;
            state.report.queue_depth.push((self.start.elapsed().as_millis() as u64, depth));
        }
    }

    /// What the IPU says of its agent, if it speaks of this session. The line is the agent's to write: which agent it is, it
    /// may say as far as the supervisor does, who can be late by one; and it may not say that it is one before.
    fn agent_of(state: &State) -> Option<AgentControl> {
        let link = state.link.link();
        let agent = link.agent().filter(|agent| agent.session == link.session())?;
        let Some(runs) = state.link.manager().and_then(Manager::running) else { return Some(agent) };
        let can_be = if agent.incarnation == 0 {
            Version::from_bits(runs.version) < Version::AGENTS_COME_AND_GO
        } else {
            !came_after(state.incarnation, agent.incarnation)
                && !came_after(agent.incarnation, runs.incarnation.wrapping_add(1))
        };
        can_be.then_some(agent)
    }

    /// Takes note of agents that have come and gone.
    pub(super) fn look(&self, state: &mut State) {
        let Some(agent) = Self::agent_of(state) else { return };
        let AgentControl { incarnation, .. } = agent;
        if incarnation == state.incarnation {
            state.counted = (agent.doorbells, u64::from(agent.unknown));
        }
        match agent.state {
            AgentState::Running if incarnation != state.incarnation => {
                state.bank_counts();
                if !state.ended {
                    self.note(state, EventKind::AgentEnded { incarnation: state.incarnation });
                }
                self.note(state, EventKind::AgentSeen { incarnation });
                // One that came and went between two looks counts too.
                let more = u64::from(incarnation.wrapping_sub(state.incarnation)) & INCARNATION_MASK;
                (state.incarnation, state.ended) = (incarnation, false);
                state.report.incarnations += more;
                if state.level == Level::Ipu {
                    self.succeed(state, &agent);
                }
            }
            AgentState::Running => {
                let back = std::mem::take(&mut state.ended);
                if state.level == Level::Ipu && back {
                    self.succeed(state, &agent);
                } else if state.level == Level::Ipu && agent.resyncs != state.resyncs_asked {
                    state.resyncs_asked = agent.resyncs;
                    state.resync_due = true;
                    state.outbox.clear();
                }
            }
            AgentState::Dead | AgentState::Stopped | AgentState::GivenUp if !state.ended => {
                state.ended = true;
                self.note(state, EventKind::AgentEnded { incarnation: state.incarnation });
                if state.level == Level::Ipu {
                    state.break_groups();
                    state.mechanism.agent = AgentStanding::Gone;
                }
            }
            _ => {}
        }
    }

    /// The IPU's agent decides from now on, and knows nothing yet.
    fn succeed(&self, state: &mut State, agent: &AgentControl) {
        state.break_groups();
        let link = Arc::clone(&state.link);
        let only = named_by(agent, link.link().version());
        link.link().wire().succeed(only);
        state.mechanism.incarnation = only;
        state.mechanism.agent = AgentStanding::Good;
        state.resyncs_asked = agent.resyncs;
        state.fifo.succeeded();
        state.watchdog.reset();
        self.forget_rings();
        self.tell_anew(state);
    }

    fn forget_rings(&self) {
        self.rings.iter().for_each(|rings| rings.store(0, Ordering::Relaxed));
    }

    /// Whether the IPU is still on the link, and is the one that the host attached to.
    fn look_at_link(&self, state: &mut State) {
        if state.link_down {
            return;
        }
        let gone = !self.peer.peers().contains(&state.ipu);
        let reset = state.beats.is_multiple_of(HELLO_BEATS)
            && !self.window.is_of_boot(state.link.link().hello().boot);
        if gone || reset {
            state.link_down = true;
            if !state.ended {
                state.ended = true;
                self.note(state, EventKind::AgentEnded { incarnation: state.incarnation });
            }
            if state.level == Level::Ipu {
                self.fault(state, Fault::LinkDown);
            }
        }
    }

    /// Whether whoever decides does.
    fn guard(&self, state: &mut State, gap: Duration, stalled: Duration) {
        let level = state.level;
        if level == Level::Host {
            return;
        }
        if state.beats.is_multiple_of(FLOOD_BEATS) {
            self.forget_rings();
        }
        if level == Level::OnHost && state.spare.as_ref().is_none_or(SpareAgent::has_ended) {
            return self.fault(state, Fault::AgentDead);
        }
        let agent =
            if level == Level::Ipu { Self::agent_of(state) } else { state.wire().and_then(|w| w.agent()) };
        if level == Level::Ipu && agent.is_some_and(|agent| agent.state == AgentState::GivenUp) {
            return self.fault(state, Fault::AgentDead);
        }
        if state.wire().is_some_and(|wire| wire.poisoned()) {
            return self.fault(state, Fault::AgentPoisoned);
        }
        if level == Level::Ipu && self.rings.iter().any(|rings| rings.load(Ordering::Relaxed) >= FLOOD_RINGS)
        {
            self.forget_rings();
            return self.fault(state, Fault::AgentFloods);
        }
        let (owes, lies) = Self::debts(state);
        let credits = agent.map_or(0, |agent| agent.credits);
        let told = state.told.is_some_and(|end| credits.wrapping_sub(end) < u32::MAX / 2);
        if level == Level::Ipu && told && !owes && state.agent_is_good() {
            // It knows all there is to know, and there is nothing to decide.
            state.link.link().confirm(state.incarnation);
        }
        let resync = (!told).then_some(credits);
        let beat = Beat { gap, stalled, owes, lies, decisions: state.agent_decisions, resync };
        match state.watchdog.beat(beat) {
            None => {}
            Some(Blame::Host) => self.fault(state, Fault::HostCpuHogged),
            Some(Blame::Agent) if state.ended => self.fault(state, Fault::AgentDead),
            Some(Blame::Agent) => self.fault(state, Fault::AgentLate),
        }
    }

    /// Whether a decision is owed, and whether one lies there that nobody takes.
    fn debts(state: &State) -> (bool, bool) {
        let Some(wire) = state.wire() else { return (false, false) };
        let (mut owes, mut lies) = (false, false);
        for (cpu, entry) in state.mechanism.own_cpus() {
            if entry.task != TASK_NONE || !entry.online || !entry.available {
                continue;
            }
            if wire.has_untaken(cpu) {
                lies = true;
            } else {
                owes |= state.mechanism.first_runnable_on(cpu).is_some();
            }
        }
        (owes, lies)
    }

    /// Something is wrong: whoever is at fault is ended, and the next decides.
    fn fault(&self, state: &mut State, fault: Fault) {
        let incarnation = state.incarnation;
        self.note(state, EventKind::Fault { incarnation, fault });
        *state.report.faults.entry(fault.name().to_owned()).or_default() += 1;
        let command = match fault {
            Fault::HostCpuHogged => return,
            Fault::AgentLate => Some(Manage::CondemnLate),
            Fault::AgentFloods => Some(Manage::CondemnFlood),
            Fault::AgentPoisoned => Some(Manage::CondemnPoison),
            // Whether it is dead is its own word; if it is not, it is late.
            Fault::AgentDead => Some(Manage::CondemnLate),
            Fault::LinkDown => None,
        };
        let to = match state.level {
            Level::Ipu if SpareAgent::knows(&self.config.policy) => Level::OnHost,
            _ => Level::Host,
        };
        if state.level == Level::Ipu && fault != Fault::LinkDown {
            let incarnation = Self::by_its_name(state, incarnation);
            state.condemned = Some(incarnation);
            if let (Some(command), Some(manager)) = (command, state.link.manager()) {
                manager.condemn(command, incarnation);
            }
        }
        self.fall_back(state, to, fault);
    }

    /// The number that the supervisor gave to the agent that calls itself `incarnation`: one that is not there yet, or none, is
    /// a name of the one that runs.
    fn by_its_name(state: &State, incarnation: u32) -> u32 {
        match state.link.manager().and_then(Manager::running) {
            Some(runs) if incarnation == 0 || came_after(incarnation, runs.incarnation) => runs.incarnation,
            _ => incarnation,
        }
    }

    fn fall_back(&self, state: &mut State, to: Level, fault: Fault) {
        state.break_groups();
        Self::retire(state);
        let from = std::mem::replace(&mut state.level, to);
        if to == Level::OnHost {
            let (slots, version) = (self.owners.cpus(), state.link.link().version());
            // Without one, the host decides.
            state.spare =
                SpareAgent::start(self.config.spare, &self.config.policy, slots, version, &self.peer).ok();
            if state.spare.is_none() {
                state.level = Level::Host;
            }
        }
        let to = state.level;
        self.note(state, EventKind::Fallback { from, to, fault });
        let at_us = self.start.elapsed().as_micros() as u64;
        state.report.fallbacks.push(FallbackReport { at_us, from, to, fault });
        state.mechanism.agent = AgentStanding::Good;
        state.mechanism.incarnation = None;
        state.fifo.succeeded();
        state.watchdog.reset();
        self.tell_anew(state);
        self.kick_all(state);
    }

    /// Back to the IPU, as soon as an agent runs there that is not the one that failed.
    fn come_back(&self, state: &mut State) {
        if state.level == Level::Ipu || state.link_down || state.reattaching {
            return;
        }
        let Some(agent) = Self::agent_of(state) else { return };
        if agent.state != AgentState::Running
            || Some(Self::by_its_name(state, agent.incarnation)) == state.condemned
        {
            return;
        }
        state.break_groups();
        Self::retire(state);
        let from = std::mem::replace(&mut state.level, Level::Ipu);
        self.note(state, EventKind::Comeback { from, incarnation: agent.incarnation });
        state.report.comebacks += 1;
        state.condemned = None;
        self.succeed(state, &agent);
        self.kick_all(state);
    }

    /// Ends a spare, elsewhere: it may take its time.
    fn retire(state: &mut State) {
        if let Some(spare) = state.spare.take() {
            state.spare_messages += u64::from(spare.wire().messages());
            std::thread::spawn(move || drop(spare));
        }
    }

    /// Has every CPU look up: another decides.
    fn kick_all(&self, state: &State) {
        state.mechanism.own_cpus().for_each(|(cpu, _)| self.kick(cpu));
    }

    /// Attaches anew to an IPU that has come back, or because it was asked for; elsewhere, because it takes a while.
    fn reattach(self: &Arc<Self>, state: &mut State, now: Instant) {
        let back = state.link_down && !self.peer.peers().is_empty();
        if state.reattaching || now < state.reattach_after || !(back || state.reattach_asked) {
            return;
        }
        (state.reattaching, state.reattach_asked) = (true, false);
        let session = state.link.link().session().wrapping_add(1).max(1);
        let this = Arc::clone(self);
        std::thread::spawn(move || {
            let attachment = attachment(&this.config, &this.owners, session, REATTACH);
            let link = OwnedLink::attach(Arc::clone(&this.window), Arc::clone(&this.peer), &attachment);
            let mut state = this.lock();
            let state = &mut *state;
            state.reattaching = false;
            state.reattach_after = Instant::now() + REATTACH;
            let Ok(link) = link else { return };
            if state.closing {
                return link.link().detach();
            }
            this.exchange(state, link);
        });
    }

    /// Another session's link takes the place of the one before.
    fn exchange(&self, state: &mut State, link: OwnedLink) {
        state.bank_counts();
        let before = std::mem::replace(&mut state.link, Arc::new(link));
        state.messages_before += u64::from(before.link().messages());
        state.rings_before += u64::from(before.link().rings());
        let Some(agent) = state.link.link().agent() else { return };
        state.ipu = agent.peer;
        state.link_down = false;
        state.condemned = None;
        if !state.ended {
            self.note(state, EventKind::AgentEnded { incarnation: state.incarnation });
        }
        self.note(state, EventKind::AgentSeen { incarnation: agent.incarnation });
        (state.incarnation, state.ended) = (agent.incarnation, false);
        state.decided = None;
        state.report.incarnations += 1;
        if state.level == Level::Ipu {
            self.succeed(state, &agent);
        }
    }
}
