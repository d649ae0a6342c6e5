//! The policy author's page, `docs/policies.md`: its example is this very file, short, and does what it says.

#[path = "../examples/newest_first/policy.rs"]
mod policy;

use neap_abi::{Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::{AgentError, Decide, Policy};
use neap_policies::Task;

const PAGE: &str = include_str!("../../../docs/policies.md");
const EXAMPLE: &str = include_str!("../examples/newest_first/policy.rs");

/// Keeps the decisions.
#[derive(Default)]
struct Kept(Vec<Txn>);

impl Decide for Kept {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        self.0.extend(txns);
        Ok(self.0.len() as u32)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.txns_commit(txns)
    }

    fn nudge(&mut self, _: u16) {}

    fn resync(&mut self) {}
}

#[test]
fn the_page_shows_the_example_as_it_is() {
    assert!(
        PAGE.contains(&format!("```rust\n{EXAMPLE}```")),
        "docs/policies.md shows another text than the file has"
    );
    assert!(EXAMPLE.lines().count() <= 40);
}

#[test]
fn the_newest_task_runs_first_and_slices_end() {
    let (mut memory, mut kept) = ([Task::default(); 16], Kept::default());
    let mut newest = policy::newest_first(1, &mut memory);
    let new = |task| Message {
        task,
        stamp: 1,
        flags: TaskFlags::RUNNABLE,
        ..Message::new(MessageKind::TaskNew, 0)
    };
    newest.message(&Message::new(MessageKind::ResyncBegin, 0), &mut kept);
    (1..4).for_each(|task| newest.message(&new(task), &mut kept));
    let idle = Message { flags: TaskFlags::CPU_IDLE, ..Message::new(MessageKind::CpuAvailable, 0) };
    newest.message(&idle, &mut kept);
    let first = *kept.0.last().unwrap();
    assert_eq!(first.task, 3);
    let txn = kept.0.len() as u32;
    let taken = Message {
        outcome: Outcome::Committed,
        txn,
        task: 3,
        flags: TaskFlags::ON_CPU,
        cpu_stamp: 9,
        ..Message::new(MessageKind::TxnOutcome, 0)
    };
    newest.message(&taken, &mut kept);
    let before = kept.0.len();
    assert!(newest.time(99_999, &mut kept));
    assert_eq!(kept.0.len(), before);
    newest.time(100_000, &mut kept);
    let last = *kept.0.last().unwrap();
    assert_eq!((last.task, last.cpu_stamp), (2, 9));
    assert!(last.flags.has(TxnFlags::PREEMPT.with(TxnFlags::CHECK_CPU)));
}
