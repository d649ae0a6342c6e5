//! An agent's loop.

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
            // Counted and reported by the libOS.
            Err(_) => continue,
            Ok(None) => {
                empty_polls = empty_polls.saturating_add(1);
                rest(agent, policy, idle, empty_polls, busy > 0);
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
fn rest<D: Doorbell, X>(
    agent: &mut Agent<'_, D, X>,
    policy: &mut impl Policy,
    idle: &mut impl Idle,
    empty_polls: u32,
    news: bool,
) {
    if news {
        agent.report(AgentState::Running, false);
    }
    let mut drowsed = false;
    idle.idle(empty_polls, &mut || {
        drowsed = true;
        agent.report(AgentState::Running, true);
        match agent.poll_message() {
            Ok(Some(message)) => {
                policy.message(&message, agent);
                false
            }
            Ok(None) => !agent.revoked(),
            Err(_) => false,
        }
    });
    if drowsed {
        agent.report(AgentState::Running, false);
    }
}
