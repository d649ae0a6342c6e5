//! What can be seen of the driver: the types of its memory, its devices, its tracepoints, the tick, and a load that nobody here
//! wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use neap_abi::{Operation, Outcome, Txn, TxnFlags};
use neap_puppet::{Class, Order, Word};

use super::Case;
use super::falls::{decided, work};
use super::ipu::Conduct;
use super::outcomes::{A, B, pending, steadily};
use super::rig::{PATIENCE, Rig};

/// On a machine on which nobody is late.
pub(super) const QUIET: &[Case] = &[
    Case { name: "types", about: "each region of the window has its memory type", run: types },
    Case { name: "uapi", about: "the device does what its header says", run: uapi },
    Case { name: "traces", about: "tracepoints show each message and each txn", run: traces },
];

/// Under load.
pub(super) const LOUD: &[Case] = &[
    Case { name: "stress", about: "stress-ng under SCHED_EXT, by a good agent", run: stress },
    Case {
        name: "stress_late",
        about: "stress-ng under SCHED_EXT, whose agent hangs half-way",
        run: stress_late,
    },
];

/// On a machine one of whose CPUs can do without a tick.
pub(super) const TICKLESS: &[Case] = &[Case {
    name: "tickless",
    about: "a decision grants a CPU for ever, and its tick stops",
    run: tickless,
}];

fn types(rig: &mut Rig) -> Result<()> {
    let said = rig.shell("neap check types")?;
    ensure!(
        said.contains("write-combining") && said.contains("write-through"),
        "expected: both types; {said}"
    );
    Ok(())
}

fn uapi(rig: &mut Rig) -> Result<()> {
    let before = rig.attached();
    rig.shell("neap check uapi")?;
    // The function went and came back in it.
    rig.until_attached(before, 4 * PATIENCE)?;
    rig.until_decides(0)
}

const TRACING: &str = "/sys/kernel/tracing";

/// How often each line of an event is in a trace.
fn events(trace: &str, event: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in trace.lines() {
        if let Some((_, fields)) = line.split_once(&format!(" {event}: ")) {
            *found.entry(fields.trim().to_owned()).or_default() += 1;
        }
    }
    found
}

fn traces(rig: &mut Rig) -> Result<()> {
    rig.write(&format!("{TRACING}/trace"), "0")?;
    let from = rig.ipus[0].view.messages.len();
    rig.write(&format!("{TRACING}/events/neap/enable"), "1")?;
    steadily(rig, Outcome::Committed, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, A)?;
        Ok((pending(rig, A, run, runner, |_| Ok(()))?, ()))
    })?;
    rig.end_workers()?;
    let id = rig.send(0, Txn { operation: Operation::Withdraw as u8, ..Txn::withdraw(B) })?;
    rig.verdict(0, B, id)?;
    rig.write(&format!("{TRACING}/events/neap/enable"), "0")?;
    rig.go_on(Duration::from_millis(100))?;
    let trace = rig.read(&format!("{TRACING}/trace"))?;
    let (lines, txns) = (events(&trace, "neap_message"), events(&trace, "neap_txn"));
    // At both ends, some pass while it is switched on or off.
    let told = &rig.ipus[0].view.messages[from..];
    let mut seen = 0;
    for message in told {
        let line = format!(
            "cpu={} kind={} task={} stamp={} txn={} outcome={} flags={:#x}",
            message.cpu,
            message.kind as u8,
            message.task,
            message.stamp,
            message.txn,
            message.outcome as u8,
            message.flags.0
        );
        seen += usize::from(lines.contains_key(&line));
        if message.outcome != Outcome::None && lines.contains_key(&line) {
            let verdict = format!("cpu={} txn={} ", message.cpu, message.txn);
            let outcome = format!(" outcome={}", message.outcome as u8);
            let traced = txns.keys().any(|txn| txn.starts_with(&verdict) && txn.ends_with(&outcome));
            ensure!(traced, "expected: a trace of the txn in {line}; there are {txns:?}");
        }
    }
    let written: usize = lines.values().sum();
    ensure!(
        seen >= 8 && seen + 8 >= told.len() && written <= told.len() + 8,
        "expected: each message is traced once; {} were told, {seen} of them and {written} in all traced",
        told.len()
    );
    let withdrawn = Outcome::Withdrawn as u8;
    ensure!(
        txns.keys().any(|txn| txn.ends_with(&format!(" outcome={withdrawn}"))),
        "expected: a trace of what was withdrawn; there are {txns:?}"
    );
    Ok(())
}

/// A load of all kinds that a scheduler has to do with, for so long.
const STRESS: &str =
    "/bin/stress-ng --cpu 2 --switch 1 --fork 1 --futex 1 --pthread 1 --timeout 6s --oomable";

