//! The worker host: a host made of threads. Each host CPU is a thread that runs the task its last txn names, reports
//! every change of state with its stamp, and waits for its next decision.

use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use neap_abi::message::TASK_NONE;
use neap_abi::{AgentState, Message, MessageKind, Outcome, TaskFlags};
use neap_vipu::{Change, Peer, PeerError};
use thiserror::Error;

use crate::fifo_check::FifoCheck;
use crate::link::{AttachError, Attachment, Link};
use crate::mechanism::{AgentStanding, Mechanism, TaskState, Verdict};
use crate::report::{EpitaphReport, Latency, Report, Snapshot};
use crate::window::{HostWindow, HostWindowError};

/// What a task does when a CPU runs it.
pub trait Work: Sync {
    /// Does step `step` (from 0) of request `request`.
    fn step(&self, request: u64, step: u32) -> Step;
}

/// How a step of a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The task is done.
    Done,
    /// The task gives up its CPU, and could go on.
    Yield,
    /// The task waits for something that takes so long.
    Block {
        /// How long, in µs.
        for_us: u64,
    },
}

/// A worker host's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// How it presents itself.
    pub attachment: Attachment,
    /// Vectors of each peer on the link.
    pub vectors: u16,
    /// How long to wait for running and waiting tasks at the end.
    pub drain: Duration,
}

/// Why a worker host could not run.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// No attachment.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No link.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// No window.
    #[error(transparent)]
    Window(#[from] HostWindowError),
}

/// The task table is full; the request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("all {tasks} task numbers of this IPU are taken")]
pub struct Refused {
    /// How many there are.
    pub tasks: u32,
}

/// What a host remembers of a task beyond the mechanism's needs.
#[derive(Clone, Copy, Debug)]
struct Job {
    request: u64,
    step: u32,
    created: Instant,
    runnable: Instant,
    cpu: u16,
}

/// A task that wakes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alarm(std::cmp::Reverse<Instant>, u32);

#[derive(Debug)]
struct State {
    mechanism: Mechanism,
    fifo: FifoCheck,
    free: VecDeque<u32>,
    jobs: Vec<Option<Job>>,
    alarms: BinaryHeap<Alarm>,
    /// A decision for a CPU that another CPU's thread completed (groups).
    assigned: Vec<u32>,
    idle_since: Vec<Instant>,
    /// Lines of a resync that did not fit yet, and what happened since; empty but during one.
    outbox: VecDeque<Message>,
    resync_due: bool,
    resyncs_asked: u32,
    finished_requests: HashSet<u64>,
    round_trip: Histogram<u64>,
    request: Histogram<u64>,
    outcomes: BTreeMap<Outcome, u64>,
    dropped_since: u32,
    report: Report,
}

/// A host at work.
#[derive(Debug)]
pub struct WorkerHost<'w, W> {
    link: Link<'w>,
    peer: &'w Peer,
    work: &'w W,
    state: Mutex<State>,
    start: Instant,
    stop: AtomicBool,
}

/// Housekeeping's period: alarms, credits, resyncs, the agent's health.
const BEAT: Duration = Duration::from_millis(1);
/// A CPU that waits looks up so often, to see whether the run is over.
const LOOK_UP: Duration = Duration::from_millis(20);
/// Between two points of the queue's timeline.
const SAMPLE: Duration = Duration::from_millis(20);

/// Attaches to the IPU on `socket` and is its host until `drive` returns, which creates the tasks; then waits for what
/// is left, and reports.
///
/// # Errors
/// Whatever kept it from attaching. A run that went wrong later is a report that says so.
pub fn host<W: Work>(
    socket: &Path,
    config: &Config,
    work: &W,
    drive: impl FnOnce(&WorkerHost<'_, W>),
) -> Result<Report, WorkerError> {
    let peer = Peer::connect(socket, config.vectors, config.attachment.timeout)?;
    let window = HostWindow::new(peer.map_window().map_err(HostWindowError::Map)?);
    let link = Link::attach(&window, &peer, &config.attachment)?;
    let host = WorkerHost::new(link, &peer, work, config.attachment.cpus);
    // The agent knows nothing yet: the state comes first.
    host.pump(&mut host.lock());
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&host.stop);
        for cpu in 0..config.attachment.cpus {
            let host = &host;
            scope.spawn(move || host.cpu(cpu));
        }
        scope.spawn(|| host.housekeeping());
        drive(&host);
        host.drain(config.drain);
    });
    host.link.detach();
    Ok(host.finish())
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn histogram() -> Histogram<u64> {
    // 1 ns to 10 minutes: what lies outside is recorded as the bound.
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("these bounds make a histogram")
}

