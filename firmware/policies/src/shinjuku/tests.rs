//! Shinjuku's slices, against a host in miniature.

use neap_abi::MessageKind;

use super::*;
use crate::model::{Host, Place};

fn host(shinjuku: &mut Shinjuku<'_, 64>, cpus: u16, tasks: u32) -> Host {
    let mut host = Host::new(cpus, 64, shinjuku);
    for task in 0..tasks {
        host.create(task, 0, 0, 0, 0);
    }
    host.deliver_all(shinjuku);
    for cpu in 0..cpus {
        host.look(cpu);
    }
    host.deliver_all(shinjuku);
    host
}

#[test]
fn a_task_runs_its_slice_and_then_goes_to_the_back() {
    let mut memory = [Task::default(); 64];
    let mut shinjuku = Shinjuku::new(1, &mut memory);
    let mut host = host(&mut shinjuku, 1, 3);
    let mut order = Vec::new();
    for _ in 0..6 {
        let running = host.cores[0].task;
        order.push(running);
        host.tick(&mut shinjuku, SLICE_NS - 1);
        host.look(0);
        assert_eq!(host.cores[0].task, running, "its slice is not over");
        host.tick(&mut shinjuku, 1);
        host.look(0);
        assert_ne!(host.cores[0].task, running);
        host.deliver_all(&mut shinjuku);
    }
    assert_eq!((order.as_slice(), host.preemptions), (&[0, 1, 2, 0, 1, 2][..], 6));
}

#[test]
fn with_nobody_waiting_it_runs_on_and_gives_way_at_once_when_somebody_comes() {
    let mut memory = [Task::default(); 64];
    let mut shinjuku = Shinjuku::new(1, &mut memory);
    let mut host = host(&mut shinjuku, 1, 1);
    host.tick(&mut shinjuku, 10 * SLICE_NS);
    host.look(0);
    assert_eq!((host.cores[0].task, host.preemptions), (0, 0));
    host.create(1, 0, 0, 0, 0);
    host.deliver_all(&mut shinjuku);
    host.look(0);
    assert_eq!((host.cores[0].task, host.preemptions), (1, 1));
}

#[test]
fn one_who_may_not_run_there_preempts_nobody() {
    let mut memory = [Task::default(); 64];
    let mut shinjuku = Shinjuku::new(2, &mut memory);
    let mut host = host(&mut shinjuku, 2, 2);
    let on_one = host.cores[1].task;
    host.create(2, 0, 0, 1, 1);
    host.deliver_all(&mut shinjuku);
    for _ in 0..4 {
        host.tick(&mut shinjuku, SLICE_NS);
        host.look(0);
        host.look(1);
    }
    assert_eq!(host.threads[on_one as usize].place, Place::Runnable);
    assert_eq!(host.threads[2].place, Place::OnCpu(1));
}

/// Short tasks do not wait for long ones: what the policy is for.
#[test]
fn short_tasks_pass_long_ones() {
    let (mut memory, mut waited_ns) = ([Task::default(); 64], Vec::new());
    for slice_ns in [SLICE_NS, u64::MAX] {
        memory.fill(Task::default());
        let mut shinjuku = Shinjuku::with_slice(2, &mut memory, slice_ns);
        // Two long ones have the CPUs.
        let mut host = host(&mut shinjuku, 2, 2);
        for task in 2..12 {
            host.create(task, 0, 0, 0, 0);
        }
        let mut longest_ns = 0;
        for _ in 0..2000 {
            host.deliver_all(&mut shinjuku);
            for cpu in 0..2 {
                host.look(cpu);
                let task = host.cores[usize::from(cpu)].task;
                let Some(thread) = host.threads.get(task as usize) else { continue };
                let ran_ns = thread.ran_ns + (host.now_ns - thread.since_ns);
                if ran_ns >= if task < 2 { 10_000_000 } else { 10_000 } {
                    host.stop(cpu, MessageKind::TaskDead);
                    if task >= 2 {
                        longest_ns = longest_ns.max(host.now_ns - 1_000_000);
                    }
                }
            }
            host.tick(&mut shinjuku, 5_000);
        }
        assert!((2..12).all(|task| host.threads[task].place == Place::Free) || slice_ns == u64::MAX);
        waited_ns.push(longest_ns);
    }
    assert!(waited_ns[0] < 300_000, "{waited_ns:?}");
    assert!(waited_ns[1] == 0 || waited_ns[1] > 9_000_000, "{waited_ns:?}");
}

#[test]
fn nobody_starves() {
    let mut memory = [Task::default(); 64];
    let mut shinjuku = Shinjuku::new(3, &mut memory);
    let mut host = host(&mut shinjuku, 3, 40);
    for _ in 0..4000 {
        host.tick(&mut shinjuku, SLICE_NS / 4);
        (0..3).for_each(|cpu| host.look(cpu));
        host.deliver_all(&mut shinjuku);
    }
    // 40 tasks on three CPUs: a round takes 14 slices, and a little for what is decided late.
    let longest_ns = host.threads[..40].iter().map(|thread| thread.waited_ns).max().unwrap();
    assert!(longest_ns < 16 * (SLICE_NS + SLICE_NS / 2), "{longest_ns}");
    let ran = host.threads[..40].iter().map(|thread| thread.ran_ns);
    let (least, most) = (ran.clone().min().unwrap(), ran.max().unwrap());
    assert!(most < least + 3 * SLICE_NS, "{least} {most}");
}
