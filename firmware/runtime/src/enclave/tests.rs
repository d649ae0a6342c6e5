use super::*;
use neap_abi::control::policy_id;

const FIFO: u32 = policy_id("fifo");

fn attach(session: u32) -> HostControl {
    HostControl {
        command: HostCommand::Attach,
        peer: 7,
        cpus: 4,
        session,
        version: VERSION,
        features: 0,
        policy: FIFO,
        confirmed: 0,
        clock: Clock::Own,
    }
}

fn accepted(session: u32) -> Accepted {
    Accepted { session, cpus: 4, peer: 7, version: VERSION, policy: FIFO }
}

/// A core and a supervisor that do what they are told, for an enclave under test.
struct Rig {
    enclave: Enclave,
    core: CoreState,
    now_us: u64,
    /// The agent on the core.
    runs: Option<Start>,
    /// The agent that follows it.
    next: Option<Start>,
    reports: Vec<(AgentState, u32)>,
    answers: Vec<(u32, Reply, u64)>,
    held: [bool; 2],
    policies: Vec<u32>,
    /// Whether the agent gives its core back when asked.
    obeys: bool,
}

impl Rig {
    fn new() -> Self {
        Self {
            enclave: Enclave::new(16),
            core: CoreState::Ready,
            now_us: 0,
            runs: None,
            next: None,
            reports: Vec::new(),
            answers: Vec::new(),
            held: [false; 2],
            policies: vec![FIFO],
            obeys: true,
        }
    }

    fn host(&mut self, line: HostControl) {
        self.enclave.host(&line.to_payload());
        self.settle();
    }

    fn confirm(&mut self, session: u32) {
        let confirmed = self.enclave.incarnation();
        self.host(HostControl { confirmed, ..attach(session) });
    }

    fn manage(&mut self, command: Manage, request: u32) {
        self.condemn(command, request, 0);
    }

    fn condemn(&mut self, command: Manage, request: u32, incarnation: u32) {
        let (grace_us, trial_us) = (1000, 5000);
        self.ask(ManagerLine {
            command,
            request,
            image_bytes: 0,
            grace_us,
            trial_us,
            policy: 0,
            incarnation,
        });
    }

    fn ask(&mut self, line: ManagerLine) {
        match self.enclave.manage(Ok(line), self.now_us) {
            Demand::Nothing => {}
            Demand::Audit => self.enclave.audited(None),
            Demand::Disk(_) => {}
            Demand::LayOut { place, policy, .. } => {
                assert!(!self.held[place] || self.enclave.forget == Some(place), "a place is laid out twice");
                let found = self.policies.contains(&policy);
                if found {
                    self.settle_forget();
                    self.held[place] = true;
                }
                let result = if found { Ok(policy) } else { Err((Reply::NoPolicy, 0)) };
                self.enclave.laid_out(result, line.grace_us, self.now_us);
            }
        }
        self.settle();
    }

    fn settle_forget(&mut self) {
        if let Some(place) = self.enclave.forget.take() {
            self.held[place] = false;
        }
    }

    fn ends(&mut self, cause: Option<Cause>) {
        let Some(ran) = self.runs.take() else { return };
        self.runs = self.next.take();
        if self.runs.is_none() {
            self.core = CoreState::Ready;
        }
        self.enclave.came_back(Came { incarnation: ran.incarnation, cause }, self.now_us);
        self.settle();
    }

