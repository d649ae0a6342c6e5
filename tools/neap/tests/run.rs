//! Whole runs with the agent on the host: how they end, and what they leave.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use common::terminal::Terminal;
use common::{Place, signal, wait_gone};
use openmetrics_parser::OpenMetricsValue;
use rustix::process::Signal;

#[test]
fn a_good_run_keeps_its_promises_and_leaves_nothing() {
    let place = Place::new();
    let page = place.tmp().join("page.html");
    let end = place.start(&["--seconds", "1", "--seed", "5", "--report", page.to_str().unwrap()]).end();
    assert_eq!(end.code, Some(0), "{}", end.words());
    let json = end.json();
    assert_eq!((json["where"].as_str(), json["seed"].as_u64()), (Some("on-host"), Some(5)));
    assert_eq!((json["end"].as_str(), json["emulated"].as_bool()), (Some("complete"), Some(false)));
    for zero in ["tasks_lost", "tasks_doubled", "fifo_violations", "values_wrong", "tasks_unfinished"] {
        assert_eq!(json[zero], 0, "{zero}: {}", end.words());
    }
    assert_eq!(json["tasks_created"], json["tasks_finished"]);
    assert_eq!(json["request_us"]["count"], json["tasks_finished"]);
    // Each task is decided at least once, and those that yield or block twice.
    let decisions = json["decisions"].as_u64().unwrap();
    assert!(decisions > json["tasks_created"].as_u64().unwrap(), "{}", end.words());
    assert!(decisions <= json["outcomes"]["committed"].as_u64().unwrap(), "{}", end.words());
    let page_text = fs::read_to_string(&page).unwrap();
    assert!(page_text.contains("</html>") && page_text.contains("seed 5"));
    fs::remove_file(page).unwrap();
    assert_eq!(place.left_over(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn every_policy_keeps_its_promises_and_those_with_slices_preempt() {
    let place = Place::new();
    for policy in ["fifo-per-core", "shinjuku", "mq-shinjuku", "vm"] {
        let load = ["--load", "dispersive", "--cpus", "1", "--seconds", "3", "--seed", "5"];
        let end = place.start(&[&["--policy", policy][..], &load].concat()).end();
        assert_eq!(end.code, Some(0), "{policy}: {}", end.words());
        let json = end.json();
        for zero in ["tasks_lost", "tasks_doubled", "values_wrong", "tasks_unfinished"] {
            assert_eq!(json[zero], 0, "{policy}, {zero}: {}", end.words());
        }
        assert_eq!((json["policy"].as_str(), json["load"].as_str()), (Some(policy), Some("dispersive")));
        assert!(json["request_short_us"]["count"].as_u64() < json["request_us"]["count"].as_u64());
        let preemptions = json["preemptions"].as_u64().unwrap();
        match policy {
            "shinjuku" | "mq-shinjuku" => assert!(preemptions > 0, "{policy}: {}", end.words()),
            "fifo-per-core" => assert_eq!(preemptions, 0, "{policy}"),
            _ => {}
        }
    }
}

#[test]
fn the_seed_makes_the_load() {
    let place = Place::new();
    let created = |seed| {
        let end = place.start(&["--seconds", "0.5", "--seed", seed]).end();
        assert_eq!(end.code, Some(0), "{}", end.words());
        end.json()["tasks_created"].as_u64().unwrap()
    };
    assert_eq!(created("11"), created("11"));
}

#[test]
fn a_killed_worker_host_is_told_and_a_second_run_starts_at_once() {
    let place = Place::new();
    let mut run = place.start(&["--seconds", "60"]);
    // Its figures are those that it last told: give it time to tell some.
    place.wait_decisions(&mut run, 500);
    let agent = run.part("on-host-agent");
    signal(run.part("worker"), Signal::KILL);
    let end = run.end();
    assert_eq!(end.code, Some(1), "{}", end.words());
    let json = end.json();
    assert_eq!(json["end"], "broken");
    let remark = json["remarks"][0].as_str().unwrap();
    assert!(remark.contains("the worker host was killed by signal 9 after"), "{remark}");
    assert!(remark.contains("tasks were unfinished by what it last told"), "{remark}");
    assert!(json["tasks_created"].as_u64().unwrap() > 0, "{}", end.words());
    wait_gone(agent);
    assert!(place.left_over().is_empty());
    let second = place.start(&["--seconds", "0.3"]).end();
    assert_eq!(second.code, Some(0), "{}", second.words());
}

#[test]
fn a_killed_agent_is_told_with_what_was_unfinished() {
    let place = Place::new();
    let mut run = place.start(&["--seconds", "60"]);
    place.wait_running(&mut run);
    let worker = run.part("worker");
    signal(run.part("on-host-agent"), Signal::KILL);
    let end = run.end();
    assert_eq!(end.code, Some(1), "{}", end.words());
    let json = end.json();
    let remark = json["remarks"][0].as_str().unwrap();
    assert!(remark.contains("the on-host agent was killed by signal 9 after"), "{remark}");
    assert!(end.err.contains(remark), "{}", end.words());
    assert_eq!(json["tasks_lost"], 0, "unfinished is not lost: {}", end.words());
    wait_gone(worker);
    assert!(place.left_over().is_empty());
}

#[test]
fn an_interrupt_gives_the_report_of_what_was_done() {
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let place = Place::new();
        let mut run = place.start(&["--seconds", "60"]);
        place.wait_running(&mut run);
        let (agent, worker) = (run.part("on-host-agent"), run.part("worker"));
        signal(run.id(), number);
        let end = run.end();
        assert_eq!(end.code, Some(code), "{}", end.words());
        let json = end.json();
        assert_eq!(json["end"], "interrupted");
        assert!(json["decisions"].as_u64().unwrap() > 0, "{}", end.words());
        assert_eq!(json["tasks_unfinished"], 0, "{}", end.words());
        assert!(end.err.contains("interrupted after"), "{}", end.words());
        wait_gone(agent);
        wait_gone(worker);
        assert!(place.left_over().is_empty());
    }
}

#[test]
fn an_interrupted_start_ends_at_once() {
    let place = Place::new();
    let mut run = place.start_with_keys("1000000", &["--seconds", "60"]);
    while !place.left_over().iter().any(|dir| dir.join("run.json").exists()) {
        assert!(!run.has_ended(), "{}", run.end().words());
    }
    signal(run.id(), Signal::INT);
    let end = run.end();
    assert_eq!(end.code, Some(130), "{}", end.words());
    assert_eq!(end.json()["end"], "interrupted");
    assert!(place.left_over().is_empty());
}

#[test]
fn a_killed_neap_takes_its_children_along_and_the_next_run_tidies_up() {
    let place = Place::new();
    let mut run = place.start(&["--seconds", "60"]);
    let dir = place.wait_running(&mut run);
    let window = fs::read_link(dir.join("window")).unwrap();
    let (agent, worker) = (run.part("on-host-agent"), run.part("worker"));
    signal(run.id(), Signal::KILL);
    assert_eq!(run.end().code, None);
    wait_gone(agent);
    wait_gone(worker);
    assert!(dir.exists() && window.exists());
    let second = place.start(&["--seconds", "0.3"]).end();
    assert_eq!(second.code, Some(0), "{}", second.words());
    assert!(!dir.exists() && !window.exists());
    assert!(place.left_over().is_empty());
}

#[test]
fn two_runs_at_once_do_not_meet() {
    let place = Place::new();
    let mut runs = [place.start(&["--seconds", "1"]), place.start(&["--seconds", "1"])];
    for run in &mut runs {
        let end = run.end();
        assert_eq!(end.code, Some(0), "{}", end.words());
    }
    assert!(place.left_over().is_empty());
}

#[test]
fn the_last_run_can_be_asked_and_tells_that_it_has_no_log() {
    let place = Place::new();
    let nothing = place.neap(&["status"]).output().unwrap();
    let words = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && words.contains("cargo neap run"), "{words}");
    assert_eq!(place.start(&["--seconds", "0.3"]).end().code, Some(0));
    let status = place.neap(&["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (status["running"].as_bool(), status["agent"]["state"].as_str()),
        (Some(false), Some("stopped"))
    );
    let log = place.neap(&["log"]).output().unwrap();
    let words = String::from_utf8_lossy(&log.stderr).into_owned();
    assert!(!log.status.success() && words.contains("without --on-host"), "{words}");
}

#[test]
fn enclaves_have_agents_of_their_own_that_can_be_ended_and_replaced() {
    let place = Place::new();
    let agent = |arguments: &[&str]| {
        let done = place.neap(&[&["agent"], arguments].concat()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        (done.status.success(), out.into_owned(), err.into_owned())
    };
    let (done, _, words) = agent(&["list"]);
    assert!(!done && words.contains("nothing runs") && words.contains("cargo neap run"), "{words}");
    let enclaves = ["--enclave", "cpus=0-1", "--enclave", "cpus=4", "--watchdog-ms", "2000"];
    let mut run = place.start(&[&enclaves[..], &["--seconds", "60"]].concat());
    place.wait_running(&mut run);
    let list = || -> serde_json::Value {
        let (done, out, words) = agent(&["list", "--json"]);
        assert!(done, "{words}");
        serde_json::from_str(&out).unwrap()
    };
    assert_eq!(list()[1]["cpus"], serde_json::json!([4]));
    let (done, words, err) = agent(&["kill", "--enclave", "1"]);
    assert!(done && words.contains("the agent of enclave 1 was ended"), "{words}{err}");
    let (done, out, err) = agent(&["replace", "--enclave", "1", "--json"]);
    assert!(done && serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}{err}");
    let incarnation = |enclave: usize| list()[enclave]["running"]["incarnation"].as_u64();
    while incarnation(1) != Some(3) {
        assert!(!run.has_ended(), "{}", run.end().words());
    }
    assert_eq!(incarnation(0), Some(1));
    let (done, _, words) = agent(&["kill", "--enclave", "2"]);
    assert!(!done && words.contains("no enclave 2") && words.contains("0 to 1"), "{words}");
    let (done, _, words) = agent(&["load", "no/such.img"]);
    assert!(!done && words.contains("no/such.img"), "{words}");
    signal(run.id(), Signal::INT);
    let end = run.end();
    let json = end.json();
    assert_eq!((end.code, json["tasks_unfinished"].as_u64()), (Some(130), Some(0)), "{}", end.words());
    for (number, incarnations) in [(0, 1), (1, 3)] {
        let enclave = &json["enclaves"][number];
        assert_eq!((enclave["complete"].as_bool(), enclave["crashes"].as_u64()), (Some(true), Some(0)));
        assert_eq!(enclave["incarnations"], incarnations, "{}", end.words());
        assert!(enclave["tasks_created"].as_u64().unwrap() > 0);
    }
    assert_eq!(json["cpus"], 3);
    let status = place.neap(&["status", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["enclaves"][1]["running"]["incarnation"], 3);
    assert_eq!(status["enclaves"][1]["books"]["replacements"], 1);
    assert!(place.left_over().is_empty());
}

#[test]
fn a_report_that_can_not_be_written_is_told_before_the_run() {
    let place = Place::new();
    let end = place.start(&["--seconds", "60", "--report", "/proc/no-such/page.html"]).end();
    assert_eq!(end.code, Some(1));
    assert!(end.err.contains("/proc/no-such/page.html") && end.out.is_empty(), "{}", end.words());
    assert!(!end.err.contains("loading"), "{}", end.words());
    assert!(place.left_over().is_empty());
}

#[test]
fn a_place_for_runs_that_is_none_is_named() {
    let place = Place::new();
    let mut command = place.neap(&["run", "--on-host", "--seconds", "60"]);
    let output = command.env("TMPDIR", Path::new("/proc/no-such")).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && words.contains("/proc/no-such") && words.contains("TMPDIR"),
        "{words}"
    );
}

#[test]
fn whoever_looks_sees_the_same_figures() {
    let place = Place::new();
    let enclaves = ["--enclave", "cpus=0-1", "--enclave", "cpus=2,policy=shinjuku"];
    let end = place.start(&[&enclaves[..], &["--seconds", "1"]].concat()).end();
    assert_eq!(end.code, Some(0), "{}", end.words());
    let said = |arguments: &[&str]| {
        let done = place.neap(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{out}{err}");
        out.into_owned()
    };
    let status: serde_json::Value = serde_json::from_str(&said(&["status", "--json"])).unwrap();
    let (printed, top) = (said(&["metrics"]), said(&["top", "--once"]));
    // Port 0 leaves it to the system which port; who is to look there is told.
    let mut server = place.neap(&["metrics", "--listen", "127.0.0.1:0"]).spawn().unwrap();
    let mut told = String::new();
    BufReader::new(server.stderr.as_mut().unwrap()).read_line(&mut told).unwrap();
    let address = told.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    };
    let (head, served) = get("/metrics");
    assert!(head.contains(" 200 ") && head.contains("application/openmetrics-text"), "{head}");
    // Samples of one family stand in any order.
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&served), sorted(&printed));
    assert!(get("/").0.contains(" 404 "));
    // Nobody else can have the port meanwhile.
    let second = place.neap(&["metrics", "--listen", &address]).output().unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains(&address) && words.contains("--listen"), "{words}");
    signal(server.id(), Signal::INT);
    assert_eq!(server.wait().unwrap().code(), Some(0));

    let metrics = openmetrics_parser::openmetrics::parse_openmetrics(&served).unwrap();
    let value = |family: &str, enclave: usize, more: &[(&str, &str)]| {
        let enclave = enclave.to_string();
        let samples = metrics.families.get(family).into_iter().flat_map(|family| family.iter_samples());
        let mut found = samples.filter(|sample| {
            let labels = sample.get_labelset().unwrap();
            let of = [("enclave", enclave.as_str())];
            of.iter().chain(more).all(|(name, value)| labels.get_label_value(name) == Some(*value))
        });
        match &found.next().unwrap_or_else(|| panic!("no {family} of enclave {enclave}: {served}")).value {
            OpenMetricsValue::Counter(counter) => counter.value.as_f64(),
            OpenMetricsValue::Gauge(gauge) => gauge.as_f64(),
            other => panic!("{other:?}"),
        }
    };
    for (number, enclave) in status["enclaves"].as_array().unwrap().iter().enumerate() {
        let (host, agent, books) = (&enclave["host"], &enclave["agent"], &enclave["books"]);
        for (family, wanted) in [
            ("neap_decisions", &host["decisions"]),
            ("neap_messages", &host["messages"]),
            ("neap_prestage_hits", &host["prestage_hits"]),
            ("neap_prestage_misses", &host["prestage_misses"]),
            ("neap_resyncs", &host["resyncs"]),
            ("neap_tasks_finished", &host["tasks_finished"]),
            ("neap_agent_txns", &agent["decisions"]),
            ("neap_agent_doorbells", &agent["doorbells"]),
            ("neap_agent_incarnation", &agent["incarnation"]),
            ("neap_supervisor_started", &books["started"]),
            ("neap_supervisor_cores", &books["cores"]),
        ] {
            assert_eq!(Some(value(family, number, &[])), wanted.as_f64(), "{family}: {enclave:#}");
        }
        assert!(host["decisions"].as_u64().unwrap() > 0);
        for (outcome, times) in host["outcomes"].as_object().unwrap() {
            assert_eq!(
                Some(value("neap_txns", number, &[("outcome", outcome)])),
                times.as_f64(),
                "{outcome}"
            );
        }
        let state = agent["state"].as_str().unwrap();
        assert_eq!(value("neap_agent_state", number, &[("state", state)]), 1.0);
    }
    // A report says the same, and so does a frame, with its thousands apart.
    for number in 0..2 {
        let decisions = &status["enclaves"][number]["host"]["decisions"];
        assert_eq!(*decisions, end.json()["enclaves"][number]["decisions"]);
        assert!(top.replace(',', "").contains(&decisions.to_string()), "{top}");
    }
}

