//! The order of an enclave's events: who attaches, what is refused, which agent has the core, when it is asked to give it
//! back, what follows when it does or does not, and who comes after. Pure: it sees the host's lines, the agents' ends and the
//! time, and says what to do next.
//!
//! An enclave has two places where an agent can be laid out. In one is the agent that runs or is to run; beside it
//! lies nothing, or a newcomer that waits, or, while a newcomer is on trial, the agent that it took over from.

use neap_abi::control::{INCARNATION_MASK, came_after};
use neap_abi::supervisor::Books;
use neap_abi::version::VERSION;
use neap_abi::{
    AgentState, Cause, Clock, HostCommand, HostControl, Manage, ManagerLine, Payload, Reply, Version,
};

/// How long an agent may take to give its core back when its host goes away or comes anew, in µs: nobody waits for it.
pub const GRACE_US: u64 = 200_000;
/// Bad ends further apart than this, in µs, are not of one row: in between the enclave had agents that could work.
const PROVEN_US: u64 = 1_000_000;
/// Bad ends in a row after which no more is tried in the session.
pub const FALLS_MAX: u32 = 8;
/// The wait before the second restart of a row, in µs; it doubles from there. The first does not wait.
const BACK_OFF_US: u64 = 10_000;
/// The longest wait, in µs.
const BACK_OFF_MAX_US: u64 = 1_000_000;
/// How long a newcomer may take until its host confirms it, where the request does not say, in µs.
const TRIAL_US: u64 = 500_000;

/// A session that may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its number.
    pub session: u32,
    /// Decision slots that it uses: one for each host CPU up to the enclave's last.
    pub cpus: u16,
    /// The host's peer number.
    pub peer: u16,
    /// The version that both sides speak.
    pub version: Version,
    /// The policy asked for.
    pub policy: u32,
}

/// The agent's core, as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CoreState {
    /// Off, or on its way to [`CoreState::Ready`].
    Down = 0,
    /// It sleeps and takes an agent.
    Ready = 1,
    /// An agent runs, or is about to.
    Running = 2,
    /// The runtime itself ended there.
    Dead = 3,
}

/// One of an enclave's two places.
pub type Place = usize;

/// An agent's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// For which session.
    pub accepted: Accepted,
    /// Where it is laid out.
    pub place: Place,
    /// Its number.
    pub incarnation: u32,
    /// Whether the session had an agent before: ring and slots then stay as they are.
    pub resumes: bool,
}

/// What the supervisor has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes, or until [`Enclave::deadline_us`].
    Rest,
    /// Lay the bundle's agent for this policy out in this place; then say [`Enclave::prepared`].
    Prepare {
        /// The policy.
        policy: u32,
        /// Where.
        place: Place,
    },
    /// Give the core, which is ready, this agent, laid out afresh.
    Start(Start),
    /// Give the core this agent as its next, and ask the one that runs for the core.
    HandOver(Start),
    /// Ask the agent for the core.
    Revoke,
    /// Take the core from the agent.
    Abort,
    /// Forget what is laid out in a place: its pages are free.
    Forget(Place),
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
    /// Answer the manager.
    Answer {
        /// Which request.
        request: u32,
        /// How.
        reply: Reply,
        /// More about it.
        detail: u64,
    },
}

/// What a manager's request asks of the supervisor at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing beyond what [`Enclave::step`] will say.
    Nothing,
    /// Lay an agent out in this place, and then say [`Enclave::laid_out`].
    LayOut {
        /// Where.
        place: Place,
        /// Bytes of the image in the window; 0 for the bundle's.
        image_bytes: u32,
        /// The policy of the bundle's agent.
        policy: u32,
    },
    /// Compare the runtime's memory with what it was, and then say [`Enclave::audited`].
    Audit,
    /// Reach for the disk, and once that has come to an end say [`Enclave::reached`].
    Disk(ManagerLine),
}

/// How an agent's time on its core ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// Which agent.
    pub incarnation: u32,
    /// Why, unless it gave the core back as asked.
    pub cause: Option<Cause>,
}

/// What the host wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Nothing,
    Agent(Accepted),
    Refused { state: AgentState, session: u32 },
}

