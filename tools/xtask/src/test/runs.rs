//! Stage `run`: the main job as users ask for it, by the command itself, on each host; and a card that is flashed while it works.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::slots::Slot;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::stages::{CARGO, TAIL, in_checkout, step, tests};
use super::{Counts, Verdict};
use crate::card_disk::Disk;
use crate::process::{self, Limits};
use crate::progress::Step;

/// One way to run the main job: what it is called, how it is asked for, and decisions that show that it is at work.
struct Run {
    what: &'static str,
    words: &'static [&'static str],
    decisions_min: u64,
    /// Whether it ends without a decision that lay ready when it was wanted.
    unforeseen: bool,
    /// Whether it writes a timeline, which is read again.
    timeline: bool,
}

/// A real third-party load, of which every thread and process is the IPU's.
const STRESS: &[&str] = &["stress-ng", "--cpu", "4", "--timeout", "5s"];

const RUNS: &[Run] = &[
    Run {
        what: "on the virtual IPU",
        words: &["--seconds", "5"],
        decisions_min: 2500,
        unforeseen: false,
        timeline: true,
    },
    Run {
        what: "on the host",
        words: &["--seconds", "5", "--on-host"],
        decisions_min: 2500,
        unforeseen: false,
        timeline: false,
    },
    Run {
        what: "with a Linux guest",
        words: &["--host", "linux", "--seconds", "10"],
        decisions_min: 500,
        unforeseen: false,
        timeline: false,
    },
    Run {
        what: "with a guest's command",
        words: &["--host", "linux", "--"],
        decisions_min: 20,
        unforeseen: true,
        timeline: false,
    },
    Run {
        what: "with a guest's command whose agent is killed half-way",
        words: &["--host", "linux", "--kill-agent-after", "2.5", "--"],
        decisions_min: 20,
        unforeseen: true,
        timeline: false,
    },
];

/// How `tools/neap/tests/timeline.rs` is told of a run's timeline, and of the decisions that the run reported.
const TIMELINE: [&str; 2] = ["NEAP_TIMELINE", "NEAP_TIMELINE_DECISIONS"];

/// Has the timeline of a run read by the reader that knows the public schema alone.
fn timeline(verdict: &mut Verdict, file: &Path, report: &Value) -> Result<()> {
    let mut test = in_checkout(&["test", "--package", "neap", "--test", "timeline", "--", "every_decision"]);
    test.env(TIMELINE[0], file).env(TIMELINE[1], report["decisions"].to_string());
    *verdict += tests("reading the run's timeline", &mut test, CARGO)?;
    Ok(())
}

pub(super) fn run() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let dir =
        tempfile::Builder::new().prefix("neap-timeline-").tempdir().context("a place for a timeline")?;
    let file = dir.path().join("run.pftrace");
    let mut keys: Option<BTreeSet<String>> = None;
    for run in RUNS {
        let what = run.what;
        let mut neap = neap(&["run", "--json"]);
        neap.args(run.words);
        if run.timeline {
            neap.arg("--perfetto").arg(&file);
        }
        if run.words.contains(&"--") {
            neap.args(STRESS);
        }
        let (finished, _) = step(&format!("neap run {what}"), &mut neap, CARGO)?;
        if !finished.ok() {
            verdict.fail(format!("neap run {what}: {}\n{}", finished.verdict(), finished.tail(TAIL)));
            return Ok(verdict);
        }
        let report: Value = serde_json::from_str(&finished.out)
            .with_context(|| format!("neap run {what} prints no JSON: {}", finished.tail(20)))?;
        match accepted(&report, run) {
            Ok(checks) => verdict.counts += Counts::passed(checks),
            Err(error) => verdict.fail(format!("neap run {what}: {error:#}\n{report:#}")),
        }
        verdict.remarks.push(format!("{} decisions {what}", report["decisions"]));
        if run.timeline {
            timeline(&mut verdict, &file, &report)?;
        }
        let these = key_set(&report);
        let first = keys.get_or_insert_with(|| these.clone());
        if *first == these {
            verdict.pass();
        } else {
            let apart: Vec<_> = first.symmetric_difference(&these).cloned().collect();
            verdict.fail(format!("the report {what} differs in its keys: {}", apart.join(", ")));
        }
    }
    if !verdict.failing() {
        flashes(&mut verdict)?;
    }
    Ok(verdict)
}

/// The user's command.
fn neap(words: &[&str]) -> Command {
    let mut neap = in_checkout(&["run", "--quiet", "--release", "--package", "neap", "--"]);
    neap.args(words);
    neap
}

