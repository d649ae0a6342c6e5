//! A host whose decision slots and whose agent's control line anything may be written to.

use std::sync::atomic::{AtomicU64, Ordering};

use neap_abi::line::PAYLOAD_MASK;
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{AgentControl, AgentState, Operation, Outcome, Tag, Txn, TxnFlags, VERSION, Version, WORDS};
use neap_mechanism::enclave::Standing;
use neap_mechanism::fakes::{Agent, Host, Kernel, Memory, Place};
use neap_mechanism::{Count, Level};
use neap_queue::{Line, SlotWriter};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::formats::payload;
use super::{Kind, Tally};

/// CPUs of the enclave whose agent writes; one more is another's.
const OWN: u16 = 3;
const CPUS: u16 = OWN + 1;
const TASKS: u32 = 10;
/// Few enough lines that the ring fills up.
const LINES: usize = 128;
/// Steps of the kernel's for one input.
const STEPS_MAX: u32 = 64;
/// Lines that one input may have the host write, and slots' lines that it may have it drop from the caches: what its
/// steps and a resync come to.
const WORK_MAX: u64 = 4 * STEPS_MAX as u64 + 2 * LINES as u64;

/// What a host stands on.
pub(super) fn memory() -> Memory {
    Memory::new(CPUS, TASKS, 2, LINES)
}

/// A host, and what is known of it on the side that writes.
pub(super) struct Fuzzed<'m> {
    memory: &'m Memory,
    kernel: Kernel<'m>,
    agent: Agent<'m>,
    control: SlotWriter,
    incarnation: u32,
    outcomes: [u64; Outcome::ALL.len()],
    flushed: u64,
}

/// The words of a line, to be written one by one.
fn words(line: &Line) -> &[AtomicU64; WORDS] {
    // SAFETY: A line is its eight atomic words and nothing else (repr(C), and a constant assertion on its size).
    unsafe { &*core::ptr::from_ref(line).cast() }
}

impl<'m> Fuzzed<'m> {
    pub(super) fn new(memory: &'m Memory) -> Self {
        let mechanism = memory.mechanism();
        for cpu in 0..CPUS {
            assert!(mechanism.give_cpu(cpu, u8::from(cpu >= OWN)));
        }
        let host = Host::new(memory, false);
        host.attach(&mechanism, 0, Some(1), VERSION, true);
        let mut fuzzed = Self {
            memory,
            kernel: Kernel::new(mechanism, host),
            agent: Agent::new(memory.window(0), 0, 1),
            control: SlotWriter::default(),
            incarnation: 1,
            outcomes: [0; Outcome::ALL.len()],
            flushed: 0,
        };
        for at in 0..6 {
            fuzzed.kernel.spawn(at % CPUS, (0, 0), true);
        }
        fuzzed.kernel.resync();
        fuzzed
    }

    /// One input, and what comes of it.
    pub(super) fn input(&mut self, kind: Kind, random: &mut ChaCha8Rng, tally: &mut Tally) {
        for _ in 0..3 {
            self.live(random);
        }
        self.agent.read(u32::MAX);
        // Its own CPUs, and now and then another's.
        let cpu = random.random_range(0..4 * OWN + 1) % CPUS;
        match kind {
            Kind::Control | Kind::ControlRandom => return self.control(kind, random, tally),
            Kind::SlotRandom => self.write_random(cpu, random),
            Kind::SlotTorn => self.write_torn(cpu, random),
            Kind::Group => self.write_group(random),
            _ => {
                let txn = self.txn(kind, cpu, random);
                self.write(cpu, txn, random);
            }
        }
        self.react(kind, cpu, random);
        self.go_on(random);
        self.tally(kind, tally);
        self.recover(random);
        self.check();
    }

