//! FIFO against a host in miniature: what it is told and what it decides.

use super::*;
use neap_agent::AgentError;
use proptest::prelude::*;
use std::collections::VecDeque;

/// Records decisions in place of a window.
#[derive(Default)]
struct Record {
    staged: VecDeque<Txn>,
    nudged: Vec<u16>,
    resyncs: u32,
    id: u32,
    busy: bool,
    cpus: u16,
}

impl Decide for Record {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        for txn in txns {
            if txn.cpu >= self.cpus {
                return Err(AgentError::NoCpu { cpu: txn.cpu });
            }
            if self.busy {
                return Err(AgentError::SlotBusy { cpu: txn.cpu });
            }
            self.id = self.id.wrapping_add(1);
            self.staged.push_back(Txn { id: self.id, ..*txn });
        }
        Ok(self.id)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.txns_commit(txns)
    }

    fn nudge(&mut self, cpu: u16) {
        self.nudged.push(cpu);
    }

    fn resync(&mut self) {
        self.resyncs += 1;
    }
}

impl Record {
    fn one(&mut self) -> Txn {
        let txn = self.staged.pop_front().expect("no decision");
        assert!(self.staged.is_empty(), "more than one decision: {:?}", self.staged);
        txn
    }

    fn none(&self) {
        assert!(self.staged.is_empty(), "a decision too many: {:?}", self.staged);
    }
}

fn task(kind: MessageKind, cpu: u16, task: u32, stamp: u32) -> Message {
    let flags = match kind {
        MessageKind::TaskNew | MessageKind::TaskWakeup | MessageKind::ResyncTask => TaskFlags::RUNNABLE,
        _ => TaskFlags::WAS_ON_CPU.with(TaskFlags::CPU_IDLE),
    };
    Message { task, stamp, flags, ..Message::new(kind, cpu) }
}

fn taken(message: Message, txn: &Txn, outcome: Outcome) -> Message {
    let flags = if outcome == Outcome::Committed {
        TaskFlags(message.flags.0 & !TaskFlags::CPU_IDLE.0)
    } else {
        message.flags.with(TaskFlags::CPU_IDLE)
    };
    Message { outcome, txn: txn.id, flags, ..message }
}

/// A FIFO over `cpus` idle CPUs.
fn started<'m, const N: usize>(cpus: u16, memory: &'m mut [Task; N], record: &mut Record) -> Fifo<'m, N> {
    record.cpus = cpus;
    let mut fifo = Fifo::new(cpus, memory);
    fifo.message(&Message::new(MessageKind::ResyncBegin, 0), record);
    for cpu in 0..cpus {
        let idle = Message { flags: TaskFlags::CPU_IDLE, ..Message::new(MessageKind::ResyncCpu, cpu) };
        fifo.message(&idle, record);
    }
    fifo.message(&Message::new(MessageKind::ResyncEnd, 0), record);
    record.none();
    fifo
}

#[test]
fn a_new_task_goes_to_an_idle_cpu_with_a_doorbell() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(2, &mut memory, &mut record);
    fifo.message(&task(MessageKind::TaskNew, 1, 7, 1), &mut record);
    let txn = record.one();
    assert_eq!(
        (txn.cpu, txn.task, txn.stamp, txn.flags),
        (1, 7, 1, TxnFlags(0)),
        "the CPU that reports is at hand"
    );
    fifo.message(&task(MessageKind::TaskNew, 1, 8, 1), &mut record);
    assert_eq!(record.one().cpu, 0);
    fifo.message(&task(MessageKind::TaskNew, 1, 9, 1), &mut record);
    record.none();
}

#[test]
fn a_deep_queue_is_prestaged_once_per_cpu_and_refilled_on_a_hit() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(2, &mut memory, &mut record);
    for id in 0..2 {
        fifo.message(&task(MessageKind::TaskNew, 0, id, 1), &mut record);
        let txn = record.one();
        fifo.message(
            &taken(Message::new(MessageKind::TxnOutcome, txn.cpu), &txn, Outcome::Committed),
            &mut record,
        );
        record.none();
    }
    // Two CPUs: the queue is deep enough from the third task that waits.
    for id in 2..4 {
        fifo.message(&task(MessageKind::TaskNew, 0, id, 1), &mut record);
        record.none();
    }
    fifo.message(&task(MessageKind::TaskNew, 0, 4, 1), &mut record);
    let first = record.one();
    assert_eq!((first.cpu, first.task, first.flags), (0, 2, TxnFlags::PRESTAGED));
    fifo.message(&task(MessageKind::TaskNew, 0, 5, 1), &mut record);
    let second = record.one();
    assert_eq!((second.cpu, second.task, second.flags), (1, 3, TxnFlags::PRESTAGED));
    fifo.message(&task(MessageKind::TaskNew, 0, 6, 1), &mut record);
    record.none();
    // CPU 1 finishes its task and takes the prestaged one in the same line.
    fifo.message(&taken(task(MessageKind::TaskDead, 1, 1, 3), &second, Outcome::Committed), &mut record);
    let third = record.one();
    assert_eq!((third.cpu, third.task, third.flags), (1, 4, TxnFlags::PRESTAGED));
    assert!(record.nudged.is_empty());
}

