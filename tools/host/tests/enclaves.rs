//! Hosts of several enclaves, whose agents fail in every way: what must hold whatever ends when.

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Counting, Link, PATIENCE, VECTORS, submit_all};
use neap_abi::Outcome;
use neap_host::event::{EventKind, Fault, Level};
use neap_host::manager::ManageError;
use neap_host::onhost::{Mischief, Settings};
use neap_host::report::Report;
use neap_host::sights::{SIGHTS_MAX, Sight};
use neap_host::spare::Spare;
use neap_host::worker::{
    Enclave, EnclaveConfig, Host, HostConfig, MoveError, Step, Work, WorkerError, with_host,
};

/// A machine that others use too ends no agent by itself.
const WATCHDOG: Duration = Duration::from_millis(200);

fn enclave(link: &Link, cpus: impl IntoIterator<Item = u16>) -> EnclaveConfig {
    EnclaveConfig {
        timeout: PATIENCE,
        watchdog: WATCHDOG,
        tasks_max: 8192,
        ..EnclaveConfig::usual(&link.socket, VECTORS, 1, cpus)
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the load of a test that fails too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn kinds(report: &Report) -> Vec<EventKind> {
    report.events.iter().map(|event| event.kind).collect()
}

fn sound(report: &Report) {
    assert!(report.complete, "{report:?}");
    assert_eq!((report.tasks_lost, report.tasks_doubled, report.fifo_violations), (0, 0, 0), "{report:?}");
}

/// A host of one enclave of two CPUs, whose agents are `settings`; its load goes on until `done` of the enclave.
fn under_load(
    name: &str,
    settings: Settings,
    change: impl FnOnce(&mut EnclaveConfig),
    done: impl Fn(&Enclave) -> bool,
) -> Report {
    let link = Link::new(name);
    link.with_agent(settings, |_| {
        let mut config = enclave(&link, 0..2);
        change(&mut config);
        let work = Counting::default();
        let (submitted, mut reports) = with_host(&HostConfig { cpus: 2, tasks: 1 << 15 }, &work, |host| {
            let enclave = host.create_enclave(config).unwrap();
            let start = Instant::now();
            let mut next = 0;
            while !done(&enclave) {
                assert!(start.elapsed() < PATIENCE, "{:?} {:?}", enclave.snapshot(), enclave.events(0));
                for _ in 0..20 {
                    next += u64::from(enclave.submit(next).is_ok());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            host.drain(PATIENCE);
            next
        });
        let report = reports.remove(0);
        assert_eq!(report.tasks_created, submitted);
        sound(&report);
        report
    })
}

fn villain(mischief: Mischief) -> Settings {
    Settings { mischief, after_messages: 200, ..Settings::usual(VECTORS) }
}

fn is_back(enclave: &Enclave) -> bool {
    let now = enclave.snapshot();
    let decided = EventKind::FirstDecision { incarnation: now.incarnation };
    now.level == Level::Ipu && now.incarnation > 1 && enclave.events(0).iter().any(|e| e.kind == decided)
}

/// The agent is ended for `fault`, another takes over meanwhile, and the next one comes back.
fn comes_back(name: &str, mischief: Mischief, fault: Fault, cause: &str) -> Report {
    let report = under_load(name, villain(mischief), |_| {}, is_back);
    let events = kinds(&report);
    let at = |wanted: EventKind| {
        events.iter().position(|kind| *kind == wanted).unwrap_or_else(|| panic!("{wanted:?} in {events:?}"))
    };
    let found = at(EventKind::Fault { incarnation: 1, fault });
    let fallback = at(EventKind::Fallback { from: Level::Ipu, to: Level::OnHost, fault });
    let comeback = at(EventKind::Comeback { from: Level::OnHost, incarnation: 2 });
    let decided = at(EventKind::FirstDecision { incarnation: 2 });
    assert!(found < fallback && fallback < comeback && comeback < decided, "{events:?}");
    assert_eq!((report.fallbacks.len(), report.comebacks, report.level), (1, 1, Level::Ipu));
    assert_eq!((report.incarnations, report.crashes), (2, 1));
    assert_eq!(report.agent_ended, None);
    assert_eq!(report.epitaphs[0].cause, cause);
    assert!(report.epitaphs[0].in_words().starts_with("agent fifo (incarnation 1, core 1) ended by"));
    assert!(report.decisions_by_level[0] > 0);
    report
}

#[test]
fn an_agent_that_hangs_is_ended_and_the_next_comes_back() {
    comes_back("hang", Mischief::Hang, Fault::AgentLate, "late");
}

#[test]
fn what_is_seen_is_what_is_reported_whoever_decides() {
    let report =
        under_load("seen", villain(Mischief::Hang), |config| config.sights_max = SIGHTS_MAX, is_back);
    let sights = report.sights.as_ref().unwrap();
    assert_eq!((sights.lost, sights.decisions(), sights.messages()), (0, report.decisions, report.messages));
    let mut outcomes = BTreeMap::new();
    let mut levels = [0; 3];
    let mut events = vec![report.events[0].kind];
    let mut left = 0;
    for seen in sights.iter() {
        match seen.sight {
            Sight::Txn(judged) => {
                *outcomes.entry(judged.outcome.name().to_owned()).or_insert(0) += 1;
                levels[usize::from(judged.level.number())] += u64::from(judged.is_decision);
            }
            Sight::Event(kind) => events.push(kind),
            Sight::Left { .. } => left += 1,
            Sight::Message(_) | Sight::Doorbell { .. } => {}
        }
    }
    assert_eq!((outcomes, levels), (report.outcomes.clone(), report.decisions_by_level));
    // Attaching is where it begins, and its end comes after the last CPU has left.
    assert_eq!(events, kinds(&report));
    assert!(sights.iter().map(|seen| seen.at_ns).is_sorted());
    // Each decision was run to the end of a step.
    assert_eq!(left, report.decisions);
}

#[test]
fn an_agent_that_floods_is_ended_and_the_next_comes_back() {
    // Nobody waits for a decision here: the flood alone ends it.
    let report = under_load(
        "rings",
        villain(Mischief::Flood),
        |config| config.watchdog = Duration::from_secs(30),
        is_back,
    );
    assert!(kinds(&report).contains(&EventKind::Fault { incarnation: 1, fault: Fault::AgentFloods }));
    assert_eq!((report.epitaphs[0].cause.as_str(), report.crashes), ("flood", 1));
}

#[test]
fn an_agent_that_lies_about_what_it_took_is_ended_and_the_next_comes_back() {
    let report = comes_back("poison", Mischief::Poison, Fault::AgentPoisoned, "poison");
    assert!(report.outcomes.contains_key(Outcome::Poisoned.name()), "{:?}", report.outcomes);
}

#[test]
fn an_agent_that_is_dead_for_long_is_stood_in_for() {
    let report = comes_back("dead", Mischief::Die { down_ms: 600 }, Fault::AgentDead, "exit");
    assert!(report.decisions_by_level[1] > 0, "work went on");
}

#[test]
fn an_agent_that_is_started_again_in_time_needs_no_stand_in() {
    let report = under_load(
        "again",
        Settings { villains: 5, ..villain(Mischief::Die { down_ms: 0 }) },
        |config| config.watchdog = Duration::from_secs(30),
        |enclave| enclave.snapshot().incarnation == 6 && is_back(enclave),
    );
    assert_eq!((report.fallbacks.len(), report.crashes, report.incarnations), (0, 5, 6), "{report:?}");
    assert_eq!(report.epitaphs.len(), 5);
    for incarnation in 1..=5 {
        assert!(kinds(&report).contains(&EventKind::AgentEnded { incarnation }));
        assert!(kinds(&report).contains(&EventKind::AgentSeen { incarnation: incarnation + 1 }));
    }
}

#[test]
fn an_ipu_that_leaves_is_stood_in_for_until_it_is_back() {
    let report = under_load(
        "leave",
        villain(Mischief::Leave { away_ms: 100 }),
        |_| {},
        |enclave| {
            let back = |kind| matches!(kind, EventKind::Comeback { from: Level::OnHost, .. });
            enclave.snapshot().level == Level::Ipu && enclave.events(0).iter().any(|event| back(event.kind))
        },
    );
    let fallback = EventKind::Fallback { from: Level::Ipu, to: Level::OnHost, fault: Fault::LinkDown };
    assert!(kinds(&report).contains(&fallback), "{report:?}");
}

#[test]
fn a_host_that_attaches_anew_under_load_loses_nothing() {
    let asked = AtomicBool::new(false);
    let report = under_load(
        "anew",
        Settings::usual(VECTORS),
        |_| {},
        |enclave| {
            if enclave.snapshot().tasks_finished > 500 && !asked.swap(true, Ordering::Relaxed) {
                enclave.attach_anew();
            }
            is_back(enclave)
        },
    );
    assert_eq!((report.incarnations, report.crashes, report.level), (2, 0, Level::Ipu));
}

#[test]
fn where_the_stand_in_fails_too_the_host_decides() {
    for spare in [Spare::Ends, Spare::Silent] {
        let settings = villain(Mischief::Die { down_ms: 1500 });
        let report = under_load("spare", settings, |config| config.spare = spare, is_back);
        let steps: Vec<_> = report.fallbacks.iter().map(|step| (step.from, step.to)).collect();
        assert_eq!(steps, [(Level::Ipu, Level::OnHost), (Level::OnHost, Level::Host)], "{spare:?}");
        assert!(
            kinds(&report).iter().any(|kind| matches!(kind, EventKind::Comeback { from: Level::Host, .. }))
        );
        assert!(report.decisions_by_level[2] > 0);
    }
}

#[test]
fn the_host_decides_to_the_end_where_nobody_comes_back() {
    let settings = villain(Mischief::Leave { away_ms: 600_000 });
    let report = under_load(
        "alone",
        settings,
        |config| config.spare = Spare::Ends,
        |enclave| enclave.snapshot().level == Level::Host && enclave.snapshot().tasks_finished > 1500,
    );
    assert_eq!(report.level, Level::Host);
    assert!(report.agent_ended.is_some());
}

#[test]
fn an_agent_that_is_killed_again_and_again_loses_nothing() {
    const KILLS: u32 = 30;
    let link = Link::new("kills");
    let over = AtomicBool::new(false);
    let reports = link.with_agent(Settings::usual(VECTORS), |_| {
        let config = EnclaveConfig { watchdog: Duration::from_secs(30), ..enclave(&link, 0..2) };
        let work = Counting::default();
        with_host(&HostConfig { cpus: 2, tasks: 1 << 15 }, &work, |host| {
            let enclave = host.create_enclave(config).unwrap();
            std::thread::scope(|scope| {
                let over_in_any_case = SetOnDrop(&over);
                scope.spawn(|| {
                    let mut next = 0;
                    while !over.load(Ordering::Relaxed) {
                        next += u64::from(enclave.submit(next).is_ok());
                        std::thread::sleep(Duration::from_micros(100));
                    }
                });
                for kill in 1..=KILLS {
                    let owned = enclave.link();
                    let manager = owned.manager().unwrap();
                    if kill % 3 == 0 {
                        manager.load(None, "fifo", PATIENCE).unwrap();
                        manager.replace("fifo", Duration::from_secs(5), PATIENCE).unwrap();
                    } else {
                        manager.kill(Duration::from_millis(5), PATIENCE).unwrap();
                    }
                    until("another agent", || enclave.snapshot().incarnation == kill + 1);
                }
                until("a decision of the last", || is_back(&enclave));
                drop(over_in_any_case);
            });
            let agents = enclave.link().manager().unwrap().list();
            let books = agents.books.unwrap();
            assert_eq!((books.replacements, books.revocations, books.faults), (KILLS / 3, KILLS * 2 / 3, 0));
            assert_eq!(agents.running.unwrap().name(), "fifo");
            host.drain(PATIENCE);
        })
        .1
    });
    sound(&reports[0]);
    assert_eq!((reports[0].incarnations, reports[0].fallbacks.len()), (u64::from(KILLS) + 1, 0));
    assert_eq!(reports[0].crashes, 0, "a kill is no crash");
}

#[test]
fn what_a_manager_asks_for_and_cannot_have_is_named() {
    let link = Link::new("manage");
    link.with_agent(Settings::usual(VECTORS), |_| {
        with_host(&HostConfig { cpus: 1, tasks: 1 << 15 }, &Counting::default(), |host| {
            let owned = host.create_enclave(enclave(&link, [0])).unwrap().link();
            let manager = owned.manager().unwrap();
            let error = manager.load(None, "lifo", PATIENCE).unwrap_err();
            assert!(error.to_string().contains("no agent for that policy"), "{error}");
            let error = manager.load(Some(&[7; 100]), "fifo", PATIENCE).unwrap_err();
            assert!(error.to_string().contains("refused for its image"), "{error}");
            let error = manager.load(Some(&vec![0; 1 << 20]), "fifo", PATIENCE).unwrap_err();
            assert!(matches!(error, ManageError::TooLarge { bytes: 1_048_576, max: 524_288 }));
            manager.audit(PATIENCE).unwrap();
            manager.unload(PATIENCE).unwrap();
        });
    });
}

/// Four enclaves in which one agent after another fails: the others do not notice.
#[test]
fn one_enclaves_trouble_is_not_anothers() {
    const REQUESTS: u64 = 1500;
    let links: Vec<Link> = (0..4).map(|i| Link::new(&format!("four{i}"))).collect();
    let mut settings = [Settings::usual(VECTORS); 4];
    settings[2] = Settings { villains: 3, ..villain(Mischief::Die { down_ms: 5 }) };
    let agents = links.iter().zip(settings).collect::<Vec<_>>();
    let reports = common::with_agents(&agents, || {
        let work = Counting::default();
        with_host(&HostConfig { cpus: 6, tasks: 1 << 15 }, &work, |host| {
            let cpus = [vec![0, 1], vec![2], vec![3, 4], vec![5]];
            let enclaves: Vec<_> = links
                .iter()
                .zip(cpus)
                .map(|(link, cpus)| host.create_enclave(enclave(link, cpus)).unwrap())
                .collect();
            std::thread::scope(|scope| {
                for enclave in &enclaves {
                    scope.spawn(move || {
                        let troubled = enclave.id() == 2;
                        let mut next = 0;
                        while next < REQUESTS || troubled && enclave.snapshot().incarnation < 4 {
                            next += u64::from(enclave.submit(next).is_ok());
                            std::thread::sleep(Duration::from_micros(20));
                        }
                    });
                }
            });
            host.drain(PATIENCE);
        })
        .1
    });
    for (number, report) in reports.iter().enumerate() {
        sound(report);
        assert_eq!(usize::from(report.enclave), number);
        assert!(report.tasks_finished >= REQUESTS);
        assert_eq!(report.incarnations, if number == 2 { 4 } else { 1 }, "{report:?}");
        assert_eq!(report.crashes, if number == 2 { 3 } else { 0 });
    }
}

#[test]
fn enclaves_come_go_and_change_their_size_while_others_run() {
    let links: Vec<Link> = (0..2).map(|i| Link::new(&format!("sizes{i}"))).collect();
    let agents: Vec<_> = links.iter().map(|link| (link, Settings::usual(VECTORS))).collect();
    let over = AtomicBool::new(false);
    let (at_home, reports) = common::with_agents(&agents, || {
        let work = Counting::default();
        with_host(&HostConfig { cpus: 4, tasks: 1 << 15 }, &work, |host| {
            let first = host.create_enclave(enclave(&links[0], 0..3)).unwrap();
            std::thread::scope(|scope| {
                let over_in_any_case = SetOnDrop(&over);
                scope.spawn(|| {
                    let mut next = 0;
                    while !over.load(Ordering::Relaxed) {
                        next += u64::from(first.submit(next).is_ok());
                        std::thread::sleep(Duration::from_micros(50));
                    }
                });
                for session in 1..=6 {
                    let config = EnclaveConfig { session, ..enclave(&links[1], [3]) };
                    let second = host.create_enclave(config).unwrap();
                    submit_all(&second, 100);
                    // Back and forth under load.
                    for _ in 0..5 {
                        host.move_cpu(2, Some(second.id())).unwrap();
                        assert_eq!((first.cpus(), second.cpus()), (vec![0, 1], vec![2, 3]));
                        submit_all(&second, 0);
                        host.move_cpu(2, Some(first.id())).unwrap();
                    }
                    until("the second's tasks", || second.is_drained());
                    let report = host.destroy_enclave(second.id()).unwrap();
                    sound(&report);
                    assert_eq!(report.tasks_finished, 100);
                    assert!(host.destroy_enclave(second.id()).is_none(), "once is enough");
                }
                drop(over_in_any_case);
            });
            host.drain(PATIENCE);
            free(host)
        })
    });
    assert_eq!(at_home, [3], "CPU 3 is nobody's, and no other");
    assert_eq!(reports.len(), 7);
    sound(&reports[0]);
    assert_eq!(reports[0].incarnations, 1);
}

/// CPUs that are nobody's.
fn free<W: Work>(host: &Host<'_, W>) -> Vec<u16> {
    let owners = host.owners();
    (0..owners.cpus()).filter(|&cpu| owners.cpu(cpu) == neap_host::ownership::Owner::Nobody).collect()
}

#[test]
fn what_enclaves_and_cpus_cannot_be_is_named() {
    let links: Vec<Link> = (0..2).map(|i| Link::new(&format!("names{i}"))).collect();
    let agents: Vec<_> = links.iter().map(|link| (link, Settings::usual(VECTORS))).collect();
    common::with_agents(&agents, || {
        let host = HostConfig { cpus: 3, tasks: 1 << 15 };
        with_host(&host, &Counting::default(), |host| {
            let first = host.create_enclave(enclave(&links[0], [0, 1])).unwrap();
            let refused = |cpus: &[u16]| host.create_enclave(enclave(&links[1], cpus.to_vec())).unwrap_err();
            assert!(matches!(refused(&[1, 2]), WorkerError::CpuTaken { cpu: 1 }));
            assert!(matches!(refused(&[2, 3]), WorkerError::NoSuchCpu { cpu: 3, cpus: 3 }));
            assert!(matches!(refused(&[]), WorkerError::NoCpus));
            assert_eq!(host.move_cpu(9, None), Err(MoveError::NoSuchCpu { cpu: 9, cpus: 3 }));
            assert_eq!(host.move_cpu(1, Some(5)), Err(MoveError::NoSuchEnclave { cpu: 1, enclave: 5 }));
            assert_eq!(free(host), [2]);
            host.move_cpu(1, None).unwrap();
            assert_eq!(free(host), [1, 2]);
            host.create_enclave(enclave(&links[1], [1, 2])).unwrap();
            assert_eq!(first.cpus(), [0]);
        });
    });
}

/// Every task takes a while, so that a CPU is wanted elsewhere in the middle of one.
struct Slow;

impl Work for Slow {
    fn step(&self, request: u64, step: u32) -> Step {
        std::thread::sleep(Duration::from_micros(300));
        if request.is_multiple_of(3) && step == 0 { Step::Yield } else { Step::Done }
    }
}

#[test]
fn a_cpu_that_moves_leaves_its_tasks_behind() {
    let links: Vec<Link> = (0..2).map(|i| Link::new(&format!("moves{i}"))).collect();
    let agents: Vec<_> = links.iter().map(|link| (link, Settings::usual(VECTORS))).collect();
    let (_, reports) = common::with_agents(&agents, || {
        with_host(&HostConfig { cpus: 3, tasks: 1 << 15 }, &Slow, |host| {
            let first = host.create_enclave(enclave(&links[0], [0, 1])).unwrap();
            let second = host.create_enclave(enclave(&links[1], [2])).unwrap();
            submit_all(&first, 400);
            submit_all(&second, 400);
            for to in (0..40).map(|i| if i % 2 == 0 { &second } else { &first }) {
                host.move_cpu(1, Some(to.id())).unwrap();
            }
            host.drain(PATIENCE);
        })
    });
    for report in &reports {
        sound(report);
        assert_eq!((report.tasks_finished, report.fallbacks.len()), (400, 0), "{report:?}");
    }
    assert_eq!(
        kinds(&reports[1]).iter().filter(|k| matches!(k, EventKind::CpuJoined { cpu: 1 })).count(),
        20
    );
}
