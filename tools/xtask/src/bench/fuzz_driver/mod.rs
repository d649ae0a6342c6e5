//! `bench fuzz-driver`: everything that an IPU can write, read by the very code that the driver reads it with, compiled for user
//! space.
//!
//! 1. Inputs are random bytes, and good lines, pages and txns with something changed: random bytes alone get no further than a
//!    line's tag.
//! 2. The decision slots are read by a kernel in miniature (`neap_mechanism::fakes`) whose tasks and CPUs go on meanwhile; after
//!    each input its books are checked, and how much work the input made.
//! 3. Every so many inputs the host is a fresh one, so that a crash is made again from there by the line that reports it.

mod formats;
mod host;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use self::host::Fuzzed;
use crate::progress::Step;

/// Inputs after which the host is a fresh one.
const INPUTS_PER_HOST: u64 = 500;
/// Crashes that are reported one by one.
const REPORTED_MAX: usize = 10;

/// Options of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// How many inputs.
    #[arg(long, default_value_t = 12_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub inputs: u64,
    /// Where they come from [default: a random seed, reported].
    #[arg(long)]
    pub seed: Option<u64>,
    /// The first input's number, to make a crash again.
    #[arg(long, default_value_t = 0)]
    pub first: u64,
    /// How it prints.
    #[command(flatten)]
    pub output: super::Output,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A hello page with something changed.
    Hello,
    /// A hello page of random bytes.
    HelloRandom,
    /// An agent's control line with something changed.
    Control,
    /// An agent's control line of random words.
    ControlRandom,
    /// One of the supervisor's lines.
    Supervisor,
    /// An epitaph.
    Epitaph,
    /// A slot's line of random words.
    SlotRandom,
    /// A slot's line that is half another.
    SlotTorn,
    /// A txn with something changed, or a good one.
    Txn,
    /// A group of txns, or what is not quite one.
    Group,
    /// Credits that cannot be, or can.
    Credits,
}

impl Kind {
    /// Each, and how many of 64 inputs it is. Pages take longer than lines.
    const SHARES: [(Self, u32); 11] = [
        (Self::Hello, 3),
        (Self::HelloRandom, 1),
        (Self::Control, 5),
        (Self::ControlRandom, 2),
        (Self::Supervisor, 3),
        (Self::Epitaph, 2),
        (Self::SlotRandom, 6),
        (Self::SlotTorn, 4),
        (Self::Txn, 22),
        (Self::Group, 12),
        (Self::Credits, 4),
    ];

    fn any(random: &mut ChaCha8Rng) -> Self {
        let mut left = random.random_range(0..64);
        for (kind, share) in Self::SHARES {
            if left < share {
                return kind;
            }
            left -= share;
        }
        Self::Txn
    }
}

/// How often each thing came of each kind of input.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<(Kind, &'static str), u64>);

impl Tally {
    pub(crate) fn count(&mut self, kind: Kind, outcome: &'static str) {
        *self.0.entry((kind, outcome)).or_default() += 1;
    }
}

/// A crash, and how it is made again.
#[derive(Clone, Debug, Serialize)]
struct Crash {
    input: u64,
    message: String,
    replay: String,
}

/// The measurement, with the keys of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    inputs: u64,
    crashes: u64,
    seed: u64,
    first: u64,
    seconds: f64,
    inputs_per_second: u64,
    /// Inputs by kind.
    kinds: BTreeMap<Kind, u64>,
    /// By kind of input, what came of it. A slot's line can have several verdicts, or none.
    outcomes: BTreeMap<Kind, BTreeMap<&'static str, u64>>,
    /// The first crashes.
    crashed: Vec<Crash>,
}

/// Fuzzes what the driver reads.
///
/// # Errors
/// Something crashed, or did not hold.
pub fn run(options: Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let report = fuzz(seed, options.first, options.inputs);
    if options.output.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    for crash in &report.crashed {
        eprintln!("input {}: {}\n  again: {}", crash.input, crash.message, crash.replay);
    }
    if report.crashes > 0 {
        bail!("{} of {} inputs crashed (seed {seed})", report.crashes, report.inputs);
    }
    Ok(())
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["input", "outcome", "times"]);
    for (kind, outcomes) in &report.outcomes {
        let name = |kind: &Kind| serde_json::to_string(kind).unwrap_or_default().replace('"', "");
        let inputs = report.kinds.get(kind).copied().unwrap_or_default();
        table.add_row([name(kind), String::new(), inputs.to_string()]);
        for (outcome, times) in outcomes {
            table.add_row([String::new(), (*outcome).to_owned(), times.to_string()]);
        }
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!(
        "{} inputs, {} crashes, {:.1} s, {} inputs a second, seed {}",
        report.inputs, report.crashes, report.seconds, report.inputs_per_second, report.seed
    );
}

/// What the last panic said.
type Said = Arc<Mutex<String>>;

/// Has panics say what they say to us alone, until it is dropped.
struct Quiet;

