//! Control lines: how host and IPU meet, part and meet again.
//!
//! Each side has one line in the window that only it writes; the other polls it, off the hot path. A line's tag moves
//! with every change, as in a decision slot.

use crate::line::{Payload, field};
use crate::version::{VERSION, Version};

/// Incarnations are counted modulo 2^24, from 1 on; 0 is no agent.
pub const INCARNATION_MASK: u64 = 0xff_ffff;

/// Whether the agent `incarnation` came after the agent `other`.
#[must_use]
pub const fn came_after(incarnation: u32, other: u32) -> bool {
    let ahead = incarnation.wrapping_sub(other) as u64 & INCARNATION_MASK;
    ahead != 0 && ahead <= INCARNATION_MASK / 2
}

/// What the host asks of the IPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HostCommand {
    /// Nothing yet.
    None = 0,
    /// Start (or start afresh) an agent for the session.
    Attach = 1,
    /// End the session's agent; the host goes away.
    Detach = 2,
}

/// Whose time a policy that wants to know it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Clock {
    /// The agent's core's own, between messages too.
    #[default]
    Own = 0,
    /// That of the messages ([`crate::Message::time_ns`]), before each and never between two: what is decided rests on the
    /// messages alone, and the same messages give the same decisions anywhere. An IPU that knows it says so
    /// ([`crate::hello::feature::MESSAGE_CLOCK`]); another passes the wish over.
    Messages = 1,
}

/// The host's control line.
///
/// | word | |
/// | --- | --- |
/// | 0 | command 8, peer 16, cpus 16, clock 1 (by a feature bit) |
/// | 1 | session 32 |
/// | 2 | version 32 |
/// | 3 | features 56 |
/// | 4 | policy 32 |
/// | 5 | confirmed 24 (since 1.2) |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostControl {
    /// What is asked.
    pub command: HostCommand,
    /// The host's peer number in the enclave's domain: where doorbells go.
    pub peer: u16,
    /// Host CPUs in the enclave.
    pub cpus: u16,
    /// Number of this attachment: another number is another host, or the same one come back.
    pub session: u32,
    /// The host's ABI version.
    pub version: Version,
    /// Features that the host knows, from the hello page's.
    pub features: u64,
    /// The policy asked for, by [`policy_id`].
    pub policy: u32,
    /// The last incarnation that the host is content with: it has committed a decision of that agent, or owes it none.
    /// 24 bits.
    pub confirmed: u32,
    /// Whose time the policy is told.
    pub clock: Clock,
}

/// A policy's number on the wire: the first four bytes of its name, little-endian; of a name with hyphens the first two bytes
/// and the two behind the first hyphen, so that `fifo-per-core` is another than `fifo`.
#[must_use]
pub const fn policy_id(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let mut hyphen = 0;
    while hyphen < bytes.len() && bytes[hyphen] != b'-' {
        hyphen += 1;
    }
    let hyphenated = hyphen < bytes.len();
    let (mut id, mut taken, mut i) = (0, 0, 0);
    while i < bytes.len() && taken < 4 {
        let passed_over = hyphenated && (i == hyphen || (i >= 2 && i < hyphen));
        if !passed_over {
            id |= (bytes[i] as u32) << (8 * taken);
            taken += 1;
        }
        i += 1;
    }
    id
}

impl HostControl {
    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.command as u64
                | (self.peer as u64) << 8
                | (self.cpus as u64) << 24
                | (self.clock as u64) << 40,
            self.session as u64,
            self.version.to_bits() as u64,
            self.features & crate::line::PAYLOAD_MASK,
            self.policy as u64,
            self.confirmed as u64 & INCARNATION_MASK,
            0,
            0,
        ]
    }

    /// From a line's payload; none for an unknown command.
    #[must_use]
    pub const fn from_payload(words: &Payload) -> Option<Self> {
        let command = match field(words[0], 0, 8) {
            0 => HostCommand::None,
            1 => HostCommand::Attach,
            2 => HostCommand::Detach,
            _ => return None,
        };
        Some(Self {
            command,
            peer: field(words[0], 8, 16) as u16,
            cpus: field(words[0], 24, 16) as u16,
            session: words[1] as u32,
            version: Version::from_bits(words[2] as u32),
            features: words[3] & crate::line::PAYLOAD_MASK,
            policy: words[4] as u32,
            confirmed: (words[5] & INCARNATION_MASK) as u32,
            clock: if field(words[0], 40, 1) == 1 { Clock::Messages } else { Clock::Own },
        })
    }
}

