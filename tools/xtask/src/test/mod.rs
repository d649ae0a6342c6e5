//! `cargo xtask test`: every proof of the project, in order of dependency.
//!
//! 1. Stages run one after the other; the first that fails ends the run, and shows its culprit's own output.
//! 2. What can't be run on this machine is counted as skipped, with its reason and remedy; nothing is left out
//!    in silence.
//! 3. The last line is `N passed, N failed, N skipped`, and counts tests.

mod attacks;
mod cards;
mod cases;
mod docs;
mod homes;
mod linux;
mod package;
mod qemu;
mod runs;
mod sessions;
mod stages;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};

use crate::progress::say;

/// Tests that a stage ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held.
    pub passed: u64,
    /// Did not.
    pub failed: u64,
    /// Could not be run here, or are marked to be ignored.
    pub skipped: u64,
}

impl Counts {
    const fn passed(passed: u64) -> Self {
        Self { passed, failed: 0, skipped: 0 }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What a stage came to.
#[derive(Debug, Default)]
struct Verdict {
    counts: Counts,
    /// Why something was skipped, and figures worth showing.
    remarks: Vec<String>,
    /// The culprit's output, where the stage failed.
    failure: Option<String>,
}

impl Verdict {
    fn skipped(reason: String) -> Self {
        Self { counts: Counts { skipped: 1, ..Counts::default() }, remarks: vec![reason], failure: None }
    }

    /// One more test held.
    fn pass(&mut self) {
        self.counts.passed += 1;
    }

    /// One did not.
    fn fail(&mut self, culprit: String) {
        self.counts.failed += 1;
        self.failure.get_or_insert(culprit);
    }

    fn failing(&self) -> bool {
        self.failure.is_some() || self.counts.failed > 0
    }
}

impl std::ops::AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.counts += other.counts;
        self.remarks.extend(other.remarks);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// One stage.
struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Verdict>,
}

/// All stages, in order.
const STAGES: [Stage; 20] = [
    Stage { name: "fmt", about: "the sources' form", run: stages::fmt },
    Stage { name: "clippy", about: "lints, for the host and for the card", run: stages::clippy },
    Stage { name: "unit", about: "unit, integration and documentation tests on the host", run: stages::unit },
    Stage {
        name: "loom",
        about: "interleavings of the ring, and of what races in the driver's mechanism",
        run: stages::loom,
    },
    Stage { name: "miri", about: "the wire and the ring without undefined behaviour", run: stages::miri },
    Stage { name: "fuzz", about: "all that an IPU can write, read by the host driver", run: stages::fuzz },
    Stage {
        name: "faults",
        about: "agents and hosts in virtual time, where things go wrong; and that a careless ring is found out",
        run: stages::faults,
    },
    Stage { name: "nostd", about: "no std in what the card runs", run: stages::nostd },
    Stage {
        name: "image",
        about: "the firmware's size, no panic in the decision path, and what a card boots of it",
        run: stages::image,
    },
    Stage { name: "qemu", about: "the numbered boots of qemu-tests", run: qemu::run },
    Stage {
        name: "sessions",
        about: "the firmware on QEMU under good hosts and bad ones",
        run: sessions::run,
    },
    Stage {
        name: "homes",
        about: "a trace of each policy, which gives the same decisions wherever its agent runs",
        run: homes::run,
    },
    Stage { name: "attacks", about: "hostile agents beside good ones, each refused", run: attacks::run },
    Stage { name: "path", about: "the decision path's instructions against their budget", run: stages::path },
    Stage {
        name: "lives",
        about: "agents that are killed and agents that are replaced, under load",
        run: stages::lives,
    },
    Stage {
        name: "run",
        about: "neap run, on the virtual IPU, on the host, and with a Linux guest",
        run: runs::run,
    },
    Stage {
        name: "module",
        about: "the host driver's module: its form, no warning, and no panic under a lock",
        run: stages::module,
    },
    Stage {
        name: "linux",
        about: "the host driver in real kernels, under IPUs good and bad",
        run: linux::run,
    },
    Stage {
        name: "package",
        about: "the Debian package of the Linux driver, installed and purged",
        run: package::run,
    },
    Stage { name: "docs", about: "commands and links of the documents", run: docs::run },
];

/// Prints the stages' names.
pub fn list() {
    for stage in &STAGES {
        println!("{:<8} {}", stage.name, stage.about);
    }
}

/// Runs all stages, or the named ones, prints what they came to, and returns whether all hold.
pub fn run(only: &[String]) -> Result<bool> {
    if let Some(unknown) = only.iter().find(|name| !STAGES.iter().any(|stage| stage.name == **name)) {
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        bail!("there is no stage {unknown}; the stages are {}", names.join(", "));
    }
    let wanted = |stage: &&Stage| only.is_empty() || only.iter().any(|name| name == stage.name);
    let chosen: Vec<&Stage> = STAGES.iter().filter(wanted).collect();
    let mut rows = Vec::new();
    let mut held = true;
    for (index, stage) in chosen.iter().enumerate() {
        say(&format!("neap: [{}/{}] {}: {}", index + 1, chosen.len(), stage.name, stage.about));
        let started = Instant::now();
        let mut verdict = (stage.run)().unwrap_or_else(|error| {
            let mut verdict = Verdict::default();
            verdict.fail(format!("{error:#}"));
            verdict
        });
        if verdict.failing() && verdict.counts.failed == 0 {
            verdict.counts.failed = 1;
        }
        let took = started.elapsed();
        for remark in &verdict.remarks {
            say(&format!("neap: {}: {remark}", stage.name));
        }
        say(&format!("neap: {}: {} ({:.1} s)", stage.name, verdict.counts, took.as_secs_f64()));
        let failing = verdict.failing();
        if failing {
            say(verdict.failure.as_deref().unwrap_or_default());
            say(&format!("neap: {0} failed; `cargo xtask test --only {0}` runs it alone", stage.name));
            held = false;
        }
        rows.push(Row { name: stage.name, counts: Some(verdict.counts), took });
        if failing {
            break;
        }
    }
    rows.extend(chosen.iter().skip(rows.len()).map(|stage| Row {
        name: stage.name,
        counts: None,
        took: Duration::ZERO,
    }));
    let (table, sum) = summary(&rows);
    println!("{table}\n{sum}");
    Ok(held)
}

/// One stage in the closing table; without counts where it was not reached.
struct Row {
    name: &'static str,
    counts: Option<Counts>,
    took: Duration,
}

/// The closing table, the slowest stage marked, and the sum of all counts.
fn summary(rows: &[Row]) -> (Table, Counts) {
    let slowest = rows.iter().map(|row| row.took).max().unwrap_or_default();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["stage", "passed", "failed", "skipped", "seconds", ""]);
    let mut sum = Counts::default();
    for row in rows {
        let cells = match row.counts {
            None => [row.name.into(), "-".into(), "-".into(), "-".into(), "-".into(), "not reached".into()],
            Some(counts) => {
                sum += counts;
                let mark = if row.took == slowest && rows.len() > 1 { "slowest" } else { "" };
                [
                    row.name.to_owned(),
                    counts.passed.to_string(),
                    counts.failed.to_string(),
                    counts.skipped.to_string(),
                    format!("{:.1}", row.took.as_secs_f64()),
                    mark.to_owned(),
                ]
            }
        };
        table.add_row(cells);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    (table, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_sums_what_was_run() {
        let row = |name, passed, skipped, seconds| Row {
            name,
            counts: Some(Counts { passed, failed: 0, skipped }),
            took: Duration::from_secs(seconds),
        };
        let unreached = Row { name: "docs", counts: None, took: Duration::ZERO };
        let (table, sum) = summary(&[row("fmt", 1, 0, 2), row("unit", 40, 2, 9), unreached]);
        assert_eq!(sum.to_string(), "41 passed, 0 failed, 2 skipped");
        let text = table.to_string();
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("unit").contains("slowest") && !line("fmt").contains("slowest"), "{text}");
        assert!(line("docs").contains("not reached"), "{text}");
    }

    #[test]
    fn an_unknown_stage_is_named_with_those_that_there_are() {
        let error = run(&["units".into()]).unwrap_err().to_string();
        assert!(error.contains("units") && error.contains("fmt, clippy, unit"), "{error}");
    }
}
