//! The order of a session's events: who attaches, what is refused, when an agent is asked to stop, and when the next
//! one may start. Pure: it sees the host's control line and the state of the agent's core, and says what to do next.

use neap_abi::version::VERSION;
use neap_abi::{AgentState, HostCommand, HostControl, Payload, Version};

/// What this image can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Host CPUs at most.
    pub cpus: u16,
    /// The policy in the image.
    pub policy: u32,
}

/// A session that may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its number.
    pub session: u32,
    /// Host CPUs in its enclave.
    pub cpus: u16,
    /// The host's peer number.
    pub peer: u16,
    /// The version that both sides speak.
    pub version: Version,
}

/// The agent's core, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CoreState {
    /// Off, or on its way to [`CoreState::Ready`].
    Down = 0,
    /// It sleeps and takes a grant.
    Ready = 1,
    /// An agent runs, or is about to.
    Running = 2,
    /// It has left an epitaph and is gone.
    Dead = 3,
}

/// What the supervisor has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Rest,
    /// Clear the ring and the slots and start an agent.
    Start(Accepted),
    /// Ask the agent to stop.
    Revoke,
    /// Start the core again; asked until it is [`CoreState::Down`], for a core takes its time to be off.
    Revive,
    /// Write the agent's control line: no agent runs that would.
    Report {
        /// Where the agent stands.
        state: AgentState,
        /// In which session.
        session: u32,
        /// The version negotiated, or our own.
        version: Version,
    },
}

/// What the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Nothing,
    Agent(Accepted),
    Refused { state: AgentState, session: u32 },
}

/// One enclave's sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: Limits,
    wish: Wish,
    /// The session that was started last and not been told to be over.
    started: Option<Accepted>,
    /// Whether the running agent has been asked to stop.
    revoked: bool,
    /// Whether a refusal has been reported.
    told: bool,
}

