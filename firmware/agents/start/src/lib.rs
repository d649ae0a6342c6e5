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
pub use card::{Bell, Given, Private, Sleep, begin, rest};
#[cfg(target_os = "none")]
pub use neap_agent::{AgentError, Exit};

/// Makes an agent of a policy's `start` function, with private memory of its own: its type, and what it holds at first.
#[macro_export]
macro_rules! policy {
    ($start:path, $memory:ty = $fresh:expr) => {
        $crate::agent!(policy_agent);

        static POLICY_MEMORY: $crate::Private<$memory> = $crate::Private::new($fresh);

        fn policy_agent(given: $crate::Given) -> Result<$crate::Exit, $crate::AgentError> {
            let memory = POLICY_MEMORY.take().map_or(&mut [][..], |memory| memory);
            let mut idle = given.idle;
            $start(given.bindings, given.messages, memory, &mut idle)
        }
    };
}

/// Makes `fn(Given) -> Result<Exit, AgentError>` the agent, on the first of its cores. A second function, `fn(usize)`, runs
/// on each of the others, if it has any, and is told which it is; when it returns, its core sleeps until the agent
/// ends.
#[macro_export]
macro_rules! agent {
    ($main:path) => {
        $crate::agent!($main, $crate::rest);
    };
    ($main:path, $other:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn neap_agent_entry(core: usize) -> ! {
            $crate::begin(core, $main, $other)
        }
    };
}
