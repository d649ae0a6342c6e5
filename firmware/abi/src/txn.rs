//! Txns: agent → host, one decision in one line, with the stamps that it rests on (paper section 3.2).
//!
//! | word | bits 0.. | | | | |
//! | --- | --- | --- | --- | --- | --- |
//! | 0 | operation 8 | cpu 16 | flags 16 | group_size 8 | zero 8 |
//! | 1 | task 32 | group 24 | | | |
//! | 2 | stamp 32 | seen 24 | | | |
//! | 3 | id 32 | doorbell 24 | | | |
//! | 4 | credits 32 | published 24 | | | |
//! | 5 | slice_ns 56 | | | | |
//! | 6 | order 32 (since 1.1) | decided 24 | | | |
//! | 7 | cpu_stamp 32 | incarnation 24 (since 1.2) | | | |
//!
//! Seen, decided, published and doorbell are the line's [`Ledger`](crate::Ledger): zero or ticks, and no part of the txn.

use crate::line::{PAYLOAD_MASK, Payload, Tag, field};
use crate::message::TASK_NONE;

/// The word of a txn that carries the credits; it is stored last, with release.
pub const CREDIT_WORD: usize = 4;

/// What the host is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Void whatever lay in the slot before.
    Withdraw = 0,
    /// Run the task on the CPU.
    Run = 1,
    /// Leave the CPU idle: what runs there goes back to the agent.
    Idle = 2,
}

impl Operation {
    /// From the wire.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Withdraw),
            1 => Some(Self::Run),
            2 => Some(Self::Idle),
            _ => None,
        }
    }
}

/// How a txn is to be committed, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TxnFlags(pub u16);

impl TxnFlags {
    /// For the CPU's next decision: the host takes it when it needs one (section 4.3, pre-staging).
    pub const PRESTAGED: Self = Self(1);
    /// Commit only if the CPU's stamp still holds.
    pub const CHECK_CPU: Self = Self(2);
    /// Take the CPU from the task that runs there. Needs CHECK_CPU; contradicts PRESTAGED.
    pub const PREEMPT: Self = Self(4);
    /// One member of a group that succeeds or fails together.
    pub const GROUP: Self = Self(8);
    /// Report TASK_ON_CPU when the task begins to run (ghOSt: SEND_TASK_ON_CPU).
    pub const REPORT_ON_CPU: Self = Self(16);
    /// A task that runs already on this very CPU counts as committed (ghOSt: ALLOW_TASK_ONCPU).
    pub const ALLOW_ON_CPU: Self = Self(32);
    /// Stop the tick on this CPU while the task runs.
    pub const TICKLESS: Self = Self(64);

    /// Every bit that this version knows.
    pub const KNOWN: Self = Self(127);

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

    /// Whether the bits are known and do not contradict each other.
    #[must_use]
    pub const fn valid(self) -> bool {
        self.0 & !Self::KNOWN.0 == 0
            && (!self.has(Self::PREEMPT) || self.has(Self::CHECK_CPU))
            && !self.has(Self::PREEMPT.with(Self::PRESTAGED))
    }
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Txn {
    /// What to do, as the wire has it: an unknown operation is the host's to refuse.
    pub operation: u8,
    /// The host CPU, counted within the enclave; the slot's own.
    pub cpu: u16,
    /// How.
    pub flags: TxnFlags,
    /// Members of the group, itself included; 0 outside a group.
    pub group_size: u8,
    /// The group's number, 24 bits.
    pub group: u32,
    /// The task.
    pub task: u32,
    /// The stamp of the task that the decision rests on.
    pub stamp: u32,
    /// The txn's number on this CPU, 1 for the first. Its low seven bits are in the line's tag.
    pub id: u32,
    /// Messages that the agent has consumed in all, modulo 2^32.
    pub credits: u32,
    /// How long the task may run, in ns; 0 for as long as it likes.
    pub slice_ns: u64,
    /// The decision's number among all of its agent's, modulo 2^32; zero from a 1.0 agent.
    pub order: u32,
    /// The CPU's stamp that the decision rests on (CHECK_CPU).
    pub cpu_stamp: u32,
    /// Which agent of the enclave decided, 24 bits; zero from a 1.1 agent. What an agent that has ended left in a slot is
    /// told by it.
    pub incarnation: u32,
}

impl Txn {
    /// A decision that runs `task`, as seen at `stamp`, on `cpu`. Its id, credits and order are the libOS's to fill.
    #[must_use]
    #[inline(always)]
    pub const fn run(cpu: u16, task: u32, stamp: u32) -> Self {
        Self {
            operation: Operation::Run as u8,
            cpu,
            flags: TxnFlags(0),
            group_size: 0,
            group: 0,
            task,
            stamp,
            id: 0,
            credits: 0,
            slice_ns: 0,
            order: 0,
            cpu_stamp: 0,
            incarnation: 0,
        }
    }

