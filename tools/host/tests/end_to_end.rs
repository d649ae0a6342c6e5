//! A worker host and the agent on the host, over the virtual link: what must hold of every run.

#[path = "common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Counting, Link, VECTORS, submit_all};
use neap_abi::{AgentState, Clock, HelloError, Outcome, RegionKind, VERSION, Version};
use neap_host::link::{AttachError, Attachment};
use neap_host::onhost::{self, Settings};
use neap_host::policies::POLICIES;
use neap_host::report::Report;
use neap_host::window::{HostWindow, HostWindowError};
use neap_host::worker::{self, Config, Nature, Step, Work, WorkerError};
use neap_vipu::Peer;

fn config(cpus: u16, session: u32) -> Config {
    Config {
        attachment: Attachment {
            cpus,
            session,
            policy: "fifo".to_owned(),
            clock: Clock::Own,
            version: VERSION,
            timeout: Duration::from_secs(20),
        },
        vectors: VECTORS,
        drain: Duration::from_secs(60),
    }
}

fn sound(report: &Report, requests: u64) {
    assert_eq!((report.tasks_created, report.tasks_finished), (requests, requests), "{report:?}");
    assert_eq!((report.tasks_lost, report.tasks_doubled), (0, 0), "{report:?}");
    assert!(report.complete);
    assert_eq!(report.fifo_violations, 0, "{report:?}");
    assert_eq!(report.agent_ended, None);
}

#[test]
fn every_task_runs_once_and_in_order() {
    const REQUESTS: u64 = 5000;
    let work = Counting::default();
    let report = Link::new("order").with_agent(Settings::usual(VECTORS), |socket| {
        worker::host(socket, &config(3, 1), &work, |host| submit_all(host, REQUESTS)).unwrap()
    });
    sound(&report, REQUESTS);
    let steps = REQUESTS + 2 * REQUESTS / 10;
    assert_eq!((work.0.load(Ordering::Relaxed), report.decisions), (steps, steps));
    assert_eq!(report.outcomes.get(Outcome::Committed.name()), Some(&steps));
    assert!(report.prestage_hits > 0 && report.prestage_hits + report.prestage_misses == steps);
    assert_eq!((report.resyncs, report.messages_dropped), (1, 0));
}

/// A few requests go on for long, of a class and a group of their own.
struct Mixed;

impl Work for Mixed {
    fn step(&self, request: u64, step: u32) -> Step {
        match (request % 50, request % 10, step) {
            (0, _, ..200) => {
                std::thread::sleep(Duration::from_micros(20));
                Step::Going
            }
            (_, 3, 0) => Step::Yield,
            (_, 7, 0) => Step::Block { for_us: 300 },
            _ => Step::Done,
        }
    }

    fn nature(&self, request: u64) -> Nature {
        let is_long = request.is_multiple_of(50);
        Nature { class: 1 + u8::from(is_long), group: 1 + (request % 3) as u32, is_long }
    }
}

