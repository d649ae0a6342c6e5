//! What is told, when, and what it costs.

use neap_abi::message::TASK_NONE;
use neap_abi::{MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags, VERSION};

use crate::cpu::Runs;
use crate::events::Custody;
use crate::fakes::Memory;
use crate::resync::Arrival;
use crate::task::Phase;
use crate::tests::bench::{Bench, TASKS, memory};
use crate::{Count, Level, Taken};

fn hits(bench: &Bench<'_>) -> [u64; 4] {
    [Count::PrestageHits, Count::PrestageMisses, Count::HitLineWrites, Count::HitUncachedReads]
        .map(|count| bench.mechanism.sum(count))
}

#[test]
fn a_hit_is_one_line_with_event_and_verdict() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    let flushed = bench.host.of(0).platform.flushed.get();
    bench.mechanism.stopping(&bench.host, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    let next = bench.run(1, 2);
    assert_eq!(bench.judge(1, next), Outcome::Committed);
    bench.mechanism.running(&bench.host, 2, 1);
    assert!(bench.sent().is_empty());
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task, line.stamp), (MessageKind::TaskBlocked, 1, bench.word(1).stamp));
    assert_eq!((line.outcome, line.txn, line.flags), (Outcome::Committed, 2, TaskFlags::WAS_ON_CPU));
    assert_eq!(line.cpu_stamp, bench.mechanism.cpu(1).unwrap().stamp());
    assert!(line.argument > 0, "it says how long the task ran");
    assert_eq!(hits(&bench), [1, 0, 1, 0]);
    assert_eq!(bench.host.of(0).platform.flushed.get(), flushed + 1, "one flush of the consumed slot");
}

/// A task whose slice has ended, or that yields, is put back after the look: its line goes with the verdict all the same.
#[test]
fn a_hit_at_the_end_of_a_slice_is_one_line_too() {
    for yields in [false, true] {
        let memory = memory();
        let mut bench = Bench::new(&memory);
        bench.start(1, 1);
        if yields {
            bench.mechanism.yields(1);
        }
        let next = bench.run(1, 2);
        assert_eq!(bench.judge(1, next), Outcome::Committed);
        bench.mechanism.stopping(&bench.host, 1);
        assert_eq!(bench.mechanism.enqueue(&bench.host, 1, 101, 1), Custody::Agent);
        bench.mechanism.running(&bench.host, 2, 1);
        bench.mechanism.switch(&bench.host, 1, Runs::Ours);
        let [line] = bench.sent().try_into().unwrap();
        let kind = if yields { MessageKind::TaskYield } else { MessageKind::TaskPreempt };
        assert_eq!((line.kind, line.task, line.outcome), (kind, 1, Outcome::Committed));
        assert_eq!(line.flags, TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU));
        assert_eq!(hits(&bench), [1, 0, 1, 0]);
    }
}

#[test]
fn a_sleeping_agent_is_rung_without_a_look_on_a_hit() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.host = crate::fakes::Host::new(&memory, true);
    bench.host.attach(&bench.mechanism, 0, Some(1), VERSION, false);
    bench.start(1, 1);
    let (reads, rings) = (bench.mechanism.sum(Count::UncachedReads), bench.mechanism.sum(Count::Rings));
    assert!(reads > 0, "what is no hit looks whether the agent sleeps");
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    let next = bench.run(1, 2);
    assert_eq!(bench.judge(1, next), Outcome::Committed);
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    assert_eq!(hits(&bench), [1, 0, 1, 0]);
    assert_eq!(bench.mechanism.sum(Count::UncachedReads), reads);
    assert_eq!(bench.mechanism.sum(Count::Rings), rings + 1);
}

#[test]
fn a_miss_is_told_as_an_idle_cpu() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    assert_eq!(bench.look(1), (Taken::Nothing, false));
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.outcome), (MessageKind::TaskBlocked, Outcome::None));
    assert!(line.flags.has(TaskFlags::CPU_IDLE.with(TaskFlags::WAS_ON_CPU)));
    assert_eq!(hits(&bench), [0, 1, 0, 0]);
}

