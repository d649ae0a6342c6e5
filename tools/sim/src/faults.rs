//! What goes wrong, and the search for a seed in which something then is lost.

use std::fmt;

use neap_abi::VERSION;
use neap_policies::{Fifo, Task};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::columns::Column;
use crate::load::Poisson;
use crate::parameters::Parameters;
use crate::world::{Memory, Seen, Setup, World};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Posted writes come late.
    DelayedWrite,
    /// Their words land in any order, each at its own time.
    SplitWrite,
    /// A flush does not flush.
    StaleLine,
    /// An MSI-X is lost.
    LostRing,
    /// It comes late.
    LateRing,
    /// It comes twice.
    DoubledRing,
    /// The agent ends.
    Crash,
    /// The agent hangs.
    Hang,
    /// The function is reset: slots and control line are zero.
    Reset,
    /// The link is down for some ms: reads give ones.
    LinkDown,
}

impl FaultKind {
    /// How many kinds there are.
    pub const COUNT: usize = 10;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::DelayedWrite,
        Self::SplitWrite,
        Self::StaleLine,
        Self::LostRing,
        Self::LateRing,
        Self::DoubledRing,
        Self::Crash,
        Self::Hang,
        Self::Reset,
        Self::LinkDown,
    ];
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// From when on, in ns.
    pub at_ns: u64,
    /// What.
    pub kind: FaultKind,
    /// How often in a row; for a link, for how many ms.
    pub count: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        write!(f, "{}@{}us x{}", kind.as_str().unwrap_or("?"), self.at_ns / 1_000, self.count)
    }
}

/// One world in which things go wrong, all of it from a seed.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where it is from.
    pub seed: u64,
    cpus: u16,
    tasks: u32,
    ring_lines: usize,
    rate_hz: f64,
    requests: u64,
    blocks_max: u8,
    run_ns: u64,
    minor: u8,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// Time in which things go wrong, in ns.
const TROUBLED_NS: u64 = 60_000_000;
/// Time after which every task must have ended.
const OVER_NS: u64 = 1_500_000_000;
/// Nobody waits longer.
const STARVED_NS: u64 = 400_000_000;
/// Agents that there can be in one world.
const AGENTS_MAX: usize = 40;

/// What became of a script.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was seen, violations among it.
    pub seen: Seen,
    /// Events that happened.
    pub events: u64,
}

impl Script {
    /// The script of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cpus = rng.random_range(1..=8);
        let count = rng.random_range(0..=8);
        let mut faults: Vec<Fault> = (0..count)
            .map(|_| {
                let kind = FaultKind::ALL[rng.random_range(0..FaultKind::COUNT)];
                let most = match kind {
                    FaultKind::LinkDown => 20,
                    FaultKind::Crash | FaultKind::Hang | FaultKind::Reset => 1,
                    FaultKind::DelayedWrite | FaultKind::SplitWrite => 200,
                    _ => 20,
                };
                Fault { at_ns: rng.random_range(0..TROUBLED_NS), kind, count: rng.random_range(1..=most) }
            })
            .collect();
        faults.sort_by_key(|fault| fault.at_ns);
        Self {
            seed,
            cpus,
            tasks: rng.random_range(1..=64),
            ring_lines: 1 << rng.random_range(3..=10),
            rate_hz: f64::from(cpus) * rng.random_range(2_000.0..40_000.0),
            requests: rng.random_range(50..400),
            blocks_max: rng.random_range(0..=3),
            run_ns: rng.random_range(2_000..60_000),
            minor: rng.random_range(0..=VERSION.minor as u16) as u8,
            faults,
        }
    }

    /// Lets it happen.
    #[must_use]
    pub fn run(&self) -> Verdict {
        let memory = Memory::new(self.ring_lines, self.cpus);
        let mut tables: Vec<Box<[Task; 64]>> = (0..AGENTS_MAX).map(|_| Box::new([Task::ABSENT; 64])).collect();
        let mut tables = tables.iter_mut();
        let cpus = self.cpus;
        let setup = Setup {
            cpus,
            tasks: self.tasks,
            costs: Column::Neap.costs(&Parameters::usual()),
            version: neap_abi::Version { minor: self.minor.into(), ..VERSION },
            faults: true,
            starved_ns: STARVED_NS,
        };
        let load = Poisson::new(self.seed ^ 1, self.rate_hz, self.requests, 0)
            .of_ns(self.run_ns)
            .blocking(self.blocks_max);
        let rng = ChaCha8Rng::seed_from_u64(self.seed ^ 2);
        let make = || Fifo::<64>::new(cpus, tables.next().expect("a script ends fewer agents"));
        let mut world = World::new(setup, &memory, make, load, rng, self.faults.clone());
        while !(world.drained() && world.clock.now_ns() > TROUBLED_NS)
            && world.seen.violations.is_empty()
            && world.clock.now_ns() < OVER_NS
        {
            world.run(world.clock.now_ns() + 1_000_000);
        }
        if !world.drained() && world.seen.violations.is_empty() {
            let left = world.seen.arrived - world.seen.finished;
            world.seen.violations.push(format!("{left} tasks have not ended"));
        }
        if world.drained() && world.seen.finished != self.requests {
            let (finished, requests) = (world.seen.finished, self.requests);
            world.seen.violations.push(format!("{finished} requests ended of {requests}"));
        }
        Verdict { events: world.clock.events(), seen: world.seen }
    }

    /// The shortest list of faults, taken from this one's, in which something is still violated.
    #[must_use]
    pub fn shrunk(&self) -> Self {
        let mut best = self.clone();
        let mut at = 0;
        while at < best.faults.len() {
            let mut less = best.clone();
            less.faults.remove(at);
            if less.run().seen.violations.is_empty() {
                at += 1;
            } else {
                best = less;
            }
        }
        for at in 0..best.faults.len() {
            while best.faults[at].count > 1 {
                let mut less = best.clone();
                less.faults[at].count /= 2;
                if less.run().seen.violations.is_empty() {
                    break;
                }
                best = less;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        for seed in 0..20 {
            let script = Script::of(seed);
            let (a, b) = (script.run(), script.run());
            assert_eq!((a.seen.trace_hash, a.events), (b.seen.trace_hash, b.events), "seed {seed}");
        }
        assert_ne!(Script::of(1).run().seen.trace_hash, Script::of(2).run().seen.trace_hash);
    }

    #[test]
    fn nothing_is_violated() {
        let mut faults = 0;
        for seed in 0..300 {
            let verdict = Script::of(seed).run();
            assert!(
                verdict.seen.violations.is_empty(),
                "seed {seed}: {:?}\nwhat goes wrong: {:?}",
                verdict.seen.violations,
                Script::of(seed).faults.iter().map(ToString::to_string).collect::<Vec<_>>()
            );
            faults += verdict.seen.faults;
        }
        assert!(faults > 1000, "{faults} faults took place in 300 seeds");
    }
}
