//! Whole runs with the agent on the host: how they end, and what they leave.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;

use common::{Place, signal, wait_gone};
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