/// The kernel voids a place whose task has been off its queue since, and the CPU goes on idling without a switch.
#[test]
fn an_idle_cpu_whose_decision_came_to_nothing_tells_so() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = bench.run(1, 1);
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    bench.mechanism.dequeue(1);
    assert_eq!(bench.mechanism.enqueue(&bench.host, 1, 101, 0), Custody::Agent);
    let lines = bench.sent();
    let told = |line: &&neap_abi::Message| line.cpu == 1;
    assert!(lines.iter().any(|line| line.kind == MessageKind::TaskLatchFailure && line.task == 1));
    let of_cpu: Vec<_> = lines.iter().filter(told).collect();
    assert!(of_cpu.iter().any(|line| line.outcome == Outcome::Committed), "{lines:?}");
    assert!(of_cpu.last().unwrap().flags.has(TaskFlags::CPU_IDLE), "{lines:?}");
    assert_eq!(bench.mechanism.sum(Count::LatchFailures), 1);
}

/// An RT task had the CPU when the decision was carried out, and the task left before it ever ran there.
#[test]
fn a_cpu_that_idles_without_the_task_it_was_given_tells_so() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = bench.run(1, 1);
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    bench.mechanism.switch(&bench.host, 1, Runs::Other);
    bench.mechanism.quiescent(&bench.host, 1, 1, false);
    bench.mechanism.enqueue(&bench.host, 1, 101, 2);
    assert!(bench.sent().iter().all(|line| !line.flags.has(TaskFlags::CPU_IDLE)));
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.cpu, line.flags), (1, TaskFlags::CPU_IDLE));
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    assert!(bench.sent().is_empty(), "once");
}

#[test]
fn a_cpu_whose_task_goes_on_in_another_class_tells_when_it_idles() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, false);
    bench.mechanism.disable(&bench.host, 1, false, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task), (MessageKind::TaskDeparted, 1), "at once: its number is free");
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.cpu, line.flags), (1, TaskFlags::CPU_IDLE));
}

/// While a dispatch has let go of its runqueue, the task that blocks there can leave the class, and its number be another's.
#[test]
fn all_lines_of_a_task_go_before_its_number_is_anothers() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    bench.mechanism.disable(&bench.host, 1, false, 1);
    assert_eq!(bench.mechanism.enable(201, (0, 0), 2), Some(1));
    bench.mechanism.enqueue(&bench.host, 1, 201, 2);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let of_task: Vec<_> = bench.sent().iter().filter(|line| line.task == 1).map(|line| line.kind).collect();
    assert_eq!(of_task, [MessageKind::TaskBlocked, MessageKind::TaskDeparted, MessageKind::TaskNew]);
}

#[test]
fn what_waits_to_be_told_of_a_task_is_told_before_what_comes_after() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    bench.mechanism.set_affinity(&bench.host, 1, (2, 1), 1);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let stamps: Vec<_> = bench.sent().iter().filter(|line| line.task == 1).map(|line| line.stamp).collect();
    assert_eq!(stamps, [bench.word(1).stamp - 1, bench.word(1).stamp]);
}

/// A task that exits is not asked of: the kernel may put it into another CPU's queue without a word.
#[test]
fn a_cpu_that_lost_its_task_without_a_word_tells_when_it_idles() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.switch(&bench.host, 1, Runs::Other);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.cpu, line.flags), (1, TaskFlags::CPU_IDLE));
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), TASK_NONE);
    // It had only been waiting, and goes on where it was.
    bench.mechanism.running(&bench.host, 1, 1);
    assert_eq!((bench.mechanism.cpu(1).unwrap().task(), bench.word(1).phase), (1, Phase::OnCpu));
    // Or it has come to run elsewhere.
    bench.mechanism.running(&bench.host, 1, 2);
    assert_eq!(bench.mechanism.cpu(1).unwrap().task(), TASK_NONE);
    assert_eq!((bench.mechanism.cpu(2).unwrap().task(), bench.word(1).cpu), (1, 2));
}

#[test]
fn no_verdict_is_told_in_anothers_place() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = bench.run(1, 1);
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    let entry = bench.mechanism.cpu(1).unwrap();
    let enclave = bench.mechanism.enclave(0).unwrap();
    // As another CPU does that breaks a group.
    let broken = Txn { id: 77, ..txn };
    bench.mechanism.conclude(&bench.host, 0, enclave, 1, &broken, Outcome::GroupFailed);
    bench.mechanism.switch(&bench.host, 1, Runs::Ours);
    let told: Vec<_> = bench.sent().iter().map(|line| (line.txn, line.outcome)).collect();
    assert_eq!(told, [(1, Outcome::Committed), (77, Outcome::GroupFailed)]);
    assert!(!entry.has_verdict());
}

