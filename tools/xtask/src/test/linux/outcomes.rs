//! Every refusal of the ABI on the real kernel: a decision lies in a CPU's slot while the CPU is kept busy, what it rests on
//! changes, and then the CPU looks. After each, the task that was refused is as it was: the same stamp still commits.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use neap_abi::{MessageKind, Operation, Outcome, Txn, TxnFlags};
use neap_puppet::{Class, Order, Word};

use super::Case;
use super::rig::{PATIENCE, Rig, Worker};
use super::view::Stand;

/// CPUs of the cases. On CPU 0 is the puppet.
pub(super) const A: u16 = 1;
pub(super) const B: u16 = 2;
pub(super) const C: u16 = 3;
/// How often a case is begun anew where the machine took a CPU for itself in the middle.
const ATTEMPTS: u32 = 8;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "committed",
        about: "a decision is carried out, kept, preempts and makes idle",
        run: committed,
    },
    Case { name: "withdrawn", about: "a decision is withdrawn before its CPU looks", run: withdrawn },
    Case { name: "task_on_cpu", about: "a task runs elsewhere when its decision is taken", run: task_on_cpu },
    Case { name: "task_stale", about: "a task has run and come back meanwhile", run: task_stale },
    Case { name: "task_gone", about: "a task ends while a decision on it lies ready", run: task_gone },
    Case { name: "task_not_runnable", about: "a task goes to sleep meanwhile", run: task_not_runnable },
    Case { name: "cpu_stale", about: "a CPU's own change voids what rests on it", run: cpu_stale },
    Case { name: "cpu_offline", about: "a CPU is unplugged with a decision in its slot", run: cpu_offline },
    Case { name: "cpu_unavailable", about: "a higher class takes the CPU", run: cpu_unavailable },
    Case { name: "crowded", about: "a task that may use no other CPU than a crowded one", run: crowded },
    Case {
        name: "affinity",
        about: "CPUs that a task may not use, and sched_setaffinity meanwhile",
        run: affinity,
    },
    Case { name: "invalid", about: "flags, tasks, CPUs and operations that can't be", run: invalid },
    Case { name: "group", about: "groups succeed or fail together", run: group },
    Case { name: "invalid_group", about: "groups of the wrong shape", run: invalid_group },
];

