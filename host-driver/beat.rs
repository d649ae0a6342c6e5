// SPDX-License-Identifier: GPL-2.0
//! The watch over one function: attaching to its IPU, its agent's health, who decides when that fails, and how the IPU comes
//! back. Once a ms, in a thread of its own.

use core::sync::atomic::Ordering;
use core::time::Duration;

use kernel::{fmt, pr_err_once, prelude::*, sync::Arc};
use neap_abi::control::{came_after, policy_id};
use neap_abi::{AgentControl, AgentState, Manage, Version};
use neap_mechanism::enclave::Standing;
use neap_mechanism::resync::Arrival;
use neap_mechanism::watch::{Beat, Blame, Watchdog};
use neap_mechanism::{Enclave, Level};

use crate::function::Function;
use crate::host::{host, kick, now_ns, runqueues_pass, Host, Leaving, FUNCTIONS};
use crate::manager::asking;
use crate::session::{hello, Session, Voice};

/// Beats from one look at the hello page to the next.
const HELLO_BEATS: u64 = 100;
/// Doorbells without a new line that make a flood, for one CPU within [`FLOOD_BEATS`].
const FLOOD_RINGS: u32 = 5000;
/// See [`FLOOD_RINGS`].
const FLOOD_BEATS: u64 = 1000;
/// How long an IPU may take to answer an attachment, in ns.
const ANSWER_NS: u64 = 2_000_000_000;
/// How long a CPU may run something of a higher class before the agent is told, in ns.
const OTHER_NS: u64 = 10_000_000;
/// How long a task may wait, in ns, none of whose CPUs is to be had, before the host queues it: less than a period of the
/// kernel's deadline servers, who find it there then.
const STRANDED_NS: u64 = 500_000_000;
/// How long the kernel may leave what the host has queued without a CPU, in ns: three of those periods.
const STARVED_NS: u64 = 3_000_000_000;
/// As [`STARVED_NS`], for what the host has had since it decided for all, and shares with the agent's tasks. Well within the 30 s
/// after which the kernel ends the class for everybody.
const LEFT_NS: u64 = 10_000_000_000;
/// Beats from one look for such tasks to the next.
const STRANDED_BEATS: u64 = 64;
const _: () = assert!(core::mem::size_of::<Arrival>() == 16);
/// The first version whose agents come and go within a session.
const COMES_AND_GOES: Version = Version { major: 1, minor: 2 };

/// What was wrong. As `enum neap_fault` of the uAPI.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Fault {
    AgentLate = 1,
    AgentFloods = 2,
    AgentPoisoned = 3,
    AgentDead = 4,
    LinkDown = 5,
    HostCpuHogged = 6,
}

/// How many kinds of fault there are.
pub(crate) const FAULTS: usize = 6;

impl Fault {
    /// Every fault.
    pub(crate) const ALL: [Self; FAULTS] = [
        Self::AgentLate,
        Self::AgentFloods,
        Self::AgentPoisoned,
        Self::AgentDead,
        Self::LinkDown,
        Self::HostCpuHogged,
    ];

    /// Its name on every output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AgentLate => "agent_late",
            Self::AgentFloods => "agent_floods",
            Self::AgentPoisoned => "agent_poisoned",
            Self::AgentDead => "agent_dead",
            Self::LinkDown => "link_down",
            Self::HostCpuHogged => "host_cpu_hogged",
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::AgentLate => "the agent owed a decision for too long",
            Self::AgentFloods => "the agent rings without deciding",
            Self::AgentPoisoned => "the agent broke the protocol",
            Self::AgentDead => "the agent has ended and is not started again",
            Self::LinkDown => "the IPU is gone or has been reset",
            Self::HostCpuHogged => "a CPU of the host does not take its decisions",
        }
    }
}

/// Something of the wire's, for the kernel's log.
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: core::fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::fmt::Display::fmt(&self.0, f)
    }
}

/// How far an attachment has come.
enum Attaching {
    /// No hello page yet.
    Looking,
    /// An agent was asked for.
    Asked { session: KBox<Session>, since_ns: u64 },
    /// One has answered: the session is published.
    Done,
}