#[test]
fn a_view_on_a_terminal_follows_a_run_and_leaves_the_terminal_as_it_was() {
    let place = Place::new();
    let mut run = place.start(&["--seconds", "60"]);
    place.wait_decisions(&mut run, 100);
    let mut terminal = Terminal::of(place.neap(&["top"]));
    // The stages of the ledger are there while the run is under way, and decisions go on.
    let stages =
        ["per s", "seen to decided", "decided to published", "published to doorbell", "the host's watch"];
    terminal.shows(|screen| stages.iter().all(|stage| screen.contains(stage)));
    let row = |screen: &str| screen.lines().nth(3).unwrap_or_default().to_owned();
    let before = std::cell::RefCell::new(String::new());
    terminal.shows(|screen| {
        let before = before.replace(row(screen));
        !before.is_empty() && before != row(screen)
    });
    terminal.resize(60, 12);
    terminal.shows(|screen| screen.lines().count() <= 12 && screen.contains("neap top"));
    terminal.press(b"\x1b[B");
    terminal.shows(|screen| !screen.contains("neap top"));
    terminal.press(b"q");
    assert!(terminal.is_as_before());
    assert!(terminal.ended_well());
    // Where the terminal goes, the view goes too, and does not look for keys for ever.
    let mut terminal = Terminal::of(place.neap(&["top"]));
    terminal.shows(|screen| screen.contains("neap top"));
    terminal.hang_up();
    terminal.ended_well();
    signal(run.id(), Signal::INT);
    assert_eq!(run.end().code, Some(130));
}

#[test]
fn a_view_without_a_terminal_names_the_option_that_needs_none() {
    let place = Place::new();
    assert_eq!(place.start(&["--seconds", "0.3"]).end().code, Some(0));
    let done = place.neap(&["top"]).output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && words.contains("--once"), "{words}");
    for shell in ["bash", "zsh", "fish"] {
        let done = place.neap(&["completions", shell]).output().unwrap();
        let script = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            done.status.success() && script.contains("metrics") && script.contains("perfetto"),
            "{shell}"
        );
    }
}
