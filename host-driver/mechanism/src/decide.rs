//! Decisions: what a CPU's slot holds for it, and how that is carried out.
//!
//! The kernel puts tasks in place between [`Mechanism::take`] and [`Mechanism::settle`]; only then is it said whether they are
//! committed. A place that the kernel recorded is void if its task has been off its queue since, and a verdict if its stamp has
//! moved: whatever comes in between makes one of the two void.

use neap_abi::message::TASK_NONE;
use neap_abi::{Operation, Outcome, Txn, TxnFlags};

use crate::counters::Count;
use crate::cpu::{Cpu, Look, MEMBERS_MAX, Place};
use crate::enclave::{Enclave, Level, Standing};
use crate::events::{Mechanism, Wires};
use crate::group::Joined;
use crate::judge::is_of_another_agent;
use crate::sync::{Ordering, in_order};
use crate::task::{Phase, Task, Word};

/// What the kernel is to do about a look at a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing.
    Nothing,
    /// Let the task that runs go on, for the slice of member 0.
    Keep,
    /// Put so many members in place, and then ask [`Mechanism::settle`].
    Members(u32),
    /// Put so many tasks of the host's own in its queue.
    Rescue(u32),
}

/// What the kernel is to do for one member of what a CPU took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The task's process number; 0 if there is no such task.
    pub pid: u32,
    /// The task's number in the table.
    pub task: u32,
    /// The CPU.
    pub cpu: u16,
    /// How long it may run, in ns; 0 for as long as it likes.
    pub slice_ns: u64,
    /// It may take the CPU from what runs there.
    pub preempts: bool,
    /// No tick while it runs.
    pub tickless: bool,
    /// The task runs there already, and goes on for its new slice.
    pub keeps: bool,
    /// The CPU is to be left idle: there is no task.
    pub idles: bool,
}

/// Tasks of the host's own that one look puts in its queue.
const RESCUED: usize = if MEMBERS_MAX < 8 { MEMBERS_MAX } else { 8 };

/// A member on its way to a verdict.
#[derive(Clone, Copy)]
struct Decision {
    /// The CPU whose txn it is.
    cpu: u16,
    txn: Txn,
    /// Its task, and the word of it that the decision rests on; none if it runs no task.
    rests_on: Option<(u32, Word)>,
    /// The task that its CPU had before it was claimed.
    held: u32,
    outcome: Outcome,
}

impl Decision {
    const NONE: Self =
        Self { cpu: 0, txn: Txn::withdraw(0), rests_on: None, held: TASK_NONE, outcome: Outcome::Committed };

    /// Whether it places a task, if it rests on `rests_on`.
    fn places_of(&self, rests_on: Option<(u32, Word)>) -> bool {
        Self { rests_on, ..*self }.places().is_some()
    }

    /// The task that it places, the word that it finds and the word that it leaves. A task that runs there already stays as it is.
    fn places(&self) -> Option<(u32, Word, Word)> {
        let (task, word) = self.rests_on.filter(|(_, word)| word.phase == Phase::Runnable)?;
        Some((task, word, Word { cpu: self.cpu, ..word.moved(Phase::Placed) }))
    }
}