    /// What happens on a host anyway.
    fn live(&mut self, random: &mut ChaCha8Rng) {
        let cpu = random.random_range(0..CPUS);
        let affinity = match random.random_range(0..8u16) {
            first @ 0..3 => (first, 1),
            3 => (1, 2),
            _ => (0, 0),
        };
        let kernel = &mut self.kernel;
        kernel.host.pass(200);
        let threads = kernel.threads();
        let thread = random.random_range(0..threads.max(1));
        let lives = kernel.thread(thread).is_some_and(|(place, _)| place != Place::Gone);
        match random.random_range(0..34) {
            0..4 => drop(kernel.spawn(cpu, affinity, true)),
            4..12 => drop(kernel.wake(thread)),
            12..18 => drop(kernel.block(cpu, random.random_range(0..4) == 0)),
            18..22 => drop(kernel.expire(cpu, random.random())),
            22 => drop(kernel.other_comes(cpu)),
            23..26 => drop(kernel.other_goes(cpu)),
            26 if lives => drop(kernel.begin_change(thread)),
            27 | 28 => {
                for thread in 0..threads {
                    kernel.end_change(thread, Some(affinity));
                }
            }
            29 if lives && random.random_range(0..4) == 0 => drop(kernel.leave(thread)),
            30 => kernel.withhold(cpu),
            31 | 32 => drop(kernel.plug(cpu, random.random())),
            _ => {
                kernel.heed(cpu);
            }
        }
    }

    /// A decision as a good agent would make it.
    fn good(&self, cpu: u16, random: &mut ChaCha8Rng) -> Txn {
        let known: Vec<(u32, u32)> = self.agent.runnable().map(|(task, known)| (task, known.stamp)).collect();
        let (task, stamp) = match known.get(random.random_range(0..known.len() + 1)) {
            Some(&known) => known,
            None => (random.random_range(0..TASKS + 2), random.random_range(0..8)),
        };
        let slice_ns = [0, 1000, PAYLOAD_MASK][random.random_range(0..3)];
        Txn { slice_ns, cpu_stamp: self.agent.cpu_stamp(cpu), ..Txn::run(cpu, task, stamp) }
    }