/// A run on a card that boots from its disk, and the slot that a flash in the middle of it writes: by the worker host, then by a
/// guest's driver.
const FLASHES: [(Run, Slot); 2] = [
    (
        Run {
            what: "on a card that is flashed meanwhile",
            words: &[],
            decisions_min: 100,
            unforeseen: false,
            timeline: false,
        },
        Slot::B,
    ),
    (
        Run {
            what: "with a Linux guest whose card is flashed meanwhile",
            words: &["--host", "linux"],
            decisions_min: 100,
            unforeseen: true,
            timeline: false,
        },
        Slot::A,
    ),
];
/// How long what takes seconds may take in a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(300);
/// One command beside a run, which it asks.
const ASKED: Limits = Limits::total(300);
/// How long it is waited before it is looked again.
const AGAIN: Duration = Duration::from_millis(200);
/// Decisions that are seen to come before a flash and after it.
const MORE: u64 = 100;

/// Flashes a card by the README's commands while it works. Each image is tried by the run after, which confirms it: else the next flash
/// would be refused.
fn flashes(verdict: &mut Verdict) -> Result<()> {
    let step = Step::start("building two images and a card's disk");
    let card = Card::new()?;
    step.done();
    for (run, slot) in &FLASHES {
        let what = format!("neap run {}", run.what);
        let mut step = Step::start(what.clone());
        let report = card.flashed(run, *slot, &mut step);
        match report.and_then(|report| accepted(&report, run).with_context(|| format!("{report:#}"))) {
            Ok(checks) => verdict.counts += Counts::passed(checks + 1),
            Err(error) => {
                verdict.fail(format!("{what}: {error:#}"));
                break;
            }
        }
        step.done();
    }
    Ok(())
}

/// A card's disk and two images, in a directory where runs are alone.
struct Card {
    dir: TempDir,
    disk: PathBuf,
    /// The image that slot A begins with, and the one that is for slot B.
    images: [PathBuf; 2],
}

impl Card {
    fn new() -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("neap-flash-").tempdir().context("a place for a card's disk")?;
        let at = |name: &str| dir.path().join(name);
        let (key, public, disk) = (at("key"), at("key.pub"), at("disk"));
        let images = [at("first.img"), at("second.img")];
        let build = |image: &Path| {
            let mut build = neap(&["image", "build", "--key"]);
            build.arg(&key).arg("--out").arg(image);
            build
        };
        process::output(neap(&["key", "new"]).arg(&key), CARGO)?;
        process::output(&mut build(&images[0]), CARGO)?;
        process::output(build(&images[1]).args(["--agent", "shinjuku"]), CARGO)?;
        let mut make = neap(&["image", "disk", "--out"]);
        make.arg(&disk).arg("--key").arg(&public).arg("--image").arg(&images[0]);
        process::output(&mut make, CARGO)?;
        Ok(Self { dir, disk, images })
    }

    /// The user's command, for which there is no run but this card's.
    fn neap(&self, words: &[&str]) -> Command {
        let mut neap = neap(words);
        neap.env("TMPDIR", self.dir.path());
        neap
    }

    /// Runs the main job on the card, has `slot` written meanwhile, and ends the run when decisions have come after that. Its report.
    fn flashed(&self, run: &Run, slot: Slot, step: &mut Step) -> Result<Value> {
        let mut command = self.neap(&["run", "--json", "--seconds", "3600", "--disk"]);
        command.arg(&self.disk).args(run.words);
        let mut underway = Underway::start(&mut command, self.dir.path(), step)?;
        self.works(&mut underway)?;
        let image = &self.images[usize::from(slot == Slot::B)];
        let flashed = process::output(self.neap(&["flash"]).arg(image), ASKED)
            .with_context(|| format!("the run has said:\n{}", underway.said()))?;
        let words = format!("slot {slot} holds {} now", image.display());
        ensure!(flashed.contains(&words), "expected: `{words}`; neap flash said {flashed}");
        self.works(&mut underway)?;
        let report = underway.interrupted()?;
        let mut disk = Disk::open(OpenOptions::new().read(true).write(true).open(&self.disk)?)?;
        let state = disk.state()?.state;
        ensure!(
            (state.good, state.trial) == (Some(slot.other()), Some(slot)),
            "expected: slot {} is confirmed and {slot} is to be tried; but {state:?}",
            slot.other()
        );
        ensure!(disk.slot(slot)?.starts_with(&fs::read(image)?), "slot {slot} holds another image");
        Ok(report)
    }

    /// Waits until the agent of a run has made some decisions more.
    fn works(&self, run: &mut Underway<'_>) -> Result<()> {
        let mut first = None;
        run.until("the agent decides", |ended| {
            ensure!(ended.is_none(), "it has ended");
            let decisions = self.decisions()?;
            first = first.or(decisions);
            Ok(first.zip(decisions).filter(|(first, now)| *now >= first + MORE).map(drop))
        })
    }

    /// How many decisions the agent has made, if there is one. Without a run, the status is the last one's.
    fn decisions(&self) -> Result<Option<u64>> {
        let status = process::run(&mut self.neap(&["status", "--json"]), ASKED, &mut ())?;
        let status: Value = serde_json::from_str(&status.out).unwrap_or_default();
        let decisions = status["agent"]["decisions"].as_u64();
        Ok(decisions.filter(|_| status["running"] == true))
    }
}

