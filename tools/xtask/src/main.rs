//! `cargo xtask`: the command for developers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::linux::Flavour;

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
    /// Run every proof of the project, in order; the first failure ends it.
    Test {
        /// Only this stage; may be given several times.
        #[arg(long, value_name = "STAGE")]
        only: Vec<String>,
        /// Print the stages and run none.
        #[arg(long)]
        list: bool,
    },
    /// Measure one thing against its budget.
    Bench {
        #[command(subcommand)]
        bench: xtask::bench::Bench,
    },
    /// Make all that Linux guests with the host driver are booted from, and boot one on each kernel.
    Linux {
        /// Leave out the kernel that looks for mistakes, which takes longest to build.
        #[arg(long)]
        stock_only: bool,
    },
    /// Make a Debian package of the host driver, for machines with a card; prints its file's name.
    Package,
    /// Boot an ELF on the virtual IPU: cargo's runner for the card.
    QemuRun {
        /// The firmware.
        elf: PathBuf,
        /// Words of its command line.
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            // The chain of causes, and no backtrace: what went wrong lies in the checkout or the machine, not in here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Setup => xtask::setup::all()?,
        Command::Test { list: true, .. } => xtask::test::list(),
        Command::Test { only, list: false } => {
            if !xtask::test::run(&only)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Bench { bench } => xtask::bench::run(bench)?,
        Command::Linux { stock_only } => {
            let flavours = [Flavour::Stock, Flavour::Debug];
            xtask::linux::smoke(&flavours[..if stock_only { 1 } else { 2 }])?;
        }
        Command::Package => {
            let deb = xtask::linux::package::build()?.deb;
            println!("{}", deb.display());
            eprintln!(
                "neap: install it with `sudo apt install {}`, undo that with `sudo apt purge neap`",
                deb.display()
            );
        }
        Command::QemuRun { elf, words } => {
            let status = xtask::qemu_run::run(&elf, &words)?;
            // A status beyond a byte is a failure still.
            return Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from));
        }
    }
    Ok(ExitCode::SUCCESS)
}
