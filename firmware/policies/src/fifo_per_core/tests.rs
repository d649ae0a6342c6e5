//! Where tasks wait, and who steals them, against a host in miniature.

use neap_abi::MessageKind;

use super::*;
use crate::model::{Host, Place};

#[test]
fn a_task_waits_where_it_ran_last_and_is_stolen_by_who_has_nothing() {
    let mut memory = [Task::default(); 64];
    let mut policy = FifoPerCore::new(2, &mut memory);
    let mut host = Host::new(2, 64, &mut policy);
    for task in 0..3 {
        host.create(task, 0, 0, 0, 0);
    }
    host.deliver_all(&mut policy);
    (0..2).for_each(|cpu| host.look(cpu));
    host.deliver_all(&mut policy);
    assert!(host.cores.iter().all(|core| core.task < 2));
    // Whichever CPU is free first takes the third.
    let (first, second) = (host.cores[0].task, host.cores[1].task);
    for (cpu, other) in [(0, second), (1, 2)] {
        host.stop(cpu, MessageKind::TaskDead);
        host.deliver_all(&mut policy);
        host.look(cpu);
        host.deliver_all(&mut policy);
        if cpu == 0 {
            assert_eq!((host.cores[0].task, host.cores[1].task), (2, other));
        }
    }
    assert_eq!(host.threads[first as usize].place, Place::Free);
}

#[test]
fn arrivals_spread_over_the_queues() {
    let mut memory = [Task::default(); 64];
    let mut policy = FifoPerCore::new(4, &mut memory);
    let mut host = Host::new(4, 64, &mut policy);
    for task in 0..60 {
        host.create(task, 0, 0, 0, 0);
    }
    host.deliver_all(&mut policy);
    let order = policy.order_mut();
    let lengths: Vec<u32> = order.queues[..4].iter().map(Queue::len).collect();
    let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
    assert!(most - least <= 4, "{lengths:?}");
}

#[test]
fn what_waits_at_a_cpu_that_is_gone_is_run_by_others() {
    let mut memory = [Task::default(); 64];
    let mut policy = FifoPerCore::new(2, &mut memory);
    let mut host = Host::new(2, 64, &mut policy);
    for task in 0..20 {
        host.create(task, 0, 0, 0, 0);
    }
    host.deliver_all(&mut policy);
    host.borrow(1);
    host.deliver_all(&mut policy);
    for _ in 0..40 {
        host.look(0);
        host.deliver_all(&mut policy);
        host.stop(0, MessageKind::TaskDead);
        host.deliver_all(&mut policy);
    }
    assert!(host.threads.iter().all(|thread| thread.place == Place::Free));
}
