//! Messages: host → agent, one event in one line (`SEND_MESSAGE`, paper section 3.2).
//!
//! | word | bits 0.. | | | | |
//! | --- | --- | --- | --- | --- | --- |
//! | 0 | kind 8 | cpu 16 | outcome 8 | flags 8 | class 8, priority 8 (signed) |
//! | 1 | task 32 | dropped 24 | | | |
//! | 2 | stamp 32 | zero 24 | | | |
//! | 3 | txn 32 | zero 24 | | | |
//! | 4 | time_ns 56 | | | | |
//! | 5 | argument 56 | | | | |
//! | 6 | first_cpu 16 | cpu_count 16 | zero 24 | | |
//! | 7 | cpu_stamp 32 | group 24 | | | |

use crate::line::{PAYLOAD_MASK, Payload, field};
use crate::outcome::Outcome;

/// The task number that names no task.
pub const TASK_NONE: u32 = u32::MAX;

/// What happened. The events of tasks and CPUs are ghOSt's (GHOST_VERSION 84); the rest are Neap's. Numbers run on
/// without a gap, so that one comparison tells whether a kind is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// Nothing.
    Nop = 0,
    /// A task joined the enclave; it may run if its flags say RUNNABLE.
    TaskNew = 1,
    /// A task ended.
    TaskDead = 2,
    /// A task blocked, and left its CPU.
    TaskBlocked = 3,
    /// A blocked task may run again.
    TaskWakeup = 4,
    /// A running task lost its CPU and may run again.
    TaskPreempt = 5,
    /// A running task gave up its CPU and may run again.
    TaskYield = 6,
    /// A task left the enclave alive.
    TaskDeparted = 7,
    /// A task handed its CPU to another without a decision.
    TaskSwitchto = 8,
    /// The CPUs a task may use have changed.
    TaskAffinityChanged = 9,
    /// A task began to run (only where a txn asked to be told).
    TaskOnCpu = 10,
    /// A task's priority or class has changed.
    TaskPriorityChanged = 11,
    /// A committed decision could not be carried out; the task may run again.
    TaskLatchFailure = 12,
    /// A timer tick on a CPU.
    CpuTick = 13,
    /// The CPU's timer that a decision had armed has expired.
    CpuTimerExpired = 14,
    /// A CPU left idle for something outside the enclave.
    CpuNotIdle = 15,
    /// A CPU came back to the enclave, idle.
    CpuAvailable = 16,
    /// A higher scheduling class took a CPU from the enclave.
    CpuBusy = 17,
    /// The agent of this CPU blocked (an on-host agent only).
    CpuAgentBlocked = 18,
    /// The agent of this CPU woke (an on-host agent only).
    CpuAgentWakeup = 19,
    /// A verdict that no event was there to carry.
    TxnOutcome = 20,
    /// The whole state follows; what the agent holds is void. `argument` is the number of tasks that follow. No message of
    /// another kind but CPU_BUSY comes before the resync's end.
    ResyncBegin = 21,
    /// One task of a resync; RUNNABLE and ON_CPU say its state.
    ResyncTask = 22,
    /// One CPU of a resync: its current task or [`TASK_NONE`], and the last txn taken from its slot.
    ResyncCpu = 23,
    /// The resync is complete.
    ResyncEnd = 24,
}