/// A run that goes on until it is interrupted.
struct Underway<'s> {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    step: &'s mut Step,
}

impl<'s> Underway<'s> {
    fn start(command: &mut Command, dir: &Path, step: &'s mut Step) -> Result<Self> {
        let (out, err) = (dir.join("out"), dir.join("err"));
        let to = |path: &Path| {
            File::create(path).with_context(|| format!("{} can't be made", path.display())).map(Stdio::from)
        };
        command.stdin(Stdio::null()).stdout(to(&out)?).stderr(to(&err)?);
        Ok(Self { child: process::start(command)?, out, err, step })
    }

    /// What it has said beside its report.
    fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_else(|error| error.to_string())
    }

    /// Waits until `look`, which is told how the run has ended, if it has, finds something.
    fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(Option<ExitStatus>) -> Result<Option<T>>,
    ) -> Result<T> {
        let since = Instant::now();
        loop {
            let ended = self.child.try_wait().context("waiting for a run")?;
            let found = look(ended).and_then(|found| {
                ensure!(found.is_some() || since.elapsed() < PATIENCE, "that took too long");
                Ok(found)
            });
            match found.with_context(|| format!("expected: {what}; the run has said:\n{}", self.said()))? {
                Some(found) => return Ok(found),
                None => self.step.tick(),
            }
            thread::sleep(AGAIN);
        }
    }

    /// Ends it as Ctrl-C does, and returns its report.
    fn interrupted(mut self) -> Result<Value> {
        kill_process(Pid::from_child(&self.child), Signal::INT).context("interrupting a run")?;
        let status = self.until("it ends", Ok)?;
        ensure!(status.code() == Some(130), "expected: status 130; {status}\n{}", self.said());
        serde_json::from_str(&fs::read_to_string(&self.out)?)
            .with_context(|| format!("the run prints no JSON; it said\n{}", self.said()))
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        // It has ended, or nobody waits for its report.
        let _ = process::stop(&mut self.child);
    }
}

/// Checks a report of `neap run`; the number of checks that held.
fn accepted(report: &Value, run: &Run) -> Result<u64> {
    let checks = [
        ("tasks_lost", 0..=0),
        ("tasks_doubled", 0..=0),
        ("fifo_violations", 0..=0),
        ("decisions", run.decisions_min..=u64::MAX),
        ("prestage_hits", u64::from(!run.unforeseen)..=u64::MAX),
    ];
    for (key, wanted) in &checks {
        let value = report.get(key).with_context(|| format!("the report has no {key}"))?;
        let value = value.as_u64().with_context(|| format!("{key} is {value}, which is no count"))?;
        if !wanted.contains(&value) {
            bail!("{key} is {value}, and may be {} to {}", wanted.start(), wanted.end());
        }
    }
    Ok(checks.len() as u64)
}

/// The names of a report's figures.
fn key_set(report: &Value) -> BTreeSet<String> {
    report.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_accepted_for_its_figures_only() {
        let run = &RUNS[0];
        let good = json!({
            "tasks_lost": 0, "tasks_doubled": 0, "fifo_violations": 0, "decisions": 9000, "prestage_hits": 1
        });
        assert_eq!(accepted(&good, run).unwrap(), 5);
        let spoilt = [
            ("tasks_lost", json!(1)),
            ("tasks_doubled", json!(1)),
            ("fifo_violations", json!(2)),
            ("decisions", json!(3)),
            ("prestage_hits", json!(0)),
            ("tasks_lost", json!(null)),
            ("decisions", json!("9000")),
        ];
        for (key, value) in spoilt {
            let mut report = good.clone();
            report[key] = value;
            let error = accepted(&report, run).unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(accepted(&json!({}), run).is_err());
        assert!(accepted(&json!([1]), run).is_err());
    }
}
