//! The host's verdict on a txn.

/// What became of a txn. Everything but [`Outcome::None`] and [`Outcome::Committed`] is a refusal, and a refusal
/// leaves the host's state untouched.
///
/// The reasons are those of ghOSt's `ghost_txn_state`, under the general stamps, and the ones that ghOSt has no
/// word for (affinity, groups, unknown operations).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// No txn was taken from the slot.
    None = 0,
    /// The host enforces the decision.
    Committed = 1,
    /// The agent withdrew it before the host took it (ghOSt: ABORTED).
    Withdrawn = 2,
    /// The task runs on another CPU already (TARGET_ONCPU).
    TaskOnCpu = 3,
    /// The task has changed since the stamp that the txn names (TARGET_STALE).
    TaskStale = 4,
    /// No such task in this enclave any more (TARGET_NOT_FOUND).
    TaskGone = 5,
    /// The task is blocked (TARGET_NOT_RUNNABLE).
    TaskNotRunnable = 6,
    /// The CPU has changed since the stamp that the txn names (AGENT_STALE).
    CpuStale = 7,
    /// The CPU is offline (CPU_OFFLINE).
    CpuOffline = 8,
    /// A higher scheduling class holds the CPU, or a task that the txn does not ask to preempt (CPU_UNAVAIL).
    CpuUnavailable = 9,
    /// Flags that contradict each other or that this version does not know (INVALID_FLAGS).
    InvalidFlags = 10,
    /// A task handle outside the enclave's table (INVALID_TARGET).
    InvalidTask = 11,
    /// The task or CPU belongs to another enclave, or is not the agent's to schedule (NOT_PERMITTED).
    NotPermitted = 12,
    /// The txn names another CPU than its slot's, or one outside the enclave (INVALID_CPU).
    InvalidCpu = 13,
    /// The agent that wrote it has ended (NO_AGENT).
    NoAgent = 14,
    /// Its version is not the negotiated one (UNSUPPORTED_VERSION).
    UnsupportedVersion = 15,
    /// An earlier failure of its agent voids all that it had staged (POISONED).
    Poisoned = 16,
    /// The task may not run on this CPU.
    Affinity = 17,
    /// Another member of its group was refused.
    GroupFailed = 18,
    /// The group's shape is wrong: two sizes, a member twice, or more members than CPUs.
    InvalidGroup = 19,
    /// An operation that this version does not know.
    UnknownOperation = 20,
}

impl Outcome {
    /// Every outcome, in the order of its number.
    pub const ALL: [Self; 21] = [
        Self::None,
        Self::Committed,
        Self::Withdrawn,
        Self::TaskOnCpu,
        Self::TaskStale,
        Self::TaskGone,
        Self::TaskNotRunnable,
        Self::CpuStale,
        Self::CpuOffline,
        Self::CpuUnavailable,
        Self::InvalidFlags,
        Self::InvalidTask,
        Self::NotPermitted,
        Self::InvalidCpu,
        Self::NoAgent,
        Self::UnsupportedVersion,
        Self::Poisoned,
        Self::Affinity,
        Self::GroupFailed,
        Self::InvalidGroup,
        Self::UnknownOperation,
    ];

    /// From the wire; none for a number that this version does not know.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        // Spelled out, so that it compiles to a comparison and not to a table.
        Some(match bits {
            0 => Self::None,
            1 => Self::Committed,
            2 => Self::Withdrawn,
            3 => Self::TaskOnCpu,
            4 => Self::TaskStale,
            5 => Self::TaskGone,
            6 => Self::TaskNotRunnable,
            7 => Self::CpuStale,
            8 => Self::CpuOffline,
            9 => Self::CpuUnavailable,
            10 => Self::InvalidFlags,
            11 => Self::InvalidTask,
            12 => Self::NotPermitted,
            13 => Self::InvalidCpu,
            14 => Self::NoAgent,
            15 => Self::UnsupportedVersion,
            16 => Self::Poisoned,
            17 => Self::Affinity,
            18 => Self::GroupFailed,
            19 => Self::InvalidGroup,
            20 => Self::UnknownOperation,
            _ => return None,
        })
    }

    /// Whether the host took the txn and refused it.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::None | Self::Committed)
    }

    /// Whether the task named may still run and is worth another decision: it has changed since, or the refusal lay with
    /// the CPU, the group or the agent.
    #[must_use]
    pub const fn task_remains(self) -> bool {
        matches!(
            self,
            Self::Withdrawn
                | Self::TaskStale
                | Self::CpuStale
                | Self::CpuOffline
                | Self::CpuUnavailable
                | Self::GroupFailed
                | Self::Affinity
                | Self::Poisoned
                | Self::NoAgent
        )
    }

    /// The outcome's name on every output, e.g. `task_stale`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Committed => "committed",
            Self::Withdrawn => "withdrawn",
            Self::TaskOnCpu => "task_on_cpu",
            Self::TaskStale => "task_stale",
            Self::TaskGone => "task_gone",
            Self::TaskNotRunnable => "task_not_runnable",
            Self::CpuStale => "cpu_stale",
            Self::CpuOffline => "cpu_offline",
            Self::CpuUnavailable => "cpu_unavailable",
            Self::InvalidFlags => "invalid_flags",
            Self::InvalidTask => "invalid_task",
            Self::NotPermitted => "not_permitted",
            Self::InvalidCpu => "invalid_cpu",
            Self::NoAgent => "no_agent",
            Self::UnsupportedVersion => "unsupported_version",
            Self::Poisoned => "poisoned",
            Self::Affinity => "affinity",
            Self::GroupFailed => "group_failed",
            Self::InvalidGroup => "invalid_group",
            Self::UnknownOperation => "unknown_operation",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_table_agree() {
        for (i, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, i);
            assert_eq!(Outcome::from_bits(i as u8), Some(outcome));
        }
        for bits in Outcome::ALL.len()..256 {
            assert_eq!(Outcome::from_bits(bits as u8), None);
        }
    }
}
