//! The paper's figures, run: each published point beside what the model gives, and Neap beside both.
//!
//! A row whose number went into the parameters says so (`input`): it agrees by construction. A row that is off by more than
//! a tenth stands in `unexplained` with its reason, or it is an error.

mod runs;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::columns::{Cause, Column};
use crate::parameters::{Parameter, Parameters};
use crate::policy::Chosen;
use crate::vm;
use runs::{dispersive_hz, fifo_hz, one_cpu_switch_ns, p99_ns, switch};

/// How far a row may be from its published point, in percent.
const OFF_MAX: f64 = 10.0;

/// A figure or table of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Figure {
    /// FIFO.
    Fig4a,
    /// Shinjuku.
    Fig4b,
    /// Micro-benchmarks.
    Table3,
    /// The ladder of optimisations (section 7.2).
    Ablation,
    /// VMs.
    Fig6,
    /// A coherent link (section 7.3.2).
    Link,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Table3, Self::Ablation, Self::Fig4a, Self::Fig4b, Self::Fig6, Self::Link];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fig4a => "fig4a",
            Self::Fig4b => "fig4b",
            Self::Table3 => "table3",
            Self::Ablation => "ablation",
            Self::Fig6 => "fig6",
            Self::Link => "link",
        }
    }
}

/// A published point, and what the model makes of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Where the paper has it.
    pub figure: Figure,
    /// Which point.
    pub row: String,
    /// Of both numbers.
    pub unit: &'static str,
    /// The paper's; the middle of a range.
    pub paper: f64,
    /// The model's, of what the paper measured.
    pub ours: f64,
    /// Ours over the paper's, less one, in percent.
    pub difference_percent: f64,
    /// Whether it went into the parameters.
    pub input: bool,
    /// Neap's number, where there is one.
    pub neap: Option<f64>,
}

/// Latency over load of one system, up to where it saturates.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Which system.
    pub system: &'static str,
    /// Requests a second in thousands, and the p99 of GETs in µs.
    pub points: Vec<(f64, f64)>,
    /// Where it saturates, in thousands of requests a second.
    pub saturation_khz: f64,
    /// Where the paper has that, of the model's on-host system.
    pub paper_khz: Option<f64>,
}

/// A row that the model does not bring to its point.
#[derive(Clone, Debug, Serialize)]
pub struct Unexplained {
    /// Which.
    pub row: String,
    /// By how much, in percent.
    pub difference_percent: f64,
    /// Why.
    pub reason: &'static str,
}

/// What one of Neap's causes is worth: the same without it.
#[derive(Clone, Debug, Serialize)]
pub struct Attribution {
    /// The cause that is switched off.
    pub without: &'static str,
    /// A switch on a prestaged hit, in ns.
    pub switch_ns: f64,
    /// FIFO's saturation over on-host ghOSt's on 16 CPUs, in percent.
    pub fifo_percent: f64,
    /// Shinjuku's, likewise.
    pub shinjuku_percent: f64,
}

/// Neap's own column.
#[derive(Clone, Debug, Serialize)]
pub struct Neap {
    /// FIFO's saturation on 16 CPUs over on-host ghOSt's, in percent.
    pub fifo_percent: f64,
    /// Shinjuku's, likewise.
    pub shinjuku_percent: f64,
    /// A switch on a prestaged hit, in ns.
    pub switch_ns: f64,
    /// Reads across the link that such a switch waits for.
    pub uncached_reads_per_switch: f64,
    /// The same without each cause.
    pub attribution: Vec<Attribution>,
}

/// All that was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Nothing here was measured on a card.
    pub modelled: bool,
    /// Where all that is random comes from.
    pub seed: u64,
    /// Row by row.
    pub rows: Vec<Row>,
    /// Rows that are off by more than a tenth.
    pub unexplained: Vec<Unexplained>,
    /// Names of fitted parameters.
    pub fitted: Vec<String>,
    /// Neap's own numbers.
    pub neap: Neap,
    /// Every parameter, with its source.
    pub parameters: std::collections::BTreeMap<String, Parameter>,
}

