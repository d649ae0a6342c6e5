//! One host, one link and one agent, in virtual time.
//!
//! The host's side of memory and the card's are apart: what the host writes is carried over word by word or line by line
//! when the link says so, and what it reads is a sample of the card's line, which lies in its cache until it is flushed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use neap_abi::message::TASK_NONE;
use neap_abi::{
    AgentControl, AgentState, Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags, Version,
};
use neap_agent::{Agent, AgentError, Bindings, Clock as AgentClock, Decide, Doorbell, Policy};
use neap_host::mechanism::{AgentStanding, Mechanism, TaskState};
use neap_host::ownership::Owners;
use neap_host::wire::Wire;
use neap_mechanism::watch::{Beat, Blame, Watchdog};
use neap_queue::Line;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::clock::Clock;
use crate::columns::Costs;
use crate::faults::{Fault, FaultKind};
use crate::policy::Outcome as Ran;

/// Words of a line.
const WORDS: usize = 8;
/// An idle CPU looks up so often by itself.
const LOOK_UP_NS: u64 = 20_000_000;
/// The host's housekeeping looks after the agent so often.
const BEAT_NS: u64 = 1_000_000;
/// How long an agent may owe a decision (design, section 4).
const WATCHDOG: Duration = Duration::from_millis(20);
/// After that the host decides itself, until another agent is there.
const RESTART_NS: u64 = 2_000_000;
/// An agent that waits for a moment looks at its clock so often.
const POLL_NS: u64 = 500;
/// The first version whose agents come and go within a session.
const COMES_AND_GOES: Version = Version { major: 1, minor: 2 };
/// While the link is down a read says so.
const ABSENT: [u64; WORDS] = [u64::MAX; WORDS];

/// Memory on one side of the link.
#[derive(Debug)]
pub struct Lines {
    messages: Vec<Line>,
    slots: Vec<Line>,
    control: Line,
}

impl Lines {
    fn new(messages: usize, cpus: u16) -> Self {
        let lines = |count| (0..count).map(|_| Line::default()).collect();
        Self { messages: lines(messages), slots: lines(usize::from(cpus)), control: Line::default() }
    }
}

/// Both sides.
#[derive(Debug)]
pub struct Memory {
    /// The card's DRAM.
    card: Lines,
    /// What the host has of it: what it has written, and its cache.
    host: Lines,
    revoke: AtomicU64,
    rung: RefCell<Vec<u16>>,
}

impl Memory {
    /// A ring of `messages` lines (a power of two), and a slot for each of `cpus`.
    #[must_use]
    pub fn new(messages: usize, cpus: u16) -> Self {
        Self {
            card: Lines::new(messages, cpus),
            host: Lines::new(messages, cpus),
            revoke: AtomicU64::new(0),
            rung: RefCell::new(Vec::new()),
        }
    }
}

/// The doorbell's page.
#[derive(Clone, Copy, Debug)]
struct Bell<'w>(&'w RefCell<Vec<u16>>);

impl Doorbell for Bell<'_> {
    fn ring(&self, cpu: u16) {
        self.0.borrow_mut().push(cpu);
    }
}

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Host CPUs, all of the enclave.
    pub cpus: u16,
    /// Tasks that there can be at a time.
    pub tasks: u32,
    /// What things cost.
    pub costs: Costs,
    /// What host and agent speak.
    pub version: Version,
    /// Whether things go wrong: then the host looks after its agent.
    pub faults: bool,
    /// A task's longest wait before it counts as starved, in ns.
    pub starved_ns: u64,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// When it came.
    pub at_ns: u64,
    /// How long it runs, without what the application does around it.
    pub run_ns: u64,
    /// Its service class.
    pub class: u8,
    /// Its group.
    pub group: u32,
    /// It blocks so often on its way, for a while each time.
    pub blocks: u8,
    /// Whose it is, to the load.
    pub thread: u32,
}

/// A request that waits for its time; the earliest is the least.
#[derive(Clone, Copy, Debug)]
struct Follower(Request);

impl PartialEq for Follower {
    fn eq(&self, other: &Self) -> bool {
        self.0.at_ns == other.0.at_ns
    }
}

impl Eq for Follower {}

impl PartialOrd for Follower {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Follower {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.at_ns, self.0.thread).cmp(&(other.0.at_ns, other.0.thread))
    }
}

/// Where requests come from, and where they end.
pub trait Load {
    /// The next request; none when there is no more.
    fn next_request(&mut self) -> Option<Request>;
    /// A request has ended. What it brings with it, e.g. its thread's next one, comes at its own time.
    fn finished(&mut self, request: &Request, now_ns: u64) -> Option<Request>;
}

