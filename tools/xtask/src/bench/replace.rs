//! `bench replace`: how long nobody decides while one agent takes over from another, in instructions of the agent's core.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use neap_abi::{ImageHeader, Reply, VERSION};
use neap_host::event::EventKind;
use neap_host::manager::ManageError;
use neap_host::window::HostWindow;
use neap_meter::record::{self, Record, Switch};
use serde::Serialize;

use super::lives::{self, Balance, CORES, ENCLAVES, Lives, PATIENCE, Subject};
use super::path::metered::{Parts, Places, RECORDS, meter_args, wait_for_hello};
use super::path::model::CLOCK_GHZ;
use crate::budget::Budget;
use crate::firmware::{self, Kind};
use crate::ipu::Ipu;
use crate::progress::Step;
use crate::setup;

/// The policy whose agents take over from each other.
const POLICY: &str = "fifo";
/// How long a newcomer has: under the meter all is slow.
const TRIAL: Duration = Duration::from_secs(10);
/// How long an agent may owe a decision, for the same reason.
const WATCHDOG: Duration = Duration::from_secs(5);
/// Where the runtime lends a core to an agent.
const ENTER_SYMBOL: &str = "neap_enter_agent";

/// Options of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// Replacements, one after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub replacements: u32,
    /// How it prints.
    #[command(flatten)]
    pub output: super::Output,
}

/// Instructions, of all replacements.
#[derive(Debug, Serialize)]
struct Spread {
    min: u64,
    median: u64,
    max: u64,
}

impl Spread {
    fn of(mut counts: Vec<u64>) -> Self {
        counts.sort_unstable();
        let at = |index: usize| counts.get(index).copied().unwrap_or(0);
        Self { min: at(0), median: at(counts.len() / 2), max: at(counts.len().saturating_sub(1)) }
    }
}

/// The measurement, with the keys of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    policy: &'static str,
    replacements: u32,
    /// From the last time that the agent before looked for a message to the newcomer's first decision, on their core.
    blackout_instructions: Spread,
    /// From its last decision: it may have had nothing to decide for a while before it was asked.
    silence_instructions: Spread,
    /// Of these, from the newcomer's first instruction on: the resync and its first decision.
    start_instructions: Spread,
    blackout_instructions_max: u64,
    blackout_instructions_budget: u64,
    /// The longest at one instruction a cycle.
    modelled_us_max: f64,
    label: String,
    /// A newcomer whose first instruction is undefined: whether the agent before it came back.
    rolled_back: bool,
    rollbacks: u32,
    rollback_cause: String,
    #[serde(flatten)]
    balance: Balance,
}

/// Replaces agents under the meter and checks the blackout against `blackout_instructions_max`.
///
/// # Errors
/// A blackout outside its budget; something was lost, ran twice or leaked; a faulty newcomer that stayed.
pub fn run(options: Options) -> Result<()> {
    let budget = Budget::load()?;
    let qemu = setup::qemu()?;
    let runtime = firmware::build(&Kind::Runtime)?;
    let agent = firmware::agent(POLICY)?;
    let image = fs::read(&agent.image).with_context(|| format!("{} can't be read", agent.image.display()))?;
    let parts = Parts::new(qemu.clone(), runtime.elf.clone(), agent.elf)?;
    let enter = symbol(&runtime.elf, ENTER_SYMBOL)?;
    let places = {
        let ipu = Ipu::boot(&qemu, &runtime.elf, CORES, ENCLAVES)?;
        let window = HostWindow::new(ipu.window(lives::SUBJECT).map()?);
        Places::of(&wait_for_hello(&window, || Ok(()))?)?
    };
    let mut step = Step::start(format!("replacing an agent {} times", options.replacements));
    let mut records = None;
    let ipu = Ipu::boot_with(&qemu, &runtime.elf, CORES, ENCLAVES, &[], |directory| {
        let out = directory.join(RECORDS);
        records = Some(out.clone());
        let args = neap_meter::args::MeterArgs { enter, ..meter_args(&parts, &places, out) };
        format!("{},{args}", parts.plugin().display())
    })?;
    let records = records.context("a machine has a directory")?;
    let lives = lives::run(ipu, WATCHDOG, |subject, _| {
        for number in 0..options.replacements {
            replace(subject).with_context(|| format!("replacement {number} of {}", options.replacements))?;
            step.note(&format!("{} of {}", number + 1, options.replacements));
            step.tick();
        }
        // What is measured is written down before anything goes wrong on purpose.
        let switches = switches(&records)?;
        let cause = fail(subject, &image)?;
        anyhow::Ok((switches, cause, subject.books()?.rollbacks))
    })?;
    step.done();
    let report = Report::new(lives, &options, &budget)?;
    if options.output.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    report.check()
}

/// Has the bundle's agent take over from the one that runs, and waits until it has decided.
fn replace(subject: &mut Subject) -> Result<()> {
    let link = subject.enclave.link();
    let manager = link.manager().context("this IPU's agents can't be managed")?;
    let before = manager.list().running.context("no agent runs")?.incarnation;
    manager.replace(POLICY, TRIAL, PATIENCE)?;
    subject.wait_for(
        "decision of the newcomer",
        |kind| matches!(kind, EventKind::FirstDecision { incarnation } if incarnation > before),
    )?;
    Ok(())
}

