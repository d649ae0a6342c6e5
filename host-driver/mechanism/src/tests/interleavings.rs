//! Events, decisions, agents' ends and resyncs in any order that a kernel can have them in, against a kernel in miniature and an
//! agent that knows only what it is told.
//!
//! A failing script is printed, shrunk, with the seed that makes it again, which proptest also keeps beside this file.

use neap_abi::message::TASK_NONE;
use neap_abi::{Operation, Txn, TxnFlags, VERSION};
use proptest::prelude::*;

use crate::fakes::{Agent, Host, Kernel, Memory, Place};
use crate::judge::may_use;
use crate::sync::Ordering;
use crate::task::Phase;
use crate::{Count, Level};

const CPUS: u16 = 3;
const TASKS: u32 = 8;
const LINES: usize = 64;

/// A step of a script, and what it chooses.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    who: u8,
    how: u16,
}

struct Machine<'m> {
    kernel: Kernel<'m>,
    agent: Agent<'m>,
    memory: &'m Memory,
    incarnation: u32,
    threads_max: usize,
}

impl<'m> Machine<'m> {
    fn new(memory: &'m Memory) -> Self {
        let mechanism = memory.mechanism();
        let host = Host::attached(memory, &mechanism);
        let agent = Agent::new(memory.window(0), 0, 1);
        Self { kernel: Kernel::new(mechanism, host), agent, memory, incarnation: 1, threads_max: 40 }
    }

    fn any_thread(&self, step: Step) -> Option<usize> {
        let threads: Vec<usize> = (0..self.kernel.threads())
            .filter(|&thread| self.kernel.thread(thread).is_some_and(|(place, _)| place != Place::Gone))
            .collect();
        (!threads.is_empty()).then(|| threads[usize::from(step.who) % threads.len()])
    }

    fn affinity(how: u16) -> (u16, u16) {
        match how % 8 {
            0 => (0, 1),
            1 => (1, 1),
            2 => (1, 2),
            3 => (2, 1),
            _ => (0, 0),
        }
    }

    fn take(&mut self, step: Step) {
        let cpu = u16::from(step.who) % CPUS;
        let kernel = &mut self.kernel;
        kernel.host.pass(100);
        if std::env::var_os("NEAP_TRACE").is_some() {
            println!("{step:?}");
        }
        match step.what {
            0..=3 => {
                if kernel.threads() < self.threads_max {
                    kernel.spawn(cpu, Self::affinity(step.how), step.how & 64 == 0);
                }
            }
            4..=10 => {
                if let Some(thread) = self.any_thread(step) {
                    self.kernel.wake(thread);
                }
            }
            11..=20 => {
                self.agent.read(u32::from(step.how % 8) + 1);
            }
            21..=33 => self.decide(step),
            34..=40 => kernel.ring(cpu),
            41..=50 => {
                kernel.heed(cpu);
            }
            51..=85 => {
                // Most often, whoever can go on does.
                let able = (0..CPUS).map(|other| (cpu + other) % CPUS).find(|&cpu| kernel.may_step(cpu));
                kernel.step(able.unwrap_or(cpu), step.how & 1 == 1);
            }
            86..=92 => {
                kernel.block(cpu, step.how % 5 == 0);
            }
            93..=97 => {
                kernel.expire(cpu, step.how & 1 == 1);
            }
            98 => kernel.begin_exit(cpu),
            99..=101 => {
                if let Some(thread) = self.any_thread(step) {
                    self.kernel.begin_change(thread);
                }
            }
            102..=107 => {
                let affinity = (step.how & 1 == 1).then(|| Self::affinity(step.how >> 1));
                for thread in 0..self.kernel.threads() {
                    self.kernel.end_change(thread, affinity);
                }
            }
            108..=109 => {
                kernel.other_comes(cpu);
            }
            110..=113 => {
                kernel.other_goes(cpu);
            }
            114 => kernel.withhold(cpu),
            115 => {
                if let Some(thread) = self.any_thread(step).filter(|_| step.how % 3 == 0) {
                    self.kernel.leave(thread);
                }
            }
            116 => {
                if let Some(thread) = self.any_thread(step) {
                    self.kernel.rename(thread);
                }
            }
            117..=119 => {
                kernel.resync();
            }
            120..=121 => kernel.rescue(),
            122 => self.fall_back(step),
            123 => self.come_back(),
            124 => {
                kernel.plug(cpu, step.how & 1 == 1);
            }
            125 => self.agent.report(step.how % 4 == 0),
            126 => {
                if step.how % 4 == 0 {
                    kernel.mechanism.enclave(0).unwrap().ask_for_resync();
                }
            }
            _ => {
                let _ = kernel.mechanism.debts(&kernel.host, 0);
            }
        }
    }

    fn fall_back(&mut self, step: Step) {
        if step.how % 3 == 0 {
            self.kernel.fall_back();
        }
    }

