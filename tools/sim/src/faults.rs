//! What goes wrong, and the search for a seed in which something then is lost.

use std::fmt;

use neap_abi::{Clock, VERSION};
use neap_agent::Policy;
use neap_policies::Task;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::columns::Column;
use crate::load::Poisson;
use crate::parameters::Parameters;
use crate::policy::{Chosen, with_policy};
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
    /// The host reboots, and is away for some ms.
    HostReboot,
}

impl FaultKind {
    /// How many kinds there are.
    pub const COUNT: usize = 11;
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
        Self::HostReboot,
    ];
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// From when on, in ns.
    pub at_ns: u64,
    /// What.
    pub kind: FaultKind,
    /// How often in a row; for a link and a host, for how many ms.
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
    minor: u16,
    foreign: u64,
    policy: Chosen,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// Time in which things go wrong, in ns.
const TROUBLED_NS: u64 = 60_000_000;
/// Time after which every task must have ended.
const OVER_NS: u64 = 8_000_000_000;
/// Nobody waits longer, but for what is lost.
const STARVED_NS: u64 = 200_000_000;
/// A doorbell that is lost, or a line that stays stale, is made good when the CPU next looks by itself.
const LOST_NS: u64 = 25_000_000;
/// Long requests: how much longer, and which part of all.
const LONG: u64 = 10;
const LONG_SHARE: f64 = 0.1;
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
    /// The script of a seed, under a policy; where none is named, seeds take turns at them.
    ///
    /// # Panics
    /// Never: there are policies.
    #[must_use]
    pub fn of(seed: u64, policy: Option<Chosen>) -> Self {
        let policy = policy.unwrap_or(Chosen::ALL[(seed % Chosen::ALL.len() as u64) as usize]);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cpus = rng.random_range(1..=8);
        let count = rng.random_range(0..=8);
        let mut faults: Vec<Fault> = (0..count)
            .map(|_| {
                let kind = FaultKind::ALL[rng.random_range(0..FaultKind::COUNT)];
                let most = match kind {
                    FaultKind::LinkDown | FaultKind::HostReboot => 20,
                    FaultKind::Crash | FaultKind::Hang | FaultKind::Reset => 1,
                    FaultKind::DelayedWrite | FaultKind::SplitWrite => 200,
                    _ => 20,
                };
                Fault { at_ns: rng.random_range(0..TROUBLED_NS), kind, count: rng.random_range(1..=most) }
            })
            .collect();
        faults.sort_by_key(|fault| fault.at_ns);
        // Now and then a CPU among them is another enclave's.
        let shares = cpus > 1 && rng.random_range(0..4) == 0;
        let foreign = if shares { 1 << rng.random_range(0..cpus) } else { 0 };
        Self {
            seed,
            cpus,
            tasks: rng.random_range(1..=64),
            ring_lines: 1 << rng.random_range(3..=10),
            rate_hz: f64::from(cpus) * rng.random_range(2_000.0..40_000.0),
            requests: rng.random_range(50..400),
            blocks_max: rng.random_range(0..=3),
            run_ns: rng.random_range(2_000..60_000),
            // One version apart they have to work together.
            minor: VERSION.minor - rng.random_range(0..=1),
            foreign,
            policy,
            faults,
        }
    }

    /// Lets it happen.
    #[must_use]
    pub fn run(&self) -> Verdict {
        let memory = Memory::new(self.ring_lines, self.cpus);
        let mut tables: Vec<Box<[Task; 64]>> =
            (0..AGENTS_MAX).map(|_| Box::new([Task::ABSENT; 64])).collect();
        let mut tables = tables.iter_mut();
        let cpus = self.cpus;
        let mut table = || tables.next().expect("a script ends fewer agents");
        with_policy!(self.policy, cpus, 64, |make| self.run_with(&memory, || make(table())))
    }

    fn run_with<'m, P: Policy>(&self, memory: &'m Memory, make: impl FnMut() -> P + 'm) -> Verdict {
        let lost = |fault: &&Fault| {
            matches!(fault.kind, FaultKind::LostRing | FaultKind::LateRing | FaultKind::StaleLine)
        };
        let lost: u64 = self.faults.iter().filter(lost).map(|fault| u64::from(fault.count)).sum();
        let setup = Setup {
            cpus: self.cpus,
            foreign: self.foreign,
            tasks: self.tasks,
            costs: Column::Neap.costs(&Parameters::usual()),
            version: neap_abi::Version { minor: self.minor, ..VERSION },
            clock: Clock::Own,
            is_told: false,
            agents_max: AGENTS_MAX as u32,
            faults: true,
            starved_ns: STARVED_NS + lost * LOST_NS,
        };
        let mut load = Poisson::new(self.seed ^ 1, self.rate_hz, self.requests, 0)
            .of_ns(self.run_ns, LONG * self.run_ns, LONG_SHARE)
            .blocking(self.blocks_max)
            .classed()
            .grouped(3);
        let rng = ChaCha8Rng::seed_from_u64(self.seed ^ 2);
        let mut world = World::new(setup, memory, make, &mut load, rng, self.faults.clone());
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
        let harmless = |fault: &Fault| {
            matches!(fault.kind, FaultKind::DelayedWrite | FaultKind::SplitWrite | FaultKind::DoubledRing)
        };
        if world.seen.fallbacks > 0 && self.faults.iter().all(harmless) {
            world.seen.violations.push("the agent was ended, and nothing had gone wrong with it".to_owned());
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

/// What a search has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// Seeds that were run.
    pub seeds: u64,
    /// The first of them.
    pub from: u64,
    /// Events in all of them.
    pub events: u64,
    /// Things that went wrong in them.
    pub faults: u64,
    /// Times that a host decided for itself.
    pub fallbacks: u64,
    /// Times that an agent was told the whole state.
    pub resyncs: u64,
    /// Seeds in which something was violated.
    pub violations: u64,
    /// A digest of all traces.
    pub trace_hash: String,
    /// The first few of those seeds.
    pub failing: Vec<Failing>,
}