impl HostControl {
    /// Whether an IPU of version `ours`, with `slots` decision slots and the `policies` that its image holds, takes this
    /// host: the version that both speak.
    ///
    /// # Errors
    /// The state that says why not.
    pub fn admit(&self, ours: Version, slots: u16, policies: &[u32]) -> Result<Version, AgentState> {
        let version = ours.negotiate(self.version).map_err(|_| AgentState::RefusedVersion)?;
        if self.cpus == 0 || self.cpus > slots {
            return Err(AgentState::RefusedCpus);
        }
        if !policies.contains(&self.policy) {
            return Err(AgentState::RefusedPolicy);
        }
        Ok(version)
    }
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AgentState {
    /// No host has attached.
    Waiting = 0,
    /// The agent runs.
    Running = 1,
    /// The agent was asked to stop, and has.
    Stopped = 2,
    /// The agent ended by a fault; its epitaph says why.
    Dead = 3,
    /// The host's ABI version is too far from ours.
    RefusedVersion = 4,
    /// The host asked for no CPU, or for more than there are slots.
    RefusedCpus = 5,
    /// The host asked for a policy that this image does not have.
    RefusedPolicy = 6,
    /// The host's command is not one that this version knows.
    RefusedCommand = 7,
    /// The agent ended so often that the supervisor starts it no more in this session (since 1.2).
    GivenUp = 8,
}

impl AgentState {
    /// Every state, in the order of its number.
    pub const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Running,
        Self::Stopped,
        Self::Dead,
        Self::RefusedVersion,
        Self::RefusedCpus,
        Self::RefusedPolicy,
        Self::RefusedCommand,
        Self::GivenUp,
    ];
}

/// The IPU's control line: the session's state and what the agent counts. Written when the agent falls idle and when
/// its state changes, not on the hot path.
///
/// | word | |
/// | --- | --- |
/// | 0 | state 8, core 8, asleep 1, zero 7, peer 16, vector 16 |
/// | 1 | session 32 |
/// | 2 | version 32 |
/// | 3 | credits 32 |
/// | 4 | resyncs 32 |
/// | 5 | decisions 56 |
/// | 6 | unknown 32, incarnation 24 (since 1.2) |
/// | 7 | doorbells 56 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentControl {
    /// Where the agent stands.
    pub state: AgentState,
    /// The IPU core that the agent owns.
    pub core: u8,
    /// The agent sleeps: ring to wake it.
    pub asleep: bool,
    /// The IPU's peer number in the enclave's domain: where the host rings.
    pub peer: u16,
    /// The vector that wakes this agent's core.
    pub vector: u16,
    /// The session that this answers.
    pub session: u32,
    /// The version negotiated; the IPU's own where it refused.
    pub version: Version,
    /// Messages consumed in all, modulo 2^32.
    pub credits: u32,
    /// How often the agent has asked for a resync; the host answers each increase with one.
    pub resyncs: u32,
    /// Txns published.
    pub decisions: u64,
    /// Messages of unknown kind.
    pub unknown: u32,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Which agent of the enclave this is, counted since boot: another number is another agent. 24 bits.
    pub incarnation: u32,
}

