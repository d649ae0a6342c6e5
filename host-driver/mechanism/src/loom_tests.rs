//! The races that matter, explored by loom: what a task's own events and the CPUs' decisions can do to each other, up to a few
//! changes of the running thread. What nothing rests on (counts, times) is not explored.

use loom::sync::Arc;
use loom::thread;
use neap_abi::message::TASK_NONE;
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{Outcome, Txn, TxnFlags, VERSION};
use neap_queue::{Line, SlotWriter};

use crate::cpu::Runs;
use crate::enclave::Standing;
use crate::events::{Custody, Wires};
use crate::sync::Ordering;
use crate::task::{Phase, Stack};
use crate::{Cpu, Enclave, Level, Mechanism, Platform, Taken, Task, Wire};

const CPUS: usize = 2;
const TASKS: usize = 2;

/// Hardware that does nothing.
struct Nothing;

impl Platform for Nothing {
    fn now_ns(&self) -> u64 {
        1
    }
    fn drain(&self) {}
    fn flush(&self, _line: &Line) {}
    fn prefetch(&self, _line: &Line) {}
    fn ring(&self, _peer: u16, _vector: u16) {}
}

/// A host of two CPUs and two tasks, all of one enclave.
struct Host {
    mechanism: Mechanism<'static>,
    wire: Wire<'static, Nothing>,
    slots: &'static [Line],
}

impl Wires for Host {
    type Hardware = Nothing;

    fn wire(&self, enclave: u8) -> Option<&Wire<'_, Nothing>> {
        (enclave == 0).then_some(&self.wire)
    }

    fn now_ns(&self) -> u64 {
        1
    }
}

/// Loom's models end with their memory; ours is the process's.
fn kept<T: Default>(count: usize) -> &'static [T] {
    Box::leak((0..count).map(|_| T::default()).collect())
}

impl Host {
    /// Task 0 can run. Lines are dropped, as after a full ring, where `tells` does not say otherwise: they take most of the time.
    fn new(tells: bool) -> Arc<Self> {
        let mechanism = Mechanism::new(kept::<Task>(TASKS), kept::<Cpu>(CPUS), kept::<Enclave>(1));
        let slots = kept(CPUS);
        let wire = Wire::new(kept(16), slots, &kept(1)[0], false, Nothing).unwrap();
        for cpu in 0..CPUS as u16 {
            mechanism.set_online(cpu, true);
            mechanism.give_cpu(cpu, 0);
        }
        let enclave = mechanism.enclave(0).unwrap();
        enclave.set_agent(Some(1), VERSION);
        enclave.set_standing(Standing::Good);
        enclave.set_level(Level::Ipu);
        if !tells {
            enclave.ask_for_resync();
        }
        let host = Arc::new(Self { mechanism, wire, slots });
        for task in 0..TASKS as u32 {
            host.mechanism.enable(100 + task, (0, 0), 0);
            host.mechanism.enqueue(&*host, task, 100 + task, 0);
        }
        host
    }

    fn phase(&self, task: u32) -> Phase {
        self.mechanism.task(task).unwrap().word().phase
    }

    fn put(&self, cpu: u16, id: u32, txn: Txn) {
        let txn = Txn { id, incarnation: 1, ..txn };
        SlotWriter::resume(id - 1).write(&self.slots[usize::from(cpu)], &txn.to_payload(), CREDIT_WORD);
    }

    fn run(&self, cpu: u16, task: u32) -> Txn {
        Txn::run(cpu, task, self.mechanism.task(task).unwrap().word().stamp)
    }

    /// Has a CPU look, and carries out what it finds: whether that was committed.
    fn look(&self, cpu: u16) -> bool {
        matches!(self.mechanism.take(self, cpu), Taken::Members(_)) && self.mechanism.settle(self, cpu)
    }

    fn outcomes(&self, outcome: Outcome) -> u64 {
        self.mechanism.cpus().iter().map(|cpu| cpu.counters.of_outcome(outcome)).sum()
    }

    /// A CPU has no task, and the agent knows.
    fn check_idles(&self, cpu: u16) {
        let cpu = self.mechanism.cpu(cpu).unwrap();
        assert_eq!(cpu.task(), TASK_NONE);
        assert!(cpu.told_idle.load(Ordering::SeqCst), "the agent knows that it idles");
        self.check();
    }

