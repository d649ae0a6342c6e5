//! One host, one link and one agent, in virtual time.
//!
//! The host's side of memory and the card's are apart: what the host writes is carried over word by word or line by line
//! when the link says so, and what it reads is a sample of the card's line, which lies in its cache until it is flushed.

mod agent;
mod cpu;
mod link;
mod watch;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use neap_abi::{Clock as AgentClock, Message, MessageKind, TaskFlags, Version};
use neap_agent::Policy;
use neap_host::mechanism::{Mechanism, TaskState};
use neap_host::ownership::Owners;
use neap_host::trace::{Step, Watch};
use neap_host::wire::Wire;
use neap_mechanism::watch::Watchdog;
use neap_queue::Line;
use rand_chacha::ChaCha8Rng;

use self::agent::{Back, Home};
use self::cpu::{Cpu, Doing};
use self::link::Flight;
pub use self::link::Memory;
use crate::clock::Clock;
use crate::columns::Costs;
use crate::faults::{Fault, FaultKind};
use crate::policy::Outcome as Ran;

/// An idle CPU looks up so often by itself.
const LOOK_UP_NS: u64 = 20_000_000;
/// The host's housekeeping looks after the agent so often.
const BEAT_NS: u64 = 1_000_000;
/// How long an agent may owe a decision (design, section 4).
const WATCHDOG: Duration = Duration::from_millis(20);

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Host CPUs.
    pub cpus: u16,
    /// Those of them that are another enclave's, by bit.
    pub foreign: u64,
    /// Tasks that there can be at a time.
    pub tasks: u32,
    /// What things cost.
    pub costs: Costs,
    /// What host and agent speak.
    pub version: Version,
    /// Whose time the policy is told.
    pub clock: AgentClock,
    /// The host only says what it is told to ([`World::say`]), and does nothing of its own.
    pub is_told: bool,
    /// Whether things go wrong: then the host looks after its agent.
    pub faults: bool,
    /// Agents that there can be, one after the other.
    pub agents_max: u32,
    /// A task's longest wait before it counts as starved, in ns.
    pub starved_ns: u64,
}

impl Setup {
    /// Whether a CPU is another enclave's.
    fn is_foreign(&self, cpu: u16) -> bool {
        cpu < 64 && self.foreign >> cpu & 1 != 0
    }
}

/// The enclave's mechanism, and that of the one beside it, on one host.
fn mechanisms(setup: &Setup) -> (Mechanism, Mechanism) {
    let owners = Arc::new(Owners::new(setup.cpus, setup.tasks));
    let [mut ours, mut theirs] = [0, 1].map(|id| Mechanism::sharing(Arc::clone(&owners), id, setup.version));
    for cpu in 0..setup.cpus {
        let whose = if setup.is_foreign(cpu) { &mut theirs } else { &mut ours };
        whose.adopt_cpu(cpu);
    }
    (ours, theirs)
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
    /// The host is.
    Booted,
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

fn mix(digest: &mut u64, word: u64) {
    *digest = (*digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
}

/// A host, a link and an agent.
pub struct World<'w, P> {
    /// The clock, with what is to come.
    pub clock: Clock<Event>,
    /// What it has seen.
    pub seen: Seen,
    setup: Setup,
    memory: &'w Memory,
    mechanism: Mechanism,
    /// That of the other enclave on the same host.
    neighbour: Mechanism,
    wire: Wire<'w>,
    home: Option<Home<'w, P>>,
    make: Box<dyn FnMut() -> P + 'w>,
    load: &'w mut dyn Load,
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
    /// The host is not there.
    is_booting: bool,
    host_decides: bool,
    outbox: VecDeque<Message>,
    resync_due: bool,
    resyncs_asked: u32,
    watchdog: Watchdog,
    /// A resync's last line has been sent but not its agent's answer seen.
    resync_since_ns: Option<u64>,
    /// The next agent needs a session of its own.
    anew: bool,
    recorder: Option<Recorder>,
}

/// Keeps what the agent is told, and what it decides.
struct Recorder {
    steps: Vec<Step>,
    /// How many of them the agent has taken.
    taken: usize,
    watch: Watch,
}

impl Recorder {
    /// The agent has taken the next message: what it has decided lies in `slots`.
    fn took(&mut self, slots: &[Line]) {
        if let Some(step) = self.steps.get_mut(self.taken) {
            step.decisions = self.watch.look(slots);
            self.taken += 1;
        }
    }
}

impl<'w, P: Policy> World<'w, P> {
    /// A world at rest, with its first agent and its first request on their way.
    ///
    /// # Panics
    /// Memory that makes no ring: the caller's mistake.
    pub fn new(
        setup: Setup,
        memory: &'w Memory,
        make: impl FnMut() -> P + 'w,
        load: &'w mut dyn Load,
        rng: ChaCha8Rng,
        faults: Vec<Fault>,
    ) -> Self {
        let (mechanism, neighbour) = mechanisms(&setup);
        let wire = Wire::new(&memory.host.messages, &memory.host.slots, &memory.card.control)
            .expect("the caller gives a ring");
        let cpu = Cpu {
            doing: Doing::Idle,
            generation: 0,
            pending: None,
            cached: false,
            rung: false,
            switch_since_ns: 0,
        };
        let foreign = Cpu { doing: Doing::Foreign, ..cpu };
        let cpus =
            (0..setup.cpus).map(|number| if setup.is_foreign(number) { foreign } else { cpu }).collect();
        let mut world = Self {
            clock: Clock::default(),
            seen: Seen::default(),
            setup,
            memory,
            mechanism,
            neighbour,
            wire,
            home: None,
            make: Box::new(make),
            load,
            rng,
            cpus,
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
            is_booting: false,
            host_decides: false,
            outbox: VecDeque::new(),
            resync_due: false,
            resyncs_asked: 0,
            watchdog: Watchdog::new(WATCHDOG),
            resync_since_ns: None,
            anew: false,
            recorder: None,
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

    /// Keeps from now on what the agent is told, and what it decides; from the world's beginning, before anything has happened.
    pub fn record(&mut self) {
        let watch = Watch::over(&self.memory.card.slots);
        let sent = |line: &Line| Message::from_payload(&line.read_any()?.0).ok();
        // The first resync is on its way already.
        let steps = self.memory.host.messages.iter().map_while(sent);
        let steps = steps.map(|message| Step { message, decisions: Vec::new() }).collect();
        self.recorder = Some(Recorder { steps, taken: 0, watch });
    }

    /// What was recorded.
    pub fn recorded(&mut self) -> Vec<Step> {
        self.recorder.take().map(|recorder| recorder.steps).unwrap_or_default()
    }

    /// Tells the agent a message, and lets everything happen that comes of it. False if the ring has no room.
    pub fn say(&mut self, message: Message) -> bool {
        let sent = self.send(message, self.setup.costs.write_ns);
        self.run(u64::MAX);
        sent
    }

    /// What it has seen.
    pub fn into_outcome(self) -> Ran {
        Ran { events: self.clock.events(), seen: self.seen }
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
                // Who can't be reached is not attached to: what is there again has the next one started.
                if self.agents != number || self.is_booting || !self.link_up {
                    return;
                }
                if number >= self.setup.agents_max {
                    return self.violated(format!("{number} agents have ended, one after the other"));
                }
                self.new_agent();
            }
            Event::LinkUp => self.link_is_up(),
            Event::Booted => self.host_is_up(),
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
        if self.free.is_empty() || self.is_booting {
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
}
