//! Where random tests get their seed: from `NEAP_SEED`, or by chance; printed either way.

use std::hash::{BuildHasher, RandomState};

use proptest::test_runner::{Config, RngSeed};

/// A configuration of `cases` cases whose seed is printed, so that a failure can be had again.
pub fn cases(cases: u32) -> Config {
    let chosen = std::env::var("NEAP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = chosen.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("seed {seed}: run with NEAP_SEED={seed} for the same cases");
    Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() }
}