/// Has a decision lie in the slot of `cpu`, which a runner holds; then does `meanwhile`, and has the CPU look: the verdict.
pub(super) fn pending(
    rig: &mut Rig,
    cpu: u16,
    txn: Txn,
    runner: Worker,
    meanwhile: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<Outcome> {
    let id = rig.prestage(0, Txn { cpu, ..txn })?;
    meanwhile(rig)?;
    rig.tell(runner, Word::Rest)?;
    rig.verdict(0, cpu, id)
}

/// Does something that comes to an outcome, until it comes to `expected`, and not to what the machine's own doings make of it:
/// a thread of the kernel's that runs on the CPU meanwhile moves its stamp, and one that stays takes it away.
pub(super) fn steadily<T>(
    rig: &mut Rig,
    expected: Outcome,
    mut act: impl FnMut(&mut Rig) -> Result<(Outcome, T)>,
) -> Result<T> {
    for _ in 0..ATTEMPTS {
        match act(rig)? {
            (outcome, left) if outcome == expected => return Ok(left),
            (Outcome::CpuUnavailable | Outcome::CpuStale, _) => rig.end_workers()?,
            // The stamp was foretold, and the task has slept once more than that.
            (Outcome::TaskStale, _) if expected == Outcome::TaskNotRunnable => rig.end_workers()?,
            // Something else held the one CPU that is told, and the host has had it run on the other.
            (Outcome::TaskStale, _) if expected == Outcome::Affinity => rig.end_workers()?,
            (outcome, _) => bail!("expected: the verdict {}; it is {}", expected.name(), outcome.name()),
        }
    }
    bail!("expected: the verdict {}; {ATTEMPTS} times something else held the CPU", expected.name())
}

/// A refused task goes on: a decision on it that rests on what was known before is committed, it works, and it ends.
pub(super) fn goes_on(rig: &mut Rig, worker: Worker, cpu: u16) -> Result<()> {
    rig.place(0, worker, cpu)?;
    rig.until_work(&[worker.number], 10)?;
    rig.hold(0, worker, false);
    rig.tell(worker, Word::End)?;
    let status = rig.until_ended(worker.number)?;
    ensure!(status == 0, "expected: {worker:?} ends with 0; it ended with {status}");
    rig.until_gone(0, worker)
}

fn committed(rig: &mut Rig) -> Result<()> {
    let preempts = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU);
    let cpu_stamp = |rig: &Rig| rig.ipus[0].view.cpus[usize::from(A)].stamp;
    // A CPU goes on with the task that it has.
    let first = steadily(rig, Outcome::Committed, |rig| {
        let first = rig.runner(0, A)?;
        rig.until_work(&[first.number], 10)?;
        let run = Txn { flags: preempts.with(TxnFlags::ALLOW_ON_CPU), ..rig.run_txn(0, first, A)? };
        let id = rig.send(0, Txn { cpu_stamp: cpu_stamp(rig), ..run })?;
        Ok((rig.verdict(0, A, id)?, first))
    })?;
    ensure!(
        rig.stands(0, first) == Some(Stand::Placed(A)),
        "expected: it runs; it {:?}",
        rig.stands(0, first)
    );
    rig.until_work(&[first.number], 10)?;
    rig.end_workers()?;
    // Another takes its place.
    let (first, second) = steadily(rig, Outcome::Committed, |rig| {
        let first = rig.runner(0, A)?;
        let second = rig.parked(0, &[], Word::Work)?;
        let run = Txn { flags: preempts, ..rig.run_txn(0, second, A)? };
        let id = rig.send(0, Txn { cpu_stamp: cpu_stamp(rig), ..run })?;
        Ok((rig.verdict(0, A, id)?, (first, second)))
    })?;
    rig.until_stands(0, first, Stand::Runnable)?;
    ensure!(rig.messages(0, first, MessageKind::TaskPreempt) > 0, "expected: a preemption is told; none was");
    rig.until_work(&[second.number], 10)?;
    goes_on(rig, first, C)?;
    rig.end_workers()?;
    // And leaves it idle.
    let task = steadily(rig, Outcome::Committed, |rig| {
        let task = rig.runner(0, A)?;
        let idle = Txn { operation: Operation::Idle as u8, flags: preempts, ..Txn::withdraw(A) };
        let id = rig.send(0, Txn { cpu_stamp: cpu_stamp(rig), ..idle })?;
        Ok((rig.verdict(0, A, id)?, task))
    })?;
    rig.until_stands(0, task, Stand::Runnable)?;
    // What lies ready is taken with the event that makes room for it, in one line.
    steadily(rig, Outcome::Committed, |rig| {
        let runner = rig.runner(0, B)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, B)?;
        let outcome = pending(rig, B, run, runner, |_| Ok(()))?;
        let last = rig.ipus[0].view.messages.iter().rev().find(|message| message.outcome == outcome);
        let with = last.map(|message| message.kind);
        if outcome == Outcome::Committed {
            ensure!(
                with == Some(MessageKind::TaskBlocked),
                "expected: the verdict comes with the event that made room; it came with {with:?}"
            );
        }
        Ok((outcome, ()))
    })
}

fn withdrawn(rig: &mut Rig) -> Result<()> {
    let task = steadily(rig, Outcome::Withdrawn, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, A)?;
        let void = rig.prestage(0, run)?;
        let outcome = pending(rig, A, Txn::withdraw(A), runner, |_| Ok(()))?;
        let told = rig.ipus[0].view.verdicts.iter().any(|&(cpu, id, _)| (cpu, id) == (A, void));
        ensure!(!told, "expected: no verdict on what was withdrawn; there is one");
        Ok((outcome, task))
    })?;
    goes_on(rig, task, A)
}

