//! Every outcome of the ABI, reached by a txn in a slot, alone and in a group; each refusal leaves all as it was.

use neap_abi::message::TASK_NONE;
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags, VERSION, Version};
use neap_queue::SlotWriter;

use crate::cpu::{MEMBERS_MAX, Runs};
use crate::enclave::Standing;
use crate::events::Custody;
use crate::fakes::{Host, Judged, Memory};
use crate::resync::Arrival;
use crate::task::Phase;
use crate::tests::bench::{Bench, CPUS, TASKS, memory};
use crate::{Taken, Word};

const V1_0: Version = Version { major: 1, minor: 0 };
const PREEMPT: TxnFlags = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);

impl Bench<'_> {
    /// The outcome of a txn that is refused, alone: nothing has changed, and the CPU's next line tells.
    fn refused(&mut self, slot: u16, txn: Txn) -> Outcome {
        let before = self.state();
        let outcome = self.judge(slot, txn);
        assert_eq!(self.state(), before, "a refusal changed something: {outcome:?}");
        assert!(outcome.is_refusal(), "{outcome:?}");
        let id = self.writers[usize::from(slot)].number();
        let told: Vec<_> =
            self.sent().into_iter().filter(|line| line.txn == id && line.cpu == slot).collect();
        let enclave = self.mechanism.enclave(0).unwrap();
        let of_another = enclave.agent().is_some_and(|agent| agent != txn.incarnation);
        let told: Vec<Outcome> = told.into_iter().map(|line| line.outcome).collect();
        // What became of another agent's txn is not this one's business.
        assert_eq!(told, if of_another { vec![] } else { vec![outcome] });
        outcome
    }

    /// The outcomes of a group of good decisions for CPUs 0 and 1, of which `spoil` spoils the second.
    fn refused_together(&mut self, spoil: impl Fn(&mut Self, Txn) -> Txn) -> [Outcome; 2] {
        let (one, other) = (member(self.run(0, 0), 2), member(self.run(1, 1), 2));
        let other = spoil(self, other);
        let before = self.state();
        self.put(0, one);
        self.put(1, other);
        self.look(0);
        self.look(1);
        assert_eq!(self.state(), before, "a refused group changed something");
        let judged = self.host.judged(0);
        assert_eq!(judged.len(), 2, "{judged:?}");
        let of = |cpu: u16| judged.iter().find(|judged| judged.cpu == cpu).unwrap().outcome;
        for cpu in 0..2 {
            assert_eq!(self.mechanism.cpu(cpu).unwrap().group.load(core::sync::atomic::Ordering::Relaxed), 0);
        }
        [of(0), of(1)]
    }
}

#[test]
fn a_good_txn_places_its_task_and_moves_both_stamps() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let (task, cpu) = (bench.word(2).stamp, bench.mechanism.cpu(1).unwrap().stamp());
    let txn = Txn { slice_ns: 30_000, ..bench.run(1, 2) };
    bench.put(1, txn);
    assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Members(1));
    let member = bench.mechanism.member(1, 0).unwrap();
    assert_eq!((member.pid, member.task, member.cpu, member.slice_ns), (102, 2, 1, 30_000));
    assert_eq!(bench.word(2).phase, Phase::Runnable, "not before the kernel has it in place");
    assert!(bench.mechanism.settle(&bench.host, 1));
    assert_eq!(bench.word(2), Word { stamp: task + 1, cpu: 1, phase: Phase::Placed, ..bench.word(2) });
    assert_eq!(bench.mechanism.cpu(1).unwrap().stamp(), cpu + 1);
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), 2);
    let enclave = bench.mechanism.enclave(0).unwrap();
    assert_eq!((enclave.runnable(), enclave.decisions()), (3, 1));
    bench.mechanism.running(&bench.host, 2, 1);
    assert_eq!(bench.word(2).phase, Phase::OnCpu);
    assert!(bench.sent().is_empty(), "the verdict waits for the switch");
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!(
        (line.kind, line.outcome, line.txn, line.task),
        (MessageKind::TxnOutcome, Outcome::Committed, 1, 2)
    );
    assert!(!line.flags.has(TaskFlags::CPU_IDLE));
}

