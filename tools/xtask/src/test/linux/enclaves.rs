//! Two functions, and so two enclaves of one host: what is the other's is not permitted, and what befalls one is not felt
//! by the other.

use anyhow::{Result, ensure};
use neap_abi::{MessageKind, Outcome, Txn};
use neap_puppet::{Class, Order, Word};

use super::Case;
use super::ipu::{After, Conduct};
use super::outcomes::is;
use super::rig::{DEVICE, PATIENCE, Rig};

/// CPUs of the first function that are not the puppet's, and of the second.
const OURS: u16 = 1;
const THEIRS: [u16; 2] = [2, 3];

/// How the module of these cases is loaded.
pub(super) const PARAMETERS: &str = "cpus=0-1/2-3 watchdog_ms=600000 turn_ms=600000";

pub(super) const CASES: &[Case] = &[
    Case { name: "not_permitted", about: "another enclave's CPUs and tasks are refused", run: not_permitted },
    Case {
        name: "moves_over",
        about: "a task moves to the other enclave while a decision on it lies ready",
        run: moves_over,
    },
    Case {
        name: "in_host_s_hands",
        about: "a task that the host's own rule has is not the agent's",
        run: in_host_s_hands,
    },
    Case { name: "neighbour", about: "one agent hangs, and the other's tasks do not notice", run: neighbour },
    Case { name: "unplugged", about: "a function is unplugged under load", run: unplugged },
];

fn refused(rig: &mut Rig, ipu: usize, slot: u16, txn: Txn) -> Result<Outcome> {
    let mut outcome = Outcome::None;
    for _ in 0..8 {
        rig.until("the CPU is there", PATIENCE, |rig| rig.ipus[ipu].view.cpus[usize::from(slot)].open)?;
        let id = rig.ipus[ipu].stage(slot, txn)?;
        rig.ipus[ipu].ring(slot)?;
        outcome = rig.verdict(ipu, slot, id)?;
        if outcome != Outcome::CpuUnavailable {
            break;
        }
    }
    Ok(outcome)
}

fn not_permitted(rig: &mut Rig) -> Result<()> {
    let ours = rig.parked(0, &[0, OURS], Word::Work)?;
    let theirs = rig.parked(1, &THEIRS, Word::Work)?;
    let run = rig.run_txn(0, ours, OURS)?;
    let outcome = refused(rig, 0, OURS, Txn { cpu: THEIRS[0], ..run })?;
    is("another enclave's CPU", outcome, Outcome::NotPermitted)?;
    let stolen = rig.run_txn(1, theirs, THEIRS[0])?;
    let outcome = refused(rig, 0, OURS, Txn { cpu: OURS, ..stolen })?;
    is("another enclave's task", outcome, Outcome::NotPermitted)?;
    // Both are as they were.
    rig.place(0, ours, OURS)?;
    rig.place(1, theirs, THEIRS[0])?;
    rig.until_work(&[ours.number, theirs.number], 10)
}

fn moves_over(rig: &mut Rig) -> Result<()> {
    let runner = rig.parked(1, &THEIRS, Word::Work)?;
    rig.place(1, runner, THEIRS[1])?;
    let task = rig.parked(1, &THEIRS, Word::Work)?;
    let run = rig.run_txn(1, task, THEIRS[1])?;
    let id = rig.prestage(1, run)?;
    rig.ipus[0].view.newcomers.clear();
    rig.ipus[1].view.allow_moves(task.task, 2);
    rig.order(Order::Allow(task.number, vec![0, OURS]))?;
    rig.until_gone(1, task)?;
    ensure!(rig.messages(1, task, MessageKind::TaskDeparted) == 1, "expected: its leaving is told");
    rig.until("its coming is told", PATIENCE, |rig| rig.ipus[0].view.newcomers.contains(&task.task))?;
    rig.tell(runner, Word::Rest)?;
    let outcome = rig.verdict(1, THEIRS[1], id)?;
    is("a task that has moved over", outcome, Outcome::NotPermitted)?;
    rig.until_work(&[task.number], 10)
}

fn settings(rig: &mut Rig, device: &str, watchdog_ms: u32) -> Result<()> {
    let device = device.to_owned();
    rig.order(Order::Settings { device, watchdog_ms, kernel_after_ms: 0, attach_anew: false })?;
    Ok(())
}

/// Sets what the kernel gives the extensible class of a CPU that real-time threads keep, in ns a second: by default it lets
/// the class have a twentieth of it (the deadline server).
fn share(rig: &mut Rig, cpu: u16, runtime_ns: u64) -> Result<()> {
    rig.write(&format!("/sys/kernel/debug/sched/ext_server/cpu{cpu}/runtime"), &runtime_ns.to_string())
}

