//! Stage `linux`: a real Linux guest with the driver, and in the IPU's place a peer that follows a script, so that every
//! race comes when it is due. On Debian's own kernel, or on one that looks for mistakes.
//!
//! 1. Each case says what was expected, what came, what the agent knew, and the last lines of the kernel's log.
//! 2. After each, the verdicts that the driver has counted are those that the agent was told, one by one; no task is left
//!    over; the kernel has complained of nothing.
//! 3. Cases that share a machine share its boot, but no task.
//!
//! `NEAP_LINUX=stock:task` runs the cases with `task` in their name, on the stock kernel alone; `NEAP_LINUX=:falls/` those of
//! a group, on both.

mod enclaves;
mod falls;
mod garbage;
mod ipu;
mod kills;
mod lives;
mod outcomes;
mod rig;
mod sights;
mod view;

use std::cell::LazyCell;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use neap_abi::Outcome;

use super::Verdict;
use crate::firmware::cargo;
use crate::linux::{Beside, Flavour, Kit, Times, complaints};
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;
use ipu::USUAL;
use rig::{Counters, Machine, Rig};

/// One case.
struct Case {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Rig) -> Result<()>,
}

/// Cases for which the driver is loaded alike.
struct Group {
    name: &'static str,
    parameters: &'static str,
    cases: &'static [&'static [Case]],
}

impl Group {
    fn chosen(&self, name: &str) -> Vec<&Case> {
        let all = self.cases.iter().copied().flatten();
        all.filter(|case| format!("{}/{}", self.name, case.name).contains(name)).collect()
    }
}

/// Each machine is booted once.
const MACHINES: &[(Machine<'static>, &[Group])] = &[
    (
        Machine { cpus: 4, functions: &[4], words: &[] },
        &[
            Group {
                name: "decisions",
                // Nobody is late, and nobody makes room, where that is not what is tried.
                parameters: "watchdog_ms=600000 turn_ms=600000",
                cases: &[outcomes::CASES, kills::CASES, lives::CASES, sights::QUIET],
            },
            Group {
                name: "falls",
                parameters: falls::PARAMETERS,
                cases: &[falls::CASES, sights::LOUD, garbage::CASES],
            },
        ],
    ),
    (
        Machine { cpus: 4, functions: &[4, 4], words: &["nohz_full=3"] },
        &[Group {
            name: "two functions",
            parameters: enclaves::PARAMETERS,
            cases: &[sights::TICKLESS, enclaves::CASES],
        }],
    ),
];

/// How long what is told may lag behind what is: a task that has ended, a verdict that is counted.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) fn run() -> Result<Verdict> {
    let only = std::env::var("NEAP_LINUX").unwrap_or_default();
    let (kernel, name) = only.split_once(':').unwrap_or((&only, ""));
    // While the root is made.
    let puppet = thread::spawn(puppet);
    let puppet =
        LazyCell::new(|| puppet.join().unwrap_or_else(|_| bail!("whoever built the puppet has panicked")));
    let mut verdict = Verdict::default();
    let wanted =
        [Flavour::Stock, Flavour::Debug].into_iter().filter(|flavour| flavour.name().starts_with(kernel));
    let wanted: Vec<Flavour> = wanted.collect();
    let mut beside = (wanted.len() > 1).then(|| Beside::begin(Flavour::Debug));
    for flavour in wanted {
        if flavour == Flavour::Debug
            && let Some(made) = beside.take()
        {
            made.end()?;
        }
        let kit = Kit::ready(flavour, &mut Times::default())?;
        let puppet = puppet.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        for (machine, groups) in MACHINES {
            let chosen = groups.iter().map(|group| (group, group.chosen(name)));
            let chosen: Vec<(&Group, Vec<&Case>)> = chosen.filter(|(_, cases)| !cases.is_empty()).collect();
            if !chosen.is_empty() {
                tried(&mut verdict, flavour, || Rig::boot(&kit, machine, puppet), &chosen)?;
            }
            if verdict.failing() {
                return Ok(verdict);
            }
        }
    }
    if verdict.counts.passed == 0 {
        verdict.fail(format!("NEAP_LINUX={only}: there is no such case"));
    }
    Ok(verdict)
}

/// Builds what does in the guest what it is told.
fn puppet() -> Result<PathBuf> {
    let mut command = cargo();
    command.current_dir(paths::root());
    command.args(["build", "--release", "--package", "neap-puppet", "--bin", "puppet"]);
    let mut step = Step::start("building the guest's puppet");
    let done = process::run(&mut command, Limits::total(600), &mut step)?;
    if !done.ok() {
        bail!("the puppet does not build: {}\n{}", done.verdict(), done.tail(100));
    }
    step.done();
    Ok(paths::target_dir().join("release/puppet"))
}

