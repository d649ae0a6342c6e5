//! One enclave of a worker host: its tasks, its CPUs, its end of the wire.

use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use neap_abi::message::TASK_NONE;
use neap_abi::{AgentControl, EpitaphRecord, Hello, Message, MessageKind, Outcome, TaskFlags, Txn, Version};
use neap_vipu::Peer;

use super::host::TaskNumbers;
use super::{EnclaveConfig, Nature, Refused, WorkerError};
use crate::event::{Event, EventKind, Events, Level};
use crate::fifo_check::FifoCheck;
use crate::ledger::Account;
use crate::link::{Attachment, OwnedLink};
use crate::manager::Agents;
use crate::mechanism::{AgentStanding, Mechanism, TaskState, Verdict};
use crate::ownership::Owners;
use crate::report::{EpitaphReport, FallbackReport, Latency, Report, Snapshot};
use crate::sights::{Judged, Sight, Sights, Standing};
use crate::spare::SpareAgent;
use crate::window::{HostWindow, HostWindowError};
use crate::wire::Wire;
use neap_mechanism::watch::Watchdog;

/// The incarnation that an agent's txns bear: its own, none at all where the session knows of no such thing, and 0 where
/// only the agent is too old to.
pub(super) fn named_by(agent: &AgentControl, session: Version) -> Option<u32> {
    let named = if agent.version >= Version::AGENTS_COME_AND_GO { agent.incarnation } else { 0 };
    (session >= Version::AGENTS_COME_AND_GO).then_some(named)
}

/// What a host remembers of a task beyond the mechanism's needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) request: u64,
    pub(super) step: u32,
    pub(super) created: Instant,
    pub(super) runnable: Instant,
    pub(super) cpu: u16,
    pub(super) is_long: bool,
}

/// A task that wakes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alarm(pub(super) std::cmp::Reverse<Instant>, pub(super) u32);

#[derive(Debug)]
pub(super) struct State {
    pub(super) mechanism: Mechanism,
    pub(super) fifo: FifoCheck,
    pub(super) jobs: Vec<Option<Job>>,
    /// Tasks that are there.
    pub(super) tasks: u32,
    pub(super) alarms: BinaryHeap<Alarm>,
    /// A decision for a CPU that another CPU's thread completed (groups).
    pub(super) assigned: Vec<u32>,
    pub(super) idle_since: Vec<Instant>,
    /// Who decides.
    pub(super) level: Level,
    pub(super) link: Arc<OwnedLink>,
    pub(super) spare: Option<SpareAgent>,
    /// The IPU's agent seen last.
    pub(super) incarnation: u32,
    /// Its end has been noticed.
    pub(super) ended: bool,
    /// The agent that is not to come back.
    pub(super) condemned: Option<u32>,
    /// The IPU's peer number, as it was when the host attached: what an agent says of it later is not asked.
    pub(super) ipu: u16,
    pub(super) link_down: bool,
    /// An attachment anew is under way, or not to be tried before a time.
    pub(super) reattaching: bool,
    pub(super) reattach_asked: bool,
    pub(super) reattach_after: Instant,
    /// The last agent that has had a decision committed.
    pub(super) decided: Option<u32>,
    /// Decisions committed of whoever decides now and those before, for the watchdog.
    pub(super) agent_decisions: u64,
    pub(super) watchdog: Watchdog,
    pub(super) beats: u64,
    /// Lines of a resync that did not fit yet, and what happened since; empty but during one.
    pub(super) outbox: VecDeque<Message>,
    pub(super) resync_due: bool,
    pub(super) resyncs_asked: u32,
    /// Lines of the ring up to the last resync's end, which the agent may not have taken yet.
    pub(super) told: Option<u32>,
    pub(super) finished_requests: HashSet<u64>,
    pub(super) round_trip: Histogram<u64>,
    pub(super) request: Histogram<u64>,
    /// As `request`, of those that are not long.
    pub(super) request_short: Histogram<u64>,
    /// What the ledgers of the IPU's agents came to.
    pub(super) ledger: Account,
    pub(super) outcomes: BTreeMap<Outcome, u64>,
    pub(super) dropped_since: u32,
    pub(super) events: Events,
    /// What is seen, while that is asked for.
    pub(super) sights: Option<Sights>,
    pub(super) sampled: Instant,
    /// Doorbells and unknown messages: what the agent had counted when it was last looked at, and what those before had.
    pub(super) counted: (u64, u64),
    pub(super) counted_before: (u64, u64),
    /// Counts of links before this one.
    pub(super) messages_before: u64,
    pub(super) rings_before: u64,
    pub(super) spare_messages: u64,
    pub(super) faults_before: u32,
    /// Its end has begun: its agent is told no more.
    pub(super) closing: bool,
    pub(super) closed: bool,
    pub(super) report: Report,
}