/// Why an agent is asked for its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The host goes away, or comes anew.
    Host,
    /// The manager asked for its end.
    Kill,
    /// The host has judged it.
    Condemned(Cause),
    /// A newcomer waits for the core.
    HandOver,
    /// It was not confirmed in time.
    Trial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No agent.
    Idle,
    /// An agent has the core.
    Running,
    /// It is asked for the core.
    Ending { why: Why, deadline_us: u64, told: bool, aborted: bool },
    /// It has ended, and another is started at this time.
    Waiting { until_us: u64 },
    /// It has ended too often.
    GivenUp,
}

/// What is laid out beside the current agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Newcomer,
    /// The agent before the one on trial.
    Previous,
}

/// One enclave.
#[derive(Debug)]
pub struct Enclave {
    cpus: u16,
    /// What the host's line said last.
    asked: Wish,
    /// What follows from it: also that there is no agent for its policy.
    wish: Wish,
    /// Whether a refusal has been reported.
    told: bool,
    /// The session that has an agent, or had one and waits for the next.
    serving: Option<Accepted>,
    confirmed: u32,
    /// Whose time the host would have its policy told.
    clock: Clock,
    phase: Phase,
    /// Of the last agent started.
    incarnation: u32,
    current: Place,
    /// The policies of what is laid out.
    held: [Option<u32>; 2],
    beside: Beside,
    /// Until when the host has to confirm the agent, if it is on trial.
    trial_us: Option<u64>,
    /// How long the next newcomer's trial lasts.
    trial_length_us: u64,
    /// When the last agent ended badly, and the how manyth of its row that was.
    fell_us: u64,
    falls: u32,
    /// What is to be reported once: the state, and in which session.
    report: Option<(AgentState, u32, Version)>,
    /// The request whose answer is owed.
    owed: Option<u32>,
    /// The request that reaches for the disk.
    reaching: Option<u32>,
    answer: Option<(u32, Reply, u64)>,
    forget: Option<Place>,
    hand_over_due: bool,
    /// What its agents have come to; what is the IPU's or its supervisor's stays 0 here.
    tally: Books,
}

impl Enclave {
    /// No host yet, over `cpus` decision slots.
    #[must_use]
    pub fn new(cpus: u16) -> Self {
        Self {
            cpus,
            asked: Wish::Nothing,
            wish: Wish::Nothing,
            told: true,
            serving: None,
            clock: Clock::Own,
            confirmed: 0,
            phase: Phase::Idle,
            incarnation: 0,
            current: 0,
            held: [None; 2],
            beside: Beside::Nothing,
            trial_us: None,
            trial_length_us: TRIAL_US,
            fell_us: 0,
            falls: 0,
            report: None,
            owed: None,
            reaching: None,
            answer: None,
            forget: None,
            hand_over_due: false,
            tally: Books::default(),
        }
    }

    /// What its agents have come to: the books without what the supervisor alone knows.
    #[must_use]
    pub fn tally(&self) -> Books {
        self.tally
    }

    /// The place of the agent that runs, or is to run.
    #[must_use]
    pub fn current(&self) -> Place {
        self.current
    }

    /// The place of a newcomer that waits, if one does.
    #[must_use]
    pub fn newcomer(&self) -> Option<Place> {
        (self.beside == Beside::Newcomer).then_some(1 - self.current)
    }

    /// Whether the agent is on trial.
    #[must_use]
    pub fn on_trial(&self) -> bool {
        self.trial_us.is_some()
    }

    /// The last agent's number, 0 before the first.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Whose time policies are told.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether a host is here, and then whether it is content with the agent that it has.
    #[must_use]
    pub fn contents_host(&self) -> Option<bool> {
        self.serving.map(|_| self.confirmed == self.incarnation)
    }

