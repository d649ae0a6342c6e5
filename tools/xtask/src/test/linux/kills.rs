//! Tasks that are killed while an agent has them, and what a decision that lay ready costs.

use std::time::Duration;

use anyhow::{Result, ensure};
use neap_abi::{MessageKind, Outcome};
use neap_puppet::{Order, Word};

use super::Case;
use super::ipu::{Conduct, Make, USUAL};
use super::outcomes::{A, signal, steadily};
use super::rig::Rig;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "killed_pending",
        about: "a task is killed while a decision on it lies ready",
        run: killed_pending,
    },
    Case {
        name: "killed_parked",
        about: "a task is killed while it waits for a decision",
        run: killed_parked,
    },
    Case { name: "hits", about: "what lies ready costs one line and no uncached read", run: hits },
];

fn killed_pending(rig: &mut Rig) -> Result<()> {
    steadily(rig, Outcome::Committed, |rig| {
        let runner = rig.runner(0, A)?;
        let task = rig.parked(0, &[], Word::Work)?;
        let run = rig.run_txn(0, task, A)?;
        let id = rig.prestage(0, run)?;
        rig.order(Order::Signal(task.number, signal::KILL))?;
        rig.tell(runner, Word::Rest)?;
        let outcome = rig.verdict(0, A, id)?;
        if outcome != Outcome::Committed {
            return Ok((outcome, ()));
        }
        let status = rig.until_ended(task.number)?;
        ensure!(status == 137, "expected: it dies of its signal; it ended with {status}");
        rig.until_gone(0, task)?;
        ensure!(rig.messages(0, task, MessageKind::TaskDead) > 0, "expected: its death is told; it was not");
        Ok((outcome, ()))
    })
}

fn killed_parked(rig: &mut Rig) -> Result<()> {
    let task = rig.parked(0, &[], Word::Work)?;
    rig.order(Order::Signal(task.number, signal::KILL))?;
    // It has to run to die.
    rig.go_on(Duration::from_millis(300))?;
    let looked = rig.looked(task.number)?;
    ensure!(looked.ended.is_none(), "expected: it waits for a decision; it ended with {:?}", looked.ended);
    rig.hold(0, task, false);
    let status = rig.until_ended(task.number)?;
    ensure!(status == 137, "expected: it dies of its signal; it ended with {status}");
    rig.until_gone(0, task)?;
    ensure!(rig.messages(0, task, MessageKind::TaskDead) > 0, "expected: its death is told; it was not");
    Ok(())
}

/// Hits that are waited for.
const HITS: u64 = 100;

fn hits(rig: &mut Rig) -> Result<()> {
    // An agent that never sleeps needs no ring; one that may sleep is rung without a look whether it does.
    for sleeps in [false, true] {
        rig.boot_ipu(0, Make { sleeps, ..USUAL })?;
        rig.ipus[0].conduct = Conduct::Good { prestages: true };
        let before = rig.counters(0)?;
        let mut workers = Vec::new();
        for number in 0..12 {
            let word = if number % 2 == 0 { Word::Nap } else { Word::Yield };
            workers.push(rig.start(0, &[], word)?.number);
        }
        let more = rig.wait_counters(0, |now| {
            let more = now.since(&before);
            Ok((more.of("prestage_hits")? >= HITS).then_some(more))
        })?;
        let (hits, writes) = (more.of("prestage_hits")?, more.of("hit_line_writes")?);
        let reads = more.of("hit_uncached_reads")?;
        // One may be under way: it is counted when it is taken, and its line when that is written.
        ensure!(
            hits.abs_diff(writes) <= 4 && reads == 0,
            "expected: a line and no read for each hit; {hits} hits cost {writes} lines and {reads} reads"
        );
        rig.until_work(&workers, 10)?;
        rig.end_workers()?;
        let more = rig.counters(0)?.since(&before);
        let (hits, writes) = (more.of("prestage_hits")?, more.of("hit_line_writes")?);
        let reads = more.of("hit_uncached_reads")?;
        ensure!(
            hits == writes && reads == 0,
            "expected: a line and no read for each hit; {hits} hits cost {writes} lines and {reads} reads"
        );
        let rings = more.of("rings")?;
        ensure!(
            (rings > 0) == sleeps,
            "expected: an agent is rung if it sleeps ({sleeps}); it was {rings} times"
        );
        rig.ipus[0].conduct = Conduct::Good { prestages: false };
    }
    Ok(())
}
