//! Every outcome of the ABI, reached by a txn, with the state untouched by each refusal.

use super::*;
use neap_abi::VERSION;
use proptest::prelude::*;

const V1_0: Version = Version { major: 1, minor: 0 };

/// Four CPUs; tasks 0 to 3 runnable; one more free number.
fn host() -> Mechanism {
    let mut host = Mechanism::new(4, 5, VERSION);
    for task in 0..4 {
        assert!(host.create(task, 0, 0));
    }
    host
}

fn run(host: &Mechanism, cpu: u16, task: u32) -> Txn {
    let stamp = host.task(task).map_or(0, |task| task.stamp);
    Txn { id: 1, ..Txn::run(cpu, task, stamp) }
}

/// Everything that a refusal must not touch.
fn state(host: &Mechanism) -> Vec<String> {
    let tasks = host.tasks.iter().map(|task| format!("{task:?}"));
    tasks.chain(host.cpus.iter().map(|cpu| format!("{} {} {}", cpu.stamp, cpu.task, cpu.online))).collect()
}

fn refused(mut host: Mechanism, cpu: u16, txn: Txn) -> Outcome {
    let before = state(&host);
    let verdicts = host.commit(cpu, &txn);
    assert_eq!(state(&host), before, "a refusal changed something");
    assert_eq!((verdicts.len(), verdicts[0].switch), (1, None));
    verdicts[0].outcome
}

#[test]
fn a_good_txn_switches_and_moves_both_stamps() {
    let mut host = host();
    let (task, cpu) = (host.tasks[2].stamp, host.cpus[1].stamp);
    let txn = Txn { slice_ns: 30_000, ..run(&host, 1, 2) };
    let verdict = host.commit(1, &txn)[0];
    let switch = Switch { cpu: 1, task: 2, preempted: TASK_NONE, slice_ns: 30_000 };
    assert_eq!(verdict, Verdict { cpu: 1, txn: 1, outcome: Outcome::Committed, switch: Some(switch) });
    assert_eq!(host.tasks[2].state, TaskState::OnCpu(1));
    assert_eq!((host.tasks[2].stamp, host.cpus[1].stamp), (task + 1, cpu + 1));
    assert_eq!((host.cpus[1].task, host.cpus[1].txn), (2, 1));
}

#[test]
fn every_single_refusal_has_its_reason() {
    let good = run(&host(), 1, 2);
    let with = |change: &dyn Fn(&mut Mechanism)| {
        let mut host = host();
        change(&mut host);
        host
    };
    let cases: [(Outcome, Mechanism, Txn); 16] = [
        (Outcome::Withdrawn, host(), Txn::withdraw(1)),
        (
            Outcome::TaskOnCpu,
            with(&|h| drop(h.commit(0, &run(h, 0, 2)))),
            Txn { stamp: good.stamp + 1, ..good },
        ),
        (Outcome::TaskStale, host(), Txn { stamp: good.stamp.wrapping_sub(1), ..good }),
        (Outcome::TaskGone, host(), Txn { task: 4, ..good }),
        (
            Outcome::TaskNotRunnable,
            with(&|h| h.change(2, TaskState::Blocked)),
            Txn { stamp: good.stamp + 1, ..good },
        ),
        (Outcome::CpuStale, host(), Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp: 99, ..good }),
        (Outcome::CpuOffline, with(&|h| h.set_cpu(1, false, true)), good),
        (Outcome::CpuUnavailable, with(&|h| h.set_cpu(1, true, false)), good),
        (Outcome::CpuUnavailable, with(&|h| drop(h.commit(1, &run(h, 1, 0)))), good),
        (Outcome::InvalidFlags, host(), Txn { flags: TxnFlags::PREEMPT, ..good }),
        (Outcome::InvalidTask, host(), Txn { task: 5, ..good }),
        (Outcome::NotPermitted, with(&|h| h.set_permitted(2, false)), good),
        (Outcome::NoAgent, with(&|h| h.agent = AgentStanding::Gone), good),
        (Outcome::Poisoned, with(&|h| h.agent = AgentStanding::Poisoned), good),
        (Outcome::Affinity, with(&|h| h.set_affinity(2, 2, 2)), Txn { stamp: good.stamp + 1, ..good }),
        (Outcome::UnknownOperation, host(), Txn { operation: 77, ..good }),
    ];
    for (outcome, host, txn) in cases {
        assert_eq!(refused(host, 1, txn), outcome);
    }
    assert_eq!(refused(host(), 0, good), Outcome::InvalidCpu, "another CPU's slot");
    assert_eq!(refused(host(), 9, Txn { cpu: 9, ..good }), Outcome::InvalidCpu, "no such CPU");
    let old = Mechanism { version: V1_0, ..host() };
    assert_eq!(refused(old, 1, Txn { order: 3, ..good }), Outcome::UnsupportedVersion);
    let old = Mechanism { version: V1_0, ..host() };
    let mut old = old;
    assert_eq!(old.commit(1, &good)[0].outcome, Outcome::Committed, "a 1.0 agent has no decision numbers");
}