/// Runs figures. `progress` hears what comes next, and its share of all.
///
/// # Errors
/// A row is off by more than a tenth, and no reason is known.
pub fn run(figures: &[Figure], seed: u64, progress: &mut dyn FnMut(&str, f64)) -> Result<Report> {
    let p = Parameters::usual();
    let mut rows = Vec::new();
    let steps = figures.len() as f64 + 1.0;
    for (done, figure) in figures.iter().enumerate() {
        progress(figure.name(), done as f64 / steps);
        match figure {
            Figure::Table3 => table3(&p, seed, &mut rows),
            Figure::Ablation => ablation(&p, seed, &mut rows),
            Figure::Fig4a => fig4(&p, seed, &mut rows, *figure),
            Figure::Fig4b => fig4(&p, seed, &mut rows, *figure),
            Figure::Fig6 => fig6(&p, seed, &mut rows),
            Figure::Link => link(&p, seed, &mut rows),
        }
    }
    progress("neap", figures.len() as f64 / steps);
    let neap = neap(&p, seed);
    let mut unexplained = Vec::new();
    for row in rows.iter().filter(|row| row.difference_percent.abs() > OFF_MAX) {
        let reason = REASONS.iter().find(|(name, _)| row.row == *name).map(|(_, reason)| *reason);
        ensure!(
            reason.is_some(),
            "{}: the paper has {}, the model {:.1}, and no reason is known",
            row.row,
            row.paper,
            row.ours
        );
        unexplained.push(Unexplained {
            row: row.row.clone(),
            difference_percent: row.difference_percent,
            reason: reason.unwrap_or_default(),
        });
    }
    progress("done", 1.0);
    Ok(Report {
        modelled: true,
        seed,
        rows,
        unexplained,
        fitted: p.fitted().into_iter().map(str::to_owned).collect(),
        neap,
        parameters: p.all().map(|(name, p)| (name.to_owned(), p.clone())).collect(),
    })
}

/// Loads at which a curve has its points, as parts of what its system can do.
const LOADS: [f64; 11] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.86, 0.91, 0.95, 0.98, 1.0];

/// The curves of figure 4a or 4b; none of another figure. `progress` hears the share that is done.
#[must_use]
pub fn curves(figure: Figure, seed: u64, progress: &mut dyn FnMut(f64)) -> Vec<Curve> {
    let policy = match figure {
        Figure::Fig4a => Chosen::Fifo,
        Figure::Fig4b => Chosen::Shinjuku,
        _ => return Vec::new(),
    };
    let p = Parameters::usual();
    let [tide_15, tide_16] = fig4_paper_percent(figure);
    let systems = [
        ("on-host, 15 CPUs and the agent's", Column::Ghost, 15, Some(100.0)),
        ("Tide, 15 CPUs", Column::Tide, 15, Some(tide_15)),
        ("Tide, 16 CPUs", Column::Tide, 16, Some(tide_16)),
        ("Neap, 16 CPUs", Column::Neap, 16, None),
    ];
    let mut on_host_khz = 0.0;
    let mut curves = Vec::new();
    for (at, (system, column, cpus, percent)) in systems.into_iter().enumerate() {
        let hz = match figure {
            Figure::Fig4a => fifo_hz(&p, column, cpus, seed),
            _ => dispersive_hz(&p, policy, column, cpus, seed),
        };
        if at == 0 {
            on_host_khz = hz / 1e3;
        }
        let mut points = Vec::new();
        for (done, load) in LOADS.into_iter().enumerate() {
            let p99_ns = p99_ns(&p, policy, column, cpus, (seed, hz * load));
            points.push((hz * load / 1e3, p99_ns as f64 / 1e3));
            progress((at as f64 + (done + 1) as f64 / LOADS.len() as f64) / 4.0);
        }
        let paper_khz = percent.map(|percent| percent / 100.0 * on_host_khz);
        curves.push(Curve { system, points, saturation_khz: hz / 1e3, paper_khz });
    }
    curves
}

/// Saturation of Tide on 15 and on 16 CPUs, in percent of on-host's. Of FIFO the paper says by how much on-host is above
/// Tide-15.
const fn fig4_paper_percent(figure: Figure) -> [f64; 2] {
    if matches!(figure, Figure::Fig4a) { [100.0 / 1.011, 104.6] } else { [100.0 / 1.076, 101.9] }
}

