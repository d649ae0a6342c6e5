//! Load generators.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};

use crate::world::{Load, Request};

/// Latencies up to this are counted ns by ns in steps of 1/32: one part in 32 is as fine as a plot shows.
const BUCKETS: usize = 64 * 32;

/// A histogram of ns whose buckets are 1/32 of their size wide.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    fn bucket(ns: u64) -> usize {
        if ns < 32 {
            return ns as usize;
        }
        let shift = 63 - ns.leading_zeros() - 5;
        (shift as usize * 32 + (ns >> shift) as usize).min(BUCKETS - 1)
    }

    /// Notes one.
    pub fn record(&mut self, ns: u64) {
        self.counts[Self::bucket(ns)] += 1;
        self.total += 1;
    }

    /// The lower bound of the bucket below which the share `quantile` lies; 0 where nothing was noted.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let wanted = (self.total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                let (shift, rest) = ((bucket / 32).saturating_sub(1), bucket % 32);
                return if bucket < 32 { bucket as u64 } else { ((32 + rest) as u64) << shift };
            }
        }
        0
    }

    /// How many were noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }
}

/// Requests of two kinds, by a Poisson process.
#[derive(Debug)]
pub struct Poisson {
    rng: ChaCha8Rng,
    gaps: Exp<f64>,
    at_ns: f64,
    left: u64,
    short_ns: u64,
    long_ns: u64,
    long_share: f64,
    blocks_max: u8,
    classes: bool,
    groups: u32,
    /// From here on what ends counts.
    warm_ns: u64,
    /// Latencies of short requests.
    pub short: Histogram,
    /// Of long ones.
    pub long: Histogram,
    /// Requests ended since all was warm, and when the last did.
    pub ended: u64,
    /// When the last one that counts ended.
    pub last_ns: u64,
}

impl Poisson {
    /// `count` requests at `rate_hz`: GETs of `short_ns`, and with `long_share` RANGE queries of `long_ns`. What ends before
    /// `warm_ns` is not counted.
    ///
    /// # Panics
    /// A rate that is no positive number: the caller's mistake.
    #[must_use]
    pub fn new(seed: u64, rate_hz: f64, count: u64, warm_ns: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            gaps: Exp::new(rate_hz / 1e9).expect("a rate is a positive number"),
            at_ns: 0.0,
            left: count,
            short_ns: 10_000,
            long_ns: 10_000_000,
            long_share: 0.0,
            blocks_max: 0,
            classes: false,
            groups: 0,
            warm_ns,
            short: Histogram::default(),
            long: Histogram::default(),
            ended: 0,
            last_ns: 0,
        }
    }

    /// With 0.5 % RANGE queries of 10 ms (section 7.2).
    #[must_use]
    pub fn dispersive(mut self) -> Self {
        self.long_share = 0.005;
        self
    }

    /// Requests of other lengths, of which a part is long.
    #[must_use]
    pub fn of_ns(mut self, short_ns: u64, long_ns: u64, long_share: f64) -> Self {
        (self.short_ns, self.long_ns, self.long_share) = (short_ns, long_ns, long_share);
        self
    }

    /// Requests that block on their way, up to so many times.
    #[must_use]
    pub fn blocking(mut self, times: u8) -> Self {
        self.blocks_max = times;
        self
    }

    /// Each request says its class: 1 for short ones, 2 for long.
    #[must_use]
    pub fn classed(mut self) -> Self {
        self.classes = true;
        self
    }

    /// Each request is of one of so many groups.
    #[must_use]
    pub fn grouped(mut self, groups: u32) -> Self {
        self.groups = groups;
        self
    }

    /// Requests a second, of those that count.
    #[must_use]
    pub fn throughput_hz(&self) -> f64 {
        let time_ns = self.last_ns.saturating_sub(self.warm_ns);
        if time_ns == 0 { 0.0 } else { self.ended as f64 * 1e9 / time_ns as f64 }
    }
}

impl Load for Poisson {
    fn next_request(&mut self) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        self.at_ns += self.gaps.sample(&mut self.rng);
        let long = self.long_share > 0.0 && self.rng.random_bool(self.long_share);
        Some(Request {
            at_ns: self.at_ns as u64,
            run_ns: if long { self.long_ns } else { self.short_ns },
            class: if self.classes { 1 + u8::from(long) } else { 0 },
            group: if self.groups > 0 { self.rng.random_range(1..=self.groups) } else { 0 },
            thread: 0,
            blocks: if self.blocks_max > 0 { self.rng.random_range(0..=self.blocks_max) } else { 0 },
        })
    }

    fn finished(&mut self, request: &Request, now_ns: u64) -> Option<Request> {
        if now_ns < self.warm_ns {
            return None;
        }
        self.ended += 1;
        self.last_ns = now_ns;
        let kind = if request.run_ns == self.long_ns { &mut self.long } else { &mut self.short };
        kind.record(now_ns - request.at_ns);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_32nd() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ns(0.5), 0);
        (1..=1_000_000).for_each(|ns| histogram.record(ns));
        for (quantile, want) in [(0.5, 500_000.0), (0.99, 990_000.0), (1.0, 1_000_000.0), (0.00001, 10.0)] {
            let got = histogram.quantile_ns(quantile) as f64;
            assert!(got <= want && got >= want * 31.0 / 32.0 - 1.0, "{quantile}: {got}, not {want}");
        }
    }

    #[test]
    fn a_poisson_load_comes_at_its_rate_and_from_its_seed() {
        let all = |seed| {
            let mut load = Poisson::new(seed, 1e6, 100_000, 0).dispersive();
            std::iter::from_fn(move || load.next_request()).map(|r| (r.at_ns, r.run_ns)).collect::<Vec<_>>()
        };
        let (first, again, other) = (all(1), all(1), all(2));
        assert!(first == again && first != other);
        let last_ns = first.last().unwrap().0;
        assert!((95_000_000..105_000_000).contains(&last_ns), "{last_ns}");
        let long = first.iter().filter(|(_, run_ns)| *run_ns == 10_000_000).count();
        assert!((400..600).contains(&long), "{long}");
    }
}
