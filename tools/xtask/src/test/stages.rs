//! The stages that run cargo, and the checks on the firmware's image.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Counts, Verdict, cards};
use crate::budget::Budget;
use crate::firmware::{self, Kind, TARGET, cargo};
use crate::process::{self, End, Finished, Limits, Stream, Watch};
use crate::progress::Step;
use crate::{linux, panicfree, paths, setup};

/// The crates that the card runs: each builds without `std`.
const CARD_CRATES: [&str; 12] = [
    "neap-abi",
    "neap-queue",
    "neap-hal",
    "neap-agent",
    "neap-policies",
    "neap-agent-start",
    "neap-agent-fifo",
    "neap-agent-fifo-per-core",
    "neap-agent-shinjuku",
    "neap-agent-mq-shinjuku",
    "neap-agent-vm",
    "neap-runtime",
];
/// What builds for the card only.
const CARD_ONLY: [&str; 3] = ["neap-runtime", "neap-qemu-tests", "neap-attacks"];
/// Bound of one cargo command, from an empty target directory on two slow cores.
pub(super) const CARGO: Limits = Limits::total(1800);
/// Lines of a culprit's output that are shown.
pub(super) const TAIL: usize = 200;

/// `cargo`, in the checkout.
pub(super) fn in_checkout(args: &[&str]) -> Command {
    let mut command = cargo();
    command.current_dir(paths::root()).args(args).env("CARGO_TERM_COLOR", "never");
    command
}

/// Runs one command as a step that shows what it is at.
pub(super) fn step(what: &str, command: &mut Command, limits: Limits) -> Result<(Finished, Counts)> {
    let mut tests = Tests { step: Step::start(what), counts: Counts::default() };
    let finished = process::run(command, limits, &mut tests)?;
    if finished.ok() {
        tests.step.done();
    }
    Ok((finished, tests.counts))
}

/// Counts libtest's tests while they run.
struct Tests {
    step: Step,
    counts: Counts,
}

impl Watch for Tests {
    fn line(&mut self, _stream: Stream, line: &str) {
        self.step.note(line);
        self.counts += tests_in(line).unwrap_or_default();
    }

    fn tick(&mut self) {
        self.step.tick();
    }
}

/// Counts of libtest's closing line: "test result: ok. 27 passed; 0 failed; 1 ignored; …".
fn tests_in(line: &str) -> Option<Counts> {
    let (_, figures) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let figure = |name: &str| {
        figures.split(';').find_map(|part| part.trim().strip_suffix(name)?.trim().parse::<u64>().ok())
    };
    Some(Counts { passed: figure("passed")?, failed: figure("failed")?, skipped: figure("ignored")? })
}

/// One command that holds or does not.
fn one(verdict: &mut Verdict, what: &str, command: &mut Command) -> Result<()> {
    let (finished, _) = step(what, command, CARGO)?;
    if finished.ok() {
        verdict.pass();
    } else {
        verdict.fail(format!("{what}: {}\n{}", finished.verdict(), finished.tail(TAIL)));
    }
    Ok(())
}

/// Tests that libtest counts.
pub(super) fn tests(what: &str, command: &mut Command, limits: Limits) -> Result<Verdict> {
    let (finished, counts) = step(what, command, limits)?;
    let mut verdict = Verdict { counts, ..Verdict::default() };
    if !finished.ok() {
        verdict.failure = Some(format!("{what}: {}\n{}", finished.verdict(), finished.tail(TAIL)));
    } else if counts.passed == 0 {
        verdict.fail(format!("{what}: not one test was run\n{}", finished.tail(TAIL)));
    }
    if counts.skipped > 0 {
        verdict.remarks.push(format!("{} tests are marked to be ignored", counts.skipped));
    }
    Ok(verdict)
}

pub(super) fn fmt() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    one(
        &mut verdict,
        "checking the form (cargo fmt)",
        &mut in_checkout(&["fmt", "--all", "--check", "--", "--color=never"]),
    )?;
    Ok(verdict)
}

pub(super) fn clippy() -> Result<Verdict> {
    setup::target()?;
    let mut verdict = Verdict::default();
    let mut host = in_checkout(&["clippy", "--all-targets", "--", "-D", "warnings"]);
    one(&mut verdict, "linting for the host (cargo clippy)", &mut host)?;
    if verdict.failing() {
        return Ok(verdict);
    }
    let mut card = in_checkout(&["clippy", "--target", TARGET]);
    for name in CARD_CRATES.iter().chain(&CARD_ONLY[1..]) {
        card.args(["-p", name]);
    }
    card.args(["--", "-D", "warnings"]);
    one(&mut verdict, "linting for the card (cargo clippy)", &mut card)?;
    Ok(verdict)
}

