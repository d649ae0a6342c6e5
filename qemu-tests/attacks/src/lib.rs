//! Hostile agents: each tries one thing that no agent may do. `cargo xtask test` runs them beside good ones, and says
//! for each what has to become of it.
//!
//! 1. An agent here links what good agents link, and what it may not do is written out in `neap_hal::cpu::forbidden`.
//! 2. What it can't know (where the runtime lies, whose a CPU is) its host tells it: nothing is to be safe by being
//!    unknown.
//! 3. One that gets away with it panics with the words "went unpunished".
#![cfg_attr(target_os = "none", no_std)]

pub mod told;

pub use told::{STACK_BYTES, Told};

#[cfg(target_os = "none")]
mod liar;
#[cfg(target_os = "none")]
mod life;
#[cfg(target_os = "none")]
pub mod traces;
#[cfg(target_os = "none")]
pub use liar::Liar;
#[cfg(target_os = "none")]
pub use life::{live, live_beside, own_data, random, say, wait_for_leave};

/// Makes `fn(&Given, &Told)` the agent's whole life, and a `fn(&Told)` what it does on each of its other cores. Whichever
/// returns went unpunished.
#[macro_export]
macro_rules! attack {
    ($crime:expr) => {
        $crate::attack!($crime, |_| ());
    };
    ($crime:expr, $beside:expr) => {
        #[cfg(target_os = "none")]
        mod card {
            ::neap_agent_start::agent!(main, beside);

            fn main(
                given: ::neap_agent_start::Given,
            ) -> Result<::neap_agent::Exit, ::neap_agent::AgentError> {
                $crate::live(&given, $crime)
            }

            fn beside(_core: usize) {
                $crate::live_beside($beside)
            }
        }

        #[cfg(not(target_os = "none"))]
        fn main() {}
    };
}
