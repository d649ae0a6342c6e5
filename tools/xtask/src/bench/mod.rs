//! `cargo xtask bench`: what is measured, one module per measurement.
//!
//! 1. A measurement prints one table for people, or with `--json` one JSON object and nothing else, on stdout.
//! 2. What its budget (`budget.toml`) does not allow is an error, so that the exit status is the verdict.

use clap::Subcommand;

pub mod boot;
pub mod faults;
pub mod fuzz_driver;
pub mod kill;
mod lives;
pub mod path;
pub mod queue;
pub mod replace;
mod scale;
mod sim;
pub mod size;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Bench {
    /// Instructions from a message's whole line to the doorbell store, message kind by message kind.
    Path(Output),
    /// Instructions from reset to the first decision.
    Boot(Output),
    /// Worlds in which things go wrong, seed by seed, in virtual time.
    Faults(faults::Options),
    /// The host driver's reading of everything that an IPU can write, fuzzed in user space.
    FuzzDriver(fuzz_driver::Options),
    /// Agents killed at random points under load.
    Kill(kill::Options),
    /// The message ring against its best peers.
    Queue(Output),
    /// How long nobody decides while one agent takes over from another.
    Replace(replace::Options),
    /// Instructions of a decision as CPUs and tasks grow, for each policy.
    Scale(Output),
    /// The simulator's events a second.
    Sim(Output),
    /// Loaded size of the runtime with its agent.
    Size(Output),
}

/// How a measurement prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Output {
    /// One JSON object on stdout instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// Runs one measurement; fails where it can't be taken or is outside its budget.
pub fn run(bench: Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Path(output) => path::run(output.json),
        Bench::Boot(output) => boot::run(output.json),
        Bench::Faults(options) => faults::run(options),
        Bench::FuzzDriver(options) => fuzz_driver::run(options),
        Bench::Kill(options) => kill::run(options),
        Bench::Queue(output) => queue::run(output.json),
        Bench::Replace(options) => replace::run(options),
        Bench::Scale(output) => scale::run(output.json),
        Bench::Sim(output) => sim::run(output.json),
        Bench::Size(output) => size::run(output.json),
    }
}
