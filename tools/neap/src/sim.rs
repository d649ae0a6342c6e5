//! `neap sim`: the simulator for users: the paper's figures, a workload of one's own, or a search for what goes wrong.

mod page;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use neap_host::policies::BUNDLED;
use neap_sim::columns::Column;
use neap_sim::faults;
use neap_sim::figures::{self, Figure, Report};
use neap_sim::load::Poisson;
use neap_sim::parameters::Parameters;
use neap_sim::policy::{Chosen, Experiment};
use neap_sim::rtapp::Workload;
use serde::Serialize;

use crate::args::SimOptions;

/// Time in which a workload's last tasks may end, in ns.
const REST_NS: u64 = 10_000_000_000;

/// What a workload or a load of one's own came to.
#[derive(Serialize)]
struct Run {
    modelled: bool,
    policy: &'static str,
    seed: u64,
    cpus: u16,
    requests: u64,
    finished: u64,
    latency_p50_us: f64,
    latency_p99_us: f64,
    preemptions: u64,
    prestage_hits: u64,
    prestage_misses: u64,
    events: u64,
    tasks: std::collections::BTreeMap<String, u64>,
}

/// Runs what is asked for; the exit status.
pub fn run(options: &SimOptions) -> Result<u8> {
    if let Some(seeds) = options.faults {
        return search(options, seeds);
    }
    if options.workload.is_some() || options.rate.is_some() {
        return own(options);
    }
    let asked: Vec<Figure> = match options.figure.as_str() {
        "all" => Figure::ALL.to_vec(),
        name => match Figure::ALL.into_iter().find(|figure| figure.name() == name) {
            Some(figure) => vec![figure],
            None => bail!("there is no figure {name}: {} and all are", names(&Figure::ALL.map(Figure::name))),
        },
    };
    let bar = bar(1_000);
    let report = figures::run(&asked, options.seed, &mut |what, share| {
        bar.set_message(what.to_owned());
        bar.set_position((share * 1e3) as u64);
    })?;
    if options.report.is_none() {
        bar.finish_and_clear();
    }
    if let Some(file) = &options.report {
        let mut curves = Vec::new();
        for &figure in &asked {
            bar.set_message(format!("{}'s curves", figure.name()));
            let drawn =
                figures::curves(figure, options.seed, &mut |share| bar.set_position((share * 1e3) as u64));
            curves.push((figure, drawn));
        }
        bar.finish_and_clear();
        let page = page::page(&report, &curves);
        fs::write(file, page).with_context(|| format!("{} can't be written", file.display()))?;
    }
    crate::print(&if options.json { serde_json::to_string_pretty(&report)? } else { table(&report) })?;
    Ok(0)
}

fn names(all: &[&str]) -> String {
    all.join(", ")
}

fn bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("neap: {msg:10} {wide_bar} {percent:>3} %") {
        bar.set_style(style);
    }
    bar
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["figure", "row", "unit", "paper", "ours", "difference", "Neap", ""]);
    for row in &report.rows {
        let number = |value: f64| if value < 1_000.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        table.add_row([
            row.figure.name().to_owned(),
            row.row.clone(),
            row.unit.to_owned(),
            number(row.paper),
            number(row.ours),
            format!("{:+.1} %", row.difference_percent),
            row.neap.map_or_else(String::new, number),
            if row.input { "an input".to_owned() } else { String::new() },
        ]);
    }
    for column in 3..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = format!("{table}\n\nAll of it is modelled; fitted: {}.\n", report.fitted.join(", "));
    for row in &report.unexplained {
        out += &format!("Not explained: {} ({:+.1} %). {}\n", row.row, row.difference_percent, row.reason);
    }
    let neap = &report.neap;
    out += &format!(
        "Neap over on-host, 16 CPUs: FIFO {:+.1} %, Shinjuku {:+.1} %; a switch {:.0} ns with {} uncached reads.\n",
        neap.fifo_percent, neap.shinjuku_percent, neap.switch_ns, neap.uncached_reads_per_switch
    );
    for without in &neap.attribution {
        out += &format!(
            "  without {:20} FIFO {:+.1} %, Shinjuku {:+.1} %, a switch {:.0} ns\n",
            without.without, without.fifo_percent, without.shinjuku_percent, without.switch_ns
        );
    }
    out
}

