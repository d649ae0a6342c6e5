//! The rounds of one workload, sorted by where the two CPUs were, and what they come to.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::contest::Measure;
use super::distance::Place;
use super::{NAMES, RING};

/// Rounds on two cores after which a workload has been measured.
pub const ROUNDS: usize = 201;
/// Rounds on two cores without which there is no verdict.
pub const ROUNDS_MIN: usize = 61;

/// One round: every queue measured once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// Items per second, queue by queue.
    pub items_per_s: [f64; NAMES.len()],
    /// Nanoseconds per hand-over before and after each.
    pub hand_over_ns: [[f64; 2]; NAMES.len()],
}

impl Round {
    /// The round of these measures.
    pub fn new(measures: [Measure; NAMES.len()]) -> Self {
        Self {
            items_per_s: measures.map(|measure| measure.items_per_s),
            hand_over_ns: measures.map(|measure| measure.hand_over_ns),
        }
    }

    fn ratio(&self) -> f64 {
        self.items_per_s[RING] / self.items_per_s[best_peer(&self.items_per_s)]
    }
}

/// All rounds of one workload.
#[derive(Debug, Default)]
pub struct Tally {
    /// On two cores: those that count.
    pub cores: Vec<Round>,
    /// On two hardware threads of one core.
    pub shared_core: Vec<Round>,
    /// Rounds in which the CPUs moved from one to the other, and which nothing can be learnt from.
    pub moved: usize,
    /// Measures that were disturbed and taken again.
    pub disturbed: u32,
}

/// The medians of the rounds that count.
#[derive(Debug, PartialEq)]
pub struct Medians {
    /// Items per second, queue by queue.
    pub items_per_s: [f64; NAMES.len()],
    /// Nanoseconds per hand-over.
    pub hand_over_ns: f64,
    /// The queue, other than the ring, with the best of `items_per_s`.
    pub best_peer: usize,
    /// The ring's rate over that of each round's own best peer.
    pub ratio: f64,
}

impl Tally {
    /// Takes a round in; whether it counts.
    pub fn add(&mut self, round: Round, alone_ns: f64) -> bool {
        let place = Place::of(round.hand_over_ns.into_iter().flatten(), alone_ns);
        match place {
            Some(Place::Cores) => self.cores.push(round),
            Some(Place::SharedCore) => self.shared_core.push(round),
            None => self.moved += 1,
        }
        place == Some(Place::Cores)
    }

    /// What the rounds on two cores come to, if there are any.
    pub fn medians(&self) -> Option<Medians> {
        let items_per_s: [Option<f64>; NAMES.len()] =
            std::array::from_fn(|who| median(self.cores.iter().map(|round| round.items_per_s[who])));
        let items_per_s = items_per_s.map(|rate| rate.unwrap_or(f64::NAN));
        Some(Medians {
            hand_over_ns: median(
                self.cores.iter().flat_map(|round| round.hand_over_ns.into_iter().flatten()),
            )?,
            best_peer: best_peer(&items_per_s),
            items_per_s,
            ratio: median(self.cores.iter().map(Round::ratio))?,
        })
    }

    /// The ratio on one core's two threads, if the CPUs ever were there.
    pub fn shared_core_ratio(&self) -> Option<f64> {
        median(self.shared_core.iter().map(Round::ratio))
    }

    /// Holds the ratio to `ratio_min`.
    ///
    /// # Errors
    /// A lower ratio; or too few rounds that count, with what came in their way in `took`.
    pub fn check(&self, ratio_min: f64, took: Duration) -> Result<()> {
        let (counted, seconds) = (self.cores.len(), took.as_secs());
        if counted < ROUNDS_MIN && self.shared_core.len() > self.moved.max(counted) {
            bail!(
                "the two CPUs are one core's hardware threads at the moment: no line moves between caches; run it \
                 where two cores are to be had, or again later ({counted} rounds on two cores in {seconds} s, \
                 {ROUNDS_MIN} make a verdict)"
            );
        }
        ensure!(
            counted >= ROUNDS_MIN,
            "only {counted} rounds on two cores in {seconds} s, {ROUNDS_MIN} make a verdict: the machine is busy, or \
             moves its CPUs about (in {} rounds); run it again when the machine is idle",
            self.moved
        );
        if let Some(medians) = self.medians() {
            ensure!(
                medians.ratio >= ratio_min,
                "in turns the ring makes {:.2} of {}'s rate; budget.toml asks for {ratio_min}",
                medians.ratio,
                NAMES[medians.best_peer]
            );
        }
        Ok(())
    }
}