/// Something that a test does to a bench before a txn, and what the txn comes to then.
type Case<'a> = (Outcome, &'a dyn Fn(&mut Bench<'_>, Txn) -> Txn);

/// The case of a txn that was decided before a resync.
const VOID: usize = 26;

#[test]
fn every_refusal_has_its_reason() {
    let cases: [Case<'_>; 27] = [
        (Outcome::Withdrawn, &|_, txn| Txn { operation: 0, ..txn }),
        (Outcome::TaskOnCpu, &|b, txn| {
            b.start(2, 1);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::TaskStale, &|_, txn| Txn { stamp: txn.stamp.wrapping_sub(1), ..txn }),
        (Outcome::TaskStale, &|b, txn| {
            // It is off its queue: back there, it will have another stamp.
            b.mechanism.dequeue(1);
            txn
        }),
        (Outcome::TaskGone, &|_, txn| Txn { task: 5, ..txn }),
        (Outcome::TaskGone, &|b, txn| {
            b.mechanism.disable(&b.host, 1, true, 1);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::TaskNotRunnable, &|b, txn| {
            b.mechanism.quiescent(&b.host, 1, 1, true);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::CpuStale, &|_, txn| Txn {
            flags: txn.flags.with(TxnFlags::CHECK_CPU),
            cpu_stamp: 99,
            ..txn
        }),
        (Outcome::CpuOffline, &|b, txn| {
            b.mechanism.set_online(1, false);
            txn
        }),
        (Outcome::CpuUnavailable, &|b, txn| {
            b.mechanism.switch(&b.host, 1, Runs::Other);
            b.mechanism.withhold(&b.host, 1);
            txn
        }),
        (Outcome::CpuUnavailable, &|b, txn| {
            // Another task is about to run there.
            let other = b.run(1, 2);
            assert_eq!(b.judge(1, other), Outcome::Committed);
            txn
        }),
        (Outcome::InvalidFlags, &|_, txn| Txn { flags: txn.flags.with(TxnFlags::PREEMPT), ..txn }),
        (Outcome::InvalidFlags, &|_, txn| Txn { flags: txn.flags.with(TxnFlags(1 << 12)), ..txn }),
        (Outcome::InvalidTask, &|_, txn| Txn { task: TASKS, ..txn }),
        (Outcome::InvalidTask, &|_, txn| Txn { task: TASK_NONE, ..txn }),
        (Outcome::NotPermitted, &|_, txn| Txn { cpu: 3, ..txn }),
        (Outcome::NotPermitted, &|b, txn| {
            // The second enclave has it.
            b.mechanism.quiescent(&b.host, 1, 0, true);
            b.mechanism.set_affinity(&b.host, 1, (3, 1), 0);
            b.mechanism.enqueue(&b.host, 1, 101, 3);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::NotPermitted, &|b, txn| {
            // The host's own rule has it.
            b.mechanism.enclave(0).unwrap().set_level(crate::Level::Host);
            b.mechanism.quiescent(&b.host, 1, 1, true);
            b.mechanism.enqueue(&b.host, 1, 101, 1);
            b.mechanism.enclave(0).unwrap().set_level(crate::Level::Ipu);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::InvalidCpu, &|_, txn| Txn { cpu: CPUS, ..txn }),
        (Outcome::NoAgent, &|b, txn| {
            b.mechanism.enclave(0).unwrap().set_standing(Standing::Gone);
            txn
        }),
        (Outcome::NoAgent, &|_, txn| Txn { incarnation: 9, ..txn }),
        (Outcome::UnsupportedVersion, &|b, txn| {
            b.mechanism.enclave(0).unwrap().set_agent(None, V1_0);
            Txn { order: 3, incarnation: 0, ..txn }
        }),
        (Outcome::UnsupportedVersion, &|b, txn| {
            let older = Version { minor: 1, ..VERSION };
            b.mechanism.enclave(0).unwrap().set_agent(None, older);
            txn
        }),
        (Outcome::Poisoned, &|_, txn| Txn { credits: 9999, ..txn }),
        (Outcome::Affinity, &|b, txn| {
            b.mechanism.set_affinity(&b.host, 1, (2, 1), 1);
            Txn { stamp: b.word(1).stamp, ..txn }
        }),
        (Outcome::UnknownOperation, &|_, txn| Txn { operation: 77, ..txn }),
        (Outcome::TaskStale, &|b, txn| {
            // The state has been told anew since it was decided.
            let mut arrivals = [Arrival::default(); TASKS as usize];
            assert!(b.mechanism.resync(&b.host, 0, &mut arrivals, |_| {}));
            txn
        }),
    ];
    let mut reached = std::collections::BTreeSet::from([Outcome::None, Outcome::Committed]);
    for (at, (outcome, spoil)) in cases.into_iter().enumerate() {
        let fresh = memory();
        let mut bench = Bench::new(&fresh);
        let txn = bench.run(1, 1);
        let txn = spoil(&mut bench, txn);
        bench.sent();
        assert_eq!(bench.refused(1, txn), outcome, "case {at}");
        reached.insert(outcome);
        // In a group the other member is refused for it, and as little is changed. Some things are wrong with both, or with what
        // makes it a member.
        let both = matches!(outcome, Outcome::Poisoned | Outcome::UnsupportedVersion) || at == VOID;
        let alone = matches!(outcome, Outcome::Withdrawn | Outcome::InvalidCpu | Outcome::NoAgent);
        if alone {
            continue;
        }
        let fresh = memory();
        let mut bench = Bench::new(&fresh);
        let [one, other] = bench.refused_together(|bench, txn| {
            let txn = spoil(bench, txn);
            bench.host.judged(0);
            txn
        });
        assert_eq!(other, outcome, "case {at} in a group");
        assert_eq!(one, if both { outcome } else { Outcome::GroupFailed }, "case {at} in a group");
        reached.insert(one);
    }
    let missing = |outcome: &Outcome| !reached.contains(outcome) && *outcome != Outcome::InvalidGroup;
    assert_eq!(Outcome::ALL.into_iter().filter(missing).collect::<Vec<_>>(), [], "no case reaches them");
}

#[test]
fn a_cpu_that_is_taken_away_refuses_what_lies_there_for_its_own_reason() {
    for (credits, outcome) in [(0, Outcome::CpuUnavailable), (9999, Outcome::Poisoned)] {
        let memory = memory();
        let mut bench = Bench::new(&memory);
        let txn = bench.run(1, 1);
        bench.put(1, Txn { credits: txn.credits + credits, ..txn });
        bench.sent();
        bench.mechanism.switch(&bench.host, 1, Runs::Other);
        bench.mechanism.withhold(&bench.host, 1);
        let told = bench.sent().into_iter().map(|line| line.outcome);
        assert_eq!(told.filter(|&outcome| outcome != Outcome::None).collect::<Vec<_>>(), [outcome]);
    }
}

fn member(txn: Txn, size: u8) -> Txn {
    Txn { group: 7, group_size: size, flags: txn.flags.with(TxnFlags::GROUP), ..txn }
}

fn outcomes(judged: &[Judged]) -> Vec<(u16, Outcome)> {
    let mut outcomes: Vec<_> = judged.iter().map(|judged| (judged.cpu, judged.outcome)).collect();
    outcomes.sort_unstable_by_key(|&(cpu, _)| cpu);
    outcomes
}

#[test]
fn a_group_commits_together_on_the_cpu_that_takes_the_last_member() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    for cpu in 0..3 {
        let txn = member(bench.run(cpu, cpu.into()), 3);
        bench.put(cpu, txn);
    }
    for cpu in [2, 0] {
        assert_eq!(bench.look(cpu), (Taken::Nothing, false));
        bench.mechanism.switch(&bench.host, cpu, Runs::Idle);
    }
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), 4, "nothing has happened yet");
    assert_eq!(bench.look(1), (Taken::Members(3), true));
    let committed = |cpu| (cpu, Outcome::Committed);
    assert_eq!(outcomes(&bench.host.judged(0)), (0..3).map(committed).collect::<Vec<_>>());
    for cpu in 0..3 {
        let word = bench.word(cpu.into());
        assert_eq!((word.phase, word.cpu), (Phase::Placed, cpu));
        assert_eq!(bench.mechanism.cpu(cpu).unwrap().task(), u32::from(cpu));
    }
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), 1);
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    let told: Vec<_> =
        bench.sent().iter().filter(|line| line.outcome == Outcome::Committed).map(|line| line.cpu).collect();
    assert_eq!(told, [0, 2, 1], "each CPU's verdict");
}

#[test]
fn a_group_that_cannot_be_is_refused() {
    let cases: [(Outcome, Outcome, Case<'_>); 4] = [
        // Two sizes.
        (
            Outcome::GroupFailed,
            Outcome::InvalidGroup,
            (Outcome::None, &|_, txn| Txn { group_size: 3, ..txn }),
        ),
        // None at all.
        (
            Outcome::GroupFailed,
            Outcome::InvalidGroup,
            (Outcome::None, &|_, txn| Txn { group_size: 0, ..txn }),
        ),
        // More than there are CPUs.
        (
            Outcome::GroupFailed,
            Outcome::InvalidGroup,
            (Outcome::None, &|_, txn| Txn { group_size: 4, ..txn }),
        ),
        // Another CPU than its slot's.
        (Outcome::GroupFailed, Outcome::InvalidGroup, (Outcome::None, &|_, txn| Txn { cpu: 2, ..txn })),
    ];
    for (at, (first, second, (_, spoil))) in cases.into_iter().enumerate() {
        let fresh = memory();
        let mut bench = Bench::new(&fresh);
        assert_eq!(bench.refused_together(|bench, txn| spoil(bench, txn)), [first, second], "case {at}");
    }
    // A task twice.
    let fresh = memory();
    let mut bench = Bench::new(&fresh);
    let twice = |bench: &mut Bench<'_>, txn: Txn| Txn { task: 0, stamp: bench.word(0).stamp, ..txn };
    assert_eq!(bench.refused_together(twice), [Outcome::GroupFailed, Outcome::InvalidGroup]);
    // More members than can be carried out at one time, on a host with CPUs enough.
    let memory = Memory::new(20, 32, 1, 64);
    let mechanism = memory.mechanism();
    let host = Host::attached(&memory, &mechanism);
    let txn = Txn { id: 1, incarnation: 1, ..member(Txn::run(0, 0, 0), MEMBERS_MAX as u8 + 1) };
    SlotWriter::default().write(&memory.window(0).slots[0], &txn.to_payload(), CREDIT_WORD);
    assert_eq!(mechanism.take(&host, 0), Taken::Nothing);
    assert_eq!(outcomes(&host.judged(0)), [(0, Outcome::InvalidGroup)]);
}

#[test]
fn a_group_whose_member_moves_on_is_void() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = member(bench.run(0, 0), 2);
    bench.put(0, txn);
    assert_eq!(bench.look(0), (Taken::Nothing, false));
    let next = bench.run(0, 2);
    assert_eq!(bench.judge_all(0, next), [Outcome::GroupFailed, Outcome::Committed]);
    // The other comes too late, and is told in the end.
    let txn = member(bench.run(1, 1), 2);
    bench.put(1, txn);
    assert_eq!(bench.look(1), (Taken::Nothing, false));
    bench.mechanism.break_old_groups(&bench.host, 0, 0);
    assert!(bench.host.judged(0).is_empty(), "it has not waited for long");
    bench.mechanism.break_old_groups(&bench.host, 0, u64::MAX);
    assert_eq!(outcomes(&bench.host.judged(0)), [(1, Outcome::GroupFailed)]);
}

#[test]
fn a_group_fails_where_the_kernel_cannot_put_a_member_in_place() {
    for (gone, outcome) in [(true, Outcome::TaskGone), (false, Outcome::Affinity)] {
        let memory = memory();
        let mut bench = Bench::new(&memory);
        for cpu in 0..2 {
            let txn = member(bench.run(cpu, cpu.into()), 2);
            bench.put(cpu, txn);
        }
        let before = bench.state();
        assert_eq!(bench.mechanism.take(&bench.host, 0), Taken::Nothing);
        assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Members(2));
        bench.mechanism.bar(1, 1, gone);
        bench.mechanism.bar(1, 99, gone);
        assert!(!bench.mechanism.settle(&bench.host, 1));
        assert_eq!(outcomes(&bench.host.judged(0)), [(0, Outcome::GroupFailed), (1, outcome)]);
        assert_eq!(bench.state(), before);
        assert!(!bench.mechanism.settle(&bench.host, 1), "once");
    }
}

