//! `neap run`: the virtual IPU, the agent, the host and the load, from set-up to report.

mod kill;
mod linux;
mod live;
pub mod output;
mod parts;
mod qemu;
mod rundir;
mod watch;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use neap_host::policies::BUNDLED;
use serde::{Deserialize, Serialize};
use xtask::card_disk::Disk;
use xtask::firmware::{self, Kind};
use xtask::linux::Kit;
use xtask::machine::WINDOW_BYTES;
use xtask::setup;

pub use linux::console as guest_console;
pub use rundir::alive;

use crate::args::RunOptions;
use crate::enclaves::EnclaveAsked;
use crate::inspect::snapshot;
use crate::manage;
use crate::report::{HostKind, Parameters, Record};
use crate::worker::Stream;
use output::PageFile;
use parts::{Booted, Parts, Programs};
use rundir::RunDir;
use watch::{Ended, Signals, watch};

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
    let parameters = options.parameters();
    let trace = options.trace.as_deref().map(|path| output::claim("--trace", path)).transpose()?;
    let timeline = options.perfetto.as_deref().map(|path| output::claim("--perfetto", path)).transpose()?;
    let programs = Programs { trace, timeline, ..programs(&parameters, options.disk.as_deref())? };
    let ran_on = ran_on(&programs)?;

    let signals = Signals::catch()?;
    let dir = RunDir::create(WINDOW_BYTES, parameters.enclaves.len())?;
    let notes = Notes { pid: std::process::id(), ran_on: ran_on.clone(), parameters: parameters.clone() };
    let elf = match &programs.card {
        Some((_, Booted::Firmware(elf))) => Some(elf.as_path()),
        _ => None,
    };
    note(dir.path(), &notes, elf)?;
    let results = if options.json { Stream::Err } else { Stream::Out };
    let Ended { end, mut measured, kernel } = {
        let mut parts = Parts::start(&dir, &parameters, &programs)?;
        watch(&mut parts, &dir, &parameters, &signals, results)
    }?;
    let ran_on = match kernel {
        Some(kernel) => format!("{ran_on}; Linux {kernel}"),
        None => ran_on,
    };
    if parameters.host == HostKind::Linux {
        linux::add_from_window(dir.path(), &mut measured);
    }
    if let Err(error) = snapshot::keep(dir.path()) {
        xtask::progress::say(&format!("neap: this run can't be kept for `neap log`: {error:#}"));
    }
    drop(dir);

    let record = Record { parameters, ran_on, end, measured };
    output::show(&record, options.json, page)?;
    Ok(record.exit_code())
}

/// Sets up what is missing, and builds what the run is started with.
fn programs(asked: &Parameters, disk: Option<&Path>) -> Result<Programs> {
    let card = match disk {
        _ if asked.on_host => None,
        Some(disk) => {
            setup::all()?;
            Some((setup::qemu()?, of_disk(disk)?))
        }
        None => {
            setup::all()?;
            Some((setup::qemu()?, Booted::Firmware(firmware::build(&Kind::Runtime)?.elf)))
        }
    };
    let guest = match asked.host {
        HostKind::Worker => None,
        HostKind::Linux => Some(Kit::stock()?),
    };
    Ok(Programs { card, guest, agents: agents(asked)?, trace: None, timeline: None })
}

/// A card's disk, and beside it what its UEFI keeps: empty at first.
fn of_disk(disk: &Path) -> Result<Booted> {
    let file = File::options().read(true).write(true).open(disk);
    let file = file.with_context(|| format!("{} can't be opened", disk.display()))?;
    Disk::open(file)
        .with_context(|| format!("{} is no card's disk; `neap image disk` makes one", disk.display()))?;
    let setup::Uefi { code, vars } = setup::uefi()?;
    let mut variables = disk.as_os_str().to_owned();
    variables.push(".variables");
    let variables = PathBuf::from(variables);
    if !variables.exists() {
        fs::copy(&vars, &variables).with_context(|| format!("{} can't be made", variables.display()))?;
    }
    Ok(Booted::Disk { disk: disk.to_owned(), variables, code })
}

/// On what a run is to run, for people.
fn ran_on(programs: &Programs) -> Result<String> {
    let Some((card, _)) = &programs.card else { return Ok("the host".to_owned()) };
    let card = qemu::version(card)?;
    Ok(match &programs.guest {
        Some(kit) => format!("QEMU {card} (IPU) and {} (x86-64 guest), TCG", qemu::version_of(kit.qemu())?),
        None => format!("QEMU {card}, TCG"),
    })
}

/// The image of each enclave's agent, where it is not to be the bundle's.
fn agents(asked: &Parameters) -> Result<Vec<Option<PathBuf>>> {
    // An agent on the host is there for each policy; the firmware brings one.
    let brought = |policy: &str| asked.on_host || policy == BUNDLED;
    let image = |enclave: &EnclaveAsked| {
        let policy = Some(enclave.policy.as_str()).filter(|policy| !brought(policy));
        enclave.agent.as_deref().or(policy).map(manage::image).transpose()
    };
    asked.enclaves.iter().map(image).collect()
}

/// Writes the notes, and keeps the firmware that they speak of: a later build replaces it in its place.
fn note(dir: &Path, notes: &Notes, elf: Option<&Path>) -> Result<()> {
    if let Some(elf) = elf {
        fs::copy(elf, dir.join(snapshot::FIRMWARE)).context("keeping the firmware")?;
    }
    fs::write(dir.join(snapshot::NOTES), serde_json::to_vec(notes)?).context("writing the run's notes")
}