fn task_on_cpu(rig: &mut Rig) -> Result<()> {
    let task = steadily(rig, Outcome::TaskOnCpu, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let reported = Txn { flags: TxnFlags::REPORT_ON_CPU, ..rig.run_txn(0, task, B)? };
        let id = rig.send(0, reported)?;
        let outcome = rig.verdict(0, B, id)?;
        if outcome != Outcome::Committed {
            return Ok((outcome, task));
        }
        // It tells the stamp under which it runs.
        rig.until("a task is told to run", PATIENCE, |rig| {
            rig.messages(0, task, MessageKind::TaskOnCpu) > 0
        })?;
        let run = rig.run_txn(0, task, A)?;
        Ok((pending(rig, A, run, runner, |_| Ok(()))?, task))
    })?;
    // It runs where it ran.
    ensure!(
        rig.stands(0, task) == Some(Stand::Placed(B)),
        "expected: it runs on; it {:?}",
        rig.stands(0, task)
    );
    rig.until_work(&[task.number], 10)?;
    rig.rest(0, task)?;
    rig.rouse(0, task, Word::Work)?;
    goes_on(rig, task, A)
}

fn task_stale(rig: &mut Rig) -> Result<()> {
    let task = steadily(rig, Outcome::TaskStale, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Yield)?;
        let run = rig.run_txn(0, task, A)?;
        let outcome = pending(rig, A, run, runner, |rig| {
            rig.place(0, task, B)?;
            rig.until_stands(0, task, Stand::Runnable)
        })?;
        Ok((outcome, task))
    })?;
    rig.tell(task, Word::Work)?;
    goes_on(rig, task, A)
}

fn task_gone(rig: &mut Rig) -> Result<()> {
    for signal in [None, Some(signal::KILL)] {
        steadily(rig, Outcome::TaskGone, |rig| {
            let runner = rig.runner(0, A)?;
            let task = rig.parked(0, &[], Word::Work)?;
            let run = rig.run_txn(0, task, A)?;
            let outcome = pending(rig, A, run, runner, |rig| {
                rig.place(0, task, B)?;
                match signal {
                    None => rig.tell(task, Word::End)?,
                    Some(signal) => drop(rig.order(Order::Signal(task.number, signal))?),
                }
                rig.until_gone(0, task)
            })?;
            let status = rig.until_ended(task.number)?;
            let expected = signal.map_or(0, |signal| 128 + signal);
            ensure!(status == expected, "expected: it ends with {expected}; it ended with {status}");
            Ok((outcome, ()))
        })?;
    }
    Ok(())
}

fn task_not_runnable(rig: &mut Rig) -> Result<()> {
    let task = steadily(rig, Outcome::TaskNotRunnable, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        rig.place(0, task, B)?;
        // The commit moves its stamp, and so will its going to sleep.
        let run = Txn::run(A, task.task, rig.stamp(0, task)?.wrapping_add(2));
        let outcome = pending(rig, A, run, runner, |rig| rig.rest(0, task))?;
        Ok((outcome, task))
    })?;
    rig.rouse(0, task, Word::Work)?;
    goes_on(rig, task, B)
}

fn cpu_stale(rig: &mut Rig) -> Result<()> {
    let task = steadily(rig, Outcome::CpuStale, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let cpu_stamp = rig.ipus[0].view.cpus[usize::from(A)].stamp;
        let run = Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp, ..rig.run_txn(0, task, A)? };
        // The CPU loses its task, which moves its stamp.
        Ok((pending(rig, A, run, runner, |_| Ok(()))?, task))
    })?;
    // With the stamp that it has now it is committed.
    let cpu_stamp = rig.ipus[0].view.cpus[usize::from(A)].stamp;
    let run = Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp, ..rig.run_txn(0, task, A)? };
    let id = rig.send(0, run)?;
    let outcome = rig.verdict(0, A, id)?;
    ensure!(
        matches!(outcome, Outcome::Committed | Outcome::CpuStale | Outcome::CpuUnavailable),
        "expected: the CPU's stamp is the one told; the txn came to {}",
        outcome.name()
    );
    if outcome == Outcome::Committed {
        rig.rest(0, task)?;
        rig.rouse(0, task, Word::Work)?;
    }
    goes_on(rig, task, A)
}

