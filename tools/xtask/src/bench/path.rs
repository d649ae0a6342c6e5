//! `bench path`: instructions from message to doorbell, message kind by message kind.
//!
//! Counted, not timed: three runs of one script on QEMU under the meter, each instruction of the agent's core
//! on record. Beside the count stands a modelled time, which is never more than that.

mod analysis;
mod host;
pub(super) mod metered;
pub(super) mod model;
mod program;
mod report;
mod script;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use neap_meter::record::{Ending, Record, Totals};

use crate::budget::Budget;
use crate::firmware::{self, Kind};
use crate::progress::Step;
use crate::setup;

use analysis::{Findings, Measured, Sent};
use host::{Host, Ledgers};
use metered::{Metered, Parts, Places};
use model::{Listing, Modelled};
use program::{Facts, Program};
use report::{Report, Runs};

/// The policy whose path is measured.
const POLICY: &str = "fifo";
/// The agent's core, among a run's totals.
pub const AGENT: usize = metered::AGENT_CORE as usize;
/// Runs of the script: two can agree by chance.
const RUNS: usize = 3;

/// One run of the script, as the meter recorded it.
struct Run {
    sent: Vec<Sent>,
    records: Vec<Record>,
    ring_lines: u64,
    ledgers: Ledgers,
}

/// Measures the decision path and checks it against the budgets whose names begin with `path`.
pub fn run(json: bool) -> Result<()> {
    let budget = Budget::load()?;
    let llvm = setup::llvm()?;
    let parts = parts()?;
    let places = places(&parts)?;
    let runs = (1..=RUNS)
        .map(|number| {
            let step = Step::start(format!("measuring the path, run {number} of {RUNS}"));
            let run = measure(&parts, &places)?;
            step.done();
            Ok(run)
        })
        .collect::<Result<Vec<_>>>()?;
    let measured = runs
        .iter()
        .map(|run| analysis::attribute(&run.records, &run.sent, run.ring_lines))
        .collect::<Result<Vec<_>>>()?;
    let elves = parts.elves();
    let program = Program::open(&elves)?;
    let mut facts = Facts::new(&program);
    let mut all = Findings::default();
    for run in &measured {
        all.merge(Findings::of(run, &mut facts)?);
    }
    let modelled = worst(&measured, &Listing::of(&elves, &llvm)?, &llvm)?;
    let mut ledgers = Ledgers::default();
    runs.iter().for_each(|run| ledgers.merge(run.ledgers));
    let runs = Runs { repeatable: analysis::repeatable(&measured), count: RUNS, ledgers };
    let report = Report::new(all, modelled, runs, llvm.version);
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    report.check(&budget)
}

/// Instructions since reset in one run, for `bench boot`.
pub struct Boot {
    /// When the agent first looked for a message.
    pub first_poll: Totals,
    /// When it published its first decision.
    pub first_decision: Totals,
}

/// Boots once under the meter and counts to the first decision.
///
/// # Errors
/// A firmware that does not come so far.
pub fn boot() -> Result<Boot> {
    let parts = parts()?;
    let places = places(&parts)?;
    let machine = Metered::boot(&parts, script::CPUS, Some(&places))?;
    let mut host = Host::attach(&machine, POLICY, script::CPUS, script::TASKS)?;
    script::first_task(&mut host)?;
    let records = machine.records()?;
    let find = |wanted: fn(&Record) -> Option<&Totals>, what| {
        records.iter().find_map(wanted).cloned().with_context(|| format!("the meter saw no {what}"))
    };
    Ok(Boot {
        first_poll: find(|r| if let Record::FirstPoll(totals) = r { Some(totals) } else { None }, "poll")?,
        first_decision: find(
            |r| if let Record::FirstDecision(totals) = r { Some(totals) } else { None },
            "decision",
        )?,
    })
}

fn parts() -> Result<Parts> {
    let qemu = setup::qemu()?;
    let image = firmware::build(&Kind::Runtime)?;
    Parts::new(qemu, image.elf, firmware::agent(POLICY)?.elf)
}

/// Boots once without the meter, to learn where it has to look.
fn places(parts: &Parts) -> Result<Places> {
    Metered::boot(parts, script::CPUS, None)?.places()
}

fn measure(parts: &Parts, places: &Places) -> Result<Run> {
    let machine = Metered::boot(parts, script::CPUS, Some(places))?;
    ensure!(machine.places()? == *places, "the firmware laid its window out otherwise than a moment ago");
    let mut host = Host::attach(&machine, POLICY, script::CPUS, script::TASKS)?;
    script::play(&mut host)?;
    let ring_lines = host.ring_lines()? as u64;
    let ledgers = host.ledgers();
    let sent = host.into_sent();
    Ok(Run { sent, records: machine.records()?, ring_lines, ledgers })
}

/// The slowest of the steady paths to a doorbell, each different path modelled once.
fn worst(runs: &[Vec<Measured<'_>>], listing: &Listing, llvm: &setup::Llvm) -> Result<Modelled> {
    let paths: BTreeSet<&[u64]> = runs
        .iter()
        .flatten()
        .filter(|measured| measured.steady && measured.path.ending == Ending::Doorbell)
        .map(|measured| &*measured.path.pcs)
        .collect();
    let mut worst: Option<Modelled> = None;
    for pcs in paths {
        let modelled = model::model(&listing.straight(pcs)?, llvm)?;
        if worst.is_none_or(|worst| modelled.cycles > worst.cycles) {
            worst = Some(modelled);
        }
    }
    worst.context("no message led to a doorbell in steady state: nothing was measured")
}
