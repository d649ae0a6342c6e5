//! What a host notices of its enclaves' agents, and what it does about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who decides for an enclave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Its agent on the IPU.
    #[default]
    Ipu,
    /// The same policy as an agent on the host.
    OnHost,
    /// The host itself, in the order of arrival.
    Host,
}

impl Level {
    /// Its number, from the best.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name on every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipu => "ipu",
            Self::OnHost => "on_host",
            Self::Host => "host",
        }
    }
}

/// Why an agent is not relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It has ended, and no other has been started in time.
    AgentDead,
    /// It owes a decision for too long.
    AgentLate,
    /// It rings far more often than it decides.
    AgentFloods,
    /// It broke the protocol.
    AgentPoisoned,
    /// The IPU has left the link, or was reset.
    LinkDown,
    /// Nothing is wrong with the agent: a host CPU, or the host's watch, did not get its time.
    HostCpuHogged,
}

impl Fault {
    /// Its name on every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AgentDead => "agent_dead",
            Self::AgentLate => "agent_late",
            Self::AgentFloods => "agent_floods",
            Self::AgentPoisoned => "agent_poisoned",
            Self::LinkDown => "link_down",
            Self::HostCpuHogged => "host_cpu_hogged",
        }
    }

    /// What happened, as a clause.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::AgentDead => "the agent ended",
            Self::AgentLate => "the agent owed a decision for too long",
            Self::AgentFloods => "the agent rang without deciding",
            Self::AgentPoisoned => "the agent broke the protocol",
            Self::LinkDown => "the IPU left the link",
            Self::HostCpuHogged => "a host CPU was hogged",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.in_words())
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum EventKind {
    /// The host attached, and this agent answered.
    Attached {
        /// The agent.
        incarnation: u32,
    },
    /// The end of an agent was noticed.
    AgentEnded {
        /// The agent.
        incarnation: u32,
    },
    /// An agent was seen running that was not there before.
    AgentSeen {
        /// The agent.
        incarnation: u32,
    },
    /// The first decision of an agent was committed.
    FirstDecision {
        /// The agent.
        incarnation: u32,
    },
    /// The watch found something wrong.
    Fault {
        /// The agent of the time.
        incarnation: u32,
        /// What.
        fault: Fault,
    },
    /// Somebody else decides from now on.
    Fallback {
        /// Who did until now.
        from: Level,
        /// Who does.
        to: Level,
        /// Why.
        fault: Fault,
    },
    /// The IPU decides again.
    Comeback {
        /// Who did until now.
        from: Level,
        /// The agent that does.
        incarnation: u32,
    },
    /// A CPU joined the enclave.
    CpuJoined {
        /// The CPU.
        cpu: u16,
    },
    /// A CPU left the enclave.
    CpuLeft {
        /// The CPU.
        cpu: u16,
    },
}

/// Something that happened, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Since the host began, in µs.
    pub at_us: u64,
    /// To which enclave.
    pub enclave: u16,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Events kept; what comes after is counted and not kept.
const EVENTS_MAX: usize = 1 << 17;

/// An enclave's events, in order.
#[derive(Clone, Debug, Default)]
pub struct Events {
    kept: Vec<Event>,
    dropped: u64,
}

impl Events {
    /// Takes note of an event.
    pub fn push(&mut self, event: Event) {
        if self.kept.len() < EVENTS_MAX {
            self.kept.push(event);
        } else {
            self.dropped += 1;
        }
    }

    /// Those kept.
    #[must_use]
    pub fn kept(&self) -> &[Event] {
        &self.kept
    }

    /// How many were not kept.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
