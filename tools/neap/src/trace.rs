//! `neap trace`: recording what an agent is told and decides, and telling it again elsewhere.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{self, Path};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use neap_host::trace::Trace;
use neap_sim::trace::Recording;
use serde::Serialize;
use xtask::homes::{Home, Homes};
use xtask::progress::Step;

use crate::args::{RecordOptions, ReplayOptions, TraceCommand, TraceOptions};
use crate::inspect::snapshot::Snapshot;
use crate::manage::{self, Answer, Asked};
use crate::perfetto::Held;
use crate::run::output;
use crate::sim;

/// What became of a trace in one home.
#[derive(Debug, Serialize)]
struct Replayed {
    home: &'static str,
    decisions: usize,
    /// The first message after which it decided otherwise, from 0 on.
    differs_at: Option<usize>,
}

/// What became of it in all that were asked for.
#[derive(Debug, Serialize)]
struct Report {
    policy: String,
    cpus: u16,
    source: String,
    messages: usize,
    /// Decisions in the trace; where it has none, the first home's are compared with.
    decisions: usize,
    homes: Vec<Replayed>,
    same: bool,
}

/// Does what is asked; the exit status.
pub fn trace(options: &TraceOptions) -> Result<u8> {
    match (&options.command, &options.perfetto) {
        (Some(TraceCommand::Record(options)), _) => record(options).map(|()| 0),
        (Some(TraceCommand::Replay(options)), _) => replay(options),
        (None, Some(file)) => watch(file, options.seconds).map(|()| 0),
        (None, None) => bail!("say what to trace: record, replay or --perfetto FILE"),
    }
}

/// Has the running instance's host keep what it sees for a while, and write it to a file.
fn watch(file: &Path, seconds: f64) -> Result<()> {
    let running = Snapshot::running();
    let dir = running.context("nothing runs that could be watched; start a run with `cargo neap run`")?.dir;
    // The host writes it, from wherever it stands.
    let path = path::absolute(output::claim("--perfetto", file)?).context("the timeline's place")?;
    let asked = |asked: &Asked| match manage::ask(&dir, asked)? {
        Answer::Done(value) => Ok(value),
        Answer::Failed(words) => bail!("{words}"),
    };
    asked(&Asked::Watch { seconds })?;
    let mut step = Step::start(format!("watching for {seconds} s"));
    let began = Instant::now();
    let lasts = Duration::from_secs_f64(seconds);
    while began.elapsed() < lasts {
        step.tick();
        thread::sleep(Duration::from_millis(50).min(lasts.saturating_sub(began.elapsed())));
    }
    step.done();
    let held: Held = serde_json::from_value(asked(&Asked::Seen { file: path })?)
        .context("the host is of another release of neap; use that")?;
    crate::print(&format!("{}: {}", file.display(), held.in_words()))
}

fn record(options: &RecordOptions) -> Result<()> {
    let policy = sim::policy(&options.policy)?;
    let &RecordOptions { cpus, requests, seed, .. } = options;
    let trace = Recording { policy, cpus, requests, seed }.take();
    write(&trace, &options.file)?;
    crate::print(&format!(
        "{}: {} messages and {} decisions of {} on {} CPUs",
        options.file.display(),
        trace.steps.len(),
        trace.decisions(),
        trace.policy,
        trace.cpus
    ))
}

/// Writes a trace to a file.
pub fn write(trace: &Trace, file: &Path) -> Result<()> {
    File::create(file)
        .and_then(|to| trace.write(BufWriter::new(to)))
        .with_context(|| format!("{} can't be written", file.display()))
}

fn read(file: &Path) -> Result<Trace> {
    let from = File::open(file).with_context(|| format!("{} can't be read", file.display()))?;
    Trace::read(BufReader::new(from)).with_context(|| file.display().to_string())
}

fn replay(options: &ReplayOptions) -> Result<u8> {
    let mut trace = read(&options.file)?;
    let asked = match options.home.as_str() {
        "all" => Home::ALL.to_vec(),
        name => match Home::named(name) {
            Some(home) => vec![home],
            None => bail!("there is no home {name}: {} and all are", Home::ALL.map(Home::name).join(", ")),
        },
    };
    let (messages, decisions) = (trace.steps.len(), trace.decisions());
    let mut homes = Homes::default();
    let mut replayed = Vec::new();
    for home in asked {
        let mut step = Step::start(format!("replaying {} in home {}", options.file.display(), home.name()));
        let decided =
            homes.replay(home, &trace, &mut |done| step.note(&format!("{done} of {messages} messages")))?;
        step.done();
        if trace.decisions() == 0 {
            // Recorded where decisions can't be seen.
            for (step, decided) in trace.steps.iter_mut().zip(&decided) {
                step.decisions.clone_from(decided);
            }
        }
        let decisions = decided.iter().map(Vec::len).sum();
        replayed.push(Replayed { home: home.name(), decisions, differs_at: trace.differs_at(&decided) });
    }
    let same = replayed.iter().all(|home| home.differs_at.is_none());
    let Trace { policy, cpus, source, .. } = trace;
    let report = Report { policy, cpus, source, messages, decisions, homes: replayed, same };
    crate::print(&if options.json { serde_json::to_string_pretty(&report)? } else { table(&report) })?;
    Ok(u8::from(!same))
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["home", "decisions", ""]);
    for home in &report.homes {
        table.add_row([
            home.home.to_owned(),
            home.decisions.to_string(),
            match home.differs_at {
                None => "the same".to_owned(),
                Some(at) => format!("differs after message {at}"),
            },
        ]);
    }
    let Report { policy, cpus, source, messages, decisions, .. } = report;
    format!(
        "{policy} on {cpus} CPUs, recorded by {source}: {messages} messages, {decisions} decisions\n{table}"
    )
}
