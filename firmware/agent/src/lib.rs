//! The libOS: what an agent links to hear from its host and to decide (the paper's Table 1, right column).
//!
//! 1. It holds no policy and knows no hardware: doorbells and sleep come in as traits, memory as lines.
//! 2. From message to doorbell there is no trap, no allocation, no panic and no loop without a bound.
//! 3. The host is the source of truth. What the agent cannot make sense of, it counts, and asks for a resync.
//!
//! The same code, unchanged, runs on an IPU core, as a process on the host, and in tests.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod agent;
mod run;

pub use agent::{Agent, AgentError, Bindings};
pub use run::{Exit, run, start};

pub use neap_abi::Clock;
use neap_abi::{Message, Txn};

/// Makes the agent of a policy: its number in a host's control line, and the function that runs it, over private memory of one
/// type. The crate that asks for it depends on `neap-abi` and `neap-queue` beside this one.
#[macro_export]
macro_rules! agent_of {
    ($name:literal, $memory:ty, $make:expr) => {
        /// The policy's number in a host's control line.
        pub const POLICY: u32 = neap_abi::control::policy_id($name);

        /// Runs the policy over `messages` (a fresh ring) until the supervisor wants the core back. `memory` holds one entry for
        /// each task number that the enclave may use, and as many as the policy is made for.
        ///
        /// # Errors
        /// Bindings that make no agent, or memory of another size; nothing has been decided then.
        pub fn start<D: $crate::Doorbell, I: $crate::Idle>(
            bindings: $crate::Bindings<'_, D>,
            messages: &[neap_queue::Line],
            memory: &mut [$memory],
            idle: &mut I,
        ) -> Result<$crate::Exit, $crate::AgentError> {
            $crate::start(bindings, messages, memory, idle, $make)
        }
    };
}

/// Rings host CPUs.
pub trait Doorbell {
    /// Raises the vector of host CPU `cpu`. All lines published before are visible to the host when it arrives.
    fn ring(&self, cpu: u16);

    /// The counter by which the libOS keeps its txns' [ledger](neap_abi::ledger): whoever has the doorbell has what it is
    /// timed by. An access, not a conversion: it is asked for twice from a message to the doorbell. Where there is
    /// none, or what happens must be the same each time, it is 0, and no ledger is kept.
    #[inline(always)]
    fn ticks(&self) -> u64 {
        0
    }
}

/// What an agent does when it has heard nothing.
pub trait Idle {
    /// Called after each empty poll, with the number of empty polls in a row. Spins, or sleeps until the host rings or
    /// a timer fires: before it sleeps it calls `drowse`, which tells the host so and says whether all is still
    /// quiet. It may sleep only then.
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool);

    /// The time in ns since some moment, on a clock that never goes back. Asked for only where a policy wants to know it.
    fn now_ns(&mut self) -> u64;
}

/// Where a policy puts its decisions.
pub trait Decide {
    /// A txn that runs `task`, as seen at `stamp`, on `cpu` (`TXN_CREATE`).
    #[inline(always)]
    fn txn_create(&self, cpu: u16, task: u32, stamp: u32) -> Txn {
        Txn::run(cpu, task, stamp)
    }

    /// Publishes txns, each in its CPU's decision slot, then rings those CPUs whose txn is not prestaged
    /// (`TXNS_COMMIT`). Returns the id of the last.
    ///
    /// # Errors
    /// A CPU outside the enclave, or one that has taken nothing for too long. Txns before the one at fault are
    /// published, it and those after are not.
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError>;

    /// Publishes txns that commit all or none. They are given a group number of their own.
    ///
    /// # Errors
    /// As [`Decide::txns_commit`], and no member is published then; a group of none or more than 255 members.
    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError>;

    /// Rings a CPU whose slot holds a txn that it passed by.
    fn nudge(&mut self, cpu: u16);

    /// Asks the host for its whole state.
    fn resync(&mut self);
}

/// A policy: told of each message, it decides. It keeps no clock and touches no hardware.
pub trait Policy {
    /// Whether it wants to be told the time. For one that does not, nothing is asked and nothing is spent.
    const TIMED: bool = false;

    /// Takes note of one message and decides what follows from it. Bounded: no loop over tasks.
    fn message(&mut self, message: &Message, decide: &mut impl Decide);

    /// Takes note of the time, in ns since some moment, which never goes back, and decides what it was waited for with; one
    /// decision at most. Returns whether a moment is waited for: then the agent stays awake.
    ///
    /// By the agent's own clock it is called after each message and after each empty poll; by the messages' before each
    /// message, and never else ([`Clock`]).
    fn time(&mut self, now_ns: u64, decide: &mut impl Decide) -> bool {
        let _ = (now_ns, decide);
        false
    }
}
