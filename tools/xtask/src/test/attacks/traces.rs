//! Whether an agent can find what another has left: in the registers of the core that it takes over, or in its memory.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use neap_abi::supervisor::BindingKind;

use super::ground::{Ground, PATIENCE, Session, wait_for};
use super::{LONG_TRIAL, PATIENT, image, take_over, tried};
use crate::firmware::Agent;
use crate::test::Verdict;

/// The one that leaves traces, and the one that looks for them.
pub(super) const AGENTS: [&str; 2] = ["a40_leave_traces", "a41_look_for_traces"];
/// What is found.
const NOTHING: &str = "nothing is left";

pub(super) fn run(
    ground: &Ground<'_>,
    agents: &BTreeMap<String, Agent>,
    verdict: &mut Verdict,
) -> Result<()> {
    let [leaves, looks] = [image(agents, AGENTS[0])?, image(agents, AGENTS[1])?];
    tried(verdict, "a41_look_for_traces: an agent looks for what another has left", || {
        let since = ground.rounds();
        let ((shared, at), _) = ground.session(PATIENT, |session| follow(session, &leaves, &looks))?;
        ground.watch_neighbours(&since)?;
        Ok(format!("{NOTHING}, in registers full of a pattern before and in {shared} B from {at:#x} on"))
    })
}

/// Has one agent look right after the other on the same core, and then in the other's memory. Returns how much of that it
/// was given, and where.
fn follow(session: &Session<'_>, leaves: &[u8], looks: &[u8]) -> Result<(u64, u64)> {
    session.tell(&session.told(0)?, false)?;
    let before = session.books()?;
    let request = take_over(session, leaves, AGENTS[0], LONG_TRIAL)?;
    wait_for("the traces", || Ok((session.books()?.started != before.started).then_some(())))?;
    let left = memory(session)?;
    // It has decided nothing; it is to stay all the same.
    let agent = session.agents()?.running.context("no agent runs")?;
    session.enclave.link().link().confirm(agent.incarnation);
    wait_for("the first stays", || {
        Ok(session.with_manager(|manager| Ok(manager.answer(request)))?.filter(|_| true))
    })?;
    look(session, looks).context("in the registers")?;
    // The one that looked has gone, and the one before it with what it laid out: FIFO comes, and it is looked again.
    session.with_manager(|manager| Ok(manager.replace("fifo", PATIENCE, PATIENCE)?))?;
    let given = look(session, looks).context("in the memory")?;
    let shared = left.start.max(given.start)..left.end.min(given.end);
    ensure!(
        shared.start < shared.end,
        "it was given {given:x?}, and the other had {left:x?}: that shows nothing"
    );
    Ok((shared.end - shared.start, shared.start))
}

/// The memory of the agent that runs.
fn memory(session: &Session<'_>) -> Result<Range<u64>> {
    let agents = session.agents()?;
    let own = agents
        .bindings
        .iter()
        .filter(|binding| matches!(binding.kind, BindingKind::Memory | BindingKind::Stack))
        .map(|binding| binding.physical..binding.physical + binding.bytes);
    let whole = own.reduce(|whole, part| whole.start.min(part.start)..whole.end.max(part.end));
    whole.context("the agent has no memory")
}

/// Has an agent look; where it lay.
fn look(session: &Session<'_>, looks: &[u8]) -> Result<Range<u64>> {
    session.tell(&session.told(0)?, false)?;
    let before = session.books()?;
    take_over(session, looks, AGENTS[1], LONG_TRIAL)?;
    let lies = wait_for("the one that looks", || {
        let looking = session.agents()?.running.is_some_and(|agent| agent.name() == AGENTS[1]);
        looking.then(|| memory(session)).transpose()
    })?;
    session.tell(&session.told(0)?, true)?;
    wait_for("what it has found", || Ok((session.books()?.rollbacks != before.rollbacks).then_some(())))?;
    let record = session.epitaph().context("there is no epitaph")?;
    let found = (record.name(), record.epitaph.text());
    ensure!(found == (AGENTS[1], NOTHING), "{found:?}");
    Ok(lies)
}
