//! What the host does while the path is measured: the same, message for message, in every run.
//!
//! A walk over everything that can happen to a task and a CPU, drawn from a fixed seed. It swings between few
//! tasks, when a new one finds an idle CPU and the answer is a doorbell, and many, when it waits its turn and
//! a decision is prestaged. It goes on until the message ring has come round in steady state, so that the
//! lines at its seam are measured as well.

use anyhow::Result;
use neap_abi::message::MessageKind;
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::host::{Cpu, Host, Task};

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
    let living = host.tasks(|task| task != Task::Gone).len();
    let reporter = random.random_range(0..CPUS);
    let mut any = |tasks: Vec<u32>| tasks.choose(random).copied();
    let running = any(host.tasks(|task| matches!(task, Task::Running(_))));
    let blocked = any(host.tasks(|task| task == Task::Blocked));
    let waiting = any(host.tasks(|task| matches!(task, Task::Runnable | Task::Blocked)));
    let gone = any(host.tasks(|task| task == Task::Gone));
    if living < wanted && random.random_bool(0.5) {
        return gone
            .map_or(Ok(()), |task| host.task_event(MessageKind::TaskNew, reporter, task, Task::Runnable));
    }
    if living > wanted && random.random_bool(0.5) {
        return running.map_or(Ok(()), |task| host.leave(MessageKind::TaskDead, task, Task::Gone));
    }
    let draw = random.random_range(0..16);
    match (draw, running, blocked, waiting) {
        (0 | 1, Some(task), ..) if draw == 0 || blocked.is_none() => {
            host.leave(MessageKind::TaskBlocked, task, Task::Blocked)
        }
        (1..=5, _, Some(task), _) => host.task_event(MessageKind::TaskWakeup, reporter, task, Task::Runnable),
        (6, Some(task), ..) => host.leave(MessageKind::TaskYield, task, Task::Runnable),
        (7, Some(task), ..) => host.leave(MessageKind::TaskPreempt, task, Task::Runnable),
        (8, Some(task), ..) => host.leave(MessageKind::TaskDead, task, Task::Gone),
        (9, Some(task), ..) if random.random_bool(0.25) => {
            host.leave(MessageKind::TaskDeparted, task, Task::Gone)
        }
        (10, .., Some(task)) if random.random_bool(0.25) => {
            host.task_event(MessageKind::TaskDeparted, reporter, task, Task::Gone)
        }
        (11, .., Some(task)) => {
            let now = host.task(task);
            host.task_event(MessageKind::TaskAffinityChanged, reporter, task, now)
        }
        (12, .., Some(task)) => {
            let now = host.task(task);
            host.task_event(MessageKind::TaskPriorityChanged, reporter, task, now)
        }
        (13, ..) => {
            let now = host.cpu(reporter);
            host.cpu_event(MessageKind::CpuTick, reporter, now)
        }
        (14 | 15, ..) => match host.cpu(reporter) {
            Cpu::Idle if draw == 14 => host.cpu_event(MessageKind::CpuBusy, reporter, Cpu::Away),
            Cpu::Idle => host.cpu_event(MessageKind::CpuNotIdle, reporter, Cpu::Away),
            Cpu::Away => host.cpu_event(MessageKind::CpuAvailable, reporter, Cpu::Idle),
            Cpu::Running(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

/// One task for an idle CPU: the agent's first decision.
///
/// # Errors
/// What the host finds wrong with the agent.
pub fn first_task(host: &mut Host<'_>) -> Result<()> {
    host.task_event(MessageKind::TaskNew, 0, 0, Task::Runnable)
}
