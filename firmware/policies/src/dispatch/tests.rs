//! All policies that are built on `Dispatch`, against a host in miniature: whatever happens, they decide nothing twice, nothing
//! outside a task's affinity, nothing on an old stamp, and lose nothing.

use proptest::prelude::*;

use super::*;
use crate::model::Host;
use crate::{FifoPerCore, MqShinjuku, Shinjuku, Vm};
use neap_agent::AgentError;

type Script = Vec<(u8, u8, u16)>;

fn script() -> impl Strategy<Value = Script> {
    prop::collection::vec((any::<u8>(), any::<u8>(), any::<u16>()), 0..400)
}

fn play<P: Policy>(policy: &mut P, cpus: u16, script: &Script, step_ns: u64) {
    let mut host = Host::new(cpus, 24, policy);
    for &step in script {
        host.play(policy, step, step_ns);
    }
    host.finish(policy, step_ns / 2, 4 * step_ns);
    assert_eq!(host.slots.resyncs, 0, "nothing was wrong with a txn itself");
}

/// Decisions go nowhere.
struct Nowhere(u32);

impl Decide for Nowhere {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        if txns.iter().any(|txn| txn.cpu == 3) {
            return Err(AgentError::SlotBusy { cpu: 3 });
        }
        self.0 = self.0.wrapping_add(1);
        Ok(self.0 % 8)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.txns_commit(txns)
    }

    fn nudge(&mut self, _: u16) {}

    fn resync(&mut self) {}
}

fn survive<P: Policy>(policy: &mut P, lines: &[(usize, u16, u32, u8, usize, u32)]) {
    let mut nowhere = Nowhere(0);
    for (now, &(kind, cpu, task, flags, outcome, txn)) in lines.iter().enumerate() {
        let message = Message {
            task,
            flags: TaskFlags(flags),
            outcome: Outcome::ALL[outcome],
            txn,
            class: flags ^ 5,
            group: task ^ txn,
            first_cpu: txn as u16 % 5,
            cpu_count: cpu % 3,
            ..Message::new(MessageKind::ALL[kind], cpu)
        };
        policy.message(&message, &mut nowhere);
        policy.time(now as u64 * 7_000, &mut nowhere);
    }
}

proptest! {
    #[test]
    fn shinjuku_keeps_every_promise(cpus in 1u16..6, script in script()) {
        let mut memory = [Task::default(); 32];
        play(&mut Shinjuku::new(cpus, &mut memory), cpus, &script, 30_000);
    }

    #[test]
    fn mq_shinjuku_keeps_every_promise(cpus in 1u16..6, script in script()) {
        let mut memory = [Task::default(); 32];
        play(&mut MqShinjuku::new(cpus, &mut memory), cpus, &script, 30_000);
    }

    #[test]
    fn vm_keeps_every_promise(cpus in 1u16..6, script in script()) {
        let mut memory = [Task::default(); 32];
        play(&mut Vm::new(cpus, &mut memory), cpus, &script, 5_000_000);
    }

    #[test]
    fn fifo_per_core_keeps_every_promise(cpus in 1u16..6, script in script()) {
        let mut memory = [Task::default(); 32];
        play(&mut FifoPerCore::new(cpus, &mut memory), cpus, &script, 30_000);
    }

    /// Whatever a host says, truth or not, nothing panics.
    #[test]
    fn any_messages_are_survived(
        lines in prop::collection::vec((0usize..25, 0u16..256, 0u32..40, 0u8..32, 0usize..21, 0u32..10), 0..400)
    ) {
        let mut memory = [Task::default(); 32];
        survive(&mut Shinjuku::new(4, &mut memory), &lines);
        let mut memory = [Task::default(); 32];
        survive(&mut MqShinjuku::new(4, &mut memory), &lines);
        let mut memory = [Task::default(); 32];
        survive(&mut Vm::new(4, &mut memory), &lines);
        let mut memory = [Task::default(); 32];
        survive(&mut FifoPerCore::new(4, &mut memory), &lines);
    }
}
