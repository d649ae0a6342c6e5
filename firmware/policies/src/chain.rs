//! Numbers below 256 (host CPUs, groups) in lists, each number in one list at most. Every operation takes constant time.

/// Numbers that there are.
pub const NUMBERS: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u8,
    previous: u8,
    is_in: bool,
    list: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    head: u8,
    tail: u8,
    length: u16,
}

/// `K` lists (a power of two); one that is not below `K` is one that is.
#[derive(Clone, Debug)]
pub struct Chains<const K: usize> {
    links: [Link; NUMBERS],
    ends: [Ends; K],
}

impl<const K: usize> Default for Chains<K> {
    fn default() -> Self {
        const { assert!(K.is_power_of_two() && K <= NUMBERS) };
        let apart = Link { next: 0, previous: 0, is_in: false, list: 0 };
        Self { links: [apart; NUMBERS], ends: [Ends::default(); K] }
    }
}

impl<const K: usize> Chains<K> {
    #[inline(always)]
    fn link(&mut self, number: u8) -> &mut Link {
        &mut self.links[usize::from(number)]
    }

    #[inline(always)]
    fn ends(&mut self, list: usize) -> &mut Ends {
        &mut self.ends[list & (K - 1)]
    }

    /// The first of a list.
    #[must_use]
    #[inline(always)]
    pub fn first(&self, list: usize) -> Option<u8> {
        let ends = self.ends[list & (K - 1)];
        (ends.length > 0).then_some(ends.head)
    }

    /// The one behind `number` in its list.
    #[must_use]
    #[inline(always)]
    pub fn after(&self, number: u8) -> Option<u8> {
        let link = self.links[usize::from(number)];
        let tail = self.ends[usize::from(link.list) & (K - 1)].tail;
        (link.is_in && tail != number).then_some(link.next)
    }

    /// How many are in a list.
    #[must_use]
    #[inline(always)]
    pub fn len(&self, list: usize) -> u16 {
        self.ends[list & (K - 1)].length
    }

    /// Whether none is in a list.
    #[must_use]
    #[inline(always)]
    pub fn is_empty(&self, list: usize) -> bool {
        self.len(list) == 0
    }

    /// Puts a number at the end of a list, out of the one where it was.
    #[inline(always)]
    pub fn push_back(&mut self, list: usize, number: u8) {
        self.remove(number);
        let Ends { tail, length, .. } = *self.ends(list);
        if length == 0 {
            self.ends(list).head = number;
        } else {
            self.link(tail).next = number;
        }
        let ends = self.ends(list);
        ends.tail = number;
        ends.length = length + 1;
        *self.link(number) = Link { next: 0, previous: tail, is_in: true, list: (list & (K - 1)) as u8 };
    }

    /// Takes a number out of its list, if it is in one.
    #[inline(always)]
    pub fn remove(&mut self, number: u8) {
        let link = *self.link(number);
        if !link.is_in {
            return;
        }
        self.link(number).is_in = false;
        let ends = self.ends(usize::from(link.list));
        ends.length = ends.length.saturating_sub(1);
        let Ends { head, tail, .. } = *ends;
        if head == number {
            ends.head = link.next;
        } else if tail == number {
            ends.tail = link.previous;
        } else {
            self.link(link.previous).next = link.next;
            self.link(link.next).previous = link.previous;
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Any run of operations is the run of some deques.
        #[test]
        fn behaves_as_deques(steps in prop::collection::vec((0u8..5, 0usize..4, 0u8..12), 0..400)) {
            let mut chains = Chains::<4>::default();
            let mut model: [VecDeque<u8>; 4] = Default::default();
            for (step, list, number) in steps {
                if step < 3 {
                    chains.push_back(list, number);
                    model.iter_mut().for_each(|list| list.retain(|&other| other != number));
                    model[list].push_back(number);
                } else {
                    chains.remove(number);
                    model.iter_mut().for_each(|list| list.retain(|&other| other != number));
                }
                for (list, model) in model.iter().enumerate() {
                    let mut seen = VecDeque::new();
                    let mut next = chains.first(list);
                    while let Some(number) = next {
                        seen.push_back(number);
                        next = chains.after(number);
                    }
                    prop_assert_eq!((&seen, usize::from(chains.len(list))), (model, model.len()));
                }
            }
        }
    }
}