fn tried(
    verdict: &mut Verdict,
    flavour: Flavour,
    boot: impl FnOnce() -> Result<Rig>,
    groups: &[(&Group, Vec<&Case>)],
) -> Result<()> {
    let kernel = flavour.name();
    let step = Step::start(format!("{kernel}: a guest boots"));
    let mut rig = boot()?;
    step.done();
    for (group, cases) in groups {
        let step = Step::start(format!("{kernel}, {}: the driver is loaded", group.name));
        if let Err(error) = prepare(&mut rig, group.parameters) {
            verdict.fail(format!("{kernel}, {}: {error:#}\n{}", group.name, rig.in_words()));
            return Ok(());
        }
        step.done();
        for case in cases {
            let what = format!("{kernel}: {}: {}", case.name, case.about);
            let step = Step::start(what.clone());
            if let Err(error) = one(&mut rig, case) {
                let words = rig.in_words();
                let console = kept(&rig, kernel)?;
                verdict.fail(format!("{what}: {error:#}\n{words}\nall of it is in {}", console.display()));
                return Ok(());
            }
            step.done();
            verdict.pass();
        }
    }
    Ok(())
}

/// Keeps the console of a machine on which a case has failed, and what agents were told.
fn kept(rig: &Rig, kernel: &str) -> Result<PathBuf> {
    let path = paths::target_dir().join(format!("linux/{kernel}.failed"));
    let mut text = rig.guest.console();
    for ipu in &rig.ipus {
        text += "\nAn agent was told:\n";
        ipu.view.messages.iter().for_each(|message| text += &(view::told(message) + "\n"));
    }
    std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))?;
    Ok(path)
}

/// Loads the driver, with an IPU there, and puts the scheduler in its place; instead of those of the cases before.
fn prepare(rig: &mut Rig, parameters: &str) -> Result<()> {
    if rig.attached() > 0 {
        rig.unload()?;
    }
    for ipu in &mut rig.ipus {
        ipu.boot(USUAL)?;
    }
    rig.gather_threads()?;
    let sessions: Vec<u32> = rig.ipus.iter().map(|ipu| ipu.sessions).collect();
    rig.load(parameters)?;
    for (ipu, before) in sessions.into_iter().enumerate() {
        rig.until("the driver attaches", rig::PATIENCE, |rig| rig.ipus[ipu].sessions > before)?;
        rig.until_decides(ipu)?;
    }
    rig.attach()
}

/// Runs a case, and judges what it left.
fn one(rig: &mut Rig, case: &Case) -> Result<()> {
    rig.ipus.iter_mut().for_each(|ipu| ipu.view.messages.clear());
    let before = balances(rig)?;
    let agents: u32 = rig.ipus.iter().map(|ipu| ipu.agents).sum();
    (case.run)(rig)?;
    rig.end_workers()?;
    let same = agents == rig.ipus.iter().map(|ipu| ipu.agents).sum::<u32>();
    let settled =
        rig.until("no task is left", SETTLE, |rig| rig.ipus.iter().all(|ipu| ipu.view.tasks.is_empty()));
    settled.with_context(|| {
        let left: Vec<u32> = rig.ipus.iter().flat_map(|ipu| ipu.view.tasks.keys().copied()).collect();
        format!("there are {left:?}")
    })?;
    // What an agent that has ended was to be told is told to nobody.
    if same {
        balanced(rig, &before)?;
    }
    let oddities: Vec<String> = rig.ipus.iter_mut().flat_map(|ipu| ipu.view.oddities.drain(..)).collect();
    ensure!(oddities.is_empty(), "expected: all that is told can be; but\n  {}", oddities.join("\n  "));
    let console = rig.guest.console();
    let complaints = complaints(&console);
    ensure!(complaints.is_empty(), "the kernel complains:\n  {}", complaints.join("\n  "));
    Ok(())
}

/// The driver's counters and what the agent was told, of each function.
type Balances = Vec<(Counters, [u64; Outcome::ALL.len()])>;

fn balances(rig: &mut Rig) -> Result<Balances> {
    let mut all = Vec::new();
    for function in 0..rig.ipus.len() {
        let counters = rig.counters(function)?;
        all.push((counters, rig.ipus[function].view.told));
    }
    Ok(all)
}

/// Waits until the verdicts counted since `before` are those told since.
fn balanced(rig: &mut Rig, before: &Balances) -> Result<()> {
    let since = std::time::Instant::now();
    loop {
        let mut apart = Vec::new();
        for (function, (counters, told)) in before.iter().enumerate() {
            let more = rig.counters(function)?.since(counters);
            for outcome in Outcome::ALL.into_iter().skip(1) {
                let heard = rig.ipus[function].view.told(outcome) - told[outcome as usize];
                let counted = more.of_outcome(outcome)?;
                if heard != counted {
                    apart.push(format!("{} {counted} times, and told {heard} times", outcome.name()));
                }
            }
            for fault in ["messages_dropped", "latch_failures"] {
                let count = more.of(fault).context("the driver's counters")?;
                if count != 0 {
                    apart.push(format!("{fault} {count}"));
                }
            }
        }
        if apart.is_empty() {
            return Ok(());
        }
        ensure!(since.elapsed() < SETTLE, "expected: each verdict is told once; {}", apart.join("; "));
        rig.go_on(Duration::from_millis(20))?;
    }
}
