//! What `bench kill` and `bench replace` share: an IPU of two enclaves under load, and the books of what it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::supervisor::Books;
use neap_host::event::{Event, EventKind};
use neap_host::report::Report;
use neap_host::worker::{Enclave, EnclaveConfig, HostConfig, Step, Work, with_host};

use crate::ipu::{Ipu, VECTORS};

/// The enclave whose agents come and go.
pub const SUBJECT: usize = 0;
/// Enclaves: the subject, and a neighbour that should not notice.
pub const ENCLAVES: usize = 2;
/// Cores of the IPU: the supervisor's and one for each enclave.
pub const CORES: u32 = 1 + ENCLAVES as u32;
/// Host CPUs of each enclave.
const CPUS: u16 = 2;
/// Tasks of each enclave that are under way at one time.
const TASKS: u64 = 48;
/// How long anything may take, on a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Short tasks, of which some yield and some block.
struct Tasks;

impl Work for Tasks {
    fn step(&self, request: u64, step: u32) -> Step {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
        match (request % 16, step) {
            (3, 0) => Step::Yield,
            (7, 0) => Step::Block { for_us: 200 },
            _ => Step::Done,
        }
    }
}

/// The subject, under load.
pub struct Subject {
    /// The enclave.
    pub enclave: Arc<Enclave>,
    /// Events that were looked at.
    seen: usize,
    /// Those not yet asked for.
    waiting: Vec<Event>,
}

impl Subject {
    /// The supervisor's books.
    ///
    /// # Errors
    /// It has written none.
    pub fn books(&self) -> Result<Books> {
        let link = self.enclave.link();
        let manager = link.manager().context("this IPU's agents can't be managed")?;
        manager.list().books.context("the supervisor keeps no books")
    }

    /// Where it stands, for whoever has to find out what went wrong.
    fn standing(&self) -> String {
        let link = self.enclave.link();
        let agents = link.manager().map(|manager| manager.list());
        let agents = agents.map(|agents| (agents.running, agents.standby, agents.books));
        format!("{:?}, {agents:?}, the agent says {:?}", self.enclave.snapshot(), link.link().agent())
    }