impl Quiet {
    fn new() -> (Self, Said) {
        let said = Said::default();
        let to = Arc::clone(&said);
        panic::set_hook(Box::new(move |info| {
            let text = info.to_string().replace('\n', " ");
            *to.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }));
        (Self, said)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = panic::take_hook();
    }
}

fn fuzz(seed: u64, first: u64, inputs: u64) -> Report {
    let mut step = Step::start(format!("fuzzing the driver with {inputs} inputs (seed {seed})"));
    let (quiet, said) = Quiet::new();
    let (mut kinds, mut tally) = (BTreeMap::new(), Tally::default());
    let (mut crashes, mut crashed, mut done) = (0, Vec::new(), 0);
    let (started, mut noted) = (Instant::now(), Instant::now());
    let end = first.saturating_add(inputs);
    let mut at = first - first % INPUTS_PER_HOST;
    while at < end {
        let until = (at + INPUTS_PER_HOST).min(end);
        let input = Cell::new(at);
        let life = AssertUnwindSafe(|| live(seed, at, until, &input, &mut kinds, &mut tally));
        if panic::catch_unwind(life).is_err() {
            crashes += 1;
            if crashed.len() < REPORTED_MAX {
                let message = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let inputs = input.get() + 1 - at;
                let replay =
                    format!("cargo xtask bench fuzz-driver --seed {seed} --first {at} --inputs {inputs}");
                crashed.push(Crash { input: input.get(), message, replay });
            }
            done += input.get() + 1 - at;
        } else {
            done += until - at;
        }
        at += INPUTS_PER_HOST;
        if noted.elapsed() > Duration::from_millis(500) {
            noted = Instant::now();
            step.note(&format!("{done} inputs, {crashes} crashes"));
            step.tick();
        }
    }
    drop(quiet);
    step.done();
    let seconds = started.elapsed().as_secs_f64();
    let mut outcomes: BTreeMap<Kind, BTreeMap<&'static str, u64>> = BTreeMap::new();
    for ((kind, outcome), times) in tally.0 {
        outcomes.entry(kind).or_default().insert(outcome, times);
    }
    Report {
        bench: "fuzz-driver",
        inputs: done,
        crashes,
        seed,
        first,
        seconds,
        inputs_per_second: (done as f64 / seconds.max(1e-9)) as u64,
        kinds,
        outcomes,
        crashed,
    }
}

/// Inputs `from` to `until` to one host.
fn live(
    seed: u64,
    from: u64,
    until: u64,
    input: &Cell<u64>,
    kinds: &mut BTreeMap<Kind, u64>,
    tally: &mut Tally,
) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(from / INPUTS_PER_HOST);
    let memory = host::memory();
    let mut fuzzed = Fuzzed::new(&memory);
    for at in from..until {
        input.set(at);
        let kind = Kind::any(&mut random);
        *kinds.entry(kind).or_default() += 1;
        match kind {
            Kind::Hello | Kind::HelloRandom => formats::hello(kind, &mut random, tally),
            Kind::Supervisor => formats::supervisor(&mut random, tally),
            Kind::Epitaph => formats::epitaph(&mut random, tally),
            _ => fuzzed.input(kind, &mut random, tally),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_inputs_come_of_the_same_seed_and_reach_what_they_are_for() {
        let report = fuzz(7, 0, 200_000);
        assert_eq!((report.inputs, report.crashes), (200_000, 0), "{:?}", report.crashed);
        let again = fuzz(7, 0, 200_000);
        assert_eq!((report.kinds, &report.outcomes), (again.kinds, &again.outcomes));
        let reached = |kind: Kind, outcome: &str| report.outcomes[&kind].get(outcome).copied().unwrap_or(0);
        for outcome in neap_abi::Outcome::ALL.into_iter().skip(1) {
            let times = reached(Kind::Txn, outcome.name()) + reached(Kind::Group, outcome.name());
            assert!(times > 0, "no txn came to {}", outcome.name());
        }
        assert!(reached(Kind::Hello, "accepted") > 0 && reached(Kind::Hello, "checksum") > 0);
        assert!(reached(Kind::Control, "running") > 0 && reached(Kind::Credits, "poisoned") > 0);
    }

    #[test]
    fn a_replay_begins_with_the_host_that_it_began_with() {
        let whole = fuzz(9, 0, 3 * INPUTS_PER_HOST);
        let part = fuzz(9, INPUTS_PER_HOST, INPUTS_PER_HOST);
        let before = fuzz(9, 0, INPUTS_PER_HOST);
        let after = fuzz(9, 2 * INPUTS_PER_HOST, INPUTS_PER_HOST);
        for (kind, inputs) in whole.kinds {
            let of = |report: &Report| report.kinds.get(&kind).copied().unwrap_or(0);
            assert_eq!(inputs, of(&before) + of(&part) + of(&after), "{kind:?}");
        }
    }
}
