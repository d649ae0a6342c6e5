//! Watching a run: its figures, its parts' lives, and the user's signals.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::kill::Kill;
use super::live::Live;
use super::parts::Parts;
use super::rundir::RunDir;
use crate::children::in_words;
use crate::inspect::snapshot;
use crate::measured::Measured;
use crate::report::{End, HostKind, Parameters};
use crate::worker::{DRAIN, Line, Stream};

/// How long the parts may take until the load begins, without a word from the host.
const BEGIN: Duration = Duration::from_secs(90);
/// How much longer than load and drain the worker host may take with its report.
const SLACK: Duration = Duration::from_secs(20);
/// How long a guest may say nothing under its load, whose end may be its own to choose.
const GUEST_SILENCE: Duration = Duration::from_secs(90);
/// How long a host without an agent may take with its report.
const LAST_REPORT: Duration = Duration::from_secs(10);
/// How much longer a guest may take, which has a scheduler to detach and a driver to unload.
const GUEST_LAST_REPORT: Duration = Duration::from_secs(60);
/// How often children are looked at.
const TICK: Duration = Duration::from_millis(50);

/// The signals that ask for an end.
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Takes SIGINT, SIGTERM and SIGHUP from here on.
    pub fn catch() -> Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&caught), signal as usize)
                .context("catching signals")?;
        }
        Ok(Self(caught))
    }

    /// The number of one that has come since the last call.
    fn taken(&self) -> Option<i32> {
        match self.0.swap(0, Ordering::SeqCst) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub end: End,
    /// Its figures.
    pub measured: Measured,
    /// The release of its guest's kernel, if it had one.
    pub kernel: Option<String>,
}

/// Follows a run to its end, whatever ends it, and stops its parts. A command's results go to `results`.
///
/// An error is a run of which there is nothing to report: it never came to its load.
pub fn watch(
    parts: &mut Parts,
    dir: &RunDir,
    asked: &Parameters,
    signals: &Signals,
    results: Stream,
) -> Result<Ended> {
    let live = Live::new(results);
    let kill = asked.kill_agent_after_s.map(|after_s| Kill::planned(dir.path(), after_s));
    let mut run = Watched {
        parts,
        dir: dir.path(),
        live,
        kill,
        asked,
        kernel: None,
        started: None,
        last: None,
        done: false,
    };
    let end = run.follow(signals);
    let Watched { last, live, done, kernel, kill, .. } = run;
    drop(live);
    parts.stop(done);
    let ended = |end, measured| Ok(Ended { end, measured, kernel });
    match (end?, last) {
        (end, Some(mut measured)) => {
            measured.remarks.extend(kill.map(Kill::in_words));
            ended(end, measured)
        }
        // Interrupted before its load: a report of nothing done.
        (End::Interrupted(signal), None) => ended(End::Interrupted(signal), Measured::default()),
        (End::Broken(words), None) => bail!("{words} before the load began{}", parts.last_words()),
        (End::Complete, None) => {
            let (host, dir) = (parts.host_name, dir.path().display());
            bail!("{host} in {dir} ended without a report{}", parts.last_words())
        }
    }
}

/// A run under way.
struct Watched<'p> {
    parts: &'p mut Parts,
    dir: &'p Path,
    live: Live,
    asked: &'p Parameters,
    /// The agent's end, if it is asked for.
    kill: Option<Kill>,
    /// The guest's kernel.
    kernel: Option<String>,
    /// When the load began.
    started: Option<Instant>,
    /// The newest figures.
    last: Option<Measured>,
    /// Whether those are the final ones.
    done: bool,
}

