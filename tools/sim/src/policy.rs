//! An experiment: a policy, a column's costs and a load, in one world.

use neap_abi::{Clock, VERSION};
use neap_policies::{TASKS, Task};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::columns::Column;
use crate::parameters::Parameters;
use crate::world::{Load, Memory, Seen, Setup, World};

/// Policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Global FIFO, run to completion.
    Fifo,
    /// FIFO with a queue for each CPU.
    FifoPerCore,
    /// FIFO with a slice of 30 µs.
    Shinjuku,
    /// Shinjuku with a queue for each service class.
    MqShinjuku,
    /// Virtual machines: fair shares, and a tick only where one is needed.
    Vm,
}

impl Chosen {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Fifo, Self::FifoPerCore, Self::Shinjuku, Self::MqShinjuku, Self::Vm];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
            Self::FifoPerCore => "fifo-per-core",
            Self::Shinjuku => "shinjuku",
            Self::MqShinjuku => "mq-shinjuku",
            Self::Vm => "vm",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// Evaluates an expression with what makes the chosen policy for so many CPUs over memory of `$tasks` tasks: each policy is a type of
/// its own.
macro_rules! with_policy {
    (@of [$($policy:ident)*] $chosen:expr, $cpus:expr, $tasks:expr, |$make:ident| $body:expr) => {
        match $chosen {
            $($crate::policy::Chosen::$policy => {
                let $make = |memory| neap_policies::$policy::<{ $tasks }>::new($cpus, memory);
                $body
            })*
        }
    };
    ($($all:tt)*) => {
        $crate::policy::with_policy!(@of [Fifo FifoPerCore Shinjuku MqShinjuku Vm] $($all)*)
    };
}
pub(crate) use with_policy;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// Who decides.
    pub policy: Chosen,
    /// At whose costs.
    pub column: Column,
    /// On how many host CPUs.
    pub cpus: u16,
    /// With how many threads.
    pub threads: u32,
    /// From which seed.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What the world has seen.
    pub seen: Seen,
    /// Events that happened.
    pub events: u64,
}

impl Experiment {
    /// Runs it until its load has ended, or until `until_ns`.
    ///
    /// # Panics
    /// The agent ends, which it does nowhere here.
    pub fn run(&self, p: &Parameters, load: &mut dyn Load, until_ns: u64) -> Outcome {
        let costs = self.column.costs(p);
        let memory = Memory::new(4096, self.cpus);
        let mut table = vec![Task::ABSENT; TASKS];
        let table: &mut [Task; TASKS] = table.as_mut_slice().try_into().expect("it is as long");
        let mut table = Some(table);
        let setup = Setup {
            cpus: self.cpus,
            foreign: 0,
            tasks: self.threads.min(TASKS as u32),
            costs,
            version: VERSION,
            clock: Clock::Own,
            is_told: false,
            agents_max: 1,
            faults: false,
            starved_ns: u64::MAX,
        };
        let cpus = self.cpus;
        let rng = ChaCha8Rng::seed_from_u64(self.seed ^ 2);
        with_policy!(self.policy, cpus, TASKS, |make| {
            let make = || make(table.take().expect("one agent"));
            let mut world = World::new(setup, &memory, make, load, rng, Vec::new());
            world.run(until_ns);
            world.into_outcome()
        })
    }
}