    /// A line that voids what its slot held.
    #[must_use]
    pub const fn withdraw(cpu: u16) -> Self {
        let mut txn = Self::run(cpu, TASK_NONE, 0);
        txn.operation = Operation::Withdraw as u8;
        txn
    }

    /// The tag of the line that carries txn `id`: its low seven bits under a bit that is always set.
    #[must_use]
    #[inline(always)]
    pub const fn tag(id: u32) -> Tag {
        Tag::of_number(id)
    }

    /// The line's payload.
    #[must_use]
    #[inline(always)]
    pub const fn to_payload(&self) -> Payload {
        [
            self.operation as u64
                | (self.cpu as u64) << 8
                | (self.flags.0 as u64) << 24
                | (self.group_size as u64) << 40,
            self.task as u64 | ((self.group & 0xff_ffff) as u64) << 32,
            self.stamp as u64,
            self.id as u64,
            self.credits as u64,
            self.slice_ns & PAYLOAD_MASK,
            self.order as u64,
            self.cpu_stamp as u64 | ((self.incarnation & 0xff_ffff) as u64) << 32,
        ]
    }

    /// From a line's payload (or its words: tags are ignored). Every payload is some txn; the host's checks come
    /// after.
    #[must_use]
    #[inline(always)]
    pub const fn from_payload(words: &Payload) -> Self {
        Self {
            operation: field(words[0], 0, 8) as u8,
            cpu: field(words[0], 8, 16) as u16,
            flags: TxnFlags(field(words[0], 24, 16) as u16),
            group_size: field(words[0], 40, 8) as u8,
            group: field(words[1], 32, 24) as u32,
            task: words[1] as u32,
            stamp: words[2] as u32,
            id: words[3] as u32,
            credits: words[CREDIT_WORD] as u32,
            slice_ns: words[5] & PAYLOAD_MASK,
            order: words[6] as u32,
            cpu_stamp: words[7] as u32,
            incarnation: field(words[7], 32, 24) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let all = Txn {
            operation: u8::MAX,
            cpu: u16::MAX,
            flags: TxnFlags(u16::MAX),
            group_size: u8::MAX,
            group: 0xff_ffff,
            task: u32::MAX,
            stamp: u32::MAX,
            id: u32::MAX,
            credits: u32::MAX,
            slice_ns: PAYLOAD_MASK,
            order: u32::MAX,
            cpu_stamp: u32::MAX,
            incarnation: 0xff_ffff,
        };
        assert_eq!(Txn::from_payload(&all.to_payload()), all);
        let one = Txn::run(0x1234, 0x89ab_cdef, 0x0102_0304);
        for change in [
            one,
            Txn { flags: TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU), ..one },
            Txn { group_size: 3, group: 77, ..one },
            Txn { id: 9, credits: 10, slice_ns: 30_000, order: 11, cpu_stamp: 12, incarnation: 13, ..one },
        ] {
            assert_eq!(Txn::from_payload(&change.to_payload()), change);
        }
    }

    #[test]
    fn neighbouring_ids_have_different_tags_that_are_never_zero() {
        for id in (0..600).chain(u32::MAX - 300..=u32::MAX).step_by(if cfg!(miri) { 450 } else { 1 }) {
            assert_ne!(Txn::tag(id).byte(), 0);
            for ahead in 1..128 {
                assert_ne!(Txn::tag(id), Txn::tag(id.wrapping_add(ahead)));
            }
        }
    }

    #[test]
    fn contradicting_flags_are_invalid() {
        assert!(TxnFlags(0).valid());
        assert!(TxnFlags::PRESTAGED.valid());
        assert!(TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU).valid());
        assert!(!TxnFlags::PREEMPT.valid());
        assert!(!TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU).with(TxnFlags::PRESTAGED).valid());
        assert!(!TxnFlags(1 << 15).valid());
    }
}
