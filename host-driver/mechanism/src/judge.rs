//! What a txn comes to: the reasons are asked in the order in which they are listed here, from what is wrong with the txn
//! itself, by what it names, to what has changed since.

use core::sync::atomic::Ordering;

use neap_abi::message::TASK_NONE;
use neap_abi::{Operation, Outcome, Txn, TxnFlags, Version};

use crate::enclave::{Enclave, Standing};
use crate::events::Mechanism;
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
            _ if word.in_flux => return Err(Outcome::TaskNotRunnable),
            _ => {}
        }
        if !may_use(task.affinity(), slot) {
            return Err(Outcome::Affinity);
        }
        Ok(Some((txn.task, word)))
    }

    /// Whether a CPU is held by a task that a txn does not ask to preempt. A CPU that asks for its own next decision is
    /// never held.
    pub(crate) fn is_held(&self, txn: &Txn) -> bool {
        let holder = self.cpu(txn.cpu).map_or(TASK_NONE, |cpu| cpu.task());
        holder != TASK_NONE && holder != txn.task && !txn.flags.has(TxnFlags::PREEMPT)
    }
}

/// Whether CPUs `count` from `first` on (0: all) hold `cpu`.
pub(crate) const fn may_use((first, count): (u16, u16), cpu: u16) -> bool {
    count == 0 || cpu.wrapping_sub(first) < count
}
