//! What the host does while the path is measured: the same, message for message, in every run.
//!
//! A walk over everything that can happen to a task and a CPU, drawn from a fixed seed. It swings between few
//! tasks, when a new one finds an idle CPU and the answer is a doorbell, and many, when it waits its turn and
//! a decision is prestaged. It goes on until the message ring has come round in steady state, so that the
//! lines at its seam are measured as well.

use anyhow::Result;
use neap_abi::message::MessageKind;
use neap_host::mechanism::TaskState;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::host::Host;

/// Host CPUs (the paper's Tide-16, section 7.2).
pub const CPUS: u16 = 16;
/// Tasks at most: six times the CPUs, so that with those that run, block and lie prestaged set aside the queue
/// is still deeper than FIFO's threshold.
pub const TASKS: u32 = 6 * CPUS as u32;

/// Messages before the steady state: two whole swings.
const WARM_UP: usize = 2 * SWING;
/// Messages of one swing, half of it with few tasks.
const SWING: usize = 768;
/// Steady messages beyond one lap of the ring.
const BEYOND_A_LAP: usize = 64;
/// Not a secret, and not special.
const SEED: u64 = 0x7469_6465;

/// Plays the script to the end.
///
/// # Errors
/// What the host finds wrong with the agent.
pub fn play(host: &mut Host<'_>) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let steady = host.sent() + WARM_UP;
    let end = steady + host.ring_lines()? + BEYOND_A_LAP;
    while host.sent() < end {
        if host.sent() >= steady {
            host.steady_from_here();
        }
        let many = host.sent() % SWING >= SWING / 2;
        step(host, &mut random, many)?;
    }
    Ok(())
}

/// One thing that happens; nothing, where the draw does not fit the state.
fn step(host: &mut Host<'_>, random: &mut ChaCha8Rng, many: bool) -> Result<()> {
    let wanted = if many { TASKS } else { u32::from(CPUS) * 3 / 4 } as usize;
    let reporter = random.random_range(0..CPUS);
    let with = |wanted: fn(TaskState) -> bool| -> Vec<u32> {
        (0..TASKS).filter(|&task| wanted(host.task(task))).collect()
    };
    let gone = with(|state| state == TaskState::Free);
    let living = TASKS as usize - gone.len();
    let mut any = |tasks: Vec<u32>| tasks.choose(random).copied();
    let running = any(with(|state| matches!(state, TaskState::OnCpu(_))));
    let blocked = any(with(|state| state == TaskState::Blocked));
    let waiting = any(with(|state| matches!(state, TaskState::Runnable | TaskState::Blocked)));
    let gone = any(gone);
    match (gone, running) {
        (Some(task), _) if living < wanted && random.random_bool(0.5) => return host.create(reporter, task),
        (_, Some(task)) if living > wanted && random.random_bool(0.5) => {
            return host.leave(MessageKind::TaskDead, task, TaskState::Free);
        }
        _ => {}
    }
    let seldom = random.random_bool(0.25);
    match (random.random_range(0..14), running, blocked, waiting) {
        (0 | 1, Some(task), ..) => host.leave(MessageKind::TaskBlocked, task, TaskState::Blocked),
        (2..=5, _, Some(task), _) => {
            host.change(MessageKind::TaskWakeup, reporter, task, TaskState::Runnable)
        }
        (6, Some(task), ..) => host.leave(MessageKind::TaskYield, task, TaskState::Runnable),
        (7, Some(task), ..) => host.leave(MessageKind::TaskPreempt, task, TaskState::Runnable),
        (8, Some(task), ..) => host.leave(MessageKind::TaskDead, task, TaskState::Free),
        (9, Some(task), ..) if seldom => host.leave(MessageKind::TaskDeparted, task, TaskState::Free),
        (10, .., Some(task)) if seldom => {
            host.change(MessageKind::TaskDeparted, reporter, task, TaskState::Free)
        }
        (11, .., Some(task)) => host.set_affinity(reporter, task),
        (12, ..) => host.tick(reporter),
        (13, ..) if host.is_idle(reporter) => host.cpu_goes(reporter),
        (13, ..) if !host.is_available(reporter) => host.cpu_returns(reporter),
        _ => Ok(()),
    }
}

/// One task for an idle CPU: the agent's first decision.
///
/// # Errors
/// What the host finds wrong with the agent.
pub fn first_task(host: &mut Host<'_>) -> Result<()> {
    host.create(0, 0)
}
