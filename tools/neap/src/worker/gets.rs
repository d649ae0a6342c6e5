//! What a request does: GETs of random keys, checked; some requests block or yield between two. Of a dispersive load a few
//! requests are RANGE queries, which read four thousand keys (paper section 7.2: 99.5 % GETs of 10 µs, 0.5 % RANGE of 10 ms).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use neap_host::worker::{Nature, Step, Work};

use super::mix;
use super::store::Store;
use crate::report::{LoadKind, Parameters};

/// The shortest and the longest time that a task blocks, in µs.
const BLOCK_US: (u64, u64) = (100, 300);

/// Of 10,000 requests of a dispersive load this many are RANGE queries.
const RANGES: u64 = 50;
/// Parts of a RANGE query; between two it can be preempted.
const RANGE_PARTS: u32 = 250;
/// Keys that a part reads.
const PART_KEYS: u64 = 16;
/// Classes of GETs and of RANGE queries.
const CLASSES: (u8, u8) = (1, 2);
/// Groups that requests are spread over, as if each were a VM.
const GROUPS: u64 = 4;

/// The store with the load on it. What request *n* does follows from the seed and *n* alone.
pub struct Gets {
    store: Store,
    seed: u64,
    /// Of 10,000 requests this many block, and those up to the second bound yield.
    bounds: (u64, u64),
    load: LoadKind,
    wrong: AtomicU64,
    first_wrong: Mutex<Option<String>>,
}

impl Gets {
    /// Requests on `store` as `asked`.
    pub fn new(store: Store, asked: &Parameters) -> Self {
        let blocking = (asked.blocking_percent * 100.0).round() as u64;
        let yielding = (asked.yielding_percent * 100.0).round() as u64;
        Self {
            store,
            seed: asked.seed,
            bounds: (blocking, blocking + yielding),
            load: asked.load,
            wrong: AtomicU64::new(0),
            first_wrong: Mutex::new(None),
        }
    }

    /// GETs that did not return what they must.
    pub fn wrong(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    /// The first of them, in words.
    pub fn first_wrong(&self) -> Option<String> {
        self.first_wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the first step of `request` ends.
    fn shape(&self, request: u64) -> Step {
        let draw = mix(self.seed, request, u64::MAX) % 10_000;
        if draw < self.bounds.0 {
            let for_us = BLOCK_US.0 + mix(self.seed, request, u64::MAX - 1) % (BLOCK_US.1 - BLOCK_US.0 + 1);
            return Step::Block { for_us };
        }
        if draw < self.bounds.1 { Step::Yield } else { Step::Done }
    }
}

impl Gets {
    fn is_range(&self, request: u64) -> bool {
        self.load == LoadKind::Dispersive && mix(self.seed, request, u64::MAX - 2) % 10_000 < RANGES
    }

    fn get(&self, request: u64, key: u64) {
        if let Err(error) = self.store.get_and_check(key) {
            self.wrong.fetch_add(1, Ordering::Relaxed);
            let mut first = self.first_wrong.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| format!("request {request}: {error:#}"));
        }
    }
}

impl Work for Gets {
    fn nature(&self, request: u64) -> Nature {
        let is_long = self.is_range(request);
        let class = match self.load {
            LoadKind::Gets => 0,
            LoadKind::Dispersive if is_long => CLASSES.1,
            LoadKind::Dispersive => CLASSES.0,
        };
        Nature { class, group: 1 + (request % GROUPS) as u32, is_long }
    }

    fn step(&self, request: u64, step: u32) -> Step {
        let keys = self.store.keys();
        if self.is_range(request) {
            let first = mix(self.seed, request, 0) % keys + u64::from(step) * PART_KEYS;
            (first..first + PART_KEYS).for_each(|key| self.get(request, key % keys));
            return if step + 1 < RANGE_PARTS { Step::Going } else { Step::Done };
        }
        self.get(request, mix(self.seed, request, u64::from(step)) % keys);
        if step == 0 { self.shape(request) } else { Step::Done }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    fn gets(blocking_percent: f64, yielding_percent: f64) -> Gets {
        let asked = Parameters { blocking_percent, yielding_percent, ..example().parameters };
        Gets::new(Store::load(100, asked.seed, |_| {}).unwrap(), &asked)
    }

    #[test]
    fn shares_are_those_asked_for() {
        let gets = gets(5.0, 20.0);
        let steps: Vec<Step> = (0..20_000).map(|request| gets.step(request, 0)).collect();
        let blocked = steps.iter().filter(|step| matches!(step, Step::Block { for_us: 100..=300 })).count();
        let yielded = steps.iter().filter(|step| **step == Step::Yield).count();
        assert!((900..1100).contains(&blocked) && (3800..4200).contains(&yielded), "{blocked} {yielded}");
        assert!((0..1000).all(|request| gets.step(request, 1) == Step::Done));
        assert_eq!((gets.wrong(), gets.first_wrong()), (0, None));
    }

    #[test]
    fn none_and_all_are_exact() {
        let (none, all) = (gets(0.0, 0.0), gets(0.0, 100.0));
        assert!((0..1000).all(|request| none.step(request, 0) == Step::Done));
        assert!((0..1000).all(|request| all.step(request, 0) == Step::Yield));
    }

    #[test]
    fn a_dispersive_load_has_one_long_request_in_two_hundred() {
        let asked = Parameters { load: LoadKind::Dispersive, blocking_percent: 0.0, ..example().parameters };
        let gets = Gets::new(Store::load(100, asked.seed, |_| {}).unwrap(), &asked);
        let long: Vec<u64> = (0..40_000).filter(|&request| gets.nature(request).is_long).collect();
        assert!((150..250).contains(&long.len()), "{}", long.len());
        let parts = (0..).find(|&step| gets.step(long[0], step) == Step::Done);
        assert_eq!((parts, gets.wrong()), (Some(RANGE_PARTS - 1), 0));
        assert_eq!(gets.nature(long[0]).class, CLASSES.1);
        assert!((0..100).all(|request| gets.step(request, 0) != Step::Going || long.contains(&request)));
    }

    #[test]
    fn wrong_values_are_counted_and_the_first_is_told() {
        let asked = Parameters { keys: 100, ..example().parameters };
        // The load draws from more keys than there are: those above are missing.
        let store = Store::load(100, asked.seed, |_| {}).unwrap().claiming(1 << 40);
        let gets = Gets::new(store, &asked);
        gets.step(7, 0);
        gets.step(8, 0);
        assert_eq!(gets.wrong(), 2);
        assert!(gets.first_wrong().unwrap().starts_with("request 7: key "));
    }
}