/// Two enclaves of one host: the first has CPUs 0 and 1 and tasks 0 and 1, the second CPU 2 and task 2. CPU 3 and
/// tasks 3 and 4 are nobody's.
fn neighbours() -> (Mechanism, Mechanism) {
    let owners = Arc::new(Owners::new(4, 5));
    let mut ours = Mechanism::sharing(Arc::clone(&owners), 0, VERSION);
    let mut theirs = Mechanism::sharing(owners, 1, VERSION);
    assert!(ours.adopt_cpu(0) && ours.adopt_cpu(1) && theirs.adopt_cpu(2));
    assert!(!theirs.adopt_cpu(1) && !theirs.adopt_cpu(4));
    assert!(ours.create(0, 0, 0) && ours.create(1, 0, 0) && theirs.create(2, 0, 0));
    assert!(!theirs.create(0, 0, 0) && !ours.create(2, 0, 0) && !ours.create(5, 0, 0));
    (ours, theirs)
}

#[test]
fn what_is_another_enclaves_is_not_permitted() {
    let with = |txn: &dyn Fn(&Mechanism) -> Txn, slot| {
        let (ours, theirs) = neighbours();
        let before = state(&theirs);
        let txn = txn(&ours);
        let outcome = refused(ours, slot, txn);
        assert_eq!(state(&theirs), before, "a refusal changed another enclave");
        outcome
    };
    assert_eq!(with(&|h| Txn { cpu: 2, ..run(h, 1, 1) }, 1), Outcome::NotPermitted, "another enclave's CPU");
    assert_eq!(with(&|h| run(h, 2, 1), 2), Outcome::NotPermitted, "and its slot");
    assert_eq!(with(&|h| run(h, 3, 1), 3), Outcome::NotPermitted, "nobody's CPU");
    assert_eq!(with(&|h| Txn { cpu: 0, ..run(h, 1, 1) }, 1), Outcome::InvalidCpu, "another slot of ours");
    assert_eq!(with(&|h| Txn { cpu: 4, ..run(h, 1, 1) }, 1), Outcome::InvalidCpu, "no CPU at all");
    assert_eq!(with(&|h| Txn { task: 2, ..run(h, 1, 1) }, 1), Outcome::NotPermitted, "another's task");
    assert_eq!(with(&|h| Txn { task: 3, ..run(h, 1, 1) }, 1), Outcome::TaskGone, "nobody's task");
    assert_eq!(with(&|h| Txn { task: 5, ..run(h, 1, 1) }, 1), Outcome::InvalidTask, "no task at all");
    let group = |h: &Mechanism| Txn { cpu: 2, ..member(h, 1, 1, 2) };
    assert_eq!(with(&group, 1), Outcome::NotPermitted, "another enclave's CPU, in a group");
}

#[test]
fn a_number_goes_from_one_enclave_to_another() {
    let (mut ours, mut theirs) = neighbours();
    ours.change(1, TaskState::Free);
    assert!(theirs.create(1, 0, 0));
    let stale = run(&ours, 1, 1);
    assert_eq!(refused(ours, 1, stale), Outcome::NotPermitted);
}