#[derive(Clone, Copy, Debug, Default)]
struct Job {
    request: Option<Request>,
    left_ns: u64,
    blocks_left: u8,
    /// The CPU that truly runs it; ours to know, whatever the mechanism says.
    on: Option<u16>,
    last_cpu: u16,
    runnable_ns: u64,
    /// Moves whenever the task's state does: what a txn must not be behind of.
    true_stamp: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Idle,
    /// Between two tasks, or between idleness and a task.
    Switching,
    /// Runs a task, since a time.
    Running {
        task: u32,
        since_ns: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Cpu {
    doing: Doing,
    /// Moves when what was to come does not come any more.
    generation: u32,
    /// The event that waits for its line.
    pending: Option<Message>,
    /// A line is in the cache: no read goes to the card before it is flushed.
    cached: bool,
    /// An interrupt came while it could not be looked at.
    rung: bool,
    idle_since_ns: u64,
    switch_since_ns: u64,
}

/// What is to come.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A request comes.
    Arrival,
    /// A request comes that another has brought.
    Follow,
    /// A blocked task wakes.
    Wake(u32, u32),
    /// A posted line lands.
    Land(u32),
    /// One word of it.
    LandWord(u32, u8),
    /// The agent looks.
    Agent(u32),
    /// An MSI-X arrives.
    Ring(u16),
    /// A read of a slot is served by the card.
    Sample(u16, u32),
    /// A CPU looks at what it has read.
    Decide(u16, u32),
    /// A task begins to run.
    Start(u16, u32),
    /// What runs has run.
    End(u16, u32),
    /// A CPU that runs has read its slot because of an interrupt.
    Peek(u16, u32),
    /// An idle CPU looks by itself.
    LookUp,
    /// The host's housekeeping.
    Beat,
    /// Something goes wrong.
    Fault(u16),
    /// An agent is there again.
    Restart(u32),
    /// The link is there again.
    LinkUp,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    line: u32,
    words: [u64; WORDS],
    left: u8,
    epoch: u32,
}

/// What a world has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests that came and that ended.
    pub arrived: u64,
    /// Those that ended.
    pub finished: u64,
    /// Decisions carried out.
    pub committed: u64,
    /// Of them, found in the slot at the end of a run.
    pub hits: u64,
    /// Looks at the end of a run that found nothing.
    pub misses: u64,
    /// Tasks that lost their CPU to another.
    pub preemptions: u64,
    /// Verdicts by kind.
    pub refused: u64,
    /// Times of switches, from one task's end to the next one's start, in ns.
    pub switches_ns: Vec<u32>,
    /// Of them, the times of those that found a prestaged decision.
    pub hit_switch_ns: u64,
    /// Reads across the link that such a switch waited for.
    pub hit_uncached_reads: u64,
    /// Decisions that let a CPU's tick stop.
    pub tickless: u64,
    /// Messages that the agent took.
    pub messages: u64,
    /// Decisions that it made.
    pub decisions: u64,
    /// Resyncs begun.
    pub resyncs: u64,
    /// Times that the host decided for itself.
    pub fallbacks: u64,
    /// Faults that took place.
    pub faults: u64,
    /// What should never be.
    pub violations: Vec<String>,
    /// A digest of every message and every txn in their order and times.
    pub trace_hash: u64,
}

struct Home<'w, P> {
    agent: Agent<'w, Bell<'w>>,
    policy: P,
    /// It has heard its first resync begin.
    begun: bool,
    number: u32,
    hangs: bool,
}

/// Counts and digests what a policy decides.
struct Deciding<'a, D> {
    inner: &'a mut D,
    made: u32,
    digest: &'a mut u64,
    /// What is decided ahead is kept back until its CPU asks, where nothing is prestaged.
    back: Option<&'a mut Back>,
}

/// Decisions kept back, by CPU, and the number of the last one published there.
#[derive(Default)]
struct Back(Vec<(Option<Txn>, u32)>);

fn mix(digest: &mut u64, word: u64) {
    *digest = (*digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
}

impl<D: Decide> Decide for Deciding<'_, D> {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        if let (Some(back), [txn]) = (&mut self.back, txns)
            && let Some((kept, last)) = back.0.get_mut(usize::from(txn.cpu))
        {
            if txn.flags == TxnFlags::PRESTAGED && txn.operation == Operation::Run as u8 {
                *kept = Some(Txn { flags: TxnFlags(0), ..*txn });
                // As the slot will number it.
                return Ok(last.wrapping_add(1));
            }
            self.made += 1;
            let id = self.inner.txns_commit(txns)?;
            (*kept, *last) = (None, id);
            return Ok(id);
        }
        self.made += txns.len() as u32;
        for txn in txns {
            txn.to_payload().iter().for_each(|&word| mix(self.digest, word));
        }
        self.inner.txns_commit(txns)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.made += txns.len() as u32;
        self.inner.txns_commit_group(txns)
    }

    fn nudge(&mut self, cpu: u16) {
        let kept = self.back.as_mut().and_then(|back| back.0.get_mut(usize::from(cpu))?.0.take());
        match kept {
            Some(txn) => drop(self.txns_commit(&[txn])),
            None => self.inner.nudge(cpu),
        }
    }

    fn resync(&mut self) {
        self.inner.resync();
    }
}

/// A host, a link and an agent.
pub struct World<'w, P, L> {
    /// The clock, with what is to come.
    pub clock: Clock<Event>,
    /// What it has seen.
    pub seen: Seen,
    setup: Setup,
    memory: &'w Memory,
    mechanism: Mechanism,
    wire: Wire<'w>,
    home: Option<Home<'w, P>>,
    make: Box<dyn FnMut() -> P + 'w>,
    load: L,
    rng: ChaCha8Rng,
    cpus: Vec<Cpu>,
    jobs: Vec<Job>,
    free: Vec<u32>,
    /// The request that comes next.
    coming: Option<Request>,
    /// Those that others have brought, by their time.
    followers: BinaryHeap<Reverse<Follower>>,
    backlog: VecDeque<Request>,
    flights: Vec<Flight>,
    flights_free: Vec<u32>,
    /// Moves when all that is on the link is lost.
    epoch: u32,
    /// Kinds of the lines that the agent has not taken, in order: what they cost it.
    told: VecDeque<MessageKind>,
    back: Back,
    agent_due: bool,
    agent_busy_ns: u64,
    agents: u32,
    faults: Vec<Fault>,
    /// How often each kind of trouble is still to befall what comes next.
    trouble: [u32; FaultKind::COUNT],
    link_up: bool,
    host_decides: bool,
    outbox: VecDeque<Message>,
    resync_due: bool,
    resyncs_asked: u32,
    watchdog: Watchdog,
    /// A resync's last line has been sent but not its agent's answer seen.
    resync_since_ns: Option<u64>,
    beats_on: bool,
    /// The next agent needs a session of its own.
    anew: bool,
}