/// Why a row may be off by more than a tenth.
const REASONS: [(&str, &str); 2] = [
    (
        "baseline",
        "The agent is the bound. What it reads uncached is derived from one switch alone (Table 3), with a fresh poll for each; \
         under load it reads lines back to back and pays less for each, and the paper does not say how much less.",
    ),
    (
        "WB on the IPU",
        "Only the host's memory types differ from the next rung, and a host with its switches of 10 us (Table 3) could serve \
         649k; so the agent must be slower here than there, by what the paper does not say: reads that wait behind the \
         host's uncached ones at the IPU's memory function would do it.",
    ),
];

fn row(figure: Figure, row: &str, unit: &'static str, paper: f64, ours: f64) -> Row {
    let difference_percent = (ours / paper - 1.0) * 100.0;
    Row { figure, row: row.to_owned(), unit, paper, ours, difference_percent, input: false, neap: None }
}

fn table3(p: &Parameters, seed: u64, rows: &mut Vec<Row>) {
    let figure = Figure::Table3;
    let sum = |column: Column| {
        let costs = column.costs(p);
        (costs.open_ns + costs.send_ns) as f64
    };
    for (name, column, paper) in [
        ("open and send, baseline", Column::TideBaseline, 1013.0),
        ("open and send, WB", Column::Tide, 426.0),
        ("open and send, on-host", Column::GhostUnstaged, 770.0),
    ] {
        let neap = (column == Column::Tide).then(|| sum(Column::Neap));
        rows.push(Row { input: true, neap, ..row(figure, name, "ns", paper, sum(column)) });
    }
    for (name, column, paper) in [
        ("switch, baseline", Column::TideBaseline, 13_420.0),
        ("switch, WB on the IPU", Column::TideWb, 10_050.0),
        ("switch, WC/WT on the host", Column::TideCached, 6_505.0),
        ("switch, on-host", Column::GhostUnstaged, 4_685.0),
    ] {
        rows.push(Row { input: true, ..row(figure, name, "ns", paper, one_cpu_switch_ns(p, column, seed)) });
    }
    for (name, column, paper) in [
        ("switch, pre-staged and prefetched", Column::Tide, 3_680.0),
        ("switch, on-host, pre-staged", Column::Ghost, 2_805.0),
    ] {
        let neap = (column == Column::Tide).then(|| switch(p, Column::Neap, seed).0);
        rows.push(Row { input: true, neap, ..row(figure, name, "ns", paper, switch(p, column, seed).0) });
    }
}

fn ablation(p: &Parameters, seed: u64, rows: &mut Vec<Row>) {
    for (name, column, paper) in [
        ("baseline", Column::TideBaseline, 258.0),
        ("WB on the IPU", Column::TideWb, 520.0),
        ("WC/WT on the host", Column::TideCached, 680.0),
        ("pre-stage and prefetch", Column::Tide, 895.0),
    ] {
        let khz = |column| fifo_hz(p, column, 16, seed) / 1e3;
        let last = column == Column::Tide;
        let neap = last.then(|| khz(Column::Neap));
        rows.push(Row {
            input: last,
            neap,
            ..row(Figure::Ablation, name, "k requests/s", paper, khz(column))
        });
    }
}

/// Saturation over on-host ghOSt's, which has an agent on one of its 16 CPUs; in percent of it.
fn fig4(p: &Parameters, seed: u64, rows: &mut Vec<Row>, figure: Figure) {
    let hz = |column, cpus| match figure {
        Figure::Fig4a => fifo_hz(p, column, cpus, seed),
        _ => dispersive_hz(p, Chosen::Shinjuku, column, cpus, seed),
    };
    let on_host = hz(Column::Ghost, 15);
    let of_it = |column, cpus| hz(column, cpus) / on_host * 100.0;
    let [tide_15, tide_16] = fig4_paper_percent(figure);
    let unit = "% of on-host";
    let names = if figure == Figure::Fig4a {
        ["Tide-15, FIFO", "Tide-16, FIFO"]
    } else {
        ["Tide-15, Shinjuku", "Tide-16, Shinjuku"]
    };
    let neap = Some(of_it(Column::Neap, 15));
    rows.push(Row { neap, ..row(figure, names[0], unit, tide_15, of_it(Column::Tide, 15)) });
    let neap = Some(of_it(Column::Neap, 16));
    let input = figure == Figure::Fig4a;
    rows.push(Row { neap, input, ..row(figure, names[1], unit, tide_16, of_it(Column::Tide, 16)) });
}