    /// What must hold when all is still.
    fn check(&self) {
        let waiting = (0..TASKS as u32).filter(|&task| self.phase(task) == Phase::Runnable).count();
        assert_eq!(
            self.mechanism.enclave(0).unwrap().runnable(),
            waiting as u32,
            "the count of those that wait"
        );
        for (number, cpu) in self.mechanism.numbered() {
            let placed = (0..TASKS as u32).filter(|&task| {
                let word = self.mechanism.task(task).unwrap().word();
                word.phase == Phase::Placed && word.cpu == number
            });
            let placed: Vec<u32> = placed.collect();
            assert!(placed.len() < 2, "CPU {number} is two tasks'");
            for task in placed {
                assert_eq!(cpu.task(), task, "CPU {number} has another than is placed there");
            }
            if let Some(task) = self.mechanism.task(cpu.task()) {
                let word = task.word();
                let there = matches!(word.phase, Phase::Placed | Phase::OnCpu) && word.cpu == number;
                assert!(there, "CPU {number} has a task that is not there: {word:?}");
            }
        }
    }
}

/// Tries every order of what threads do, with at most so many changes from one that could go on to another.
fn explore(changes: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(changes);
    builder.max_branches = 100_000;
    builder.check(model);
}

#[test]
fn a_decision_and_its_tasks_own_event_do_not_both_have_their_way() {
    for sleeps in [false, true] {
        explore(2, move || {
            let host = Host::new(false);
            host.put(0, 1, host.run(0, 0));
            assert_eq!(host.mechanism.take(&*host, 0), Taken::Members(1));
            let theirs = host.clone();
            let event = thread::spawn(move || {
                if sleeps {
                    theirs.mechanism.quiescent(&*theirs, 0, 1, true);
                } else {
                    theirs.mechanism.dequeue(0);
                    theirs.mechanism.enqueue(&*theirs, 0, 100, 1);
                }
            });
            host.mechanism.settle(&*host, 0);
            event.join().unwrap();
            let phase = if sleeps { Phase::Blocked } else { Phase::Runnable };
            assert_eq!(host.phase(0), phase, "the task's own event comes after all that it finds");
            assert_eq!(host.mechanism.cpu(0).unwrap().task(), TASK_NONE);
            host.check();
        });
    }
}

#[test]
fn two_decisions_on_one_task_are_committed_once() {
    explore(2, || {
        let host = Host::new(false);
        for cpu in 0..2 {
            host.put(cpu, 1, host.run(cpu, 0));
            assert_eq!(host.mechanism.take(&*host, cpu), Taken::Members(1));
        }
        let theirs = host.clone();
        let other = thread::spawn(move || theirs.mechanism.settle(&*theirs, 1));
        let ours = host.mechanism.settle(&*host, 0);
        assert_ne!(ours, other.join().unwrap(), "one of the two");
        host.check();
    });
}

fn member(txn: Txn) -> Txn {
    Txn { flags: txn.flags.with(TxnFlags::GROUP), group: 7, group_size: 2, ..txn }
}

#[test]
fn two_cpus_that_take_a_groups_members_at_once_complete_it() {
    explore(2, || {
        let host = Host::new(false);
        for cpu in 0..2 {
            host.put(cpu, 1, member(host.run(cpu, cpu.into())));
        }
        let theirs = host.clone();
        let other = thread::spawn(move || theirs.look(1));
        let ours = host.look(0);
        assert_ne!(ours, other.join().unwrap(), "one of the two carries out both");
        assert_eq!(host.outcomes(Outcome::Committed), 2);
        assert_eq!((host.phase(0), host.phase(1)), (Phase::Placed, Phase::Placed));
        host.check();
    });
}

#[test]
fn a_member_that_moves_on_while_another_completes_its_group_gets_one_verdict() {
    explore(2, || {
        let host = Host::new(false);
        host.put(0, 1, member(host.run(0, 0)));
        assert!(!host.look(0), "it waits");
        host.put(1, 1, member(host.run(1, 1)));
        host.put(0, 2, Txn::withdraw(0));
        let theirs = host.clone();
        let other = thread::spawn(move || theirs.look(1));
        host.look(0);
        let completed = other.join().unwrap();
        let enclave = host.mechanism.enclave(0).unwrap();
        host.mechanism.break_old_groups(&*host, 0, u64::MAX);
        assert_eq!(enclave.runnable(), if completed { 0 } else { 2 });
        assert_eq!(host.outcomes(Outcome::Withdrawn), 1);
        let (committed, failed) = (host.outcomes(Outcome::Committed), host.outcomes(Outcome::GroupFailed));
        assert_eq!((committed, failed), if completed { (2, 0) } else { (0, 2) }, "both or none, and once");
        host.check();
    });
}

