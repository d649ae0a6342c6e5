//! How an agent begins and ends at EL0: from the grant page to bindings, and from a panic to an epitaph.
//!
//! 1. An agent finds what it is bound to at fixed addresses ([`neap_abi::grant::space`]); everything else is not mapped.
//!    What it makes of them here, it makes once.
//! 2. It makes system calls to sleep and to end, and none in between.
//! 3. It links nothing of the runtime's.
//!
//! An agent is a program of two lines:
//!
//! ```ignore
//! neap_agent_start::agent!(main);
//! fn main(given: neap_agent_start::Given) -> Result<Exit, AgentError> { .. }
//! ```
#![no_std]

#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
pub use card::{Bell, Given, Private, Sleep, begin};

/// Makes `fn(Given) -> Result<Exit, AgentError>` the agent.
#[macro_export]
macro_rules! agent {
    ($main:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn neap_agent_entry() -> ! {
            $crate::begin($main)
        }
    };
}
