//! Whatever becomes of the agent, the IPU, the link, the loader or the driver: work goes on, no task is lost, the kernel's
//! log has the cause in one line, and decisions come back without a boot.

use std::time::Duration;

use anyhow::{Result, ensure};
use neap_abi::{AgentState, Manage};
use neap_puppet::{Order, Word};

use super::Case;
use super::ipu::{After, Conduct, USUAL};
use super::outcomes::signal;
use super::rig::{Counters, DEVICE, LOADER, PATIENCE, Rig};

pub(super) const CASES: &[Case] = &[
    Case { name: "late", about: "an agent hangs, is ended, and the next takes over", run: late },
    Case {
        name: "late_for_good",
        about: "an agent hangs, and there is no other for long",
        run: late_for_good,
    },
    Case {
        name: "killed_late",
        about: "a task is killed while it waits for an agent that hangs",
        run: killed_late,
    },
    Case { name: "poisons", about: "an agent claims to have taken what was never written", run: poisons },
    Case { name: "floods", about: "an agent rings without deciding", run: floods },
    Case { name: "dies", about: "an agent ends, and the next is there soon", run: dies },
    Case { name: "gives_up", about: "an agent ends, and its IPU starts no other", run: gives_up },
    Case { name: "reset", about: "the IPU is reset", run: reset },
    Case { name: "link", about: "the IPU leaves the link, which reads as zeros or as ones", run: link },
    Case { name: "unbind", about: "the driver is taken from its function, and given it again", run: unbind },
    Case { name: "loader", about: "the loader is killed, and started again", run: loader },
    Case { name: "unload", about: "the module is unloaded, and loaded again", run: unload },
];

/// How the module of these cases is loaded.
pub(super) const PARAMETERS: &str = "watchdog_ms=300 turn_ms=20 kernel_after_ms=1000";
/// How long nobody is late.
const PATIENT_MS: u32 = 600_000;
/// How long somebody may be, as in [`PARAMETERS`].
const HASTY_MS: u32 = 300;
/// Rounds that show that work goes on.
const ROUNDS: u64 = 20;
/// Decisions that show that they have come back.
const DECISIONS: u64 = 50;

/// Starts work: some tasks never sleep, some do, some give up their CPUs. More of them than there are CPUs.
pub(super) fn work(rig: &mut Rig) -> Result<Vec<usize>> {
    let words = [Word::Work, Word::Nap, Word::Yield, Word::Work, Word::Nap, Word::Yield, Word::Nap];
    let workers = words.iter().map(|&word| Ok(rig.start(0, &[], word)?.number));
    workers.collect()
}

/// Work goes on, by decisions.
pub(super) fn decided(rig: &mut Rig, workers: &[usize]) -> Result<()> {
    rig.until_state(0, "level", "ipu")?;
    rig.until_decides(0)?;
    rig.until_decided(0, DECISIONS)?;
    rig.until_work(workers, ROUNDS)
}

/// What a fault has come to since `before`.
fn fault(rig: &mut Rig, before: &Counters, name: &str, asked: Option<Manage>) -> Result<()> {
    let key = format!("fault_{name}");
    let more = rig.wait_counters(0, |now| {
        let more = now.since(before);
        Ok((more.of(&key)? > 0 && more.of("fallbacks")? > 0).then_some(more))
    })?;
    ensure!(more.of(&key)? == 1, "expected: {key} once; it is {} times", more.of(&key)?);
    if let Some(asked) = asked {
        let commands: Vec<Manage> = rig.ipus[0].asked.iter().map(|line| line.command).collect();
        ensure!(
            commands == [asked],
            "expected: the supervisor is asked for {asked:?}; it was for {commands:?}"
        );
    }
    Ok(())
}

fn settings(rig: &mut Rig, watchdog_ms: u32) -> Result<()> {
    let device = DEVICE.to_owned();
    rig.order(Order::Settings { device, watchdog_ms, kernel_after_ms: 0, attach_anew: false })?;
    Ok(())
}

fn late(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    for conduct in [Conduct::Hung, Conduct::Lazy] {
        let before = rig.counters(0)?;
        let logged = rig.logged("agent_late:");
        rig.ipus[0].asked.clear();
        rig.ipus[0].conduct = conduct;
        fault(rig, &before, "agent_late", Some(Manage::CondemnLate))?;
        rig.until_logged("agent_late:", logged)?;
        decided(rig, &workers)?;
        let comebacks = rig.counters(0)?.since(&before).of("comebacks")?;
        ensure!(comebacks == 1, "expected: one comeback; there were {comebacks}");
    }
    Ok(())
}

