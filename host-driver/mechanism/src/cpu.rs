//! A host CPU, as the mechanism knows it.
//!
//! But where said, only the CPU's own scheduling events touch it, which come one after the other under its runqueue's lock.
//! The rest of the machine may look.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use neap_abi::line::{Payload, WORDS};
use neap_abi::message::TASK_NONE;
use neap_abi::{Message, Outcome};

use crate::counters::Counters;

/// What a CPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Runs {
    /// Nothing.
    Idle = 0,
    /// A task of the extensible class.
    Ours = 1,
    /// Something of a higher class.
    Other = 2,
}

/// No enclave has the CPU.
pub(crate) const NOBODY: u32 = u32::MAX;

/// A line's payload that waits.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    words: [AtomicU64; WORDS],
    there: AtomicBool,
}

impl Kept {
    pub(crate) fn put(&self, payload: &Payload) {
        for (to, from) in self.words.iter().zip(payload) {
            to.store(*from, Ordering::Relaxed);
        }
        self.there.store(true, Ordering::Release);
    }

    pub(crate) fn is_there(&self) -> bool {
        self.there.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self) -> Payload {
        let mut payload = [0; WORDS];
        for (to, from) in payload.iter_mut().zip(&self.words) {
            *to = from.load(Ordering::Relaxed);
        }
        payload
    }

    pub(crate) fn take(&self) -> Option<Payload> {
        if !self.is_there() {
            return None;
        }
        let payload = self.get();
        self.there.store(false, Ordering::Relaxed);
        Some(payload)
    }
}

/// Members of a group at most, and so decisions that one look at a slot can carry out.
pub const MEMBERS_MAX: usize = 16;

/// A host CPU.
#[derive(Debug)]
#[repr(align(128))]
pub struct Cpu {
    /// Its enclave, or [`NOBODY`].
    pub(crate) owner: AtomicU32,
    /// Moves at every change that is reported.
    pub(crate) stamp: AtomicU32,
    /// The task that runs there by a decision, or [`TASK_NONE`].
    pub(crate) task: AtomicU32,
    /// Whether the machine has it running.
    pub(crate) online: AtomicBool,
    /// Whether no higher class has held it for long.
    pub(crate) available: AtomicBool,
    /// The last txn taken from its slot.
    pub(crate) txn: AtomicU32,
    /// The tag of the line taken last, 0 before the first.
    pub(crate) taken: AtomicU32,
    /// The verdict that its next line carries: outcome << 32 | txn; 0 for none.
    verdict: AtomicU64,
    /// An event whose line waits for the verdict on what the CPU takes next.
    pub(crate) event: Kept,
    /// The txn that it took: judged, or waiting for its group.
    pub(crate) stash: Kept,
    /// The group that the stash waits for, its number + 1 under the enclave's << 24; 0 for none. Whoever swaps it to 0 owns the
    /// stash: this CPU, or the one that completes or breaks the group.
    pub(crate) group: AtomicU64,
    /// CPUs whose stashes are to be carried out by this one.
    pub(crate) batch: [AtomicU32; MEMBERS_MAX],
    /// How many.
    pub(crate) batched: AtomicU32,
    /// The batch is of tasks to be queued by the host, from the place in `batch[0]` on.
    pub(crate) rescues: AtomicBool,
    /// Bit i: member i can't be carried out, because its task is gone. Bit 16 + i: because it may not run there.
    pub(crate) barred: AtomicU32,
    /// What it executes ([`Runs`]).
    pub(crate) runs: AtomicU32,
    /// Since when something else than ours, in ns; 0 if it does not.
    pub(crate) other_ns: AtomicU64,
    /// The task placed there last is to be reported when it begins to run.
    pub(crate) report_on_cpu: AtomicBool,
    /// The agent was last told that it has nothing to run.
    pub(crate) told_idle: AtomicBool,
    /// A committed decision was taken while an event's line waited.
    pub(crate) hit: AtomicBool,
    /// Interrupts without a new line since.
    pub(crate) rings: AtomicU32,
    /// What it counts.
    pub counters: Counters,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            owner: AtomicU32::new(NOBODY),
            stamp: AtomicU32::new(0),
            task: AtomicU32::new(TASK_NONE),
            online: AtomicBool::new(false),
            available: AtomicBool::new(true),
            txn: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            verdict: AtomicU64::new(0),
            event: Kept::default(),
            stash: Kept::default(),
            group: AtomicU64::new(0),
            batch: [const { AtomicU32::new(0) }; MEMBERS_MAX],
            batched: AtomicU32::new(0),
            rescues: AtomicBool::new(false),
            barred: AtomicU32::new(0),
            runs: AtomicU32::new(Runs::Idle as u32),
            other_ns: AtomicU64::new(0),
            report_on_cpu: AtomicBool::new(false),
            told_idle: AtomicBool::new(false),
            hit: AtomicBool::new(false),
            rings: AtomicU32::new(0),
            counters: Counters::default(),
        }
    }
}