/// What is judged first can have changed by the time that the last member is committed.
#[test]
fn a_group_is_taken_back_whole_where_a_task_moves_on_in_between() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 3);
    let cpu_stamp = bench.mechanism.cpu(1).unwrap().stamp();
    for cpu in 0..3 {
        let txn = member(bench.run(cpu, cpu.into()), 3);
        bench.put(cpu, Txn { flags: txn.flags.with(PREEMPT), cpu_stamp, ..txn });
    }
    let fix = |bench: &Bench<'_>, cpu: u16| bench.mechanism.cpu(cpu).unwrap().stamp();
    let stamps = [fix(&bench, 0), fix(&bench, 2)];
    for (cpu, stamp) in [(0, stamps[0]), (2, stamps[1])] {
        let txn = member(bench.run(cpu, cpu.into()), 3);
        bench.put(cpu, Txn { flags: txn.flags.with(PREEMPT), cpu_stamp: stamp, ..txn });
    }
    assert_eq!(bench.mechanism.take(&bench.host, 0), Taken::Nothing);
    assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Nothing);
    assert_eq!(bench.mechanism.take(&bench.host, 2), Taken::Members(3));
    bench.mechanism.dequeue(2);
    let before = bench.state();
    assert!(!bench.mechanism.settle(&bench.host, 2));
    assert_eq!(bench.state(), before, "CPU 1 is task 3's again");
    let failed = Outcome::GroupFailed;
    assert_eq!(outcomes(&bench.host.judged(0)), [(0, failed), (1, failed), (2, Outcome::TaskStale)]);
}

