//! The scheduling events of tasks and CPUs, as the kernel's extensible class reports them, and the decisions taken between
//! them.
//!
//! Each event of a task comes under the lock of its runqueue; so does all that concerns a CPU's own entry. An event that takes
//! a task from its CPU keeps its line until the CPU has looked at its slot, so that one line carries both the event and the
//! verdict.

use core::sync::atomic::{AtomicU64, Ordering};

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags};

use crate::counters::Count;
use crate::cpu::{Cpu, MEMBERS_MAX, NOBODY, Runs};
use crate::enclave::{Enclave, Level, Standing};
use crate::group::Joined;
use crate::judge::{is_of_another_agent, may_use};
use crate::task::{FreeList, Phase, Task, Word};
use crate::wire::Wire;
use crate::{ENCLAVES_MAX, Platform};

/// The wires of the enclaves whose functions are there.
pub trait Wires {
    /// What the hardware does.
    type Hardware: Platform;
    /// An enclave's wire.
    fn wire(&self, enclave: u8) -> Option<&Wire<'_, Self::Hardware>>;
    /// Monotonic time, in ns.
    fn now_ns(&self) -> u64;
}

/// Who keeps a task that can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Custody {
    /// Its agent decides.
    Agent,
    /// The host's own rule does.
    Host,
}

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

/// A task that the kernel is to put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its process number.
    pub pid: u32,
    /// Its number in the table.
    pub task: u32,
    /// The CPU.
    pub cpu: u16,
    /// How long it may run, in ns; 0 for as long as it likes.
    pub slice_ns: u64,
    /// It may take the CPU from what runs there.
    pub preempts: bool,
    /// No tick while it runs.
    pub tickless: bool,
}

/// No enclave.
const NONE: u8 = 15;
const _: () = assert!(ENCLAVES_MAX <= NONE as usize);

/// Tasks of the host's own that one look puts in its queue.
const RESCUED: u32 = 8;

/// The state of a host.
#[derive(Debug)]
pub struct Mechanism<'m> {
    tasks: &'m [Task],
    cpus: &'m [Cpu],
    enclaves: &'m [Enclave],
    free: FreeList,
    rescue: crate::resync::Rescue<'m>,
    /// How long a task may run that may run for as long as it likes, in ns.
    turn_ns: AtomicU64,
}

/// See [`Mechanism::set_turn_ns`].
const TURN_NS: u64 = 100_000_000;

impl<'m> Mechanism<'m> {
    /// A host without an enclave yet. `rescue` is memory for as many numbers as there are tasks.
    #[must_use]
    pub fn new(
        tasks: &'m [Task],
        cpus: &'m [Cpu],
        enclaves: &'m [Enclave],
        rescue: &'m [core::sync::atomic::AtomicU32],
    ) -> Self {
        Self {
            tasks,
            cpus,
            enclaves,
            free: FreeList::over(tasks),
            rescue: crate::resync::Rescue::new(rescue),
            turn_ns: AtomicU64::new(TURN_NS),
        }
    }

    /// A task by its number.
    #[must_use]
    pub fn task(&self, task: u32) -> Option<&Task> {
        self.tasks.get(task as usize)
    }

