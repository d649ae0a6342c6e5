//! `bench kill`: agents killed at random points under load, and what is left of them: nothing.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use neap_host::event::EventKind;
use neap_host::manager::ManageError;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::lives::{self, Balance, CORES, ENCLAVES, Lives, PATIENCE, Subject, Times};
use crate::firmware::{self, Kind};
use crate::ipu::Ipu;
use crate::progress::Step;
use crate::setup;

/// A killed agent has run for so long at most, in µs.
const LIFE_US_MAX: u64 = 6_000;
/// Of so many kills one has a grace: the agent is asked, and gives its core back at a line's boundary. The others are
/// taken by an interrupt, wherever they are.
const ASKED_EVERY: u32 = 8;
/// The grace of those, in µs.
const GRACE_US: u64 = 2_000;

/// Options of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// Agents to kill.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub kills: u32,
    /// Where the points come from [default: a random seed, reported].
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long an agent may owe a decision before the host falls back, in ms.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub watchdog_ms: u64,
    /// How it prints.
    #[command(flatten)]
    pub output: super::Output,
}

/// The measurement, with the keys of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    kills: u32,
    seed: u64,
    watchdog_ms: u64,
    /// Times are an emulator's, on a shared machine: they show function.
    emulated: bool,
    /// Kills by an interrupt, the others were asked.
    aborted: u32,
    #[serde(flatten)]
    balance: Balance,
    /// From the kill until the host knew of the agent's end or of its successor.
    detection_us: Times,
    /// From the kill until the host committed a decision of the successor.
    recovery_us: Times,
    /// Times that somebody else than the IPU decided for a while.
    fallbacks: usize,
    comebacks: u64,
    /// Decisions, the host's own and its on-host agent's included.
    decisions: u64,
    decisions_by_level: [u64; 3],
    neighbour_lost: u64,
}

/// Kills agents and checks that nothing is lost.
///
/// # Errors
/// Something was lost, ran twice or leaked; an IPU that does not come back.
pub fn run(options: Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let qemu = setup::qemu()?;
    let image = firmware::build(&Kind::Runtime)?;
    let ipu = Ipu::boot(&qemu, &image.elf, CORES, ENCLAVES)?;
    let mut step = Step::start(format!("killing {} agents (seed {seed})", options.kills));
    let watchdog = Duration::from_millis(options.watchdog_ms);
    let lives = lives::run(ipu, watchdog, |subject, now_us| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut detection, mut recovery, mut aborted) = (Vec::new(), Vec::new(), 0);
        for number in 0..options.kills {
            thread::sleep(Duration::from_micros(random.random_range(0..LIFE_US_MAX)));
            let asked = number % ASKED_EVERY == 0;
            aborted += u32::from(!asked);
            let grace = Duration::from_micros(if asked { GRACE_US } else { 0 });
            let (noticed_us, back_us) = kill(subject, grace, now_us)
                .with_context(|| format!("kill {number} of {} (seed {seed})", options.kills))?;
            detection.push(noticed_us);
            recovery.push(back_us);
            step.note(&format!("{} of {}", number + 1, options.kills));
            step.tick();
        }
        anyhow::Ok((detection, recovery, aborted))
    })?;
    step.done();
    let report = Report::new(lives, seed, &options);
    if options.output.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    report.check()
}

/// Kills the agent that runs; how long it took until the host noticed, and until a successor had decided.
fn kill(subject: &mut Subject, grace: Duration, now_us: &dyn Fn() -> u64) -> Result<(u64, u64)> {
    let link = subject.enclave.link();
    let manager = link.manager().context("this IPU's agents can't be managed")?;
    let before = manager.list().running.context("no agent runs")?.incarnation;
    let killed_us = now_us();
    match manager.kill(grace, PATIENCE) {
        // The watchdog had the same idea: the agent ends all the same, which the events tell.
        Ok(_) | Err(ManageError::Superseded { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let noticed = subject.wait_for("notice of an agent's end", |kind| match kind {
        EventKind::AgentEnded { incarnation } => incarnation == before,
        EventKind::AgentSeen { incarnation } => incarnation > before,
        _ => false,
    })?;
    let back = subject.wait_for(
        "decision of a successor",
        |kind| matches!(kind, EventKind::FirstDecision { incarnation } if incarnation > before),
    )?;
    Ok((noticed.saturating_sub(killed_us), back.saturating_sub(killed_us)))
}

impl Report {
    fn new(lives: Lives<(Vec<u64>, Vec<u64>, u32)>, seed: u64, options: &Options) -> Self {
        let (detection, recovery, aborted) = lives.done;
        let subject = lives.reports.first().cloned().unwrap_or_default();
        Self {
            bench: "kill",
            kills: options.kills,
            seed,
            watchdog_ms: options.watchdog_ms,
            emulated: true,
            aborted,
            balance: lives.balance,
            detection_us: Times::of(detection),
            recovery_us: Times::of(recovery),
            fallbacks: subject.fallbacks.len(),
            comebacks: subject.comebacks,
            decisions: subject.decisions,
            decisions_by_level: subject.decisions_by_level,
            neighbour_lost: lives.reports.get(1).map_or(0, |report| report.tasks_lost),
        }
    }

    fn check(&self) -> Result<()> {
        self.balance.check(self)?;
        ensure!(self.balance.neighbour_decisions > 0, "the neighbour stood still: {self}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} agents killed under load, {} of them by an interrupt (seed {})",
            self.kills, self.aborted, self.seed
        )?;
        writeln!(
            f,
            "  {} tasks created, {} finished",
            self.balance.tasks_created, self.balance.tasks_finished
        )?;
        writeln!(
            f,
            "  {} lost, {} doubled, {} cores leaked, {} pages leaked",
            self.balance.tasks_lost,
            self.balance.tasks_doubled,
            self.balance.cores_leaked,
            self.balance.pages_leaked
        )?;
        for (what, times) in [("noticed", &self.detection_us), ("decided again", &self.recovery_us)] {
            writeln!(
                f,
                "  {what} after {} µs (p50), {} (p90), {} (p99), {} (max), emulated",
                times.p50_us, times.p90_us, times.p99_us, times.max_us
            )?;
        }
        writeln!(f, "  {} fallbacks, {} comebacks", self.fallbacks, self.comebacks)?;
        writeln!(f, "  the neighbour made {} decisions meanwhile", self.balance.neighbour_decisions)
    }
}