#[test]
fn a_member_may_leave_its_cpu_idle_or_find_its_task_there() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    let runnable = bench.mechanism.enclave(0).unwrap().runnable();
    let idles = Txn { operation: Operation::Idle as u8, task: 77, ..member(bench.run(0, 0), 3) };
    let stays = member(bench.run(1, 1), 3);
    let stays = Txn { flags: stays.flags.with(TxnFlags::ALLOW_ON_CPU), ..stays };
    let runs = member(bench.run(2, 2), 3);
    for (cpu, txn) in [(0, idles), (1, stays), (2, runs)] {
        bench.put(cpu, txn);
    }
    bench.look(1);
    bench.look(0);
    let word = bench.word(1);
    assert_eq!(bench.look(2), (Taken::Members(3), true));
    assert_eq!(outcomes(&bench.host.judged(0)).iter().filter(|(_, o)| *o == Outcome::Committed).count(), 3);
    assert_eq!(bench.word(1), word, "what runs there goes on");
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), runnable - 1, "one of them was waiting");
    assert_eq!(bench.mechanism.cpu(0).unwrap().task(), TASK_NONE);
}

#[test]
fn a_task_that_runs_here_already_may_be_meant() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    let again = Txn { flags: TxnFlags::ALLOW_ON_CPU, slice_ns: 5000, ..bench.run(1, 1) };
    bench.mechanism.yields(1);
    bench.put(1, Txn { stamp: 0, ..again });
    assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Keep);
    assert_eq!(bench.mechanism.member(1, 0).unwrap().slice_ns, 5000);
    assert!(!bench.word(1).yields, "it goes on");
    assert_eq!(outcomes(&bench.host.judged(0)), [(1, Outcome::Committed)]);
    assert_eq!(bench.judge(1, Txn { flags: TxnFlags(0), ..again }), Outcome::TaskOnCpu);
    assert_eq!(bench.judge(2, Txn { cpu: 2, ..again }), Outcome::TaskOnCpu, "elsewhere");
}

