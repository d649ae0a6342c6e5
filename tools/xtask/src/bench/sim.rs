//! `bench sim`: how many events a second the simulator lets happen on one core.

use std::time::Instant;

use anyhow::Result;
use neap_sim::columns::Column;
use neap_sim::load::Poisson;
use neap_sim::parameters::Parameters;
use neap_sim::policy::{Chosen, Experiment};
use serde::Serialize;

/// Requests of a run.
const REQUESTS: u64 = 400_000;

#[derive(Serialize)]
struct Row {
    policy: &'static str,
    host_cpus: u16,
    requests: u64,
    events: u64,
    seconds: f64,
    events_per_s: f64,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// The least of the rows'.
    events_per_s: f64,
    goal_events_per_s: f64,
}

/// Runs it. How fast it is depends on the machine: no budget holds it to anything.
pub fn run(json: bool) -> Result<()> {
    let p = Parameters::usual();
    let mut rows = Vec::new();
    for (policy, rate_hz, dispersive) in
        [(Chosen::Fifo, 800_000.0, false), (Chosen::Shinjuku, 150_000.0, true)]
    {
        let experiment = Experiment { policy, column: Column::Neap, cpus: 16, threads: 200, seed: 1 };
        let requests = if dispersive { REQUESTS / 10 } else { REQUESTS };
        let mut load = Poisson::new(1, rate_hz, requests, 0);
        if dispersive {
            load = load.dispersive();
        }
        let began = Instant::now();
        let ran = experiment.run(&p, &mut load, u64::MAX);
        let seconds = began.elapsed().as_secs_f64();
        let events_per_s = ran.events as f64 / seconds;
        let (policy, host_cpus, events) = (policy.name(), experiment.cpus, ran.events);
        rows.push(Row { policy, host_cpus, requests, events, seconds, events_per_s });
    }
    let events_per_s = rows.iter().map(|row| row.events_per_s).fold(f64::INFINITY, f64::min);
    let report = Report { rows, events_per_s, goal_events_per_s: 5e6 };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for row in &report.rows {
            println!(
                "{:10} {:>9} events in {:.2} s: {:.2} M a second",
                row.policy,
                row.events,
                row.seconds,
                row.events_per_s / 1e6
            );
        }
    }
    Ok(())
}
