//! The VMs' socket (section 7.3.3): ticks, sleep and turbo.
//!
//! Two VMs have vCPUs that compute without end; all other CPUs of the socket are idle. Who decides is the policy, in the
//! world as everywhere: it says which CPU's tick may stop. What that brings is arithmetic: a tick takes its time, and a CPU
//! that ticks while idle can't sleep deeply, which keeps turbo from the others.

use crate::columns::Column;
use crate::parameters::Parameters;
use crate::policy::{Chosen, Experiment};
use crate::world::{Load, Request};

/// CPUs of the socket.
const SOCKET: u16 = 128;
/// Between two ticks, in ns.
const TICK_NS: f64 = 1e6;
/// Time that is simulated: some quanta.
const TIME_NS: u64 = 60_000_000;

/// vCPUs that compute without end, in two VMs.
struct Busy {
    left: u32,
}

impl Load for Busy {
    fn next_request(&mut self) -> Option<Request> {
        self.left = self.left.checked_sub(1)?;
        let group = 1 + self.left % 2;
        Some(Request { at_ns: 0, run_ns: 10 * TIME_NS, class: 0, group, blocks: 0, thread: self.left })
    }

    fn finished(&mut self, _: &Request, _: u64) -> Option<Request> {
        None
    }
}

/// Work of one vCPU in a unit that has no name, with `active` of the socket's CPUs busy.
#[must_use]
pub fn work(p: &Parameters, tickless: bool, active: u32) -> f64 {
    let ticking = 1.0 - p.get("tick") / TICK_NS;
    if !tickless {
        return ticking;
    }
    let asleep = f64::from(u32::from(SOCKET) - active) / f64::from(SOCKET);
    1.0 + p.get("turbo_gain") * asleep
}

/// How much more a vCPU does where the policy decides without ticks than with them: 1.112 for 11.2 %. The share of
/// decisions that let a tick stop is the policy's own.
#[must_use]
pub fn gain(p: &Parameters, seed: u64, active: u32) -> f64 {
    let experiment =
        Experiment { policy: Chosen::Vm, column: Column::Neap, cpus: SOCKET, threads: active, seed };
    let ran = experiment.run(p, &mut Busy { left: active }, TIME_NS);
    let share = ran.seen.tickless as f64 / ran.seen.committed.max(1) as f64;
    let placed = if ran.seen.committed >= u64::from(active) { share } else { 0.0 };
    (work(p, true, active) * placed + work(p, false, active) * (1.0 - placed)) / work(p, false, active)
}