impl MessageKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 25] = [
        Self::Nop,
        Self::TaskNew,
        Self::TaskDead,
        Self::TaskBlocked,
        Self::TaskWakeup,
        Self::TaskPreempt,
        Self::TaskYield,
        Self::TaskDeparted,
        Self::TaskSwitchto,
        Self::TaskAffinityChanged,
        Self::TaskOnCpu,
        Self::TaskPriorityChanged,
        Self::TaskLatchFailure,
        Self::CpuTick,
        Self::CpuTimerExpired,
        Self::CpuNotIdle,
        Self::CpuAvailable,
        Self::CpuBusy,
        Self::CpuAgentBlocked,
        Self::CpuAgentWakeup,
        Self::TxnOutcome,
        Self::ResyncBegin,
        Self::ResyncTask,
        Self::ResyncCpu,
        Self::ResyncEnd,
    ];

    /// From the wire; none for a number that this version does not know.
    #[must_use]
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        // Spelled out, so that it compiles to a comparison.
        Some(match bits {
            0 => Self::Nop,
            1 => Self::TaskNew,
            2 => Self::TaskDead,
            3 => Self::TaskBlocked,
            4 => Self::TaskWakeup,
            5 => Self::TaskPreempt,
            6 => Self::TaskYield,
            7 => Self::TaskDeparted,
            8 => Self::TaskSwitchto,
            9 => Self::TaskAffinityChanged,
            10 => Self::TaskOnCpu,
            11 => Self::TaskPriorityChanged,
            12 => Self::TaskLatchFailure,
            13 => Self::CpuTick,
            14 => Self::CpuTimerExpired,
            15 => Self::CpuNotIdle,
            16 => Self::CpuAvailable,
            17 => Self::CpuBusy,
            18 => Self::CpuAgentBlocked,
            19 => Self::CpuAgentWakeup,
            20 => Self::TxnOutcome,
            21 => Self::ResyncBegin,
            22 => Self::ResyncTask,
            23 => Self::ResyncCpu,
            24 => Self::ResyncEnd,
            _ => return None,
        })
    }

    /// The kind's name on every output, e.g. `task_new`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nop => "nop",
            Self::TaskNew => "task_new",
            Self::TaskDead => "task_dead",
            Self::TaskBlocked => "task_blocked",
            Self::TaskWakeup => "task_wakeup",
            Self::TaskPreempt => "task_preempt",
            Self::TaskYield => "task_yield",
            Self::TaskDeparted => "task_departed",
            Self::TaskSwitchto => "task_switchto",
            Self::TaskAffinityChanged => "task_affinity_changed",
            Self::TaskOnCpu => "task_on_cpu",
            Self::TaskPriorityChanged => "task_priority_changed",
            Self::TaskLatchFailure => "task_latch_failure",
            Self::CpuTick => "cpu_tick",
            Self::CpuTimerExpired => "cpu_timer_expired",
            Self::CpuNotIdle => "cpu_not_idle",
            Self::CpuAvailable => "cpu_available",
            Self::CpuBusy => "cpu_busy",
            Self::CpuAgentBlocked => "cpu_agent_blocked",
            Self::CpuAgentWakeup => "cpu_agent_wakeup",
            Self::TxnOutcome => "txn_outcome",
            Self::ResyncBegin => "resync_begin",
            Self::ResyncTask => "resync_task",
            Self::ResyncCpu => "resync_cpu",
            Self::ResyncEnd => "resync_end",
        }
    }
}

/// What a message says of its task and CPU, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TaskFlags(pub u8);

impl TaskFlags {
    /// The reporting CPU has nothing to run and waits for a doorbell.
    pub const CPU_IDLE: Self = Self(1);
    /// The task may run.
    pub const RUNNABLE: Self = Self(2);
    /// The task is running on the reporting CPU.
    pub const ON_CPU: Self = Self(4);
    /// The task was running on the reporting CPU until this event.
    pub const WAS_ON_CPU: Self = Self(8);
    /// Messages before this one were dropped for want of space; a resync follows.
    pub const OVERFLOW: Self = Self(16);

    /// Whether all bits of `other` are set.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One event, and the verdict on the last txn that its CPU took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What happened.
    pub kind: MessageKind,
    /// The CPU that reports it, counted within the enclave.
    pub cpu: u16,
    /// The verdict on txn [`Message::txn`], or [`Outcome::None`] if this event took no txn.
    pub outcome: Outcome,
    /// State bits.
    pub flags: TaskFlags,
    /// Service class of the task (0: none given).
    pub class: u8,
    /// Priority of the task; lower is more urgent.
    pub priority: i8,
    /// The task, an index into the host's table for this enclave, or [`TASK_NONE`].
    pub task: u32,
    /// Messages dropped since the last line that came through, saturating at 2^24 − 1.
    pub dropped: u32,
    /// The task's stamp after the event.
    pub stamp: u32,
    /// The last txn taken from the CPU's slot.
    pub txn: u32,
    /// When, on the host's monotonic clock, in ns, modulo 2^56.
    pub time_ns: u64,
    /// By kind: the run time in ns of a task that left its CPU; the number of tasks in a resync. 56 bits.
    pub argument: u64,
    /// First CPU that the task may use.
    pub first_cpu: u16,
    /// Number of CPUs, from the first on, that the task may use; 0 means all. A mask with gaps is reported by its
    /// lowest run of CPUs: the host checks the mask itself.
    pub cpu_count: u16,
    /// The CPU's stamp after the event.
    pub cpu_stamp: u32,
    /// The task's group (a VM, a cgroup), 24 bits, 0 for none.
    pub group: u32,
}

/// A message of a kind, or with an outcome, that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownMessage {
    /// The kind's number.
    pub kind: u8,
    /// The outcome's number.
    pub outcome: u8,
}