impl<'w, P: Policy, L: Load> World<'w, P, L> {
    /// A world at rest, with its first agent and its first request on their way.
    ///
    /// # Panics
    /// Memory that makes no ring: the caller's mistake.
    pub fn new(
        setup: Setup,
        memory: &'w Memory,
        make: impl FnMut() -> P + 'w,
        load: L,
        rng: ChaCha8Rng,
        faults: Vec<Fault>,
    ) -> Self {
        let owners = Arc::new(Owners::new(setup.cpus, setup.tasks));
        let mut mechanism = Mechanism::sharing(owners, 0, setup.version);
        for cpu in 0..setup.cpus {
            mechanism.adopt_cpu(cpu);
        }
        let wire = Wire::new(&memory.host.messages, &memory.host.slots, &memory.card.control)
            .expect("the caller gives a ring");
        let cpu = Cpu {
            doing: Doing::Idle,
            generation: 0,
            pending: None,
            cached: false,
            rung: false,
            idle_since_ns: 0,
            switch_since_ns: 0,
        };
        let mut world = Self {
            clock: Clock::default(),
            seen: Seen::default(),
            setup,
            memory,
            mechanism,
            wire,
            home: None,
            make: Box::new(make),
            load,
            rng,
            cpus: vec![cpu; usize::from(setup.cpus)],
            jobs: vec![Job::default(); setup.tasks as usize],
            free: (0..setup.tasks).rev().collect(),
            coming: None,
            followers: BinaryHeap::new(),
            backlog: VecDeque::new(),
            flights: Vec::new(),
            flights_free: Vec::new(),
            epoch: 0,
            told: VecDeque::new(),
            back: Back(vec![(None, 0); usize::from(setup.cpus)]),
            agent_due: false,
            agent_busy_ns: 0,
            agents: 0,
            faults,
            trouble: [0; FaultKind::COUNT],
            link_up: true,
            host_decides: false,
            outbox: VecDeque::new(),
            resync_due: false,
            resyncs_asked: 0,
            watchdog: Watchdog::new(WATCHDOG),
            resync_since_ns: None,
            beats_on: setup.faults,
            anew: false,
        };
        world.new_agent();
        world.clock.at(0, Event::Arrival);
        if setup.faults {
            world.clock.after(BEAT_NS, Event::Beat);
            world.clock.after(LOOK_UP_NS, Event::LookUp);
            for number in 0..world.faults.len() {
                let at_ns = world.faults[number].at_ns;
                world.clock.at(at_ns, Event::Fault(number as u16));
            }
        }
        world
    }

    /// Lets everything happen until `until_ns`, or until nothing more can.
    pub fn run(&mut self, until_ns: u64) {
        while let Some(event) = self.clock.next_event() {
            self.happen(event);
            if self.clock.now_ns() >= until_ns || !self.seen.violations.is_empty() {
                break;
            }
        }
    }

    /// What it has seen, and the load with what that has counted.
    pub fn into_outcome(self) -> Ran<L> {
        Ran { events: self.clock.events(), seen: self.seen, load: self.load }
    }

