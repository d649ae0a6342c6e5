//! Virtual time: events in the order of their time, and of their making where times are equal.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Clone, Copy, Debug)]
struct Entry<E> {
    at_ns: u64,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its greatest first, and we want the earliest.
        (other.at_ns, other.number).cmp(&(self.at_ns, self.number))
    }
}

/// A clock with what is to come.
#[derive(Debug)]
pub struct Clock<E> {
    now_ns: u64,
    made: u64,
    taken: u64,
    coming: BinaryHeap<Entry<E>>,
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self { now_ns: 0, made: 0, taken: 0, coming: BinaryHeap::new() }
    }
}

impl<E> Clock<E> {
    /// The time, in ns.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Events that have happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.taken
    }

    /// Lets `event` happen at a time; one that has passed is now.
    pub fn at(&mut self, at_ns: u64, event: E) {
        self.made += 1;
        self.coming.push(Entry { at_ns: at_ns.max(self.now_ns), number: self.made, event });
    }

    /// Lets `event` happen after a time.
    pub fn after(&mut self, ns: u64, event: E) {
        self.at(self.now_ns + ns, event);
    }

    /// The next event, whose time it is then.
    pub fn next_event(&mut self) -> Option<E> {
        let entry = self.coming.pop()?;
        self.now_ns = entry.at_ns;
        self.taken += 1;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_by_making() {
        let mut clock = Clock::default();
        clock.at(30, 'c');
        clock.at(10, 'a');
        clock.at(30, 'd');
        clock.at(20, 'b');
        let order: String = std::iter::from_fn(|| clock.next_event()).collect();
        assert_eq!((order.as_str(), clock.now_ns(), clock.events()), ("abcd", 30, 4));
        clock.at(5, 'e');
        assert_eq!((clock.next_event(), clock.now_ns()), (Some('e'), 30));
    }
}