impl<'w, W: Work> WorkerHost<'w, W> {
    fn new(link: Link<'w>, peer: &'w Peer, work: &'w W, cpus: u16) -> Self {
        let tasks = link.hello().tasks;
        let now = Instant::now();
        let state = State {
            mechanism: Mechanism::new(cpus, tasks, link.version()),
            fifo: FifoCheck::new(cpus),
            free: (0..tasks).collect(),
            jobs: vec![None; tasks as usize],
            alarms: BinaryHeap::new(),
            assigned: vec![TASK_NONE; usize::from(cpus)],
            idle_since: vec![now; usize::from(cpus)],
            outbox: VecDeque::new(),
            // An attachment starts with the whole state.
            resync_due: true,
            resyncs_asked: link.agent().map_or(0, |agent| agent.resyncs),
            finished_requests: HashSet::new(),
            round_trip: histogram(),
            request: histogram(),
            outcomes: BTreeMap::new(),
            dropped_since: 0,
            report: Report { cpus, version: link.version().to_string(), ..Report::default() },
        };
        Self { link, peer, work, state: Mutex::new(state), start: now, stop: AtomicBool::new(false) }
    }

    /// Creates a task for a request.
    ///
    /// # Errors
    /// No task number is free.
    pub fn submit(&self, request: u64) -> Result<(), Refused> {
        let mut state = self.lock();
        let Some(task) = state.free.pop_front() else {
            state.report.tasks_rejected += 1;
            return Err(Refused { tasks: self.link.hello().tasks });
        };
        let now = Instant::now();
        state.mechanism.create(task, 0, 0);
        state.jobs[task as usize] = Some(Job { request, step: 0, created: now, runnable: now, cpu: 0 });
        state.report.tasks_created += 1;
        self.arrive(&mut state, MessageKind::TaskNew, 0, task);
        Ok(())
    }

