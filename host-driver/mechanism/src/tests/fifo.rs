//! The firmware's FIFO and its libOS, unchanged, over the mechanism: whatever a kernel does, every task gets to its end by
//! decisions alone.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use neap_abi::{Clock, VERSION};
use neap_agent::{Agent, Bindings, Doorbell, Policy};
use neap_policies::fifo::Fifo;
use neap_policies::tasks::Task;
use proptest::prelude::*;

use crate::fakes::{Host, Kernel, Memory, Place};
use crate::{Count, Level};

const CPUS: u16 = 3;
const TASKS: usize = 16;
const LINES: usize = 64;

/// CPUs that were rung for and have not heard yet.
struct Rung<'a>(&'a RefCell<Vec<u16>>);

impl Doorbell for Rung<'_> {
    fn ring(&self, cpu: u16) {
        self.0.borrow_mut().push(cpu);
    }
}

struct Machine<'m, 'p> {
    kernel: Kernel<'m>,
    agent: Agent<'m, Rung<'m>>,
    policy: Fifo<'p, TASKS>,
    rung: &'m RefCell<Vec<u16>>,
}

impl Machine<'_, '_> {
    fn read(&mut self, lines: u32) -> bool {
        let mut any = false;
        for _ in 0..lines {
            let Ok(Some(message)) = self.agent.poll_message() else { break };
            self.policy.message(&message, &mut self.agent);
            any = true;
        }
        for cpu in self.rung.take() {
            self.kernel.ring(cpu);
        }
        any
    }

    fn any_thread(&self, who: u8) -> Option<usize> {
        let threads: Vec<usize> = (0..self.kernel.threads())
            .filter(|&thread| self.kernel.thread(thread).is_some_and(|(place, _)| place != Place::Gone))
            .collect();
        (!threads.is_empty()).then(|| threads[usize::from(who) % threads.len()])
    }

    fn take(&mut self, what: u8, who: u8, how: u16) {
        let cpu = u16::from(who) % CPUS;
        let affinity = [(0, 0), (0, 0), (1, 2), (2, 1)][usize::from(how % 4)];
        self.kernel.host.pass(500);
        let thread = self.any_thread(who);
        match (what, thread) {
            (0..=7, _) => drop(self.kernel.spawn(cpu, affinity, how & 64 == 0)),
            (8..=19, Some(thread)) => drop(self.kernel.wake(thread)),
            (20..=39, _) => drop(self.read(u32::from(how % 6) + 1)),
            (40..=49, _) => drop(self.kernel.heed(cpu)),
            (50..=89, _) => {
                let able = (0..CPUS).map(|other| (cpu + other) % CPUS).find(|&cpu| self.kernel.may_step(cpu));
                self.kernel.step(able.unwrap_or(cpu), how & 1 == 1);
            }
            (90..=103, _) => drop(self.kernel.block(cpu, how % 4 == 0)),
            (104..=107, _) => drop(self.kernel.expire(cpu, how & 1 == 1)),
            (108, _) => self.kernel.begin_exit(cpu),
            (109 | 110, Some(thread)) => drop(self.kernel.begin_change(thread)),
            (111..=114, _) => {
                for thread in 0..self.kernel.threads() {
                    self.kernel.end_change(thread, (how & 4 == 0).then_some(affinity));
                }
            }
            (115, _) => drop(self.kernel.other_comes(cpu)),
            (116..=119, _) => drop(self.kernel.other_goes(cpu)),
            (120, _) => self.kernel.withhold(cpu),
            (121, Some(thread)) if how % 3 == 0 => drop(self.kernel.leave(thread)),
            (122, _) if how % 8 == 0 => self.kernel.mechanism.enclave(0).unwrap().ask_for_resync(),
            (123, _) => drop(self.kernel.plug(cpu, how & 1 == 1)),
            (124, Some(thread)) => self.kernel.rename(thread),
            _ => self.watch(),
        }
        self.kernel.check();
    }

    /// The driver's beat.
    fn watch(&mut self) {
        self.agent.report(neap_abi::AgentState::Running, false);
        self.kernel.resync();
        let (_, lies) = self.kernel.mechanism.debts(&self.kernel.host, 0);
        if lies {
            for cpu in 0..CPUS {
                self.kernel.kick(cpu);
            }
        }
    }

    fn finish(&mut self) {
        for cpu in 0..CPUS {
            self.kernel.plug(cpu, true);
        }
        for _ in 0..600 {
            for thread in 0..self.kernel.threads() {
                self.kernel.end_change(thread, None);
                self.kernel.wake(thread);
            }
            for _ in 0..16 {
                for cpu in 0..CPUS {
                    self.kernel.other_goes(cpu);
                    self.kernel.heed(cpu);
                    self.kernel.step(cpu, false);
                }
                self.read(8);
            }
            for cpu in 0..CPUS {
                self.kernel.block(cpu, true);
            }
            self.kernel.host.pass(10_000);
            self.watch();
            self.kernel.check();
        }
        for thread in 0..self.kernel.threads() {
            let (place, number) = self.kernel.thread(thread).unwrap();
            let word = number.and_then(|number| self.kernel.mechanism.task(number)).map(crate::Task::word);
            assert_eq!(place, Place::Gone, "task {thread} never got to its end: {word:?}");
        }
        assert_eq!(self.kernel.mechanism.enclave(0).unwrap().level(), Level::Ipu);
        let hits = self.kernel.mechanism.sum(Count::PrestageHits);
        assert_eq!(self.kernel.mechanism.sum(Count::HitLineWrites), hits);
    }
}

fn play(script: &[(u8, u8, u16)]) {
    let memory = Memory::new(CPUS, TASKS as u32, 1, LINES);
    let (rung, revoke) = (RefCell::default(), AtomicU64::new(0));
    let mut tasks = [Task::default(); TASKS];
    let mechanism = memory.mechanism();
    let host = Host::attached(&memory, &mechanism);
    mechanism.enclave(0).unwrap().ask_for_resync();
    let window = memory.window(0);
    let bindings = Bindings {
        slots: &window.slots,
        control: &window.agent,
        revoke: &revoke,
        doorbell: Rung(&rung),
        core: 1,
        wake: (0, 0),
        session: 1,
        version: VERSION,
        incarnation: 1,
        taken: 0,
        resyncs: 1,
        clock: Clock::Own,
    };
    let mut agent = Agent::new(bindings, ()).unwrap();
    agent.create_queue(&window.messages).unwrap();
    let policy = Fifo::new(CPUS, &mut tasks);
    let mut machine = Machine { kernel: Kernel::new(mechanism, host), agent, policy, rung: &rung };
    machine.watch();
    for &(what, who, how) in script {
        machine.take(what, who, how);
    }
    machine.finish();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: super::cases(1500),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_task_gets_to_its_end(
        script in prop::collection::vec((0u8..128, any::<u8>(), any::<u16>()), 0..300)
    ) {
        play(&script);
    }
}
