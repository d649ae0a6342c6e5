//! A host CPU, as the mechanism knows it.
//!
//! But where said, only the CPU's own scheduling events touch it, which come one after the other with interrupts off. The rest
//! of the machine may look.

use neap_abi::line::{Payload, WORDS};
use neap_abi::message::TASK_NONE;
use neap_abi::{Message, Outcome, TaskFlags};

use crate::counters::Counters;
use crate::sync::figures;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, in_order};

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

/// A line's payload, kept word by word.
#[derive(Debug, Default)]
pub(crate) struct Words([AtomicU64; WORDS]);

impl Words {
    pub(crate) fn put(&self, payload: &Payload) {
        for (to, from) in self.0.iter().zip(payload) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> Payload {
        let mut payload = [0; WORDS];
        for (to, from) in payload.iter_mut().zip(&self.0) {
            *to = from.load(Ordering::Relaxed);
        }
        payload
    }
}

/// A line's payload that waits.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    words: Words,
    there: AtomicBool,
}

impl Kept {
    pub(crate) fn put(&self, payload: &Payload) {
        self.words.put(payload);
        self.there.store(true, Ordering::Release);
    }

    pub(crate) fn is_there(&self) -> bool {
        self.there.load(Ordering::Acquire)
    }

    /// What waits, if anything does.
    pub(crate) fn get(&self) -> Option<Payload> {
        self.is_there().then(|| self.words.get())
    }

    pub(crate) fn take(&self) -> Option<Payload> {
        let payload = self.get();
        if payload.is_some() {
            self.there.store(false, Ordering::Relaxed);
        }
        payload
    }
}

/// Members of a group at most, and so decisions that one look at a slot can carry out. (Loom explores groups of few.)
pub const MEMBERS_MAX: usize = if cfg!(loom) { 2 } else { 16 };

/// A place in what a CPU carries out.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The CPU whose txn it is, or the task that the host is to queue.
    pub(crate) number: AtomicU32,
    /// The txn.
    pub(crate) txn: Words,
    /// Its task's word when it was taken: the place that the kernel records is for a task as it was then.
    pub(crate) word: AtomicU64,
}

/// A host CPU.
#[derive(Debug)]
#[repr(align(128))]
pub struct Cpu {
    /// Its enclave, or [`NOBODY`].
    pub(crate) owner: AtomicU32,
    /// Moves at every change that is reported. Any CPU may move it.
    pub(crate) stamp: AtomicU32,
    /// The task that runs there by a decision, or [`TASK_NONE`]. Any CPU may change it, by a compare-and-swap.
    pub(crate) task: AtomicU32,
    /// Whether the machine has it running.
    pub(crate) online: AtomicBool,
    /// Whether no higher class has held it for long.
    pub(crate) available: AtomicBool,
    /// The last txn taken from its slot.
    pub(crate) txn: AtomicU32,
    /// The tag of the line taken last, 0 before the first.
    pub(crate) taken: AtomicU32,
    /// The verdict that its next line carries: outcome << 32 | txn; 0 for none. Any CPU may swap it.
    verdict: AtomicU64,
    /// An event whose line waits for the verdict on what the CPU takes next.
    pub(crate) event: Kept,
    /// The txn that it gave to a group that is incomplete.
    pub(crate) stash: Words,
    /// That group ([`crate::group`]); 0 for none. Whoever swaps it to 0 owns what was in the stash: this CPU, or the one that
    /// completes or breaks the group.
    pub(crate) group: AtomicU64,
    /// Groups that it has joined, modulo 2^32.
    joins: figures::AtomicU32,
    /// When it joined the group, in ns.
    pub(crate) joined_ns: figures::AtomicU64,
    /// What it carries out.
    pub(crate) batch: [Place; MEMBERS_MAX],
    /// How many places of the batch count.
    pub(crate) batched: AtomicU32,
    /// Nobody has settled the batch yet.
    pub(crate) unsettled: AtomicBool,
    /// The batch is of tasks to be queued by the host.
    pub(crate) rescues: AtomicBool,
    /// The batch is of a group of which a member has gone its own way.
    pub(crate) short: AtomicBool,
    /// Bit i: member i can't be carried out, because its task is gone. Bit 16 + i: because it may not run there.
    pub(crate) barred: AtomicU32,
    /// What it executes ([`Runs`]).
    pub(crate) runs: AtomicU32,
    /// Since when something else than ours, in ns; 0 if it does not.
    pub(crate) other_ns: figures::AtomicU64,
    /// The task placed there last is to be reported when it begins to run.
    pub(crate) report_on_cpu: AtomicBool,
    /// The agent has been told that it has nothing to run, and it has got nothing since. Any CPU may say so.
    pub(crate) told_idle: AtomicBool,
    /// What its last look at the slot came to, for the event that it ends with ([`Look`]).
    pub(crate) look: AtomicU32,
    /// Interrupts without a new line since.
    pub(crate) rings: figures::AtomicU32,
    /// What it counts.
    pub counters: Counters,
}

