//! Poisson arrivals: independent exponential gaps, the same for the same seed.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};

/// When each request arrives, counted from the load's start; endless.
pub struct Arrivals {
    gaps: Exp<f64>,
    random: ChaCha8Rng,
    at_s: f64,
}

impl Arrivals {
    /// Arrivals at a mean of `rate` per second, which is above 0.
    pub fn new(rate: f64, seed: u64) -> Result<Self> {
        let gaps = Exp::new(rate).with_context(|| format!("{rate} requests/s is no rate"))?;
        Ok(Self { gaps, random: ChaCha8Rng::seed_from_u64(seed), at_s: 0.0 })
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at_s += self.gaps.sample(&mut self.random);
        // A rate near 0 gives gaps that no Duration holds: never is soon enough for those.
        Some(Duration::try_from_secs_f64(self.at_s).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_arrivals_and_no_others() {
        let of = |seed| -> Vec<Duration> { Arrivals::new(3000.0, seed).unwrap().take(1000).collect() };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).is_sorted());
    }

    /// Mean and variance of the gaps are those of the exponential distribution, and the memory of the last gap is none.
    #[test]
    fn gaps_are_exponential() {
        let seed = 42;
        let at: Vec<f64> =
            Arrivals::new(500.0, seed).unwrap().take(100_000).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 500.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "deviation {}", variance.sqrt());
        let together: f64 = gaps.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
        let correlation = together / (gaps.len() as f64 * variance);
        assert!(correlation.abs() < 0.02, "correlation {correlation}");
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        assert!(Arrivals::new(f64::NAN, 1).is_err());
        assert!(Arrivals::new(-1.0, 1).is_err());
    }
}