    fn wait(&mut self, us: u64) {
        self.now_us += us;
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..32 {
            match self.enclave.step(self.core, self.now_us) {
                Action::Rest => return,
                Action::Prepare { policy, place } => {
                    let found = self.policies.contains(&policy);
                    self.held[place] |= found;
                    self.enclave
                        .prepared(policy, if found { Ok(()) } else { Err(AgentState::RefusedPolicy) });
                }
                Action::Start(start) => {
                    assert_eq!(self.core, CoreState::Ready);
                    assert!(self.held[start.place] && self.runs.is_none());
                    self.runs = Some(start);
                    self.core = CoreState::Running;
                }
                Action::HandOver(start) => {
                    assert!(self.held[start.place]);
                    self.next = Some(start);
                    if self.obeys {
                        return self.ends(None);
                    }
                }
                Action::Revoke if self.obeys => return self.ends(None),
                Action::Revoke => {}
                Action::Abort => return self.ends(Some(Cause::Abort)),
                Action::Forget(place) => {
                    assert!(
                        self.runs.is_none_or(|runs| runs.place != place),
                        "an agent's pages are pulled away"
                    );
                    self.held[place] = false;
                }
                Action::Revive => {
                    assert_eq!(self.core, CoreState::Dead);
                    (self.core, self.runs, self.next) = (CoreState::Ready, None, None);
                }
                Action::Report { state, session, .. } => {
                    assert_ne!(self.core, CoreState::Running, "the line is an agent's to write");
                    self.reports.push((state, session));
                }
                Action::Answer { request, reply, detail } => self.answers.push((request, reply, detail)),
            }
        }
        panic!("it never rests: {:?}", self.enclave);
    }

    fn incarnation(&self) -> u32 {
        self.runs.map_or(0, |runs| runs.incarnation)
    }
}

fn serving() -> Rig {
    let mut rig = Rig::new();
    rig.host(attach(1));
    rig.confirm(1);
    assert_eq!(rig.runs, Some(Start { accepted: accepted(1), place: 0, incarnation: 1, resumes: false }));
    rig
}

#[test]
fn a_host_attaches_leaves_and_comes_back() {
    let mut rig = serving();
    rig.host(HostControl { command: HostCommand::Detach, ..attach(1) });
    assert_eq!(rig.runs, None);
    assert_eq!(rig.reports, [(AgentState::Stopped, 1)]);
    rig.host(attach(1));
    assert_eq!(rig.runs.map(|runs| (runs.incarnation, runs.resumes)), Some((2, false)));
}

#[test]
fn a_host_is_content_with_the_agent_that_it_confirms_and_with_no_other() {
    let mut rig = Rig::new();
    assert_eq!(rig.enclave.contents_host(), None, "nobody is here");
    rig.host(attach(1));
    assert_eq!(rig.enclave.contents_host(), Some(false));
    rig.host(HostControl { confirmed: 7, ..attach(1) });
    assert_eq!(rig.enclave.contents_host(), Some(false));
    rig.confirm(1);
    assert_eq!(rig.enclave.contents_host(), Some(true));
}

#[test]
fn a_host_that_died_and_came_back_gets_a_fresh_agent_only_when_the_old_one_has_stopped() {
    let mut rig = serving();
    rig.obeys = false;
    rig.host(attach(2));
    rig.host(attach(3));
    assert_eq!(rig.incarnation(), 1);
    rig.wait(GRACE_US - 1);
    assert_eq!(rig.incarnation(), 1);
    rig.wait(1);
    assert_eq!(rig.runs.map(|runs| runs.accepted), Some(accepted(3)));
    assert_eq!(rig.enclave.tally().aborts, 1);
    assert!(rig.reports.iter().all(|(_, session)| *session == 1), "{:?}", rig.reports);
}

#[test]
fn an_agent_that_faults_is_started_again_and_later_each_time_and_then_no_more() {
    let mut rig = serving();
    let mut waits = Vec::new();
    for fall in 1..FALLS_MAX {
        rig.ends(Some(Cause::Panic));
        let waited = rig.enclave.restart_us().map_or(0, |until| until - rig.now_us);
        waits.push(waited);
        rig.wait(waited);
        assert_eq!(rig.incarnation(), fall + 1);
        assert!(rig.runs.is_some_and(|runs| runs.resumes));
    }
    assert_eq!(waits, [0, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000]);
    rig.ends(Some(Cause::Panic));
    assert_eq!(rig.reports.last(), Some(&(AgentState::GivenUp, 1)));
    rig.wait(1 << 40);
    assert_eq!(rig.runs, None);
    assert_eq!(rig.enclave.tally().given_up, 1);
    // Another session is another try.
    rig.host(attach(2));
    assert_eq!(rig.incarnation(), FALLS_MAX + 1);
}

