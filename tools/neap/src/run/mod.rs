//! `neap run`: the virtual IPU, the agent, the worker host and the load, from set-up to report.

mod live;
mod output;
mod parts;
mod qemu;
mod rundir;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xtask::firmware::{self, Kind};
use xtask::machine::WINDOW_BYTES;
use xtask::setup;

pub use rundir::alive;

use crate::args::RunOptions;
use crate::enclaves::{self, EnclaveAsked};
use crate::inspect::snapshot;
use crate::manage;
use crate::report::{Parameters, Record};
use output::PageFile;
use parts::Parts;
use rundir::RunDir;
use watch::{Signals, watch};

/// What the firmware writes to its console, in a run's directory.
pub const SERIAL: &str = "serial.log";

/// What a run writes down about itself, for `neap log` and `neap status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notes {
    /// Process id of `neap run`.
    pub pid: u32,
    /// On what it runs.
    pub ran_on: String,
    /// What was asked.
    pub parameters: Parameters,
}

/// Runs, reports, and returns the status to exit with.
pub fn run(options: &RunOptions) -> Result<u8> {
    options.check()?;
    let page = options.report.as_deref().map(PageFile::claim).transpose()?;
    let enclaves = options.enclaves();
    let mut policies: Vec<&str> = enclaves.iter().map(|enclave| enclave.policy.as_str()).collect();
    policies.dedup();
    let parameters = Parameters {
        policy: policies.join(", "),
        cpus: enclaves.iter().map(EnclaveAsked::count).sum(),
        watchdog_ms: options.watchdog_ms,
        // Each enclave's agent has cores of its own, beside the supervisor's.
        cores: options.cores.max(enclaves::cores(&enclaves)),
        // 32 bits are easy to type again, and exact in every reader of JSON.
        seed: options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
        seconds: options.seconds,
        rate: options.rate,
        keys: options.keys,
        blocking_percent: options.blocking,
        yielding_percent: options.yielding,
        on_host: options.on_host,
        enclaves,
    };
    let card = if options.on_host {
        None
    } else {
        setup::all()?;
        Some((setup::qemu()?, firmware::build(&Kind::Runtime)?.elf))
    };
    let ran_on = match &card {
        Some((program, _)) => format!("QEMU {}, TCG", qemu::version(program)?),
        None => "the host".to_owned(),
    };

    let agents = agents(&parameters)?;

    let signals = Signals::catch()?;
    let dir = RunDir::create(WINDOW_BYTES, parameters.enclaves.len())?;
    let notes = Notes { pid: std::process::id(), ran_on: ran_on.clone(), parameters: parameters.clone() };
    note(dir.path(), &notes, card.as_ref().map(|(_, elf)| elf.as_path()))?;
    let (end, measured) = {
        let mut parts = Parts::start(&dir, &parameters, card.as_ref(), agents)?;
        watch(&mut parts, &dir, &parameters, &signals)
    }?;
    if let Err(error) = snapshot::keep(dir.path()) {
        xtask::progress::say(&format!("neap: this run can't be kept for `neap log`: {error:#}"));
    }
    drop(dir);

    let record = Record { parameters, ran_on, end, measured };
    output::show(&record, options.json, page)?;
    Ok(record.exit_code())
}

/// The image of each enclave's agent, where it is not to be the bundle's.
fn agents(asked: &Parameters) -> Result<Vec<Option<PathBuf>>> {
    let image = |enclave: &EnclaveAsked| enclave.agent.as_deref().map(manage::image).transpose();
    asked.enclaves.iter().map(image).collect()
}

/// Writes the notes, and keeps the firmware that they speak of: a later build replaces it in its place.
fn note(dir: &Path, notes: &Notes, elf: Option<&Path>) -> Result<()> {
    if let Some(elf) = elf {
        fs::copy(elf, dir.join(snapshot::FIRMWARE)).context("keeping the firmware")?;
    }
    fs::write(dir.join(snapshot::NOTES), serde_json::to_vec(notes)?).context("writing the run's notes")
}