/// A seed in which something was violated.
#[derive(Clone, Debug, Serialize)]
pub struct Failing {
    /// The seed: all of it comes from that.
    pub seed: u64,
    /// What was violated.
    pub violation: String,
    /// The fewest faults with which it still is.
    pub faults: Vec<String>,
}

/// Failing seeds that are told one by one.
const TOLD_MAX: usize = 5;

/// Runs `seeds` seeds from `from` on under `policy`, or under all in turn, on `threads` threads. The result does not depend on how many those are.
#[must_use]
pub fn search(
    policy: Option<Chosen>,
    from: u64,
    seeds: u64,
    threads: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Found {
    use std::sync::atomic::{AtomicU64, Ordering};
    let done = AtomicU64::new(0);
    let part = |thread: u64| {
        let mut found = Found::default();
        let mut digest = 0u64;
        let mut failing = Vec::new();
        for seed in (from + thread..from + seeds).step_by(threads.max(1) as usize) {
            let verdict = Script::of(seed, policy).run();
            found.events += verdict.events;
            found.faults += verdict.seen.faults;
            found.fallbacks += verdict.seen.fallbacks;
            found.resyncs += verdict.seen.resyncs;
            digest ^= verdict.seen.trace_hash.wrapping_mul(seed | 1);
            if !verdict.seen.violations.is_empty() {
                found.violations += 1;
                if failing.len() < TOLD_MAX {
                    failing.push(seed);
                }
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        (found, digest, failing)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|thread| scope.spawn(move || part(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a world does not panic")).collect()
    });
    let mut all = Found { seeds, from, ..Found::default() };
    let (mut digest, mut failing) = (0, Vec::new());
    for (found, part, seeds) in parts {
        all.events += found.events;
        all.faults += found.faults;
        all.fallbacks += found.fallbacks;
        all.resyncs += found.resyncs;
        all.violations += found.violations;
        digest ^= part;
        failing.extend(seeds);
    }
    failing.sort_unstable();
    all.trace_hash = format!("{digest:016x}");
    all.failing =
        failing.into_iter().take(TOLD_MAX).map(|seed| Failing::of(&Script::of(seed, policy))).collect();
    all
}

impl Failing {
    /// What fails in a script.
    #[must_use]
    pub fn of(script: &Script) -> Self {
        let shrunk = script.shrunk();
        let violation = script.run().seen.violations.into_iter().next().unwrap_or_default();
        Self { seed: script.seed, violation, faults: shrunk.faults.iter().map(ToString::to_string).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a reader that takes a line for whole by its first word (`--cfg careless`), a seed finds it, and finds it again.
    #[cfg(careless)]
    #[test]
    fn a_careless_ring_is_found_out_and_found_again() {
        let found = search(None, 0, 1_000, 2, &|_| {});
        let failing = found.failing.first().expect("no seed finds a torn line");
        println!("{failing:?}");
        let (a, b) = (Script::of(failing.seed, None).run(), Script::of(failing.seed, None).run());
        assert_eq!((&a.seen.violations, a.seen.trace_hash), (&b.seen.violations, b.seen.trace_hash));
        assert_eq!(a.seen.violations.first(), Some(&failing.violation));
        let shrunk = Script::of(failing.seed, None).shrunk();
        assert!(shrunk.faults.iter().any(|fault| fault.kind == FaultKind::SplitWrite), "{shrunk:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        for seed in 0..20 {
            let script = Script::of(seed, None);
            let (a, b) = (script.run(), script.run());
            assert_eq!((a.seen.trace_hash, a.events), (b.seen.trace_hash, b.events), "seed {seed}");
        }
        assert_ne!(Script::of(1, None).run().seen.trace_hash, Script::of(2, None).run().seen.trace_hash);
    }

    #[test]
    fn how_many_threads_search_changes_nothing() {
        let (one, two) = (search(None, 5, 40, 1, &|_| {}), search(None, 5, 40, 2, &|_| {}));
        assert_eq!((one.trace_hash, one.events, one.faults), (two.trace_hash, two.events, two.faults));
    }

    #[cfg(not(careless))]
    #[test]
    fn nothing_is_violated() {
        let mut faults = 0;
        for seed in 0..1000 {
            let verdict = Script::of(seed, None).run();
            assert!(
                verdict.seen.violations.is_empty(),
                "seed {seed}: {:?}\nwhat goes wrong: {:?}",
                verdict.seen.violations,
                Script::of(seed, None).faults.iter().map(ToString::to_string).collect::<Vec<_>>()
            );
            faults += verdict.seen.faults;
        }
        assert!(faults > 3000, "{faults} faults took place");
    }
}