/// CPU 0 runs task 1; a group of CPU 1's takes CPU 0 from it for task 0, and is taken back for its other member.
#[test]
fn a_cpu_that_is_given_back_is_not_given_to_a_task_that_has_gone() {
    explore(3, || {
        let host = Host::new(true);
        host.put(0, 1, host.run(0, 1));
        assert!(host.look(0));
        host.mechanism.running(&*host, 1, 0);
        host.mechanism.switch(&*host, 0, Runs::Ours);
        let theirs = host.clone();
        let event = thread::spawn(move || {
            theirs.mechanism.quiescent(&*theirs, 1, 0, true);
            theirs.mechanism.switch(&*theirs, 0, Runs::Idle);
        });
        host.mechanism.claim_and_release(&*host, 0, 0);
        event.join().unwrap();
        host.check_idles(0);
    });
}

#[test]
fn a_cpu_that_idles_without_its_task_is_told_by_one_of_the_two() {
    explore(3, || {
        let host = Host::new(true);
        host.put(0, 1, host.run(0, 0));
        assert!(host.look(0), "the task is placed, and then leaves before it ran");
        let theirs = host.clone();
        let event = thread::spawn(move || {
            theirs.mechanism.dequeue(0);
            theirs.mechanism.enqueue(&*theirs, 0, 100, 1);
        });
        host.mechanism.switch(&*host, 0, Runs::Idle);
        event.join().unwrap();
        host.check_idles(0);
    });
}

#[test]
fn what_is_rescued_is_queued_once_and_by_somebody() {
    explore(3, || {
        let host = Host::new(false);
        host.mechanism.enclave(0).unwrap().set_level(Level::Host);
        let (looks, moves) = (host.clone(), host.clone());
        // A CPU looks, and another queues task 1 anew.
        let look = thread::spawn(move || match looks.mechanism.take(&*looks, 0) {
            Taken::Rescue(count) => {
                (0..count).filter_map(|member| Some(looks.mechanism.rescued(0, member)?.1)).collect()
            }
            _ => Vec::new(),
        });
        let own = thread::spawn(move || {
            moves.mechanism.dequeue(1);
            moves.mechanism.enqueue(&*moves, 1, 101, 1)
        });
        host.mechanism.rescue_from(0);
        let mut queued: Vec<u32> = look.join().unwrap();
        assert_eq!(own.join().unwrap(), Custody::Host);
        host.mechanism.rescue_from(0);
        while let Taken::Rescue(count) = host.mechanism.take(&*host, 1) {
            queued.extend((0..count).filter_map(|member| Some(host.mechanism.rescued(1, member)?.1)));
        }
        assert_eq!(queued.iter().filter(|&&task| task == 0).count(), 1, "task 0: {queued:?}");
        assert_eq!((host.phase(0), host.phase(1)), (Phase::Host, Phase::Host));
        host.check();
    });
}

#[test]
fn two_that_rescue_at_once_lose_nothing() {
    explore(3, || {
        let host = Host::new(false);
        host.mechanism.enclave(0).unwrap().set_level(Level::Host);
        let theirs = host.clone();
        let other = thread::spawn(move || theirs.mechanism.rescue_from(0));
        let rescued = host.mechanism.rescue_from(0) + other.join().unwrap();
        assert_eq!(rescued, 2);
        assert_eq!(host.mechanism.take(&*host, 0), Taken::Rescue(2));
        host.check();
    });
}

#[test]
fn a_number_is_one_tasks_at_a_time() {
    explore(4, || {
        let tasks: &'static [Task] = kept(3);
        let free = Arc::new(Stack::<false>::over(tasks));
        let theirs = free.clone();
        let other = thread::spawn(move || {
            let one = theirs.take(tasks).unwrap();
            let two = theirs.take(tasks);
            assert!(theirs.give(tasks, one));
            (two, theirs.take(tasks))
        });
        let mine = free.take(tasks).unwrap();
        assert!(free.give(tasks, mine));
        let mine = free.take(tasks);
        let (two, three) = other.join().unwrap();
        let mut held: Vec<u32> = [mine, two, three].into_iter().flatten().collect();
        while let Some(number) = free.take(tasks) {
            held.push(number);
        }
        held.sort_unstable();
        assert_eq!(held, [0, 1, 2], "each number is somebody's, once");
    });
}