#[test]
fn a_cpu_that_looks_is_held_by_what_is_about_to_run_there_only() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    // It asks for the next itself: what runs there gives way.
    let txn = bench.run(1, 2);
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    assert_eq!(bench.mechanism.enqueue(&bench.host, 1, 101, 1), Custody::Agent);
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), 2);
    // Another CPU's group does not take it from a task that runs there, unless it is to preempt.
    bench.mechanism.running(&bench.host, 2, 1);
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    for preempts in [false, true] {
        let cpu_stamp = bench.mechanism.cpu(1).unwrap().stamp();
        let (one, other) = (member(bench.run(0, 0), 2), member(bench.run(1, 3), 2));
        let flags = if preempts { other.flags.with(PREEMPT) } else { other.flags };
        bench.put(1, Txn { flags, cpu_stamp, ..other });
        bench.put(0, one);
        bench.host.judged(0);
        bench.look(1);
        bench.look(0);
        let outcome = if preempts { Outcome::Committed } else { Outcome::CpuUnavailable };
        assert_eq!(outcomes(&bench.host.judged(0))[1], (1, outcome));
    }
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), 3);
    // What it was taken from gives way in its own time, and the CPU stays the other's.
    assert_eq!(bench.mechanism.enqueue(&bench.host, 2, 102, 1), Custody::Agent);
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), 3);
}