#[test]
fn an_agent_that_has_proven_itself_starts_its_row_anew() {
    let mut rig = serving();
    for _ in 0..3 * FALLS_MAX {
        rig.wait(PROVEN_US);
        rig.ends(Some(Cause::Synchronous));
        assert!(rig.runs.is_some(), "the first restart of a row does not wait");
    }
}

#[test]
fn bad_ends_far_apart_are_no_row_however_often_agents_are_killed_in_between() {
    let mut rig = serving();
    for request in 0..20 {
        for kill in 0..10 {
            rig.wait(PROVEN_US / 10);
            rig.manage(Manage::Kill, 100 * request + kill);
        }
        rig.ends(Some(Cause::Late));
        assert!(rig.runs.is_some(), "row {request}");
    }
    assert_eq!(rig.enclave.tally().given_up, 0);
}

#[test]
fn a_kill_is_answered_when_it_is_done_and_does_not_count_as_a_fault() {
    let mut rig = serving();
    rig.obeys = false;
    for request in 1..100 {
        rig.manage(Manage::Kill, request);
        assert_eq!(rig.incarnation(), request);
        rig.wait(1000);
        assert_eq!(rig.answers.last(), Some(&(request, Reply::Done, 0)));
        assert_eq!(rig.incarnation(), request + 1);
    }
    assert_eq!((rig.enclave.tally().faults, rig.enclave.tally().aborts), (0, 99));
}

#[test]
fn a_condemned_agent_has_no_grace_and_counts_as_a_fault() {
    for (command, cause) in [
        (Manage::CondemnLate, Cause::Late),
        (Manage::CondemnFlood, Cause::Flood),
        (Manage::CondemnPoison, Cause::Poison),
    ] {
        let mut rig = serving();
        rig.obeys = false;
        rig.manage(command, 9);
        assert_eq!((rig.incarnation(), rig.enclave.tally().faults), (2, 1), "{cause:?}");
        assert_eq!(rig.answers, [(9, Reply::Done, 0)]);
    }
}

#[test]
fn who_is_condemned_is_not_its_successor() {
    let mut rig = serving();
    rig.ends(Some(Cause::Panic));
    assert_eq!(rig.incarnation(), 2);
    rig.condemn(Manage::CondemnLate, 9, 1);
    assert_eq!((rig.incarnation(), rig.answers.last()), (2, Some(&(9, Reply::Done, 0))));
    // One that says that it is the next is who runs, as long as there is no next.
    for named in [2, 4] {
        rig.condemn(Manage::CondemnPoison, 10, named);
        rig.wait(1 << 30);
        assert_eq!(rig.incarnation(), named.max(3));
    }
}

#[test]
fn a_newcomer_takes_over_at_once_and_stays_when_its_host_confirms_it() {
    let mut rig = serving();
    rig.manage(Manage::Load, 1);
    assert_eq!(rig.answers, [(1, Reply::Done, 0)]);
    assert_eq!((rig.held, rig.incarnation()), ([true, true], 1));
    rig.manage(Manage::Replace, 2);
    assert_eq!(rig.runs.map(|runs| (runs.place, runs.incarnation, runs.resumes)), Some((1, 2, true)));
    assert_eq!(rig.answers.len(), 1, "it is on trial");
    assert_eq!(rig.held, [true, true], "the one before it stays laid out");
    rig.confirm(1);
    assert_eq!(rig.answers.last(), Some(&(2, Reply::Done, 0)));
    assert_eq!(rig.held, [false, true]);
    assert_eq!(rig.enclave.tally().replacements, 1);
}

#[test]
fn a_newcomer_that_fails_its_trial_is_rolled_back() {
    type Failure = fn(&mut Rig);
    let failures: [(Failure, u64); 4] = [
        (|rig| rig.ends(Some(Cause::Panic)), Cause::Panic as u64),
        (|rig| rig.wait(5000), 0),
        (|rig| rig.manage(Manage::CondemnLate, 3), Cause::Late as u64),
        (|rig| rig.ends(None), Cause::Exit as u64),
    ];
    for (fail, detail) in failures {
        let mut rig = serving();
        rig.manage(Manage::Replace, 2);
        assert_eq!(rig.runs.map(|runs| runs.place), Some(1));
        fail(&mut rig);
        assert_eq!(rig.runs.map(|runs| (runs.place, runs.incarnation)), Some((0, 3)), "{detail}");
        assert_eq!(rig.held, [true, false]);
        assert_eq!(rig.enclave.tally().rollbacks, 1);
        let (request, reply, told) = *rig.answers.last().unwrap();
        assert_eq!((reply, told), (Reply::RolledBack, detail));
        assert!(request == 2 || request == 3);
        rig.wait(1 << 30);
        assert_eq!(rig.incarnation(), 3, "the one before is not on trial");
    }
}