/// Where a CPU is plugged in.
fn socket(cpu: u16) -> String {
    format!("/sys/devices/system/cpu/cpu{cpu}/online")
}

fn until_open(rig: &mut Rig, cpu: u16, open: bool) -> Result<()> {
    let what = format!("CPU {cpu} is told to be {}", if open { "there" } else { "away" });
    rig.until(&what, PATIENCE, |rig| rig.ipus[0].view.cpus[usize::from(cpu)].open == open)
}

/// A CPU that is being unplugged still takes some decisions, whose tasks the machine then moves; so one lies there at all
/// times, until the last is refused.
fn cpu_offline(rig: &mut Rig) -> Result<()> {
    let refused = steadily(rig, Outcome::CpuOffline, |rig| {
        let mut waiting = Vec::new();
        for _ in 0..12 {
            waiting.push(rig.parked(0, &[], Word::Work)?);
        }
        let runner = rig.runner(0, C)?;
        // What ran there goes on elsewhere.
        rig.hold(0, runner, false);
        rig.give(Order::Write(socket(C), "0".to_owned()))?;
        let (mut last, mut moved) = ((0, runner), vec![runner]);
        let outcome = loop {
            let Some(task) = waiting.pop() else { break Outcome::CpuUnavailable };
            let run = rig.run_txn(0, task, C)?;
            last = (rig.prestage(0, run)?, task);
            // The very last may come too late: then nobody looks at it.
            let outcome = rig.wait("a verdict, or none", PATIENCE, |rig| {
                let view = &rig.ipus[0].view;
                let away = !view.cpus[usize::from(C)].open;
                view.verdict_on(C, last.0).or(away.then_some(Outcome::CpuUnavailable))
            })?;
            if outcome != Outcome::Committed {
                break outcome;
            }
            moved.push(task);
        };
        until_open(rig, C, false)?;
        // The others go on, wherever they are: those first that the machine moved by itself, for a decision on the runner may
        // lie on a CPU of theirs.
        for task in moved.into_iter().rev() {
            rig.until_work(&[task.number], 10)?;
            rig.tell(task, Word::End)?;
            rig.until_gone(0, task)?;
        }
        if outcome != Outcome::CpuOffline {
            rig.write(&socket(C), "1")?;
            until_open(rig, C, true)?;
        }
        Ok((outcome, last.1))
    })?;
    // It is decided elsewhere, and there again when the CPU is back.
    rig.place(0, refused, B)?;
    rig.rest(0, refused)?;
    rig.write(&socket(C), "1")?;
    until_open(rig, C, true)?;
    rig.rouse(0, refused, Word::Work)?;
    goes_on(rig, refused, C)
}

fn crowded(rig: &mut Rig) -> Result<()> {
    // Both come back to the agent again and again, who is not to count on the CPU: one can run on, one sleeps meanwhile.
    for word in [Word::Yield, Word::Nap] {
        let bound = rig.start(0, &[C], word)?;
        rig.until_work(&[bound.number], 10)?;
        let hog = rig.outsider(Class::Fair, &[C], Word::Work)?;
        until_open(rig, C, false)?;
        for _ in 0..2 {
            rig.until_work(&[bound.number], 1)?;
        }
        rig.order(Order::Tell(hog, Word::End))?;
        rig.until_decided(0, 10)?;
        rig.until_work(&[bound.number], 10)?;
        rig.end_workers()?;
    }
    Ok(())
}

fn cpu_unavailable(rig: &mut Rig) -> Result<()> {
    for class in [Class::Fifo, Class::Fair] {
        // A task of the class holds the CPU, or none does.
        for held in [true, false] {
            let (hog, runner, task) = hogged(rig, class, held)?;
            rig.order(Order::Tell(hog, Word::End))?;
            until_open(rig, C, true)?;
            if let Some(runner) = runner {
                rig.until_work(&[runner.number], 10)?;
                rig.rest(0, runner)?;
            }
            goes_on(rig, task, C)?;
            rig.end_workers()?;
        }
    }
    Ok(())
}