fn best_peer(items_per_s: &[f64; NAMES.len()]) -> usize {
    (0..NAMES.len())
        .filter(|&who| who != RING)
        .max_by(|&a, &b| items_per_s[a].total_cmp(&items_per_s[b]))
        .unwrap_or(RING)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ALONE_NS: f64 = 3.2;
    const TOOK: Duration = Duration::from_secs(70);

    /// A round in which the ring does `ratio` times what the best peer does.
    fn round(ratio: f64, hand_over_ns: f64) -> Round {
        Round {
            items_per_s: [ratio * 100.0, 100.0, 10.0, 10.0, 50.0],
            hand_over_ns: [[hand_over_ns; 2]; NAMES.len()],
        }
    }

    /// So many rounds of each kind: ratio 1.5 on two cores, 0.9 on one.
    pub fn tally(cores: usize, shared_core: usize, moved: usize) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..cores {
            assert!(tally.add(round(1.5, 26.0), ALONE_NS));
        }
        for _ in 0..shared_core {
            assert!(!tally.add(round(0.9, 10.0), ALONE_NS));
        }
        for _ in 0..moved {
            let mut round = round(9.0, 26.0);
            round.hand_over_ns[3][1] = 10.0;
            assert!(!tally.add(round, ALONE_NS));
        }
        tally
    }

    #[test]
    fn a_round_counts_against_its_own_best_peer() {
        let mut tally = Tally::default();
        for items_per_s in
            [[150.0, 100.0, 10.0, 10.0, 50.0], [300.0, 100.0, 10.0, 10.0, 200.0], [20.0, 10.0, 1.0, 1.0, 5.0]]
        {
            tally.add(Round { items_per_s, ..round(1.0, 26.0) }, ALONE_NS);
        }
        let medians = tally.medians().unwrap();
        assert_eq!((medians.ratio, NAMES[medians.best_peer]), (1.5, "rtrb"));
        assert_eq!(medians.items_per_s, [150.0, 100.0, 10.0, 10.0, 50.0]);
    }

    #[test]
    fn only_rounds_on_two_cores_count() {
        let tally = tally(61, 500, 500);
        assert_eq!((tally.cores.len(), tally.shared_core.len(), tally.moved), (61, 500, 500));
        let medians = tally.medians().unwrap();
        assert_eq!((medians.ratio, medians.hand_over_ns), (1.5, 26.0));
        assert_eq!(tally.shared_core_ratio(), Some(0.9));
        assert!(tally.check(1.2, TOOK).is_ok());
    }

    #[test]
    fn enough_rounds_are_a_verdict_whatever_else_there_was() {
        assert!(tally(ROUNDS_MIN, 5_000, 0).check(1.2, TOOK).is_ok());
        assert!(tally(ROUNDS_MIN, 0, 5_000).check(1.2, TOOK).is_ok());
    }

    #[test]
    fn the_limit_is_met_at_the_limit_only() {
        assert!(tally(61, 0, 0).check(1.5, TOOK).is_ok());
        let error = tally(61, 0, 0).check(1.501, TOOK).unwrap_err().to_string();
        assert!(error.contains("1.50 of rtrb's") && error.contains("asks for 1.501"), "{error}");
    }

    #[test]
    fn too_few_rounds_are_no_verdict_and_say_why() {
        let error =
            |cores, shared, moved| tally(cores, shared, moved).check(1.2, TOOK).unwrap_err().to_string();
        for (cores, shared, moved) in [(0, 500, 0), (60, 61, 60)] {
            let error = error(cores, shared, moved);
            assert!(error.starts_with("the two CPUs are one core's hardware threads"), "{error}");
        }
        for (cores, shared, moved) in [(60, 0, 0), (60, 20, 400), (60, 20, 10), (0, 0, 0)] {
            let error = error(cores, shared, moved);
            assert!(error.starts_with(&format!("only {cores} rounds on two cores in 70 s")), "{error}");
        }
    }

    #[test]
    fn no_rounds_come_to_nothing() {
        assert_eq!((tally(0, 3, 0).medians(), tally(3, 0, 0).shared_core_ratio()), (None, None));
    }
}