impl AgentControl {
    /// No agent, and nothing counted.
    pub const NOTHING: Self = Self {
        state: AgentState::Waiting,
        core: 0,
        asleep: false,
        peer: 0,
        vector: 0,
        session: 0,
        version: VERSION,
        credits: 0,
        resyncs: 0,
        decisions: 0,
        unknown: 0,
        doorbells: 0,
        incarnation: 0,
    };

    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.state as u64
                | (self.core as u64) << 8
                | (self.asleep as u64) << 16
                | (self.peer as u64) << 24
                | (self.vector as u64) << 40,
            self.session as u64,
            self.version.to_bits() as u64,
            self.credits as u64,
            self.resyncs as u64,
            self.decisions & crate::line::PAYLOAD_MASK,
            self.unknown as u64 | (self.incarnation as u64 & INCARNATION_MASK) << 32,
            self.doorbells & crate::line::PAYLOAD_MASK,
        ]
    }

    /// From a line's payload; none for an unknown state.
    #[must_use]
    pub fn from_payload(words: &Payload) -> Option<Self> {
        Some(Self {
            state: *AgentState::ALL.get(field(words[0], 0, 8) as usize)?,
            core: field(words[0], 8, 8) as u8,
            asleep: field(words[0], 16, 1) == 1,
            peer: field(words[0], 24, 16) as u16,
            vector: field(words[0], 40, 16) as u16,
            session: words[1] as u32,
            version: Version::from_bits(words[2] as u32),
            credits: words[3] as u32,
            resyncs: words[4] as u32,
            decisions: words[5] & crate::line::PAYLOAD_MASK,
            unknown: words[6] as u32,
            doorbells: words[7] & crate::line::PAYLOAD_MASK,
            incarnation: field(words[6], 32, 24) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_numbers_of_their_own() {
        let id = |text: &[u8; 4]| u32::from_le_bytes(*text);
        assert_eq!((policy_id("fifo"), policy_id("vm"), policy_id("")), (id(b"fifo"), id(b"vm\0\0"), 0));
        assert_eq!((policy_id("shinjuku"), policy_id("mq-shinjuku")), (id(b"shin"), id(b"mqsh")));
        assert_eq!((policy_id("fifo-per-core"), policy_id("a-b")), (id(b"fipe"), id(b"ab\0\0")));
    }

    #[test]
    fn host_line_round_trips() {
        for command in [HostCommand::None, HostCommand::Attach, HostCommand::Detach] {
            let line = HostControl {
                command,
                peer: 65_535,
                cpus: 256,
                session: u32::MAX,
                version: VERSION,
                features: 5,
                policy: policy_id("fifo"),
                confirmed: 0xff_ffff,
                clock: Clock::Messages,
            };
            assert_eq!(HostControl::from_payload(&line.to_payload()), Some(line));
            let usual = HostControl { clock: Clock::Own, ..line };
            assert_eq!(HostControl::from_payload(&usual.to_payload()), Some(usual));
        }
        assert_eq!(HostControl::from_payload(&[9, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn agents_come_after_each_other_though_their_numbers_come_round() {
        for (later, earlier) in [(2, 1), (1, 0xff_ffff), (0x7f_ffff, 1), (5, 0xff_0000)] {
            assert!(came_after(later, earlier) && !came_after(earlier, later), "{later:#x} {earlier:#x}");
        }
        assert!(!came_after(7, 7));
    }

    #[test]
    fn a_host_is_admitted_or_told_why_not() {
        let host = HostControl {
            command: HostCommand::Attach,
            peer: 1,
            cpus: 4,
            session: 1,
            version: VERSION,
            features: 0,
            policy: policy_id("fifo"),
            confirmed: 0,
            clock: Clock::Own,
        };
        let admit = |host: HostControl| host.admit(VERSION, 8, &[policy_id("fifo")]);
        assert_eq!(admit(host), Ok(VERSION));
        let older = Version { minor: VERSION.minor - 1, ..VERSION };
        assert_eq!(admit(HostControl { version: older, ..host }), Ok(older));
        let far = Version { major: 9, ..VERSION };
        assert_eq!(admit(HostControl { version: far, ..host }), Err(AgentState::RefusedVersion));
        assert_eq!(admit(HostControl { cpus: 0, ..host }), Err(AgentState::RefusedCpus));
        assert_eq!(admit(HostControl { cpus: 9, ..host }), Err(AgentState::RefusedCpus));
        assert_eq!(admit(HostControl { policy: policy_id("lifo"), ..host }), Err(AgentState::RefusedPolicy));
    }

    #[test]
    fn agent_line_round_trips() {
        for state in AgentState::ALL {
            let line = AgentControl {
                state,
                core: 15,
                asleep: true,
                peer: 65_535,
                vector: 0x5aa5,
                session: 7,
                version: VERSION,
                credits: u32::MAX,
                resyncs: 3,
                decisions: 1 << 40,
                unknown: 2,
                doorbells: 1 << 41,
                incarnation: 0xff_fffe,
            };
            assert_eq!(AgentControl::from_payload(&line.to_payload()), Some(line));
        }
        assert_eq!(AgentControl::from_payload(&[99, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
