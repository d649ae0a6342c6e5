//! What `bench path` prints, and its verdict.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use neap_meter::record::Ending;
use serde::Serialize;

use super::analysis::{Counts, Findings};
use super::host::Ledgers;
use super::model::{CLOCK_GHZ, DOORBELL_NS, GHOST_NS, LABEL, Modelled, TIDE_NS};
use super::{POLICY, script};
use crate::budget::Budget;
use crate::setup::Version;

/// The measurement, with the keys of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    policy: &'static str,
    cpus: u16,
    kinds: BTreeMap<&'static str, BTreeMap<&'static str, Line>>,
    /// The longest path to a doorbell.
    instructions_max: u64,
    /// The longest path to a prestaged decision.
    prestage_instructions_max: u64,
    /// The longest path of a message that carries a refusal.
    refusal_instructions_max: u64,
    traps: u64,
    dsb: u64,
    allocations: u64,
    dmb_max: u64,
    modelled_ns: f64,
    modelled: Model,
    peers: Peers,
    repeatable: bool,
    runs: usize,
    /// What the ledgers of all txns show.
    ledgers: Ledgers,
}

/// What holds of all runs together.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// They took the same paths.
    pub repeatable: bool,
    /// How many there were.
    pub count: usize,
    /// What the ledgers of their txns show.
    pub ledgers: Ledgers,
}

#[derive(Debug, Serialize)]
struct Line {
    n: usize,
    instructions_min: u64,
    instructions_median: u64,
    instructions_max: u64,
}

#[derive(Debug, Serialize)]
struct Model {
    cycles: u32,
    steady_cycles: f64,
    unmodelled_instructions: u32,
    ghz: f64,
    doorbell_ns: f64,
    llvm: String,
    label: &'static str,
}

#[derive(Debug, Serialize)]
struct Peers {
    tide_ns: f64,
    ghost_ns: f64,
}

impl Report {
    /// Puts the parts together.
    pub fn new(findings: Findings, modelled: Modelled, runs: Runs, llvm: Version) -> Self {
        let line = |counts: &Counts| Line {
            n: counts.n(),
            instructions_min: counts.min(),
            instructions_median: counts.median(),
            instructions_max: counts.max(),
        };
        let kinds = findings.kinds.iter().map(|(kind, endings)| {
            (*kind, endings.iter().map(|(ending, counts)| (ending.name(), line(counts))).collect())
        });
        Self {
            bench: "path",
            policy: POLICY,
            cpus: script::CPUS,
            kinds: kinds.collect(),
            instructions_max: findings.max(Ending::Doorbell),
            prestage_instructions_max: findings.max(Ending::Prestage),
            refusal_instructions_max: findings.refusal_max(),
            traps: findings.traps,
            dsb: findings.dsbs,
            allocations: findings.allocations,
            dmb_max: findings.dmbs_max,
            modelled_ns: (modelled.ns() * 10.0).round() / 10.0,
            modelled: Model {
                cycles: modelled.cycles,
                steady_cycles: modelled.steady_cycles,
                unmodelled_instructions: modelled.unmodelled,
                ghz: CLOCK_GHZ,
                doorbell_ns: DOORBELL_NS,
                llvm: llvm.to_string(),
                label: LABEL,
            },
            peers: Peers { tide_ns: TIDE_NS, ghost_ns: GHOST_NS },
            repeatable: runs.repeatable,
            runs: runs.count,
            ledgers: runs.ledgers,
        }
    }