#[test]
fn a_decision_to_idle_is_told_at_once() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let idle = Txn { operation: Operation::Idle as u8, ..bench.run(1, 1) };
    assert_eq!(bench.judge(1, idle), Outcome::Committed);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.outcome, line.flags), (Outcome::Committed, TaskFlags::CPU_IDLE));
}

#[test]
fn a_doorbell_preempts_only_for_what_would_be_committed() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    let cpu_stamp = bench.mechanism.cpu(1).unwrap().stamp();
    let good = Txn { flags: PREEMPT, cpu_stamp, ..bench.run(1, 2) };
    let spoilt = [
        Txn { flags: TxnFlags(0), ..good },
        Txn { cpu_stamp: 0, ..good },
        Txn { stamp: 0, ..good },
        Txn { incarnation: 2, ..good },
        Txn { flags: TxnFlags::PREEMPT, ..good },
    ];
    for txn in spoilt {
        bench.put(1, txn);
        assert!(!bench.mechanism.rung(&bench.host, 1), "{txn:?}");
    }
    bench.put(1, good);
    assert!(bench.mechanism.rung(&bench.host, 1));
    assert_eq!(bench.mechanism.rings(0), 6);
    bench.look(1);
    assert_eq!(bench.mechanism.rings(0), 0, "a new line has come");
}

/// A place that the kernel has recorded is for the task as it was when its txn was taken. An agent that guesses the stamp of an
/// event still to come must not have it placed where nobody puts it.
#[test]
fn a_guessed_stamp_that_comes_true_in_between_is_refused() {
    // It sleeps when its group is taken, and is woken before that is settled.
    let fresh = memory();
    let mut bench = Bench::new(&fresh);
    bench.mechanism.quiescent(&bench.host, 3, 0, true);
    let guess = bench.word(3).stamp + 1;
    let txn = Txn { stamp: guess, ..member(bench.run(0, 3), 2) };
    bench.put(0, txn);
    let txn = member(bench.run(1, 1), 2);
    bench.put(1, txn);
    bench.look(0);
    assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Nothing, "nothing is put in place");
    let failed = (1, Outcome::GroupFailed);
    assert_eq!(outcomes(&bench.host.judged(0)), [(0, Outcome::TaskStale), failed]);
    // It runs where it is to run, and is put back in between.
    let fresh = memory();
    let mut bench = Bench::new(&fresh);
    bench.start(0, 0);
    let guess = bench.word(0).stamp + 1;
    let txn = member(bench.run(0, 0), 2);
    bench.put(0, Txn { stamp: guess, flags: txn.flags.with(TxnFlags::ALLOW_ON_CPU), ..txn });
    let txn = member(bench.run(1, 1), 2);
    bench.put(1, txn);
    bench.look(0);
    assert_eq!(bench.mechanism.take(&bench.host, 1), Taken::Members(2));
    bench.mechanism.enqueue(&bench.host, 0, 100, 0);
    assert_eq!(bench.word(0), Word { stamp: guess, phase: Phase::Runnable, ..bench.word(0) });
    assert!(!bench.mechanism.settle(&bench.host, 1));
    assert_eq!(outcomes(&bench.host.judged(0)), [(0, Outcome::TaskStale), failed]);
    assert_eq!(bench.word(0).phase, Phase::Runnable);
}
