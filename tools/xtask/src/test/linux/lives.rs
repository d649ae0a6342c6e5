//! Agents that end while their decisions lie ready, agents of another release, and a storm of decisions of all kinds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use neap_abi::{AgentState, Operation, Outcome, Txn, TxnFlags, Version};
use neap_puppet::{Class, Order, Word};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Case;
use super::ipu::{Make, USUAL};
use super::outcomes::{A, B, goes_on, is, signal};
use super::rig::{CGROUP, PATIENCE, Rig, Worker};

pub(super) const CASES: &[Case] = &[
    Case { name: "no_agent", about: "an agent ends while its decision lies ready", run: no_agent },
    Case {
        name: "unsupported_version",
        about: "an agent says more than its version has",
        run: unsupported_version,
    },
    Case {
        name: "by_cgroup",
        about: "a task comes into the class by its cgroup, and leaves it so",
        run: by_cgroup,
    },
    Case { name: "storm", about: "decisions of all kinds among tasks that do what they like", run: storm },
];

fn no_agent(rig: &mut Rig) -> Result<()> {
    // Its successor is there when the CPU looks, or nobody.
    for successor in [true, false] {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, A)?;
        rig.prestage(0, run)?;
        let before = rig.counters(0)?;
        rig.ipus[0].view.hold_new = true;
        rig.ipus[0].end(AgentState::Dead)?;
        rig.until_state(0, "agent_state", "Dead")?;
        if successor {
            rig.ipus[0].start()?;
            rig.until_decides(0)?;
        }
        rig.tell(runner, Word::Rest)?;
        let more = rig.wait_counters(0, |now| {
            let more = now.since(&before);
            Ok((more.of_outcome(Outcome::NoAgent)? > 0).then_some(more))
        })?;
        let refused = more.of_outcome(Outcome::NoAgent)?;
        ensure!(refused == 1, "expected: one txn is refused as no_agent; there are {refused}");
        if !successor {
            rig.ipus[0].start()?;
            rig.until_decides(0)?;
        }
        rig.ipus[0].view.hold_new = false;
        // The next agent has it from the resync, as it was.
        goes_on(rig, task, B)?;
        rig.end_workers()?;
    }
    Ok(())
}

fn unsupported_version(rig: &mut Rig) -> Result<()> {
    let before = Version { major: 1, minor: 1 };
    rig.boot_ipu(0, Make { version: before, ..USUAL })?;
    let version = rig.state(0, "version")?;
    ensure!(version == before.to_string(), "expected: both speak {before}; the driver speaks {version}");
    let task = rig.parked(0, &[], Word::Work)?;
    // A 1.1 agent does not say which it is.
    let run = rig.run_txn(0, task, B)?;
    let id = rig.ipus[0].stage_as(B, run, |txn| txn.incarnation = 1)?;
    rig.ipus[0].ring(B)?;
    is("a txn that names its agent", rig.verdict(0, B, id)?, Outcome::UnsupportedVersion)?;
    goes_on(rig, task, B)?;
    rig.boot_ipu(0, USUAL)
}

fn by_cgroup(rig: &mut Rig) -> Result<()> {
    let number = rig.outsider(Class::Fair, &[], Word::Nap)?;
    let pid = rig.looked(number)?.pid;
    rig.ipus[0].view.newcomers.clear();
    rig.write(&format!("{CGROUP}/cgroup.procs"), &pid.to_string())?;
    let task = rig
        .wait("who came to the cgroup is told of", PATIENCE, |rig| rig.ipus[0].view.newcomers.pop_front())?;
    rig.until_decided(0, 20)?;
    rig.until_work(&[number], 10)?;
    rig.write("/sys/fs/cgroup/cgroup.procs", &pid.to_string())?;
    rig.until_gone(0, Worker { number, pid, task })?;
    rig.until_work(&[number], 10)
}

/// How long the storm lasts, and its seed.
const STORM: Duration = Duration::from_secs(8);
const SEED: u64 = 0x6e65_6170;
/// Workers in it.
const TOSSED: usize = 10;