/// Every policy, by its own clock and by the messages', with a ring for all lines and with one that is too small.
#[test]
fn no_policy_loses_a_task() {
    const REQUESTS: u64 = 600;
    for policy in POLICIES {
        for (clock, message_lines) in [(Clock::Own, 4096), (Clock::Messages, 4096), (Clock::Own, 16)] {
            let settings = Settings { message_lines, ..Settings::usual(VECTORS) };
            let report = Link::new("policies").with_agent(settings, |socket| {
                let usual = config(2, 1);
                let attachment = Attachment { policy: policy.to_owned(), clock, ..usual.attachment };
                let config = Config { attachment, ..usual };
                worker::host(socket, &config, &Mixed, |host| {
                    for request in 0..REQUESTS {
                        while host.submit_as(request, Mixed.nature(request)).is_err() {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        std::thread::sleep(Duration::from_micros(100));
                    }
                })
                .unwrap()
            });
            sound(&report, REQUESTS);
            assert_eq!((report.policy.as_str(), report.agent.as_str()), (policy, policy));
            assert_eq!(report.request_short.count, REQUESTS - REQUESTS / 50);
            let preempts = matches!(policy, "shinjuku" | "mq-shinjuku");
            assert!(!preempts || report.preemptions > 0, "{policy}, {clock:?}: {report:?}");
            assert!(!policy.starts_with("fifo") || report.preemptions == 0, "{policy}: {report:?}");
        }
    }
}

#[test]
fn a_flood_into_a_full_ring_ends_in_resyncs_and_loses_nothing() {
    const REQUESTS: u64 = 6000;
    let settings = Settings { message_lines: 16, ..Settings::usual(VECTORS) };
    let report = Link::new("flood").with_agent(settings, |socket| {
        worker::host(socket, &config(2, 1), &Counting::default(), |host| {
            for request in 0..REQUESTS {
                while host.submit(request).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
        .unwrap()
    });
    sound(&report, REQUESTS);
    assert!(report.messages_dropped > 0 && report.resyncs > 1, "{report:?}");
}

#[test]
fn a_host_that_dies_and_comes_back_is_served_anew() {
    let link = Link::new("return");
    link.with_agent(Settings::usual(VECTORS), |socket| {
        for session in 1..=4 {
            let requests = 500 + u64::from(session);
            if session % 2 == 1 {
                // A host that dies: it attaches, leaves its last words half said, and is not heard of again.
                let peer = Peer::connect(socket, VECTORS, Duration::from_secs(20)).unwrap();
                let window = HostWindow::new(peer.map_window().unwrap());
                let attachment = config(4, session).attachment;
                let link = neap_host::link::Link::attach(&window, &peer, &attachment).unwrap();
                for _ in 0..100 {
                    let message = neap_abi::Message::new(neap_abi::MessageKind::TaskNew, 1);
                    link.send_message(message).unwrap();
                }
                continue;
            }
            let work = Counting::default();
            let report =
                worker::host(socket, &config(2, session), &work, |host| submit_all(host, requests)).unwrap();
            sound(&report, requests);
        }
    });
}

#[test]
fn versions_one_minor_apart_work_together_and_others_say_so() {
    let older = Version { minor: VERSION.minor - 1, ..VERSION };
    let newer = Version { minor: VERSION.minor + 1, ..VERSION };
    for (host, agent, spoken) in [
        (VERSION, older, Some(older)),
        (older, VERSION, Some(older)),
        (VERSION, newer, Some(VERSION)),
        (newer, VERSION, Some(VERSION)),
        (older, newer, None),
        (newer, older, None),
    ] {
        let settings = Settings { version: agent, ..Settings::usual(VECTORS) };
        Link::new("version").with_agent(settings, |socket| {
            let mut config = config(2, 1);
            config.attachment.version = host;
            let run = worker::host(socket, &config, &Counting::default(), |host| submit_all(host, 200));
            match (run, spoken) {
                (Ok(report), Some(spoken)) => {
                    sound(&report, 200);
                    assert_eq!(report.version, spoken.to_string());
                }
                (Err(WorkerError::Attach(AttachError::Window(HostWindowError::Hello(error)))), None) => {
                    assert!(matches!(error, HelloError::Version(e) if (e.ours, e.theirs) == (host, agent)));
                    assert!(error.to_string().contains("one minor"));
                }
                (run, spoken) => panic!("host {host}, agent {agent}: {run:?}, expected {spoken:?}"),
            }
        });
    }
}

#[test]
fn what_the_ipu_refuses_is_named() {
    Link::new("refuse").with_agent(Settings::usual(VECTORS), |socket| {
        let attach = |change: &dyn Fn(&mut Config)| {
            let mut config = config(2, 7);
            change(&mut config);
            worker::host(socket, &config, &Counting::default(), |_| {}).unwrap_err()
        };
        let error = attach(&|c| c.attachment.policy = "lifo".to_owned());
        let refused = WorkerError::Attach;
        assert!(matches!(
            &error,
            WorkerError::Attach(AttachError::Refused { state: AgentState::RefusedPolicy, .. })
        ));
        assert!(error.to_string().contains("--policy fifo"));
        let error = attach(&|c| c.attachment.cpus = 257);
        assert_eq!(error.to_string(), refused(AttachError::Cpus { cpus: 257, slots: 256 }).to_string());
        let error = attach(&|c| c.attachment.cpus = 17);
        assert_eq!(error.to_string(), refused(AttachError::Vectors { cpus: 17, vectors: 16 }).to_string());
    });
}

#[test]
fn a_window_that_no_ipu_has_written_is_named() {
    let link = Link::new("empty");
    let mut config = config(2, 1);
    config.attachment.timeout = Duration::from_millis(50);
    let error = worker::host(&link.socket, &config, &Counting::default(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("magic") && error.to_string().contains("is the firmware running"));
}

/// An agent that answers properly, and then fills slots and control line with noise and rings at random.
#[test]
fn a_hostile_agent_can_make_the_host_refuse_and_report_and_no_more() {
    const SEED: u64 = 0x5eed_0001;
    println!("seed {SEED:#x}");
    let link = Link::new("hostile");
    let over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let good = scope
            .spawn(|| onhost::run(&link.socket, Settings::usual(VECTORS), || over.load(Ordering::Relaxed)));
        let work = Counting::default();
        let mut config = config(3, 1);
        config.drain = Duration::from_millis(300);
        let report = worker::host(&link.socket, &config, &work, |host| {
            scope.spawn(|| scribble(&link, SEED, &over));
            submit_all(host, 3000);
        });
        over.store(true, Ordering::Relaxed);
        good.join().unwrap().unwrap();
        report
    })
    .unwrap();
    let refusals: u64 = report.outcomes.iter().filter(|(name, _)| *name != "committed").map(|(_, n)| n).sum();
    assert!(refusals > 0, "{report:?}");
    assert_eq!(report.tasks_doubled, 0);
    assert_eq!(report.tasks_created, report.tasks_finished + report.tasks_lost);
}

fn scribble(link: &Link, seed: u64, over: &AtomicBool) {
    let window = HostWindow::new(link.window.map().unwrap());
    let hello = window.hello(VERSION).unwrap();
    let slots = window.lines(&hello, RegionKind::Slots).unwrap();
    let peer = Peer::connect(&link.socket, VECTORS, Duration::from_secs(20)).unwrap();
    let mut state = seed;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !over.load(Ordering::Relaxed) {
        let line = &slots[(random() % 3) as usize];
        let tag = neap_abi::Tag::of_lap((random() % 254) as u32);
        line.publish(&core::array::from_fn(|_| random()), tag);
        let _ = peer.poll_changes();
        for host in peer.peers() {
            let _ = peer.ring(host, (random() % 3) as u16);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