    /// When there is something to do though nothing happens, in µs.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        match self.phase {
            Phase::Running => self.trial_us,
            Phase::Ending { deadline_us, aborted: false, .. } => Some(deadline_us),
            Phase::Waiting { until_us } => Some(until_us),
            Phase::Idle | Phase::Ending { .. } | Phase::GivenUp => None,
        }
    }

    /// When the next restart is due, in µs, if one is.
    #[must_use]
    pub fn restart_us(&self) -> Option<u64> {
        if let Phase::Waiting { until_us } = self.phase { Some(until_us) } else { None }
    }

    /// Takes note of a new host control line. The same session again changes nothing but what is confirmed.
    pub fn host(&mut self, line: &Payload) {
        if let Some(host) = HostControl::from_payload(line) {
            self.confirmed = host.confirmed;
            self.clock = host.clock;
        }
        let wish = self.judge(line);
        if wish != self.asked {
            (self.asked, self.wish) = (wish, wish);
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
        // Whether there is an agent for the policy shows when it is to be laid out.
        match host.admit(VERSION, self.cpus, &[host.policy]) {
            Ok(version) => Wish::Agent(Accepted {
                session,
                cpus: host.cpus,
                peer: host.peer,
                version,
                policy: host.policy,
            }),
            Err(state) => refused(state),
        }
    }

    /// Takes note of a new manager's line.
    pub fn manage(&mut self, line: Result<ManagerLine, u32>, now_us: u64) -> Demand {
        let line = match line {
            Ok(line) => line,
            Err(request) => {
                self.refuse(request, Reply::UnknownCommand);
                return Demand::Nothing;
            }
        };
        self.owed = None;
        self.reaching = None;
        let request = line.request;
        match line.command {
            Manage::None => Demand::Nothing,
            Manage::Load | Manage::Replace => self.take_in(&line, now_us),
            Manage::Kill => {
                self.owed = Some(request);
                match self.phase {
                    Phase::Running => self.end(Why::Kill, now_us + u64::from(line.grace_us)),
                    Phase::Ending { .. } => self.hurry(now_us + u64::from(line.grace_us)),
                    Phase::Waiting { .. } => self.settle_owed(Reply::Done, 0),
                    Phase::Idle | Phase::GivenUp => self.refuse(request, Reply::NoAgent),
                }
                Demand::Nothing
            }
            Manage::CondemnLate => self.condemn(&line, Cause::Late, now_us),
            Manage::CondemnFlood => self.condemn(&line, Cause::Flood, now_us),
            Manage::CondemnPoison => self.condemn(&line, Cause::Poison, now_us),
            Manage::Audit => {
                self.owed = Some(request);
                Demand::Audit
            }
            Manage::ReadDisk | Manage::WriteDisk => {
                self.reaching = Some(request);
                Demand::Disk(line)
            }
            Manage::Unload => {
                if self.hands_over() {
                    self.refuse(request, Reply::Busy);
                    return Demand::Nothing;
                }
                if self.beside == Beside::Newcomer {
                    self.forget_beside();
                }
                self.answer = Some((request, Reply::Done, 0));
                Demand::Nothing
            }
        }
    }

    fn condemn(&mut self, line: &ManagerLine, cause: Cause, now_us: u64) -> Demand {
        let request = line.request;
        let runs = matches!(self.phase, Phase::Running | Phase::Ending { .. });
        if line.incarnation != 0 && (!runs || came_after(self.incarnation, line.incarnation)) {
            // Who is meant has ended, and its successor has done nothing.
            self.answer = Some((request, Reply::Done, 0));
            return Demand::Nothing;
        }
        self.owed = Some(request);
        match self.phase {
            Phase::Running => self.end(Why::Condemned(cause), now_us),
            Phase::Ending { .. } => self.hurry(now_us),
            Phase::Waiting { .. } => self.settle_owed(Reply::Done, 0),
            Phase::Idle | Phase::GivenUp => self.refuse(request, Reply::NoAgent),
        }
        Demand::Nothing
    }

    /// A newcomer comes: it is laid out beside the current agent, and takes over if that is asked.
    fn take_in(&mut self, line: &ManagerLine, now_us: u64) -> Demand {
        let request = line.request;
        let replaces = line.command == Manage::Replace;
        if self.phase == Phase::Idle {
            self.refuse(request, Reply::NoAgent);
            return Demand::Nothing;
        }
        // While one agent goes and another comes, a third would have no place.
        if self.beside == Beside::Previous
            || self.hands_over()
            || replaces && matches!(self.phase, Phase::Ending { .. })
        {
            self.refuse(request, Reply::Busy);
            return Demand::Nothing;
        }
        self.owed = Some(request);
        self.hand_over_due = replaces;
        self.trial_length_us = if line.trial_us == 0 { TRIAL_US } else { line.trial_us.into() };
        if replaces && line.image_bytes == 0 && self.beside == Beside::Newcomer {
            self.newcomer_is_there(now_us, u64::from(line.grace_us));
            return Demand::Nothing;
        }
        self.forget_beside();
        Demand::LayOut {
            place: 1 - self.current,
            image_bytes: line.image_bytes,
            policy: if line.policy == 0 {
                self.serving.map_or(0, |serving| serving.policy)
            } else {
                line.policy
            },
        }
    }

    /// What the supervisor was asked to lay out beside the current agent is there, an agent of this policy; or it is
    /// not, and why.
    pub fn laid_out(&mut self, result: Result<u32, (Reply, u64)>, grace_us: u32, now_us: u64) {
        match result {
            Ok(policy) => {
                self.held[1 - self.current] = Some(policy);
                self.beside = Beside::Newcomer;
                self.newcomer_is_there(now_us, grace_us.into());
            }
            Err((reply, detail)) => {
                if reply == Reply::RefusedImage {
                    self.tally.images_refused += 1;
                } else {
                    self.tally.commands_refused += 1;
                }
                self.hand_over_due = false;
                self.settle_owed(reply, detail);
            }
        }
    }

    /// A place that is to be forgotten before anything else is laid out.
    pub fn take_forgotten(&mut self) -> Option<Place> {
        self.forget.take()
    }

    fn newcomer_is_there(&mut self, now_us: u64, grace_us: u64) {
        if !self.hand_over_due {
            return self.settle_owed(Reply::Done, 0);
        }
        self.hand_over_due = false;
        match self.phase {
            Phase::Running => {
                // To make way takes a line's time, if nobody asks for more: a grace of none would be an abort.
                let grace_us = if grace_us == 0 { GRACE_US } else { grace_us };
                self.end(Why::HandOver, now_us + grace_us);
            }
            // Nobody is there to take over from: it starts as if it had.
            Phase::Waiting { .. } | Phase::GivenUp => {
                self.swap();
                self.begin_trial(now_us);
                self.falls = 0;
                self.phase = Phase::Waiting { until_us: now_us };
            }
            Phase::Idle | Phase::Ending { .. } => self.settle_owed(Reply::Busy, 0),
        }
    }

    /// The runtime's memory was compared with what it was.
    pub fn audited(&mut self, damaged: Option<u64>) {
        match damaged {
            None => self.settle_owed(Reply::Done, 0),
            Some(part) => self.settle_owed(Reply::Damaged, part),
        }
    }

    /// What became of a request that reached for the disk; nobody's, if another has come since.
    pub fn reached(&mut self, request: u32, reply: Reply, detail: u64) {
        if self.reaching.take_if(|asked| *asked == request).is_some() {
            self.tally.commands_refused += u32::from(reply != Reply::Done);
            self.answer = Some((request, reply, detail));
        }
    }

    /// Whether the newcomer is the core's next.
    fn hands_over(&self) -> bool {
        matches!(self.phase, Phase::Ending { why: Why::HandOver, .. })
    }

    fn refuse(&mut self, request: u32, reply: Reply) {
        self.tally.commands_refused += 1;
        self.owed = None;
        self.answer = Some((request, reply, 0));
    }

    fn settle_owed(&mut self, reply: Reply, detail: u64) {
        if let Some(request) = self.owed.take() {
            self.answer = Some((request, reply, detail));
        }
    }

    fn end(&mut self, why: Why, deadline_us: u64) {
        self.phase = Phase::Ending { why, deadline_us, told: false, aborted: false };
    }

    /// An agent that is asked already has less time.
    fn hurry(&mut self, until_us: u64) {
        if let Phase::Ending { deadline_us, .. } = &mut self.phase {
            *deadline_us = (*deadline_us).min(until_us);
        }
    }

    fn swap(&mut self) {
        self.current = 1 - self.current;
        self.beside = Beside::Previous;
    }

    fn begin_trial(&mut self, now_us: u64) {
        self.trial_us = Some(now_us + self.trial_length_us);
    }

    fn forget_beside(&mut self) {
        let place = 1 - self.current;
        if self.held[place].take().is_some() {
            self.forget = Some(place);
        }
        self.beside = Beside::Nothing;
    }

    /// An agent's time on the core has ended. Returns what its epitaph is to say: what it was condemned for comes before how
    /// it went; none if it went as asked.
    pub fn came_back(&mut self, came: Came, now_us: u64) -> Option<Cause> {
        let cause = match self.phase {
            Phase::Ending { why: Why::Condemned(cause), .. } => Some(cause),
            Phase::Ending { .. } => came.cause,
            _ => Some(came.cause.unwrap_or(Cause::Exit)),
        };
        match self.phase {
            Phase::Ending { why, aborted, .. } => {
                self.tally.aborts += u32::from(aborted && came.cause == Some(Cause::Abort));
                match why {
                    Why::Host => {
                        self.tell(AgentState::Stopped);
                        self.serving = None;
                        self.lay_trial_down();
                        self.phase = Phase::Idle;
                    }
                    Why::Kill if self.trial_us.is_none() => {
                        self.settle_owed(Reply::Done, 0);
                        self.tell(AgentState::Dead);
                        self.phase = Phase::Waiting { until_us: now_us };
                    }
                    Why::Kill => self.roll_back(Cause::Abort as u64, now_us),
                    Why::Condemned(cause) => self.fall(cause, now_us),
                    Why::HandOver => {
                        // The core has gone on with the newcomer at once.
                        self.swap();
                        self.begin_trial(now_us);
                        self.count_start();
                    }
                    Why::Trial => self.roll_back(0, now_us),
                }
            }
            Phase::Running => self.fall(came.cause.unwrap_or(Cause::Exit), now_us),
            // It was counted already.
            Phase::Idle | Phase::Waiting { .. } | Phase::GivenUp => {}
        }
        cause
    }

    fn count_start(&mut self) {
        self.incarnation = next_incarnation(self.incarnation);
        self.tally.started += 1;
        self.phase = Phase::Running;
    }

    /// An agent has ended as it should not.
    fn fall(&mut self, cause: Cause, now_us: u64) {
        self.tally.faults += 1;
        if self.trial_us.is_some() {
            return self.roll_back(cause as u64, now_us);
        }
        self.settle_owed(Reply::Done, 0);
        let apart = now_us.saturating_sub(self.fell_us) >= PROVEN_US;
        self.falls = if apart { 1 } else { self.falls + 1 };
        self.fell_us = now_us;
        if self.falls >= FALLS_MAX {
            self.tally.given_up += 1;
            self.tell(AgentState::GivenUp);
            self.phase = Phase::GivenUp;
            return;
        }
        self.tell(AgentState::Dead);
        let wait_us = match self.falls {
            0 | 1 => 0,
            falls => (BACK_OFF_US << (falls - 2).min(20)).min(BACK_OFF_MAX_US),
        };
        self.phase = Phase::Waiting { until_us: now_us + wait_us };
    }

    /// The newcomer has failed: the agent before it runs again.
    fn roll_back(&mut self, detail: u64, now_us: u64) {
        self.tally.rollbacks += 1;
        self.trial_us = None;
        self.current = 1 - self.current;
        self.forget_beside();
        self.settle_owed(Reply::RolledBack, detail);
        self.tell(AgentState::Dead);
        self.phase = Phase::Waiting { until_us: now_us };
    }

    /// A trial that its host does not wait for: the newcomer stays.
    fn lay_trial_down(&mut self) {
        if self.trial_us.take().is_some() {
            self.forget_beside();
        }
    }

    /// What to do now, the agent's core being in `core`. After an action that is not [`Action::Rest`] it is asked again.
    pub fn step(&mut self, core: CoreState, now_us: u64) -> Action {
        if let Some((request, reply, detail)) = self.answer.take() {
            return Action::Answer { request, reply, detail };
        }
        if let Some(place) = self.forget.take() {
            return Action::Forget(place);
        }
        if core == CoreState::Dead {
            return self.after_loss(now_us);
        }
        if core != CoreState::Running
            && let Some((state, session, version)) = self.report.take()
        {
            return Action::Report { state, session, version };
        }
        match self.phase {
            Phase::Running => self.while_running(now_us),
            Phase::Ending { .. } => self.while_ending(now_us),
            Phase::Waiting { until_us } => {
                if self.unwanted() {
                    self.part();
                    return self.step(core, now_us);
                }
                match (self.serving, core) {
                    (Some(accepted), CoreState::Ready) if now_us >= until_us => {
                        self.tally.restarts += 1;
                        self.count_start();
                        Action::Start(self.start(accepted, true))
                    }
                    _ => Action::Rest,
                }
            }
            Phase::GivenUp if self.unwanted() => {
                self.part();
                self.step(core, now_us)
            }
            Phase::GivenUp => Action::Rest,
            Phase::Idle => self.while_idle(core),
        }
    }

    /// Whether the host no longer wants the agent that it had.
    fn unwanted(&self) -> bool {
        !matches!((self.wish, self.serving), (Wish::Agent(wish), Some(serving)) if wish == serving)
    }

    /// A session without an agent is over.
    fn part(&mut self) {
        self.serving = None;
        self.lay_trial_down();
        self.falls = 0;
        self.phase = Phase::Idle;
    }

    fn start(&self, accepted: Accepted, resumes: bool) -> Start {
        Start { accepted, place: self.current, incarnation: self.incarnation, resumes }
    }

    /// Notes what is to be reported of the session that has, or had, the agent.
    fn tell(&mut self, state: AgentState) {
        let serving = self.serving.map(|serving| (state, serving.session, serving.version));
        self.report = serving.or(self.report);
    }

    fn while_running(&mut self, now_us: u64) -> Action {
        if self.unwanted() {
            self.end(Why::Host, now_us + GRACE_US);
            return self.while_ending(now_us);
        }
        match self.trial_us {
            Some(_) if self.confirmed == self.incarnation => {
                self.trial_us = None;
                self.tally.replacements += 1;
                self.forget_beside();
                self.settle_owed(Reply::Done, 0);
                self.step(CoreState::Running, now_us)
            }
            Some(deadline_us) if now_us >= deadline_us => {
                self.end(Why::Trial, now_us);
                self.while_ending(now_us)
            }
            _ => Action::Rest,
        }
    }

    fn while_ending(&mut self, now_us: u64) -> Action {
        let (start, incarnation) = (self.serving, next_incarnation(self.incarnation));
        let newcomer = 1 - self.current;
        let Phase::Ending { why, deadline_us, told, aborted } = &mut self.phase else { return Action::Rest };
        if !*told {
            *told = true;
            self.tally.revocations += 1;
            return match (*why, start) {
                (Why::HandOver, Some(accepted)) => {
                    Action::HandOver(Start { accepted, place: newcomer, incarnation, resumes: true })
                }
                _ => Action::Revoke,
            };
        }
        if now_us >= *deadline_us && !*aborted {
            *aborted = true;
            return Action::Abort;
        }
        Action::Rest
    }

    /// The runtime ended on the core: an agent that was there is gone with it.
    fn after_loss(&mut self, now_us: u64) -> Action {
        match self.phase {
            Phase::Running => self.fall(Cause::Synchronous, now_us),
            Phase::Ending { .. } => {
                self.lay_trial_down();
                self.settle_owed(Reply::Done, 0);
                self.tell(AgentState::Dead);
                self.phase = Phase::Waiting { until_us: now_us };
            }
            Phase::Idle | Phase::Waiting { .. } | Phase::GivenUp => {}
        }
        match self.report.take() {
            Some((state, session, version)) => Action::Report { state, session, version },
            None => Action::Revive,
        }
    }

    fn while_idle(&mut self, core: CoreState) -> Action {
        match self.wish {
            Wish::Nothing => Action::Rest,
            Wish::Agent(wish) => {
                if self.held[self.current] != Some(wish.policy) {
                    return Action::Prepare { policy: wish.policy, place: self.current };
                }
                if core != CoreState::Ready {
                    return Action::Rest;
                }
                self.serving = Some(wish);
                self.falls = 0;
                self.count_start();
                Action::Start(self.start(wish, false))
            }
            Wish::Refused { state, session } if !self.told => {
                self.told = true;
                Action::Report { state, session, version: VERSION }
            }
            Wish::Refused { .. } => Action::Rest,
        }
    }

    /// What was to be prepared in the current place is there, or is not, and why.
    pub fn prepared(&mut self, policy: u32, result: Result<(), AgentState>) {
        match result {
            Ok(()) => self.held[self.current] = Some(policy),
            Err(state) => {
                self.held[self.current] = None;
                let session = if let Wish::Agent(wish) = self.wish { wish.session } else { 0 };
                self.wish = Wish::Refused { state, session };
                self.told = false;
            }
        }
    }
}

const fn next_incarnation(incarnation: u32) -> u32 {
    let next = (incarnation + 1) & INCARNATION_MASK as u32;
    if next == 0 { 1 } else { next }
}

#[cfg(test)]
mod tests;