/// Has a decision lie in a CPU's slot when something of a higher class takes the CPU: that, what ran there, and the refused.
fn hogged(rig: &mut Rig, class: Class, held: bool) -> Result<(usize, Option<Worker>, Worker)> {
    for _ in 0..ATTEMPTS {
        let runner = if held { Some(rig.runner(0, C)?) } else { None };
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, C)?;
        rig.ipus[0].view.lets_lie = true;
        let id = rig.prestage(0, run)?;
        let hog = rig.outsider(class, &[C], Word::Work)?;
        let outcome = rig.verdict(0, C, id)?;
        rig.ipus[0].view.lets_lie = false;
        if outcome == Outcome::CpuUnavailable {
            let open = rig.ipus[0].view.cpus[usize::from(C)].open;
            ensure!(!open, "expected: the CPU is told to be busy; it is not");
            return Ok((hog, runner, task));
        }
        // An idle CPU looks at its slot whenever a thread of the kernel's has run there.
        ensure!(
            outcome == Outcome::Committed && !held,
            "expected: the verdict cpu_unavailable under {class:?}; it is {}",
            outcome.name()
        );
        rig.end_workers()?;
    }
    bail!("expected: the verdict cpu_unavailable under {class:?}; {ATTEMPTS} times the CPU looked before")
}

/// The verdict on a txn for an idle CPU; again, where the machine took the CPU for itself meanwhile.
fn straight(rig: &mut Rig, txn: impl Fn(&Rig) -> Result<Txn>) -> Result<Outcome> {
    straight_in(rig, B, txn)
}

fn straight_in(rig: &mut Rig, slot: u16, txn: impl Fn(&Rig) -> Result<Txn>) -> Result<Outcome> {
    let mut outcome = Outcome::None;
    for _ in 0..ATTEMPTS {
        rig.until("the CPU is there", PATIENCE, |rig| rig.ipus[0].view.cpus[usize::from(slot)].open)?;
        let txn = txn(rig)?;
        let id = rig.ipus[0].stage(slot, txn)?;
        rig.ipus[0].ring(slot)?;
        outcome = rig.verdict(0, slot, id)?;
        if outcome != Outcome::CpuUnavailable {
            break;
        }
    }
    Ok(outcome)
}

pub(super) fn is(what: &str, outcome: Outcome, expected: Outcome) -> Result<()> {
    ensure!(outcome == expected, "expected: {what} is {}; it is {}", expected.name(), outcome.name());
    Ok(())
}

fn affinity(rig: &mut Rig) -> Result<()> {
    // A mask with a gap is told as its first run. The other CPU would do, and the agent is not told.
    let gap = steadily(rig, Outcome::Affinity, |rig| {
        let gap = rig.parked(0, &[A, C], Word::Work)?;
        let told = &rig.ipus[0].view.tasks[&gap.task];
        ensure!(
            told.allows(A) && !told.allows(B) && !told.allows(C),
            "expected: CPU {A} alone is told; it is {told:?}"
        );
        for cpu in [B, C, 0] {
            let outcome = straight_in(rig, cpu, |rig| rig.run_txn(0, gap, cpu))?;
            if outcome != Outcome::Affinity {
                return Ok((outcome, gap));
            }
        }
        Ok((Outcome::Affinity, gap))
    })?;
    goes_on(rig, gap, A)?;
    // It is changed while a decision lies ready.
    let task = steadily(rig, Outcome::TaskStale, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, A)?;
        let outcome = pending(rig, A, run, runner, |rig| {
            rig.ipus[0].view.allow_moves(task.task, 1);
            rig.order(Order::Allow(task.number, vec![B, C]))?;
            rig.until("the change is told", PATIENCE, |rig| {
                rig.ipus[0].view.tasks.get(&task.task).is_some_and(|task| !task.allows(A))
            })
        })?;
        Ok((outcome, task))
    })?;
    let outcome = straight_in(rig, A, |rig| rig.run_txn(0, task, A))?;
    is("a CPU that was taken away", outcome, Outcome::Affinity)?;
    // It is changed under a task that runs: the machine moves it, and the agent hears of it.
    rig.place(0, task, B)?;
    rig.until_work(&[task.number], 10)?;
    rig.hold(0, task, false);
    rig.ipus[0].view.allow_moves(task.task, 4);
    rig.order(Order::Allow(task.number, vec![C]))?;
    rig.until_stands(0, task, Stand::Placed(C))?;
    rig.until_work(&[task.number], 10)
}