#[test]
fn a_cpu_that_missed_its_decision_is_rung() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(1, &mut memory, &mut record);
    for id in 0..3 {
        fifo.message(&task(MessageKind::TaskNew, 0, id, 1), &mut record);
    }
    let first = record.one();
    fifo.message(&taken(Message::new(MessageKind::TxnOutcome, 0), &first, Outcome::Committed), &mut record);
    let staged = record.one();
    assert_eq!(staged.flags, TxnFlags::PRESTAGED);
    // The task blocked before the line landed: no txn was taken, the CPU is idle.
    fifo.message(&task(MessageKind::TaskBlocked, 0, 0, 2), &mut record);
    record.none();
    assert_eq!(record.nudged.as_slice(), [0]);
}

#[test]
fn a_refused_task_keeps_its_place_or_leaves_as_the_outcome_says() {
    for outcome in Outcome::ALL.into_iter().filter(|outcome| outcome.is_refusal()) {
        let (mut memory, mut record) = ([Task::default(); 64], Record::default());
        let mut fifo = started(1, &mut memory, &mut record);
        fifo.message(&task(MessageKind::TaskNew, 0, 1, 1), &mut record);
        let txn = record.one();
        fifo.message(&task(MessageKind::TaskNew, 0, 2, 1), &mut record);
        fifo.message(&task(MessageKind::TaskPriorityChanged, 0, 1, 5), &mut record);
        fifo.message(&taken(Message::new(MessageKind::TxnOutcome, 0), &txn, outcome), &mut record);
        let next = record.one();
        let expected = if outcome.task_remains() { (1, 5) } else { (2, 1) };
        assert_eq!((next.task, next.stamp), expected, "{outcome:?}");
        let wrong = matches!(
            outcome,
            Outcome::InvalidFlags
                | Outcome::InvalidCpu
                | Outcome::UnsupportedVersion
                | Outcome::InvalidGroup
                | Outcome::UnknownOperation
        );
        assert_eq!(record.resyncs, u32::from(wrong), "{outcome:?}");
    }
}

#[test]
fn a_refused_task_goes_where_it_fits_now() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(3, &mut memory, &mut record);
    fifo.message(&task(MessageKind::TaskNew, 0, 1, 1), &mut record);
    let txn = record.one();
    let moved = Message { first_cpu: 2, cpu_count: 1, ..task(MessageKind::TaskAffinityChanged, 0, 1, 2) };
    fifo.message(&Message { flags: TaskFlags(0), ..moved }, &mut record);
    record.none();
    fifo.message(&taken(Message::new(MessageKind::TxnOutcome, 0), &txn, Outcome::TaskStale), &mut record);
    let again = record.one();
    assert_eq!((again.cpu, again.task, again.stamp), (2, 1, 2));
}

#[test]
fn a_task_bound_elsewhere_does_not_hold_up_its_cpu() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(4, &mut memory, &mut record);
    let bound = Message { first_cpu: 3, cpu_count: 1, ..task(MessageKind::TaskNew, 0, 1, 1) };
    fifo.message(&bound, &mut record);
    assert_eq!(record.one().cpu, 3);
    fifo.message(&Message { task: 2, ..bound }, &mut record);
    record.none();
    fifo.message(&task(MessageKind::TaskNew, 0, 3, 1), &mut record);
    assert_eq!((record.staged[0].cpu, record.staged[0].task), (0, 3));
}

#[test]
fn a_dead_task_is_never_decided() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(1, &mut memory, &mut record);
    for id in 0..3 {
        fifo.message(&task(MessageKind::TaskNew, 0, id, 1), &mut record);
    }
    let running = record.one();
    let killed = Message { flags: TaskFlags(0), ..task(MessageKind::TaskDead, 0, 1, 2) };
    fifo.message(&killed, &mut record);
    fifo.message(&taken(Message::new(MessageKind::TxnOutcome, 0), &running, Outcome::Committed), &mut record);
    fifo.message(&task(MessageKind::TaskDead, 0, 0, 2), &mut record);
    assert_eq!(record.one().task, 2);
}

#[test]
fn a_busy_cpu_gets_nothing_until_it_is_back() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(1, &mut memory, &mut record);
    fifo.message(&Message::new(MessageKind::CpuBusy, 0), &mut record);
    fifo.message(&task(MessageKind::TaskNew, 0, 1, 1), &mut record);
    record.none();
    let back = Message { flags: TaskFlags::CPU_IDLE, ..Message::new(MessageKind::CpuAvailable, 0) };
    fifo.message(&back, &mut record);
    assert_eq!(record.one().task, 1);
}