/// What a CPU's last look at its slot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Look {
    /// It has not looked since it last told what it did.
    None = 0,
    /// It found nothing.
    Miss = 1,
    /// It found a decision that was committed.
    Hit = 2,
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
            stash: Words::default(),
            group: AtomicU64::new(0),
            joins: figures::AtomicU32::new(0),
            joined_ns: figures::AtomicU64::new(0),
            batch: Default::default(),
            batched: AtomicU32::new(0),
            unsettled: AtomicBool::new(false),
            rescues: AtomicBool::new(false),
            short: AtomicBool::new(false),
            barred: AtomicU32::new(0),
            runs: AtomicU32::new(Runs::Idle as u32),
            other_ns: figures::AtomicU64::new(0),
            report_on_cpu: AtomicBool::new(false),
            told_idle: AtomicBool::new(false),
            look: AtomicU32::new(Look::None as u32),
            rings: figures::AtomicU32::new(0),
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
        self.task.load(Ordering::SeqCst)
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
        self.runs.load(Ordering::SeqCst) == Runs::Idle as u32
    }

    /// Since when it executes something of a higher class, in ns; 0 if it does not.
    #[must_use]
    pub fn other_ns(&self) -> u64 {
        self.other_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn moved(&self) {
        self.stamp.fetch_add(1, Ordering::AcqRel);
    }

    /// Is `task`'s from now on, if it still is `held`'s. Its stamp is the caller's to move, once that is final.
    pub(crate) fn claim(&self, held: u32, task: u32) -> bool {
        let claimed = self.task.compare_exchange(held, task, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if claimed {
            self.told_idle.store(false, Ordering::SeqCst);
        }
        claimed
    }

    /// What ran there runs there no more, if it was `task`.
    pub(crate) fn vacate(&self, task: u32) -> bool {
        let left = self.task.compare_exchange(task, TASK_NONE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if left {
            self.moved();
        }
        left
    }

    /// What a line that is about to go says of it: whether it has nothing to run and waits for it. One that the enclave does not
    /// have at the moment waits for nothing.
    ///
    /// The agent must not be left to believe that a CPU has a task that has gone. So whoever gives it one takes back that the
    /// agent has been told, and whoever takes one away looks whether it has ([`Cpu::is_untold`]).
    pub(crate) fn idle_flag(&self) -> TaskFlags {
        // A task that comes and goes meanwhile has it look again, and that happens but once.
        for _ in 0..4 {
            if self.task() != TASK_NONE || !self.is_open() {
                return TaskFlags(0);
            }
            self.told_idle.store(true, Ordering::SeqCst);
            in_order();
            if self.task() == TASK_NONE {
                return TaskFlags::CPU_IDLE;
            }
            self.told_idle.store(false, Ordering::SeqCst);
        }
        TaskFlags(0)
    }

    /// Whether it has nothing to run and the agent has not been told.
    pub(crate) fn is_untold(&self) -> bool {
        self.task() == TASK_NONE && self.is_idle() && !self.told_idle.load(Ordering::SeqCst) && self.is_open()
    }

    /// Keeps a verdict for the CPU's next line; the one that waited, if one did.
    pub(crate) fn set_verdict(&self, txn: u32, outcome: Outcome) -> u64 {
        self.txn.store(txn, Ordering::Relaxed);
        self.verdict.swap((outcome as u64) << 32 | u64::from(txn), Ordering::AcqRel)
    }

    /// Whether a verdict waits.
    pub(crate) fn has_verdict(&self) -> bool {
        self.verdict.load(Ordering::Acquire) != 0
    }

    /// Takes the verdict that waits, to be put into a line.
    pub(crate) fn take_verdict(&self) -> u64 {
        if self.has_verdict() { self.verdict.swap(0, Ordering::AcqRel) } else { 0 }
    }

    /// Forgets what it would have told another agent. While it does nothing else.
    pub(crate) fn forget(&self) {
        self.verdict.store(0, Ordering::Release);
        let _ = self.event.take();
        self.look.store(Look::None as u32, Ordering::Relaxed);
        self.rings.store(0, Ordering::Relaxed);
    }

    /// Its stash holds a member of the group `key` from now on. The word that says so is like none before it.
    pub(crate) fn set_group(&self, key: u32) {
        let joins = self.joins.load(Ordering::Relaxed).wrapping_add(1);
        self.joins.store(joins, Ordering::Relaxed);
        self.group.store(u64::from(joins) << 32 | u64::from(key), Ordering::Release);
    }

    pub(crate) fn looked(&self, look: Look) {
        self.look.store(look as u32, Ordering::Relaxed);
    }

    /// What its last look came to, once.
    pub(crate) fn take_look(&self) -> Look {
        let look = self.look.load(Ordering::Relaxed);
        self.looked(Look::None);
        match look {
            1 => Look::Miss,
            2 => Look::Hit,
            _ => Look::None,
        }
    }
}

/// Puts a verdict into a line.
pub(crate) fn give_verdict(verdict: u64, message: &mut Message) {
    if verdict != 0 {
        message.txn = verdict as u32;
        message.outcome = Outcome::from_bits((verdict >> 32) as u8).unwrap_or(Outcome::None);
    }
}
