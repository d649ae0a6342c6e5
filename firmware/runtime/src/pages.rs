//! The pages that agents can have: handed out in runs, counted one by one.
//!
//! A run is what one agent is laid out in, so that it goes back whole. The pool knows nothing of what lies in a page.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use neap_abi::image::PAGE_BYTES;

/// A pool over one range of memory.
#[derive(Debug)]
pub struct Pages {
    start: u64,
    /// One bit a page, set while it is taken.
    taken: Vec<u64>,
    count: u32,
    free: u32,
}

/// Some neighbouring pages, taken. They go back by [`Pages::give_back`] only: a run that is dropped is lost, and the
/// books show it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Run {
    first: u32,
    count: u32,
    start: u64,
}

impl Run {
    /// Its memory.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.count) * PAGE_BYTES
    }

    /// Its pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Pages {
    /// A pool of the whole pages in `memory`.
    #[must_use]
    pub fn new(memory: Range<u64>) -> Self {
        let start = memory.start.next_multiple_of(PAGE_BYTES);
        let count = (memory.end.saturating_sub(start) / PAGE_BYTES) as u32;
        Self { start, taken: vec![0; count.div_ceil(64) as usize], count, free: count }
    }

    /// Pages in all.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Pages that nobody has.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    fn is_taken(&self, page: u32) -> bool {
        self.taken.get(page as usize / 64).is_none_or(|word| word >> (page % 64) & 1 == 1)
    }

    fn mark(&mut self, pages: Range<u32>, taken: bool) {
        for page in pages {
            if let Some(word) = self.taken.get_mut(page as usize / 64) {
                *word = *word & !(1 << (page % 64)) | u64::from(taken) << (page % 64);
            }
        }
    }

    /// The first run of `count` neighbouring pages; none if there is none, or for no pages.
    pub fn take(&mut self, count: u32) -> Option<Run> {
        if count == 0 || count > self.free {
            return None;
        }
        let mut first = 0;
        let mut page = 0;
        while page < self.count {
            if self.is_taken(page) {
                first = page + 1;
            } else if page + 1 - first == count {
                self.mark(first..page + 1, true);
                self.free -= count;
                return Some(Run { first, count, start: self.start + u64::from(first) * PAGE_BYTES });
            }
            page += 1;
        }
        None
    }

    /// Takes a run back.
    pub fn give_back(&mut self, run: Run) {
        self.mark(run.first..run.first + run.count, false);
        self.free += run.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_lie_apart_inside_and_come_back() {
        let mut pages = Pages::new(0x1001..0x1001 + 100 * PAGE_BYTES);
        assert_eq!((pages.count(), pages.free()), (99, 99));
        let a = pages.take(10).unwrap();
        let b = pages.take(20).unwrap();
        assert_eq!(a.range(), 0x2000..0x2000 + 10 * PAGE_BYTES);
        assert_eq!(b.range().start, a.range().end);
        assert_eq!(pages.take(70), None);
        assert_eq!(pages.take(0), None);
        pages.give_back(a);
        assert_eq!(pages.free(), 79);
        let c = pages.take(11).unwrap();
        assert_eq!(c.range().start, b.range().end, "ten pages are no place for eleven");
        assert_eq!(pages.take(10).unwrap().range().start, 0x2000);
        assert_eq!(Pages::new(0x1001..0x1fff).count(), 0);
    }

    #[test]
    fn random_takes_and_returns_never_overlap_and_lose_nothing() {
        for seed in 1..=50u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut next = move |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % below) as u32
            };
            let mut pages = Pages::new(0..300 * PAGE_BYTES);
            let mut held: Vec<Run> = Vec::new();
            for _ in 0..300 {
                if next(3) > 0 {
                    let Some(run) = pages.take(next(40)) else { continue };
                    let apart = |other: &Run| {
                        run.range().end <= other.range().start || other.range().end <= run.range().start
                    };
                    assert!(held.iter().all(apart) && run.range().end <= 300 * PAGE_BYTES, "seed {seed}");
                    held.push(run);
                } else if !held.is_empty() {
                    let run = held.swap_remove(next(held.len() as u64) as usize);
                    pages.give_back(run);
                }
                let taken: u32 = held.iter().map(Run::count).sum();
                assert_eq!(pages.free(), 300 - taken, "seed {seed}");
            }
            held.drain(..).for_each(|run| pages.give_back(run));
            assert_eq!(pages.take(300).map(|run| run.count()), Some(300), "seed {seed}");
        }
    }
}
