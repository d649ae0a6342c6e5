//! The command line.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use neap_abi::CPUS_MAX;

use crate::worker::{AgentOrder, Order};

/// Run scheduling policies as agents on the cores of an IPU.
#[derive(Debug, Parser)]
#[command(name = "neap", bin_name = "cargo neap", version, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the firmware on a virtual IPU and let it schedule a key-value store's requests
    ///
    /// Sets up what is missing (QEMU, the firmware's target), builds the firmware, starts the
    /// virtual IPU and a worker host of --cpus threads, loads a key-value store, and drives it with
    /// Poisson arrivals of real GETs. Each request is a task: it runs when and where the firmware's
    /// agent decides. Values are checked, tasks are counted, FIFO order is verified.
    ///
    /// Exits with 0 when every promise was kept; with 1 when a task was lost or ran twice, an order
    /// or a value was wrong, or a part of the run died; with 130 after Ctrl-C. The report says which
    /// in any case.
    #[command(verbatim_doc_comment)]
    Run(RunOptions),
    /// Print the firmware's log (defmt) of the running instance, or of the last run
    Log {
        /// Go on until the instance ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Show hello page, agent and epitaphs of the running instance, or of the last run
    Status {
        /// One JSON object instead of tables
        #[arg(long)]
        json: bool,
    },
    /// Be the worker host of a run
    #[command(hide = true)]
    Worker {
        /// What it is to do, in JSON: from our own hand, to our own hand
        order: Order,
    },
    /// Be the on-host agent of a run
    #[command(hide = true)]
    Agent {
        /// As the worker host's
        order: AgentOrder,
    },
}

/// Options of `neap run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// How long the load lasts
    #[arg(long, default_value_t = 10.0, allow_negative_numbers = true, value_parser = seconds)]
    pub seconds: f64,
    /// Which policy decides
    #[arg(long, default_value = "fifo", value_parser = ["fifo"])]
    pub policy: String,
    /// Host CPUs, each a thread of the worker host
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<u16>::new().range(1..=u64::from(CPUS_MAX)))]
    pub cpus: u16,
    /// Mean arrivals per second
    #[arg(long, default_value_t = 8000.0, allow_negative_numbers = true, value_parser = rate)]
    pub rate: f64,
    /// Where keys, arrivals and values come from: the same seed gives the same load
    /// [default: a random one, reported]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keys in the store
    #[arg(long, default_value_t = 100_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=20_000_000))]
    pub keys: u64,
    /// Requests whose task blocks for 100 to 300 µs between two GETs (TASK_BLOCKED, TASK_WAKEUP)
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT", allow_negative_numbers = true, value_parser = percent)]
    pub blocking: f64,
    /// Requests whose task yields between two GETs (TASK_YIELD)
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT", allow_negative_numbers = true, value_parser = percent)]
    pub yielding: f64,
    /// Cores of the IPU; core 0 supervises
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<u16>::new().range(2..=16))]
    pub cores: u16,
    /// Run the very same agent as a process on the host instead of in QEMU
    #[arg(long)]
    pub on_host: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write a page with latency curves and the timeline of queue depth
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

impl RunOptions {
    /// What no single option can tell.
    pub fn check(&self) -> anyhow::Result<()> {
        let both = self.blocking + self.yielding;
        anyhow::ensure!(
            both <= 100.0,
            "--blocking {} and --yielding {} are {both} % together; a request does one or the other: stay at or below 100",
            self.blocking,
            self.yielding
        );
        Ok(())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, 0.1, 86_400.0, "seconds")
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.1, 1e6, "requests per second")
}

fn percent(text: &str) -> Result<f64, String> {
    within(text, 0.0, 100.0, "percent")
}

fn within(text: &str, least: f64, most: f64, unit: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("give {least} to {most} {unit}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn options(line: &str) -> Result<RunOptions, String> {
        let words = ["neap", "run"].into_iter().chain(line.split_whitespace());
        match Arguments::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let run = options("").unwrap();
        assert_eq!((run.seconds, run.cpus, run.keys, run.cores), (10.0, 4, 100_000, 2));
        assert_eq!((run.policy.as_str(), run.seed, run.on_host, run.json), ("fifo", None, false, false));
        run.check().unwrap();
    }

    #[test]
    fn what_can_not_be_is_refused_with_what_can() {
        for (line, remedy) in [
            ("--seconds 0", "0.1 to 86400 seconds"),
            ("--seconds nan", "0.1 to 86400 seconds"),
            ("--seconds -3", "seconds"),
            ("--rate -5", "0.1 to 1000000 requests per second"),
            ("--rate 0", "0.1 to 1000000 requests per second"),
            ("--rate inf", "requests per second"),
            ("--cpus 0", "1..=256"),
            ("--cpus 257", "1..=256"),
            ("--cores 1", "2..=16"),
            ("--keys 0", "1..=20000000"),
            ("--blocking 101", "0 to 100 percent"),
            ("--policy lifo", "possible values: fifo"),
            ("--sed 3", "--seed"),
        ] {
            let error = options(line).unwrap_err();
            assert!(error.contains(remedy), "{line}: {error}");
        }
        let error = options("--blocking 60 --yielding 60").unwrap().check().unwrap_err().to_string();
        assert!(error.contains("120 %") && error.contains("at or below 100"), "{error}");
    }
}
