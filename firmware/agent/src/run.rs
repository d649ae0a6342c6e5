//! An agent's loop.

use core::sync::atomic::{Ordering, fence};

use neap_abi::AgentState;

use crate::agent::Passed;
use crate::{Agent, Doorbell, Idle, Policy};

/// Messages after which an agent that is never idle reports its credits and looks whether it is revoked.
const BUSY_MESSAGES: u32 = 256;

/// Why an agent's loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The supervisor asked for the core.
    Revoked,
}

/// Polls, decides, and when nothing comes is idle, until the supervisor wants the core back.
///
/// What comes before the first resync was meant for an agent before this one, or for nobody, and is passed over: every
/// agent learns the state in one way.
#[inline(always)]
pub fn run<D: Doorbell, X>(
    agent: &mut Agent<'_, D, X>,
    policy: &mut impl Policy,
    idle: &mut impl Idle,
) -> Exit {
    agent.report(AgentState::Running, false);
    if let Some(exit) = await_state(agent, idle) {
        return exit;
    }
    let mut empty_polls = 0u32;
    let mut busy = 0u32;
    loop {
        match agent.poll_message() {
            Ok(Some(message)) => {
                policy.message(&message, agent);
                empty_polls = 0;
                busy += 1;
                if busy < BUSY_MESSAGES {
                    continue;
                }
                agent.report(AgentState::Running, false);
            }
            // Counted by the libOS, and the host asked for a resync.
            Err(_) => {}
            Ok(None) => {
                if busy > 0 {
                    agent.report(AgentState::Running, false);
                }
                empty_polls = empty_polls.saturating_add(1);
                rest(agent, idle, empty_polls);
            }
        }
        busy = 0;
        if agent.revoked() {
            agent.report(AgentState::Stopped, false);
            return Exit::Revoked;
        }
    }
}

/// Waits for the first resync to begin; what to do instead if the core is wanted back before.
#[cold]
fn await_state<D: Doorbell, X>(agent: &mut Agent<'_, D, X>, idle: &mut impl Idle) -> Option<Exit> {
    let mut empty_polls = 0u32;
    loop {
        match agent.pass_over() {
            Passed::Resync => return None,
            Passed::Line if !agent.taken().is_multiple_of(BUSY_MESSAGES) => {
                empty_polls = 0;
                continue;
            }
            // So that a host whose ring is full learns of its room.
            Passed::Line => agent.report(AgentState::Running, false),
            Passed::Nothing => {
                if empty_polls == 0 {
                    agent.report(AgentState::Running, false);
                }
                empty_polls = empty_polls.saturating_add(1);
                rest(agent, idle, empty_polls);
            }
        }
        if agent.revoked() {
            agent.report(AgentState::Stopped, false);
            return Some(Exit::Revoked);
        }
    }
}

/// One empty poll's worth of idleness.
fn rest<D: Doorbell, X>(agent: &mut Agent<'_, D, X>, idle: &mut impl Idle, empty_polls: u32) {
    let mut drowsed = false;
    idle.idle(empty_polls, &mut || {
        drowsed = true;
        agent.report(AgentState::Running, true);
        // Either the host sees that we sleep, or we see its message: it publishes, fences, and looks, as we do.
        fence(Ordering::SeqCst);
        !agent.has_message() && !agent.revoked()
    });
    if drowsed {
        agent.report(AgentState::Running, false);
    }
}
