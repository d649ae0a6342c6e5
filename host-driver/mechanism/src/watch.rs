//! The watch over one enclave's agent: how long it has owed a decision.
//!
//! Time is counted in beats of the host's housekeeping. A beat that comes late counts for little, and so does one in which
//! threads of the machine wait for a processor: a host that does not get its own time blames nobody for it.

use core::time::Duration;

/// A longer gap between two beats is the host's fault.
const GAP_MAX: Duration = Duration::from_millis(4);
/// What such a gap counts for.
const GAP_COUNTED: Duration = Duration::from_millis(2);
/// A beat in which threads wait for a processor for one part in so many of its time counts for that part: on a machine
/// that is always busy an agent that hangs is found later, but found.
const STALLED_PARTS: u32 = 10;
/// A resync may take so many times the limit, as long as lines are taken.
const RESYNC_FACTOR: u32 = 10;

/// What one beat saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Time since the beat before.
    pub gap: Duration,
    /// How much of it some thread of the machine waited for a processor.
    pub stalled: Duration,
    /// A CPU is idle, its slot is empty, and a task that may run there waits.
    pub owes: bool,
    /// A decision lies in the slot of an idle CPU.
    pub lies: bool,
    /// Decisions of the agent that were committed, in all.
    pub decisions: u64,
    /// While the agent is told the state: lines that it has taken of it.
    pub resync: Option<u32>,
}

/// Whose fault a wait is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The agent's.
    Agent,
    /// The host's own.
    Host,
}

/// Counts what an agent owes.
#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    owed: Duration,
    /// Time in this resync.
    telling: Duration,
    lain: Duration,
    beats: u32,
    beats_late: u32,
    decisions: u64,
    taken: u32,
}

impl Watchdog {
    /// A watch that ends an agent's patience after `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            owed: Duration::ZERO,
            telling: Duration::ZERO,
            lain: Duration::ZERO,
            beats: 0,
            beats_late: 0,
            decisions: 0,
            taken: 0,
        }
    }

    /// Another agent, or an attempt anew: nothing is owed.
    pub fn reset(&mut self) {
        *self = Self { decisions: self.decisions, taken: self.taken, ..Self::new(self.limit) };
    }

    /// Takes note of a beat; whose fault it is when the limit is reached.
    pub fn beat(&mut self, beat: Beat) -> Option<Blame> {
        let late = beat.gap > GAP_MAX;
        let part = beat.gap / STALLED_PARTS;
        let time = match beat {
            _ if late => GAP_COUNTED,
            Beat { stalled, .. } if stalled > part => part,
            Beat { gap, .. } => gap,
        };
        if beat.decisions != self.decisions {
            self.decisions = beat.decisions;
            self.reset();
        }
        self.telling = if beat.resync.is_some() { self.telling + time } else { Duration::ZERO };
        let taken = beat.resync.unwrap_or(self.taken);
        if taken != self.taken && self.telling < self.limit * RESYNC_FACTOR {
            // A long state takes its time, and the agent is at it.
            self.taken = taken;
            self.owed = Duration::ZERO;
        }
        self.lain = if beat.lies && !late { self.lain + time } else { Duration::ZERO };
        if self.lain >= self.limit {
            self.lain = Duration::ZERO;
            return Some(Blame::Host);
        }
        if !beat.owes {
            (self.owed, self.beats, self.beats_late) = (Duration::ZERO, 0, 0);
            return None;
        }
        self.owed += time;
        self.beats += 1;
        self.beats_late += u32::from(late);
        if self.owed < self.limit {
            return None;
        }
        let blame = if 2 * self.beats_late > self.beats { Blame::Host } else { Blame::Agent };
        self.reset();
        Some(blame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const OWES: Beat =
        Beat { gap: MS, stalled: Duration::ZERO, owes: true, lies: false, decisions: 0, resync: None };

    /// The number of the beat, from 1 on, at which somebody is blamed.
    fn blamed(beats: impl IntoIterator<Item = Beat>) -> Option<(usize, Blame)> {
        let mut watchdog = Watchdog::new(20 * MS);
        beats.into_iter().enumerate().find_map(|(at, beat)| Some((at + 1, watchdog.beat(beat)?)))
    }

    #[test]
    fn an_agent_that_owes_for_too_long_is_blamed() {
        assert_eq!(blamed([OWES; 100]), Some((20, Blame::Agent)));
    }

    #[test]
    fn a_decision_and_a_moment_without_work_start_the_count_anew() {
        let idle = Beat { owes: false, ..OWES };
        assert_eq!(blamed((0..100).map(|at| if at % 19 == 18 { idle } else { OWES })), None);
        assert_eq!(blamed((0..100).map(|at| Beat { decisions: at / 19, ..OWES })), None);
    }

    #[test]
    fn a_host_that_gets_no_time_blames_itself() {
        let late = Beat { gap: 500 * MS, ..OWES };
        assert_eq!(blamed([late; 9]), None, "half a second each, and 2 ms count");
        assert_eq!(blamed([late; 100]), Some((10, Blame::Host)));
    }

    #[test]
    fn on_a_busy_machine_an_agent_has_longer_but_not_for_ever() {
        assert_eq!(blamed([Beat { stalled: MS, ..OWES }; 1000]), Some((200, Blame::Agent)));
        assert_eq!(blamed([Beat { stalled: MS / 2, ..OWES }; 1000]), Some((200, Blame::Agent)));
        assert_eq!(blamed([Beat { stalled: MS / 20, ..OWES }; 1000]), Some((20, Blame::Agent)));
    }

    #[test]
    fn a_decision_that_nobody_takes_is_the_hosts_fault() {
        let lies = Beat { owes: false, lies: true, ..OWES };
        assert_eq!(blamed([lies; 100]), Some((20, Blame::Host)));
    }

    #[test]
    fn a_long_state_takes_its_time_but_not_for_ever() {
        let told = |at: u32| Beat { resync: Some(at), ..OWES };
        assert_eq!(blamed((0..200).map(told)), None, "ten times the limit, and lines are taken");
        assert_eq!(blamed((0..1000).map(told)).map(|(_, blame)| blame), Some(Blame::Agent));
        assert_eq!(blamed([told(7); 100]), Some((20, Blame::Agent)), "none are taken");
    }
}