impl Mechanism<'_> {
    /// A CPU needs a task: what its slot holds for it. What can't be carried out is refused here.
    pub fn take<W: Wires>(&self, wires: &W, cpu: u16) -> Taken {
        let Some(entry) = self.cpu(cpu) else { return Taken::Nothing };
        entry.batched.store(0, Ordering::Relaxed);
        let rescued = self.take_rescued(entry);
        entry.rescues.store(rescued != 0, Ordering::Relaxed);
        if rescued != 0 {
            return Taken::Rescue(rescued);
        }
        let Some(number) = entry.owner() else { return Taken::Nothing };
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else {
            return Taken::Nothing;
        };
        if enclave.level() != Level::Ipu {
            return Taken::Nothing;
        }
        let Some(offer) = wire.take(cpu, entry, enclave) else {
            entry.looked(Look::Miss);
            return Taken::Nothing;
        };
        entry.looked(Look::None);
        let txn = &offer.txn;
        self.leave_group(wires, cpu);
        if let Some(outcome) = self.is_void(enclave, wire.written(), txn) {
            self.conclude(wires, number, enclave, cpu, txn, outcome);
            return Taken::Nothing;
        }
        if txn.flags.has(TxnFlags::GROUP)
            && txn.operation != Operation::Withdraw as u8
            && !is_of_another_agent(enclave, txn)
        {
            return match self.join(wires, number, enclave, cpu, &offer) {
                Joined::Waits => Taken::Nothing,
                Joined::Complete(members) if self.all_hold(number, enclave, entry) => Taken::Members(members),
                Joined::Complete(_) => {
                    entry.short.store(true, Ordering::Relaxed);
                    self.settle(wires, cpu);
                    Taken::Nothing
                }
                Joined::Refused(outcome) => {
                    self.conclude(wires, number, enclave, cpu, txn, outcome);
                    Taken::Nothing
                }
            };
        }
        match self.judge(number, enclave, cpu, txn) {
            Err(outcome) => {
                self.conclude(wires, number, enclave, cpu, txn, outcome);
                Taken::Nothing
            }
            // The CPU is left idle: what ran there comes back to the agent by itself.
            Ok(None) => {
                self.conclude(wires, number, enclave, cpu, txn, Outcome::Committed);
                Taken::Nothing
            }
            Ok(Some((task, word))) => {
                let Some(place) = entry.batch.first() else { return Taken::Nothing };
                place.txn.put(&offer.payload);
                place.number.store(u32::from(cpu), Ordering::Relaxed);
                place.word.store(word.to_bits(), Ordering::Relaxed);
                self.begin_batch(entry, 1, false);
                if word.phase == Phase::OnCpu {
                    // It runs here, so that this is an event of its own: it goes on, and has not yielded.
                    if let Some(task) = self.task(task) {
                        self.change(task, |word| Word { yields: false, ..word });
                    }
                    self.count_decision(enclave, entry);
                    self.conclude(wires, number, enclave, cpu, txn, Outcome::Committed);
                    return Taken::Keep;
                }
                Taken::Members(1)
            }
        }
    }

    /// Whether all members of what a CPU took would be committed now. Only then are they put in place, and are committed only on
    /// what is found here: a stamp that comes to hold after the kernel has recorded a place, because it was guessed, would be of a
    /// task that the place is not for.
    fn all_hold(&self, number: u8, enclave: &Enclave, entry: &Cpu) -> bool {
        let members = entry.batched.load(Ordering::Relaxed);
        let holds = |(_, place): (u32, &Place)| {
            let cpu = place.number.load(Ordering::Relaxed) as u16;
            let judged = self.judge(number, enclave, cpu, &Txn::from_payload(&place.txn.get()));
            if let Ok(Some((_, word))) = judged {
                place.word.store(word.to_bits(), Ordering::Relaxed);
            }
            judged.is_ok()
        };
        !entry.short.load(Ordering::Relaxed) && (0..members).zip(&entry.batch).all(holds)
    }

    /// Whether a txn was decided on a state that a resync has since replaced: what it comes to then.
    fn is_void(&self, enclave: &Enclave, written: u32, txn: &Txn) -> Option<Outcome> {
        let counts = enclave.standing() == Standing::Good && !is_of_another_agent(enclave, txn);
        match Operation::from_bits(txn.operation) {
            Some(operation) if counts && enclave.predates_resync(txn.credits, written) => match operation {
                Operation::Withdraw => None,
                Operation::Run => Some(Outcome::TaskStale),
                Operation::Idle => Some(Outcome::CpuStale),
            },
            _ => None,
        }
    }

    pub(crate) fn begin_batch(&self, entry: &Cpu, members: u32, short: bool) {
        entry.barred.store(0, Ordering::Relaxed);
        entry.short.store(short, Ordering::Relaxed);
        entry.unsettled.store(true, Ordering::Relaxed);
        entry.batched.store(members, Ordering::Relaxed);
    }

    fn take_rescued(&self, entry: &Cpu) -> u32 {
        if self.to_rescue().is_empty() {
            return 0;
        }
        let mut rescued = 0;
        for (place, nth) in entry.batch.iter().zip(1..=RESCUED as u32) {
            let Some(number) = self.to_rescue().take(self.tasks()) else { break };
            place.number.store(number, Ordering::Relaxed);
            if let Some(task) = self.task(number) {
                // From here on it can be put there again.
                task.to_be_rescued.swap(false, Ordering::AcqRel);
            }
            rescued = nth;
        }
        entry.batched.store(rescued, Ordering::Relaxed);
        rescued
    }

    /// Place `member` of what `cpu` carries out, if it is of `rescues`.
    fn place(&self, cpu: u16, member: u32, rescues: bool) -> Option<&Place> {
        let entry = self.cpu(cpu)?;
        if entry.rescues.load(Ordering::Relaxed) != rescues || member >= entry.batched.load(Ordering::Relaxed)
        {
            return None;
        }
        entry.batch.get(member as usize)
    }

    /// A member of what `cpu` took, until it looks again.
    #[must_use]
    pub fn member(&self, cpu: u16, member: u32) -> Option<Member> {
        let place = self.place(cpu, member, false)?;
        let txn = Txn::from_payload(&place.txn.get());
        let cpu = place.number.load(Ordering::Relaxed) as u16;
        let idles = txn.operation == Operation::Idle as u8;
        let task = self.task(txn.task).filter(|_| !idles);
        let runs = task.map(Task::word).is_some_and(|word| word.phase == Phase::OnCpu && word.cpu == cpu);
        Some(Member {
            pid: task.map_or(0, Task::pid),
            task: txn.task,
            cpu,
            slice_ns: txn.slice_ns,
            preempts: txn.flags.has(TxnFlags::PREEMPT),
            tickless: txn.flags.has(TxnFlags::TICKLESS),
            keeps: runs && txn.flags.has(TxnFlags::ALLOW_ON_CPU),
            idles,
        })
    }

    /// A task that the host's own rule has and `cpu` is to queue: its process number and its number in the table.
    #[must_use]
    pub fn rescued(&self, cpu: u16, member: u32) -> Option<(u32, u32)> {
        let number = self.place(cpu, member, true)?.number.load(Ordering::Relaxed);
        let task = self.task(number)?;
        let word = task.word();
        match word.phase {
            Phase::Host => {}
            Phase::Runnable if self.is_stranded(word.enclave, task.affinity()) => {
                task.queued_stamp.store(word.stamp, Ordering::Relaxed);
            }
            _ => return None,
        }
        Some((task.pid(), number))
    }

    /// The kernel cannot put a member in place: its process is gone, or may not run there.
    pub fn bar(&self, cpu: u16, member: u32, gone: bool) {
        if let Some(entry) = self.cpu(cpu) {
            if member < MEMBERS_MAX as u32 {
                let bit = 1u32.wrapping_shl(member);
                entry.barred.fetch_or(if gone { bit } else { bit << 16 }, Ordering::Relaxed);
            }
        }
    }

    /// All members of what `cpu` took have been put in place, as far as the kernel can tell: commits them, or refuses them all.
    /// If false, the kernel takes its places back.
    pub fn settle<W: Wires>(&self, wires: &W, cpu: u16) -> bool {
        let Some(entry) = self.cpu(cpu) else { return false };
        let Some(number) = entry.owner() else { return false };
        let Some(enclave) = self.enclave(number) else { return false };
        if entry.rescues.load(Ordering::Relaxed) {
            return true;
        }
        if !entry.unsettled.swap(false, Ordering::Relaxed) {
            return false;
        }
        match entry.batched.load(Ordering::Relaxed) {
            0 => false,
            // Most are alone: no room is made for others.
            1 => self.settle_all::<W, 1>(wires, number, enclave, cpu, 1),
            members => self.settle_all::<W, MEMBERS_MAX>(wires, number, enclave, cpu, members),
        }
    }

    fn settle_all<W: Wires, const N: usize>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        cpu: u16,
        members: u32,
    ) -> bool {
        let Some(entry) = self.cpu(cpu) else { return false };
        let mut decisions = [Decision::NONE; N];
        let decisions = decisions.get_mut(..members as usize).unwrap_or_default();
        for ((member, place), decision) in (0..members).zip(&entry.batch).zip(decisions.iter_mut()) {
            decision.cpu = place.number.load(Ordering::Relaxed) as u16;
            decision.txn = Txn::from_payload(&place.txn.get());
            match self.weigh(number, enclave, (entry, cpu), (member, place), decision) {
                Err(refused) => decision.outcome = refused,
                Ok(rests_on) => decision.rests_on = rests_on,
            }
        }
        // A task twice in a group: the group's shape is wrong.
        for at in 1..decisions.len() {
            let (before, rest) = decisions.split_at_mut_checked(at).unwrap_or_default();
            let Some(decision) = rest.first_mut() else { break };
            let runs = |one: &Decision| {
                one.txn.operation == Operation::Run as u8 && one.txn.task == decision.txn.task
            };
            if decision.txn.operation == Operation::Run as u8 && before.iter().any(runs) {
                decision.outcome = Outcome::InvalidGroup;
            }
        }
        let committed = decisions.iter().all(|decision| decision.outcome == Outcome::Committed)
            && self.commit(wires, number, enclave, cpu, decisions);
        for decision in decisions.iter() {
            let Decision { cpu: target, txn, outcome, .. } = decision;
            if committed {
                self.carried_out(wires, number, enclave, cpu, decision);
                continue;
            }
            let outcome = if *outcome == Outcome::Committed { Outcome::GroupFailed } else { *outcome };
            self.conclude(wires, number, enclave, *target, txn, outcome);
        }
        committed
    }

    /// The outcome that a member would have now, what the kernel found included.
    fn weigh(
        &self,
        number: u8,
        enclave: &Enclave,
        (entry, cpu): (&Cpu, u16),
        (member, place): (u32, &Place),
        decision: &Decision,
    ) -> Result<Option<(u32, Word)>, Outcome> {
        let rests_on = self.judge(number, enclave, decision.cpu, &decision.txn)?;
        if entry.short.load(Ordering::Relaxed) {
            return Err(Outcome::GroupFailed);
        }
        let taken = Word::from_bits(place.word.load(Ordering::Relaxed));
        if rests_on.is_some_and(|(_, word)| (word.phase, word.stamp) != (taken.phase, taken.stamp)) {
            return Err(Outcome::TaskStale);
        }
        let barred = entry.barred.load(Ordering::Relaxed);
        if decision.places_of(rests_on) {
            if barred.wrapping_shr(member) & 1 == 1 {
                return Err(Outcome::TaskGone);
            }
            if (barred >> 16).wrapping_shr(member) & 1 == 1 {
                return Err(Outcome::Affinity);
            }
            let target = self.cpu(decision.cpu).ok_or(Outcome::InvalidCpu)?;
            if self.holder(&decision.txn, target, cpu).1 {
                return Err(Outcome::CpuUnavailable);
            }
        }
        Ok(rests_on)
    }

    /// Claims all members' CPUs and moves the words of all their tasks, or of none.
    fn commit<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        taker: u16,
        decisions: &mut [Decision],
    ) -> bool {
        for at in 0..decisions.len() {
            let (before, rest) = decisions.split_at_mut_checked(at).unwrap_or_default();
            let Some(decision) = rest.first_mut() else { return false };
            let Err(outcome) = self.commit_one(wires, number, enclave, taker, decision) else { continue };
            decision.outcome = outcome;
            for decision in before.iter().rev() {
                self.take_back(wires, number, enclave, decision);
            }
            return false;
        }
        true
    }

    /// First the CPU, then the task: an event of the task that comes after the commit finds the CPU that it has to leave.
    fn commit_one<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        taker: u16,
        decision: &mut Decision,
    ) -> Result<(), Outcome> {
        let Some((task, from, to)) = decision.places() else { return Ok(()) };
        let cpu = self.cpu(decision.cpu).ok_or(Outcome::InvalidCpu)?;
        let (held, holds) = self.holder(&decision.txn, cpu, taker);
        if holds || !cpu.claim(held, task) {
            return Err(Outcome::CpuUnavailable);
        }
        decision.held = held;
        if !self.task(task).ok_or(Outcome::InvalidTask)?.swap(from, to) {
            // It has changed since it was judged a moment ago.
            self.release(wires, number, decision, task);
            return Err(Outcome::TaskStale);
        }
        enclave.runnable.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes [`Mechanism::commit_one`]. A task whose own event came since has left the CPU by itself.
    fn take_back<W: Wires>(&self, wires: &W, number: u8, enclave: &Enclave, decision: &Decision) {
        let Some((number_of_task, from, to)) = decision.places() else { return };
        let Some(task) = self.task(number_of_task) else { return };
        if task.swap(to, from) {
            enclave.runnable.fetch_add(1, Ordering::Relaxed);
            self.release(wires, number, decision, number_of_task);
        } else {
            self.release(wires, number, decision, TASK_NONE);
        }
    }

    /// Gives a CPU back that was claimed, and has `task` now, to the task that it had before.
    fn release<W: Wires>(&self, wires: &W, number: u8, decision: &Decision, task: u32) {
        let Some(cpu) = self.cpu(decision.cpu) else { return };
        if !cpu.claim(task, decision.held) {
            return;
        }
        // Its task may have gone meanwhile, and have found the CPU another's.
        in_order();
        if let Some(held) = self.task(decision.held) {
            let word = held.word();
            let has_it = word.cpu == decision.cpu && matches!(word.phase, Phase::OnCpu | Phase::Placed);
            if !has_it {
                cpu.vacate(decision.held);
            }
        }
        self.tell_if_idle(wires, number, decision.cpu, cpu);
    }

    /// For loom: what a group's commit does to a CPU, where another member turns out to have changed.
    #[cfg(all(test, loom))]
    pub(crate) fn claim_and_release<W: Wires>(&self, wires: &W, target: u16, task: u32) {
        let Some(cpu) = self.cpu(target) else { return };
        let held = cpu.task();
        let word = self.task(task).map(Task::word);
        let decision =
            Decision { cpu: target, held, rests_on: word.map(|word| (task, word)), ..Decision::NONE };
        if cpu.claim(held, task) {
            self.release(wires, 0, &decision, task);
        }
    }

    fn count_decision(&self, enclave: &Enclave, cpu: &Cpu) {
        cpu.counters.one(Count::Decisions);
        enclave.decisions.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes note of a decision that is being carried out, by `taker`.
    fn carried_out<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        taker: u16,
        decision: &Decision,
    ) {
        let Decision { cpu: target, txn, rests_on, .. } = decision;
        let Some(cpu) = self.cpu(*target) else { return };
        if decision.places().is_some() {
            cpu.moved();
            cpu.report_on_cpu.store(txn.flags.has(TxnFlags::REPORT_ON_CPU), Ordering::Relaxed);
        }
        if rests_on.is_some() {
            self.count_decision(enclave, cpu);
        }
        if *target == taker && decision.places().is_some() {
            // The line waits for the CPU's switch to the task, and for the event of what ran there, if that is still to come.
            cpu.looked(Look::Hit);
            self.verdict(wires, number, enclave, *target, txn, Outcome::Committed);
        } else {
            self.conclude(wires, number, enclave, *target, txn, Outcome::Committed);
        }
    }
}