    /// All places for tasks.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        self.tasks
    }

    /// A CPU by its number.
    #[must_use]
    pub fn cpu(&self, cpu: u16) -> Option<&Cpu> {
        self.cpus.get(usize::from(cpu))
    }

    /// The host's CPUs.
    #[must_use]
    pub fn cpus(&self) -> &[Cpu] {
        self.cpus
    }

    /// An enclave by its number.
    #[must_use]
    pub fn enclave(&self, enclave: u8) -> Option<&Enclave> {
        self.enclaves.get(usize::from(enclave))
    }

    /// Gives a CPU that is nobody's to an enclave. False if it is somebody's.
    pub fn give_cpu(&self, cpu: u16, enclave: u8) -> bool {
        self.cpu(cpu).is_some_and(|cpu| {
            cpu.owner
                .compare_exchange(NOBODY, u32::from(enclave), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Takes back every CPU of an enclave.
    pub fn take_cpus(&self, enclave: u8) {
        for cpu in self.cpus {
            let _ =
                cpu.owner.compare_exchange(u32::from(enclave), NOBODY, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Says whether the machine has a CPU running.
    pub fn set_online(&self, cpu: u16, online: bool) {
        if let Some(cpu) = self.cpu(cpu) {
            cpu.online.store(online, Ordering::Release);
            cpu.available.store(true, Ordering::Release);
            cpu.moved();
        }
    }

    /// Says how long a task may run, in ns, whose decision lets it run for as long as it likes, unless that asks for no tick:
    /// then it makes room for others as if it had yielded, so that a policy which runs all to completion starves nobody.
    pub fn set_turn_ns(&self, turn_ns: u64) {
        self.turn_ns.store(turn_ns, Ordering::Relaxed);
    }

    /// See [`Mechanism::set_turn_ns`].
    #[must_use]
    pub fn turn_ns(&self) -> u64 {
        self.turn_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn rescue(&self) -> &crate::resync::Rescue<'m> {
        &self.rescue
    }

    /// Changes a task's word, and with it the count of those that wait for a decision.
    fn change(&self, task: &Task, change: impl Fn(Word) -> Word) -> (Word, Word) {
        let (before, after) = task.update(change);
        self.recount(before, after);
        (before, after)
    }

    pub(crate) fn recount(&self, before: Word, after: Word) {
        if before.phase == Phase::Runnable {
            if let Some(enclave) = self.enclave(before.enclave) {
                enclave.runnable.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if after.phase == Phase::Runnable {
            if let Some(enclave) = self.enclave(after.enclave) {
                enclave.runnable.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    // What the kernel reports of tasks.

    /// A task asks for the class: its number, or none if the table is full. `cpu` counts.
    pub fn enable(&self, pid: u32, affinity: (u16, u16), cpu: u16) -> Option<u32> {
        let number = self.free.take(self.tasks)?;
        let task = self.task(number)?;
        task.set_pid(pid);
        task.set_affinity(affinity.0, affinity.1);
        self.change(task, |word| Word { enclave: NONE, known: false, ..word.moved(Phase::Blocked) });
        self.count(cpu, Count::TasksEnabled);
        Some(number)
    }

    /// A task leaves the class, dead or alive; its number is free again.
    pub fn disable<W: Wires>(&self, wires: &W, number: u32, dead: bool, cpu: u16) {
        let Some(task) = self.task(number) else { return };
        if task.word().phase == Phase::Free {
            return;
        }
        let (before, _) = self.change(task, |word| word.moved(Phase::Free));
        self.count(cpu, Count::TasksDisabled);
        let kind = if dead { MessageKind::TaskDead } else { MessageKind::TaskDeparted };
        self.tell_of_leaving(wires, number, before, kind, cpu);
        self.free.give(self.tasks, number);
    }

    /// Tells a task's agent that it is no more the agent's.
    fn tell_of_leaving<W: Wires>(&self, wires: &W, number: u32, before: Word, kind: MessageKind, cpu: u16) {
        let left = self.leaves_cpu(wires, number, before);
        if !before.known {
            return;
        }
        let reporter = if left { before.cpu } else { self.reporter(before.enclave, cpu) };
        let flags = if left { TaskFlags::WAS_ON_CPU } else { TaskFlags(0) };
        let message = self.message(kind, reporter, number, flags);
        if left {
            self.keep(wires, before.enclave, reporter, message);
        } else {
            self.tell(wires, before.enclave, message, cpu);
        }
    }

    /// What a task ran or was to run on has it no more. False if it did not run. A CPU that was to run it and runs nothing
    /// tells so: it may never switch, and so have no other occasion.
    fn leaves_cpu<W: Wires>(&self, wires: &W, number: u32, before: Word) -> bool {
        if !matches!(before.phase, Phase::OnCpu | Phase::Placed) {
            return false;
        }
        let Some(cpu) = self.cpu(before.cpu) else { return false };
        if !cpu.vacate(number) {
            return false;
        }
        if before.phase == Phase::Placed && cpu.is_idle() && !cpu.event.is_there() {
            self.tell_verdict(wires, before.enclave, before.cpu, cpu);
        }
        before.phase == Phase::OnCpu
    }

    /// A CPU of the enclave that an event which no CPU of it reports is reported in the name of.
    fn reporter(&self, enclave: u8, cpu: u16) -> u16 {
        let owns = |number: u16| self.cpu(number).is_some_and(|cpu| cpu.owner() == Some(enclave));
        if owns(cpu) { cpu } else { self.voice(enclave) }
    }

    /// The enclave's first CPU, or 0 while it has none.
    #[must_use]
    pub fn voice(&self, enclave: u8) -> u16 {
        (0..).zip(self.cpus).find(|(_, cpu)| cpu.owner() == Some(enclave)).map_or(0, |(number, _)| number)
    }

    /// A task can run, and needs a place: who is to decide.
    pub fn enqueue<W: Wires>(&self, wires: &W, number: u32, cpu: u16) -> Custody {
        let Some(task) = self.task(number) else { return Custody::Host };
        let before = task.word();
        let owner = self.cpu(cpu).and_then(Cpu::owner).unwrap_or(NONE);
        let stays = before.enclave != NONE
            && (before.enclave == owner || self.may_stay(before.enclave, task.affinity()));
        let enclave = if stays { before.enclave } else { owner };
        if before.known && enclave != before.enclave {
            let (before, _) = self.change(task, |word| Word { known: false, ..word.moved(Phase::Blocked) });
            self.tell_of_leaving(wires, number, before, MessageKind::TaskDeparted, cpu);
        }
        let decides = self.enclave(enclave).is_some_and(|enclave| enclave.level() == Level::Ipu)
            && wires.wire(enclave).is_some();
        if !decides {
            let (before, _) = self.change(task, |word| Word { enclave, ..word.moved(Phase::Host) });
            self.leaves_cpu(wires, number, before);
            self.count(cpu, Count::TasksHost);
            return Custody::Host;
        }
        let now = wires.now_ns();
        let (before, _) =
            self.change(task, |word| Word { enclave, known: true, ..word.moved(Phase::Runnable) });
        let left = self.leaves_cpu(wires, number, before);
        let ran_ns = now.wrapping_sub(task.ran_ns.load(Ordering::Relaxed));
        let kind = match before.phase {
            _ if !before.known => MessageKind::TaskNew,
            Phase::Placed => MessageKind::TaskLatchFailure,
            Phase::Runnable if before.in_flux => MessageKind::TaskAffinityChanged,
            Phase::Runnable => MessageKind::TaskPriorityChanged,
            Phase::OnCpu if before.yields || ran_ns >= self.turn_ns() => MessageKind::TaskYield,
            Phase::OnCpu => MessageKind::TaskPreempt,
            Phase::Free | Phase::Blocked | Phase::Host => MessageKind::TaskWakeup,
        };
        if matches!(kind, MessageKind::TaskLatchFailure) {
            self.count(cpu, Count::LatchFailures);
        } else if before.phase != Phase::Runnable {
            task.since_ns.store(now, Ordering::Relaxed);
        }
        if left && before.cpu == cpu {
            let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
            let message = self.message(kind, cpu, number, flags);
            self.keep(wires, enclave, cpu, Message { time_ns: now, argument: ran_ns, ..message });
        } else {
            let message = self.message(kind, self.reporter(enclave, cpu), number, TaskFlags::RUNNABLE);
            self.tell(wires, enclave, Message { time_ns: now, ..message }, cpu);
        }
        Custody::Agent
    }

    /// Whether an enclave has a CPU that a task with this affinity may use.
    fn may_stay(&self, enclave: u8, affinity: (u16, u16)) -> bool {
        let mut own = (0..).zip(self.cpus).filter(|(_, cpu)| cpu.owner() == Some(enclave));
        own.any(|(number, _)| may_use(affinity, number))
    }

    /// A task is taken off its queue for a change of its properties.
    pub fn dequeue(&self, number: u32) {
        if let Some(task) = self.task(number) {
            self.change(task, |word| Word { in_flux: true, ..word });
        }
    }

    /// A task gives up its CPU by itself, though it could go on.
    pub fn yields(&self, number: u32) {
        if let Some(task) = self.task(number) {
            self.change(task, |word| Word { yields: true, ..word });
        }
    }

    /// A task is about to leave its CPU: what lies in the slot is fetched meanwhile.
    pub fn stopping<W: Wires>(&self, wires: &W, cpu: u16) {
        let Some(enclave) = self.cpu(cpu).and_then(Cpu::owner) else { return };
        if let Some(wire) = wires.wire(enclave) {
            wire.prefetch(cpu);
        }
    }

    /// A task can run no more: it sleeps, or is in flux.
    pub fn quiescent<W: Wires>(&self, wires: &W, number: u32, cpu: u16, sleeps: bool) {
        let Some(task) = self.task(number) else { return };
        if !sleeps {
            return self.dequeue(number);
        }
        let (before, _) = self.change(task, |word| word.moved(Phase::Blocked));
        let left = self.leaves_cpu(wires, number, before);
        if before.phase == Phase::Host || !before.known {
            return;
        }
        let now = wires.now_ns();
        let flags = if left { TaskFlags::WAS_ON_CPU } else { TaskFlags(0) };
        let reporter = if left { before.cpu } else { self.reporter(before.enclave, cpu) };
        let ran_ns = if left { now.wrapping_sub(task.ran_ns.load(Ordering::Relaxed)) } else { 0 };
        let message = self.message(MessageKind::TaskBlocked, reporter, number, flags);
        let message = Message { time_ns: now, argument: ran_ns, ..message };
        if left && reporter == cpu {
            self.keep(wires, before.enclave, cpu, message);
        } else {
            self.tell(wires, before.enclave, message, cpu);
        }
    }

    /// A task begins to run.
    pub fn running<W: Wires>(&self, wires: &W, number: u32, cpu: u16) {
        let (Some(task), Some(entry)) = (self.task(number), self.cpu(cpu)) else { return };
        task.ran_ns.store(wires.now_ns(), Ordering::Relaxed);
        let word = task.word();
        let decided = matches!(word.phase, Phase::Placed | Phase::OnCpu) && word.cpu == cpu;
        if decided {
            self.change(task, |word| Word { phase: Phase::OnCpu, in_flux: false, ..word });
            if entry.report_on_cpu.swap(false, Ordering::Relaxed) {
                let message = self.message(MessageKind::TaskOnCpu, cpu, number, TaskFlags::ON_CPU);
                self.tell(wires, word.enclave, message, cpu);
            }
            return;
        }
        if matches!(word.phase, Phase::Host | Phase::Free) {
            return;
        }
        // The kernel has put it there by itself: a task that exits, or may not migrate, or was between two queues.
        self.count(cpu, Count::Undecided);
        let (before, _) = self.change(task, |word| Word { cpu, ..word.moved(Phase::OnCpu) });
        self.leaves_cpu(wires, number, before);
        let free =
            entry.task.compare_exchange(TASK_NONE, number, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if free {
            entry.moved();
        }
        if before.known {
            let message = self.message(
                MessageKind::TaskOnCpu,
                self.reporter(before.enclave, cpu),
                number,
                TaskFlags::ON_CPU,
            );
            self.tell(wires, before.enclave, message, cpu);
        }
    }

    /// The CPUs that a task may use have changed.
    pub fn set_affinity<W: Wires>(&self, wires: &W, number: u32, affinity: (u16, u16), cpu: u16) {
        let Some(task) = self.task(number) else { return };
        task.set_affinity(affinity.0, affinity.1);
        let (before, _) = self.change(task, |word| Word { stamp: word.stamp.wrapping_add(1), ..word });
        // One that is in its queue is told of when it is back there.
        if before.known && !before.in_flux && before.phase != Phase::Host {
            let reporter = self.reporter(before.enclave, cpu);
            let message = self.message(MessageKind::TaskAffinityChanged, reporter, number, TaskFlags(0));
            self.tell(wires, before.enclave, message, cpu);
        }
    }

    // What the kernel reports of CPUs.

    /// A CPU has switched to something else: what waited to be told is told, in one line.
    pub fn switch<W: Wires>(&self, wires: &W, cpu: u16, to: Runs) {
        let Some(entry) = self.cpu(cpu) else { return };
        entry.runs.store(to as u32, Ordering::Release);
        let other = to == Runs::Other;
        if other != (entry.other_ns.load(Ordering::Relaxed) != 0) {
            let since = if other { wires.now_ns().max(1) } else { 0 };
            entry.other_ns.store(since, Ordering::Release);
        }
        let Some(enclave) = entry.owner() else { return };
        self.flush(wires, enclave, cpu, entry);
        // One that goes offline switches a few times more on its way.
        if !entry.online.load(Ordering::Acquire) {
            return;
        }
        if to == Runs::Idle && entry.task() == TASK_NONE && !entry.told_idle.load(Ordering::Relaxed) {
            self.tell_verdict(wires, enclave, cpu, entry);
        }
        if !other && !entry.available.load(Ordering::Relaxed) {
            entry.available.store(true, Ordering::Release);
            entry.moved();
            let idle = if entry.task() == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags(0) };
            let message = self.message(MessageKind::CpuAvailable, cpu, TASK_NONE, idle);
            self.tell(wires, enclave, message, cpu);
        }
    }

    /// A CPU has come back to the machine: the agent is told that it is there.
    pub fn announce<W: Wires>(&self, wires: &W, cpu: u16) {
        let Some(entry) = self.cpu(cpu) else { return };
        let Some(enclave) = entry.owner() else { return };
        let idle = if entry.task() == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags(0) };
        let message = self.message(MessageKind::CpuAvailable, cpu, TASK_NONE, idle);
        self.tell(wires, enclave, message, cpu);
    }

    /// A higher class has held a CPU for long, or the machine takes it away: what lies in its slot is refused, so that the agent
    /// does not count on it. On the CPU itself, with interrupts off.
    pub fn withhold<W: Wires>(&self, wires: &W, cpu: u16) {
        let Some(entry) = self.cpu(cpu) else { return };
        let Some(number) = entry.owner() else { return };
        entry.available.store(false, Ordering::Release);
        entry.moved();
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return };
        if enclave.level() != Level::Ipu {
            return;
        }
        self.leave_group(wires, cpu);
        self.flush(wires, number, cpu, entry);
        if let Some(offer) = wire.take(cpu, entry, enclave) {
            let outcome = match self.judge(number, enclave, cpu, &offer.txn) {
                Err(outcome) => outcome,
                // It has become open again in between.
                Ok(_) => Outcome::CpuUnavailable,
            };
            self.verdict(wire, enclave, cpu, &offer.txn, outcome);
        }
        let message = self.message(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0));
        self.tell_with_verdict(wires, number, entry, message);
    }

    /// The IPU has rung for a CPU: whether it asks to preempt what runs there. The slot is fetched anew.
    pub fn rung<W: Wires>(&self, wires: &W, cpu: u16) -> bool {
        let Some(entry) = self.cpu(cpu) else { return false };
        entry.counters.one(Count::Interrupts);
        entry.rings.fetch_add(1, Ordering::Relaxed);
        let Some(wire) = entry.owner().and_then(|enclave| wires.wire(enclave)) else { return false };
        wire.flush(cpu);
        let offer = wire.look(cpu, entry.taken.load(Ordering::Relaxed) as u8);
        wire.prefetch(cpu);
        offer.is_some_and(|offer| offer.txn.flags.has(TxnFlags::PREEMPT))
    }

    // Decisions.

    /// A CPU needs a task: what its slot holds for it. What can't be carried out is refused here.
    pub fn take<W: Wires>(&self, wires: &W, cpu: u16) -> Taken {
        let Some(entry) = self.cpu(cpu) else { return Taken::Nothing };
        let rescued = self.rescue.claim(RESCUED);
        if rescued.1 != 0 {
            entry.batched.store(rescued.1, Ordering::Relaxed);
            entry.rescues.store(true, Ordering::Relaxed);
            if let Some(place) = entry.batch.first() {
                place.store(rescued.0, Ordering::Relaxed);
            }
            return Taken::Rescue(rescued.1);
        }
        entry.rescues.store(false, Ordering::Relaxed);
        let Some(number) = entry.owner() else { return Taken::Nothing };
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else {
            return Taken::Nothing;
        };
        if enclave.level() != Level::Ipu {
            return Taken::Nothing;
        }
        let Some(offer) = wire.take(cpu, entry, enclave) else {
            if entry.event.is_there() {
                entry.counters.one(Count::PrestageMisses);
            }
            return Taken::Nothing;
        };
        let txn = &offer.txn;
        if wire.poisoned() && enclave.standing() == Standing::Good {
            enclave.set_standing(Standing::Poisoned);
        }
        self.leave_group(wires, cpu);
        if txn.flags.has(TxnFlags::GROUP)
            && txn.operation != Operation::Withdraw as u8
            && !is_of_another_agent(enclave, txn)
        {
            entry.stash.put(&offer.payload);
            return match self.join(wires, number, enclave, cpu, txn) {
                Joined::Waits => Taken::Nothing,
                Joined::Complete => Taken::Members(entry.batched.load(Ordering::Relaxed)),
                Joined::Refused(outcome) => {
                    self.refuse(wires, number, enclave, cpu, txn, outcome);
                    Taken::Nothing
                }
            };
        }
        match self.judge(number, enclave, cpu, txn) {
            Err(outcome) => {
                self.refuse(wires, number, enclave, cpu, txn, outcome);
                Taken::Nothing
            }
            // The CPU is left idle: what ran there comes back to the agent by itself.
            Ok(None) => {
                self.verdict(wire, enclave, cpu, txn, Outcome::Committed);
                if !entry.event.is_there() {
                    self.tell_verdict(wires, number, cpu, entry);
                }
                Taken::Nothing
            }
            Ok(Some((_, word))) => {
                entry.stash.put(&offer.payload);
                entry.barred.store(0, Ordering::Relaxed);
                entry.batched.store(1, Ordering::Relaxed);
                if let Some(place) = entry.batch.first() {
                    place.store(u32::from(cpu), Ordering::Relaxed);
                }
                if word.phase == Phase::OnCpu {
                    self.verdict(wire, enclave, cpu, txn, Outcome::Committed);
                    self.tell_verdict(wires, number, cpu, entry);
                    return Taken::Keep;
                }
                Taken::Members(1)
            }
        }
    }

    fn member_cpu(&self, cpu: u16, member: u32) -> Option<u16> {
        let entry = self.cpu(cpu)?;
        if entry.rescues.load(Ordering::Relaxed) || member >= entry.batched.load(Ordering::Relaxed) {
            return None;
        }
        Some(entry.batch.get(member as usize)?.load(Ordering::Relaxed) as u16)
    }

    /// A member of what `cpu` took.
    #[must_use]
    pub fn member(&self, cpu: u16, member: u32) -> Option<Member> {
        let target = self.member_cpu(cpu, member)?;
        let txn = Txn::from_payload(&self.cpu(target)?.stash.get());
        let pid = self.task(txn.task).map_or(0, Task::pid);
        Some(Member {
            pid,
            task: txn.task,
            cpu: target,
            slice_ns: txn.slice_ns,
            preempts: txn.flags.has(TxnFlags::PREEMPT),
            tickless: txn.flags.has(TxnFlags::TICKLESS),
        })
    }

    /// A task of the host's own that `cpu` is to queue: its process number.
    #[must_use]
    pub fn rescued(&self, cpu: u16, member: u32) -> Option<u32> {
        let entry = self.cpu(cpu)?;
        if !entry.rescues.load(Ordering::Relaxed) || member >= entry.batched.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.rescue.get(entry.batch.first()?.load(Ordering::Relaxed).wrapping_add(member))?;
        let task = self.task(number)?;
        (task.word().phase == Phase::Host).then(|| task.pid())
    }

    /// The kernel cannot put a member in place: its process is gone, or may not run there.
    pub fn bar(&self, cpu: u16, member: u32, gone: bool) {
        if let Some(entry) = self.cpu(cpu) {
            if member < MEMBERS_MAX as u32 {
                entry.barred.fetch_or(1 << (member + if gone { 0 } else { 16 }), Ordering::Relaxed);
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
        let (count, barred) =
            (entry.batched.swap(0, Ordering::Relaxed) as usize, entry.barred.load(Ordering::Relaxed));
        let mut txns = [Txn::withdraw(0); MEMBERS_MAX];
        let mut words: [Option<(u32, Word)>; MEMBERS_MAX] = [None; MEMBERS_MAX];
        let mut outcomes = [Outcome::Committed; MEMBERS_MAX];
        let mut all = count != 0;
        for (((place, txn), word), (outcome, bit)) in
            entry.batch.iter().zip(&mut txns).zip(&mut words).zip(outcomes.iter_mut().zip(0u32..)).take(count)
        {
            let target = place.load(Ordering::Relaxed) as u16;
            let Some(at) = self.cpu(target) else { return false };
            *txn = Txn::from_payload(&at.stash.get());
            match self.judge(number, enclave, target, txn) {
                Err(refused) => *outcome = refused,
                Ok(_) if barred == u32::MAX => *outcome = Outcome::GroupFailed,
                Ok(_) if barred >> bit & 1 == 1 => *outcome = Outcome::TaskGone,
                Ok(_) if barred >> (bit + 16) & 1 == 1 => *outcome = Outcome::Affinity,
                Ok(_) if target != cpu && self.is_held(txn) => *outcome = Outcome::CpuUnavailable,
                Ok(rests_on) => *word = rests_on,
            }
            all &= *outcome == Outcome::Committed;
        }
        // A task twice in a group: the group's shape is wrong.
        for (i, one) in txns.iter().enumerate().take(count) {
            if txns.iter().take(i).any(|other| other.task == one.task && other.task != TASK_NONE) {
                outcomes[i.min(MEMBERS_MAX - 1)] = Outcome::InvalidGroup;
                all = false;
            }
        }
        let committed = all && self.commit(enclave, &txns, &words, &mut outcomes, count);
        for ((place, txn), outcome) in entry.batch.iter().zip(&txns).zip(&outcomes).take(count) {
            let target = place.load(Ordering::Relaxed) as u16;
            let outcome = match *outcome {
                Outcome::Committed if !committed => Outcome::GroupFailed,
                outcome => outcome,
            };
            if outcome == Outcome::Committed {
                self.carried_out(wires, number, enclave, cpu, target, txn);
            } else {
                self.refuse(wires, number, enclave, target, txn, outcome);
            }
        }
        committed
    }

    /// Moves the words of all members' tasks, or of none.
    fn commit(
        &self,
        enclave: &Enclave,
        txns: &[Txn; MEMBERS_MAX],
        words: &[Option<(u32, Word)>; MEMBERS_MAX],
        outcomes: &mut [Outcome; MEMBERS_MAX],
        count: usize,
    ) -> bool {
        let placed = |word: Word, txn: &Txn| Word { cpu: txn.cpu, ..word.moved(Phase::Placed) };
        for (i, (txn, word)) in txns.iter().zip(words).enumerate().take(count) {
            let Some((task, word)) = word else { continue };
            if self.task(*task).is_some_and(|task| task.swap(*word, placed(*word, txn))) {
                enclave.runnable.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            // It has changed since it was judged a moment ago.
            if let Some(outcome) = outcomes.get_mut(i) {
                *outcome = Outcome::TaskStale;
            }
            for (txn, word) in txns.iter().zip(words).take(i) {
                let Some((task, word)) = word else { continue };
                if self.task(*task).is_some_and(|task| task.swap(placed(*word, txn), *word)) {
                    enclave.runnable.fetch_add(1, Ordering::Relaxed);
                }
            }
            return false;
        }
        true
    }

    /// Takes note of a decision that is being carried out on `target`, by `cpu`.
    fn carried_out<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        cpu: u16,
        target: u16,
        txn: &Txn,
    ) {
        let Some(at) = self.cpu(target) else { return };
        if txn.operation == Operation::Run as u8 {
            at.task.store(txn.task, Ordering::Release);
            at.told_idle.store(false, Ordering::Relaxed);
            at.moved();
            at.report_on_cpu.store(txn.flags.has(TxnFlags::REPORT_ON_CPU), Ordering::Relaxed);
            at.counters.one(Count::Decisions);
            enclave.decisions.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(wire) = wires.wire(number) {
            self.verdict(wire, enclave, target, txn, Outcome::Committed);
        }
        if target != cpu {
            self.tell_verdict(wires, number, target, at);
        } else if at.event.is_there() {
            at.counters.one(Count::PrestageHits);
            at.hit.store(true, Ordering::Relaxed);
        }
    }

    /// Takes note of a verdict. An agent is not told what became of another's txns.
    fn verdict<P: Platform>(
        &self,
        wire: &Wire<'_, P>,
        enclave: &Enclave,
        number: u16,
        txn: &Txn,
        outcome: Outcome,
    ) {
        let Some(cpu) = self.cpu(number) else { return };
        wire.platform.judged(number, txn, outcome);
        cpu.counters.outcome(outcome);
        if !is_of_another_agent(enclave, txn) {
            cpu.set_verdict(txn.id, outcome);
        }
    }

    /// Refuses what a CPU took. If no event waits for the verdict, it gets a line of its own.
    pub(crate) fn refuse<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        cpu: u16,
        txn: &Txn,
        outcome: Outcome,
    ) {
        let Some(entry) = self.cpu(cpu) else { return };
        if let Some(wire) = wires.wire(number) {
            self.verdict(wire, enclave, cpu, txn, outcome);
        }
        if !entry.event.is_there() && entry.has_verdict() {
            self.tell_verdict(wires, number, cpu, entry);
        }
    }

    // Lines.

    /// The line that reports an event of a task on a CPU, with stamps and affinity as they are.
    #[must_use]
    pub fn message(&self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Message {
        let mut message = Message { flags, ..Message::new(kind, cpu) };
        if let Some(entry) = self.task(task) {
            message.task = task;
            message.stamp = entry.word().stamp;
            (message.first_cpu, message.cpu_count) = entry.affinity();
        }
        if let Some(cpu) = self.cpu(cpu) {
            message.cpu_stamp = cpu.stamp();
            message.txn = cpu.txn.load(Ordering::Relaxed);
        }
        message
    }

    /// Keeps an event's line until its CPU has looked at its slot.
    fn keep<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, message: Message) {
        let Some(entry) = self.cpu(cpu) else { return };
        self.flush(wires, enclave, cpu, entry);
        entry.event.put(&message.to_payload());
    }

    /// Tells what waits on a CPU: its event, its verdict, or both in one line.
    fn flush<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, entry: &Cpu) {
        let Some(payload) = entry.event.take() else {
            if entry.has_verdict() {
                self.tell_verdict(wires, enclave, cpu, entry);
            }
            return;
        };
        let Ok(mut message) = Message::from_payload(&payload) else { return };
        if entry.task() == TASK_NONE {
            message.flags = message.flags.with(TaskFlags::CPU_IDLE);
        }
        message.cpu_stamp = entry.stamp();
        let hit = entry.hit.swap(false, Ordering::Relaxed);
        self.send(wires, enclave, message, entry, Some(entry), hit);
    }

    /// A verdict that no event carries.
    fn tell_verdict<W: Wires>(&self, wires: &W, enclave: u8, cpu: u16, entry: &Cpu) {
        let task = entry.task();
        let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
        let message = self.message(MessageKind::TxnOutcome, cpu, task, flags);
        self.tell_with_verdict(wires, enclave, entry, message);
    }

    fn tell_with_verdict<W: Wires>(&self, wires: &W, enclave: u8, entry: &Cpu, message: Message) {
        let message = Message { time_ns: wires.now_ns(), ..message };
        self.send(wires, enclave, message, entry, Some(entry), false);
    }

    /// Tells of an event at once; `cpu` is the one that writes.
    fn tell<W: Wires>(&self, wires: &W, enclave: u8, message: Message, cpu: u16) {
        if let Some(writer) = self.cpu(cpu) {
            self.send(wires, enclave, message, writer, None, false);
        }
    }

    /// Writes a line, or counts it where a resync will make it good.
    fn send<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        mut message: Message,
        writer: &Cpu,
        verdict_of: Option<&Cpu>,
        hit: bool,
    ) {
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return };
        if enclave.level() != Level::Ipu {
            return;
        }
        if message.time_ns == 0 {
            message.time_ns = wires.now_ns();
        }
        if enclave.resync_due() {
            writer.counters.one(Count::MessagesDropped);
            return enclave.lose();
        }
        let verdict = verdict_of.map_or(0, |cpu| cpu.give_verdict(&mut message));
        let (sent, cost) = wire.send(&message, writer, hit);
        if hit {
            writer.counters.add(Count::HitUncachedReads, cost.uncached_reads);
            writer.counters.add(Count::HitLineWrites, cost.line_writes);
        }
        if sent.is_err() {
            if let Some(cpu) = verdict_of {
                cpu.put_back_verdict(verdict);
            }
            writer.counters.one(Count::MessagesDropped);
            enclave.lose();
        } else if message.flags.has(TaskFlags::CPU_IDLE) {
            if let Some(cpu) = self.cpu(message.cpu) {
                cpu.told_idle.store(true, Ordering::Relaxed);
            }
        }
    }

    fn count(&self, cpu: u16, count: Count) {
        if let Some(cpu) = self.cpu(cpu) {
            cpu.counters.one(count);
        }
    }
}