/// Everything about one function's agent.
pub(crate) struct Watch {
    attaching: Attaching,
    voice: Option<Voice>,
    /// The session before, for as long as somebody may be using it.
    leaving: Option<Leaving>,
    /// The function is gone.
    pub(crate) left: bool,
    sessions: u32,
    pub(crate) watchdog_ms: u32,
    pub(crate) kernel_after_ms: u32,
    pub(crate) policy: u32,
    pub(crate) attach_anew: bool,
    watchdog: Watchdog,
    beats: u64,
    beat_ns: u64,
    /// The agent seen last, and whether its end has been noticed.
    pub(crate) incarnation: u32,
    ended: bool,
    /// The agent that is not to come back.
    condemned: Option<u32>,
    resyncs_asked: u32,
    /// Lines of the ring up to the last resync's end, which the agent may not have taken yet.
    told: Option<u32>,
    /// The last agent that has had a decision committed, and how many there were before it.
    decided: Option<u32>,
    decisions_before: u64,
    /// Since when the host's own rule decides, in ns.
    fell_ns: u64,
    arrivals: KVVec<Arrival>,
    complained: bool,
    pub(crate) faults: [u64; FAULTS],
    pub(crate) fault: Option<Fault>,
    pub(crate) fallbacks: u64,
    pub(crate) comebacks: u64,
    pub(crate) resyncs: u64,
}

impl Watch {
    /// Over a function that has no agent yet.
    pub(crate) fn new() -> Self {
        let watchdog_ms = crate::module_parameters::watchdog_ms.value();
        Self {
            attaching: Attaching::Looking,
            voice: None,
            leaving: None,
            left: false,
            sessions: now_ns() as u32 | 1,
            watchdog_ms,
            kernel_after_ms: crate::module_parameters::kernel_after_ms.value(),
            policy: 0,
            attach_anew: false,
            watchdog: Watchdog::new(Duration::from_millis(watchdog_ms.into())),
            beats: 0,
            beat_ns: 0,
            incarnation: 0,
            ended: true,
            condemned: None,
            resyncs_asked: 0,
            told: None,
            decided: None,
            decisions_before: 0,
            fell_ns: 0,
            arrivals: KVVec::new(),
            complained: false,
            faults: [0; FAULTS],
            fault: None,
            fallbacks: 0,
            comebacks: 0,
            resyncs: 0,
        }
    }

    /// Another time until an agent is late.
    pub(crate) fn set_watchdog_ms(&mut self, watchdog_ms: u32) {
        self.watchdog_ms = watchdog_ms;
        self.watchdog = Watchdog::new(Duration::from_millis(watchdog_ms.into()));
    }

    /// Whether an agent has answered.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.attaching, Attaching::Done)
    }
}

extern "C" {
    fn neap_policy() -> *const c_char;
    fn neap_stop_machine(arg: *mut c_void) -> i32;
    fn neap_sort_arrivals(arrivals: *mut c_void, count: usize);
    fn neap_lend(pid: u32) -> *mut c_void;
    fn neap_take_back(task: *mut c_void);
}

fn policy_asked() -> u32 {
    // SAFETY: The parameter is a string that ends with a zero and does not change.
    let name = unsafe { CStr::from_char_ptr(neap_policy()) };
    name.to_str().map_or(0, policy_id)
}

/// One beat of every function.
#[no_mangle]
extern "C" fn neap_rs_beat() {
    for number in 0..neap_mechanism::ENCLAVES_MAX {
        let function: Option<Arc<Function>> = FUNCTIONS.lock().get(number).and_then(|place| place.clone());
        if let Some(function) = function {
            function.beat();
        }
    }
}

/// What is done while the machine is stopped.
struct Resync<'a> {
    host: &'a Host,
    enclave: u8,
    arrivals: &'a mut [Arrival],
    whole: bool,
}