/// Has a newcomer take over that faults at once; the cause for which it was rolled back.
fn fail(subject: &mut Subject, image: &[u8]) -> Result<String> {
    let link = subject.enclave.link();
    let manager = link.manager().context("this IPU's agents can't be managed")?;
    let before = manager.list().running.context("no agent runs")?.incarnation;
    manager.load(Some(&undefined_at_entry(image)?), "", PATIENCE)?;
    let detail = match manager.replace("", TRIAL, PATIENCE) {
        Err(ManageError::Answered { reply: Reply::RolledBack, detail, .. }) => detail,
        other => bail!("a newcomer that faults at once was to be rolled back, and: {other:?}"),
    };
    subject.wait_for(
        "decision of the agent before",
        |kind| matches!(kind, EventKind::FirstDecision { incarnation } if incarnation > before + 1),
    )?;
    let cause = u8::try_from(detail).ok().and_then(neap_abi::Cause::from_bits);
    Ok(cause.map_or("none", neap_abi::Cause::name).to_owned())
}

/// The image with an undefined instruction where it starts, sealed anew.
fn undefined_at_entry(image: &[u8]) -> Result<Vec<u8>> {
    let header = ImageHeader::check(image, VERSION)?;
    let segment = header
        .segments()
        .iter()
        .find(|segment| (segment.address..segment.address + segment.file_bytes).contains(&header.entry))
        .context("an image's entry is in a segment")?;
    let at = (segment.file_offset + header.entry - segment.address) as usize;
    let mut faulty = image.to_vec();
    // UDF #0 (Arm DDI 0487, C6.2).
    faulty[at..at + 4].fill(0);
    header.write(&mut faulty);
    Ok(faulty)
}

fn switches(records: &std::path::Path) -> Result<Vec<Switch>> {
    let bytes = fs::read(records).context("the meter left no records: QEMU did not load it")?;
    let all = record::read(&bytes)?;
    Ok(all
        .into_iter()
        .filter_map(|record| if let Record::Switch(switch) = record { Some(switch) } else { None })
        .collect())
}

/// The address of a symbol.
fn symbol(elf: &std::path::Path, name: &str) -> Result<u64> {
    use object::{Object, ObjectSymbol};
    let bytes = fs::read(elf).with_context(|| format!("{} can't be read", elf.display()))?;
    let file = object::File::parse(&*bytes).context("the firmware is no ELF")?;
    let found = file.symbols().find(|symbol| symbol.name() == Ok(name));
    Ok(found.with_context(|| format!("the firmware has no symbol {name}"))?.address())
}

impl Report {
    fn new(lives: Lives<(Vec<Switch>, String, u32)>, options: &Options, budget: &Budget) -> Result<Self> {
        let (switches, rollback_cause, rollbacks) = lives.done;
        ensure!(
            switches.len() == options.replacements as usize,
            "{} replacements, and the meter saw {} newcomers decide",
            options.replacements,
            switches.len()
        );
        let blackout = Spread::of(switches.iter().map(|switch| switch.blackout).collect());
        Ok(Self {
            bench: "replace",
            policy: POLICY,
            replacements: options.replacements,
            blackout_instructions_max: blackout.max,
            blackout_instructions_budget: budget.blackout_instructions_max,
            modelled_us_max: blackout.max as f64 / CLOCK_GHZ / 1e3,
            label: format!("modelled: one instruction a cycle at {CLOCK_GHZ} GHz"),
            blackout_instructions: blackout,
            silence_instructions: Spread::of(switches.iter().map(|switch| switch.silence).collect()),
            start_instructions: Spread::of(switches.iter().map(|switch| switch.start).collect()),
            rolled_back: rollbacks == 1,
            rollbacks,
            rollback_cause,
            balance: lives.balance,
        })
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.blackout_instructions_max <= self.blackout_instructions_budget,
            "a blackout of {} instructions, blackout_instructions_max is {}",
            self.blackout_instructions_max,
            self.blackout_instructions_budget
        );
        self.balance.check(self)?;
        ensure!(self.balance.fifo_violations == 0, "the order was broken: {self}");
        ensure!(self.rolled_back, "{} newcomers were rolled back, not one: {self}", self.rollbacks);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { min, median, max } = &self.blackout_instructions;
        writeln!(f, "{} agents replaced under load", self.replacements)?;
        writeln!(
            f,
            "  nobody decided for {min} to {max} instructions of the core, {median} in the middle; budget {}",
            self.blackout_instructions_budget
        )?;
        writeln!(f, "  {:.1} µs at most ({})", self.modelled_us_max, self.label)?;
        let Spread { min, median, max } = &self.start_instructions;
        writeln!(f, "  of these {min} to {max} since the newcomer's start, {median} in the middle")?;
        writeln!(f, "  a faulty newcomer was rolled back for: {}", self.rollback_cause)?;
        writeln!(
            f,
            "  {} tasks created, {} finished, {} lost, {} doubled, {} out of order",
            self.balance.tasks_created,
            self.balance.tasks_finished,
            self.balance.tasks_lost,
            self.balance.tasks_doubled,
            self.balance.fifo_violations
        )?;
        writeln!(
            f,
            "  {} cores leaked, {} pages leaked",
            self.balance.cores_leaked, self.balance.pages_leaked
        )
    }
}
