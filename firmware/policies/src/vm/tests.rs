//! Whether groups share fairly, against a host in miniature.

use neap_abi::MessageKind;

use super::*;
use crate::model::Host;

fn turn(host: &mut Host, policy: &mut Vm<'_, 64>, cpus: u16, ns: u64) {
    host.tick(policy, ns);
    (0..cpus).for_each(|cpu| host.look(cpu));
    host.deliver_all(policy);
}

fn ran_ns(host: &Host, group: u32) -> u64 {
    host.threads.iter().filter(|thread| thread.group == group).map(|thread| thread.ran_ns).sum()
}

#[test]
fn groups_share_fairly_though_one_has_more_vcpus() {
    let mut memory = [Task::default(); 64];
    let mut policy = Vm::new(2, &mut memory);
    let mut host = Host::new(2, 64, &mut policy);
    for task in 0..12 {
        host.create(task, 0, if task < 2 { 1 } else { 2 }, 0, 0);
    }
    host.deliver_all(&mut policy);
    for _ in 0..4000 {
        turn(&mut host, &mut policy, 2, 500_000);
    }
    let (one, other) = (ran_ns(&host, 1), ran_ns(&host, 2));
    assert!(one.abs_diff(other) < (one + other) / 20, "{one} {other}");
    let longest_ns = host.threads.iter().map(|thread| thread.waited_ns).max().unwrap();
    assert!(longest_ns < 150_000_000, "{longest_ns}");
}

#[test]
fn what_is_not_used_of_a_quantum_is_not_lost() {
    let mut memory = [Task::default(); 64];
    let mut policy = Vm::new(1, &mut memory);
    let mut host = Host::new(1, 64, &mut policy);
    // One group's vCPUs run for 2 ms and yield; the other's run for as long as they may.
    for task in 0..8 {
        host.create(task, 0, 1 + task % 2, 0, 0);
    }
    host.deliver_all(&mut policy);
    for _ in 0..8000 {
        turn(&mut host, &mut policy, 1, 250_000);
        let runs = host.cores[0].task as usize;
        if let Some(thread) = host.threads.get(runs)
            && thread.group == 1
            && host.now_ns - thread.since_ns >= 2_000_000
        {
            host.stop(0, MessageKind::TaskYield);
            host.deliver_all(&mut policy);
        }
    }
    let (short, long) = (ran_ns(&host, 1), ran_ns(&host, 2));
    assert!(short.abs_diff(long) < (short + long) / 5, "{short} {long}");
}

#[test]
fn a_vcpu_runs_for_five_to_ten_milliseconds_and_is_preempted_at_whole_ones() {
    let mut memory = [Task::default(); 64];
    let mut policy = Vm::new(1, &mut memory);
    let mut host = Host::new(1, 64, &mut policy);
    for task in 0..3 {
        host.create(task, 0, 1, 0, 0);
    }
    host.deliver_all(&mut policy);
    turn(&mut host, &mut policy, 1, 0);
    let (mut since_ns, mut runs) = (host.now_ns, host.cores[0].task);
    for _ in 0..3000 {
        turn(&mut host, &mut policy, 1, 100_000);
        if host.cores[0].task != runs {
            let ran_ns = host.now_ns - since_ns;
            assert!((QUANTUM_MIN_NS..=QUANTUM_MAX_NS + GRAIN_NS).contains(&ran_ns), "{ran_ns}");
            assert_eq!(host.now_ns % GRAIN_NS, 0);
            (since_ns, runs) = (host.now_ns, host.cores[0].task);
        }
    }
    assert!(host.preemptions > 20);
}

#[test]
fn every_decision_stops_the_tick_and_more_groups_than_there_is_room_for_share_one() {
    let mut memory = [Task::default(); 64];
    let mut policy = Vm::new(1, &mut memory);
    let mut labels = [0u32; GROUPS];
    for group in 1..200 {
        let label = policy.order_mut().entry_of(group);
        policy.order_mut().group(label).placed += 1;
        labels[usize::from(label)] += 1;
    }
    assert!(labels[1..].iter().all(|&groups| groups <= 1) && labels[0] > 100);
    assert_eq!(<Groups as Order<64>>::FLAGS, TxnFlags::TICKLESS);
}