#[test]
fn a_cpu_that_went_offline_never_says_that_it_idles() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    bench.mechanism.quiescent(&bench.host, 1, 1, true);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    bench.sent();
    bench.mechanism.set_online(1, false);
    bench.mechanism.withhold(&bench.host, 1);
    for runs in [Runs::Other, Runs::Idle, Runs::Ours, Runs::Idle] {
        bench.mechanism.switch(&bench.host, 1, runs);
    }
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.cpu, line.flags), (MessageKind::CpuBusy, 1, TaskFlags(0)));
    assert!(!bench.mechanism.cpu(1).unwrap().is_open());
    // Another CPU breaks a group, of which it had taken a member.
    let txn = bench.run(1, 2);
    let enclave = bench.mechanism.enclave(0).unwrap();
    bench.mechanism.conclude(&bench.host, 0, enclave, 1, &txn, Outcome::GroupFailed);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.outcome, line.flags), (Outcome::GroupFailed, TaskFlags(0)));
    bench.mechanism.set_online(1, true);
    bench.mechanism.announce(&bench.host, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.flags), (MessageKind::CpuAvailable, TaskFlags::CPU_IDLE));
}

#[test]
fn a_cpu_is_withheld_only_while_something_else_has_it() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.mechanism.switch(&bench.host, 1, Runs::Other);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    bench.sent();
    // It was asked for when the CPU was still held, and comes too late.
    bench.mechanism.withhold(&bench.host, 1);
    assert!(bench.mechanism.cpu(1).unwrap().is_open() && bench.sent().is_empty());
    let txn = bench.run(1, 1);
    bench.put(1, txn);
    bench.mechanism.switch(&bench.host, 1, Runs::Other);
    bench.mechanism.withhold(&bench.host, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.outcome, line.txn), (MessageKind::CpuBusy, Outcome::CpuUnavailable, 1));
    assert_eq!(bench.word(1).phase, Phase::Runnable);
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.flags), (MessageKind::CpuAvailable, TaskFlags::CPU_IDLE));
}

#[test]
fn a_task_that_runs_is_told_of_when_its_affinity_changes() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    let before = bench.word(1).stamp;
    // The kernel takes it off its queue for that, and puts it back.
    bench.mechanism.quiescent(&bench.host, 1, 1, false);
    bench.mechanism.set_affinity(&bench.host, 1, (1, 1), 1);
    bench.mechanism.running(&bench.host, 1, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task, line.stamp), (MessageKind::TaskAffinityChanged, 1, before + 1));
    assert_eq!((line.first_cpu, line.cpu_count), (1, 1));
    assert_eq!((bench.word(1).phase, bench.word(1).stamp), (Phase::OnCpu, before + 1));
}

#[test]
fn a_thread_that_takes_its_processs_number_is_found_by_it() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 1);
    // exec() while it ran.
    assert_eq!(bench.mechanism.enqueue(&bench.host, 1, 4711, 1), Custody::Agent);
    let txn = bench.run(2, 1);
    bench.put(2, txn);
    assert_eq!(bench.mechanism.take(&bench.host, 2), Taken::Members(1));
    assert_eq!(bench.mechanism.member(2, 0).unwrap().pid, 4711);
}

#[test]
fn a_new_sessions_first_line_is_taken_though_the_last_one_of_the_old_looked_like_it() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = bench.run(1, 1);
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    bench.mechanism.begin_session(&bench.host, 0);
    memory.window(0).slots[1].clear();
    bench.writers[1] = neap_queue::SlotWriter::default();
    let txn = bench.run(1, 2);
    bench.mechanism.enqueue(&bench.host, 1, 101, 1);
    assert_eq!(bench.judge(1, txn), Outcome::Committed, "it has the same tag");
}