pub(super) fn unit() -> Result<Verdict> {
    // Some of the tests build for the card.
    setup::all()?;
    tests("testing on the host (cargo test)", &mut in_checkout(&["test"]), CARGO)
}

pub(super) fn loom() -> Result<Verdict> {
    let mut command = in_checkout(&["test", "-p", "neap-queue", "-p", "neap-mechanism", "--release"]);
    command.args(["--lib", "--test", "loom"]);
    // Its own directory: the flag would have all else built anew.
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target_dir().join("loom"));
    tests("exploring interleavings (loom)", &mut command, CARGO)
}

/// 2000 seeds; then the same search over a ring whose reader is careless, which has to find that.
pub(super) fn faults() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    if let Some(figures) = measure(&mut verdict, "letting things go wrong", &["faults"])? {
        let (seeds, faults, hash) = (&figures["seeds"], &figures["faults"], &figures["trace_hash"]);
        verdict.remarks.push(format!("{seeds} seeds, {faults} faults, nothing lost (trace {hash})"));
    }
    if verdict.failing() {
        return Ok(verdict);
    }
    let mut command = in_checkout(&["test", "-p", "neap-sim", "--release", "--lib", "careless"]);
    // As with loom.
    command.env("RUSTFLAGS", "--cfg careless").env("CARGO_TARGET_DIR", paths::target_dir().join("careless"));
    one(&mut verdict, "looking for a careless ring", &mut command)?;
    Ok(verdict)
}

/// Crates with unsafe code that runs on the host. The mechanism forbids it, and takes Miri minutes.
pub(super) fn miri() -> Result<Verdict> {
    let miri = match setup::miri() {
        Ok(miri) => miri,
        Err(error) => return Ok(Verdict::skipped(format!("skipped: {error:#}"))),
    };
    let mut command = miri.command();
    command.args(["test", "-p", "neap-abi", "-p", "neap-queue", "--lib", "--tests"]);
    command.env("CARGO_TARGET_DIR", paths::target_dir().join("miri"));
    // Seeds come from the system, and a failing one is written down.
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    tests("interpreting the wire and the ring (miri)", &mut command, CARGO)
}

pub(super) fn nostd() -> Result<Verdict> {
    setup::target()?;
    let mut verdict = Verdict::default();
    for name in CARD_CRATES {
        // One by one: together, a crate could live on a feature that another one asks for.
        let mut build = in_checkout(&["build", "--target", TARGET, "-p", name, "--lib"]);
        one(&mut verdict, &format!("building {name} alone for the card"), &mut build)?;
        if verdict.failing() {
            return Ok(verdict);
        }
        let mut tree = in_checkout(&["tree", "-p", name, "--target", TARGET, "--prefix", "none"]);
        tree.args(["-e", "features,no-dev,no-build,no-proc-macro"]);
        let tree = process::output(&mut tree, Limits::total(120))?;
        match std_features(&tree) {
            leaks if leaks.is_empty() => verdict.pass(),
            leaks => verdict
                .fail(format!("{name} is built with {}", leaks.into_iter().collect::<Vec<_>>().join(", "))),
        }
    }
    Ok(verdict)
}

/// The `std` features in `cargo tree -e features`.
fn std_features(tree: &str) -> BTreeSet<String> {
    let lines = tree.lines().map(|line| line.trim_end_matches("(*)").trim_end());
    lines.filter(|line| line.ends_with("feature \"std\"")).map(str::to_owned).collect()
}

/// What a check for panics found.
fn judged(verdict: &mut Verdict, report: &panicfree::Report) {
    if report.findings.is_empty() {
        verdict.pass();
    } else {
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        verdict.fail(findings.join("\n"));
    }
}

