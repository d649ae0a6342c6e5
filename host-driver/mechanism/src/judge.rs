//! What a txn comes to: the reasons are asked in the order in which they are listed here, from what is wrong with the txn
//! itself, by what it names, to what has changed since.

use neap_abi::{Operation, Outcome, Txn, TxnFlags, Version};

use crate::cpu::Cpu;
use crate::enclave::{Enclave, Standing};
use crate::events::Mechanism;
use crate::sync::Ordering;
use crate::task::{Phase, Word};

/// The first version whose txns name their agent.
const NAMES_AGENTS: Version = Version { major: 1, minor: 2 };

/// Whether a txn was decided by another agent than the one whose txns count.
pub(crate) fn is_of_another_agent(enclave: &Enclave, txn: &Txn) -> bool {
    enclave.version() >= NAMES_AGENTS && enclave.agent().is_some_and(|agent| agent != txn.incarnation)
}

/// A txn that would be committed, with the word of its task that the commit rests on.
pub(crate) type Judged = Result<Option<(u32, Word)>, Outcome>;

impl Mechanism<'_> {
    /// The outcome that a txn from the slot of CPU `slot` would have now. Changes nothing.
    pub(crate) fn judge(&self, number: u8, enclave: &Enclave, slot: u16, txn: &Txn) -> Judged {
        match enclave.standing() {
            Standing::Good => {}
            Standing::Poisoned => return Err(Outcome::Poisoned),
            Standing::Gone => return Err(Outcome::NoAgent),
        }
        if is_of_another_agent(enclave, txn) {
            return Err(Outcome::NoAgent);
        }
        // What a version does not have is zero.
        let version = enclave.version();
        if (version.minor == 0 && txn.order != 0) || (version < NAMES_AGENTS && txn.incarnation != 0) {
            return Err(Outcome::UnsupportedVersion);
        }
        let operation = match Operation::from_bits(txn.operation) {
            None => return Err(Outcome::UnknownOperation),
            Some(Operation::Withdraw) => return Err(Outcome::Withdrawn),
            Some(operation) => operation,
        };
        if !txn.flags.valid() {
            return Err(Outcome::InvalidFlags);
        }
        let cpu = self.cpu(txn.cpu).ok_or(Outcome::InvalidCpu)?;
        if cpu.owner() != Some(number) {
            return Err(Outcome::NotPermitted);
        }
        if txn.cpu != slot {
            return Err(Outcome::InvalidCpu);
        }
        if !cpu.online.load(Ordering::Acquire) {
            return Err(Outcome::CpuOffline);
        }
        if !cpu.available.load(Ordering::Acquire) {
            return Err(Outcome::CpuUnavailable);
        }
        if txn.flags.has(TxnFlags::CHECK_CPU) && txn.cpu_stamp != cpu.stamp() {
            return Err(Outcome::CpuStale);
        }
        if operation == Operation::Idle {
            return Ok(None);
        }
        let task = self.task(txn.task).ok_or(Outcome::InvalidTask)?;
        let word = task.word();
        if word.phase == Phase::Free {
            return Err(Outcome::TaskGone);
        }
        if word.enclave != number || word.phase == Phase::Host {
            return Err(Outcome::NotPermitted);
        }
        let here = word.phase == Phase::OnCpu && word.cpu == slot;
        if here && txn.flags.has(TxnFlags::ALLOW_ON_CPU) {
            return Ok(Some((txn.task, word)));
        }
        if word.stamp != txn.stamp {
            return Err(Outcome::TaskStale);
        }
        match word.phase {
            Phase::OnCpu | Phase::Placed => return Err(Outcome::TaskOnCpu),
            Phase::Blocked => return Err(Outcome::TaskNotRunnable),
            // Its stamp moves when it is back on its queue. To call it blocked would have the agent wait for a wakeup.
            _ if word.in_flux => return Err(Outcome::TaskStale),
            _ => {}
        }
        if !may_use(task.affinity(), slot) {
            return Err(Outcome::Affinity);
        }
        Ok(Some((txn.task, word)))
    }

    /// The task that a CPU has, and whether that holds it against a txn that names it and was taken by `taker`. A task that is
    /// about to run there does. One that runs there does unless it is to be preempted, or its CPU asks for the next itself.
    pub(crate) fn holder(&self, txn: &Txn, cpu: &Cpu, taker: u16) -> (u32, bool) {
        let holder = cpu.task();
        let Some(task) = self.task(holder) else { return (holder, false) };
        let word = task.word();
        let runs = word.phase == Phase::OnCpu;
        let yields = txn.cpu == taker || txn.flags.has(TxnFlags::PREEMPT);
        let has_it = word.cpu == txn.cpu && (runs || word.phase == Phase::Placed);
        (holder, has_it && !(runs && yields))
    }
}

/// Whether CPUs `count` from `first` on (0: all) hold `cpu`.
pub(crate) const fn may_use((first, count): (u16, u16), cpu: u16) -> bool {
    count == 0 || cpu.wrapping_sub(first) < count
}