fn invalid(rig: &mut Rig) -> Result<()> {
    let task = rig.parked(0, &[], Word::Work)?;
    let with = |flags: TxnFlags| move |rig: &Rig| Ok(Txn { flags, ..rig.run_txn(0, task, B)? });
    let both = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU).with(TxnFlags::PRESTAGED);
    for flags in [TxnFlags::PREEMPT, both, TxnFlags(1 << 7), TxnFlags(1 << 15)] {
        is(&format!("flags {:#x}", flags.0), straight(rig, with(flags))?, Outcome::InvalidFlags)?;
    }
    for number in [4096, u32::MAX - 1] {
        let outcome = straight(rig, |rig| Ok(Txn { task: number, ..rig.run_txn(0, task, B)? }))?;
        is(&format!("task {number}"), outcome, Outcome::InvalidTask)?;
    }
    // A number that nobody has.
    let free = straight(rig, |rig| Ok(Txn { task: 4095, ..rig.run_txn(0, task, B)? }))?;
    is("a number that is free", free, Outcome::TaskGone)?;
    for cpu in [C, 200, u16::MAX] {
        let outcome = straight(rig, |rig| Ok(Txn { cpu, ..rig.run_txn(0, task, B)? }))?;
        is(&format!("CPU {cpu} in the slot of CPU {B}"), outcome, Outcome::InvalidCpu)?;
    }
    for operation in [3, 77, u8::MAX] {
        let outcome = straight(rig, |rig| Ok(Txn { operation, ..rig.run_txn(0, task, B)? }))?;
        is(&format!("operation {operation}"), outcome, Outcome::UnknownOperation)?;
    }
    goes_on(rig, task, B)
}

/// A member of a group.
fn member(rig: &Rig, worker: Worker, cpu: u16, group: u32, size: u8) -> Result<Txn> {
    Ok(Txn { flags: TxnFlags::GROUP, group, group_size: size, ..rig.run_txn(0, worker, cpu)? })
}

fn group(rig: &mut Rig) -> Result<()> {
    // All or none: two tasks and two CPUs that are idle.
    for _ in 0..ATTEMPTS {
        let (one, other) = (rig.parked(0, &[], Word::Work)?, rig.parked(0, &[], Word::Work)?);
        let number = rig.ipus[0].group();
        let (first, second) = (member(rig, one, A, number, 2)?, member(rig, other, B, number, 2)?);
        let first = rig.send(0, first)?;
        let second = rig.send(0, second)?;
        let outcomes = (rig.verdict(0, A, first)?, rig.verdict(0, B, second)?);
        match outcomes {
            (Outcome::Committed, Outcome::Committed) => break,
            (
                Outcome::CpuUnavailable | Outcome::GroupFailed,
                Outcome::CpuUnavailable | Outcome::GroupFailed,
            ) => {
                rig.end_workers()?;
            }
            _ => bail!("expected: both members are committed; they are {outcomes:?}"),
        }
    }
    let both: Vec<usize> =
        rig.look()?.iter().filter(|looked| looked.ended.is_none()).map(|looked| looked.worker).collect();
    ensure!(both.len() == 2, "expected: two members work; there are {both:?}");
    rig.until_work(&both, 10)?;
    rig.end_workers()?;
    // One whose task has changed takes the other with it.
    let task = steadily(rig, Outcome::GroupFailed, |rig| {
        let runner = rig.runner(0, A)?;
        let (stale, good) = (rig.parked(0, &[], Word::Yield)?, rig.parked(0, &[], Word::Work)?);
        let number = rig.ipus[0].group();
        let first = member(rig, stale, A, number, 2)?;
        let second = member(rig, good, B, number, 2)?;
        let mut joined = 0;
        let outcome = pending(rig, A, first, runner, |rig| {
            joined = rig.send(0, second)?;
            rig.place(0, stale, C)?;
            rig.until_stands(0, stale, Stand::Runnable)
        })?;
        if !matches!(outcome, Outcome::TaskStale | Outcome::GroupFailed) {
            return Ok((outcome, good));
        }
        let failed = rig.verdict(0, B, joined)?;
        Ok((failed, good))
    })?;
    goes_on(rig, task, B)?;
    rig.end_workers()?;
    // One that waits for the other is void when its CPU takes something else.
    let task = steadily(rig, Outcome::GroupFailed, |rig| {
        let task = rig.parked(0, &[], Word::Work)?;
        let number = rig.ipus[0].group();
        let waits = member(rig, task, A, number, 2)?;
        let waits = rig.send(0, waits)?;
        // It has been taken when the slot that it lay in is looked at once more.
        rig.go_on(Duration::from_millis(200))?;
        let voids = rig.send(0, Txn::withdraw(A))?;
        rig.verdict(0, A, voids)?;
        let told = rig.ipus[0].view.verdicts.iter().find(|&&(cpu, id, _)| (cpu, id) == (A, waits));
        Ok((told.map_or(Outcome::CpuUnavailable, |&(_, _, outcome)| outcome), task))
    })?;
    goes_on(rig, task, A)
}