#[test]
fn a_cpu_goes_from_one_enclave_to_another_and_its_task_stays_in_its_place() {
    let (mut ours, mut theirs) = neighbours();
    assert_eq!(ours.commit(1, &run(&ours, 1, 0))[0].outcome, Outcome::Committed);
    let arrival = ours.tasks[0].arrival;
    assert_eq!(ours.preempt(1), Some(0));
    assert_eq!(ours.preempt(1), None);
    ours.release_cpu(1);
    assert_eq!((ours.tasks[0].state, ours.tasks[0].arrival), (TaskState::Runnable, arrival));
    assert_eq!(ours.first_runnable_on(0), Some(0), "it was first, and is again");
    let late = run(&ours, 1, 0);
    assert_eq!(refused(ours, 1, late), Outcome::NotPermitted);
    assert!(theirs.adopt_cpu(1));
    assert_eq!(theirs.commit(1, &run(&theirs, 1, 2))[0].outcome, Outcome::Committed);
    let cpus: Vec<_> =
        theirs.resync().iter().filter(|m| m.kind == MessageKind::ResyncCpu).map(|m| m.cpu).collect();
    assert_eq!(cpus, [1, 2], "an agent hears of its own CPUs");
}

#[test]
fn an_agent_that_has_ended_decides_no_more() {
    let mut host = host();
    host.incarnation = Some(4);
    let good = run(&host, 1, 2);
    assert_eq!(refused(host, 1, Txn { incarnation: 3, ..good }), Outcome::NoAgent);
    let mut host = self::host();
    host.incarnation = Some(4);
    assert_eq!(host.commit(1, &Txn { incarnation: 4, ..good })[0].outcome, Outcome::Committed);
    let v1_1 = Version { major: 1, minor: 1 };
    let mut old = Mechanism { version: v1_1, incarnation: Some(4), ..self::host() };
    assert_eq!(old.commit(1, &good)[0].outcome, Outcome::Committed, "a 1.1 agent does not name itself");
}

#[test]
fn a_preemption_gives_the_task_back() {
    let mut host = host();
    host.commit(1, &run(&host, 1, 0));
    let flags = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);
    let txn = Txn { flags, cpu_stamp: host.cpus[1].stamp, ..run(&host, 1, 2) };
    let verdict = host.commit(1, &txn)[0];
    assert_eq!(verdict.switch.map(|s| (s.task, s.preempted)), Some((2, 0)));
    assert_eq!(host.tasks[0].state, TaskState::Runnable);
    assert!(host.tasks[0].arrival > host.tasks[3].arrival);
    let idle = Txn { operation: Operation::Idle as u8, id: 3, ..run(&host, 1, TASK_NONE) };
    assert_eq!(host.commit(1, &idle)[0].switch.map(|s| (s.task, s.preempted)), Some((TASK_NONE, 2)));
    assert_eq!(host.cpus[1].task, TASK_NONE);
}

#[test]
fn a_task_that_runs_here_already_may_be_meant() {
    let mut host = host();
    host.commit(1, &run(&host, 1, 2));
    let txn = Txn { flags: TxnFlags::ALLOW_ON_CPU, ..run(&host, 1, 2) };
    let before = host.cpus[1].stamp;
    assert_eq!(host.commit(1, &txn)[0].outcome, Outcome::Committed);
    assert_eq!(host.cpus[1].stamp, before, "nothing moved");
}

fn member(host: &Mechanism, cpu: u16, task: u32, size: u8) -> Txn {
    Txn { flags: TxnFlags::GROUP, group: 7, group_size: size, ..run(host, cpu, task) }
}

#[test]
fn a_group_commits_together() {
    let mut host = host();
    assert_eq!(host.commit(0, &member(&host, 0, 0, 3)), []);
    assert_eq!(host.commit(2, &member(&host, 2, 2, 3)), []);
    let verdicts = host.commit(1, &member(&host, 1, 1, 3));
    assert_eq!(
        verdicts.iter().map(|v| (v.cpu, v.outcome)).collect::<Vec<_>>(),
        [(0, Outcome::Committed), (2, Outcome::Committed), (1, Outcome::Committed)]
    );
}