/// Runs on one CPU while all others stand still.
///
/// # Safety
/// `arg` is a [`Resync`] that nobody else uses.
#[no_mangle]
unsafe extern "C" fn neap_rs_stopped(arg: *mut c_void) -> i32 {
    // SAFETY: By this function's requirement.
    let resync = unsafe { &mut *arg.cast::<Resync<'_>>() };
    let sort = |arrivals: &mut [Arrival]| {
        // SAFETY: The slice is as many arrivals, laid out as C has them.
        unsafe { neap_sort_arrivals(arrivals.as_mut_ptr().cast(), arrivals.len()) };
    };
    resync.whole = resync.host.mechanism.resync(resync.host, resync.enclave, resync.arrivals, sort);
    0
}

impl Function {
    fn name(&self) -> u8 {
        self.number
    }

    /// One beat.
    fn beat(&self) {
        let Some(host) = host() else { return };
        let Some(enclave) = host.mechanism.enclave(self.number) else { return };
        let mut watch = self.watch.lock();
        let watch = &mut *watch;
        if watch.left {
            return;
        }
        let now = now_ns();
        let gap = now.wrapping_sub(watch.beat_ns);
        watch.beat_ns = now;
        watch.beats = watch.beats.wrapping_add(1);
        if watch.attach_anew {
            watch.attach_anew = false;
            self.part(host, enclave, watch, None);
        }
        if !watch.is_attached() {
            self.attach(host, watch, now);
            if !watch.is_attached() {
                self.leave_class(host, enclave, watch, now);
                return;
            }
        }
        self.look(host, enclave, watch);
        self.look_at_link(host, enclave, watch);
        if !watch.is_attached() {
            return;
        }
        self.guard(host, enclave, watch, gap);
        self.look_at_cpus(host, enclave, now);
        self.serve_stranded(host, enclave, watch, now);
        self.come_back(host, enclave, watch);
        self.leave_class(host, enclave, watch, now);
        self.tell(host, enclave, watch);
    }

    /// Goes on with attaching.
    fn attach(&self, host: &Host, watch: &mut Watch, now: u64) {
        match core::mem::replace(&mut watch.attaching, Attaching::Looking) {
            Attaching::Looking => {
                // Nobody may have written the page yet: that is no error.
                if watch.beats % 16 != 0 {
                    return;
                }
                if watch.leaving.as_ref().is_some_and(|leaving| !leaving.is_over()) {
                    return;
                }
                watch.leaving = None;
                let session = self.ask(watch);
                match session {
                    Ok(Some(session)) => watch.attaching = Attaching::Asked { session, since_ns: now },
                    Ok(None) => {}
                    Err(error) if !watch.complained => {
                        watch.complained = true;
                        pr_err!("neap{}: cannot attach: {:?}\n", self.name(), error);
                    }
                    Err(_) => {}
                }
            }
            Attaching::Asked { session, since_ns } => {
                let agent = session.agent();
                let state = agent.map(|agent| agent.state);
                match (agent, state) {
                    (Some(agent), Some(AgentState::Running)) => self.attached(host, watch, session, &agent),
                    (
                        Some(agent),
                        Some(
                            AgentState::RefusedVersion
                            | AgentState::RefusedCpus
                            | AgentState::RefusedPolicy
                            | AgentState::RefusedCommand,
                        ),
                    ) => {
                        if !watch.complained {
                            watch.complained = true;
                            pr_err!(
                                "neap{}: the IPU refused: {:?} (its version is {}, ours {})\n",
                                self.name(),
                                agent.state,
                                Shown(agent.version),
                                Shown(neap_abi::VERSION)
                            );
                        }
                        // It is asked again, in case it has been given another image.
                        if now.wrapping_sub(since_ns) < ANSWER_NS {
                            watch.attaching = Attaching::Asked { session, since_ns };
                        } else {
                            watch.voice = None;
                        }
                    }
                    _ if now.wrapping_sub(since_ns) < ANSWER_NS => {
                        if watch.beats % 64 == 0 {
                            session.ring_supervisor();
                        }
                        watch.attaching = Attaching::Asked { session, since_ns };
                    }
                    // Silence: asked anew, under another number.
                    _ => watch.voice = None,
                }
            }
            Attaching::Done => watch.attaching = Attaching::Done,
        }
    }

    /// Reads the hello page and asks for an agent.
    fn ask(&self, watch: &mut Watch) -> Result<Option<KBox<Session>>> {
        let hello = match hello(&self.place)? {
            Ok(hello) => hello,
            Err(neap_abi::HelloError::Magic { .. } | neap_abi::HelloError::Checksum { .. }) => {
                return Ok(None)
            }
            Err(error) => {
                if !watch.complained {
                    watch.complained = true;
                    pr_err!("neap{}: {}\n", self.name(), Shown(error));
                }
                return Ok(None);
            }
        };
        let cpus = kernel::cpu::nr_cpu_ids().min(self.vectors);
        if cpus > u32::from(hello.cpus) {
            pr_err_once!("neap: {} CPUs, and the IPU has {} decision slots\n", cpus, hello.cpus);
            return Err(E2BIG);
        }
        let host = host().ok_or(ENODEV)?;
        let tasks = host.mechanism.tasks().len() as u32;
        if hello.tasks < tasks {
            pr_err_once!(
                "neap: the IPU's agents hold {} tasks: load the module with tasks={}\n",
                hello.tasks,
                hello.tasks
            );
            return Err(E2BIG);
        }
        if watch.arrivals.is_empty() {
            for _ in 0..tasks {
                watch.arrivals.push(Arrival::default(), GFP_KERNEL)?;
            }
        }
        watch.sessions = watch.sessions.wrapping_add(1).max(1);
        let policy = if watch.policy == 0 { policy_asked() } else { watch.policy };
        let (session, mut voice) = Session::new(&self.place, hello, cpus as u16, watch.sessions, policy)?;
        let session = KBox::new(session, GFP_KERNEL)?;
        voice.ask(&session);
        watch.voice = Some(voice);
        Ok(Some(session))
    }

    /// An agent runs: its session's wire is used from now on.
    fn attached(&self, host: &Host, watch: &mut Watch, session: KBox<Session>, agent: &AgentControl) {
        let Some(enclave) = host.mechanism.enclave(self.number) else { return };
        session.wire.set_bell(agent.peer, agent.vector);
        pr_info!(
            "neap{}: attached to boot {}, session {}, ABI {}, agent {}\n",
            self.name(),
            session.hello.boot,
            session.number,
            Shown(session.version),
            agent.incarnation
        );
        watch.incarnation = agent.incarnation;
        watch.ended = false;
        watch.condemned = None;
        watch.complained = false;
        watch.decided = None;
        watch.attaching = Attaching::Done;
        let first = watch.fault.is_none() && watch.fallbacks == 0;
        host.mechanism.begin_session(host, self.number);
        watch.leaving = host.publish(self.number, Some(session));
        if let Some(session) = host.session(self.number) {
            self.succeed(host, enclave, watch, session, agent);
        }
        if !first {
            watch.comebacks += 1;
        }
        self.decide(host, enclave, watch, Level::Ipu);
    }

    /// What the IPU says of its agent, as far as the supervisor bears it out.
    fn agent_of(watch: &Watch, session: &Session) -> Option<AgentControl> {
        let agent = session.agent()?;
        let Some(runs) = session.running() else { return Some(agent) };
        let can_be = if agent.incarnation == 0 {
            Version::from_bits(runs.version) < COMES_AND_GOES
        } else {
            !came_after(watch.incarnation, agent.incarnation)
                && !came_after(agent.incarnation, runs.incarnation.wrapping_add(1))
        };
        can_be.then_some(agent)
    }

    /// Takes note of agents that have come and gone.
    fn look(&self, host: &Host, enclave: &Enclave, watch: &mut Watch) {
        let Some(session) = host.session(self.number) else { return };
        let Some(agent) = Self::agent_of(watch, session) else { return };
        match agent.state {
            AgentState::Running if agent.incarnation != watch.incarnation => {
                pr_info!(
                    "neap{}: agent {} follows agent {}\n",
                    self.name(),
                    agent.incarnation,
                    watch.incarnation
                );
                watch.incarnation = agent.incarnation;
                watch.ended = false;
                if enclave.level() == Level::Ipu {
                    self.succeed(host, enclave, watch, session, &agent);
                }
            }
            AgentState::Running => {
                let back = core::mem::take(&mut watch.ended);
                if enclave.level() == Level::Ipu && back {
                    self.succeed(host, enclave, watch, session, &agent);
                } else if enclave.level() == Level::Ipu && agent.resyncs != watch.resyncs_asked {
                    watch.resyncs_asked = agent.resyncs;
                    enclave.ask_for_resync();
                }
            }
            AgentState::Dead | AgentState::Stopped | AgentState::GivenUp if !watch.ended => {
                watch.ended = true;
                pr_info!("neap{}: agent {} has ended\n", self.name(), watch.incarnation);
                if enclave.level() == Level::Ipu {
                    host.mechanism.forget_groups(host, self.number);
                    enclave.set_standing(Standing::Gone);
                }
            }
            _ => {}
        }
    }

    /// An agent decides from now on, and knows nothing yet.
    fn succeed(
        &self,
        host: &Host,
        enclave: &Enclave,
        watch: &mut Watch,
        session: &Session,
        agent: &AgentControl,
    ) {
        let named = if agent.version >= COMES_AND_GOES { agent.incarnation } else { 0 };
        let only = (session.version >= COMES_AND_GOES).then_some(named);
        enclave.ask_for_resync();
        enclave.set_agent(only, session.version);
        host.mechanism.forget_groups(host, self.number);
        session.wire.forgive();
        session.wire.set_bell(agent.peer, agent.vector);
        enclave.set_standing(Standing::Good);
        watch.resyncs_asked = agent.resyncs;
        watch.told = None;
        watch.decisions_before = enclave.decisions();
        watch.watchdog.reset();
    }

    /// Whether the IPU is the one that the host attached to.
    fn look_at_link(&self, host: &Host, enclave: &Enclave, watch: &mut Watch) {
        if watch.beats % HELLO_BEATS != 0 {
            return;
        }
        let Some(session) = host.session(self.number) else { return };
        if !session.is_of_boot(&self.place) {
            self.part(host, enclave, watch, Some(Fault::LinkDown));
        }
    }

    /// The session is over: the host decides, and an attachment anew is tried.
    fn part(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, fault: Option<Fault>) {
        watch.ended = true;
        if let Some(fault) = fault {
            self.fault(host, enclave, watch, fault);
        }
        if enclave.level() == Level::Ipu {
            self.fall_back(host, enclave, watch, Standing::Gone);
        }
        let (voice, session) = (watch.voice.take(), host.session(self.number));
        if let (Some(mut voice), Some(session), None) = (voice, session, fault) {
            voice.detach(session);
        }
        // Where none was attached, the one before that may still be leaving.
        watch.leaving = host.publish(self.number, None).or(watch.leaving.take());
        watch.attaching = Attaching::Looking;
    }

    /// Whether whoever decides does.
    fn guard(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, gap_ns: u64) {
        if enclave.level() != Level::Ipu {
            return;
        }
        let Some(session) = host.session(self.number) else { return };
        if watch.beats % FLOOD_BEATS == 0 {
            host.mechanism.forget_rings(self.number);
        }
        let agent = Self::agent_of(watch, session);
        if let Some(agent) = agent {
            // Where it sleeps it may say anew at any time.
            session.wire.set_bell(agent.peer, agent.vector);
        }
        if agent.is_some_and(|agent| agent.state == AgentState::GivenUp) {
            return self.fault(host, enclave, watch, Fault::AgentDead);
        }
        if session.wire.poisoned() {
            return self.fault(host, enclave, watch, Fault::AgentPoisoned);
        }
        if host.mechanism.rings(self.number) >= FLOOD_RINGS {
            host.mechanism.forget_rings(self.number);
            return self.fault(host, enclave, watch, Fault::AgentFloods);
        }
        self.break_old_groups(host, watch);
        let (owes, lies) = host.mechanism.debts(host, self.number);
        let credits = agent.map_or(0, |agent| agent.credits);
        let told = watch.told.is_some_and(|end| credits.wrapping_sub(end) < u32::MAX / 2);
        let good = enclave.standing() == Standing::Good;
        let decided =
            enclave.decisions() != watch.decisions_before && watch.decided != Some(watch.incarnation);
        if good && (decided || (told && !owes)) {
            if decided {
                watch.decided = Some(watch.incarnation);
            }
            if let Some(voice) = &mut watch.voice {
                voice.confirm(session, watch.incarnation);
            }
        }
        let beat = Beat {
            gap: Duration::from_nanos(gap_ns),
            stalled: Duration::ZERO,
            owes,
            // Without the scheduler nobody takes anything.
            lies: lies && host.attached.load(Ordering::Acquire),
            decisions: enclave.decisions(),
            resync: (!told).then_some(credits),
        };
        match watch.watchdog.beat(beat) {
            None => {}
            Some(Blame::Host) => self.fault(host, enclave, watch, Fault::HostCpuHogged),
            Some(Blame::Agent) if watch.ended => self.fault(host, enclave, watch, Fault::AgentDead),
            Some(Blame::Agent) => self.fault(host, enclave, watch, Fault::AgentLate),
        }
    }

    /// Refuses groups that have been incomplete for half the time that an agent may owe a decision: the rest of them may never
    /// come, and until their CPUs are told, nobody decides for them.
    fn break_old_groups(&self, host: &Host, watch: &Watch) {
        // What it tells is told as by a CPU itself: a line that is begun is not left half-written.
        let _off = kernel::interrupt::local_interrupt_disable();
        let longest_ns = u64::from(watch.watchdog_ms) * 500_000;
        host.mechanism.break_old_groups(host, self.number, now_ns().saturating_sub(longest_ns));
    }

    /// Something is wrong: whoever is at fault is ended, and the host decides.
    fn fault(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, fault: Fault) {
        if let Some(count) = watch.faults.get_mut(fault as usize - 1) {
            *count += 1;
        }
        let command = match fault {
            Fault::HostCpuHogged => {
                // What lies there is for a CPU that sleeps: it is made to look.
                self.kick_all(host);
                return;
            }
            Fault::AgentLate | Fault::AgentDead => Some(Manage::CondemnLate),
            Fault::AgentFloods => Some(Manage::CondemnFlood),
            Fault::AgentPoisoned => Some(Manage::CondemnPoison),
            Fault::LinkDown => None,
        };
        watch.fault = Some(fault);
        if enclave.level() != Level::Ipu {
            return;
        }
        pr_warn!(
            "neap{}: {}: {} (agent {}); the host's own rule decides\n",
            self.name(),
            fault.name(),
            fault.in_words(),
            watch.incarnation
        );
        if let (Some(command), Some(session)) = (command, host.session(self.number)) {
            let incarnation = Self::by_its_name(session, watch.incarnation);
            watch.condemned = Some(incarnation);
            // One that can't be managed can't be ended.
            let _ = session.manage(neap_abi::ManagerLine { incarnation, ..asking(command) });
        }
        // A CPU that has just taken what broke the protocol says so of it, whoever of the two was first to see it.
        let standing = if fault == Fault::AgentPoisoned { Standing::Poisoned } else { Standing::Gone };
        self.fall_back(host, enclave, watch, standing);
    }

    /// The number that the supervisor gave to the agent that calls itself `incarnation`.
    fn by_its_name(session: &Session, incarnation: u32) -> u32 {
        match session.running() {
            Some(runs) if incarnation == 0 || came_after(incarnation, runs.incarnation) => runs.incarnation,
            _ => incarnation,
        }
    }

    /// The host's own rule decides from now on: what the agent held is queued.
    fn fall_back(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, standing: Standing) {
        enclave.set_level(Level::Host);
        enclave.set_standing(standing);
        runqueues_pass();
        host.mechanism.forget_groups(host, self.number);
        let mut rescued = host.mechanism.rescue_from(self.number);
        // Those that were in flux are not any more.
        runqueues_pass();
        rescued += host.mechanism.rescue_from(self.number);
        watch.fallbacks += 1;
        watch.fell_ns = now_ns();
        pr_info!("neap{}: {} tasks were waiting for a decision\n", self.name(), rescued);
        self.kick_all(host);
    }

    /// The host has decided for long: the class is left.
    fn leave_class(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, now: u64) {
        if enclave.level() != Level::Ipu && enclave.runnable() > 0 {
            host.mechanism.rescue_from(self.number);
        }
        if host.mechanism.has_rescued() {
            self.kick_all(host);
        }
        let long = now.saturating_sub(watch.fell_ns) >= u64::from(watch.kernel_after_ms) * 1_000_000;
        let there = host.attached.load(Ordering::Acquire) && !self.others_decide(host);
        if enclave.level() == Level::Host && watch.fell_ns != 0 && long && there {
            enclave.set_level(Level::Kernel);
            self.say_left(watch.fault);
            let cause = watch.fault.map_or(0, |fault| fault as u32).max(1);
            host.cause.store(cause, Ordering::Release);
            self.kick_all(host);
        }
        if enclave.level() == Level::Kernel && host.attached.load(Ordering::Acquire) && watch.beats % 64 == 0
        {
            self.kick_all(host);
        }
    }

    /// Whether another enclave has an agent that decides: the class, of which there is one, is left when none has.
    fn others_decide(&self, host: &Host) -> bool {
        let mut others = (0..neap_mechanism::ENCLAVES_MAX as u8).filter(|&number| number != self.number);
        others
            .any(|number| host.mechanism.enclave(number).is_some_and(|enclave| enclave.level() == Level::Ipu))
    }

    /// Says why the class is left: the kernel itself says only that it was.
    fn say_left(&self, fault: Option<Fault>) {
        let why = fault.map_or("no agent", Fault::name);
        pr_warn!("neap{}: {}: tasks go back to the kernel's class\n", self.name(), why);
    }

    /// Back to the IPU, as soon as an agent runs there that is not the one that failed.
    fn come_back(&self, host: &Host, enclave: &Enclave, watch: &mut Watch) {
        if enclave.level() == Level::Ipu {
            return;
        }
        let Some(session) = host.session(self.number) else { return };
        let Some(agent) = Self::agent_of(watch, session) else { return };
        if agent.state != AgentState::Running
            || Some(Self::by_its_name(session, agent.incarnation)) == watch.condemned
        {
            return;
        }
        watch.condemned = None;
        watch.comebacks += 1;
        watch.incarnation = agent.incarnation;
        self.succeed(host, enclave, watch, session, &agent);
        pr_info!("neap{}: agent {} decides\n", self.name(), agent.incarnation);
        self.decide(host, enclave, watch, Level::Ipu);
    }

    fn decide(&self, host: &Host, enclave: &Enclave, watch: &mut Watch, level: Level) {
        watch.fell_ns = 0;
        host.cause.store(0, Ordering::Release);
        enclave.set_level(level);
        self.kick_all(host);
    }

    /// Tells the agent the whole state where it is due.
    fn tell(&self, host: &Host, enclave: &Enclave, watch: &mut Watch) {
        if enclave.level() != Level::Ipu || !enclave.resync_due() || watch.ended {
            return;
        }
        let Some(session) = host.session(self.number) else { return };
        session.wire.refresh_credits();
        if session.wire.room() < session.wire.lines() / 2 {
            return;
        }
        let mut resync = Resync { host, enclave: self.number, arrivals: &mut watch.arrivals, whole: false };
        // SAFETY: The argument is the resync, which nobody else uses until the call returns.
        unsafe { neap_stop_machine(core::ptr::from_mut(&mut resync).cast()) };
        if resync.whole {
            watch.resyncs += 1;
            watch.told = Some(session.wire.written());
            // Decisions that come now find their CPUs looking.
            self.kick_all(host);
        }
    }

    /// Tells agents of CPUs that a higher class holds for long.
    fn look_at_cpus(&self, host: &Host, enclave: &Enclave, now: u64) {
        if enclave.level() != Level::Ipu {
            return;
        }
        for (number, cpu) in (0..).zip(host.mechanism.cpus()) {
            let number: u16 = number;
            let since = cpu.other_ns();
            if cpu.owner() != Some(self.number)
                || since == 0
                || !cpu.is_open()
                || now.wrapping_sub(since) < OTHER_NS
            {
                continue;
            }
            // SAFETY: The function takes no argument and runs with interrupts off on that CPU; the caller may sleep.
            unsafe {
                kernel::bindings::smp_call_function_single(
                    number.into(),
                    Some(withhold),
                    core::ptr::null_mut(),
                    true,
                )
            };
        }
    }

    /// Sees to tasks whose CPUs are all with higher classes for long: they are queued for the moments that those leave.
    ///
    /// On a CPU that leaves none, the kernel's deadline server gives our class its share. But it stops for good where the CPU was
    /// idle, or had nothing of ours queued, while a task of ours waited for a decision: it starts when the first task
    /// comes to a CPU that has none. So those that it has forgotten leave the class, all of them, and come back.
    fn serve_stranded(&self, host: &Host, enclave: &Enclave, watch: &Watch, now: u64) {
        let there = enclave.level() == Level::Ipu && host.attached.load(Ordering::Acquire);
        if !there || watch.beats % STRANDED_BEATS != 0 {
            return;
        }
        if enclave.runnable() > 0 {
            host.mechanism.rescue_stranded(self.number, now.saturating_sub(STRANDED_NS));
        }
        let [stranded_ns, hosts_ns] = [STARVED_NS, LEFT_NS].map(|ns| now.saturating_sub(ns));
        let mut lent = KVec::new();
        host.mechanism.starved(self.number, stranded_ns, hosts_ns, |pid| {
            // Without memory it is the next time's.
            if lent.reserve(1, GFP_KERNEL).is_err() {
                return;
            }
            // SAFETY: No precondition but that the caller may sleep.
            let task = unsafe { neap_lend(pid) };
            if !task.is_null() {
                let _ = lent.push(task, GFP_KERNEL);
            }
        });
        for &task in &lent {
            // SAFETY: It came from `neap_lend`, and is given back once.
            unsafe { neap_take_back(task) };
        }
    }

    fn kick_all(&self, host: &Host) {
        for (number, cpu) in (0..).zip(host.mechanism.cpus()) {
            if cpu.owner() == Some(self.number) {
                kick(number, false);
            }
        }
    }

    /// The function is going: the host goes on without it.
    pub(crate) fn leave(&self) {
        let Some(host) = host() else { return };
        let Some(enclave) = host.mechanism.enclave(self.number) else { return };
        let mut watch = self.watch.lock();
        self.leave_with(host, enclave, &mut watch);
        let leaving = watch.leaving.take();
        // It may be waited for: the thread that looks after all functions does not wait with us.
        drop(watch);
        drop(leaving);
    }

    fn leave_with(&self, host: &Host, enclave: &Enclave, watch: &mut Watch) {
        watch.left = true;
        if let Attaching::Asked { .. } = watch.attaching {
            watch.voice = None;
        }
        let attached = watch.is_attached();
        watch.attaching = Attaching::Looking;
        if attached {
            watch.attaching = Attaching::Done;
            self.part(host, enclave, watch, None);
            watch.fault = Some(Fault::LinkDown);
        }
        enclave.set_level(Level::Kernel);
        if self.others_decide(host) {
            pr_warn!("neap{}: {}: the host's own rule decides\n", self.name(), Fault::LinkDown.name());
        } else if host.attached.load(Ordering::Acquire) {
            self.say_left(Some(Fault::LinkDown));
            host.cause.store(Fault::LinkDown as u32, Ordering::Release);
        }
        self.kick_all(host);
        host.mechanism.take_cpus(self.number);
    }
}

/// Takes the calling CPU out of the agent's hands.
///
/// # Safety
/// With interrupts off; the argument is not looked at.
unsafe extern "C" fn withhold(_unused: *mut c_void) {
    crate::kfuncs::withhold_here();
}