impl State {
    /// The lines of whoever decides; none while the host itself does.
    pub(super) fn wire(&self) -> Option<&Wire<'_>> {
        match self.level {
            Level::Ipu => Some(self.link.link().wire()),
            Level::OnHost => self.spare.as_ref().map(SpareAgent::wire),
            Level::Host => None,
        }
    }

    /// Whether whoever decides is known to have taken the last state that it was told.
    pub(super) fn has_heard_all(&self) -> bool {
        let Some(wire) = self.wire() else { return true };
        self.told.is_some_and(|end| wire.taken().wrapping_sub(end) < u32::MAX / 2)
    }

    /// What the agent has counted stands, though the next one begins at zero.
    pub(super) fn bank_counts(&mut self) {
        let (doorbells, unknown) = std::mem::take(&mut self.counted);
        self.counted_before.0 += doorbells;
        self.counted_before.1 += unknown;
    }

    /// Takes note of verdicts that nobody is left to hear.
    pub(super) fn break_groups(&mut self) {
        for verdict in self.mechanism.break_groups() {
            *self.outcomes.entry(verdict.outcome).or_default() += 1;
            self.see_judged(verdict.of_member(), &verdict, false, false);
        }
    }

    /// Keeps a sight, if they are asked for.
    pub(super) fn see(&mut self, sight: Sight) {
        if let Some(sights) = &mut self.sights {
            sights.note(sight);
        }
    }

    /// Keeps a txn with its verdict, if that is asked for.
    pub(super) fn see_judged(&mut self, txn: Txn, verdict: &Verdict, is_decision: bool, prestaged: bool) {
        let (outcome, level) = (verdict.outcome, self.level);
        self.see(Sight::Txn(Judged { txn, outcome, level, is_decision, prestaged }));
    }

    /// Has sights kept from now on.
    fn begin_sights(&mut self, start: Instant, most: usize, lasts: Option<Duration>) {
        let runs = |task| (task != TASK_NONE).then_some(task);
        let standing = Standing {
            incarnation: (!self.ended).then_some(self.incarnation),
            level: self.level,
            cpus: self.mechanism.own_cpus().map(|(cpu, entry)| (cpu, runs(entry.task))).collect(),
        };
        self.sights = Some(Sights::begin(start, standing, most, lasts));
    }
}

/// An enclave at work.
#[derive(Debug)]
pub struct Enclave {
    id: u16,
    pub(super) config: EnclaveConfig,
    pub(super) window: Arc<HostWindow>,
    pub(super) peer: Arc<Peer>,
    pub(super) owners: Arc<Owners>,
    numbers: Arc<TaskNumbers>,
    pub(super) state: Mutex<State>,
    /// By CPU: doorbells heard since a line was last taken.
    pub(super) rings: Vec<AtomicU32>,
    /// Sights may be asked for: a lock is not worth taking for what nobody wants.
    pub(super) is_seeing: AtomicBool,
    pub(super) start: Instant,
    made: Instant,
}

fn histogram() -> Histogram<u64> {
    // 1 ns to 10 minutes: what lies outside is recorded as the bound.
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("these bounds make a histogram")
}

