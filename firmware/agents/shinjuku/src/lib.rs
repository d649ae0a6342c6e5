//! The Shinjuku agent: policy and libOS put together, as [the FIFO agent](../../fifo/src/lib.rs) is.
#![no_std]
#![forbid(unsafe_code)]

use neap_agent::{AgentError, Bindings, Doorbell, Exit, Idle};
use neap_policies::{Shinjuku, TASKS, Task};
use neap_queue::Line;

/// The policy's number in a host's control line.
pub const POLICY: u32 = neap_abi::control::policy_id("shinjuku");

/// Runs Shinjuku over `messages` (a fresh ring) until the supervisor wants the core back. `memory` holds [`TASKS`] entries, one
/// for each task number that the enclave may use.
///
/// # Errors
/// Bindings that make no agent; nothing has been decided then.
pub fn start<D: Doorbell, I: Idle>(
    bindings: Bindings<'_, D>,
    messages: &[Line],
    memory: &mut [Task],
    idle: &mut I,
) -> Result<Exit, AgentError> {
    neap_agent::start(bindings, messages, memory, idle, Shinjuku::<TASKS>::new)
}