#[test]
fn an_agent_that_will_not_make_way_is_aborted() {
    let mut rig = serving();
    rig.obeys = false;
    rig.manage(Manage::Replace, 2);
    assert_eq!(rig.incarnation(), 1);
    rig.wait(1000);
    assert_eq!(rig.runs.map(|runs| (runs.place, runs.incarnation)), Some((1, 2)));
    assert_eq!(rig.enclave.tally().aborts, 1);
}

#[test]
fn who_reaches_for_the_disk_is_told_once_and_only_of_the_last_request() {
    let mut rig = serving();
    let told = rig.answers.len();
    rig.manage(Manage::ReadDisk, 7);
    rig.wait(1000);
    assert_eq!(rig.answers.len(), told, "it is under way");
    rig.enclave.reached(7, Reply::Done, 99);
    rig.enclave.reached(7, Reply::DiskFailed, 0);
    rig.settle();
    assert_eq!(rig.answers[told..], [(7, Reply::Done, 99)]);
    // An agent's end is no answer to it, and another request takes its place.
    rig.manage(Manage::WriteDisk, 8);
    rig.manage(Manage::Kill, 9);
    rig.wait(1000);
    rig.enclave.reached(8, Reply::Done, 99);
    rig.settle();
    assert_eq!(rig.answers[told + 1..], [(9, Reply::Done, 0)]);
    rig.manage(Manage::WriteDisk, 10);
    rig.enclave.reached(10, Reply::Forbidden, 0);
    rig.settle();
    assert_eq!(rig.answers.last(), Some(&(10, Reply::Forbidden, 0)));
    assert_eq!(rig.enclave.tally().commands_refused, 1);
}

#[test]
fn what_can_not_be_asked_is_refused_by_name() {
    let mut rig = Rig::new();
    rig.manage(Manage::Kill, 1);
    rig.manage(Manage::Replace, 2);
    rig.manage(Manage::CondemnLate, 3);
    assert!(rig.answers.iter().all(|(_, reply, _)| *reply == Reply::NoAgent) && rig.answers.len() == 3);
    assert_eq!(rig.enclave.manage(Err(4), 0), Demand::Nothing);
    rig.settle();
    assert_eq!(rig.answers.last(), Some(&(4, Reply::UnknownCommand, 0)));
    let mut rig = serving();
    rig.manage(Manage::Replace, 5);
    rig.manage(Manage::Replace, 6);
    assert_eq!(rig.answers.last(), Some(&(6, Reply::Busy, 0)));
    let mut rig = serving();
    let other = ManagerLine {
        command: Manage::Load,
        request: 7,
        image_bytes: 0,
        grace_us: 0,
        trial_us: 0,
        policy: policy_id("lifo"),
        incarnation: 0,
    };
    rig.ask(other);
    assert_eq!(rig.answers.last(), Some(&(7, Reply::NoPolicy, 0)));
    assert_eq!((rig.incarnation(), rig.held), (1, [true, false]));
}

#[test]
fn a_newcomer_can_come_when_its_forerunner_has_been_given_up() {
    let mut rig = serving();
    while rig.enclave.tally().given_up == 0 {
        rig.ends(Some(Cause::Panic));
        let wait_us = rig.enclave.restart_us().map_or(0, |until| until - rig.now_us);
        rig.wait(wait_us);
    }
    assert_eq!(rig.runs, None);
    rig.manage(Manage::Replace, 1);
    assert_eq!(rig.runs.map(|runs| runs.place), Some(1));
    rig.confirm(1);
    assert_eq!(rig.answers.last(), Some(&(1, Reply::Done, 0)));
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
        let mut rig = Rig::new();
        rig.host(line);
        rig.host(line);
        assert_eq!(rig.reports, [(state, 9)]);
    }
    let mut rig = Rig::new();
    let mut unknown = attach(9).to_payload();
    unknown[0] |= 0x80;
    rig.enclave.host(&unknown);
    rig.settle();
    assert_eq!(rig.reports, [(AgentState::RefusedCommand, 9)]);
}

