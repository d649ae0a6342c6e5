//! How deep the queue must be for a decision ahead of time, by what became of those before (paper section 5.1: a queue that is
//! deep enough, "e.g., linear in the number of cores").
//!
//! A decision that lies in a slot may grow stale there: its task is killed, moves, or is needed elsewhere. Each costs a refusal
//! and the gap that it was to fill. So each CPU counts what its prestaged decisions came to, in windows of [`WINDOW`]; where
//! too many were stale, the queue must be twice as deep, and where few were, half.

/// Verdicts after which a CPU's depth is thought over.
pub const WINDOW: u8 = 64;
/// Stale decisions of a window from which on the queue must be deeper: one in eight costs more than the others save.
pub const STALE_MANY: u8 = 8;
/// Stale decisions of a window up to which it may be shallower.
pub const STALE_FEW: u8 = 1;
/// How often the depth doubles at most.
pub const LEVEL_MAX: u8 = 6;

/// What a CPU's prestaged decisions came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staleness {
    seen: u8,
    stale: u8,
    level: u8,
}

impl Staleness {
    /// Of a CPU that has had none.
    pub const ZERO: Self = Self { seen: 0, stale: 0, level: 0 };

    /// The tasks in the queue above which a decision is prestaged on this CPU, where `depth` is enough for one without staleness.
    #[must_use]
    #[inline(always)]
    pub fn depth(self, depth: u32) -> u32 {
        // At least one, so that doubling means something.
        if self.level == 0 { depth } else { depth.max(1) << self.level }
    }

    /// Takes note of a decision that was taken as it lay.
    #[inline(always)]
    pub fn was_fresh(&mut self) {
        self.note(0);
    }

    /// Takes note of one that was refused or withdrawn.
    #[inline(always)]
    pub fn was_stale(&mut self) {
        self.note(1);
    }

    /// Takes note of one that was not prestaged although the queue would do without staleness: after a window of them a
    /// shallower queue is tried, else nothing would be learnt any more.
    #[inline(always)]
    pub fn was_held_back(&mut self) {
        self.note(0);
    }

    #[inline(always)]
    fn note(&mut self, stale: u8) {
        self.seen += 1;
        self.stale += stale;
        if self.seen >= WINDOW {
            self.think();
        }
    }

    #[cold]
    fn think(&mut self) {
        if self.stale >= STALE_MANY {
            self.level = (self.level + 1).min(LEVEL_MAX);
        } else if self.stale <= STALE_FEW {
            self.level = self.level.saturating_sub(1);
        }
        (self.seen, self.stale) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(cpu: &mut Staleness, stale: u8) {
        for number in 0..WINDOW {
            if number < stale { cpu.was_stale() } else { cpu.was_fresh() }
        }
    }

    #[test]
    fn staleness_deepens_the_queue_and_freshness_makes_it_shallow_again() {
        let mut cpu = Staleness::default();
        assert_eq!((cpu.depth(0), cpu.depth(4)), (0, 4));
        window(&mut cpu, STALE_MANY);
        assert_eq!((cpu.depth(0), cpu.depth(4)), (2, 8));
        window(&mut cpu, STALE_MANY - 1);
        assert_eq!(cpu.depth(4), 8, "neither many nor few");
        for _ in 0..2 * LEVEL_MAX {
            window(&mut cpu, WINDOW);
        }
        assert_eq!(cpu.depth(4), 4 << LEVEL_MAX);
        window(&mut cpu, STALE_FEW);
        assert_eq!(cpu.depth(4), 4 << (LEVEL_MAX - 1));
    }

    #[test]
    fn what_is_held_back_is_tried_again() {
        let mut cpu = Staleness::default();
        window(&mut cpu, WINDOW);
        for _ in 0..WINDOW {
            cpu.was_held_back();
        }
        assert_eq!(cpu.depth(4), 4);
    }
}