impl Cpu {
    /// Its enclave.
    #[must_use]
    pub fn owner(&self) -> Option<u8> {
        match self.owner.load(Ordering::Acquire) {
            NOBODY => None,
            enclave => Some(enclave as u8),
        }
    }

    /// The task that runs there by a decision, or [`TASK_NONE`].
    #[must_use]
    pub fn task(&self) -> u32 {
        self.task.load(Ordering::Acquire)
    }

    /// Its stamp.
    #[must_use]
    pub fn stamp(&self) -> u32 {
        self.stamp.load(Ordering::Acquire)
    }

    /// Whether it is online and no higher class holds it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.online.load(Ordering::Acquire) && self.available.load(Ordering::Acquire)
    }

    /// Whether it executes nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.runs.load(Ordering::Acquire) == Runs::Idle as u32
    }

    /// Since when it executes something of a higher class, in ns; 0 if it does not.
    #[must_use]
    pub fn other_ns(&self) -> u64 {
        self.other_ns.load(Ordering::Acquire)
    }

    pub(crate) fn moved(&self) {
        self.stamp.fetch_add(1, Ordering::AcqRel);
    }

    /// What ran there runs there no more, if it was `task`.
    pub(crate) fn vacate(&self, task: u32) -> bool {
        let left = self.task.compare_exchange(task, TASK_NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if left {
            self.moved();
        }
        left
    }

    /// Keeps a verdict for the CPU's next line.
    pub(crate) fn set_verdict(&self, txn: u32, outcome: Outcome) {
        self.txn.store(txn, Ordering::Relaxed);
        self.verdict.store((outcome as u64) << 32 | u64::from(txn), Ordering::Release);
    }

    /// Whether a verdict waits.
    pub(crate) fn has_verdict(&self) -> bool {
        self.verdict.load(Ordering::Acquire) != 0
    }

    /// Puts the verdict that waits into a line; what it was, to be put back if the line does not go.
    pub(crate) fn give_verdict(&self, message: &mut Message) -> u64 {
        let verdict = self.verdict.swap(0, Ordering::AcqRel);
        if verdict != 0 {
            message.txn = verdict as u32;
            message.outcome = Outcome::from_bits((verdict >> 32) as u8).unwrap_or(Outcome::None);
        }
        verdict
    }

    pub(crate) fn put_back_verdict(&self, verdict: u64) {
        if verdict != 0 {
            // A later one counts more.
            let _ = self.verdict.compare_exchange(0, verdict, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Forgets what it would have told another agent.
    pub(crate) fn forget(&self) {
        self.verdict.store(0, Ordering::Release);
        let _ = self.event.take();
        self.hit.store(false, Ordering::Relaxed);
        self.rings.store(0, Ordering::Relaxed);
    }
}