impl Message {
    /// A message that says no more than its kind and CPU.
    #[must_use]
    pub const fn new(kind: MessageKind, cpu: u16) -> Self {
        Self {
            kind,
            cpu,
            outcome: Outcome::None,
            flags: TaskFlags(0),
            class: 0,
            priority: 0,
            task: TASK_NONE,
            dropped: 0,
            stamp: 0,
            txn: 0,
            time_ns: 0,
            argument: 0,
            first_cpu: 0,
            cpu_count: 0,
            cpu_stamp: 0,
            group: 0,
        }
    }

    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.kind as u64
                | (self.cpu as u64) << 8
                | (self.outcome as u64) << 24
                | (self.flags.0 as u64) << 32
                | (self.class as u64) << 40
                | (self.priority as u8 as u64) << 48,
            self.task as u64
                | ((if self.dropped > 0xff_ffff { 0xff_ffff } else { self.dropped }) as u64) << 32,
            self.stamp as u64,
            self.txn as u64,
            self.time_ns & PAYLOAD_MASK,
            self.argument & PAYLOAD_MASK,
            self.first_cpu as u64 | (self.cpu_count as u64) << 16,
            self.cpu_stamp as u64 | ((self.group & 0xff_ffff) as u64) << 32,
        ]
    }

    /// From a line's payload (or its words: tags are ignored).
    ///
    /// # Errors
    /// A kind or an outcome that this version does not know.
    #[inline(always)]
    pub fn from_payload(words: &Payload) -> Result<Self, UnknownMessage> {
        let kind = field(words[0], 0, 8) as u8;
        let outcome = field(words[0], 24, 8) as u8;
        let (Some(kind), Some(outcome)) = (MessageKind::from_bits(kind), Outcome::from_bits(outcome)) else {
            return Err(UnknownMessage { kind, outcome });
        };
        Ok(Self {
            kind,
            cpu: field(words[0], 8, 16) as u16,
            outcome,
            flags: TaskFlags(field(words[0], 32, 8) as u8),
            class: field(words[0], 40, 8) as u8,
            priority: field(words[0], 48, 8) as u8 as i8,
            task: words[1] as u32,
            dropped: field(words[1], 32, 24) as u32,
            stamp: words[2] as u32,
            txn: words[3] as u32,
            time_ns: words[4] & PAYLOAD_MASK,
            argument: words[5] & PAYLOAD_MASK,
            first_cpu: words[6] as u16,
            cpu_count: field(words[6], 16, 16) as u16,
            cpu_stamp: words[7] as u32,
            group: field(words[7], 32, 24) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_keeps_its_number() {
        for kind in MessageKind::ALL {
            assert_eq!(MessageKind::from_bits(kind as u8), Some(kind));
        }
        assert!(MessageKind::ALL.iter().enumerate().all(|(i, &kind)| kind as usize == i));
        let known = (0..=255).filter(|&bits| MessageKind::from_bits(bits).is_some()).count();
        assert_eq!(known, MessageKind::ALL.len());
    }

    #[test]
    fn fields_do_not_overlap() {
        let all = Message {
            kind: MessageKind::ResyncEnd,
            cpu: u16::MAX,
            outcome: Outcome::UnknownOperation,
            flags: TaskFlags(u8::MAX),
            class: u8::MAX,
            priority: -1,
            task: u32::MAX,
            dropped: 0xff_ffff,
            stamp: u32::MAX,
            txn: u32::MAX,
            time_ns: PAYLOAD_MASK,
            argument: PAYLOAD_MASK,
            first_cpu: u16::MAX,
            cpu_count: u16::MAX,
            cpu_stamp: u32::MAX,
            group: 0xff_ffff,
        };
        assert_eq!(Message::from_payload(&all.to_payload()), Ok(all));
        for word in all.to_payload() {
            assert!(word <= PAYLOAD_MASK);
        }
        let none = Message::new(MessageKind::Nop, 0);
        for change in [
            Message { cpu: 0xa55a, ..none },
            Message { class: 0x5a, ..none },
            Message { priority: -100, ..none },
            Message { dropped: 0x12_3456, ..none },
            Message { cpu_count: 300, ..none },
            Message { group: 0xab_cdef, ..none },
        ] {
            assert_eq!(Message::from_payload(&change.to_payload()), Ok(change));
        }
    }

    #[test]
    fn an_unknown_kind_or_outcome_is_named() {
        let mut payload = Message::new(MessageKind::TaskNew, 3).to_payload();
        payload[0] = payload[0] & !0xff | 99;
        assert_eq!(Message::from_payload(&payload), Err(UnknownMessage { kind: 99, outcome: 0 }));
        payload[0] = 1 | 200 << 24;
        assert_eq!(Message::from_payload(&payload), Err(UnknownMessage { kind: 1, outcome: 200 }));
    }
}
