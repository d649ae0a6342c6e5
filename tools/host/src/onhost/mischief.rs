//! What agents do amiss, for tests of those who watch them: between two messages, where an agent has its own time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_abi::{AgentControl, Txn};
use neap_agent::Idle;
use neap_queue::{Line, SlotWriter};
use neap_vipu::Peer;

use super::LOOK;

/// The vector that wakes the agent; 0 is the supervisor's.
pub(super) const AGENT_VECTOR: u16 = 1;
/// Empty polls before the agent sleeps.
const POLLS_MAX: u32 = 200;
/// A sleep's longest time.
const SLEEP: Duration = Duration::from_millis(1);
/// Doorbells of a flood, between two looks.
const FLOOD: u32 = 2000;
/// Credits that no host has given cause for.
const POISON: u32 = u32::MAX / 4;

/// In the word by which the supervisor wants its core back: the agent ended by itself.
pub(super) const ENDED: u64 = 2;

/// What agents do amiss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mischief {
    /// Nothing.
    #[default]
    None,
    /// The agent does nothing more, until its core is wanted back.
    Hang,
    /// The agent ends, and the next is started so much later.
    Die {
        /// How much, in ms.
        down_ms: u64,
    },
    /// The agent rings without deciding.
    Flood,
    /// The agent claims to have taken lines that were never written.
    Poison,
    /// The IPU goes away, and is there again so much later.
    Leave {
        /// How much, in ms.
        away_ms: u64,
    },
}

/// What an agent does when it is idle: it naps, or does what it should not.
pub(super) struct Nap<'a> {
    pub(super) peer: &'a Peer,
    /// The host's peer number.
    pub(super) host: u16,
    pub(super) slots: &'a [Line],
    pub(super) control: &'a Line,
    pub(super) revoke: &'a AtomicU64,
    pub(super) mischief: Mischief,
    /// After how many lines of the ring, in all.
    pub(super) after: u32,
    /// Where its time begins.
    pub(super) began: Instant,
}

impl Idle for Nap<'_> {
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool) {
        if self.mischief != Mischief::None && self.has_taken_enough() {
            self.misbehave();
        }
        if empty_polls.is_multiple_of(POLLS_MAX) && drowse() {
            let _ = self.peer.wait(AGENT_VECTOR, Some(SLEEP));
        } else {
            std::hint::spin_loop();
        }
    }

    fn now_ns(&mut self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

impl Nap<'_> {
    /// What the agent says of itself; its libOS keeps it up to date when it is idle.
    fn agent(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.control.read_any()?.0)
    }

    fn has_taken_enough(&self) -> bool {
        self.agent().is_some_and(|agent| agent.credits.wrapping_sub(self.after) < u32::MAX / 2)
    }

    fn misbehave(&mut self) {
        match self.mischief {
            Mischief::None => {}
            Mischief::Hang => self.until_revoked(|| {}),
            // Its end, and what comes of it, is its supervisor's doing.
            Mischief::Die { .. } | Mischief::Leave { .. } => {
                self.revoke.fetch_or(ENDED, Ordering::Relaxed);
            }
            Mischief::Flood => self.until_revoked(|| {
                for _ in 0..FLOOD {
                    let _ = self.peer.ring(self.host, 0);
                }
            }),
            Mischief::Poison => {
                let incarnation = self.agent().map_or(0, |agent| agent.incarnation);
                if let Some(slot) = self.slots.first() {
                    let last = slot.read_any().map_or(0, |(payload, _)| Txn::from_payload(&payload).id);
                    let id = last.wrapping_add(1);
                    let txn = Txn { id, credits: POISON, incarnation, ..Txn::run(0, 0, 0) };
                    SlotWriter::resume(last).write(slot, &txn.to_payload(), 4);
                }
                let _ = self.peer.ring(self.host, 0);
                self.until_revoked(|| {});
            }
        }
        self.mischief = Mischief::None;
    }

    fn until_revoked(&self, doing: impl Fn()) {
        while self.revoke.load(Ordering::Relaxed) == 0 {
            doing();
            std::thread::sleep(LOOK);
        }
    }
}
