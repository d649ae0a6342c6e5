//! The policies that are shipped, and the agents of each for this process: the very ones that the IPU runs.

use neap_abi::control::policy_id;
use neap_agent::{AgentError, Bindings, Doorbell, Exit, Idle};
use neap_policies::Task;
use neap_queue::Line;

/// Their names.
pub const POLICIES: [&str; 5] = ["fifo", "fifo-per-core", "shinjuku", "mq-shinjuku", "vm"];

/// The one whose agent the firmware brings with it. The others' are loaded: its image has no room for them.
pub const BUNDLED: &str = "fifo";

/// Their numbers, in the same order.
pub const NUMBERS: [u32; POLICIES.len()] = [
    neap_agent_fifo::POLICY,
    neap_agent_fifo_per_core::POLICY,
    neap_agent_shinjuku::POLICY,
    neap_agent_mq_shinjuku::POLICY,
    neap_agent_vm::POLICY,
];

/// The name of a policy by its number.
#[must_use]
pub fn name(policy: u32) -> Option<&'static str> {
    POLICIES.into_iter().find(|name| policy_id(name) == policy)
}

/// Runs the agent of a policy in this thread, as its `start` does; FIFO's where there is no such policy.
///
/// # Errors
/// As those functions.
pub fn start<D: Doorbell, I: Idle>(
    policy: u32,
    bindings: Bindings<'_, D>,
    messages: &[Line],
    memory: &mut [Task],
    idle: &mut I,
) -> Result<Exit, AgentError> {
    match policy {
        neap_agent_fifo_per_core::POLICY => neap_agent_fifo_per_core::start(bindings, messages, memory, idle),
        neap_agent_shinjuku::POLICY => neap_agent_shinjuku::start(bindings, messages, memory, idle),
        neap_agent_mq_shinjuku::POLICY => neap_agent_mq_shinjuku::start(bindings, messages, memory, idle),
        neap_agent_vm::POLICY => neap_agent_vm::start(bindings, messages, memory, idle),
        _ => neap_agent_fifo::start(bindings, messages, memory, idle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_and_a_number_of_its_own() {
        for (place, policy) in NUMBERS.into_iter().enumerate() {
            assert_eq!(name(policy), Some(POLICIES[place]));
            assert_eq!(NUMBERS.iter().filter(|&&other| other == policy).count(), 1);
        }
        assert_eq!(name(policy_id("lifo")), None);
    }
}
