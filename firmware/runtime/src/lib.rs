//! The exokernel: it boots the IPU, binds an agent to what its enclave owns, and takes it back.
//!
//! 1. Core 0 supervises. Every other core belongs to an agent, or sleeps until one needs it.
//! 2. What an agent may touch is in its [`Grant`](agents::Grant) and nowhere else. How it is entered is one function's
//!    business, so that another exception level is a change to that function.
//! 3. No core waits for another with a lock on the path from message to doorbell. Locks are for start and for the
//!    supervisor.
//! 4. The supervisor allocates; an agent's core that does so ends.
//! 5. A core that ends says why in its epitaph, and nothing else ends with it. The supervisor says it on the console
//!    too.
//!
//! The host reaches a core by the vector of the core's number on our function: vector 0 is the supervisor's, which looks
//! at the host's control line; vector *n* wakes the agent on core *n*.
//!
//! What needs no card, the order of a session's events, is [`session`], and tested on any machine.
#![cfg_attr(not(test), no_std)]

#[cfg(target_os = "none")]
extern crate alloc;

pub mod session;

#[cfg(target_os = "none")]
pub mod agents;
#[cfg(target_os = "none")]
pub mod cores;
#[cfg(target_os = "none")]
pub mod end;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod idle;
#[cfg(target_os = "none")]
pub mod log;
#[cfg(target_os = "none")]
pub mod supervisor;
#[cfg(target_os = "none")]
pub mod window;