    /// Counters as they are.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let request = |quantile| state.request.value_at_quantile(quantile) as f64 / 1e3;
        Snapshot {
            elapsed_ms: self.start.elapsed().as_millis() as u64,
            decisions: state.report.decisions,
            tasks_created: state.report.tasks_created,
            tasks_finished: state.report.tasks_finished,
            queue_depth: state.fifo.waiting() as u64,
            request_p50_us: request(0.5),
            request_p99_us: request(0.99),
            agent_alive: state.mechanism.agent != AgentStanding::Gone,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task can run: the check and the agent are told.
    fn arrive(&self, state: &mut State, kind: MessageKind, cpu: u16, task: u32) {
        if let Some(entry) = state.mechanism.task(task) {
            state.fifo.arrived(entry.arrival);
        }
        let message = state.mechanism.message(kind, cpu, task, TaskFlags::RUNNABLE);
        self.emit(state, message);
    }

    /// Sends a line, or counts it where a resync will make it good.
    fn emit(&self, state: &mut State, mut message: Message) {
        message.time_ns = self.start.elapsed().as_nanos() as u64;
        if state.resync_due {
            state.dropped_since += 1;
            state.report.messages_dropped += 1;
            return;
        }
        if state.outbox.is_empty() {
            if self.link.send_message(message).is_err() {
                state.resync_due = true;
                state.dropped_since += 1;
                state.report.messages_dropped += 1;
            }
            return;
        }
        if let Some((txn, outcome)) = self.link.take_txn_outcome(message.cpu) {
            (message.txn, message.outcome) = (txn, outcome);
        }
        state.outbox.push_back(message);
        self.pump(state);
    }

    /// Goes on with a resync as far as the ring has room.
    fn pump(&self, state: &mut State) {
        if state.resync_due {
            self.link.refresh_credits();
            if self.link.room() < self.link.ring_lines() / 2 {
                return;
            }
            state.resync_due = false;
            state.report.resyncs += 1;
            state.outbox = state.mechanism.resync().into();
            state.fifo.resynced();
            if let Some(first) = state.outbox.front_mut()
                && state.dropped_since > 0
            {
                first.flags = TaskFlags::OVERFLOW;
                first.dropped = std::mem::take(&mut state.dropped_since);
            }
        }
        while let Some(message) = state.outbox.front() {
            if self.link.send_message(*message).is_err() {
                break;
            }
            state.outbox.pop_front();
        }
        if state.outbox.len() > 4 * self.link.hello().tasks as usize {
            // The backlog has outgrown the state: start over.
            state.outbox.clear();
            state.resync_due = true;
        }
    }

    /// A CPU's life.
    fn cpu(&self, cpu: u16) {
        let mut irq = self.link.register_irq_handler(cpu, || {});
        while !self.stopped() {
            match self.schedule(cpu) {
                Some(task) => self.run(cpu, task),
                None if irq.wait(LOOK_UP).is_ok() => {}
                None => return,
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An idle CPU looks for its decision. Nothing else is there to carry the verdict, so it gets a line of its own:
    /// the agent can then fill the slot again while the task runs.
    fn schedule(&self, cpu: u16) -> Option<u32> {
        let mut state = self.lock();
        let assigned = std::mem::replace(&mut state.assigned[usize::from(cpu)], TASK_NONE);
        if assigned != TASK_NONE {
            return Some(assigned);
        }
        let task = self.decide(&mut state, cpu, false)?;
        let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
        let message = state.mechanism.message(MessageKind::TxnOutcome, cpu, task, flags);
        self.emit(&mut state, message);
        (task != TASK_NONE).then_some(task)
    }

    /// Takes what lies in the CPU's slot and enforces it. None if nothing does; [`TASK_NONE`] if it was refused.
    fn decide(&self, state: &mut State, cpu: u16, prestaged: bool) -> Option<u32> {
        let txn = self.link.read_txn(cpu)?;
        if self.link.poisoned() {
            state.mechanism.agent = AgentStanding::Poisoned;
        }
        let arrival = state.mechanism.task(txn.task).map(|task| task.arrival);
        let verdicts = state.mechanism.commit(cpu, &txn);
        let mut task = TASK_NONE;
        for verdict in verdicts {
            *state.outcomes.entry(verdict.outcome).or_default() += 1;
            if verdict.cpu != cpu {
                self.settle_elsewhere(state, &verdict);
                continue;
            }
            self.link.set_txn_outcome(cpu, verdict.txn, verdict.outcome);
            match (verdict.switch, arrival) {
                (Some(switch), Some(arrival)) => {
                    task = switch.task;
                    if task == TASK_NONE {
                        continue;
                    }
                    state.report.decisions += 1;
                    state.fifo.started(arrival, txn.order);
                    if prestaged {
                        state.report.prestage_hits += 1;
                    } else if let Some(job) = state.jobs[task as usize] {
                        let since = job.runnable.max(state.idle_since[usize::from(cpu)]);
                        state.round_trip.saturating_record(since.elapsed().as_nanos() as u64);
                    }
                }
                (None, Some(arrival)) if verdict.outcome.is_refusal() => state.fifo.refused(arrival),
                _ => {}
            }
        }
        Some(task)
    }

    /// A group came to its end on this CPU: the others' members have their verdicts too.
    fn settle_elsewhere(&self, state: &mut State, verdict: &Verdict) {
        let task = verdict.switch.map_or(TASK_NONE, |switch| switch.task);
        self.link.set_txn_outcome(verdict.cpu, verdict.txn, verdict.outcome);
        let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
        let message = state.mechanism.message(MessageKind::TxnOutcome, verdict.cpu, task, flags);
        self.emit(state, message);
        if task != TASK_NONE {
            state.report.decisions += 1;
            if let Some(entry) = state.mechanism.task(task) {
                state.fifo.started(entry.arrival, 0);
            }
            state.assigned[usize::from(verdict.cpu)] = task;
            self.link.kick(verdict.cpu);
        }
    }

    /// Runs a task on a CPU, and those prestaged after it, until the CPU finds no decision.
    fn run(&self, cpu: u16, mut task: u32) {
        loop {
            let Some(job) = self.lock().jobs[task as usize] else { return };
            let step = self.work.step(job.request, job.step);
            let now = Instant::now();
            let mut state = self.lock();
            let kind = self.end_step(&mut state, cpu, task, job, step, now);
            let message = state.mechanism.message(kind, cpu, task, TaskFlags::WAS_ON_CPU);
            // The slot is read before the line is written, so that one line carries the event and the verdict.
            let next = self.decide(&mut state, cpu, true).unwrap_or(TASK_NONE);
            let mut flags = message.flags;
            if next == TASK_NONE {
                state.report.prestage_misses += 1;
                state.idle_since[usize::from(cpu)] = now;
                flags = flags.with(TaskFlags::CPU_IDLE);
            }
            let cpu_stamp = state.mechanism.cpu(cpu).map_or(0, |cpu| cpu.stamp);
            self.emit(&mut state, Message { flags, cpu_stamp, ..message });
            if next == TASK_NONE {
                return;
            }
            task = next;
        }
    }

    /// What a step's end does to its task.
    fn end_step(
        &self,
        state: &mut State,
        cpu: u16,
        task: u32,
        job: Job,
        step: Step,
        now: Instant,
    ) -> MessageKind {
        let job = Job { step: job.step + 1, runnable: now, cpu, ..job };
        match step {
            Step::Done => {
                state.mechanism.change(task, TaskState::Free);
                state.jobs[task as usize] = None;
                state.free.push_back(task);
                state.report.tasks_finished += 1;
                if !state.finished_requests.insert(job.request) {
                    state.report.tasks_doubled += 1;
                }
                state.request.saturating_record(now.duration_since(job.created).as_nanos() as u64);
                MessageKind::TaskDead
            }
            Step::Yield => {
                state.mechanism.change(task, TaskState::Runnable);
                state.jobs[task as usize] = Some(job);
                if let Some(entry) = state.mechanism.task(task) {
                    state.fifo.arrived(entry.arrival);
                }
                MessageKind::TaskYield
            }
            Step::Block { for_us } => {
                state.mechanism.change(task, TaskState::Blocked);
                state.jobs[task as usize] = Some(job);
                state.alarms.push(Alarm(std::cmp::Reverse(now + Duration::from_micros(for_us)), task));
                MessageKind::TaskBlocked
            }
        }
    }

    fn housekeeping(&self) {
        let mut sampled = self.start;
        while !self.stopped() {
            self.beat(&mut sampled);
            std::thread::sleep(BEAT);
        }
    }

    fn beat(&self, sampled: &mut Instant) {
        let left = self.peer.poll_changes().unwrap_or_default();
        let mut state = self.lock();
        let now = Instant::now();
        while let Some(&Alarm(std::cmp::Reverse(due), task)) = state.alarms.peek()
            && due <= now
        {
            state.alarms.pop();
            if state.mechanism.task(task).is_some_and(|entry| entry.state == TaskState::Blocked) {
                state.mechanism.change(task, TaskState::Runnable);
                let cpu = state.jobs[task as usize].as_mut().map_or(0, |job| {
                    job.runnable = now;
                    job.cpu
                });
                self.arrive(&mut state, MessageKind::TaskWakeup, cpu, task);
            }
        }
        if let Some(agent) = self.link.agent() {
            if agent.resyncs != state.resyncs_asked {
                state.resyncs_asked = agent.resyncs;
                state.resync_due = true;
            }
            if left.contains(&Change::Left(agent.peer)) {
                self.agent_ended(&mut state, "the IPU left the link");
            }
            match agent.state {
                AgentState::Dead => self.agent_ended(&mut state, "the agent died; its epitaph says why"),
                AgentState::Stopped => self.agent_ended(&mut state, "the agent stopped"),
                _ => {}
            }
        }
        if state.mechanism.agent != AgentStanding::Gone && (state.resync_due || !state.outbox.is_empty()) {
            self.pump(&mut state);
        }
        if now.duration_since(*sampled) >= SAMPLE {
            *sampled = now;
            let depth = state.fifo.waiting() as u64;
            state.report.queue_depth.push((self.start.elapsed().as_millis() as u64, depth));
        }
    }

    fn agent_ended(&self, state: &mut State, why: &str) {
        if state.mechanism.agent != AgentStanding::Gone {
            state.mechanism.agent = AgentStanding::Gone;
            state.report.agent_ended = Some(why.to_owned());
        }
    }

    /// Waits until no task is left, or the agent is gone, or `limit` is over.
    fn drain(&self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit {
            let state = self.lock();
            let gone = state.mechanism.agent == AgentStanding::Gone;
            if gone || state.report.tasks_created == state.report.tasks_finished {
                return;
            }
            drop(state);
            std::thread::sleep(BEAT);
        }
    }

    fn finish(self) -> Report {
        let epitaphs = self.epitaphs();
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let agent = self.link.agent();
        let mut report = std::mem::take(&mut state.report);
        let live = state.mechanism.live_tasks().count() as u64;
        let accounted = report.tasks_finished + live;
        report.tasks_lost = report.tasks_created.saturating_sub(accounted);
        if state.mechanism.agent == AgentStanding::Gone {
            report.tasks_unfinished = live;
        } else {
            report.tasks_lost += live;
        }
        report.seconds = self.start.elapsed().as_secs_f64();
        report.messages = u64::from(self.link.messages());
        report.agent_wakeups = u64::from(self.link.rings());
        report.doorbells = agent.map_or(0, |agent| agent.doorbells);
        report.messages_unknown = agent.map_or(0, |agent| u64::from(agent.unknown));
        report.outcomes = state.outcomes.iter().map(|(outcome, &n)| (outcome.name().to_owned(), n)).collect();
        report.fifo_violations = state.fifo.violations();
        report.round_trip = Latency::of(&state.round_trip);
        report.request = Latency::of(&state.request);
        report.epitaphs = epitaphs;
        report
    }

    fn epitaphs(&self) -> Vec<EpitaphReport> {
        let hello = self.link.hello();
        let found = (0..hello.cores).filter_map(|core| self.link.window().epitaph(hello, core));
        found
            .map(|epitaph| EpitaphReport {
                core: epitaph.core,
                cause: epitaph.cause.name().to_owned(),
                text: epitaph.text().to_owned(),
                place: if epitaph.line > 0 {
                    format!("{}:{}", epitaph.file(), epitaph.line)
                } else {
                    format!("pc {:#x}, address {:#x}, syndrome {:#x}", epitaph.elr, epitaph.far, epitaph.esr)
                },
                messages: epitaph.messages,
            })
            .collect()
    }
}