/// The class is left: tasks are the kernel's own, and go on.
fn left(rig: &mut Rig, workers: &[usize], cause: &str, logged: usize) -> Result<()> {
    let words = format!("{cause}: tasks go back to the kernel's class");
    rig.until_logged(&words, logged)?;
    until_scheduler(rig, "disabled")?;
    rig.until_work(workers, ROUNDS)
}

fn until_scheduler(rig: &mut Rig, state: &str) -> Result<()> {
    let since = std::time::Instant::now();
    loop {
        let found = rig.read("/sys/kernel/sched_ext/state")?;
        if found.trim() == state {
            return Ok(());
        }
        ensure!(since.elapsed() < PATIENCE, "expected: the class is {state}; it is {}", found.trim());
        rig.go_on(Duration::from_millis(10))?;
    }
}

fn leaving(rig: &Rig, cause: &str) -> usize {
    rig.logged(&format!("{cause}: tasks go back to the kernel's class"))
}

fn late_for_good(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let before = rig.counters(0)?;
    let logged = leaving(rig, "agent_late");
    let (attached, ends) = (rig.attached(), ended(rig));
    rig.ipus[0].asked.clear();
    (rig.ipus[0].after, rig.ipus[0].conduct) = (After::Rest, Conduct::Lazy);
    fault(rig, &before, "agent_late", Some(Manage::CondemnLate))?;
    // The host's own rule, for a second.
    rig.until_state(0, "level", "host")?;
    rig.until_work(&workers, ROUNDS)?;
    left(rig, &workers, "agent_late", logged)?;
    rig.until("the loader says why", PATIENCE, |rig| ended(rig) > ends)?;
    // An agent again.
    (rig.ipus[0].after, rig.ipus[0].conduct) = (After::Restart, Conduct::Good { prestages: false });
    rig.ipus[0].start()?;
    rig.until_attached(attached, PATIENCE)?;
    decided(rig, &workers)
}

/// How often the loader has said that the scheduler ended.
fn ended(rig: &Rig) -> usize {
    rig.heard.iter().filter(|(from, line)| from == LOADER && line.starts_with("ended: ")).count()
}

fn killed_late(rig: &mut Rig) -> Result<()> {
    let before = rig.counters(0)?;
    let task = rig.parked(0, &[], Word::Work)?;
    rig.ipus[0].conduct = Conduct::Hung;
    rig.order(Order::Signal(task.number, signal::KILL))?;
    let status = rig.until_ended(task.number)?;
    ensure!(status == 137, "expected: it dies of its signal; it ended with {status}");
    fault(rig, &before, "agent_late", None)
}

fn poisons(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let before = rig.counters(0)?;
    let logged = rig.logged("agent_poisoned:");
    rig.ipus[0].asked.clear();
    let task = rig.parked(0, &[], Word::Work)?;
    let run = rig.run_txn(0, task, 1)?;
    rig.ipus[0].conduct = Conduct::Hung;
    rig.ipus[0].stage_as(1, run, |txn| txn.credits = txn.credits.wrapping_add(1 << 20))?;
    rig.ipus[0].ring(1)?;
    fault(rig, &before, "agent_poisoned", Some(Manage::CondemnPoison))?;
    rig.until_logged("agent_poisoned:", logged)?;
    let more = rig.counters(0)?.since(&before);
    let poisoned = more.of("outcome_poisoned")?;
    ensure!(poisoned >= 1, "expected: the txn is refused as poisoned; that many were: {poisoned}");
    decided(rig, &workers)?;
    rig.until_work(&[task.number], ROUNDS)
}

fn floods(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    settings(rig, PATIENT_MS)?;
    let before = rig.counters(0)?;
    let logged = rig.logged("agent_floods:");
    rig.ipus[0].asked.clear();
    rig.ipus[0].conduct = Conduct::Lazy;
    let since = std::time::Instant::now();
    while rig.ipus[0].asked.is_empty() {
        for _ in 0..200 {
            rig.ipus[0].ring(2)?;
            std::thread::sleep(Duration::from_micros(20));
        }
        rig.turn()?;
        ensure!(since.elapsed() < PATIENCE, "expected: a flood is noticed; it was not");
    }
    settings(rig, HASTY_MS)?;
    fault(rig, &before, "agent_floods", Some(Manage::CondemnFlood))?;
    rig.until_logged("agent_floods:", logged)?;
    decided(rig, &workers)
}