    /// Waits for the first event that is `wanted` since the last one that was waited for; its time, in µs.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(EventKind) -> bool) -> Result<u64> {
        let begun = Instant::now();
        loop {
            let new = self.enclave.events(self.seen);
            self.seen += new.len();
            self.waiting.extend(new);
            if let Some(found) = self.waiting.iter().position(|event| wanted(event.kind)) {
                let at_us = self.waiting[found].at_us;
                self.waiting.drain(..=found);
                return Ok(at_us);
            }
            if begun.elapsed() > PATIENCE {
                bail!("no {what} in {} s; the last events: {:?}", PATIENCE.as_secs(), self.waiting.last());
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// What a run of both enclaves came to.
pub struct Lives<T> {
    /// What was done with the subject.
    pub done: T,
    /// The enclaves' reports.
    pub reports: Vec<Report>,
    /// What became of their work.
    pub balance: Balance,
}

/// What became of both enclaves' work, with the keys of `--json`.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Balance {
    pub tasks_created: u64,
    pub tasks_finished: u64,
    pub tasks_lost: u64,
    pub tasks_doubled: u64,
    pub fifo_violations: u64,
    /// Cores that no agent runs on, though one should, or that the runtime lost.
    pub cores_leaked: i64,
    /// Pages that are held by nobody's agent, and should be free.
    pub pages_leaked: i64,
    /// Decisions of the neighbour meanwhile.
    pub neighbour_decisions: u64,
}

impl Balance {
    fn new(reports: &[Report], (pages_leaked, cores_leaked): (i64, i64), neighbour_decisions: u64) -> Self {
        let sum = |figure: fn(&Report) -> u64| reports.iter().map(figure).sum();
        Self {
            tasks_created: sum(|report| report.tasks_created),
            tasks_finished: sum(|report| report.tasks_finished),
            tasks_lost: sum(|report| report.tasks_lost),
            tasks_doubled: sum(|report| report.tasks_doubled),
            fifo_violations: sum(|report| report.fifo_violations),
            cores_leaked,
            pages_leaked,
            neighbour_decisions,
        }
    }

    /// Whether all of it was done, once, and nothing is missing; `all` is the whole measurement, for the error.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(&self, all: &impl std::fmt::Display) -> Result<()> {
        ensure!(self.tasks_created == self.tasks_finished, "tasks were left over: {all}");
        ensure!(self.tasks_lost == 0 && self.tasks_doubled == 0, "tasks were lost or ran twice: {all}");
        ensure!(self.cores_leaked == 0 && self.pages_leaked == 0, "cores or pages leaked: {all}");
        Ok(())
    }
}

/// Runs both enclaves under load while `with` does something to the subject, told the time since the host began.
///
/// # Errors
/// What does not start; what `with` fails with, with the console's words.
pub fn run<T>(
    mut ipu: Ipu,
    watchdog: Duration,
    with: impl FnOnce(&mut Subject, &dyn Fn() -> u64) -> Result<T>,
) -> Result<Lives<T>> {
    let host = HostConfig { cpus: CPUS * ENCLAVES as u16, tasks: neap_abi::layout::TASKS_USUAL };
    let ran = with_host(&host, &Tasks, |host| {
        let mut enclaves = Vec::new();
        for index in 0..ENCLAVES {
            let first = CPUS * index as u16;
            let cpus = first..first + CPUS;
            let usual = EnclaveConfig::usual(&ipu.socket(index), VECTORS, 1, cpus);
            enclaves.push(host.create_enclave(EnclaveConfig { watchdog, ..usual })?);
        }
        let over = AtomicBool::new(false);
        let neighbour = Arc::clone(&enclaves[1]);
        let (done, free, decisions) = thread::scope(|scope| {
            for enclave in &enclaves {
                scope.spawn(|| keep_busy(enclave, &over));
            }
            let _over = Over(&over);
            let mut subject =
                Subject { enclave: Arc::clone(&enclaves[SUBJECT]), seen: 0, waiting: Vec::new() };
            subject.wait_for("first decision", |kind| matches!(kind, EventKind::FirstDecision { .. }))?;
            let before = subject.books()?;
            let decided = neighbour.snapshot().decisions;
            let now_us = || host.elapsed().as_micros() as u64;
            let done = with(&mut subject, &now_us).with_context(|| subject.standing())?;
            let decisions = neighbour.snapshot().decisions - decided;
            // The last agent may just be on its way in.
            let settled = Instant::now();
            let mut after = subject.books()?;
            while (after.pages_free, after.cores_free) != (before.pages_free, before.cores_free)
                && settled.elapsed() < Duration::from_secs(2)
            {
                thread::sleep(Duration::from_millis(5));
                after = subject.books()?;
            }
            let pages = i64::from(before.pages_free) - i64::from(after.pages_free);
            let cores =
                i64::from(after.cores_free) - i64::from(before.cores_free) + i64::from(after.cores_lost);
            anyhow::Ok((done, (pages, cores), decisions))
        })?;
        host.drain(PATIENCE);
        anyhow::Ok((done, free, decisions))
    });
    let (driven, reports) = ran;
    match driven {
        Ok((done, leaked, neighbour_decisions)) => {
            let balance = Balance::new(&reports, leaked, neighbour_decisions);
            Ok(Lives { done, reports, balance })
        }
        Err(error) => Err(error.context(format!("the IPU's console said:\n{}", ipu.console()))),
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps so many tasks under way until it is over.
fn keep_busy(enclave: &Enclave, over: &AtomicBool) {
    let request = AtomicU64::new(0);
    while !over.load(Ordering::Relaxed) {
        let now = enclave.snapshot();
        for _ in (now.tasks_created - now.tasks_finished)..TASKS {
            // A full table is no fault here: the next round tries again.
            let _ = enclave.submit(request.fetch_add(1, Ordering::Relaxed));
        }
        thread::sleep(Duration::from_micros(500));
    }
}

/// Quantiles of some times, in µs.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Times {
    /// How many.
    pub count: usize,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Times {
    /// Of `times` in µs.
    #[must_use]
    pub fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).copied().unwrap_or(0)
        };
        Self { count: times.len(), p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times = Times::of((1..=100).rev().collect());
        assert_eq!((times.p50_us, times.p90_us, times.p99_us, times.max_us), (50, 90, 99, 100));
        assert_eq!(Times::of(vec![7]).p50_us, 7);
        assert_eq!(Times::of(Vec::new()).max_us, 0);
    }
}
