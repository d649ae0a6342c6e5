//! The children of a run: the worker host with its store and its load, and the on-host agent.
//!
//! They talk in JSON lines on stdout and listen to single words on stdin; when that closes, the run is over.

pub mod arrivals;
pub mod gets;
mod managed;
pub mod merged;
mod mix;
pub mod store;

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use neap_abi::layout::TASKS_USUAL;
use neap_abi::{Clock, Message};
use neap_host::onhost;
use neap_host::policies::BUNDLED;
use neap_host::report::{Report, Snapshot};
use neap_host::sights::{SIGHTS_MAX, Sights};
use neap_host::trace::{Step, Trace};
use neap_host::worker::{Enclave, EnclaveConfig, Host, HostConfig, Work, with_host};
use serde::{Deserialize, Serialize};

use crate::enclaves::EnclaveAsked;
use crate::manage::Answer;
use crate::measured::Measured;
use crate::perfetto::{self, Held, Part};
use crate::report::Parameters;
use crate::trace;
use arrivals::Arrivals;
use gets::Gets;
use mix::mix;
use store::Store;

/// How long tasks that wait when the load is over may take. A queue that overload has filled is long, and only a task
/// that is forgotten is lost.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long the firmware may take to boot and answer.
const ATTACH: Duration = Duration::from_secs(60);
/// How long the trial of an agent may last that is there from the beginning.
const TRIAL: Duration = Duration::from_secs(5);
/// How often figures are told.
const TELL: Duration = Duration::from_millis(100);
/// The longest sleep of the load: a word is heard that soon.
const NAP: Duration = Duration::from_millis(20);
/// A request's number holds its enclave's above this bit: what it does is its own.
const ENCLAVE_SHIFT: u32 = 48;

/// What a worker host is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The enclaves' sockets.
    pub sockets: Vec<PathBuf>,
    /// Vectors of each peer.
    pub vectors: u16,
    /// The run's parameters.
    pub parameters: Parameters,
    /// The image of each enclave's agent, where it is not to be the bundle's.
    pub agents: Vec<Option<PathBuf>>,
    /// Where to write the first enclave's trace, if it is wanted.
    pub trace: Option<PathBuf>,
    /// Where to write the timeline, if it is wanted.
    pub timeline: Option<PathBuf>,
    /// Where to listen for `neap agent`.
    pub manage: PathBuf,
}

/// What on-host agents are to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentOrder {
    /// The enclaves' sockets.
    pub sockets: Vec<PathBuf>,
    /// Vectors of each peer.
    pub vectors: u16,
}

impl FromStr for Order {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

impl FromStr for AgentOrder {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// One of a command's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Its results.
    Out,
    /// Its remarks.
    Err,
}

/// What a worker host says, or a guest in its place.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
    /// The guest has booted.
    Booted {
        /// Its kernel's release.
        kernel: String,
    },
    /// Keys are being loaded.
    Loading {
        /// Loaded.
        keys: u64,
        /// To be loaded.
        of: u64,
    },
    /// It waits for the IPU.
    Attaching,
    /// The load is on: the figures so far, the queue's depth now as the only point of its timeline.
    Running(Box<Measured>),
    /// What the command wrote that is the load.
    Said {
        /// On which of its streams.
        stream: Stream,
        /// What.
        text: String,
    },
    /// What became of what a guest was asked about its agent.
    Answer(Answer),
    /// The load is over, tasks are not.
    Draining,
    /// All is over.
    Done(Box<Measured>),
    /// It could not run.
    Failed(String),
    /// What was asked can't be: nothing has failed.
    Refused(String),
}

/// The one word that a worker host understands: end the load, and report what was done.
pub const STOP: &str = "stop";

/// Is the worker host of a run.
pub fn run(order: &Order) -> Result<()> {
    let done = work(order);
    match &done {
        Ok(measured) => tell(&Line::Done(Box::new(measured.clone()))),
        Err(error) => tell(&Line::Failed(format!("{error:#}"))),
    }
    done.map(|_| ())
}

/// Is the on-host agents of a run, one for each enclave, until it is ended.
pub fn agent(order: &AgentOrder) -> Result<()> {
    let settings = onhost::Settings::usual(order.vectors);
    let (sender, ended) = mpsc::channel();
    for socket in order.sockets.clone() {
        let sender = sender.clone();
        thread::spawn(move || {
            // Nobody waits for a second: the first that ends is the end of all.
            let _ = sender.send(onhost::run(&socket, settings, || false));
        });
    }
    drop(sender);
    ended.recv().map_err(|_| anyhow!("the on-host agents panicked"))??;
    Ok(())
}