    /// Requests that wait for a task.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Whether every request has ended.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.free.len() == self.setup.tasks as usize
            && self.backlog.is_empty()
            && self.coming.is_none()
            && self.followers.is_empty()
    }

    /// Says what should never be.
    fn violated(&mut self, what: String) {
        let now_us = self.clock.now_ns() as f64 / 1e3;
        self.seen.violations.push(format!("at {now_us:.3} us: {what}"));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival => self.arrival(),
            Event::Follow => {
                if let Some(Reverse(Follower(request))) = self.followers.pop() {
                    self.admit(request);
                }
            }
            Event::Wake(task, stamp) => self.wake(task, stamp),
            Event::Land(flight) => self.land(flight, None),
            Event::LandWord(flight, word) => self.land(flight, Some(word)),
            Event::Agent(number) => self.agent(number),
            Event::Ring(cpu) => self.ring(cpu),
            Event::Sample(cpu, generation) => {
                if self.cpus[usize::from(cpu)].generation == generation {
                    self.sample(cpu);
                }
            }
            Event::Decide(cpu, generation) => {
                if self.cpus[usize::from(cpu)].generation == generation {
                    self.decide(cpu);
                }
            }
            Event::Start(cpu, generation) => {
                if self.cpus[usize::from(cpu)].generation == generation {
                    self.start(cpu);
                }
            }
            Event::End(cpu, generation) => {
                if self.cpus[usize::from(cpu)].generation == generation {
                    self.end(cpu);
                }
            }
            Event::Peek(cpu, generation) => {
                if self.cpus[usize::from(cpu)].generation == generation {
                    self.peek(cpu);
                }
            }
            Event::LookUp => self.look_up(),
            Event::Beat => self.beat(),
            Event::Fault(number) => self.fault(number),
            Event::Restart(number) => {
                if self.agents == number {
                    self.new_agent();
                }
            }
            Event::LinkUp => self.link_is_up(),
        }
    }

    // What comes, and what tasks do.

    fn arrival(&mut self) {
        if let Some(request) = self.coming.take() {
            self.admit(request);
        }
        if let Some(request) = self.load.next_request() {
            self.coming = Some(request);
            self.clock.at(request.at_ns, Event::Arrival);
        }
    }

    fn admit(&mut self, request: Request) {
        self.seen.arrived += 1;
        if self.free.is_empty() {
            self.backlog.push_back(request);
        } else {
            self.create(request);
        }
    }

    fn create(&mut self, request: Request) {
        let Some(task) = self.free.pop() else { return };
        let now_ns = self.clock.now_ns();
        self.mechanism.create(task, 0, 0);
        let job = &mut self.jobs[task as usize];
        *job = Job {
            request: Some(request),
            left_ns: request.run_ns + self.setup.costs.request_ns,
            blocks_left: request.blocks,
            runnable_ns: now_ns,
            true_stamp: job.true_stamp + 1,
            ..Job::default()
        };
        let cpu = self.mechanism.voice();
        self.tell(MessageKind::TaskNew, cpu, task, TaskFlags::RUNNABLE, self.setup.costs.write_ns);
    }

    fn wake(&mut self, task: u32, stamp: u32) {
        let job = &mut self.jobs[task as usize];
        if job.true_stamp != stamp || job.request.is_none() {
            return;
        }
        job.true_stamp += 1;
        job.runnable_ns = self.clock.now_ns();
        let cpu = job.last_cpu;
        self.mechanism.change(task, TaskState::Runnable);
        self.tell(MessageKind::TaskWakeup, cpu, task, TaskFlags::RUNNABLE, self.setup.costs.write_ns);
    }

    // The link, towards the card.

    /// Tells the agent of an event; the line leaves the CPU after `write_ns`.
    fn tell(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags, write_ns: u64) {
        let mut message = self.mechanism.message(kind, cpu, task, flags);
        if let Some(request) = self.jobs.get(task as usize).and_then(|job| job.request) {
            (message.class, message.group) = (request.class, request.group);
        }
        self.emit(message, write_ns);
    }

    fn emit(&mut self, mut message: Message, write_ns: u64) {
        if self.host_decides {
            self.host_kick();
            return;
        }
        message.time_ns = self.clock.now_ns();
        if self.resync_due {
            return;
        }
        if self.outbox.is_empty() {
            if !self.send(message, write_ns) {
                self.resync_due = true;
            }
            return;
        }
        if let Some((txn, outcome)) = self.wire.take_txn_outcome(message.cpu) {
            (message.txn, message.outcome) = (txn, outcome);
        }
        self.outbox.push_back(message);
        self.pump();
    }

    fn pump(&mut self) {
        if self.host_decides {
            return;
        }
        if self.resync_due {
            self.wire.refresh_credits();
            if self.wire.room() < self.wire.lines() / 2 {
                return;
            }
            self.resync_due = false;
            self.seen.resyncs += 1;
            self.resync_since_ns = Some(self.clock.now_ns());
            let mut lines = self.mechanism.resync();
            for message in &mut lines {
                if let Some(request) = self.jobs.get(message.task as usize).and_then(|job| job.request) {
                    (message.class, message.group) = (request.class, request.group);
                }
            }
            self.outbox = lines.into();
        }
        let write_ns = self.setup.costs.write_ns;
        while let Some(&message) = self.outbox.front() {
            if !self.send(message, write_ns) {
                break;
            }
            self.outbox.pop_front();
        }
    }

    fn send(&mut self, message: Message, write_ns: u64) -> bool {
        let Ok(number) = self.wire.send(message) else { return false };
        self.told.push_back(message.kind);
        let lines = self.memory.host.messages.len() as u32;
        let line = number & (lines - 1);
        let words = self.memory.host.messages[line as usize].words();
        words.iter().for_each(|&word| mix(&mut self.seen.trace_hash, word));
        if !self.link_up {
            return true;
        }
        let mut transit_ns = write_ns + self.setup.costs.transit_ns;
        if self.befalls(FaultKind::DelayedWrite) {
            transit_ns += self.rng.random_range(1_000..200_000);
        }
        let flight = Flight { line, words, left: WORDS as u8, epoch: self.epoch };
        let number = match self.flights_free.pop() {
            Some(number) => {
                self.flights[number as usize] = flight;
                number
            }
            None => {
                self.flights.push(flight);
                self.flights.len() as u32 - 1
            }
        };
        if self.befalls(FaultKind::SplitWrite) {
            for word in 0..WORDS as u8 {
                let after_ns = transit_ns + self.rng.random_range(0..20_000);
                self.clock.after(after_ns, Event::LandWord(number, word));
            }
        } else {
            self.clock.after(transit_ns, Event::Land(number));
        }
        true
    }

    fn land(&mut self, number: u32, word: Option<u8>) {
        let flight = self.flights[number as usize];
        let line = &self.memory.card.messages[flight.line as usize];
        let whole = flight.epoch == self.epoch;
        match word {
            None => {
                self.flights_free.push(number);
                if whole {
                    flight.words.iter().enumerate().for_each(|(i, &value)| line.land(i, value));
                }
            }
            Some(word) => {
                if whole {
                    line.land(usize::from(word), flight.words[usize::from(word)]);
                }
                let left = &mut self.flights[number as usize].left;
                *left -= 1;
                if *left == 0 {
                    self.flights_free.push(number);
                }
            }
        }
        if whole {
            self.agent_soon();
        }
    }

    // The agent.

    fn new_agent(&mut self) {
        let goes_on = self.setup.version >= COMES_AND_GOES && self.agents > 0 && !self.anew;
        let mut taken = 0;
        if goes_on {
            // As the supervisor counts: the control line may be older than the slots.
            let control = AgentControl::from_payload(&self.memory.card.control.words());
            let slots = self.memory.card.slots.iter().filter_map(Line::read_any);
            let alleged = slots.map(|(payload, _)| Txn::from_payload(&payload).credits);
            for credits in alleged.chain(control.map(|control| control.credits)) {
                if credits.wrapping_sub(taken) < u32::MAX / 2 {
                    taken = credits;
                }
            }
        } else if self.agents > 0 {
            // Another session: lines of an earlier one must prove nothing in this.
            self.epoch += 1;
            self.told.clear();
            for lines in [&self.memory.card, &self.memory.host] {
                lines.messages.iter().chain(&lines.slots).for_each(Line::clear);
            }
            self.memory.card.control.clear();
            self.cpus.iter_mut().for_each(|cpu| cpu.cached = false);
            self.wire =
                Wire::new(&self.memory.host.messages, &self.memory.host.slots, &self.memory.card.control)
                    .expect("it was a ring before");
            self.resyncs_asked = 0;
        }
        self.anew = false;
        self.agents += 1;
        let number = self.agents;
        let named = (self.setup.version >= COMES_AND_GOES).then_some(number);
        self.mechanism.agent = AgentStanding::Good;
        self.mechanism.incarnation = named;
        self.wire.succeed(named);
        let memory = self.memory;
        let bindings = Bindings {
            slots: &memory.card.slots,
            control: &memory.card.control,
            revoke: &memory.revoke,
            doorbell: Bell(&memory.rung),
            core: 1,
            wake: (0, 0),
            session: number,
            version: self.setup.version,
            incarnation: number,
            taken,
            resyncs: self.resyncs_asked,
            clock: AgentClock::Own,
        };
        let mut agent = Agent::new(bindings, ()).expect("CPUs within bounds");
        agent.create_queue(&memory.card.messages).expect("a fresh ring");
        agent.report(AgentState::Running, false);
        let policy = (self.make)();
        self.home = Some(Home { agent, policy, begun: false, number, hangs: false });
        self.host_decides = false;
        self.watchdog.reset();
        self.outbox.clear();
        self.resync_due = true;
        self.pump();
    }

    fn agent_soon(&mut self) {
        let Some(home) = &self.home else { return };
        if self.agent_due || home.hangs {
            return;
        }
        self.agent_due = true;
        let number = home.number;
        let at_ns = self.clock.now_ns().max(self.agent_busy_ns) + self.message_ns();
        self.clock.at(at_ns, Event::Agent(number));
    }

    /// What the next message costs the agent.
    fn message_ns(&self) -> u64 {
        let costs = &self.setup.costs;
        match self.told.front() {
            Some(MessageKind::TxnOutcome) => costs.outcome_ns,
            Some(MessageKind::TaskDead | MessageKind::TaskBlocked) => costs.message_ns + costs.uncached_ns,
            _ => costs.message_ns,
        }
    }

    fn agent(&mut self, number: u32) {
        self.agent_due = false;
        let now_ns = self.clock.now_ns();
        let Some(home) = self.home.as_mut().filter(|home| home.number == number && !home.hangs) else {
            return;
        };
        let mut deciding = Deciding {
            inner: &mut home.agent,
            made: 0,
            digest: &mut self.seen.trace_hash,
            back: if self.setup.costs.prestages { None } else { Some(&mut self.back) },
        };
        let mut waits = false;
        match deciding.inner.poll_message() {
            Ok(Some(message)) => {
                self.told.pop_front();
                if message.kind == MessageKind::ResyncBegin {
                    home.begun = true;
                }
                if message.kind == MessageKind::ResyncEnd {
                    self.resync_since_ns = None;
                }
                self.seen.messages += 1;
                // What was meant for nobody is passed over, as the libOS's loop does.
                if home.begun {
                    home.policy.message(&message, &mut deciding);
                }
            }
            Ok(None) => deciding.inner.report(AgentState::Running, false),
            Err(_) => drop(self.told.pop_front()),
        }
        if P::TIMED && home.begun {
            waits = home.policy.time(now_ns, &mut deciding);
        }
        let made = deciding.made;
        self.seen.decisions += u64::from(made);
        let costs = self.setup.costs;
        let mut busy_ns = now_ns + u64::from(made) * costs.open_ns;
        let rung: Vec<u16> = std::mem::take(&mut *self.memory.rung.borrow_mut());
        for cpu in rung {
            busy_ns += costs.send_ns;
            self.doorbell(cpu, busy_ns);
        }
        self.agent_busy_ns = busy_ns;
        let home = self.home.as_mut().expect("it was there above");
        if home.agent.has_message() {
            self.agent_due = true;
            let message_ns = self.message_ns();
            self.clock.at(busy_ns + message_ns, Event::Agent(number));
        } else if waits {
            self.agent_due = true;
            self.clock.at(busy_ns + POLL_NS, Event::Agent(number));
        } else {
            home.agent.report(AgentState::Running, false);
        }
    }

    fn doorbell(&mut self, cpu: u16, at_ns: u64) {
        if !self.link_up {
            return;
        }
        let mut at_ns = at_ns + self.setup.costs.ring_transit_ns;
        if self.befalls(FaultKind::LostRing) {
            return;
        }
        if self.befalls(FaultKind::LateRing) {
            at_ns += self.rng.random_range(1_000..500_000);
        }
        if self.befalls(FaultKind::DoubledRing) {
            let again_ns = self.rng.random_range(1..50_000);
            self.clock.at(at_ns + again_ns, Event::Ring(cpu));
        }
        self.clock.at(at_ns, Event::Ring(cpu));
    }

    // The host's CPUs.

    /// The card answers a read of a slot; what the cache holds already is not read again.
    fn sample(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        if self.cpus[at].cached {
            return;
        }
        self.cpus[at].cached = true;
        let words = if self.link_up { self.memory.card.slots[at].words() } else { ABSENT };
        let line = &self.memory.host.slots[at];
        words.iter().enumerate().for_each(|(i, &word)| line.land(i, word));
    }

    fn flush(&mut self, cpu: u16) {
        if !self.befalls(FaultKind::StaleLine) {
            self.cpus[usize::from(cpu)].cached = false;
        }
    }

    /// A read that nothing has prepared: sampled on its way, looked at when it is back.
    fn read_then(&mut self, cpu: u16, after_ns: u64, then: fn(u16, u32) -> Event) {
        let generation = self.cpus[usize::from(cpu)].generation;
        let costs = &self.setup.costs;
        let (transit_ns, read_ns) = (costs.transit_ns, costs.read_ns);
        self.clock.after(after_ns + transit_ns.min(read_ns), Event::Sample(cpu, generation));
        self.clock.after(after_ns + read_ns, then(cpu, generation));
    }

    fn ring(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let receive_ns = self.setup.costs.receive_ns;
        match self.cpus[at].doing {
            Doing::Idle => {
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].generation += 1;
                self.flush(cpu);
                self.read_then(cpu, receive_ns, Event::Decide);
            }
            Doing::Switching => self.cpus[at].rung = true,
            Doing::Running { task, since_ns } => {
                let now_ns = self.clock.now_ns();
                let job = &mut self.jobs[task as usize];
                job.left_ns = job.left_ns.saturating_sub(now_ns - since_ns);
                self.cpus[at].generation += 1;
                self.flush(cpu);
                self.read_then(cpu, receive_ns, Event::Peek);
            }
        }
    }

    /// An interrupted CPU has its slot before it.
    fn peek(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let Doing::Running { task, .. } = self.cpus[at].doing else { return };
        let now_ns = self.clock.now_ns();
        let words = self.memory.host.slots[at].words();
        let preempts = Txn::from_payload(&words).flags.has(TxnFlags::PREEMPT);
        if preempts && !self.host_decides && self.wire.has_untaken(cpu) {
            let taken = self.take(cpu);
            if self.cpu_task(cpu) != task {
                // It lost its CPU. Its event and the verdict are one line.
                self.seen.preemptions += 1;
                let job = &mut self.jobs[task as usize];
                (job.on, job.last_cpu, job.runnable_ns) = (None, cpu, now_ns);
                job.true_stamp += 1;
                let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
                self.tell(MessageKind::TaskPreempt, cpu, task, flags, self.setup.costs.write_ns);
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].switch_since_ns = now_ns;
                self.begin_or_idle(cpu, taken);
                return;
            }
            // Refused: the verdict goes by itself.
            self.tell(MessageKind::TxnOutcome, cpu, task, TaskFlags::ON_CPU, self.setup.costs.write_ns);
        }
        self.cpus[at].doing = Doing::Running { task, since_ns: now_ns };
        let generation = self.cpus[at].generation;
        self.clock.after(self.jobs[task as usize].left_ns, Event::End(cpu, generation));
    }

    fn cpu_task(&self, cpu: u16) -> u32 {
        self.mechanism.cpu(cpu).map_or(TASK_NONE, |cpu| cpu.task)
    }

    /// What runs on a CPU has run.
    fn end(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let Doing::Running { task, .. } = self.cpus[at].doing else { return };
        let now_ns = self.clock.now_ns();
        let job = &mut self.jobs[task as usize];
        (job.on, job.last_cpu, job.left_ns) = (None, cpu, 0);
        job.true_stamp += 1;
        let kind = if job.blocks_left > 0 {
            job.blocks_left -= 1;
            job.left_ns = job.request.map_or(0, |request| request.run_ns);
            self.mechanism.change(task, TaskState::Blocked);
            MessageKind::TaskBlocked
        } else {
            if let Some(request) = job.request.take() {
                self.seen.finished += 1;
                if let Some(next) = self.load.finished(&request, now_ns) {
                    self.followers.push(Reverse(Follower(next)));
                    self.clock.at(next.at_ns, Event::Follow);
                }
            } else {
                self.violated(format!("task {task} ends twice"));
            }
            self.mechanism.change(task, TaskState::Free);
            MessageKind::TaskDead
        };
        let message = self.mechanism.message(kind, cpu, task, TaskFlags::WAS_ON_CPU);
        let entry = &mut self.cpus[at];
        entry.pending = Some(message);
        entry.doing = Doing::Switching;
        entry.generation += 1;
        entry.switch_since_ns = now_ns;
        let generation = entry.generation;
        let costs = self.setup.costs;
        if self.host_decides {
            self.clock.after(costs.before_ns, Event::Decide(cpu, generation));
        } else if costs.prestages {
            // The prefetch goes out before the kernel's own work, and is back when that is done.
            self.clock.after(costs.transit_ns, Event::Sample(cpu, generation));
            self.clock.after(costs.before_ns.max(2 * costs.transit_ns), Event::Decide(cpu, generation));
        } else {
            // Its slot is looked at when the agent rings: nothing is there before.
            self.clock.after(costs.before_ns, Event::Decide(cpu, generation));
        }
    }

    fn next_from_backlog(&mut self) {
        if !self.free.is_empty()
            && let Some(request) = self.backlog.pop_front()
        {
            self.create(request);
        }
    }

    /// A CPU looks at its slot, enforces what it finds, and writes its one line.
    fn decide(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let after_run = self.cpus[at].pending.is_some();
        let prestages = self.setup.costs.prestages;
        let cold = !self.cpus[at].cached && !self.host_decides;
        let next = if after_run && !prestages && !self.host_decides { None } else { self.take(cpu) };
        let write_ns = self.setup.costs.write_ns;
        match self.cpus[at].pending.take() {
            Some(message) => {
                let mut flags = message.flags;
                if next.is_none_or(|task| task == TASK_NONE) {
                    flags = flags.with(TaskFlags::CPU_IDLE);
                    self.seen.misses += 1;
                } else {
                    self.seen.hits += 1;
                }
                let cpu_stamp = self.mechanism.cpu(cpu).map_or(0, |cpu| cpu.stamp);
                self.emit(Message { flags, cpu_stamp, ..message }, write_ns);
                if message.kind == MessageKind::TaskBlocked {
                    // A task that is still on its way out is woken when it is out.
                    let (task, wait_ns) = (message.task, self.rng.random_range(1_000..100_000));
                    let stamp = self.jobs[task as usize].true_stamp;
                    self.clock.after(wait_ns, Event::Wake(task, stamp));
                }
                if message.kind == MessageKind::TaskDead {
                    // Its number is another's only after the agent has been told that it is gone.
                    self.free.push(message.task);
                    self.next_from_backlog();
                }
            }
            None => {
                if let Some(task) = next {
                    let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
                    self.tell(MessageKind::TxnOutcome, cpu, task, flags, write_ns);
                }
            }
        }
        if after_run && next.is_some_and(|task| task != TASK_NONE) {
            let costs = &self.setup.costs;
            let ns = self.clock.now_ns() - self.cpus[at].switch_since_ns
                + costs.after_ns
                + costs.protocol_ns
                + costs.write_ns;
            self.seen.hit_switch_ns += ns;
            self.seen.hit_uncached_reads += u64::from(cold);
        }
        self.begin_or_idle(cpu, next);
    }

    fn begin_or_idle(&mut self, cpu: u16, next: Option<u32>) {
        let at = usize::from(cpu);
        let generation = self.cpus[at].generation;
        if next.is_some_and(|task| task != TASK_NONE) {
            let costs = &self.setup.costs;
            let ns = costs.after_ns + costs.protocol_ns + costs.write_ns;
            self.clock.after(ns, Event::Start(cpu, generation));
            return;
        }
        self.cpus[at].doing = Doing::Idle;
        self.cpus[at].idle_since_ns = self.clock.now_ns();
        if std::mem::take(&mut self.cpus[at].rung) {
            self.clock.after(1, Event::Ring(cpu));
        }
        self.host_kick();
    }

    /// Takes what lies before the CPU and carries it out. None if nothing does; [`TASK_NONE`] if it was refused.
    fn take(&mut self, cpu: u16) -> Option<u32> {
        let txn = if self.host_decides {
            let task = self.mechanism.first_runnable_on(cpu)?;
            // Whoever decides, the stamps hold.
            Txn::run(cpu, task, self.mechanism.task(task)?.stamp)
        } else {
            let txn = self.wire.read_txn(cpu)?;
            self.flush(cpu);
            txn
        };
        let standing = self.mechanism.agent;
        let named = self.mechanism.incarnation;
        if self.host_decides {
            (self.mechanism.agent, self.mechanism.incarnation) = (AgentStanding::Good, None);
        }
        let foreign = self.mechanism.is_of_another_agent(&txn);
        let before = self.mechanism.task(txn.task).map(|task| task.stamp);
        let verdicts = self.mechanism.commit(cpu, &txn);
        (self.mechanism.agent, self.mechanism.incarnation) = (standing, named);
        let mut next = TASK_NONE;
        for verdict in verdicts {
            if !self.host_decides && !foreign {
                self.wire.set_txn_outcome(verdict.cpu, verdict.txn, verdict.outcome);
            }
            match verdict.switch {
                Some(switch) if verdict.cpu == cpu => {
                    next = switch.task;
                    self.seen.tickless += u64::from(txn.flags.has(TxnFlags::TICKLESS));
                    if before != Some(txn.stamp) {
                        self.violated(format!(
                            "a txn for task {} is committed on stamp {}, and the task's is {before:?}",
                            txn.task, txn.stamp
                        ));
                    }
                    self.carried_out(cpu, next, switch.preempted);
                }
                _ => self.seen.refused += u64::from(verdict.outcome != Outcome::Committed),
            }
        }
        if self.wire.poisoned() {
            self.violated("an honest agent is found to have broken the protocol".to_owned());
        }
        Some(next)
    }

    fn carried_out(&mut self, cpu: u16, task: u32, preempted: u32) {
        let now_ns = self.clock.now_ns();
        if usize::from(cpu) >= self.cpus.len() {
            return self.violated(format!("a decision for CPU {cpu}, which is not the enclave's"));
        }
        let Some(job) = self.jobs.get_mut(task as usize) else {
            return self.violated(format!("task {task} runs, and there is none"));
        };
        if job.request.is_none() {
            return self.violated(format!("task {task} runs, and has ended"));
        }
        if let Some(other) = job.on {
            return self.violated(format!("task {task} runs on CPU {other} and is given CPU {cpu}"));
        }
        let waited_ns = now_ns - job.runnable_ns;
        (job.on, job.last_cpu) = (Some(cpu), cpu);
        job.true_stamp += 1;
        if waited_ns > self.setup.starved_ns {
            return self.violated(format!("task {task} has waited for {} ms", waited_ns / 1_000_000));
        }
        if self.setup.faults {
            let has_it = |(_, job): &(u32, &Job)| job.on == Some(cpu) && job.request.is_some();
            let owner =
                (0..).zip(&self.jobs).find(|entry| has_it(entry) && ![task, preempted].contains(&entry.0));
            if let Some((owner, _)) = owner {
                return self.violated(format!("CPU {cpu} is given to task {task}, and task {owner} has it"));
            }
        }
        self.seen.committed += 1;
    }

    /// The task that a CPU was given begins to run.
    fn start(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let task = self.cpu_task(cpu);
        let now_ns = self.clock.now_ns();
        if self.cpus[at].switch_since_ns > 0 {
            let ns = now_ns - self.cpus[at].switch_since_ns;
            self.seen.switches_ns.push(u32::try_from(ns).unwrap_or(u32::MAX));
            self.cpus[at].switch_since_ns = 0;
        }
        if task == TASK_NONE {
            self.cpus[at].doing = Doing::Idle;
            return;
        }
        self.cpus[at].doing = Doing::Running { task, since_ns: now_ns };
        self.cpus[at].generation += 1;
        let generation = self.cpus[at].generation;
        self.clock.after(self.jobs[task as usize].left_ns, Event::End(cpu, generation));
        if std::mem::take(&mut self.cpus[at].rung) {
            self.clock.after(1, Event::Ring(cpu));
        }
    }

    // What looks after it all.

    fn look_up(&mut self) {
        for cpu in 0..self.setup.cpus {
            if self.cpus[usize::from(cpu)].doing == Doing::Idle {
                self.clock.after(1, Event::Ring(cpu));
            }
        }
        if self.beats_on {
            self.clock.after(LOOK_UP_NS, Event::LookUp);
        }
    }

    fn host_kick(&mut self) {
        if !self.host_decides {
            return;
        }
        for cpu in 0..self.setup.cpus {
            let at = usize::from(cpu);
            if self.cpus[at].doing == Doing::Idle && self.mechanism.first_runnable_on(cpu).is_some() {
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].generation += 1;
                let generation = self.cpus[at].generation;
                self.clock.after(self.setup.costs.before_ns, Event::Decide(cpu, generation));
                return;
            }
        }
    }

    fn beat(&mut self) {
        let now_ns = self.clock.now_ns();
        // Credits, and the agent's call for the whole state.
        if !self.host_decides && self.link_up {
            self.wire.refresh_credits();
            if let Some(agent) = self.wire.agent()
                && agent.resyncs != self.resyncs_asked
            {
                self.resyncs_asked = agent.resyncs;
                self.resync_due = true;
                self.outbox.clear();
            }
            self.pump();
            let (mut owes, mut lies) = (false, false);
            for (cpu, entry) in (0..).zip(&self.cpus) {
                if entry.doing == Doing::Idle {
                    let at = usize::from(cpu);
                    let (card, host) = (&self.memory.card.slots[at], &self.memory.host.slots[at]);
                    if self.wire.has_untaken(cpu) || card.words() != host.words() {
                        lies = true;
                    } else {
                        owes |= self.mechanism.first_runnable_on(cpu).is_some();
                    }
                }
            }
            let telling = self.resync_due || !self.outbox.is_empty() || self.resync_since_ns.is_some();
            let beat = Beat {
                gap: Duration::from_nanos(BEAT_NS),
                stalled: Duration::ZERO,
                owes,
                lies,
                decisions: self.seen.committed,
                resync: telling.then(|| self.wire.taken()),
            };
            match self.watchdog.beat(beat) {
                None => {}
                Some(Blame::Agent) => self.agent_ends(),
                Some(Blame::Host) => {
                    for cpu in 0..self.setup.cpus {
                        self.clock.after(1, Event::Ring(cpu));
                    }
                }
            }
        }
        if let Some(since_ns) = self.resync_since_ns
            && now_ns - since_ns > self.setup.starved_ns
        {
            self.violated("a resync has not come to its end".to_owned());
        }
        let starved = self.jobs.iter().position(|job| {
            job.request.is_some() && job.on.is_none() && now_ns - job.runnable_ns > 2 * self.setup.starved_ns
        });
        if let Some(task) = starved {
            self.violated(format!("task {task} is lost: it waits, and nobody comes to it"));
        }
        if self.beats_on {
            self.clock.after(BEAT_NS, Event::Beat);
        }
    }

    /// The agent is no more: the host decides until the next is there.
    fn agent_ends(&mut self) {
        self.home = None;
        self.agent_due = false;
        self.mechanism.agent = AgentStanding::Gone;
        self.seen.refused += self.mechanism.break_groups().len() as u64;
        self.host_decides = true;
        self.resync_since_ns = None;
        self.seen.fallbacks += 1;
        self.outbox.clear();
        self.resync_due = false;
        for _ in 0..self.setup.cpus {
            self.host_kick();
        }
        if self.link_up {
            self.clock.after(RESTART_NS, Event::Restart(self.agents));
        }
    }

    // What goes wrong.

    fn befalls(&mut self, kind: FaultKind) -> bool {
        let left = &mut self.trouble[kind as usize];
        if *left == 0 {
            return false;
        }
        *left -= 1;
        self.seen.faults += 1;
        true
    }

    fn fault(&mut self, number: u16) {
        let Some(&fault) = self.faults.get(usize::from(number)) else { return };
        match fault.kind {
            FaultKind::Crash => {
                if self.home.is_some() {
                    self.seen.faults += 1;
                    self.agent_ends();
                }
            }
            FaultKind::Hang => {
                if let Some(home) = &mut self.home {
                    home.hangs = true;
                    self.seen.faults += 1;
                }
            }
            FaultKind::Reset => {
                if self.home.is_some() {
                    self.seen.faults += 1;
                    self.anew = true;
                    self.agent_ends();
                    for lines in [&self.memory.card, &self.memory.host] {
                        lines.slots.iter().for_each(Line::clear);
                    }
                    self.memory.card.control.clear();
                }
            }
            FaultKind::LinkDown => {
                if self.link_up {
                    self.seen.faults += 1;
                    self.link_up = false;
                    self.epoch += 1;
                    self.anew = true;
                    self.agent_ends();
                    self.clock.after(u64::from(fault.count) * 1_000_000, Event::LinkUp);
                }
            }
            kind => self.trouble[kind as usize] += fault.count,
        }
    }

    fn link_is_up(&mut self) {
        self.link_up = true;
        self.cpus.iter_mut().for_each(|cpu| cpu.cached = false);
        self.clock.after(RESTART_NS, Event::Restart(self.agents));
    }

    /// No more beats: what is left of the events is the work's own.
    pub fn no_more_beats(&mut self) {
        self.beats_on = false;
    }
}