impl Sessions {
    /// No host yet.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, wish: Wish::Nothing, started: None, revoked: false, told: true }
    }

    /// Takes note of a new host control line. The same session again changes nothing.
    pub fn host(&mut self, line: &Payload) {
        let wish = self.judge(line);
        if wish != self.wish {
            self.wish = wish;
            self.told = false;
        }
    }

    fn judge(&self, line: &Payload) -> Wish {
        // The session's number stands apart from the command, so a refusal can name it even if the command is unknown.
        let session = line[1] as u32;
        let refused = |state| Wish::Refused { state, session };
        let Some(host) = HostControl::from_payload(line) else {
            return refused(AgentState::RefusedCommand);
        };
        if host.command != HostCommand::Attach {
            return Wish::Nothing;
        }
        match host.admit(VERSION, self.limits.cpus, &[self.limits.policy]) {
            Ok(version) => Wish::Agent(Accepted { session, cpus: host.cpus, peer: host.peer, version }),
            Err(state) => refused(state),
        }
    }

    /// What to do now, the agent's core being in `core`. After an action that is not [`Action::Rest`] it is asked again.
    pub fn step(&mut self, core: CoreState) -> Action {
        match core {
            CoreState::Running => self.while_running(),
            CoreState::Dead if self.started.is_some() => self.after_death(),
            CoreState::Dead | CoreState::Ready | CoreState::Down => self.while_free(core),
        }
    }

    fn while_running(&mut self) -> Action {
        let wanted =
            matches!((self.wish, self.started), (Wish::Agent(wish), Some(started)) if wish == started);
        if wanted || self.revoked {
            return Action::Rest;
        }
        self.revoked = true;
        Action::Revoke
    }

    /// The agent's line still says that it runs.
    fn after_death(&mut self) -> Action {
        let Some(dead) = self.started.take() else { return Action::Rest };
        // The host has to ask for another session: the same one would only die again.
        if self.wish == Wish::Agent(dead) {
            self.wish = Wish::Nothing;
        }
        Action::Report { state: AgentState::Dead, session: dead.session, version: dead.version }
    }

    fn while_free(&mut self, core: CoreState) -> Action {
        match self.wish {
            Wish::Nothing => Action::Rest,
            // It has been started and has stopped of itself: it would be an agent that nobody revoked. The host asks anew.
            Wish::Agent(wish) if self.started == Some(wish) && !self.revoked => Action::Rest,
            Wish::Agent(wish) => match core {
                CoreState::Ready => {
                    self.started = Some(wish);
                    self.revoked = false;
                    Action::Start(wish)
                }
                CoreState::Dead => Action::Revive,
                CoreState::Down | CoreState::Running => Action::Rest,
            },
            Wish::Refused { state, session } if !self.told => {
                self.told = true;
                self.started = None;
                Action::Report { state, session, version: VERSION }
            }
            Wish::Refused { .. } => Action::Rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::control::policy_id;

    const LIMITS: Limits = Limits { cpus: 16, policy: policy_id("fifo") };

    fn attach(session: u32) -> HostControl {
        HostControl {
            command: HostCommand::Attach,
            peer: 7,
            cpus: 4,
            session,
            version: VERSION,
            features: 0,
            policy: LIMITS.policy,
        }
    }

    fn accepted(session: u32) -> Accepted {
        Accepted { session, cpus: 4, peer: 7, version: VERSION }
    }

    fn host(sessions: &mut Sessions, line: HostControl) {
        sessions.host(&line.to_payload());
    }

    #[test]
    fn a_host_attaches_leaves_and_comes_back() {
        let mut s = Sessions::new(LIMITS);
        assert_eq!(s.step(CoreState::Ready), Action::Rest);
        host(&mut s, attach(1));
        assert_eq!(s.step(CoreState::Down), Action::Rest);
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(1)));
        assert_eq!(s.step(CoreState::Running), Action::Rest);
        host(&mut s, HostControl { command: HostCommand::Detach, ..attach(1) });
        assert_eq!(s.step(CoreState::Running), Action::Revoke);
        assert_eq!(s.step(CoreState::Running), Action::Rest);
        assert_eq!(s.step(CoreState::Ready), Action::Rest);
        host(&mut s, attach(1));
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(1)));
    }

    #[test]
    fn a_host_that_died_and_came_back_gets_a_fresh_agent_only_when_the_old_one_has_stopped() {
        let mut s = Sessions::new(LIMITS);
        host(&mut s, attach(1));
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(1)));
        host(&mut s, attach(2));
        assert_eq!(s.step(CoreState::Running), Action::Revoke);
        host(&mut s, attach(3));
        for _ in 0..3 {
            assert_eq!(s.step(CoreState::Running), Action::Rest);
        }
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(3)));
        host(&mut s, attach(3));
        assert_eq!(s.step(CoreState::Running), Action::Rest);
    }

    #[test]
    fn a_dead_agent_is_reported_once_and_its_core_revived_for_the_next_session_only() {
        let mut s = Sessions::new(LIMITS);
        host(&mut s, attach(1));
        s.step(CoreState::Ready);
        assert_eq!(
            s.step(CoreState::Dead),
            Action::Report { state: AgentState::Dead, session: 1, version: VERSION }
        );
        assert_eq!(s.step(CoreState::Dead), Action::Rest);
        host(&mut s, attach(2));
        assert_eq!(s.step(CoreState::Dead), Action::Revive);
        assert_eq!(s.step(CoreState::Down), Action::Rest);
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(2)));
    }

    #[test]
    fn a_wish_that_came_while_the_agent_died_is_not_lost() {
        let mut s = Sessions::new(LIMITS);
        host(&mut s, attach(1));
        s.step(CoreState::Ready);
        host(&mut s, attach(2));
        assert!(matches!(s.step(CoreState::Dead), Action::Report { session: 1, .. }));
        assert_eq!(s.step(CoreState::Dead), Action::Revive);
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(2)));
    }

    #[test]
    fn what_can_not_be_is_refused_by_name_and_once() {
        let far = Version { major: VERSION.major + 1, minor: 0 };
        let cases = [
            (HostControl { version: far, ..attach(9) }, AgentState::RefusedVersion),
            (HostControl { cpus: 0, ..attach(9) }, AgentState::RefusedCpus),
            (HostControl { cpus: 17, ..attach(9) }, AgentState::RefusedCpus),
            (HostControl { policy: policy_id("shin"), ..attach(9) }, AgentState::RefusedPolicy),
        ];
        for (line, state) in cases {
            let mut s = Sessions::new(LIMITS);
            host(&mut s, line);
            assert_eq!(s.step(CoreState::Ready), Action::Report { state, session: 9, version: VERSION });
            assert_eq!(s.step(CoreState::Ready), Action::Rest);
        }
        let mut s = Sessions::new(LIMITS);
        let mut unknown = attach(9).to_payload();
        unknown[0] |= 0x80;
        s.host(&unknown);
        assert!(matches!(
            s.step(CoreState::Ready),
            Action::Report { state: AgentState::RefusedCommand, session: 9, .. }
        ));
    }

    #[test]
    fn a_refusal_waits_until_the_agent_that_writes_the_line_has_stopped() {
        let mut s = Sessions::new(LIMITS);
        host(&mut s, attach(1));
        s.step(CoreState::Ready);
        host(&mut s, HostControl { cpus: 99, ..attach(2) });
        assert_eq!(s.step(CoreState::Running), Action::Revoke);
        assert_eq!(s.step(CoreState::Running), Action::Rest);
        assert!(matches!(
            s.step(CoreState::Ready),
            Action::Report { state: AgentState::RefusedCpus, session: 2, .. }
        ));
        host(&mut s, attach(3));
        assert_eq!(s.step(CoreState::Ready), Action::Start(accepted(3)));
    }

    #[test]
    fn one_minor_version_apart_is_spoken_at_the_older() {
        let newer = Version { minor: VERSION.minor + 1, ..VERSION };
        let mut s = Sessions::new(LIMITS);
        host(&mut s, HostControl { version: newer, ..attach(1) });
        assert!(matches!(s.step(CoreState::Ready), Action::Start(Accepted { version: VERSION, .. })));
    }

    /// Whatever a host writes and however the core fares: an agent is started on a ready core only, the line is never
    /// reported while an agent writes it, and every wish for an agent is met in the end.
    #[test]
    fn random_hosts_and_cores_never_break_the_rules() {
        for seed in 1..=500u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = move |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let mut s = Sessions::new(LIMITS);
            let mut core = CoreState::Down;
            let mut session = 0;
            for step in 0..200 {
                match next(8) {
                    0 => {
                        session += 1;
                        host(&mut s, attach(session));
                    }
                    1 => host(&mut s, HostControl { command: HostCommand::Detach, ..attach(session) }),
                    2 => host(&mut s, HostControl { cpus: 0, ..attach(session) }),
                    3 if core == CoreState::Running => core = CoreState::Dead,
                    4 if core == CoreState::Down => core = CoreState::Ready,
                    _ => {}
                }
                let action = s.step(core);
                match action {
                    Action::Start(_) => {
                        assert_eq!(core, CoreState::Ready, "seed {seed} step {step}");
                        core = CoreState::Running;
                    }
                    Action::Revive => {
                        assert_eq!(core, CoreState::Dead, "seed {seed} step {step}");
                        core = CoreState::Down;
                    }
                    Action::Report { .. } => assert_ne!(core, CoreState::Running, "seed {seed} step {step}"),
                    Action::Revoke => core = CoreState::Ready,
                    Action::Rest => {}
                }
            }
            session += 1;
            host(&mut s, attach(session));
            let started = (0..10).any(|_| match s.step(core) {
                Action::Start(accepted) => accepted.session == session,
                Action::Revive | Action::Revoke => {
                    core = CoreState::Ready;
                    false
                }
                _ => {
                    if core == CoreState::Down {
                        core = CoreState::Ready;
                    }
                    false
                }
            });
            assert!(started, "seed {seed}: the last host was never served");
        }
    }
}