fn dies(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let before = rig.counters(0)?;
    for _ in 0..3 {
        let last = rig.ipus[0].incarnation();
        rig.ipus[0].end(AgentState::Dead)?;
        rig.go_on(Duration::from_millis(50))?;
        rig.ipus[0].start()?;
        ensure!(rig.ipus[0].incarnation() == last + 1, "expected: the next agent");
        decided(rig, &workers)?;
    }
    let resyncs = rig.counters(0)?.since(&before).of("resyncs")?;
    ensure!(resyncs >= 3, "expected: each agent is told the state; there were {resyncs} resyncs");
    Ok(())
}

fn gives_up(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let before = rig.counters(0)?;
    let logged = (rig.logged("agent_dead:"), leaving(rig, "agent_dead"));
    rig.ipus[0].after = After::Deaf;
    rig.ipus[0].end(AgentState::GivenUp)?;
    fault(rig, &before, "agent_dead", None)?;
    let words = "agent_dead: the agent has ended and is not started again";
    rig.until(words, PATIENCE, |rig| rig.logged(words) > logged.0)?;
    left(rig, &workers, "agent_dead", logged.1)?;
    // Only another boot of the IPU helps.
    let attached = rig.attached();
    rig.ipus[0].after = After::Restart;
    rig.boot_ipu(0, USUAL)?;
    rig.until_attached(attached, PATIENCE)?;
    decided(rig, &workers)
}

fn reset(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    for _ in 0..3 {
        decided(rig, &workers)?;
        let before = rig.counters(0)?;
        let logged = rig.logged("link_down:");
        rig.boot_ipu(0, USUAL)?;
        fault(rig, &before, "link_down", None)?;
        rig.until_logged("link_down:", logged)?;
    }
    decided(rig, &workers)
}

fn link(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    for byte in [0, 0xff] {
        decided(rig, &workers)?;
        let before = rig.counters(0)?;
        let attached = rig.attached();
        rig.ipus[0].vanish(byte)?;
        // What reads as ones can also look like an agent's breach of the protocol; the link is looked at a little later.
        let more = rig.wait_counters(0, |now| {
            let more = now.since(&before);
            Ok((more.of("fault_link_down")? > 0).then_some(more))
        })?;
        ensure!(more.of("fault_link_down")? == 1, "expected: the link is lost once; {more:?}");
        rig.until_state(0, "link", "down")?;
        rig.until_work(&workers, ROUNDS)?;
        until_scheduler(rig, "disabled")?;
        rig.until_work(&workers, ROUNDS)?;
        rig.boot_ipu(0, USUAL)?;
        rig.until_attached(attached, PATIENCE)?;
    }
    decided(rig, &workers)
}

fn unbind(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let logged = leaving(rig, "link_down");
    let (attached, sessions) = (rig.attached(), rig.ipus[0].sessions);
    let name = rig.shell("ls /sys/bus/pci/drivers/neap | grep :")?.trim().to_owned();
    rig.write("/sys/bus/pci/drivers/neap/unbind", &name)?;
    left(rig, &workers, "link_down", logged)?;
    ensure!(
        rig.shell("ls /dev/neap* 2>/dev/null | wc -l")?.trim() == "0",
        "expected: no device is left; one is"
    );
    rig.write("/sys/bus/pci/drivers/neap/bind", &name)?;
    rig.until("the driver attaches", PATIENCE, |rig| rig.ipus[0].sessions > sessions)?;
    rig.until_attached(attached, PATIENCE)?;
    decided(rig, &workers)
}

fn loader(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    rig.order(Order::Stop(LOADER.to_owned(), signal::KILL))?;
    until_scheduler(rig, "disabled")?;
    rig.until_work(&workers, ROUNDS)?;
    rig.attach()?;
    decided(rig, &workers)
}

fn unload(rig: &mut Rig) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    rig.unload()?;
    until_scheduler(rig, "disabled")?;
    rig.until_work(&workers, ROUNDS)?;
    let sessions = rig.ipus[0].sessions;
    rig.load(PARAMETERS)?;
    rig.until("the driver attaches", PATIENCE, |rig| rig.ipus[0].sessions > sessions)?;
    rig.attach()?;
    decided(rig, &workers)
}