#[test]
fn a_group_fails_together() {
    let mut host = host();
    host.commit(0, &member(&host, 0, 0, 2));
    let before = state(&host);
    let stale = Txn { stamp: 99, ..member(&host, 1, 1, 2) };
    let verdicts = host.commit(1, &stale);
    let outcomes: Vec<_> = verdicts.iter().map(|v| (v.cpu, v.outcome)).collect();
    assert_eq!(outcomes, [(0, Outcome::GroupFailed), (1, Outcome::TaskStale)]);
    assert_eq!(state(&host), before);
}

#[test]
fn a_group_that_cannot_be_is_refused() {
    let shapes: [fn(&Mechanism) -> Txn; 4] =
        [|h| member(h, 1, 1, 3), |h| member(h, 1, 0, 2), |h| member(h, 1, 1, 0), |h| member(h, 1, 1, 200)];
    for shape in shapes {
        let mut host = host();
        host.commit(0, &member(&host, 0, 0, 2));
        let verdicts = host.commit(1, &shape(&host));
        let outcomes: Vec<_> = verdicts.iter().map(|v| (v.cpu, v.outcome)).collect();
        assert_eq!(outcomes, [(1, Outcome::InvalidGroup), (0, Outcome::GroupFailed)]);
    }
}

#[test]
fn a_group_whose_member_moves_on_is_void() {
    let mut host = host();
    host.commit(0, &member(&host, 0, 0, 2));
    let verdicts = host.commit(0, &Txn { id: 2, ..run(&host, 0, 1) });
    let outcomes: Vec<_> = verdicts.iter().map(|v| (v.txn, v.outcome)).collect();
    assert_eq!(outcomes, [(1, Outcome::GroupFailed), (2, Outcome::Committed)]);
    host.commit(1, &member(&host, 1, 2, 2));
    assert_eq!(host.break_groups().len(), 1);
    assert_eq!(host.break_groups(), []);
}

#[test]
fn a_resync_tells_all_that_is_so() {
    let mut host = host();
    host.commit(1, &run(&host, 1, 0));
    host.change(1, TaskState::Blocked);
    host.change(2, TaskState::Blocked);
    host.change(2, TaskState::Runnable);
    host.set_cpu(3, true, false);
    let lines = host.resync();
    let tasks: Vec<_> = lines.iter().filter(|m| m.kind == MessageKind::ResyncTask).map(|m| m.task).collect();
    assert_eq!(tasks, [3, 2], "in the order of arrival; neither the running nor the blocked");
    let cpus: Vec<_> =
        lines.iter().filter(|m| m.kind == MessageKind::ResyncCpu).map(|m| (m.cpu, m.task)).collect();
    assert_eq!(cpus, [(0, TASK_NONE), (1, 0), (2, TASK_NONE)]);
    assert_eq!(lines[0].argument, 2);
    assert_eq!(lines.last().map(|m| m.kind), Some(MessageKind::ResyncEnd));
    assert!(lines.iter().any(|m| m.kind == MessageKind::CpuBusy && m.cpu == 3));
}

proptest! {
    /// Whatever an agent writes, no task is on two CPUs, no CPU has two tasks, and a refusal changes nothing.
    #[test]
    fn any_txns_keep_the_state_sound(
        txns in prop::collection::vec((0u16..6, any::<[u64; 8]>(), 0u32..6, 0u32..8, any::<bool>()), 0..60)
    ) {
        let mut host = host();
        for (slot, words, task, stamp, tame) in txns {
            let mut txn = Txn::from_payload(&words);
            if tame {
                txn = Txn { operation: 1, cpu: slot, task, stamp, flags: TxnFlags(txn.flags.0 & 63), ..txn };
            }
            let before = state(&host);
            let verdicts = host.commit(slot, &txn);
            if verdicts.iter().all(|verdict| verdict.switch.is_none()) {
                prop_assert_eq!(state(&host), before);
            }
            for (number, task) in (0..).zip(&host.tasks) {
                let on: Vec<_> = host.cpus.iter().filter(|cpu| cpu.task == number).collect();
                match task.state {
                    TaskState::OnCpu(cpu) => {
                        prop_assert_eq!(on.len(), 1);
                        prop_assert_eq!(host.cpus[usize::from(cpu)].task, number);
                    }
                    _ => prop_assert!(on.is_empty()),
                }
            }
        }
    }
}