pub(super) fn image() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let allowed = Budget::load()?.image_loaded_bytes_max;
    let image = firmware::build(&Kind::Runtime)?;
    let loaded = image.loaded_bytes;
    verdict.remarks.push(format!("{loaded} B loaded of {allowed} B, {} B of memory", image.memory_bytes));
    if loaded <= allowed {
        verdict.pass();
    } else {
        verdict.fail(format!("the image loads {loaded} B; budget.toml allows {allowed} B"));
    }
    for name in firmware::AGENTS {
        let elf = firmware::agent(name)?.elf;
        let bytes = fs::read(&elf).with_context(|| format!("{} can't be read", elf.display()))?;
        let report = panicfree::check(&bytes, &panicfree::ROOTS)?;
        verdict.remarks.push(format!("the decision path of {name} is {} functions", report.functions));
        judged(&mut verdict, &report);
    }
    let images = cards::Images::build()?;
    verdict.pass();
    verdict += cards::all(&images)?;
    Ok(verdict)
}

/// Inputs in the test; a run by itself takes many more.
const INPUTS: &str = "300000";

pub(super) fn fuzz() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let words = ["fuzz-driver", "--inputs", INPUTS];
    if let Some(figures) = measure(&mut verdict, "fuzzing the host driver", &words)? {
        let (inputs, seed) = (&figures["inputs"], &figures["seed"]);
        verdict.remarks.push(format!("{inputs} inputs, none crashed (seed {seed})"));
    }
    Ok(verdict)
}

pub(super) fn module() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    linux::lint()?;
    verdict.pass();
    let module = linux::module()?;
    verdict.pass();
    let report = panicfree::module::check_file(&module.ko)?;
    verdict.remarks.push(format!("{} functions run under a lock or with interrupts off", report.functions));
    judged(&mut verdict, &report);
    Ok(verdict)
}

pub(super) fn path() -> Result<Verdict> {
    setup::llvm()?;
    let mut verdict = Verdict::default();
    bench(&mut verdict, "measuring the decision path", &["path"])?;
    bench(&mut verdict, "measuring how decisions scale", &["scale"])?;
    bench(&mut verdict, "counting the instructions of a boot", &["boot"])?;
    Ok(verdict)
}

/// Agents killed in the test, and agents replaced.
const KILLS: &str = "100";
const REPLACEMENTS: &str = "20";

pub(super) fn lives() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    bench(&mut verdict, "killing agents under load", &["kill", "--kills", KILLS])?;
    if !verdict.failing() {
        let replace = ["replace", "--replacements", REPLACEMENTS];
        bench(&mut verdict, "replacing agents under load", &replace)?;
    }
    Ok(verdict)
}

/// One measurement, with its figures as a remark.
fn bench(verdict: &mut Verdict, what: &str, words: &[&str]) -> Result<()> {
    if let Some(figures) = measure(verdict, what, words)? {
        verdict.remarks.push(figures.to_string());
    }
    Ok(())
}

/// One measurement, which fails where its budget or its promise does: its figures, if it does not.
fn measure(verdict: &mut Verdict, what: &str, words: &[&str]) -> Result<Option<Value>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let name = words.first().copied().unwrap_or_default();
    let mut bench = Command::new(program);
    bench.current_dir(paths::root()).arg("bench").args(words).arg("--json");
    let (finished, _) = step(&format!("{what} (bench {name})"), &mut bench, CARGO)?;
    if !finished.ok() {
        verdict.fail(format!("bench {name}: {}\n{}", finished.verdict(), finished.tail(TAIL)));
        return Ok(None);
    }
    let figures: Value =
        serde_json::from_str(&finished.out).with_context(|| format!("bench {name} --json prints no JSON"))?;
    verdict.pass();
    Ok(Some(figures))
}

/// How a program ended, as a status for [`Case::judge`](super::cases::Case::judge).
pub(super) fn exit_code(finished: &Finished) -> Option<i32> {
    match finished.end {
        End::Exited(status) => status.code(),
        End::Silent(_) | End::TooLong(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_s_closing_line_is_counted() {
        let line =
            "test result: ok. 27 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.51s";
        assert_eq!(tests_in(line), Some(Counts { passed: 27, failed: 0, skipped: 1 }));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(tests_in(line), Some(Counts { passed: 3, failed: 2, skipped: 0 }));
        assert_eq!(tests_in("test a::b ... ok"), None);
        assert_eq!(tests_in("test result: ok. many"), None);
    }

    #[test]
    fn a_std_feature_is_found_wherever_it_hides() {
        let tree = "neap-abi v0.1.0\nthiserror feature \"std\"\nserde feature \"std\" (*)\nserde feature \"alloc\"\n\
                    std-like v1.0.0\nneap feature \"no_std\"\n";
        let leaks: Vec<_> = std_features(tree).into_iter().collect();
        assert_eq!(leaks, ["serde feature \"std\"", "thiserror feature \"std\""]);
    }
}
