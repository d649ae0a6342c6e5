//! `bench scale`: what a decision costs each policy, in instructions, as CPUs and tasks grow.
//!
//! Counted exactly, on QEMU under `-icount`, by the program `s07_scale` of `qemu-tests`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use neap_vipu::Window;
use serde::Serialize;

use crate::budget::Budget;
use crate::firmware;
use crate::machine::{Machine, WINDOW_BYTES};
use crate::process::{self, Limits};
use crate::progress::Step;
use crate::setup;

/// The program.
const PROGRAM: &str = "s07_scale";
/// What it is given for all its cases.
const LIMIT: Limits = Limits::total(600);

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Case {
    host_cpus: u32,
    tasks: u32,
    instructions: u64,
    decisions: u64,
    instructions_per_decision: f64,
}

#[derive(Debug, Serialize)]
struct Policy {
    cases: Vec<Case>,
    /// The most CPUs and tasks over the fewest.
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    policies: BTreeMap<String, Policy>,
    /// The greatest of the policies' ratios.
    ratio_max: f64,
}

/// Measures, and checks against `scale_ratio_max`.
pub fn run(json: bool) -> Result<()> {
    let budget = Budget::load()?;
    let images = firmware::build_tests()?;
    let image = images.get(PROGRAM).with_context(|| format!("qemu-tests has no {PROGRAM}"))?;
    let qemu = setup::qemu()?;
    let window = Window::create(&format!("neap-{}-scale", std::process::id()), WINDOW_BYTES)?;
    let machine = Machine { counted: true, ..Machine::new(2, window.path(), window.bytes()) };
    let mut command = machine.command(&qemu, &image.elf)?;
    let mut step =
        Step::start("counting instructions of decisions, from 8 CPUs and 100 tasks to 256 and a million");
    let finished = process::run(&mut command, LIMIT, &mut step)?;
    let policies = read(&finished.all).with_context(|| {
        format!("{PROGRAM}: {}; its console said:\n{}", finished.verdict(), finished.tail(20))
    })?;
    step.done();
    let ratio_max = policies.values().map(|policy| policy.ratio).fold(0.0, f64::max);
    let report = Report { bench: "scale", policies, ratio_max };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["policy", "CPUs", "tasks", "instructions a decision"]);
        for (name, policy) in &report.policies {
            for case in &policy.cases {
                table.add_row([
                    name.clone(),
                    case.host_cpus.to_string(),
                    case.tasks.to_string(),
                    format!("{:.1}", case.instructions_per_decision),
                ]);
            }
        }
        println!("{table}");
    }
    for (name, policy) in &report.policies {
        ensure!(
            policy.ratio <= budget.scale_ratio_max,
            "a decision of {name} takes {:.2} times as many instructions for the most CPUs and tasks as for the fewest, \
             scale_ratio_max is {}",
            policy.ratio,
            budget.scale_ratio_max
        );
    }
    Ok(())
}

/// The cases from the console: `scale POLICY CPUS TASKS INSTRUCTIONS DECISIONS`.
fn read(console: &str) -> Result<BTreeMap<String, Policy>> {
    let mut all: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for line in console.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "scale") else { continue };
        let [name, numbers @ ..] = &words[at + 1..] else { continue };
        let numbers: Vec<u64> = numbers.iter().map_while(|word| word.parse().ok()).collect();
        let [host_cpus, tasks, instructions, decisions] = numbers[..] else { continue };
        let per = instructions as f64 / decisions.max(1) as f64;
        let (host_cpus, tasks) = (host_cpus as u32, tasks as u32);
        let case = Case { host_cpus, tasks, instructions, decisions, instructions_per_decision: per };
        all.entry((*name).to_owned()).or_default().push(case);
    }
    ensure!(!all.is_empty(), "no case was counted");
    ensure!(console.lines().any(|line| line.trim().ends_with("pass")), "it did not come to its end");
    let policy = |mut cases: Vec<Case>| {
        cases.sort_by_key(|case| (case.host_cpus, case.tasks));
        let per = |case: Option<&Case>| case.map_or(0.0, |case| case.instructions_per_decision);
        let ratio = per(cases.last()) / per(cases.first());
        Policy { cases, ratio }
    };
    Ok(all.into_iter().map(|(name, cases)| (name, policy(cases))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_put_over_the_fewest() {
        let console =
            "scale fifo 8 100 1000 10\nscale fifo 256 1000000 1100 10\nscale fifo 8 10000 900 10\npass\n";
        let policies = read(console).unwrap();
        assert!((policies["fifo"].ratio - 1.1).abs() < 1e-9 && policies["fifo"].cases.len() == 3);
        assert!(read("pass").is_err() && read("scale fifo 8 100 1000 10\n").is_err());
    }
}