fn in_host_s_hands(rig: &mut Rig) -> Result<()> {
    // What is not to be had is not to be had for a moment either.
    share(rig, THEIRS[1], 0)?;
    in_hands(rig)?;
    share(rig, THEIRS[1], 50_000_000)
}

fn in_hands(rig: &mut Rig) -> Result<()> {
    // Their agent hangs. One of its tasks the host's rule runs at once; the other may only use a CPU that is not to be had.
    let hog = rig.outsider(Class::Fifo, &[THEIRS[1]], Word::Work)?;
    rig.until("the CPU is told to be busy", PATIENCE, |rig| {
        !rig.ipus[1].view.cpus[usize::from(THEIRS[1])].open
    })?;
    let bound = rig.parked(1, &[THEIRS[0], THEIRS[1]], Word::Work)?;
    rig.ipus[1].view.allow_moves(bound.task, 2);
    rig.order(Order::Allow(bound.number, vec![THEIRS[1]]))?;
    let free = rig.parked(1, &THEIRS, Word::Nap)?;
    let stamp = rig.stamp(1, bound)?;
    let before = rig.counters(1)?;
    rig.ipus[1].conduct = Conduct::Hung;
    settings(rig, "/dev/neap1", 100)?;
    rig.wait_counters(1, |now| Ok((now.since(&before).of("comebacks")? > 0).then_some(())))?;
    settings(rig, "/dev/neap1", 600_000)?;
    rig.until_decides(1)?;
    ensure!(rig.stands(1, bound).is_none(), "expected: the agent is not told of it; it is");
    let run = Txn::run(THEIRS[0], bound.task, stamp);
    let outcome = refused(rig, 1, THEIRS[0], run)?;
    is("a task in the host's own hands", outcome, Outcome::NotPermitted)?;
    // Once it has its CPU it goes on, and is the agent's when it next waits.
    rig.order(Order::Tell(hog, Word::End))?;
    rig.until_work(&[bound.number, free.number], 10)
}

fn neighbour(rig: &mut Rig) -> Result<()> {
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(rig.start(0, &[OURS], Word::Nap)?.number);
        workers.push(rig.start(1, &THEIRS, Word::Nap)?.number);
    }
    rig.until_work(&workers, 20)?;
    let before = (rig.counters(0)?, rig.counters(1)?);
    (rig.ipus[1].conduct, rig.ipus[1].after) = (Conduct::Hung, After::Rest);
    settings(rig, "/dev/neap1", 200)?;
    rig.until_state(1, "level", "host")?;
    // Longer than one would wait that is alone.
    rig.go_on(std::time::Duration::from_millis(1500))?;
    rig.until_work(&workers, 20)?;
    rig.until_decided(0, 20)?;
    let ours = rig.counters(0)?.since(&before.0);
    let fell = (ours.of("fallbacks")?, ours.of("messages_dropped")?);
    ensure!(fell == (0, 0), "expected: the neighbour does not notice; it fell back or lost lines: {fell:?}");
    rig.ipus[1].conduct = Conduct::Good { prestages: false };
    rig.ipus[1].after = After::Restart;
    rig.ipus[1].start()?;
    rig.until_state(1, "level", "ipu")?;
    settings(rig, "/dev/neap1", 600_000)?;
    rig.until_decided(1, 20)?;
    rig.until_work(&workers, 20)
}

/// The last: the function does not come back.
fn unplugged(rig: &mut Rig) -> Result<()> {
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(rig.start(0, &[OURS], Word::Nap)?.number);
        workers.push(rig.start(1, &THEIRS, Word::Nap)?.number);
    }
    rig.until_work(&workers, 20)?;
    let (attached, before) = (rig.attached(), rig.counters(0)?);
    let logged = rig.logged("neap1: link_down:");
    rig.unplug(1)?;
    rig.until_logged("neap1: link_down:", logged)?;
    let devices = rig.shell("ls /dev/neap*")?;
    ensure!(devices.trim() == DEVICE, "expected: {DEVICE} is left; there are {}", devices.trim());
    // Those on CPUs that are nobody's now go on by the host's own rule, and the neighbour does not notice.
    rig.until_work(&workers, 20)?;
    rig.until_decided(0, 20)?;
    let ours = rig.counters(0)?.since(&before);
    let felt = (ours.of("fallbacks")?, ours.of("messages_dropped")?, rig.attached() - attached);
    ensure!(
        felt == (0, 0, 0),
        "expected: the neighbour does not notice; it fell back, lost lines, was attached: {felt:?}"
    );
    rig.ipus.truncate(1);
    Ok(())
}
