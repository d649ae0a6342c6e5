//! The children of a run: the worker host with its store and its load, and the on-host agent.
//!
//! They talk in JSON lines on stdout and listen to single words on stdin; when that closes, the run is over.

mod arrivals;
mod gets;
mod mix;
mod store;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use neap_abi::VERSION;
use neap_host::link::Attachment;
use neap_host::onhost;
use neap_host::report::{EpitaphReport, Latency, Report, Snapshot};
use neap_host::worker::{Config, Work, WorkerHost, host};
use serde::{Deserialize, Serialize};

use crate::measured::{Distribution, Measured};
use crate::report::Parameters;
use arrivals::Arrivals;
use gets::Gets;
use mix::mix;
use store::Store;

/// How long tasks that wait when the load is over may take. A queue that overload has filled is long, and only a task
/// that a living agent forgets is lost.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long the firmware may take to boot and answer.
const ATTACH: Duration = Duration::from_secs(60);
/// How often figures are told.
const TELL: Duration = Duration::from_millis(100);
/// The longest sleep of the load: a word is heard that soon.
const NAP: Duration = Duration::from_millis(20);

/// What a worker host is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The enclave's socket.
    pub socket: PathBuf,
    /// Vectors of each peer.
    pub vectors: u16,
    /// The run's parameters.
    pub parameters: Parameters,
}

/// What an on-host agent is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentOrder {
    /// The enclave's socket.
    pub socket: PathBuf,
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

/// What a worker host says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Line {
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
    /// The load is over, tasks are not.
    Draining,
    /// All is over.
    Done(Box<Measured>),
    /// It could not run.
    Failed(String),
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

/// Is the on-host agent of a run, until it is ended.
pub fn agent(order: &AgentOrder) -> Result<()> {
    Ok(onhost::run(&order.socket, onhost::Settings::usual(order.vectors), || false)?)
}

fn work(order: &Order) -> Result<Measured> {
    let asked = &order.parameters;
    // Leaked, as the listener outlives every scope: this process does one run and ends.
    let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    listen(stop);
    let store = Store::load(asked.keys, asked.seed, |keys| tell(&Line::Loading { keys, of: asked.keys }))?;
    let gets = Gets::new(store, asked);
    let config = Config {
        attachment: Attachment {
            cpus: asked.cpus,
            session: rand::random_range(1..u32::MAX),
            policy: asked.policy.clone(),
            version: VERSION,
            timeout: ATTACH,
        },
        vectors: order.vectors,
        drain: DRAIN,
    };
    tell(&Line::Attaching);
    let arrivals = Arrivals::new(asked.rate, asked.seed)?;
    let load = Duration::from_secs_f64(asked.seconds);
    let mut offered = 0;
    let report = host(&order.socket, &config, &gets, |host| {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| tell_figures(host, stop, &over));
            offered = drive(host, arrivals, load, stop);
            over.store(true, Ordering::Relaxed);
        });
        tell(&Line::Draining);
    })
    .context("hosting")?;
    let mut measured = measured(report, offered);
    measured.values_wrong = gets.wrong();
    measured.remarks.extend(gets.first_wrong());
    Ok(measured)
}

/// Creates a task at each arrival, until the load's time is over or the run is; returns how many arrivals there were.
fn drive<W: Work>(host: &WorkerHost<'_, W>, arrivals: Arrivals, load: Duration, stop: &AtomicBool) -> u64 {
    let start = Instant::now();
    let mut offered = 0;
    for at in arrivals.take_while(|at| *at < load) {
        while let left = at.saturating_sub(start.elapsed())
            && !left.is_zero()
        {
            if stop.load(Ordering::Relaxed) {
                return offered;
            }
            thread::sleep(left.min(NAP));
        }
        if stop.load(Ordering::Relaxed) {
            return offered;
        }
        // A full table is counted by the host; an open load goes on.
        let _ = host.submit(offered);
        offered += 1;
    }
    while !stop.load(Ordering::Relaxed) && start.elapsed() < load {
        thread::sleep((load - start.elapsed().min(load)).min(NAP));
    }
    offered
}

/// Tells the figures until the load is `over`; ends the load when the agent has ended.
fn tell_figures<W: Work>(host: &WorkerHost<'_, W>, stop: &AtomicBool, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let now = host.snapshot();
        if !now.agent_alive {
            stop.store(true, Ordering::Relaxed);
        }
        tell(&Line::Running(Box::new(so_far(&now))));
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

fn so_far(now: &Snapshot) -> Measured {
    Measured {
        elapsed_s: now.elapsed_ms as f64 / 1e3,
        requests_offered: now.tasks_created,
        decisions: now.decisions,
        tasks_created: now.tasks_created,
        tasks_finished: now.tasks_finished,
        queue_depth: vec![(now.elapsed_ms, now.queue_depth)],
        request: Distribution {
            count: now.tasks_finished,
            p50: now.request_p50_us,
            p99: now.request_p99_us,
            ..Distribution::default()
        },
        ..Measured::default()
    }
}

fn measured(report: Report, requests_offered: u64) -> Measured {
    Measured {
        elapsed_s: report.seconds,
        requests_offered,
        requests_refused: report.tasks_rejected,
        values_wrong: 0,
        decisions: report.decisions,
        outcomes: report.outcomes,
        prestage_hits: report.prestage_hits,
        prestage_misses: report.prestage_misses,
        round_trip: distribution(report.round_trip),
        request: distribution(report.request),
        tasks_created: report.tasks_created,
        tasks_finished: report.tasks_finished,
        tasks_lost: report.tasks_lost,
        tasks_doubled: report.tasks_doubled,
        fifo_violations: report.fifo_violations,
        resyncs: report.resyncs,
        messages: report.messages,
        messages_dropped: report.messages_dropped,
        messages_unknown: report.messages_unknown,
        doorbells: report.doorbells,
        agent_wakeups: report.agent_wakeups,
        queue_depth: report.queue_depth,
        agent_ended: report.agent_ended,
        epitaphs: report.epitaphs.iter().map(epitaph).collect(),
        remarks: Vec::new(),
    }
}

fn distribution(latency: Latency) -> Distribution {
    Distribution {
        count: latency.count,
        mean: latency.mean_us,
        p50: latency.p50_us,
        p90: latency.p90_us,
        p99: latency.p99_us,
        p999: latency.p99_9_us,
        max: latency.max_us,
        curve: latency.cdf,
    }
}

fn epitaph(epitaph: &EpitaphReport) -> String {
    let EpitaphReport { core, cause, text, place, messages } = epitaph;
    format!("core {core} ended by {cause} at {place} after {messages} messages: {text}")
}
