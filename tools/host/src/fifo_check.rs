//! Checks from the host's side that tasks run in the order in which they became runnable. It takes the agent's word
//! for nothing: a LIFO agent fails it (and a test says so).

use std::collections::BTreeSet;

/// What the agent may do without a violation: a task may start before earlier ones as far as those lie in the other
/// CPUs' slots, one each; and decisions are made in the order of arrival.
#[derive(Debug, Default)]
pub struct FifoCheck {
    cpus: usize,
    waiting: BTreeSet<u64>,
    /// Decision number and arrival of every first-hand commit.
    decided: Vec<(u32, u64)>,
    /// Those that will be decided again, out of turn.
    refused: BTreeSet<u64>,
    /// Those that may be.
    retold: BTreeSet<u64>,
    /// Those that came while the agent had still to hear the state: it may take them for what they were before.
    unsettled: BTreeSet<u64>,
    violations: u64,
}

impl FifoCheck {
    /// A check for an enclave of `cpus` CPUs.
    #[must_use]
    pub fn new(cpus: u16) -> Self {
        Self { cpus: usize::from(cpus), ..Self::default() }
    }

    /// A task became runnable and the agent is told so as number `arrival`.
    pub fn arrived(&mut self, arrival: u64) {
        self.waiting.insert(arrival);
    }

    /// As [`FifoCheck::arrived`], while the agent had still to hear a state told before. If it takes the task for one that
    /// waits already, which it was when the state was told, it leaves it in its old place.
    pub fn arrived_unsettled(&mut self, arrival: u64) {
        self.arrived(arrival);
        self.unsettled.insert(arrival);
    }

    /// A waiting task left other than by a decision.
    pub fn left(&mut self, arrival: u64) {
        self.waiting.remove(&arrival);
    }

    /// A decision for the task was refused; it will be decided again, out of turn.
    pub fn refused(&mut self, arrival: u64) {
        self.refused.insert(arrival);
    }

    /// Decision number `order` started the task that arrived as `arrival`.
    pub fn started(&mut self, arrival: u64, order: u32) {
        self.waiting.remove(&arrival);
        if self.unsettled.remove(&arrival) {
            self.refused.remove(&arrival);
            self.retold.remove(&arrival);
            return;
        }
        let earlier = self.waiting.range(..arrival).filter(|earlier| !self.refused.contains(earlier));
        let overtaken = earlier.take(self.cpus).count();
        if overtaken >= self.cpus {
            self.violations += 1;
        }
        let again = self.refused.remove(&arrival) | self.retold.remove(&arrival);
        if !again && order != 0 {
            self.decided.push((order, arrival));
        }
    }

    /// Tasks that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The agent is told everything anew. What it had decided for tasks that still wait may be void, unseen by the host,
    /// and be decided again out of turn.
    pub fn resynced(&mut self) {
        self.retold.extend(&self.waiting);
    }

    /// Another agent decides from now on, and counts its decisions from 1 again.
    pub fn succeeded(&mut self) {
        self.violations = self.violations();
        self.decided.clear();
        self.resynced();
    }

    /// The enclave has so many CPUs from now on.
    pub fn set_cpus(&mut self, cpus: usize) {
        self.cpus = self.cpus.max(cpus);
    }

    /// Violations so far.
    #[must_use]
    pub fn violations(&mut self) -> u64 {
        self.decided.sort_unstable();
        let out_of_order = self.decided.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        self.violations + out_of_order as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_passes() {
        let mut check = FifoCheck::new(2);
        for arrival in 1..=100 {
            check.arrived(arrival);
        }
        for (order, arrival) in (1..=100).enumerate() {
            check.started(arrival, order as u32 + 1);
        }
        assert_eq!((check.violations(), check.waiting()), (0, 0));
    }

    #[test]
    fn a_task_may_pass_what_lies_in_the_other_slots_and_no_more() {
        let mut check = FifoCheck::new(3);
        for arrival in 1..=10 {
            check.arrived(arrival);
        }
        check.started(3, 3);
        assert_eq!(check.violations(), 0, "1 and 2 lie in the two other slots");
        check.started(4, 4);
        assert_eq!(check.violations(), 0);
        check.arrived(11);
        check.started(6, 6);
        assert_eq!(check.violations(), 1, "1, 2 and 5: there are but two other slots");
    }

    #[test]
    fn lifo_fails() {
        let mut check = FifoCheck::new(1);
        for arrival in 1..=10 {
            check.arrived(arrival);
        }
        for (order, arrival) in (1..=10).rev().enumerate() {
            check.started(arrival, order as u32 + 1);
        }
        assert_eq!(check.violations(), 18, "nine overtake, nine are decided after a later one");
    }

    #[test]
    fn decisions_out_of_order_fail_though_starts_are_in_bounds() {
        let mut check = FifoCheck::new(2);
        check.arrived(1);
        check.arrived(2);
        check.started(2, 1);
        check.started(1, 2);
        assert_eq!(check.violations(), 1);
    }

    #[test]
    fn a_refused_task_is_decided_again_out_of_turn() {
        let mut check = FifoCheck::new(2);
        check.arrived(1);
        check.arrived(2);
        check.refused(1);
        check.started(2, 2);
        check.started(1, 3);
        assert_eq!(check.violations(), 0);
    }

    #[test]
    fn what_was_given_back_is_passed_by_without_a_fault() {
        let mut check = FifoCheck::new(1);
        for arrival in 1..=3 {
            check.arrived(arrival);
        }
        check.started(1, 1);
        check.arrived(1);
        check.refused(1);
        check.started(2, 2);
        check.started(1, 4);
        check.started(3, 3);
        assert_eq!(check.violations(), 0);
    }

    #[test]
    fn what_came_while_the_state_was_being_told_may_stand_where_it_stood_before() {
        let mut check = FifoCheck::new(1);
        for arrival in 1..=3 {
            check.arrived(arrival);
        }
        check.arrived_unsettled(4);
        check.started(4, 1);
        check.started(1, 2);
        check.started(2, 3);
        assert_eq!(check.violations(), 0);
        check.arrived(5);
        check.started(5, 4);
        assert_eq!(check.violations(), 1, "this one has no excuse for passing 3");
    }

    #[test]
    fn a_successor_counts_from_the_beginning_and_is_held_to_the_order_too() {
        let mut check = FifoCheck::new(2);
        for arrival in 1..=8 {
            check.arrived(arrival);
        }
        check.started(2, 1);
        check.started(1, 2);
        assert_eq!(check.violations(), 1);
        check.succeeded();
        // What waited then may come in any order; what comes after may not.
        check.started(3, 1);
        check.started(4, 2);
        assert_eq!(check.violations(), 1, "a fault counts once");
        for arrival in 9..=10 {
            check.arrived(arrival);
        }
        for (arrival, order) in [(5, 3), (6, 4), (7, 5), (8, 6), (10, 7), (9, 8)] {
            check.started(arrival, order);
        }
        assert_eq!(check.violations(), 2);
    }

    #[test]
    fn after_a_resync_what_still_waits_may_be_decided_again() {
        let mut check = FifoCheck::new(2);
        check.arrived(1);
        check.arrived(2);
        check.resynced();
        check.arrived(3);
        check.started(2, 12);
        check.started(1, 20);
        check.started(3, 21);
        assert_eq!(check.violations(), 0);
    }
}
