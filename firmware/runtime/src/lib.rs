//! The exokernel: it boots the IPU, binds an agent to what its enclave owns, and takes it back.
//!
//! 1. Core 0 supervises, at EL1. Every other core belongs to an agent, at EL0, or sleeps until one needs it.
//! 2. What an agent may touch is mapped in its [`space`] and nowhere else; what it may ask for is two system calls, and
//!    between message and doorbell it makes none.
//! 3. An agent is asked for its core, and then it is taken. Either way the core is the runtime's again and nothing else
//!    has stopped.
//! 4. The supervisor allocates; an agent's core that does so in the runtime ends.
//! 5. Who ends says why in an epitaph. Only the supervisor's own end is everybody's.
//!
//! Enclave *i* has the window of NUMA node *i* + 1, the *i*th doorbell function and core *i* + 1. The host reaches a core by
//! the vector of the core's number on the enclave's function: vector 0 is the supervisor's, which looks at the host's
//! lines; vector *n* wakes the agent on core *n*.
//!
//! What needs no card is tested on any machine: the order of an enclave's events ([`enclave`]) and the pool of pages
//! ([`pages`]).
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod enclave;
pub mod pages;

#[cfg(target_os = "none")]
pub mod agents;
#[cfg(target_os = "none")]
pub mod audit;
#[cfg(target_os = "none")]
pub mod bundle;
#[cfg(target_os = "none")]
pub mod card_disk;
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
pub mod space;
#[cfg(target_os = "none")]
pub mod supervisor;
#[cfg(target_os = "none")]
pub mod window;