fn fig6(p: &Parameters, seed: u64, rows: &mut Vec<Row>) {
    for (active, paper, input) in [(1, 111.2, true), (31, 109.7, false), (128, 101.7, true)] {
        let ours = vm::gain(p, seed, active) * 100.0;
        let name = format!("{active} active vCPUs");
        rows.push(Row { input, neap: Some(ours), ..row(Figure::Fig6, &name, "% of on-host", paper, ours) });
    }
}

fn link(p: &Parameters, seed: u64, rows: &mut Vec<Row>) {
    let hz = |column, cpus| dispersive_hz(p, Chosen::Shinjuku, column, cpus, seed);
    let coherent = hz(Column::Coherent(30), 16);
    let pcie = hz(Column::Tide, 16);
    let unit = "% of PCIe";
    rows.push(row(Figure::Link, "coherent over PCIe", unit, 100.9, coherent / pcie * 100.0));
    // On the host, with the agent on a CPU of its own beside the 16.
    let on_host = hz(Column::Ghost, 16);
    for (tenths, paper) in [(30, 98.7), (25, 97.5), (20, 96.5)] {
        let ours = hz(Column::Coherent(tenths), 16) / on_host * 100.0;
        let name = format!("coherent at {:.1} GHz", f64::from(tenths) / 10.0);
        rows.push(row(Figure::Link, &name, "% of on-host", paper, ours));
    }
}

fn neap(p: &Parameters, seed: u64) -> Neap {
    let fifo = fifo_hz(p, Column::Ghost, 15, seed);
    let shinjuku = dispersive_hz(p, Chosen::Shinjuku, Column::Ghost, 15, seed);
    let over = |column| {
        let fifo_percent = (fifo_hz(p, column, 16, seed) / fifo - 1.0) * 100.0;
        let hz = dispersive_hz(p, Chosen::Shinjuku, column, 16, seed);
        (fifo_percent, (hz / shinjuku - 1.0) * 100.0)
    };
    let (fifo_percent, shinjuku_percent) = over(Column::Neap);
    let (switch_ns, uncached_reads_per_switch) = switch(p, Column::Neap, seed);
    let attribution = Cause::ALL.map(|cause| {
        let column = Column::NeapWithout(cause);
        let (fifo_percent, shinjuku_percent) = over(column);
        let (switch_ns, _) = switch(p, column, seed);
        Attribution { without: cause.name(), switch_ns, fifo_percent, shinjuku_percent }
    });
    Neap {
        fifo_percent,
        shinjuku_percent,
        switch_ns,
        uncached_reads_per_switch,
        attribution: attribution.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_rises_with_load_and_neap_bears_the_most() {
        let curves = curves(Figure::Fig4a, 1, &mut |_| {});
        let names: Vec<&str> = curves.iter().map(|curve| curve.system).collect();
        assert_eq!(names.len(), 4);
        let most = |name: &str| {
            let curve = curves.iter().find(|curve| curve.system.starts_with(name)).unwrap();
            let (first, last) = (curve.points[0], curve.points[LOADS.len() - 1]);
            assert!(last.1 > 2.0 * first.1 && first.1 > 10.0, "{curve:?}");
            curve.saturation_khz
        };
        assert!(most("Neap") > most("Tide, 16") && most("Tide, 16") > most("on-host"));
    }

    /// Must-show 1 and 2 of the simulator, as far as they are numbers.
    #[test]
    fn every_row_is_near_its_point_or_has_its_reason_and_neap_is_ahead() {
        let report = run(&Figure::ALL, 1, &mut |_, _| {});
        let report = report.unwrap_or_else(|error| panic!("{error:#}"));
        for row in &report.rows {
            println!(
                "{:8} {:36} {:>10.1} {:>10.1} {:>7.1} % {:?}",
                row.figure.name(),
                row.row,
                row.paper,
                row.ours,
                row.difference_percent,
                row.neap
            );
        }
        println!("{:#?}", report.neap);
        let tide = |row: &Row| {
            row.neap.is_none_or(|neap| {
                if row.unit == "ns" { neap < row.ours } else { neap > row.ours || row.figure == Figure::Fig6 }
            })
        };
        for row in &report.rows {
            assert!(tide(row), "Neap is behind Tide: {row:?}");
        }
        assert!(report.neap.fifo_percent > 4.6 && report.neap.shinjuku_percent > 1.9, "{:?}", report.neap);
        assert!(report.neap.switch_ns < 3_300.0 && report.neap.uncached_reads_per_switch == 0.0);
    }
}