fn invalid_group(rig: &mut Rig) -> Result<()> {
    let task = rig.parked(0, &[], Word::Work)?;
    for size in [0, 5, 17, u8::MAX] {
        let number = rig.ipus[0].group();
        let outcome = straight(rig, |rig| member(rig, task, B, number, size))?;
        is(&format!("a group of {size} on four CPUs"), outcome, Outcome::InvalidGroup)?;
    }
    two_sizes(rig, task)?;
    // A task twice.
    let number = rig.ipus[0].group();
    let (first, second) = (member(rig, task, A, number, 2)?, member(rig, task, B, number, 2)?);
    let first = rig.send(0, first)?;
    let second = rig.send(0, second)?;
    let outcomes = [rig.verdict(0, A, first)?, rig.verdict(0, B, second)?];
    ensure!(
        outcomes.contains(&Outcome::InvalidGroup) && !outcomes.contains(&Outcome::Committed),
        "expected: a task twice is invalid_group; the members are {outcomes:?}"
    );
    goes_on(rig, task, B)
}

/// A group whose members don't agree on how many they are. The first waits on its CPU, until the machine takes that.
fn two_sizes(rig: &mut Rig, task: Worker) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let number = rig.ipus[0].group();
        let first = member(rig, task, A, number, 3)?;
        let first = rig.send(0, first)?;
        rig.go_on(Duration::from_millis(100))?;
        let second = member(rig, task, B, number, 2)?;
        let second = rig.send(0, second)?;
        let verdict = |rig: &Rig, cpu: u16, txn: u32| rig.ipus[0].view.verdict_on(cpu, txn);
        // Whichever comes first; the other follows at once, if the two have met.
        rig.until("a verdict on one of the two", PATIENCE, |rig| {
            verdict(rig, A, first).is_some() || verdict(rig, B, second).is_some()
        })?;
        rig.go_on(Duration::from_millis(100))?;
        match (verdict(rig, A, first), verdict(rig, B, second)) {
            (Some(Outcome::GroupFailed), Some(Outcome::InvalidGroup)) => return Ok(()),
            (Some(Outcome::CpuUnavailable | Outcome::GroupFailed), refused) => {
                if refused.is_none() {
                    // It waits for others, of whom there are none.
                    let withdraw = rig.send(0, Txn::withdraw(B))?;
                    rig.verdict(0, B, withdraw)?;
                }
            }
            outcomes => {
                bail!("expected: another size is invalid_group, and the first fails too; {outcomes:?}")
            }
        }
    }
    bail!("expected: two sizes are invalid_group; {ATTEMPTS} times the machine took a CPU")
}

/// Signals by their numbers on x86.
pub(super) mod signal {
    pub(crate) const KILL: i32 = 9;
    pub(crate) const TERM: i32 = 15;
    pub(crate) const CONT: i32 = 18;
    pub(crate) const STOP: i32 = 19;
}