    /// Another agent comes, where there is none or in place of one.
    fn come_back(&mut self) {
        self.incarnation += 1;
        self.agent = Agent::new(self.memory.window(0), self.agent.taken(), self.incarnation);
        self.kernel.host.attach(&self.kernel.mechanism, 0, Some(self.incarnation), VERSION, true);
        for cpu in 0..CPUS {
            self.kernel.kick(cpu);
        }
    }

    /// One decision of a good agent's, or of one that errs or lies.
    fn decide(&mut self, step: Step) {
        let Step { who, how, .. } = step;
        let cpu = u16::from(who) % CPUS;
        if how % 4 == 0 {
            for cpu in self.agent.serve() {
                self.kernel.ring(cpu);
            }
            return;
        }
        let known: Vec<(u32, u32)> =
            self.agent.runnable().map(|(task, believed)| (task, believed.stamp)).collect();
        let (task, stamp) = match known.get(usize::from(how >> 8) % (known.len() + 1)) {
            Some(&known) => known,
            None => (u32::from(how >> 8) % (TASKS + 2), u32::from(who)),
        };
        let good = Txn { slice_ns: 1000, ..Txn::run(cpu, task, stamp) };
        let cpu_stamp = self.agent.cpu_stamp(cpu);
        let preempts = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);
        let txn = match how >> 2 & 15 {
            0 => Txn::withdraw(cpu),
            1 => Txn { operation: Operation::Idle as u8, ..good },
            2 => Txn { operation: who, ..good },
            3 => Txn { flags: TxnFlags(how), ..good },
            4 => Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp, ..good },
            5 | 6 => Txn { flags: preempts, cpu_stamp, ..good },
            7 => Txn { flags: TxnFlags::ALLOW_ON_CPU.with(TxnFlags::REPORT_ON_CPU), ..good },
            8 => {
                let runs = self.kernel.mechanism.cpu(cpu).map_or(TASK_NONE, crate::Cpu::task);
                Txn { flags: TxnFlags::ALLOW_ON_CPU, task: runs, ..good }
            }
            9 => Txn { cpu: u16::from(who >> 4), ..good },
            10..=12 => return self.decide_together(step, &known),
            _ => good,
        };
        if self.agent.publish(cpu, txn) && !txn.flags.has(TxnFlags::PRESTAGED) {
            self.kernel.ring(cpu);
        }
    }

    /// A group, or what is not quite one.
    fn decide_together(&mut self, step: Step, known: &[(u32, u32)]) {
        let Step { who, how, .. } = step;
        let members = 1 + u16::from(who) % CPUS;
        let group = self.agent.next_group();
        let size = if how & 64 == 0 { members as u8 } else { who >> 3 & 3 };
        for at in 0..members {
            let cpu = (u16::from(who >> 2) + at) % CPUS;
            let (task, stamp) = match known.get(usize::from(at) + usize::from(how >> 9)) {
                Some(&known) => known,
                None if how & 128 == 0 => continue,
                None => (u32::from(how >> 8) % TASKS, 1),
            };
            let txn = Agent::member(Txn::run(cpu, task, stamp), group, size);
            let txn = match how >> 10 & 7 {
                0 if at == 0 => Txn { operation: Operation::Idle as u8, ..txn },
                1 => {
                    let preempts = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);
                    Txn { flags: txn.flags.with(preempts), cpu_stamp: self.agent.cpu_stamp(cpu), ..txn }
                }
                2 if at == 1 => {
                    let runs = self.kernel.mechanism.cpu(cpu).map_or(TASK_NONE, crate::Cpu::task);
                    Txn { task: runs, flags: txn.flags.with(TxnFlags::ALLOW_ON_CPU), ..txn }
                }
                _ => txn,
            };
            self.agent.publish(cpu, txn);
        }
        for cpu in 0..CPUS {
            self.kernel.ring(cpu);
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        self.kernel.check();
        let mechanism = &self.kernel.mechanism;
        let hits = mechanism.sum(Count::PrestageHits);
        assert_eq!(mechanism.sum(Count::HitLineWrites), hits, "a hit costs one line");
        let sent = self.kernel.host.sent(0);
        if std::env::var_os("NEAP_TRACE").is_some() {
            for m in sent {
                println!(
                    "  {:?} cpu {} task {} stamp {} flags {:#x} txn {} {:?}",
                    m.kind, m.cpu, m.task as i32, m.stamp, m.flags.0, m.txn, m.outcome
                );
            }
        }
    }

    fn enclave(&self) -> &crate::Enclave {
        self.kernel.mechanism.enclave(0).unwrap()
    }

    /// Lets everything that is under way come to its end, with a good agent if one decides.
    fn settle(&mut self) {
        let mut still = 0;
        for round in 0..400 {
            let mut went = false;
            for thread in 0..self.kernel.threads() {
                went |= self.kernel.end_change(thread, None);
            }
            for cpu in (0..CPUS).cycle().take(64 * usize::from(CPUS)) {
                let goes = self.kernel.heed(cpu) || self.kernel.step(cpu, round % 2 == 0);
                went |= goes;
                if goes {
                    self.check();
                }
            }
            self.kernel.host.pass(10_000);
            went |= self.agent.read(u32::MAX) != 0;
            self.agent.report(false);
            self.kernel.rescue();
            went |= self.kernel.resync();
            self.check();
            still = if went { 0 } else { still + 1 };
            if still == 3 {
                return;
            }
        }
        panic!("it goes on for ever");
    }

    /// What an agent that has read all of it believes is so.
    fn agree(&mut self) {
        let mechanism = &self.kernel.mechanism;
        if self.enclave().level() != Level::Ipu {
            assert_eq!(self.enclave().runnable(), 0, "tasks are left with an agent that does not decide");
            return;
        }
        assert!(!self.enclave().resync_due(), "the state is told at last");
        for (number, task) in (0..).zip(mechanism.tasks()) {
            let (word, believed) = (task.word(), self.agent.believes(number));
            let waits = word.phase == Phase::Runnable && word.enclave == 0;
            let heard = believed.filter(|believed| believed.runnable);
            assert_eq!(
                waits,
                heard.is_some(),
                "task {number} is {word:?}, and the agent believes {believed:?}"
            );
            if let Some(heard) = heard {
                assert_eq!((heard.stamp, heard.affinity), (word.stamp, task.affinity()), "task {number}");
            }
        }
        for thread in 0..self.kernel.threads() {
            let Some((Place::Custody, Some(number))) = self.kernel.thread(thread) else { continue };
            let task = mechanism.task(number).unwrap();
            let takes = |(number, cpu): (u16, &crate::Cpu)| cpu.is_open() && may_use(task.affinity(), number);
            // The next CPU that looks queues it.
            let queued = task.to_be_rescued.load(Ordering::Relaxed);
            assert!(
                queued || (0..).zip(mechanism.cpus()).any(takes),
                "task {number} is left with its agent, who has no CPU for it"
            );
        }
        for (number, cpu) in (0..).zip(mechanism.cpus()) {
            if self.kernel.rests(number) && cpu.is_open() {
                assert!(
                    self.agent.believes_idle(number),
                    "CPU {number} idles and the agent does not know: task {}, {:?}",
                    cpu.task(),
                    self.agent.awaits(number)
                );
            }
        }
    }

    /// From here on all goes well: every task gets to its end.
    fn finish(&mut self) {
        if self.enclave().level() != Level::Ipu || self.enclave().standing() != crate::enclave::Standing::Good
        {
            self.come_back();
        }
        for cpu in 0..CPUS {
            self.kernel.plug(cpu, true);
        }
        self.settle();
        self.agree();
        for _ in 0..400 {
            for thread in 0..self.kernel.threads() {
                self.kernel.wake(thread);
            }
            for cpu in self.agent.serve() {
                self.kernel.ring(cpu);
            }
            for _ in 0..16 {
                for cpu in 0..CPUS {
                    self.kernel.other_goes(cpu);
                    self.kernel.heed(cpu);
                    self.kernel.step(cpu, false);
                }
            }
            for cpu in 0..CPUS {
                self.kernel.block(cpu, true);
            }
            self.check();
            self.kernel.host.pass(10_000);
            self.agent.read(u32::MAX);
            self.agent.report(false);
            self.kernel.rescue();
            self.kernel.resync();
        }
        for thread in 0..self.kernel.threads() {
            let (place, number) = self.kernel.thread(thread).unwrap();
            let word = number.and_then(|number| self.kernel.mechanism.task(number)).map(crate::Task::word);
            let believed = number.and_then(|number| self.agent.believes(number));
            assert_eq!(
                place,
                Place::Gone,
                "task {thread} never got to its end: {place:?}, {word:?}, {believed:?}"
            );
        }
    }
}

/// The script in `NEAP_SCRIPT`, numbers as they are printed: to look at one again, with `NEAP_TRACE` line by line.
fn asked_for() -> Option<Vec<Step>> {
    let text = std::env::var("NEAP_SCRIPT").ok()?;
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let numbers: Vec<u16> = digits.map(|digits| digits.parse().expect("a number of a step")).collect();
    let step = |step: &[u16]| Step { what: step[0] as u8, who: step[1] as u8, how: step[2] };
    Some(numbers.chunks_exact(3).map(step).collect())
}

fn play(script: &[Step]) {
    let memory = Memory::new(CPUS, TASKS, 1, LINES);
    let mut machine = Machine::new(&memory);
    for &step in script {
        machine.take(step);
        machine.check();
    }
    machine.settle();
    machine.agree();
    machine.finish();
}

fn steps() -> impl Strategy<Value = Step> {
    (0u8..128, any::<u8>(), any::<u16>()).prop_map(|(what, who, how)| Step { what, who, how })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: super::cases(2000),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_task_is_lost_and_no_cpu_is_two_tasks(script in prop::collection::vec(steps(), 0..400)) {
        play(asked_for().as_deref().unwrap_or(&script));
    }
}