#[test]
fn what_is_decided_on_what_a_resync_replaced_is_void_until_it_is_heard() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let mut arrivals = [Arrival::default(); TASKS as usize];
    assert!(bench.mechanism.resync(&bench.host, 0, &mut arrivals, |_| {}));
    let begun = bench.host.of(0).written() - bench.sent().len() as u32;
    let good = bench.run(1, 1);
    let idle = Txn { operation: Operation::Idle as u8, ..good };
    let verdicts = [
        (Txn { credits: begun, ..good }, Outcome::TaskStale),
        (Txn { credits: begun, ..idle }, Outcome::CpuStale),
        (Txn { operation: 0, credits: begun, ..good }, Outcome::Withdrawn),
        (Txn { credits: begun, incarnation: 2, ..good }, Outcome::NoAgent),
        (Txn { credits: begun + 1, ..idle }, Outcome::Committed),
        (Txn { credits: begun + 1, ..good }, Outcome::Committed),
    ];
    for (txn, outcome) in verdicts {
        assert_eq!(bench.judge(1, txn), outcome, "{txn:?}");
    }
}

#[test]
fn a_resync_tells_all_that_is_so() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 3);
    bench.mechanism.switch(&bench.host, 2, Runs::Other);
    bench.mechanism.withhold(&bench.host, 2);
    // One that came back later than the others.
    bench.mechanism.quiescent(&bench.host, 0, 0, true);
    bench.host.pass(1000);
    bench.mechanism.enqueue(&bench.host, 0, 100, 0);
    let enclave = bench.mechanism.enclave(0).unwrap();
    enclave.ask_for_resync();
    bench.mechanism.set_affinity(&bench.host, 4, (1, 1), 0);
    bench.mechanism.enqueue(&bench.host, 4, 104, 1);
    bench.sent();
    let mut arrivals = [Arrival::default(); TASKS as usize];
    let sort = |arrivals: &mut [Arrival]| arrivals.sort_by_key(|arrival| arrival.since_ns);
    assert!(bench.mechanism.resync(&bench.host, 0, &mut arrivals, sort));
    let lines = bench.sent();
    let kinds: Vec<_> = lines.iter().map(|line| (line.kind, line.task, line.cpu)).collect();
    use MessageKind::{CpuBusy, ResyncBegin, ResyncCpu, ResyncEnd, ResyncTask};
    let expected = [
        (ResyncBegin, TASK_NONE, 0),
        (ResyncTask, 1, 0),
        (ResyncTask, 2, 0),
        (ResyncTask, 0, 0),
        (ResyncTask, 4, 0),
        (ResyncCpu, TASK_NONE, 0),
        (ResyncCpu, 3, 1),
        (CpuBusy, TASK_NONE, 2),
        (ResyncEnd, TASK_NONE, 0),
    ];
    assert_eq!(kinds, expected);
    assert_eq!((lines[0].argument, lines[0].dropped, lines[0].flags), (4, 1, TaskFlags::OVERFLOW));
    assert_eq!((lines[4].first_cpu, lines[4].cpu_count), (1, 1));
    assert!(lines[5].flags.has(TaskFlags::CPU_IDLE) && lines[6].flags.has(TaskFlags::ON_CPU));
    assert!(!enclave.resync_due());
}

#[test]
fn a_full_ring_is_a_resync_that_is_due() {
    let memory = Memory::new(4, TASKS, 2, 8);
    let bench = Bench::new(&memory);
    let enclave = bench.mechanism.enclave(0).unwrap();
    for _ in 0..20 {
        bench.mechanism.set_affinity(&bench.host, 1, (0, 0), 0);
    }
    assert!(enclave.resync_due());
    let dropped = bench.mechanism.sum(Count::MessagesDropped);
    assert_eq!(bench.mechanism.sum(Count::Messages) + dropped, 24);
    let mut arrivals = [Arrival::default(); TASKS as usize];
    assert!(!bench.mechanism.resync(&bench.host, 0, &mut arrivals, |_| {}), "the ring has no room yet");
    assert!(enclave.resync_due());
    assert_eq!(bench.sent().len(), 4, "four more than the four that had been told");
}

#[test]
fn a_task_that_may_leave_for_another_enclave_is_told_to_both() {
    let memory = memory();
    let bench = Bench::new(&memory);
    // Where it may stay, it stays.
    bench.mechanism.quiescent(&bench.host, 1, 0, true);
    bench.sent();
    bench.mechanism.enqueue(&bench.host, 1, 101, 3);
    assert_eq!(bench.word(1).enclave, 0);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.cpu), (MessageKind::TaskWakeup, 0));
    bench.mechanism.dequeue(1);
    bench.mechanism.set_affinity(&bench.host, 1, (3, 1), 3);
    bench.mechanism.enqueue(&bench.host, 1, 101, 3);
    assert_eq!(bench.word(1).enclave, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task), (MessageKind::TaskDeparted, 1));
    let [line] = bench.host.sent(1).try_into().unwrap();
    assert_eq!((line.kind, line.task, line.cpu), (MessageKind::TaskNew, 1, 3));
    let runnable = |enclave| bench.mechanism.enclave(enclave).unwrap().runnable();
    assert_eq!((runnable(0), runnable(1)), (3, 1));
}

