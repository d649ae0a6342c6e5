//! What looks after the agent, and what goes wrong.

use std::time::Duration;

use neap_agent::Policy;
use neap_host::mechanism::AgentStanding;
use neap_mechanism::watch::{Beat, Blame};
use neap_queue::Line;

use super::cpu::{Cpu, Doing};
use super::{BEAT_NS, Event, Job, LOOK_UP_NS, World, mechanisms};
use crate::faults::FaultKind;

/// After that the next agent is there; until then the host decides.
const RESTART_NS: u64 = 2_000_000;

impl<'w, P: Policy> World<'w, P> {
    pub(super) fn look_up(&mut self) {
        for cpu in 0..self.setup.cpus {
            if self.cpus[usize::from(cpu)].doing == Doing::Idle {
                self.clock.after(1, Event::Ring(cpu));
            }
        }
        self.clock.after(LOOK_UP_NS, Event::LookUp);
    }

    pub(super) fn host_kick(&mut self) {
        if !self.host_decides {
            return;
        }
        for cpu in 0..self.setup.cpus {
            let at = usize::from(cpu);
            if self.cpus[at].doing == Doing::Idle && self.mechanism.first_runnable_on(cpu).is_some() {
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].generation += 1;
                let generation = self.cpus[at].generation;
                self.clock.after(self.setup.costs.before_ns, Event::Decide(cpu, generation));
                return;
            }
        }
    }

    pub(super) fn beat(&mut self) {
        let now_ns = self.clock.now_ns();
        // Credits, and the agent's call for the whole state.
        if !self.host_decides && self.link_up {
            self.wire.refresh_credits();
            if let Some(agent) = self.wire.agent()
                && agent.resyncs != self.resyncs_asked
            {
                self.resyncs_asked = agent.resyncs;
                self.resync_due = true;
                self.outbox.clear();
            }
            self.pump();
            let (mut owes, mut lies) = (false, false);
            for (cpu, entry) in (0..).zip(&self.cpus) {
                if entry.doing == Doing::Idle {
                    let at = usize::from(cpu);
                    let (card, host) = (&self.memory.card.slots[at], &self.memory.host.slots[at]);
                    if self.wire.has_untaken(cpu) || card.words() != host.words() {
                        lies = true;
                    } else {
                        owes |= self.mechanism.first_runnable_on(cpu).is_some();
                    }
                }
            }
            let telling = self.resync_due || !self.outbox.is_empty() || self.resync_since_ns.is_some();
            let beat = Beat {
                gap: Duration::from_nanos(BEAT_NS),
                stalled: Duration::ZERO,
                owes,
                lies,
                decisions: self.seen.committed,
                resync: telling.then(|| self.wire.taken()),
            };
            match self.watchdog.beat(beat) {
                None => {}
                Some(Blame::Agent) => self.agent_ends(),
                Some(Blame::Host) => {
                    for (cpu, _) in self.mechanism.own_cpus() {
                        self.clock.after(1, Event::Ring(cpu));
                    }
                }
            }
        }
        if let Some(since_ns) = self.resync_since_ns
            && now_ns - since_ns > self.setup.starved_ns
        {
            self.violated("a resync has not come to its end".to_owned());
        }
        let starved = self.jobs.iter().position(|job| {
            job.request.is_some() && job.on.is_none() && now_ns - job.runnable_ns > 2 * self.setup.starved_ns
        });
        if let Some(task) = starved {
            self.violated(format!("task {task} is lost: it waits, and nobody comes to it"));
        }
        self.clock.after(BEAT_NS, Event::Beat);
    }

    /// The agent is no more: the host decides until the next is there.
    pub(super) fn agent_ends(&mut self) {
        self.home = None;
        self.agent_due = false;
        self.mechanism.agent = AgentStanding::Gone;
        self.seen.refused += self.mechanism.break_groups().len() as u64;
        self.host_decides = true;
        self.resync_since_ns = None;
        self.seen.fallbacks += 1;
        self.outbox.clear();
        self.resync_due = false;
        for _ in 0..self.setup.cpus {
            self.host_kick();
        }
        if self.link_up {
            self.clock.after(RESTART_NS, Event::Restart(self.agents));
        }
    }

    pub(super) fn befalls(&mut self, kind: FaultKind) -> bool {
        let left = &mut self.trouble[kind as usize];
        if *left == 0 {
            return false;
        }
        *left -= 1;
        self.seen.faults += 1;
        true
    }

    pub(super) fn fault(&mut self, number: u16) {
        let Some(&fault) = self.faults.get(usize::from(number)) else { return };
        match fault.kind {
            FaultKind::Crash => {
                if self.home.is_some() {
                    self.seen.faults += 1;
                    self.agent_ends();
                }
            }
            FaultKind::Hang => {
                if let Some(home) = &mut self.home {
                    home.hangs = true;
                    self.seen.faults += 1;
                }
            }
            FaultKind::Reset => {
                if self.home.is_some() {
                    self.seen.faults += 1;
                    self.anew = true;
                    self.agent_ends();
                    for lines in [&self.memory.card, &self.memory.host] {
                        lines.slots.iter().for_each(Line::clear);
                    }
                    self.memory.card.control.clear();
                }
            }
            FaultKind::LinkDown => {
                if self.link_up {
                    self.seen.faults += 1;
                    self.link_up = false;
                    self.epoch += 1;
                    self.anew = true;
                    self.agent_ends();
                    self.clock.after(u64::from(fault.count) * 1_000_000, Event::LinkUp);
                }
            }
            FaultKind::HostReboot => {
                if !self.is_booting {
                    self.seen.faults += 1;
                    self.host_reboots(fault.count);
                }
            }
            kind => self.trouble[kind as usize] += fault.count,
        }
    }

    /// The host is gone, and with it all that ran there; what was asked for is asked for again once it has booted.
    fn host_reboots(&mut self, boot_ms: u32) {
        self.agent_ends();
        (self.anew, self.is_booting) = (true, true);
        // Neither what is on the link nor what the agent has yet to take is of the next session.
        self.epoch += 1;
        self.told.clear();
        for cpu in self.cpus.iter_mut().filter(|cpu| cpu.doing != Doing::Foreign) {
            *cpu = Cpu {
                doing: Doing::Idle,
                generation: cpu.generation + 1,
                pending: None,
                cached: false,
                rung: false,
                switch_since_ns: 0,
            };
        }
        for job in &mut self.jobs {
            self.backlog.extend(job.request);
            *job = Job { true_stamp: job.true_stamp + 1, ..Job::default() };
        }
        self.free = (0..self.setup.tasks).rev().collect();
        (self.mechanism, self.neighbour) = mechanisms(&self.setup);
        self.mechanism.agent = AgentStanding::Gone;
        self.clock.after(u64::from(boot_ms) * 1_000_000, Event::Booted);
    }

    pub(super) fn host_is_up(&mut self) {
        self.is_booting = false;
        while !self.free.is_empty() && !self.backlog.is_empty() {
            self.next_from_backlog();
        }
        if self.link_up {
            self.clock.after(RESTART_NS, Event::Restart(self.agents));
        }
    }

    pub(super) fn link_is_up(&mut self) {
        self.link_up = true;
        self.cpus.iter_mut().for_each(|cpu| cpu.cached = false);
        self.clock.after(RESTART_NS, Event::Restart(self.agents));
    }
}