/// A decision of some kind, most of them bad.
fn tossed(rig: &Rig, random: &mut ChaCha8Rng, cpus: u16) -> Txn {
    let cpu = random.random_range(0..cpus);
    let tasks: Vec<(u32, u32)> =
        rig.ipus[0].view.tasks.iter().map(|(&number, task)| (number, task.stamp)).collect();
    let (task, stamp) = match tasks.len() {
        0 => (random.random_range(0..64), random.random()),
        count => tasks[random.random_range(0..count)],
    };
    let mut txn = Txn::run(cpu, task, stamp.wrapping_add(random.random_range(0..4)));
    txn.cpu_stamp = rig.ipus[0].view.cpus[usize::from(cpu)].stamp;
    match random.random_range(0..10u32) {
        0 => txn = Txn::withdraw(cpu),
        1 => txn.task = random.random_range(0..5000),
        // Never for as long as the task likes: one that works without end would keep its CPU from all others for ever, also
        // from one that is killed and needs a CPU to die on.
        2 => (txn.flags, txn.slice_ns) = (TxnFlags(random.random()), random.random_range(1..1_000_000)),
        3 => txn.flags = TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU),
        4 => txn.operation = random.random_range(1..5),
        5 => {
            txn.flags = TxnFlags::GROUP;
            (txn.group, txn.group_size) = (random.random_range(0..4), random.random_range(0..5));
        }
        6 => txn.slice_ns = random.random_range(1..1_000_000),
        7 => txn.cpu = random.random_range(0..6),
        8 => {
            txn = Txn {
                operation: Operation::Idle as u8,
                flags: TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU),
                ..Txn { cpu_stamp: txn.cpu_stamp, ..Txn::withdraw(cpu) }
            }
        }
        _ => txn.flags = TxnFlags::ALLOW_ON_CPU.with(TxnFlags::REPORT_ON_CPU),
    }
    txn
}

/// Something that befalls a worker.
fn befalls(random: &mut ChaCha8Rng, worker: Worker) -> Order {
    let words = [Word::Work, Word::Nap, Word::Yield, Word::Rest, Word::Once, Word::Measure];
    match random.random_range(0..6u32) {
        0 => {
            let cpus = (0..4u16).filter(|_| random.random_range(0..2u32) == 0).collect();
            Order::Allow(worker.number, cpus)
        }
        1 => Order::Signal(
            worker.number,
            if random.random_range(0..2u32) == 0 { signal::STOP } else { signal::CONT },
        ),
        _ => Order::Tell(worker.number, words[random.random_range(0..words.len())]),
    }
}

fn storm(rig: &mut Rig) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let cpus = rig.ipus[0].cpus();
    let mut workers = Vec::new();
    for _ in 0..TOSSED {
        workers.push(rig.start(0, &[], Word::Nap)?);
    }
    rig.ipus[0].view.lenient = true;
    let before = rig.counters(0)?;
    let since = Instant::now();
    let (mut next, mut answer) = (Instant::now(), None);
    while since.elapsed() < STORM {
        rig.turn()?;
        if answer.is_none_or(|number| rig.answered(number)) {
            let at = random.random_range(0..workers.len());
            // Now and then one is killed, and another takes its place.
            if random.random_range(0..20u32) == 0 {
                rig.order(Order::Signal(workers[at].number, signal::KILL))?;
                rig.order(Order::Signal(workers[at].number, signal::CONT)).ok();
                rig.until_ended(workers[at].number)?;
                workers[at] = rig.start(0, &[], Word::Nap)?;
            } else {
                answer = Some(rig.give(befalls(&mut random, workers[at]))?);
            }
        }
        if next <= Instant::now() {
            next = Instant::now() + Duration::from_micros(random.random_range(0..4000));
            let txn = tossed(rig, &mut random, cpus);
            // Into any slot, of whatever CPU it speaks.
            let slot = if txn.cpu < cpus { txn.cpu } else { random.random_range(0..cpus) };
            rig.ipus[0].stage(slot, txn)?;
            if random.random_range(0..3u32) != 0 {
                rig.ipus[0].ring(slot)?;
            }
        }
    }
    for worker in &workers {
        rig.order(Order::Signal(worker.number, signal::CONT))?;
        rig.order(Order::Allow(worker.number, Vec::new()))?;
        rig.order(Order::Tell(worker.number, Word::Nap))?;
    }
    let more = rig.counters(0)?.since(&before);
    let kinds =
        Outcome::ALL.into_iter().filter(|&outcome| more.of_outcome(outcome).is_ok_and(|count| count > 0));
    let kinds: Vec<&str> = kinds.map(Outcome::name).collect();
    ensure!(kinds.len() >= 8, "expected: verdicts of many kinds; there are {kinds:?}");
    let all: Vec<usize> = workers.iter().map(|worker| worker.number).collect();
    rig.until_work(&all, 10).with_context(|| format!("after a storm of seed {SEED:#x}"))?;
    rig.end_workers()?;
    rig.until("the CPUs are told to be idle", PATIENCE, |rig| {
        rig.ipus[0].view.cpus.iter().all(|cpu| cpu.task.is_none())
    })?;
    rig.ipus[0].view.lenient = false;
    Ok(())
}