#[test]
fn a_refusal_waits_until_the_agent_that_writes_the_line_has_stopped() {
    let mut rig = serving();
    rig.obeys = false;
    rig.host(HostControl { cpus: 99, ..attach(2) });
    assert!(rig.reports.is_empty());
    rig.obeys = true;
    rig.ends(None);
    assert_eq!(rig.reports, [(AgentState::Stopped, 1), (AgentState::RefusedCpus, 2)]);
    rig.host(attach(3));
    assert_eq!(rig.runs.map(|runs| runs.accepted), Some(accepted(3)));
}

#[test]
fn one_minor_version_apart_is_spoken_at_the_older() {
    for minor in [VERSION.minor - 1, VERSION.minor + 1] {
        let mut rig = Rig::new();
        rig.host(HostControl { version: Version { minor, ..VERSION }, ..attach(1) });
        let spoken = rig.runs.map(|runs| runs.accepted.version.minor);
        assert_eq!(spoken, Some(minor.min(VERSION.minor)));
    }
}

#[test]
fn a_core_that_the_runtime_itself_lost_is_revived_and_its_agent_started_again() {
    let mut rig = serving();
    rig.core = CoreState::Dead;
    rig.settle();
    assert_eq!(rig.reports, [(AgentState::Dead, 1)]);
    assert_eq!(rig.incarnation(), 2);
}

/// Whatever host, manager, agents and core do: an agent starts on a ready core only, from a place that is laid out and
/// stays so; the control line is never reported while an agent writes it; incarnations only go up; every request is
/// answered at most once; and in the end whoever asks for an agent has one. (The rig checks most of it.)
#[test]
fn random_events_never_break_the_rules() {
    for seed in 1..=2000u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut rig = Rig::new();
        let (mut session, mut request, mut last) = (0, 0, 0);
        for _ in 0..300 {
            rig.obeys = next(3) > 0;
            match next(14) {
                0 => {
                    session += 1;
                    rig.host(attach(session));
                }
                1 => rig.host(HostControl { command: HostCommand::Detach, ..attach(session) }),
                2 => rig.host(HostControl { cpus: 0, ..attach(session) }),
                3 => rig.ends(Some(Cause::Panic)),
                4 => rig.ends(None),
                5 | 6 => rig.confirm(session),
                7 => {
                    (rig.core, rig.runs, rig.next) = (CoreState::Dead, None, None);
                    rig.settle();
                }
                8 => rig.wait(next(400_000)),
                9 => rig.wait(next(2_000)),
                kind => {
                    request += 1;
                    let command = match kind {
                        10 => Manage::Load,
                        11 => Manage::Replace,
                        12 => Manage::Kill,
                        _ => Manage::ALL[next(Manage::ALL.len() as u64) as usize],
                    };
                    rig.manage(command, request);
                }
            }
            if let Some(runs) = rig.runs {
                assert!(runs.incarnation >= last, "seed {seed}");
                last = runs.incarnation;
            }
            let beside = 1 - rig.enclave.current();
            assert!(
                !rig.held[beside] || rig.enclave.beside != Beside::Nothing,
                "seed {seed}: pages are held for nobody"
            );
        }
        let mut answered: Vec<u32> = rig.answers.iter().map(|(request, ..)| *request).collect();
        let all = answered.len();
        answered.dedup();
        assert_eq!(answered.len(), all, "seed {seed}: answered twice");
        rig.obeys = true;
        rig.host(attach(session + 1));
        rig.wait(BACK_OFF_MAX_US);
        assert_eq!(rig.runs.map(|runs| runs.accepted.session), Some(session + 1), "seed {seed}");
    }
}