    /// The verdict.
    ///
    /// # Errors
    /// Every figure that is outside the budget, or that an agent's path may not have at all.
    pub fn check(&self, budget: &Budget) -> Result<()> {
        let mut faults = Vec::new();
        if self.instructions_max > budget.path_instructions_max {
            let (is, most) = (self.instructions_max, budget.path_instructions_max);
            faults.push(format!("{is} instructions, path_instructions_max is {most}"));
        }
        if self.refusal_instructions_max > budget.path_refusal_instructions_max {
            let (is, most) = (self.refusal_instructions_max, budget.path_refusal_instructions_max);
            faults
                .push(format!("{is} instructions after a refusal, path_refusal_instructions_max is {most}"));
        }
        if self.modelled_ns > budget.path_modelled_ns_max {
            let (is, most) = (self.modelled_ns, budget.path_modelled_ns_max);
            faults.push(format!("{is} ns modelled, path_modelled_ns_max is {most}"));
        }
        for (count, what) in [(self.traps, "traps"), (self.dsb, "DSBs"), (self.allocations, "allocations")] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        if !self.repeatable {
            faults.push(format!("{} runs of one script differ", self.runs));
        }
        if !self.ledgers.hold() {
            faults.push(format!("ledgers out of order or not kept: {:?}", self.ledgers));
        }
        if !faults.is_empty() {
            bail!("the path from message to doorbell is outside its budget: {}", faults.join("; "));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, cpus, runs, .. } = self;
        writeln!(
            f,
            "Instructions from a message's whole line to the decision: {policy}, {cpus} host CPUs.\n"
        )?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["message", "ends at", "n", "min", "median", "max"]);
        for (kind, endings) in &self.kinds {
            for (ending, line) in endings {
                let counts =
                    [line.n as u64, line.instructions_min, line.instructions_median, line.instructions_max];
                let numbers = counts.map(|count| Cell::new(count).set_alignment(CellAlignment::Right));
                table.add_row([Cell::new(kind), Cell::new(ending)].into_iter().chain(numbers));
            }
        }
        writeln!(f, "{table}\n")?;
        let agree = if self.repeatable { "agree message by message" } else { "DIFFER" };
        writeln!(
            f,
            "{runs} runs {agree}. On all paths: {} traps, {} DSBs, {} allocations; at most {} DMBs on one.",
            self.traps, self.dsb, self.allocations, self.dmb_max
        )?;
        writeln!(
            f,
            "Longest path to a doorbell: {} instructions; after a refusal: {}.\n",
            self.instructions_max, self.refusal_instructions_max
        )?;
        let Ledgers { txns, in_order, rung } = self.ledgers;
        writeln!(f, "Ledgers: {in_order} of {txns} in order, {rung} with a doorbell.\n")?;
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["decision and doorbell", "ns", "how"]);
        let model = &self.modelled;
        let rows = [
            (
                "Neap",
                self.modelled_ns,
                format!("modelled: {} cycles at {} GHz + {} ns", model.cycles, model.ghz, model.doorbell_ns),
            ),
            ("Tide", self.peers.tide_ns, "measured on a Mount Evans (paper, Table 3)".to_owned()),
            ("on-host ghOSt", self.peers.ghost_ns, "measured on its host (paper, Table 3)".to_owned()),
        ];
        for (who, ns, how) in rows {
            table.add_row([
                Cell::new(who),
                Cell::new(ns).set_alignment(CellAlignment::Right),
                Cell::new(how),
            ]);
        }
        writeln!(f, "{table}\n")?;
        writeln!(f, "Neap's figure is {} (LLVM {}).", model.label, model.llvm)?;
        writeln!(
            f,
            "It is the slowest path's first pass; endlessly repeated, a pass takes {:.0} cycles. What a cold cache, \
             a mispredicted branch or the link adds is not in it.",
            model.steady_cycles
        )?;
        if model.unmodelled_instructions > 0 {
            writeln!(
                f,
                "{} instructions are unknown to the model and not in it.",
                model.unmodelled_instructions
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let modelled = Modelled { cycles: 120, steady_cycles: 60.5, unmodelled: 0 };
        let ledgers = Ledgers { txns: 9, in_order: 9, rung: 4 };
        let runs = Runs { repeatable: true, count: 3, ledgers };
        Report {
            instructions_max: 100,
            ..Report::new(Findings::default(), modelled, runs, Version::new(22, 1))
        }
    }

    fn budget() -> Budget {
        Budget {
            path_instructions_max: 100,
            path_refusal_instructions_max: 200,
            path_modelled_ns_max: 110.0,
            blackout_instructions_max: 300_000,
            image_loaded_bytes_max: 0,
            boot_instructions_max: 0,
            queue_ratio_min: 0.0,
            scale_ratio_max: 1.2,
        }
    }

    #[test]
    fn each_fault_is_named_and_none_means_none() {
        report().check(&budget()).unwrap();
        let fault = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            report.check(&budget()).unwrap_err().to_string()
        };
        assert!(fault(|report| report.instructions_max = 101).contains("101 instructions"));
        assert!(
            fault(|report| report.refusal_instructions_max = 201)
                .contains("201 instructions after a refusal")
        );
        assert!(fault(|report| report.modelled_ns = 110.1).contains("110.1 ns"));
        assert!(fault(|report| report.traps = 1).contains("1 traps"));
        assert!(fault(|report| report.dsb = 2).contains("2 DSBs"));
        assert!(fault(|report| report.allocations = 3).contains("3 allocations"));
        assert!(fault(|report| report.repeatable = false).contains("differ"));
        assert!(fault(|report| report.ledgers.in_order = 8).contains("ledgers"));
    }

    #[test]
    fn the_modelled_figure_is_never_shown_without_its_label() {
        let report = report();
        assert!(report.to_string().contains("modelled: 120 cycles at 3 GHz + 70 ns"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["modelled_ns"], 110.0);
        assert!(json["modelled"]["label"].as_str().unwrap().starts_with("modelled"));
        assert_eq!(
            (json["peers"]["tide_ns"].as_f64(), json["peers"]["ghost_ns"].as_f64()),
            (Some(426.0), Some(770.0))
        );
    }
}