/// A policy by its name.
pub fn policy(name: &str) -> Result<Chosen> {
    let all = Chosen::ALL.map(Chosen::name);
    Chosen::named(name).with_context(|| format!("there is no policy {name}: {} are", names(&all)))
}

/// A load of one's own.
fn own(options: &SimOptions) -> Result<u8> {
    let policy = policy(options.policy.as_deref().unwrap_or(BUNDLED))?;
    let p = Parameters::usual();
    let column = Column::Neap;
    let (cpus, seed) = (options.cpus, options.seed);
    let mut run = Run {
        modelled: true,
        policy: policy.name(),
        seed,
        cpus,
        requests: 0,
        finished: 0,
        latency_p50_us: 0.0,
        latency_p99_us: 0.0,
        preemptions: 0,
        prestage_hits: 0,
        prestage_misses: 0,
        events: 0,
        tasks: std::collections::BTreeMap::new(),
    };
    let us = |ns: u64| ns as f64 / 1e3;
    let seen = match &options.workload {
        Some(file) => {
            let mut workload = workload(file)?;
            let threads = workload.threads();
            let until_ns = workload.duration_ns.map_or(u64::MAX, |ns| ns.saturating_add(REST_NS));
            let ran = Experiment { policy, column, cpus, threads, seed }.run(&p, &mut workload, until_ns);
            run.latency_p50_us = us(workload.latency.quantile_ns(0.5));
            run.latency_p99_us = us(workload.latency.quantile_ns(0.99));
            (run.tasks, run.events) = (workload.ended, ran.events);
            ran.seen
        }
        None => {
            let rate_hz = options.rate.unwrap_or(1.0);
            let mut load = Poisson::new(seed, rate_hz, options.requests, 0);
            if options.dispersive {
                load = load.dispersive().classed();
            }
            let ran = Experiment { policy, column, cpus, threads: 1000, seed }.run(&p, &mut load, u64::MAX);
            run.latency_p50_us = us(load.short.quantile_ns(0.5));
            run.latency_p99_us = us(load.short.quantile_ns(0.99));
            run.events = ran.events;
            ran.seen
        }
    };
    (run.requests, run.finished, run.preemptions) = (seen.arrived, seen.finished, seen.preemptions);
    (run.prestage_hits, run.prestage_misses) = (seen.hits, seen.misses);
    if options.json {
        crate::print(&serde_json::to_string_pretty(&run)?)?;
    } else {
        crate::print(&format!(
            "{} on {} host CPUs (modelled): {} of {} runs ended, latency p50 {:.1} us, p99 {:.1} us; {} preemptions, {} of {} \
             switches prestaged",
            run.policy,
            run.cpus,
            run.finished,
            run.requests,
            run.latency_p50_us,
            run.latency_p99_us,
            run.preemptions,
            run.prestage_hits,
            run.prestage_hits + run.prestage_misses
        ))?;
    }
    if let Some(violation) = seen.violations.first() {
        bail!("seed {seed}: {violation}");
    }
    Ok(0)
}

fn workload(file: &Path) -> Result<Workload> {
    let text = fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
    Workload::parse(&text).with_context(|| format!("{}, as rt-app's JSON", file.display()))
}

/// A search for a seed in which something is lost.
fn search(options: &SimOptions, seeds: u64) -> Result<u8> {
    let asked = options.policy.as_deref().map(policy).transpose()?;
    let bar = bar(seeds);
    bar.set_message("faults");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let found = faults::search(asked, options.seed, seeds, threads, &|done| bar.set_position(done));
    bar.finish_and_clear();
    if options.json {
        crate::print(&serde_json::to_string_pretty(&found)?)?;
    } else {
        crate::print(&format!(
            "{} seeds from {}: {} events, {} faults, {} fallbacks, {} resyncs; violations: {}",
            found.seeds,
            found.from,
            found.events,
            found.faults,
            found.fallbacks,
            found.resyncs,
            found.violations
        ))?;
    }
    if let Some(failing) = found.failing.first() {
        bail!(
            "seed {}: {}\n  with no more than: {}\n  again: neap sim{} --faults 1 --seed {}",
            failing.seed,
            failing.violation,
            failing.faults.join(", "),
            options.policy.as_ref().map(|policy| format!(" --policy {policy}")).unwrap_or_default(),
            failing.seed
        );
    }
    Ok(0)
}
