//! What a CPU counts. Each CPU counts in lines of its own; whoever reads adds them up.

use neap_abi::Outcome;

use crate::sync::Ordering;
use crate::sync::figures::AtomicU64;

/// What is counted, but for outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// Lines written to the message ring.
    Messages,
    /// Decisions committed that run a task.
    Decisions,
    /// Decisions that lay ready when their CPU looked, with an event to tell.
    PrestageHits,
    /// Looks with an event to tell that found no decision.
    PrestageMisses,
    /// Uncached reads on the way of a hit.
    HitUncachedReads,
    /// Lines written on the way of a hit.
    HitLineWrites,
    /// Uncached reads in all.
    UncachedReads,
    /// Lines that did not go into the ring.
    MessagesDropped,
    /// Tasks that came to the enclaves.
    TasksEnabled,
    /// Tasks that left them.
    TasksDisabled,
    /// Tasks that the host's own rule queued.
    TasksHost,
    /// Interrupts of the IPU's doorbells.
    Interrupts,
    /// CPUs that were made to look.
    Kicks,
    /// Doorbells of the IPU's that were rung.
    Rings,
    /// Committed decisions that could not be carried out.
    LatchFailures,
    /// Tasks that came to run without a decision.
    Undecided,
}

impl Count {
    /// Every count with its name on every output.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Messages, "messages"),
        (Self::Decisions, "decisions"),
        (Self::PrestageHits, "prestage_hits"),
        (Self::PrestageMisses, "prestage_misses"),
        (Self::HitUncachedReads, "hit_uncached_reads"),
        (Self::HitLineWrites, "hit_line_writes"),
        (Self::UncachedReads, "uncached_reads"),
        (Self::MessagesDropped, "messages_dropped"),
        (Self::TasksEnabled, "tasks_enabled"),
        (Self::TasksDisabled, "tasks_disabled"),
        (Self::TasksHost, "tasks_host"),
        (Self::Interrupts, "interrupts"),
        (Self::Kicks, "kicks"),
        (Self::Rings, "rings"),
        (Self::LatchFailures, "latch_failures"),
        (Self::Undecided, "undecided"),
    ];
}

const OUTCOMES: usize = Outcome::ALL.len();

/// What one CPU counts.
#[derive(Debug)]
pub struct Counters {
    counts: [AtomicU64; Count::ALL.len()],
    outcomes: [AtomicU64; OUTCOMES],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; Count::ALL.len()],
            outcomes: [const { AtomicU64::new(0) }; OUTCOMES],
        }
    }
}

impl Counters {
    pub(crate) fn add(&self, count: Count, more: u64) {
        if let Some(counter) = self.counts.get(count as usize) {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Counts one.
    pub fn one(&self, count: Count) {
        self.add(count, 1);
    }

    pub(crate) fn outcome(&self, outcome: Outcome) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A count.
    #[must_use]
    pub fn get(&self, count: Count) -> u64 {
        self.counts.get(count as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many verdicts of a kind.
    #[must_use]
    pub fn of_outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_order_of_their_numbers() {
        for (at, (count, _)) in Count::ALL.into_iter().enumerate() {
            assert_eq!(count as usize, at);
        }
    }
}