fn work(order: &Order) -> Result<Measured> {
    let asked = &order.parameters;
    // Leaked, as the listener outlives every scope: this process does one run and ends.
    let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    listen(stop);
    let store = Store::load(asked.keys, asked.seed, |keys| tell(&Line::Loading { keys, of: asked.keys }))?;
    let gets = Gets::new(store, asked);
    tell(&Line::Attaching);
    let config = HostConfig { cpus: asked.host_cpus(), tasks: TASKS_USUAL };
    let (driven, reports) = with_host(&config, &gets, |host| host_a_run(host, order, &gets, stop));
    let (offered, failed) = driven?;
    let mut measured = merged::measured(&reports, &asked.enclaves, &offered);
    measured.values_wrong = gets.wrong();
    measured.remarks.extend(failed);
    measured.remarks.extend(gets.first_wrong());
    if let Some(file) = &order.timeline {
        let part = |report: &Report| Some((report.enclave, report.policy.clone(), report.sights.clone()?));
        let parts: Vec<_> = reports.iter().filter_map(part).collect();
        measured.remarks.push(match write_timeline(file, &parts) {
            Ok(held) => format!("{}: {}", file.display(), held.in_words()),
            Err(error) => format!("{error:#}"),
        });
    }
    Ok(measured)
}

/// Writes what was seen, of each enclave by its number and its policy.
pub fn write_timeline(file: &Path, seen: &[(u16, String, Arc<Sights>)]) -> Result<Held> {
    let parts: Vec<_> =
        seen.iter().map(|(enclave, policy, sights)| Part { enclave: *enclave, policy, sights }).collect();
    File::create(file)
        .and_then(|to| perfetto::write(&parts, &mut BufWriter::new(to)))
        .with_context(|| format!("the timeline {} can't be written", file.display()))
}

/// Makes the enclaves, drives them until the load is over and waits for what is left. Returns how many arrivals each had,
/// and what failed without ending the run.
fn host_a_run(
    host: &Host<'_, Gets>,
    order: &Order,
    gets: &Gets,
    stop: &AtomicBool,
) -> Result<(Vec<u64>, Vec<String>)> {
    let asked = &order.parameters;
    let session = rand::random_range(1..u32::MAX / 2);
    let mut enclaves = Vec::new();
    for (share, socket) in asked.enclaves.iter().zip(&order.sockets) {
        let first = if asked.on_host { &share.policy } else { BUNDLED };
        let is_traced = order.trace.is_some() && enclaves.is_empty();
        let config = EnclaveConfig {
            policy: share.policy.clone(),
            first_policy: first.to_owned(),
            timeout: ATTACH,
            watchdog: Duration::from_millis(asked.watchdog_ms),
            // What is recorded has to rest on the messages alone.
            clock: if is_traced { Clock::Messages } else { Clock::Own },
            keeps_messages: is_traced,
            sights_max: if order.timeline.is_some() { sights_max(asked) } else { 0 },
            // None can take what the others need.
            tasks_max: TASKS_USUAL / asked.enclaves.len() as u32,
            ..EnclaveConfig::usual(socket, order.vectors, session, share.cpus())
        };
        let made = host.create_enclave(config);
        enclaves.push(made.with_context(|| format!("hosting enclave {}", enclaves.len()))?);
    }
    // An enclave that attaches anew has another link.
    let traced = enclaves.first().map(|enclave| enclave.link());
    let mut failed = Vec::new();
    for ((enclave, image), share) in enclaves.iter().zip(&order.agents).zip(&asked.enclaves) {
        let Some(image) = image else { continue };
        if share.agent.is_none() {
            let policy = &share.policy;
            let loaded = managed::replace(enclave, Some(image), TRIAL);
            loaded.with_context(|| format!("enclave {}: loading the agent of {policy}", enclave.id()))?;
            continue;
        }
        // One that fails its trial is what some runs are about.
        if let Err(error) = managed::replace(enclave, Some(image), TRIAL) {
            failed.push(format!("enclave {}: {error:#}", enclave.id()));
        }
    }
    let load = Duration::from_secs_f64(asked.seconds);
    let over = AtomicBool::new(false);
    let offered: Vec<AtomicU64> = enclaves.iter().map(|_| AtomicU64::new(0)).collect();
    let arrivals = enclaves.iter().zip(&asked.enclaves).map(|(enclave, share)| {
        let rate = asked.rate * f64::from(share.count()) / f64::from(asked.cpus);
        // The first has the run's own seed, so that an enclave that is alone has the load that it always had.
        let seed = if enclave.id() == 0 { asked.seed } else { mix(asked.seed, u64::from(enclave.id()), 0) };
        Arrivals::new(rate, seed)
    });
    let arrivals = arrivals.collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| tell_figures(&enclaves, &asked.enclaves, &over));
        let listening =
            scope.spawn(|| managed::listen(host, &order.manage, &|| over.load(Ordering::Relaxed)));
        let loads: Vec<_> = enclaves
            .iter()
            .zip(arrivals)
            .zip(&offered)
            .map(|((enclave, arrivals), offered)| {
                let first = u64::from(enclave.id()) << ENCLAVE_SHIFT;
                // A full table is counted by the host; an open load goes on.
                let submit = |number| {
                    let _ = enclave.submit_as(number, gets.nature(number));
                };
                scope.spawn(move || drive(submit, first, arrivals, load, stop, offered))
            })
            .collect();
        for load in loads {
            load.join().map_err(|_| anyhow!("the load panicked"))?;
        }
        over.store(true, Ordering::Relaxed);
        let heard = listening.join().map_err(|_| anyhow!("the ear for managers panicked"))?;
        failed.extend(heard.err().map(|error| format!("{error:#}")));
        anyhow::Ok(())
    })?;
    tell(&Line::Draining);
    host.drain(DRAIN);
    if let (Some(file), Some(link)) = (&order.trace, traced) {
        failed.extend(
            write_trace(file, asked, link.link().wire().kept_messages()).err().map(|e| format!("{e:#}")),
        );
    }
    Ok((offered.into_iter().map(AtomicU64::into_inner).collect(), failed))
}