impl Enclave {
    /// Joins the enclave's domain and attaches; takes its CPUs, which are idle and nobody's, and tells the agent its state.
    pub(super) fn attach(
        id: u16,
        config: EnclaveConfig,
        owners: Arc<Owners>,
        numbers: Arc<TaskNumbers>,
        start: Instant,
    ) -> Result<Self, WorkerError> {
        let peer = Arc::new(Peer::connect(&config.socket, config.vectors, config.timeout)?);
        let window = Arc::new(HostWindow::new(peer.map_window().map_err(HostWindowError::Map)?));
        let attachment = attachment(&config, &owners, config.session, config.timeout);
        let link = OwnedLink::attach(Arc::clone(&window), Arc::clone(&peer), &attachment)?;
        let (theirs, ours) = (link.link().hello().tasks, owners.tasks());
        if theirs < ours {
            link.link().detach();
            return Err(WorkerError::Tasks { theirs, ours });
        }
        let version = link.link().version();
        let agent = link.link().agent();
        let incarnation = agent.map_or(0, |agent| agent.incarnation);
        let mut mechanism = Mechanism::sharing(Arc::clone(&owners), id, version);
        let only = agent.and_then(|agent| named_by(&agent, version));
        mechanism.incarnation = only;
        link.link().wire().succeed(only);
        if config.keeps_messages {
            link.link().wire().keep_messages();
        }
        let cpus = config.cpus.iter().filter(|&&cpu| mechanism.adopt_cpu(cpu)).count();
        let faults = link.manager().and_then(|manager| manager.list().books).map_or(0, |books| books.faults);
        let now = Instant::now();
        let slots = usize::from(owners.cpus());
        let mut state = State {
            mechanism,
            fifo: FifoCheck::new(cpus as u16),
            jobs: vec![None; owners.tasks() as usize],
            tasks: 0,
            alarms: BinaryHeap::new(),
            assigned: vec![TASK_NONE; slots],
            idle_since: vec![now; slots],
            level: Level::Ipu,
            spare: None,
            incarnation,
            ended: false,
            condemned: None,
            ipu: agent.map_or(0, |agent| agent.peer),
            link_down: false,
            reattaching: false,
            reattach_asked: false,
            reattach_after: now,
            decided: None,
            agent_decisions: 0,
            watchdog: Watchdog::new(config.watchdog),
            beats: 0,
            outbox: VecDeque::new(),
            // An attachment starts with the whole state.
            resync_due: true,
            resyncs_asked: agent.map_or(0, |agent| agent.resyncs),
            told: None,
            finished_requests: HashSet::new(),
            round_trip: histogram(),
            request: histogram(),
            request_short: histogram(),
            ledger: Account::default(),
            outcomes: BTreeMap::new(),
            dropped_since: 0,
            events: Events::default(),
            sights: None,
            sampled: now,
            counted: (0, 0),
            counted_before: (0, 0),
            messages_before: 0,
            rings_before: 0,
            spare_messages: 0,
            faults_before: faults,
            closing: false,
            closed: false,
            report: Report {
                enclave: id,
                cpus: cpus as u16,
                policy: config.policy.clone(),
                incarnations: 1,
                version: version.to_string(),
                ..Report::default()
            },
            link: Arc::new(link),
        };
        state.events.push(event(id, start, EventKind::Attached { incarnation }));
        if config.sights_max > 0 {
            state.begin_sights(start, config.sights_max, None);
        }
        let rings = (0..slots).map(|_| AtomicU32::new(0)).collect();
        let (state, is_seeing) = (Mutex::new(state), AtomicBool::new(config.sights_max > 0));
        let enclave =
            Self { id, config, window, peer, owners, numbers, state, rings, is_seeing, start, made: now };
        // The agent knows nothing yet: the state comes first.
        enclave.pump(&mut enclave.lock());
        Ok(enclave)
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &EnclaveConfig {
        &self.config
    }

    /// Its CPUs, as they are.
    #[must_use]
    pub fn cpus(&self) -> Vec<u16> {
        self.lock().mechanism.own_cpus().map(|(cpu, _)| cpu).collect()
    }

    /// Creates a task for a request.
    ///
    /// # Errors
    /// The enclave has all the tasks that it may have.
    pub fn submit(&self, request: u64) -> Result<(), Refused> {
        self.submit_as(request, Nature::default())
    }

    /// Creates a task for a request, and says what it is.
    ///
    /// # Errors
    /// The enclave has all the tasks that it may have.
    pub fn submit_as(&self, request: u64, nature: Nature) -> Result<(), Refused> {
        let mut state = self.lock();
        let may = self.config.tasks_max.min(self.owners.tasks());
        let task = if state.tasks < may { self.numbers.take() } else { None };
        let Some(task) = task else {
            state.report.tasks_rejected += 1;
            return Err(Refused { tasks: may });
        };
        let now = Instant::now();
        state.tasks += 1;
        state.mechanism.create(task, 0, 0);
        state.mechanism.set_class(task, nature.class, nature.group);
        let cpu = state.mechanism.voice();
        let is_long = nature.is_long;
        state.jobs[task as usize] = Some(Job { request, step: 0, created: now, runnable: now, cpu, is_long });
        state.report.tasks_created += 1;
        self.arrive(&mut state, MessageKind::TaskNew, cpu, task, TaskFlags::RUNNABLE);
        Ok(())
    }

    /// A task's number is free again.
    pub(super) fn give_back(&self, state: &mut State, task: u32) {
        state.tasks = state.tasks.saturating_sub(1);
        state.jobs[task as usize] = None;
        self.numbers.give_back(task);
    }

    /// Counters as they are.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let us = |of: &Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e3;
        let link = state.link.link();
        let report = &state.report;
        Snapshot {
            elapsed_ms: self.made.elapsed().as_millis() as u64,
            decisions: state.report.decisions,
            tasks_created: state.report.tasks_created,
            tasks_finished: state.report.tasks_finished,
            queue_depth: state.fifo.waiting() as u64,
            request_p50_us: us(&state.request, 0.5),
            request_p99_us: us(&state.request, 0.99),
            level: state.level,
            incarnation: state.incarnation,
            cpus: state.mechanism.own_cpus().map(|(cpu, _)| cpu).collect(),
            decisions_by_level: report.decisions_by_level,
            outcomes: by_name(&state.outcomes),
            prestage_hits: report.prestage_hits,
            prestage_misses: report.prestage_misses,
            messages: state.messages_sent(link.messages()),
            messages_dropped: report.messages_dropped,
            doorbells: state.counted_before.0 + state.counted.0,
            resyncs: report.resyncs,
            incarnations: report.incarnations,
            faults: report.faults.clone(),
            fallbacks: report.fallbacks.clone(),
            comebacks: report.comebacks,
            round_trip_p50_us: us(&state.round_trip, 0.5),
            round_trip_p99_us: us(&state.round_trip, 0.99),
            ledger: state.ledger.quantiles(),
        }
    }