    /// A txn with something changed, or not.
    fn txn(&self, kind: Kind, cpu: u16, random: &mut ChaCha8Rng) -> Txn {
        let good = self.good(cpu, random);
        let preempts = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);
        let changed = match random.random_range(0..20) {
            0 => Txn { operation: random.random(), ..good },
            1 => Txn { operation: Operation::Idle as u8, ..good },
            2 => Txn::withdraw(cpu),
            3 => Txn { cpu: random.random_range(0..CPUS + 2), ..good },
            4 => Txn { cpu: random.random(), ..good },
            5 => Txn { flags: TxnFlags(random.random()), ..good },
            6 => Txn { flags: preempts, ..good },
            7 => Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp: random.random(), ..good },
            8 => Txn { flags: TxnFlags::ALLOW_ON_CPU.with(TxnFlags::REPORT_ON_CPU), ..good },
            9 => {
                let runs = self.kernel.mechanism.cpu(cpu).map_or(0, |cpu| cpu.task());
                Txn { flags: TxnFlags::ALLOW_ON_CPU, task: runs, ..good }
            }
            10 => Txn { task: random.random(), ..good },
            11 => Txn { stamp: good.stamp.wrapping_add(random.random_range(0..3)).wrapping_sub(1), ..good },
            12 => Txn { order: random.random(), ..good },
            13 => {
                // A bit anywhere.
                let mut words = good.to_payload();
                words[random.random_range(0..WORDS)] ^= 1 << random.random_range(0..56);
                Txn::from_payload(&words)
            }
            _ => good,
        };
        if kind != Kind::Credits {
            return changed;
        }
        let (taken, written) = (self.agent.taken(), self.kernel.host.of(0).written());
        let credits = match random.random_range(0..6) {
            0 => random.random(),
            1 => written.wrapping_add(1),
            2 => taken.wrapping_sub(random.random_range(0..200)),
            3 => taken.wrapping_add(1 << 31),
            _ => taken,
        };
        Txn { credits, ..good }
    }

    /// Writes a txn into a slot: as its agent would, or under a number, an agent's or credits of its own.
    fn write(&mut self, cpu: u16, txn: Txn, random: &mut ChaCha8Rng) {
        if random.random_range(0..8) != 0 && txn.credits == 0 {
            // The slot is its own, whatever CPU the txn names.
            self.agent.publish(cpu, txn);
            return;
        }
        let Some(line) = self.memory.window(0).slots.get(usize::from(cpu)) else { return };
        let number = line.read_any().map_or(0, |(payload, _)| Txn::from_payload(&payload).id);
        let incarnation = match random.random_range(0..4) {
            0 => random.random_range(0..self.incarnation + 2),
            _ => self.kernel.mechanism.enclave(0).and_then(|enclave| enclave.agent()).unwrap_or(0),
        };
        let id = if random.random_range(0..8) == 0 { random.random() } else { number.wrapping_add(1) };
        let credits = if txn.credits == 0 { self.agent.taken() } else { txn.credits };
        let txn = Txn { id, incarnation, credits, ..txn };
        SlotWriter::resume(number).write(line, &txn.to_payload(), CREDIT_WORD);
    }

    fn write_random(&self, cpu: u16, random: &mut ChaCha8Rng) {
        let Some(line) = self.memory.window(0).slots.get(usize::from(cpu)) else { return };
        let sealed = random.random_range(0..4) != 0;
        let (payload, tag) = (payload(random), Tag::from_byte(random.random_range(1..=255)));
        for (word, payload) in words(line).iter().zip(payload) {
            let any = random.random();
            word.store(tag.filter(|_| sealed).map_or(any, |tag| tag.seal(payload)), Ordering::Relaxed);
        }
    }

    /// Some words of one txn, some of the next.
    fn write_torn(&mut self, cpu: u16, random: &mut ChaCha8Rng) {
        let Some(line) = self.memory.window(0).slots.get(usize::from(cpu)) else { return };
        let before: [u64; WORDS] = core::array::from_fn(|word| words(line)[word].load(Ordering::Relaxed));
        let txn = self.good(cpu, random);
        self.agent.publish(cpu, txn);
        for (word, before) in words(line).iter().zip(before) {
            if random.random() {
                word.store(before, Ordering::Relaxed);
            }
        }
    }

    fn write_group(&mut self, random: &mut ChaCha8Rng) {
        let group = match random.random_range(0..4) {
            0 => random.random_range(0..0x100_0000),
            _ => self.agent.next_group(),
        };
        let members = random.random_range(1..=OWN);
        let size = match random.random_range(0..6) {
            0 => random.random(),
            1 => random.random_range(0..5),
            _ => members as u8,
        };
        let first = random.random_range(0..OWN);
        for at in 0..members {
            let cpu = (first + at) % OWN;
            let spoilt = random.random_range(0..4) == 0;
            let txn = if spoilt { self.txn(Kind::Txn, cpu, random) } else { self.good(cpu, random) };
            let flags = match random.random_range(0..8) {
                0 => txn.flags.with(TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU)),
                1 => txn.flags.with(TxnFlags::ALLOW_ON_CPU),
                _ => txn.flags,
            };
            self.write(cpu, Agent::member(Txn { flags, ..txn }, group, size), random);
        }
    }

    /// The agent's control line, and what the host's watch makes of it.
    fn control(&mut self, kind: Kind, random: &mut ChaCha8Rng, tally: &mut Tally) {
        let line = &self.memory.window(0).agent;
        let good = AgentControl {
            state: AgentState::ALL[random.random_range(0..AgentState::ALL.len())],
            asleep: random.random(),
            peer: random.random(),
            vector: random.random(),
            credits: self.agent.taken(),
            incarnation: self.incarnation,
            ..AgentControl::NOTHING
        };
        let mut written = good.to_payload();
        if kind == Kind::ControlRandom {
            written = payload(random);
        } else if random.random_range(0..3) == 0 {
            written[random.random_range(0..WORDS)] ^= 1 << random.random_range(0..56);
        }
        self.control.write(line, &written, 3);
        if kind == Kind::ControlRandom && random.random_range(0..3) == 0 {
            words(line)[random.random_range(0..WORDS)].store(random.random(), Ordering::Relaxed);
        }
        let wire = self.kernel.host.of(0);
        let agent = wire.agent();
        if let Some(agent) = agent {
            wire.set_bell(agent.peer, agent.vector);
            wire.ring();
        }
        wire.refresh_credits();
        let outcome = match agent.map(|agent| agent.state) {
            _ if wire.poisoned() => "poisoned",
            None => "none",
            Some(AgentState::Waiting) => "waiting",
            Some(AgentState::Running) => "running",
            Some(AgentState::Stopped) => "stopped",
            Some(AgentState::Dead) => "dead",
            Some(AgentState::GivenUp) => "given_up",
            Some(_) => "refused",
        };
        tally.count(kind, outcome);
        self.recover(random);
        self.check();
    }

    /// What has the host look at a slot.
    fn react(&mut self, kind: Kind, cpu: u16, random: &mut ChaCha8Rng) {
        match random.random_range(0..16) {
            0 => self.kernel.withhold(cpu),
            1 => {
                let _ = self.kernel.mechanism.debts(&self.kernel.host, 0);
            }
            2 => self.kernel.kick(cpu),
            _ => self.kernel.ring(cpu),
        }
        // What runs there makes room, most often.
        let last = if kind == Kind::Group { OWN } else { cpu + 1 };
        for cpu in if kind == Kind::Group { 0 } else { cpu }..last {
            if kind == Kind::Group {
                self.kernel.ring(cpu);
            }
            match random.random_range(0..8) {
                0 => continue,
                1..4 => drop(self.kernel.block(cpu, random.random_range(0..4) == 0)),
                _ => drop(self.kernel.expire(cpu, random.random())),
            }
            self.kernel.other_goes(cpu);
        }
    }

    /// CPUs go on until none can, or for so many steps.
    fn go_on(&mut self, random: &mut ChaCha8Rng) {
        for step in 0..STEPS_MAX / u32::from(CPUS) {
            let mut went = false;
            for cpu in 0..CPUS {
                went |= self.kernel.heed(cpu);
                went |= self.kernel.step(cpu, random.random());
            }
            if !went || (step > 4 && random.random_range(0..4) == 0) {
                break;
            }
        }
    }

    fn tally(&mut self, kind: Kind, tally: &mut Tally) {
        let mut any = false;
        for (outcome, before) in Outcome::ALL.into_iter().zip(&mut self.outcomes) {
            let now = self.kernel.outcomes[outcome as usize];
            for _ in *before..now {
                any = true;
                tally.count(kind, outcome.name());
            }
            *before = now;
        }
        if !any {
            tally.count(kind, "nothing");
        }
        if self.kernel.host.of(0).poisoned() {
            tally.count(kind, "poisoned");
        }
    }

    /// What the watch does, once in a while.
    fn recover(&mut self, random: &mut ChaCha8Rng) {
        let good = self
            .kernel
            .mechanism
            .enclave(0)
            .is_some_and(|enclave| enclave.standing() == Standing::Good && enclave.level() == Level::Ipu)
            && !self.kernel.host.of(0).poisoned();
        match random.random_range(0..16) {
            0 => self.kernel.rescue(),
            1 if random.random_range(0..8) == 0 => drop(self.kernel.fall_back()),
            2 if good && random.random_range(0..8) == 0 => self.attach(random),
            3..10 if !good => self.attach(random),
            _ => {}
        }
        // The ring has room only where the agent says that it reads.
        if random.random_range(0..4) == 0 && good {
            self.agent.read(u32::MAX);
            self.agent.report(false);
            self.control = SlotWriter::after(&self.memory.window(0).agent);
        }
        self.kernel.resync();
    }

    /// Another agent, of one version or another.
    fn attach(&mut self, random: &mut ChaCha8Rng) {
        self.incarnation += 1;
        let version =
            Version { minor: VERSION.minor - random.random_range(0..3).min(VERSION.minor), ..VERSION };
        let only = (version.minor >= 2).then_some(self.incarnation);
        self.agent = Agent::new(self.memory.window(0), self.agent.taken(), only.unwrap_or(0));
        self.kernel.host.attach(&self.kernel.mechanism, 0, only, version, true);
        for cpu in 0..CPUS {
            self.kernel.kick(cpu);
        }
    }

    /// What must hold after each input.
    fn check(&mut self) {
        self.kernel.check();
        let mechanism = &self.kernel.mechanism;
        let hits = mechanism.sum(Count::PrestageHits);
        assert_eq!(mechanism.sum(Count::HitLineWrites), hits, "a hit costs one line");
        let platform = &self.kernel.host.of(0).platform;
        let (sent, flushed) = (self.kernel.host.sent(0).len() as u64, platform.flushed.get());
        assert!(sent <= WORK_MAX, "{sent} lines for one input");
        assert!(flushed - self.flushed <= WORK_MAX, "{} flushes for one input", flushed - self.flushed);
        self.flushed = flushed;
        let _ = self.kernel.host.sent(1);
        let _ = self.kernel.host.judged(1);
    }
}