#[test]
fn what_an_agent_held_is_the_hosts_when_it_falls_back() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.start(1, 3);
    for enclave in 0..2 {
        bench.mechanism.enclave(enclave).unwrap().set_level(Level::Host);
    }
    // One that is between two queues comes by itself.
    bench.mechanism.dequeue(2);
    assert_eq!(bench.mechanism.rescue_from(0), 2);
    assert_eq!(bench.mechanism.rescue_from(0), 0);
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), 1);
    assert_eq!(bench.mechanism.enqueue(&bench.host, 2, 102, 0), Custody::Host);
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), 0);
    assert!(bench.mechanism.has_rescued());
    assert_eq!(bench.mechanism.take(&bench.host, 3), Taken::Rescue(2), "whichever CPU looks first");
    let found: Vec<_> = (0..3).map(|member| bench.mechanism.rescued(3, member)).collect();
    assert_eq!(found, [Some((100, 0)), Some((101, 1)), None]);
    assert!(bench.mechanism.member(3, 0).is_none());
    assert!(bench.mechanism.settle(&bench.host, 3));
    assert!(!bench.mechanism.has_rescued());
    assert_eq!(bench.mechanism.take(&bench.host, 3), Taken::Nothing);
    assert_eq!(bench.word(3).phase, Phase::OnCpu, "what runs goes on");
    assert!(bench.sent().is_empty(), "nobody is told");
}

#[test]
fn what_only_a_withheld_cpu_may_run_is_queued_there_by_the_host() {
    let memory = memory();
    let bench = Bench::new(&memory);
    let mechanism = &bench.mechanism;
    mechanism.set_affinity(&bench.host, 1, (1, 1), 0);
    mechanism.switch(&bench.host, 1, Runs::Other);
    mechanism.withhold(&bench.host, 1);
    bench.sent();
    // Of those that wait, the one that has waited for long and has no other CPU; its agent has it still.
    let since_ns = mechanism.task(1).unwrap().since_ns();
    mechanism.rescue_stranded(0, since_ns);
    assert!(!mechanism.has_rescued());
    mechanism.rescue_stranded(0, u64::MAX);
    assert_eq!(mechanism.take(&bench.host, 0), Taken::Rescue(1));
    assert_eq!(mechanism.rescued(0, 0), Some((101, 1)));
    assert_eq!((bench.word(1).phase, mechanism.enclave(0).unwrap().runnable()), (Phase::Runnable, 4));
    assert!(bench.sent().is_empty());
    let starved = || {
        let mut pids = Vec::new();
        mechanism.starved(0, u64::MAX, 0, |pid| pids.push(pid));
        pids
    };
    assert_eq!(starved(), [101]);
    // The kernel finds time for it, and says so; what comes back is the agent's again.
    mechanism.running(&bench.host, 1, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task, line.cpu), (MessageKind::TaskOnCpu, 1, 1));
    mechanism.switch(&bench.host, 1, Runs::Ours);
    assert!(starved().is_empty());
    assert_eq!(mechanism.enqueue(&bench.host, 1, 101, 1), Custody::Agent);
    // A CPU that is let go of before anybody looks is the agent's to fill.
    mechanism.switch(&bench.host, 1, Runs::Other);
    mechanism.withhold(&bench.host, 1);
    mechanism.rescue_stranded(0, u64::MAX);
    mechanism.switch(&bench.host, 1, Runs::Idle);
    assert_eq!(mechanism.take(&bench.host, 2), Taken::Rescue(1));
    assert_eq!(mechanism.rescued(2, 0), None);
    // So is one that comes after it.
    mechanism.rescue_stranded(0, u64::MAX);
    assert!(!mechanism.has_rescued() && starved().is_empty());
}

