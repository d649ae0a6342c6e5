//! An agent's loop.

use core::sync::atomic::{Ordering, fence};

use neap_abi::AgentState;

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
#[inline(always)]
pub fn run<D: Doorbell, X>(
    agent: &mut Agent<'_, D, X>,
    policy: &mut impl Policy,
    idle: &mut impl Idle,
) -> Exit {
    agent.report(AgentState::Running, false);
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