#[test]
fn a_resync_replaces_all_and_voids_what_was_staged() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(1, &mut memory, &mut record);
    fifo.message(&task(MessageKind::TaskNew, 0, 1, 1), &mut record);
    record.one();
    fifo.message(&task(MessageKind::TaskNew, 0, 2, 1), &mut record);
    fifo.message(&Message::new(MessageKind::ResyncBegin, 0), &mut record);
    assert_eq!(record.one().operation, neap_abi::Operation::Withdraw as u8);
    fifo.message(&task(MessageKind::ResyncTask, 0, 9, 4), &mut record);
    let idle = Message { flags: TaskFlags::CPU_IDLE, ..Message::new(MessageKind::ResyncCpu, 0) };
    fifo.message(&idle, &mut record);
    record.none();
    fifo.message(&Message::new(MessageKind::ResyncEnd, 0), &mut record);
    let txn = record.one();
    assert_eq!((txn.task, txn.stamp), (9, 4));
    assert_eq!(fifo.queued(), 0);
}

#[test]
fn a_slot_that_takes_no_more_keeps_the_task_queued() {
    let (mut memory, mut record) = ([Task::default(); 64], Record::default());
    let mut fifo = started(1, &mut memory, &mut record);
    record.busy = true;
    fifo.message(&task(MessageKind::TaskNew, 0, 1, 1), &mut record);
    record.none();
    assert_eq!(fifo.queued(), 1);
}

proptest! {
    /// Whatever a host says, the policy stays within its bounds: no panic, at most two decisions a message (a resync's
    /// end has one a CPU), none for a CPU or a task outside the enclave.
    #[test]
    fn any_messages_are_survived(
        lines in prop::collection::vec((0usize..25, 0u16..6, 0u32..24, 0u8..32, 0usize..21, 0u32..40), 0..400)
    ) {
        let (mut memory, mut record) = ([Task::default(); 16], Record::default());
        let mut fifo = started(4, &mut memory, &mut record);
        for (kind, cpu, task, flags, outcome, txn) in lines {
            let message = Message {
                task,
                flags: TaskFlags(flags),
                outcome: Outcome::ALL[outcome],
                txn,
                ..Message::new(MessageKind::ALL[kind], cpu)
            };
            fifo.message(&message, &mut record);
            let limit = if matches!(message.kind, MessageKind::ResyncBegin | MessageKind::ResyncEnd) { 4 } else { 2 };
            prop_assert!(record.staged.len() <= limit, "{:?} made {} decisions", message, record.staged.len());
            for txn in record.staged.drain(..) {
                prop_assert!(txn.cpu < 4 && (txn.task < 16 || txn.task == TASK_NONE));
            }
            record.nudged.clear();
        }
    }

    /// Against a host that runs tasks to their end, every task runs once, in the order of arrival.
    #[test]
    fn every_task_runs_once_and_in_order(cpus in 1u16..6, events in prop::collection::vec(any::<bool>(), 1..300)) {
        let (mut memory, mut record) = ([Task::default(); 512], Record::default());
        let mut fifo = started(cpus, &mut memory, &mut record);
        let mut running: Vec<Option<Txn>> = vec![None; usize::from(cpus)];
        let mut slots: Vec<Option<Txn>> = vec![None; usize::from(cpus)];
        let (mut created, mut ran) = (0u32, Vec::new());
        let mut steps: VecDeque<bool> = events.into();
        loop {
            let arrive = steps.pop_front();
            let finish = running.iter().position(Option::is_some);
            if arrive == Some(true) {
                fifo.message(&task(MessageKind::TaskNew, 0, created, 1), &mut record);
                created += 1;
            } else if let Some(cpu) = finish {
                let done = running[cpu].take().unwrap();
                let mut message = task(MessageKind::TaskDead, cpu as u16, done.task, 2);
                if let Some(txn) = slots[cpu].take() {
                    message = taken(message, &txn, Outcome::Committed);
                    ran.push(txn.task);
                    running[cpu] = Some(txn);
                }
                fifo.message(&message, &mut record);
            } else if arrive.is_none() {
                break;
            }
            while let Some(txn) = record.staged.pop_front() {
                let cpu = usize::from(txn.cpu);
                prop_assert!(slots[cpu].is_none(), "a decision was written over");
                if running[cpu].is_some() {
                    prop_assert!(txn.flags.has(TxnFlags::PRESTAGED));
                    slots[cpu] = Some(txn);
                } else {
                    ran.push(txn.task);
                    running[cpu] = Some(txn);
                    let told = taken(Message::new(MessageKind::TxnOutcome, txn.cpu), &txn, Outcome::Committed);
                    fifo.message(&told, &mut record);
                }
            }
        }
        let mut sorted = ran.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..created).collect::<Vec<_>>());
        // A task can overtake no more than what waits in the other CPUs' slots.
        for (place, id) in ran.iter().enumerate() {
            let overtaken = ran[place..].iter().filter(|other| *other < id).count();
            prop_assert!(overtaken < usize::from(cpus), "task {} overtook {}", id, overtaken);
        }
    }
}
