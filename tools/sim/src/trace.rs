//! Traces: recorded in the simulator, and replayed in it.

use neap_abi::{Clock, Txn, VERSION};
use neap_host::trace::{Step, Trace};
use neap_policies::{TASKS, Task};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::columns::Column;
use crate::load::Poisson;
use crate::parameters::Parameters;
use crate::policy::{Chosen, with_policy};
use crate::world::{Load, Memory, Request, Setup, World};

/// Lines of the ring, and tasks that there can be at a time.
const RING_LINES: usize = 4096;
const THREADS: u32 = 256;
/// Mean work of the recorded load's requests, in ns, with what is around them: it keeps CPUs busy for four fifths of the time.
const REQUEST_NS: f64 = 62_000.0;
const BUSY: f64 = 0.8;

/// What is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// Who decides.
    pub policy: Chosen,
    /// For how many host CPUs.
    pub cpus: u16,
    /// How many requests: the paper's dispersive load in classes and groups, some of which block.
    pub requests: u64,
    /// Where all of it comes from.
    pub seed: u64,
}

/// A host that has nothing to do.
struct Nothing;

impl Load for Nothing {
    fn next_request(&mut self) -> Option<Request> {
        None
    }

    fn finished(&mut self, _: &Request, _: u64) -> Option<Request> {
        None
    }
}

/// What is recorded in a world of Neap's costs, by the messages' clock, while `load` runs there; or, where there is none, while
/// its host says `messages`.
fn recorded(
    policy: Chosen,
    cpus: u16,
    seed: u64,
    load: Option<&mut dyn Load>,
    messages: &[Step],
) -> Vec<Step> {
    let memory = Memory::new(RING_LINES, cpus);
    let setup = Setup {
        cpus,
        foreign: 0,
        tasks: THREADS,
        costs: Column::Neap.costs(&Parameters::usual()),
        version: VERSION,
        clock: Clock::Messages,
        is_told: load.is_none(),
        agents_max: 1,
        faults: false,
        starved_ns: u64::MAX,
    };
    let mut table = vec![Task::ABSENT; TASKS];
    let mut table = <&mut [Task; TASKS]>::try_from(table.as_mut_slice()).ok();
    let rng = ChaCha8Rng::seed_from_u64(seed ^ 2);
    let mut nothing = Nothing;
    let load = load.unwrap_or(&mut nothing);
    with_policy!(policy, cpus, TASKS, |make| {
        let make = || make(table.take().expect("one agent"));
        let mut world = World::new(setup, &memory, make, load, rng, Vec::new());
        world.record();
        world.run(u64::MAX);
        for step in messages {
            if !world.say(step.message) {
                break;
            }
        }
        world.recorded()
    })
}

impl Recording {
    /// Records it.
    #[must_use]
    pub fn take(&self) -> Trace {
        let &Self { policy, cpus, requests, seed } = self;
        let rate_hz = BUSY * f64::from(cpus) * 1e9 / REQUEST_NS;
        let load = Poisson::new(seed, rate_hz, requests, 0);
        let mut load = load.dispersive().classed().grouped(3).blocking(2);
        let steps = recorded(policy, cpus, seed, Some(&mut load), &[]);
        let source = format!("the simulator, seed {seed}, {requests} requests");
        Trace { policy: policy.name().to_owned(), cpus, source, steps }
    }
}

/// Replays a trace in the simulator: what was decided after each message. None if there is no such policy.
#[must_use]
pub fn replay(trace: &Trace) -> Option<Vec<Vec<Txn>>> {
    let policy = Chosen::named(&trace.policy)?;
    let steps = recorded(policy, trace.cpus, 0, None, &trace.steps);
    Some(steps.into_iter().map(|step| step.decisions).collect())
}

#[cfg(test)]
mod tests {
    use neap_host::trace::replay_here;

    use super::*;

    #[test]
    fn what_was_recorded_is_decided_again_in_the_simulator_and_without_it() {
        for policy in Chosen::ALL {
            let recording = Recording { policy, cpus: 4, requests: 400, seed: 7 };
            let trace = recording.take();
            assert_eq!(trace, recording.take(), "{policy:?}: the same seed gives another trace");
            let name = policy.name();
            println!("{name}: {} messages, {} decisions", trace.steps.len(), trace.decisions());
            assert!(trace.decisions() >= 400, "{name}: {} decisions", trace.decisions());
            assert_eq!(trace.differs_at(&replay(&trace).unwrap()), None, "{name}, simulated");
            assert_eq!(trace.differs_at(&replay_here(&trace).unwrap()), None, "{name}, in this thread");
        }
    }
}