#[test]
fn what_is_rescued_and_moves_on_is_not_queued_twice() {
    let memory = memory();
    let bench = Bench::new(&memory);
    let enclave = bench.mechanism.enclave(0).unwrap();
    for _ in 0..3 {
        enclave.set_level(Level::Host);
        bench.mechanism.rescue_from(0);
        enclave.set_level(Level::Ipu);
        for task in 0..4 {
            bench.mechanism.quiescent(&bench.host, task, 0, true);
            assert_eq!(bench.mechanism.enqueue(&bench.host, task, 100 + task, 0), Custody::Agent);
        }
    }
    assert_eq!(bench.mechanism.take(&bench.host, 0), Taken::Rescue(4), "each is there once");
    for member in 0..4 {
        assert_eq!(bench.mechanism.rescued(0, member), None, "its agent has it again");
    }
    assert_eq!(enclave.runnable(), 4);
}

#[test]
fn a_task_reports_that_it_runs_where_it_was_asked_to_and_where_nobody_decided() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let txn = Txn { flags: TxnFlags::REPORT_ON_CPU, ..bench.run(1, 1) };
    assert_eq!(bench.judge(1, txn), Outcome::Committed);
    bench.mechanism.running(&bench.host, 1, 1);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!((line.kind, line.task, line.cpu), (MessageKind::TaskOnCpu, 1, 1));
    // The kernel runs one by itself.
    bench.mechanism.running(&bench.host, 2, 0);
    let [line] = bench.sent().try_into().unwrap();
    assert_eq!(
        (line.kind, line.task, line.cpu, line.flags),
        (MessageKind::TaskOnCpu, 2, 0, TaskFlags::ON_CPU)
    );
    assert_eq!(bench.mechanism.sum(Count::Undecided), 1);
    assert_eq!(bench.mechanism.enclave(0).unwrap().runnable(), 2);
    assert_eq!(bench.mechanism.cpu(0).unwrap().task(), 2);
}

#[test]
fn an_agent_owes_a_decision_where_an_idle_cpu_could_run_what_waits() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    assert_eq!(bench.mechanism.debts(&bench.host, 0), (true, false));
    for cpu in 0..3 {
        bench.mechanism.switch(&bench.host, cpu, Runs::Other);
    }
    assert_eq!(bench.mechanism.debts(&bench.host, 0), (false, false), "no CPU idles");
    bench.mechanism.switch(&bench.host, 1, Runs::Idle);
    let txn = bench.run(1, 1);
    bench.put(1, txn);
    assert_eq!(bench.mechanism.debts(&bench.host, 0), (false, true), "a decision lies there");
    bench.put(1, Txn { incarnation: 9, ..txn });
    assert_eq!(
        bench.mechanism.debts(&bench.host, 0),
        (true, false),
        "one of an agent that has ended does not count"
    );
    for task in 0..4 {
        bench.mechanism.set_affinity(&bench.host, task, (2, 1), 0);
    }
    assert_eq!(bench.mechanism.debts(&bench.host, 0), (false, false), "none of them may run there");
}

#[test]
fn numbers_that_are_nobodys_are_nobodys() {
    let memory = memory();
    let bench = Bench::new(&memory);
    let before = bench.state();
    for number in [5, TASKS, u32::MAX] {
        bench.mechanism.disable(&bench.host, number, true, 0);
        assert_eq!(bench.mechanism.enqueue(&bench.host, number, 1, 0), Custody::Host);
        bench.mechanism.dequeue(number);
        bench.mechanism.quiescent(&bench.host, number, 0, true);
        bench.mechanism.quiescent(&bench.host, number, 0, false);
        bench.mechanism.running(&bench.host, number, 0);
    }
    for cpu in [4, u16::MAX] {
        bench.mechanism.switch(&bench.host, cpu, Runs::Idle);
        bench.mechanism.withhold(&bench.host, cpu);
        bench.mechanism.announce(&bench.host, cpu);
        bench.mechanism.stopping(&bench.host, cpu);
        bench.mechanism.set_online(cpu, true);
        bench.mechanism.bar(cpu, 0, true);
        assert!(!bench.mechanism.rung(&bench.host, cpu) && !bench.mechanism.settle(&bench.host, cpu));
        assert_eq!(bench.mechanism.take(&bench.host, cpu), Taken::Nothing);
        assert!(bench.mechanism.member(cpu, 0).is_none() && bench.mechanism.rescued(cpu, 0).is_none());
    }
    assert_eq!(bench.state(), before);
    assert_eq!(bench.mechanism.enable(7, (0, 0), 0), Some(5));
    assert_eq!(bench.mechanism.enable(8, (0, 0), 0), None, "the table is full");
}
