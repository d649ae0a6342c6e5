//! What classes get, against a host in miniature.

use super::*;
use crate::model::Host;

fn turn(host: &mut Host, policy: &mut MqShinjuku<'_, 64>, cpus: u16, ns: u64) {
    host.tick(policy, ns);
    (0..cpus).for_each(|cpu| host.look(cpu));
    host.deliver_all(policy);
}

#[test]
fn a_more_urgent_class_does_not_wait_for_a_slices_end() {
    let mut memory = [Task::default(); 64];
    let mut policy = MqShinjuku::new(1, &mut memory);
    let mut host = Host::new(1, 64, &mut policy);
    host.create(0, 2, 0, 0, 0);
    host.deliver_all(&mut policy);
    turn(&mut host, &mut policy, 1, 0);
    host.create(1, 1, 0, 0, 0);
    host.create(2, 2, 0, 0, 0);
    host.deliver_all(&mut policy);
    turn(&mut host, &mut policy, 1, RUN_MIN_NS - 1);
    assert_eq!(host.cores[0].task, 0, "it has hardly begun");
    turn(&mut host, &mut policy, 1, 1);
    assert_eq!(host.cores[0].task, 1);
    for _ in 0..8 {
        turn(&mut host, &mut policy, 1, SLICE_NS);
        assert_eq!(host.cores[0].task, 1, "it gives way to none that is less urgent");
    }
}

#[test]
fn within_a_class_slices_hold() {
    let mut memory = [Task::default(); 64];
    let mut policy = MqShinjuku::new(1, &mut memory);
    let mut host = Host::new(1, 64, &mut policy);
    (0..3).for_each(|task| host.create(task, 3, 0, 0, 0));
    host.deliver_all(&mut policy);
    turn(&mut host, &mut policy, 1, 0);
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(host.cores[0].task);
        turn(&mut host, &mut policy, 1, SLICE_NS);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

/// Two CPUs, and more urgent tasks than they can ever serve: the least urgent class gets its share all the same.
#[test]
fn no_class_starves() {
    let mut memory = [Task::default(); 64];
    let mut policy = MqShinjuku::new(2, &mut memory);
    let mut host = Host::new(2, 64, &mut policy);
    for task in 0..40 {
        host.create(task, 1, 0, 0, 0);
    }
    host.create(40, 2, 0, 0, 0);
    host.create(41, 0, 0, 0, 0);
    host.deliver_all(&mut policy);
    for _ in 0..4000 {
        turn(&mut host, &mut policy, 2, SLICE_NS / 2);
    }
    for task in 0..42 {
        let thread = host.threads[task];
        assert!(thread.ran_ns > 0, "task {task} never ran");
        // Both CPUs decide once a slice, and two classes wait to be passed over.
        let bound_ns = u64::from(PASSED_MAX) * 2 * SLICE_NS * if task < 40 { 2 } else { 1 };
        assert!(thread.waited_ns < bound_ns, "task {task} waited {} ns", thread.waited_ns);
    }
    assert!(host.threads[0].ran_ns > host.threads[41].ran_ns / 8);
}

#[test]
fn classes_beyond_the_last_and_none_are_the_least_urgent() {
    let mut memory = [Task::default(); 64];
    let mut policy = MqShinjuku::new(1, &mut memory);
    let mut host = Host::new(1, 64, &mut policy);
    host.borrow(0);
    for (task, class) in [(0, 0), (1, 200), (2, 8), (3, 7), (4, 1)] {
        host.create(task, class, 0, 0, 0);
    }
    host.borrow(0);
    host.deliver_all(&mut policy);
    let mut order = Vec::new();
    for _ in 0..5 {
        host.look(0);
        order.push(host.cores[0].task);
        host.stop(0, neap_abi::MessageKind::TaskDead);
        host.deliver_all(&mut policy);
    }
    assert_eq!(order, [4, 3, 0, 1, 2]);
}
