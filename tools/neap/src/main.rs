//! The command for users: `run` an instance with a load on it, see what it does (`status`, `top`, `log`, `metrics`, `trace`), change its `agent`s.
//!
//! 1. Results go to stdout, remarks and progress to stderr.
//! 2. However it ends, nothing stays behind: children die with it, files go with it, and what a killed run left is
//!    removed by the next.
//! 3. A report says what happened, not what should have; a broken promise is an exit status other than 0.

mod args;
mod bench;
mod check;
mod children;
// Most of it is for what runs inside a guest.
#[cfg_attr(not(feature = "linux"), allow(dead_code))]
mod driver;
mod enclaves;
mod flash;
mod guest;
mod image;
mod inspect;
mod manage;
mod measured;
mod perfetto;
mod report;
mod run;
#[cfg(feature = "linux")]
mod scx;
mod sim;
mod trace;
mod worker;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use args::{Arguments, BenchCommand, CheckCommand, Command};

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Log { follow } => inspect::log(follow).map(|()| 0),
        Command::Agent(command) => manage::agent(&command).map(|()| 0),
        Command::Status { json, device } => inspect::status(json, device.as_deref()).map(|()| 0),
        Command::Top { once, device } => inspect::top(once, device.as_deref()).map(|()| 0),
        Command::Metrics { listen, device } => inspect::metrics(listen, device.as_deref()).map(|()| 0),
        Command::Completions { shell } => completions(shell).map(|()| 0),
        Command::Sim(options) => sim::run(&options),
        Command::Key(command) => image::key(&command).map(|()| 0),
        Command::Image(command) => image::image(&command).map(|()| 0),
        Command::Flash(options) => flash::flash(&options).map(|()| 0),
        Command::Trace(command) => trace::trace(&command),
        Command::Bench(BenchCommand::Link(options)) => bench::link(&options).map(|()| 0),
        Command::Check(CheckCommand::Types { device }) => check::types(device.as_deref()).map(|()| 0),
        Command::Check(CheckCommand::Uapi { device }) => check::uapi(device.as_deref()).map(|()| 0),
        #[cfg(feature = "linux")]
        Command::Scx(command) => scx::scx(&command).map(|()| 0),
        #[cfg(feature = "linux")]
        Command::Guest { order } => guest::run(&order).map(|()| 0),
        Command::Worker { order } => worker::run(&order).map(|()| 0),
        Command::OnHostAgent { order } => worker::agent(&order).map(|()| 0),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // A closed stderr is no reason to panic on the way out.
            let _ = writeln!(io::stderr().lock(), "neap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what completes our commands in a shell: of the program that a package puts in place.
fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "neap", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Prints a result to stdout. A reader that has seen enough and gone is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("printing the result"),
        _ => Ok(()),
    }
}