impl Watched<'_> {
    fn follow(&mut self, signals: &Signals) -> Result<End> {
        let is_guest = self.asked.host == HostKind::Linux;
        let load = Duration::from_secs_f64(self.asked.seconds) + DRAIN + SLACK;
        let last_report = if is_guest { GUEST_LAST_REPORT } else { LAST_REPORT };
        let host = self.parts.host_name;
        let mut heard = Instant::now();
        loop {
            if self.hear()? {
                heard = Instant::now();
            }
            if self.done {
                return Ok(self.end());
            }
            if let Some(signal) = signals.taken() {
                self.live.phase("ending the run", "");
                self.parts.ask_for_report();
                self.await_report(DRAIN + last_report, signals)?;
                return Ok(End::Interrupted(signal));
            }
            if let Some(status) = self.parts.agent.ended() {
                let when = self.when();
                self.parts.ask_for_report();
                self.await_report(last_report, signals)?;
                let words = format!("{} {} {when}", self.parts.agent_name, in_words(status));
                return Ok(End::Broken(self.with_unfinished(words)));
            }
            if let Some(status) = self.parts.host.ended() {
                let when = self.when();
                // It may have said its last before it went.
                self.await_report(TICK, signals)?;
                if self.done {
                    return Ok(self.end());
                }
                let words = format!("{host} {} {when}", in_words(status));
                let by = if self.last.is_some() { " by what it last told" } else { "" };
                return Ok(End::Broken(self.with_unfinished(words) + by));
            }
            match self.started {
                Some(started) if !is_guest && started.elapsed() > load => {
                    let words = format!("{host} gave no report {} s after its time", SLACK.as_secs());
                    return Ok(End::Broken(self.with_unfinished(words)));
                }
                Some(_) if is_guest && heard.elapsed() > GUEST_SILENCE => {
                    let words = format!("the guest said nothing for {} s", GUEST_SILENCE.as_secs());
                    return Ok(End::Broken(self.with_unfinished(words) + &self.parts.last_words()));
                }
                Some(started) => {
                    if let Some(kill) = &mut self.kill {
                        kill.look(started.elapsed());
                    }
                }
                None if heard.elapsed() > BEGIN => {
                    bail!(
                        "nothing has happened for {} s before the load began{}",
                        BEGIN.as_secs(),
                        self.parts.last_words()
                    );
                }
                _ => {}
            }
        }
    }

    /// Takes what the host says within a tick; whether it said anything.
    fn hear(&mut self) -> Result<bool> {
        let line = match self.parts.lines.recv_timeout(TICK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(TICK);
                return Ok(false);
            }
        };
        match line {
            Line::Loading { keys, of } => {
                self.live.phase("loading the store", &format!("{} %", 100 * keys / of.max(1)));
            }
            Line::Attaching => self.live.phase("waiting for the agent", ""),
            Line::Running(measured) => {
                self.started.get_or_insert_with(Instant::now);
                self.live.figures(&measured);
                self.show(&measured);
                self.take(*measured);
            }
            Line::Booted { kernel } => {
                self.live.phase("Linux is up", &kernel);
                self.kernel = Some(kernel);
            }
            Line::Said { stream, text } => self.live.said(stream, &text),
            // The ear takes those.
            Line::Answer(_) => {}
            Line::Draining => self.live.phase("waiting for the last tasks", ""),
            Line::Done(measured) => {
                self.show(&measured);
                self.last = Some(*measured);
                self.done = true;
            }
            Line::Refused(words) => bail!("{words}"),
            Line::Failed(words) => {
                // A dead agent is why it failed, more often than not: then that is the news.
                if let Some(status) = self.parts.agent.wait(Duration::from_millis(200)) {
                    bail!(
                        "{} {}, and {} gave up: {words}{}",
                        self.parts.agent_name,
                        in_words(status),
                        self.parts.host_name,
                        self.parts.last_words()
                    );
                }
                let host = if self.kernel.is_some() { "the guest" } else { self.parts.host_name };
                bail!("{host} gave up: {words}{}", self.parts.last_words());
            }
        }
        Ok(true)
    }

    /// Lays figures out for whoever looks at the run. That nobody can is no reason to end it.
    fn show(&self, measured: &Measured) {
        let _ = snapshot::note_figures(self.dir, measured);
    }

    /// Takes figures so far, and goes on with the queue's timeline: should the host die, this is its report.
    fn take(&mut self, mut measured: Measured) {
        if let Some(last) = self.last.take() {
            let now = std::mem::replace(&mut measured.queue_depth, last.queue_depth);
            measured.queue_depth.extend(now);
        }
        self.last = Some(measured);
    }

    /// How a run ended whose host has reported in full.
    fn end(&mut self) -> End {
        if self.last.as_ref().is_none_or(|last| last.agent_ended.is_none()) {
            return End::Complete;
        }
        // The host sees its agent leave before we see the process end. Without that it is an agent that ended and
        // whose place others have taken: the report says so.
        match self.parts.agent.wait(Duration::from_millis(500)) {
            Some(status) => {
                let words = format!("{} {} {}", self.parts.agent_name, in_words(status), self.when());
                End::Broken(self.with_unfinished(words))
            }
            None => End::Complete,
        }
    }

    /// Waits for the host's last report, if its load has begun; a second signal ends that too.
    fn await_report(&mut self, patience: Duration, signals: &Signals) -> Result<()> {
        if self.started.is_none() {
            return Ok(());
        }
        let asked = Instant::now();
        while !self.done && asked.elapsed() < patience && signals.taken().is_none() {
            let heard = match self.hear() {
                Ok(heard) => heard,
                // Of a run that had its load there is a report, whatever its last words were.
                Err(_) if self.last.is_some() => return Ok(()),
                Err(error) => return Err(error),
            };
            if !heard && self.parts.host.ended().is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// When something happened, as the end of a sentence.
    fn when(&self) -> String {
        self.started
            .map_or_else(String::new, |started| format!("after {:.1} s", started.elapsed().as_secs_f64()))
    }

    fn with_unfinished(&self, words: String) -> String {
        match &self.last {
            Some(measured) => {
                format!("{}; {} tasks were unfinished", words.trim_end(), measured.tasks_unfinished())
            }
            None => words.trim_end().to_owned(),
        }
    }
}
