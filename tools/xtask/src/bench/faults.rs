//! `bench faults`: worlds in which things go wrong, each from a seed, until one is found in which something is lost.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use neap_sim::faults::{self, Script};
use serde::Serialize;

use crate::progress::Step;

/// Options of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// How many seeds; policies take turns at them.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub first: u64,
    /// Only this seed, told at length.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    pub seed: Option<u64>,
    /// How it prints.
    #[command(flatten)]
    pub output: super::Output,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: faults::Found,
    seconds: f64,
}

/// Searches; a violation is an error that says how to see it again.
pub fn run(options: Options) -> Result<()> {
    if let Some(seed) = options.seed {
        return again(seed, options.output.json);
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let step = Mutex::new(Step::start(format!("running {} seeds from {}", options.seeds, options.first)));
    let began = Instant::now();
    let found = faults::search(None, options.first, options.seeds, threads, &|done| {
        if done.is_multiple_of(1000)
            && let Ok(mut step) = step.lock()
        {
            step.note(&format!("{done} of {}", options.seeds));
        }
    });
    if let Ok(step) = step.into_inner() {
        step.done();
    }
    let report = Report { seconds: began.elapsed().as_secs_f64(), found };
    if options.output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let found = &report.found;
        for (name, value) in [
            ("seeds", found.seeds),
            ("events", found.events),
            ("faults", found.faults),
            ("fallbacks", found.fallbacks),
            ("resyncs", found.resyncs),
            ("violations", found.violations),
        ] {
            table.add_row([name.to_owned(), value.to_string()]);
        }
        table.add_row(["trace hash".to_owned(), found.trace_hash.clone()]);
        println!("{table}");
    }
    if let Some(failing) = report.found.failing.first() {
        bail!(
            "{} of {} seeds violate something; seed {}: {}\n  with no more than: {}\n  again: cargo xtask bench faults --seed {}",
            report.found.violations,
            report.found.seeds,
            failing.seed,
            failing.violation,
            failing.faults.join(", "),
            failing.seed
        );
    }
    Ok(())
}

fn again(seed: u64, json: bool) -> Result<()> {
    let script = Script::of(seed, None);
    let (verdict, same) = (script.run(), script.run());
    let hash = format!("{:016x}", verdict.seen.trace_hash);
    let faults: Vec<String> = script.faults.iter().map(ToString::to_string).collect();
    if json {
        let told = serde_json::json!({
            "seed": seed, "faults": faults, "events": verdict.events, "trace_hash": hash,
            "violations": verdict.seen.violations,
        });
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        println!("seed {seed}: {} events, trace {hash}\n  goes wrong: {}", verdict.events, faults.join(", "));
    }
    if same.seen.trace_hash != verdict.seen.trace_hash {
        bail!("seed {seed} gives another trace each time: the simulator is at fault");
    }
    if let Some(violation) = verdict.seen.violations.first() {
        let shrunk = script.shrunk();
        let least: Vec<String> = shrunk.faults.iter().map(ToString::to_string).collect();
        bail!("seed {seed}: {violation}\n  with no more than: {}", least.join(", "));
    }
    Ok(())
}
