//! Worlds that figures ask for.

use crate::columns::Column;
use crate::load::Poisson;
use crate::parameters::Parameters;
use crate::policy::{Chosen, Experiment};

/// Threads that serve requests.
const THREADS: u32 = 200;
/// As many where some of them run for 10 ms.
const THREADS_DISPERSIVE: u32 = 1000;
/// Requests of a run with GETs alone.
const FIFO_REQUESTS: u64 = 40_000;
/// Of one with RANGE queries.
const DISPERSIVE_REQUESTS: u64 = 40_000;
/// More than any host here serves.
const FIFO_OVERLOAD_HZ: f64 = 1.5e6;
const DISPERSIVE_OVERLOAD_HZ: f64 = 4e5;

/// Requests a second that FIFO serves when there are more than it can: 10 µs GETs.
pub(super) fn fifo_hz(p: &Parameters, column: Column, cpus: u16, seed: u64) -> f64 {
    let experiment = Experiment { policy: Chosen::Fifo, column, cpus, threads: THREADS, seed };
    let mut load = Poisson::new(seed, FIFO_OVERLOAD_HZ, FIFO_REQUESTS, 5_000_000);
    experiment.run(p, &mut load, u64::MAX);
    load.throughput_hz()
}

/// Requests a second with 0.5 % of 10 ms among them.
pub(super) fn dispersive_hz(p: &Parameters, policy: Chosen, column: Column, cpus: u16, seed: u64) -> f64 {
    let experiment = Experiment { policy, column, cpus, threads: THREADS_DISPERSIVE, seed };
    let mut load = Poisson::new(seed, DISPERSIVE_OVERLOAD_HZ, DISPERSIVE_REQUESTS, 0).dispersive();
    if policy == Chosen::MqShinjuku {
        load = load.classed();
    }
    experiment.run(p, &mut load, u64::MAX);
    load.throughput_hz()
}

/// The p99 of GETs at a rate, in ns: of nothing but GETs under FIFO, else with 0.5 % of 10 ms among them.
pub(super) fn p99_ns(
    p: &Parameters,
    policy: Chosen,
    column: Column,
    cpus: u16,
    (seed, rate_hz): (u64, f64),
) -> u64 {
    let is_fifo = policy == Chosen::Fifo;
    let threads = if is_fifo { THREADS } else { THREADS_DISPERSIVE };
    let requests = if is_fifo { FIFO_REQUESTS } else { DISPERSIVE_REQUESTS };
    // Until queues are as long as they will be.
    let load = Poisson::new(seed, rate_hz, requests, (requests as f64 / rate_hz * 1e9 / 10.0) as u64);
    let mut load = if is_fifo { load } else { load.dispersive() };
    Experiment { policy, column, cpus, threads, seed }.run(p, &mut load, u64::MAX);
    load.short.quantile_ns(0.99)
}

/// A switch to a task that was prestaged, in ns, and reads across the link that it waited for.
pub(super) fn switch(p: &Parameters, column: Column, seed: u64) -> (f64, f64) {
    let experiment = Experiment { policy: Chosen::Fifo, column, cpus: 4, threads: THREADS, seed };
    let ran = experiment.run(p, &mut Poisson::new(seed, FIFO_OVERLOAD_HZ, 5_000, 0), u64::MAX);
    let hits = ran.seen.hits.max(1) as f64;
    (ran.seen.hit_switch_ns as f64 / hits, ran.seen.hit_uncached_reads as f64 / hits)
}

/// The median switch for which the agent is asked, on a host that asks it nothing else; in ns. All tasks are there from
/// the start, so that the agent hears of their ends alone.
pub(super) fn one_cpu_switch_ns(p: &Parameters, column: Column, seed: u64) -> f64 {
    let experiment = Experiment { policy: Chosen::Fifo, column, cpus: 1, threads: THREADS_DISPERSIVE, seed };
    let mut load = Poisson::new(seed, 1e9, u64::from(THREADS_DISPERSIVE), 0);
    let ran = experiment.run(p, &mut load, u64::MAX);
    let mut switches_ns = ran.seen.switches_ns;
    switches_ns.sort_unstable();
    switches_ns.get(switches_ns.len() / 2).copied().map_or(0.0, f64::from)
}