    /// What was noticed so far, from event number `from` on.
    #[must_use]
    pub fn events(&self, from: usize) -> Vec<Event> {
        self.lock().events.kept().get(from..).unwrap_or_default().to_vec()
    }

    /// Has what is seen kept from now on, for so long: `most` sights at most. False where that is under way already.
    #[must_use]
    pub fn watch(&self, most: usize, lasts: Duration) -> bool {
        let mut state = self.lock();
        // What was kept and never fetched is nobody's any more.
        if state.sights.as_ref().is_some_and(|sights| !sights.is_over()) {
            return false;
        }
        state.begin_sights(self.start, most, Some(lasts));
        self.is_seeing.store(true, Ordering::Relaxed);
        true
    }

    /// What was seen since [`Enclave::watch`], whose time has to be over.
    #[must_use]
    pub fn take_sights(&self) -> Option<Sights> {
        let mut state = self.lock();
        let sights = state.sights.take_if(|sights| sights.is_over())?;
        self.is_seeing.store(false, Ordering::Relaxed);
        Some(sights)
    }

    /// Its link, with the manager of its agents. After an attachment anew it is another.
    #[must_use]
    pub fn link(&self) -> Arc<OwnedLink> {
        Arc::clone(&self.lock().link)
    }

    /// Attaches anew, under the next session's number, e.g. because the supervisor has given the agent up. Returns at
    /// once: the events say when it has come back.
    pub fn attach_anew(&self) {
        self.lock().reattach_asked = true;
    }

    /// Whether no task is left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.lock().tasks == 0
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of something.
    pub(super) fn note(&self, state: &mut State, kind: EventKind) {
        state.events.push(event(self.id, self.start, kind));
        state.see(Sight::Event(kind));
    }

    /// Raises the vector of one of the enclave's own CPUs.
    pub(super) fn kick(&self, cpu: u16) {
        // Our own vectors are there as long as we are, whoever else has left.
        let _ = self.peer.ring(self.peer.id(), cpu);
    }

    /// Its CPUs are about to leave it, for good.
    pub(super) fn begin_close(&self) {
        self.lock().closing = true;
    }

    /// Ends the enclave, whose CPUs have left it: what it has is given back, whatever state it is in.
    pub(super) fn close(&self) -> Report {
        let mut state = self.lock();
        let state = &mut *state;
        state.closed = true;
        let spare = state.spare.take();
        state.spare_messages += spare.as_ref().map_or(0, |spare| u64::from(spare.wire().messages()));
        drop(spare);
        state.link.link().detach();
        let report = self.final_report(state);
        let left: Vec<u32> = state.mechanism.live_tasks().map(|(task, _)| task).collect();
        for task in left {
            state.mechanism.change(task, TaskState::Free);
            self.give_back(state, task);
        }
        state.alarms.clear();
        report
    }

