//! `bench boot`: instructions from reset to the first decision.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::path;
use crate::budget::Budget;
use crate::progress::Step;

/// The measurement, with the keys of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    /// Of all cores, from reset to the store that begins the first decision.
    instructions: u64,
    /// The agent's core's share.
    agent_instructions: u64,
    /// Of all cores, from reset to the agent's first look for a message; the rest is mostly waiting for the
    /// host to say something.
    first_poll_instructions: u64,
}

/// Measures the boot and checks it against `boot_instructions_max`.
pub fn run(json: bool) -> Result<()> {
    let budget = Budget::load()?;
    let step = Step::start("counting instructions from reset to the first decision");
    let path::Boot { first_poll, first_decision } = path::boot()?;
    step.done();
    let report = Report {
        bench: "boot",
        instructions: first_decision.sum(),
        agent_instructions: first_decision.instructions.get(path::AGENT).copied().unwrap_or(0),
        first_poll_instructions: first_poll.sum(),
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{} instructions from reset to the first decision, all cores.", report.instructions);
        println!("  {} of them on the agent's core", report.agent_instructions);
        println!("  {} until the agent first looked for a message", report.first_poll_instructions);
    }
    ensure!(
        report.instructions <= budget.boot_instructions_max,
        "{} instructions from reset to the first decision, boot_instructions_max is {}",
        report.instructions,
        budget.boot_instructions_max
    );
    Ok(())
}
