//! `cargo xtask`: the command for developers.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Neap's command for developers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check what building and running need, and install what is missing.
    Setup,
    /// Measure one thing against its budget.
    Bench {
        #[command(subcommand)]
        bench: xtask::bench::Bench,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes, and no backtrace: what went wrong lies in the checkout or the machine, not in here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Setup => xtask::setup::all(),
        Command::Bench { bench } => xtask::bench::run(bench),
    }
}