    fn final_report(&self, state: &mut State) -> Report {
        let link = Arc::clone(&state.link);
        let link = link.link();
        let agent = link.agent();
        let agents = state.link.manager().map(|manager| manager.list());
        let mut report = std::mem::take(&mut state.report);
        let live = state.mechanism.live_tasks().count() as u64;
        let accounted = report.tasks_finished + live;
        report.tasks_lost = report.tasks_created.saturating_sub(accounted);
        // Whoever decided had its time for these.
        report.tasks_lost += live;
        report.complete = report.tasks_created == report.tasks_finished;
        report.level = state.level;
        report.seconds = self.made.elapsed().as_secs_f64();
        // Its spare has ended, and its messages are counted.
        report.messages = state.messages_sent(link.messages());
        report.sights = state.sights.take().map(Arc::new);
        report.agent_wakeups = state.rings_before + u64::from(link.rings());
        // Its last words may be younger than the last look.
        if let Some(agent) = agent.filter(|agent| agent.incarnation == state.incarnation) {
            state.counted = (agent.doorbells, u64::from(agent.unknown));
        }
        state.bank_counts();
        (report.doorbells, report.messages_unknown) = state.counted_before;
        report.outcomes = by_name(&state.outcomes);
        // What another policy does is no violation of FIFO.
        let is_fifo = self.config.policy == "fifo";
        report.fifo_violations = if is_fifo { state.fifo.violations() } else { 0 };
        report.round_trip = Latency::of(&state.round_trip);
        report.request = Latency::of(&state.request);
        report.request_short = Latency::of(&state.request_short);
        report.round_trip_ns = Some(state.round_trip.clone());
        report.request_ns = Some(state.request.clone());
        report.request_short_ns = Some(state.request_short.clone());
        report.ledger = state.ledger.clone();
        report.epitaphs = self.epitaphs(link.hello(), link.session());
        report.events = state.events.kept().to_vec();
        report.events_dropped = state.events.dropped();
        if let Some(Agents { running, books: Some(books), .. }) = agents {
            report.agent = running.map_or_else(String::new, |agent| agent.name().to_owned());
            report.crashes = u64::from(books.faults.wrapping_sub(state.faults_before) & 0xfff_ffff);
        }
        if state.level != Level::Ipu {
            let why = report.fallbacks.last().map(|last: &FallbackReport| last.fault.in_words().to_owned());
            report.agent_ended = why.or_else(|| Some("the agent ended".to_owned()));
        }
        report
    }

    fn epitaphs(&self, hello: &Hello, session: u32) -> Vec<EpitaphReport> {
        let all = self.window.epitaphs(hello);
        let ours = |record: &&EpitaphRecord| record.incarnation == 0 || record.epitaph.session == session;
        all.iter().filter(ours).map(EpitaphReport::of).collect()
    }
}

impl State {
    /// Messages sent in all, `now` of them on the link that is.
    fn messages_sent(&self, now: u32) -> u64 {
        let spare = self.spare.as_ref().map_or(0, |spare| u64::from(spare.wire().messages()));
        self.messages_before + u64::from(now) + self.spare_messages + spare
    }

    /// Whether the agent's txns count.
    pub(super) fn agent_is_good(&self) -> bool {
        self.mechanism.agent == AgentStanding::Good
    }
}

/// Verdicts by their names.
fn by_name(outcomes: &BTreeMap<Outcome, u64>) -> BTreeMap<String, u64> {
    outcomes.iter().map(|(outcome, &n)| (outcome.name().to_owned(), n)).collect()
}

fn event(enclave: u16, start: Instant, kind: EventKind) -> Event {
    Event { at_us: start.elapsed().as_micros() as u64, enclave, kind }
}

/// How an enclave presents itself in a session.
pub(super) fn attachment(
    config: &EnclaveConfig,
    owners: &Owners,
    session: u32,
    timeout: Duration,
) -> Attachment {
    // Any of the host's CPUs may come to be the enclave's.
    let (cpus, version) = (owners.cpus(), config.version);
    Attachment { cpus, session, policy: config.first_policy.clone(), clock: config.clock, version, timeout }
}