fn stressed(rig: &mut Rig, meanwhile: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
    rig.ipus[0].conduct = Conduct::Good { prestages: true };
    let before = rig.counters(0)?;
    let heard = rig.heard.len();
    let words = STRESS.split(' ').map(str::to_owned).collect();
    rig.order(Order::Daemon("stress".to_owned(), Class::Ext, words))?;
    rig.until_decided(0, 100)?;
    meanwhile(rig)?;
    let status = rig.until_over("stress", 4 * PATIENCE)?;
    let said = rig.heard.split_off(heard.min(rig.heard.len()));
    let said: Vec<String> = said.into_iter().map(|(_, line)| line).collect();
    ensure!(status == 0, "expected: stress-ng ends with 0; it ended with {status}:\n{}", said.join("\n"));
    let more = rig.counters(0)?.since(&before);
    let (came, went) = (more.of("tasks_enabled")?, more.of("tasks_disabled")?);
    ensure!(came > 10, "expected: its tasks are in the class; {came} were");
    // The last may be on its way out.
    ensure!(came.abs_diff(went) <= 1, "expected: all of its tasks end; {came} came and {went} went");
    Ok(())
}

fn stress(rig: &mut Rig) -> Result<()> {
    stressed(rig, |_| Ok(()))
}

fn stress_late(rig: &mut Rig) -> Result<()> {
    let before = rig.counters(0)?.of("comebacks")?;
    stressed(rig, |rig| {
        rig.go_on(Duration::from_secs(1))?;
        rig.ipus[0].conduct = Conduct::Hung;
        Ok(())
    })?;
    let comebacks = rig.counters(0)?.of("comebacks")? - before;
    ensure!(
        comebacks >= 1,
        "expected: the agent is ended, and the next decides; there were {comebacks} comebacks"
    );
    // stress-ng has ended: others have to want a decision.
    let workers = work(rig)?;
    decided(rig, &workers)
}

/// The CPU that can do without a tick, of the second function.
const STILL: u16 = 3;
/// Slices that the kernel takes for no slice at all.
const FOR_EVER: u64 = u64::MAX;
/// How long the tick is watched at a time, and how often.
const WATCH: Duration = Duration::from_millis(250);
const WATCHES: usize = 32;
/// Ticks in that time that show that it comes, and those that show that it does not.
const TICKS_MIN: u64 = 10;
const TICKS_MAX: u64 = 2;

/// Local timer interrupts of a CPU so far.
fn ticks(rig: &mut Rig, cpu: u16) -> Result<u64> {
    let text = rig.read("/proc/interrupts")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("LOC:")).context("no local timer is listed")?;
    let count = line.split_whitespace().nth(usize::from(cpu)).context("a CPU without a local timer")?;
    Ok(count.parse()?)
}

/// The slice that a task has left, as the kernel's own dump of the class tells.
fn slice(rig: &mut Rig, pid: i32) -> Result<u64> {
    rig.write(&format!("{TRACING}/trace"), "0")?;
    rig.write(&format!("{TRACING}/events/sched_ext/sched_ext_dump/enable"), "1")?;
    rig.write("/proc/sysrq-trigger", "D")?;
    rig.write(&format!("{TRACING}/events/sched_ext/sched_ext_dump/enable"), "0")?;
    let trace = rig.read(&format!("{TRACING}/trace"))?;
    let (_, rest) =
        trace.split_once(&format!("[{pid}]")).with_context(|| format!("{pid} is not dumped:\n{trace}"))?;
    let slice = rest.split_whitespace().find_map(|word| word.strip_prefix("slice="));
    Ok(slice.with_context(|| format!("no slice is dumped:\n{trace}"))?.parse()?)
}

fn tickless(rig: &mut Rig) -> Result<()> {
    let mut slices = Vec::new();
    let mut counts = [const { Vec::new() }; 2];
    for (counts, flags) in counts.iter_mut().zip([TxnFlags(0), TxnFlags::TICKLESS]) {
        let task = rig.parked(1, &[STILL, 2], Word::Work)?;
        let mut outcome = Outcome::None;
        for _ in 0..8 {
            rig.until("the CPU is there", PATIENCE, |rig| rig.ipus[1].view.cpus[usize::from(STILL)].open)?;
            let run = Txn { flags, ..rig.run_txn(1, task, STILL)? };
            let id = rig.send(1, run)?;
            outcome = rig.verdict(1, STILL, id)?;
            if outcome == Outcome::Committed {
                break;
            }
        }
        ensure!(outcome == Outcome::Committed, "expected: it runs there; the txn came to {}", outcome.name());
        rig.until_work(&[task.number], 10)?;
        slices.push(slice(rig, task.pid)?);
        // Half of the times of one that does tick tell as much.
        let watches = if flags.has(TxnFlags::TICKLESS) { WATCHES } else { WATCHES / 2 };
        let stopped =
            |counts: &[u64]| flags.has(TxnFlags::TICKLESS) && counts.iter().any(|&count| count <= TICKS_MAX);
        while counts.len() < watches && !stopped(counts) {
            let before = ticks(rig, STILL)?;
            rig.go_on(WATCH)?;
            counts.push(ticks(rig, STILL)? - before);
        }
        rig.end_workers()?;
    }
    ensure!(
        slices[0] < FOR_EVER && slices[1] == FOR_EVER,
        "expected: a slice, and then one without an end; they are {slices:?}"
    );
    // An emulated CPU may stand still for a moment, and housekeeping may want the tick for one.
    let [with, without] = &mut counts;
    with.sort_unstable();
    ensure!(
        with[with.len() / 2] >= TICKS_MIN && without.iter().any(|&count| count <= TICKS_MAX),
        "expected: the tick stops; in {} ms each it came {with:?} times with it, and {without:?} times without",
        WATCH.as_millis()
    );
    Ok(())
}