/// Writes what the first enclave's agent was told. What it decided cannot be seen from here, line by line.
fn write_trace(file: &Path, asked: &Parameters, messages: Vec<Message>) -> Result<()> {
    let steps = messages.into_iter().map(|message| Step { message, decisions: Vec::new() }).collect();
    let policy = asked.enclaves.first().map(|first| first.policy.clone()).unwrap_or_default();
    let source = format!("neap run, seed {}", asked.seed);
    trace::write(&Trace { policy, cpus: asked.host_cpus(), source, steps }, file)
}

/// Sights kept of each enclave: what all keep together has a bound.
pub fn sights_max(asked: &Parameters) -> usize {
    SIGHTS_MAX / asked.enclaves.len().max(1)
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Submits a request at each arrival, numbered from `first` on, until the load's time is over or the run is; counts the
/// arrivals.
pub fn drive(
    submit: impl Fn(u64),
    first: u64,
    arrivals: Arrivals,
    load: Duration,
    stop: &AtomicBool,
    offered: &AtomicU64,
) {
    let start = Instant::now();
    for (number, at) in (first..).zip(arrivals.take_while(|at| *at < load)) {
        while let left = at.saturating_sub(start.elapsed())
            && !left.is_zero()
        {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(left.min(NAP));
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        submit(number);
        offered.fetch_add(1, Ordering::Relaxed);
    }
    while !stop.load(Ordering::Relaxed) && start.elapsed() < load {
        thread::sleep((load - start.elapsed().min(load)).min(NAP));
    }
}

/// Tells the figures until the load is `over`.
fn tell_figures(enclaves: &[Arc<Enclave>], asked: &[EnclaveAsked], over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let now: Vec<Snapshot> = enclaves.iter().map(|enclave| enclave.snapshot()).collect();
        tell(&Line::Running(Box::new(merged::so_far(&now, asked))));
        let told = Instant::now();
        while told.elapsed() < TELL && !over.load(Ordering::Relaxed) {
            thread::sleep(NAP);
        }
    }
}

/// Listens for the word, or for the parent's end.
fn listen(stop: &'static AtomicBool) {
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            match line {
                Ok(word) if word.trim() != STOP => {}
                _ => break,
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Tells the parent. One that is gone has ended us already, or is about to.
fn tell(line: &Line) {
    let mut out = io::stdout().lock();
    if let Ok(text) = serde_json::to_string(line) {
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}
