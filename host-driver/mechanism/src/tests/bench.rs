//! A host of four CPUs and a few tasks, whose kernel does as each test says.

use neap_abi::txn::CREDIT_WORD;
use neap_abi::{Message, Outcome, Txn, VERSION};
use neap_queue::SlotWriter;

use crate::cpu::Runs;
use crate::events::Custody;
use crate::fakes::{Host, Memory};
use crate::{Count, Mechanism, Taken, Word};

pub(super) const CPUS: u16 = 4;
pub(super) const TASKS: u32 = 6;

/// Four CPUs; tasks 0 to 3 can run, task 4 sleeps, number 5 is free. CPU 3 and nothing else is enclave 1's.
pub(super) struct Bench<'m> {
    pub(super) memory: &'m Memory,
    pub(super) mechanism: Mechanism<'m>,
    pub(super) host: Host<'m>,
    pub(super) writers: Vec<SlotWriter>,
}

pub(super) fn memory() -> Memory {
    Memory::new(CPUS, TASKS, 2, 64)
}

impl<'m> Bench<'m> {
    pub(super) fn new(memory: &'m Memory) -> Self {
        let mechanism = memory.mechanism();
        for cpu in 0..3 {
            assert!(mechanism.give_cpu(cpu, 0));
        }
        assert!(mechanism.give_cpu(3, 1) && !mechanism.give_cpu(3, 0) && !mechanism.give_cpu(9, 0));
        let host = Host::new(memory, false);
        for enclave in 0..2 {
            host.attach(&mechanism, enclave, Some(1), VERSION, false);
        }
        for task in 0..5 {
            assert_eq!(mechanism.enable(100 + task, (0, 0), 0), Some(task));
            if task < 4 {
                assert_eq!(mechanism.enqueue(&host, task, 100 + task, 0), Custody::Agent);
            }
        }
        let writers = vec![SlotWriter::default(); usize::from(CPUS)];
        let bench = Self { memory, mechanism, host, writers };
        bench.sent();
        bench
    }

    pub(super) fn word(&self, task: u32) -> Word {
        self.mechanism.task(task).unwrap().word()
    }

    pub(super) fn sent(&self) -> Vec<Message> {
        self.host.sent(0)
    }

    /// The good decision for a task on a CPU.
    pub(super) fn run(&self, cpu: u16, task: u32) -> Txn {
        let stamp = self.mechanism.task(task).map_or(0, |task| task.word().stamp);
        Txn { incarnation: 1, ..Txn::run(cpu, task, stamp) }
    }

    pub(super) fn put(&mut self, slot: u16, txn: Txn) {
        let writer = &mut self.writers[usize::from(slot)];
        let txn = Txn { id: writer.next(), ..txn };
        writer.write(&self.memory.window(0).slots[usize::from(slot)], &txn.to_payload(), CREDIT_WORD);
    }

    /// Has a CPU look, and the kernel put in place what it finds: what became of that.
    pub(super) fn look(&self, cpu: u16) -> (Taken, bool) {
        let taken = self.mechanism.take(&self.host, cpu);
        let settled = match taken {
            Taken::Members(members) => {
                for member in 0..members {
                    let found = self.mechanism.member(cpu, member).unwrap();
                    let is_there =
                        self.mechanism.task(found.task).is_some_and(|task| task.pid() == found.pid);
                    if !is_there && !found.idles {
                        self.mechanism.bar(cpu, member, true);
                    }
                }
                self.mechanism.settle(&self.host, cpu)
            }
            _ => false,
        };
        (taken, settled)
    }

    /// A txn in a slot, and the verdicts that it brings.
    pub(super) fn judge_all(&mut self, slot: u16, txn: Txn) -> Vec<Outcome> {
        self.put(slot, txn);
        self.look(slot);
        self.host.judged(0).into_iter().map(|judged| judged.outcome).collect()
    }

    /// A txn in a slot, and the verdict on it.
    pub(super) fn judge(&mut self, slot: u16, txn: Txn) -> Outcome {
        let judged = self.judge_all(slot, txn);
        assert_eq!(judged.len(), 1, "{judged:?}");
        judged[0]
    }

    /// Runs task `task` on `cpu`, up to the CPU's switch.
    pub(super) fn start(&mut self, cpu: u16, task: u32) {
        let txn = self.run(cpu, task);
        assert_eq!(self.judge(cpu, txn), Outcome::Committed);
        self.mechanism.running(&self.host, task, cpu);
        self.mechanism.switch(&self.host, cpu, Runs::Ours);
        self.sent();
    }

    /// All that a refusal must leave as it is.
    pub(super) fn state(&self) -> Vec<String> {
        let tasks =
            self.mechanism.tasks().iter().map(|task| format!("{:?} {:?}", task.word(), task.affinity()));
        let cpu = |cpu: &crate::Cpu| {
            format!("{:?} {} {} {}", cpu.owner(), cpu.stamp(), cpu.task() as i32, cpu.is_open())
        };
        let cpus = self.mechanism.cpus().iter().map(cpu);
        let counted = (0..2).map(|enclave| {
            let enclave = self.mechanism.enclave(enclave).unwrap();
            format!("{} {} {:?}", enclave.runnable(), enclave.decisions(), enclave.level())
        });
        let decisions = format!("{}", self.mechanism.sum(Count::Decisions));
        tasks.chain(cpus).chain(counted).chain([decisions]).collect()
    }
}
