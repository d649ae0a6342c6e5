//! The scheduling events of tasks and CPUs, as the kernel's extensible class reports them.
//!
//! Each event of a task comes under the lock of its runqueue, whose CPU it names; so does all that concerns a CPU's own entry,
//! with interrupts off. Decisions come from any CPU in between.

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Outcome, TaskFlags, TxnFlags};

use crate::counters::Count;
use crate::cpu::{Cpu, NOBODY, Runs};
use crate::enclave::{Enclave, Level};
use crate::judge::may_use;
use crate::sync::{AtomicU64, Ordering, fence, in_order};
use crate::task::{Phase, Stack, Task, Word};
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

/// No enclave.
pub(crate) const NONE: u8 = 15;
const _: () = assert!(ENCLAVES_MAX <= NONE as usize);

/// The state of a host.
#[derive(Debug)]
pub struct Mechanism<'m> {
    tasks: &'m [Task],
    cpus: &'m [Cpu],
    enclaves: &'m [Enclave],
    free: Stack<false>,
    rescued: Stack<true>,
    /// How long a task may run that may run for as long as it likes, in ns.
    turn_ns: AtomicU64,
}

/// See [`Mechanism::set_turn_ns`].
const TURN_NS: u64 = 100_000_000;

impl<'m> Mechanism<'m> {
    /// A host without an enclave yet.
    #[must_use]
    pub fn new(tasks: &'m [Task], cpus: &'m [Cpu], enclaves: &'m [Enclave]) -> Self {
        Self {
            tasks,
            cpus,
            enclaves,
            free: Stack::over(tasks),
            rescued: Stack::empty(),
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

    /// The host's CPUs, with their numbers. (Numbers without an end would be counted with a check for their overflow.)
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u16, &'m Cpu)> + use<'m> {
        (0..self.cpus.len() as u16).zip(self.cpus)
    }

    /// An enclave's CPUs, with their numbers.
    pub fn cpus_of(&self, enclave: u8) -> impl Iterator<Item = (u16, &'m Cpu)> + use<'m> {
        self.numbered().filter(move |(_, cpu)| cpu.owner() == Some(enclave))
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

    pub(crate) fn to_rescue(&self) -> &Stack<true> {
        &self.rescued
    }

    /// Changes a task's word, and with it the count of those that wait for a decision.
    pub(crate) fn change(&self, task: &Task, change: impl Fn(Word) -> Word) -> (Word, Word) {
        let (before, after) = task.update(change);
        self.recount(before, after);
        (before, after)
    }

    pub(crate) fn recount(&self, before: Word, after: Word) {
        if before.phase == after.phase && before.enclave == after.enclave {
            return;
        }
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

    // What the kernel reports of tasks. `cpu` is that of the task's runqueue, whose lock is held.

    /// A task asks for the class: its number, or none if the table is full.
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
        let (before, after) = self.change(task, |word| word.moved(Phase::Free));
        self.count(cpu, Count::TasksDisabled);
        let kind = if dead { MessageKind::TaskDead } else { MessageKind::TaskDeparted };
        // All lines of the task go before its number can be another's.
        self.tell_of_leaving(wires, number, (before, after), kind, cpu);
        self.free.give(self.tasks, number);
    }

    /// Tells a task's agent that it is no more the agent's.
    fn tell_of_leaving<W: Wires>(
        &self,
        wires: &W,
        number: u32,
        (before, after): (Word, Word),
        kind: MessageKind,
        cpu: u16,
    ) {
        let vacant = self.leaves_cpu(number, before);
        if before.known {
            let reporter = self.reporter(before.enclave, cpu);
            let ran = before.phase == Phase::OnCpu && before.cpu == reporter;
            let flags = if ran { TaskFlags::WAS_ON_CPU } else { TaskFlags(0) };
            let message = self.event(kind, reporter, number, after, flags);
            self.tell(wires, before.enclave, message, cpu);
        }
        self.tell_if_vacant(wires, vacant);
    }

    /// The CPU that a task ran on or was to run on has it no more.
    fn leaves_cpu(&self, number: u32, before: Word) -> Option<(u16, &Cpu)> {
        if !matches!(before.phase, Phase::OnCpu | Phase::Placed) {
            return None;
        }
        let cpu = self.cpu(before.cpu)?;
        in_order();
        cpu.vacate(number).then_some((before.cpu, cpu))
    }

    pub(crate) fn tell_if_vacant<W: Wires>(&self, wires: &W, vacant: Option<(u16, &Cpu)>) {
        if let Some((number, cpu)) = vacant {
            if let Some(enclave) = cpu.owner() {
                self.tell_if_idle(wires, enclave, number, cpu);
            }
        }
    }

    /// A task can run, and needs a place: who is to decide. Its process number may have changed: exec() gives a thread that of its
    /// process.
    pub fn enqueue<W: Wires>(&self, wires: &W, number: u32, pid: u32, cpu: u16) -> Custody {
        let Some(task) = self.task(number) else { return Custody::Host };
        let before = task.word();
        if before.phase == Phase::Free {
            return Custody::Host;
        }
        task.set_pid(pid);
        let owner = self.cpu(cpu).and_then(Cpu::owner).unwrap_or(NONE);
        let stays = before.enclave != NONE
            && (before.enclave == owner || self.may_stay(before.enclave, task.affinity()));
        let enclave = if stays { before.enclave } else { owner };
        if before.known && enclave != before.enclave {
            let words = self.change(task, |word| Word { known: false, ..word.moved(Phase::Blocked) });
            self.tell_of_leaving(wires, number, words, MessageKind::TaskDeparted, cpu);
        }
        let decides = self.enclave(enclave).is_some_and(|enclave| enclave.level() == Level::Ipu)
            && wires.wire(enclave).is_some();
        let now = wires.now_ns();
        if !decides {
            let (before, _) = self.change(task, |word| Word { enclave, ..word.moved(Phase::Host) });
            task.since_ns.store(now, Ordering::Relaxed);
            let vacant = self.leaves_cpu(number, before);
            self.tell_if_vacant(wires, vacant);
            self.count(cpu, Count::TasksHost);
            return Custody::Host;
        }
        let (before, after) =
            self.change(task, |word| Word { enclave, known: true, ..word.moved(Phase::Runnable) });
        let vacant = self.leaves_cpu(number, before);
        let ran_ns = now.saturating_sub(task.ran_ns());
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
        if Self::switches_away(before, cpu) {
            let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
            let message = self.event(kind, cpu, number, after, flags);
            self.keep(wires, enclave, cpu, Message { time_ns: now, argument: ran_ns, ..message });
        } else {
            let message = self.event(kind, self.reporter(enclave, cpu), number, after, TaskFlags::RUNNABLE);
            self.tell(wires, enclave, Message { time_ns: now, ..message }, cpu);
            self.tell_if_vacant(wires, vacant);
        }
        Custody::Agent
    }

    /// Whether an event that finds a task like this comes from its own CPU, which is about to switch away from it. One that is in
    /// flux is not running there: somebody else has taken it off the queue.
    fn switches_away(before: Word, cpu: u16) -> bool {
        before.known && before.phase == Phase::OnCpu && before.cpu == cpu && !before.in_flux
    }

    /// Whether an enclave has a CPU that a task with this affinity may use.
    fn may_stay(&self, enclave: u8, affinity: (u16, u16)) -> bool {
        self.cpus_of(enclave).any(|(number, _)| may_use(affinity, number))
    }

    /// Whether no CPU of an enclave's that a task with this affinity may use is to be had.
    pub(crate) fn is_stranded(&self, enclave: u8, affinity: (u16, u16)) -> bool {
        !self.cpus_of(enclave).any(|(number, cpu)| cpu.is_open() && may_use(affinity, number))
    }

    /// A task is taken off its queue for a change of its properties.
    pub fn dequeue(&self, number: u32) {
        if let Some(task) = self.task(number) {
            self.change(task, |word| Word { in_flux: word.phase != Phase::Free, ..word });
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
        if task.word().phase == Phase::Free {
            return;
        }
        let (before, after) = self.change(task, |word| word.moved(Phase::Blocked));
        let vacant = self.leaves_cpu(number, before);
        if before.phase == Phase::Host || !before.known {
            return self.tell_if_vacant(wires, vacant);
        }
        let now = wires.now_ns();
        if Self::switches_away(before, cpu) {
            let ran_ns = now.saturating_sub(task.ran_ns());
            // Its CPU may be another enclave's by now, or nobody's.
            let reporter = self.reporter(before.enclave, cpu);
            let flags = if reporter == cpu { TaskFlags::WAS_ON_CPU } else { TaskFlags(0) };
            let message = self.event(MessageKind::TaskBlocked, reporter, number, after, flags);
            let message = Message { time_ns: now, argument: ran_ns, ..message };
            if reporter == cpu {
                return self.keep(wires, before.enclave, cpu, message);
            }
            self.tell(wires, before.enclave, message, cpu);
        } else {
            let reporter = self.reporter(before.enclave, cpu);
            let message = self.event(MessageKind::TaskBlocked, reporter, number, after, TaskFlags(0));
            self.tell(wires, before.enclave, Message { time_ns: now, ..message }, cpu);
        }
        self.tell_if_vacant(wires, vacant);
    }

    /// A task begins to run.
    pub fn running<W: Wires>(&self, wires: &W, number: u32, cpu: u16) {
        let (Some(task), Some(entry)) = (self.task(number), self.cpu(cpu)) else { return };
        task.ran_ns.store(wires.now_ns(), Ordering::Relaxed);
        let decided = |word: Word| matches!(word.phase, Phase::Placed | Phase::OnCpu) && word.cpu == cpu;
        let (before, after) = self.change(task, |word| match word.phase {
            _ if decided(word) => Word { phase: Phase::OnCpu, in_flux: false, ..word },
            Phase::Host | Phase::Free => word,
            // The kernel has put it there by itself: a task that exits, or may not migrate, or was between two queues.
            _ => Word { cpu, ..word.moved(Phase::OnCpu) },
        });
        if matches!(before.phase, Phase::Host | Phase::Free) {
            return;
        }
        if decided(before) {
            if entry.task() == TASK_NONE && entry.claim(TASK_NONE, number) {
                // It had been taken for lost.
                entry.moved();
            }
            let asked = entry.report_on_cpu.load(Ordering::Relaxed);
            if asked && entry.report_on_cpu.swap(false, Ordering::Relaxed) && before.known {
                let message = self.event(MessageKind::TaskOnCpu, cpu, number, after, TaskFlags::ON_CPU);
                self.tell(wires, before.enclave, message, cpu);
            }
            return;
        }
        self.count(cpu, Count::Undecided);
        let vacant = self.leaves_cpu(number, before);
        if entry.claim(TASK_NONE, number) {
            entry.moved();
        }
        if before.known {
            let reporter = self.reporter(before.enclave, cpu);
            let message = self.event(MessageKind::TaskOnCpu, reporter, number, after, TaskFlags::ON_CPU);
            self.tell(wires, before.enclave, message, cpu);
        }
        self.tell_if_vacant(wires, vacant);
    }

    /// The CPUs that a task may use have changed.
    pub fn set_affinity<W: Wires>(&self, wires: &W, number: u32, affinity: (u16, u16), cpu: u16) {
        let Some(task) = self.task(number) else { return };
        task.set_affinity(affinity.0, affinity.1);
        let (before, after) = self.change(task, |word| Word { stamp: word.stamp.wrapping_add(1), ..word });
        // One that is in its queue is told of when it is back there. One that runs is in flux too, but goes on without a word.
        let told = !before.in_flux || before.phase == Phase::OnCpu;
        if before.known && told && !matches!(before.phase, Phase::Host | Phase::Free) {
            let reporter = self.reporter(before.enclave, cpu);
            let message = self.event(MessageKind::TaskAffinityChanged, reporter, number, after, TaskFlags(0));
            self.tell(wires, before.enclave, message, cpu);
        }
    }

    // What the kernel reports of CPUs, on the CPU itself.

    /// A CPU has switched to something else: what waited to be told is told, in one line.
    pub fn switch<W: Wires>(&self, wires: &W, cpu: u16, to: Runs) {
        let Some(entry) = self.cpu(cpu) else { return };
        entry.runs.store(to as u32, Ordering::Release);
        let other = to == Runs::Other;
        if other != (entry.other_ns.load(Ordering::Relaxed) != 0) {
            let since = if other { wires.now_ns().max(1) } else { 0 };
            entry.other_ns.store(since, Ordering::Relaxed);
        }
        let Some(enclave) = entry.owner() else { return };
        self.flush(wires, enclave, cpu, entry);
        if !other && !entry.available.load(Ordering::Relaxed) && entry.online.load(Ordering::Acquire) {
            entry.available.store(true, Ordering::Release);
            entry.moved();
            self.announce(wires, cpu);
        }
        if to == Runs::Idle {
            self.lose_absent(cpu, entry);
            // Either we see that it has lost its task, or whoever takes that away sees that it idles.
            fence(Ordering::SeqCst);
            self.tell_if_idle(wires, enclave, cpu, entry);
        }
    }

    /// What runs on no CPU runs on this one no more: the kernel has moved it without a word, as it does with a task that exits.
    fn lose_absent(&self, cpu: u16, entry: &Cpu) {
        let number = entry.task();
        if self.task(number).map(Task::word).is_some_and(|word| word.phase == Phase::OnCpu && word.cpu == cpu)
        {
            entry.vacate(number);
        }
    }

    /// A CPU has come back: the agent is told that it is there.
    pub fn announce<W: Wires>(&self, wires: &W, cpu: u16) {
        let Some(entry) = self.cpu(cpu) else { return };
        let Some(enclave) = entry.owner() else { return };
        let message = self.message(MessageKind::CpuAvailable, cpu, TASK_NONE, TaskFlags(0));
        self.tell_of_cpu(wires, enclave, entry, message);
    }

    /// A higher class has held a CPU for long, or the machine takes it away: what lies in its slot is refused, so that the agent
    /// does not count on it. On the CPU itself, with interrupts off.
    pub fn withhold<W: Wires>(&self, wires: &W, cpu: u16) {
        let Some(entry) = self.cpu(cpu) else { return };
        let Some(number) = entry.owner() else { return };
        let held = entry.runs.load(Ordering::Relaxed) == Runs::Other as u32;
        if entry.online.load(Ordering::Acquire) && !held {
            // The higher class has let go of it before it could be withheld: nothing would give it back.
            return;
        }
        entry.available.store(false, Ordering::Release);
        entry.moved();
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return };
        if enclave.level() != Level::Ipu {
            return;
        }
        self.leave_group(wires, cpu);
        self.flush(wires, number, cpu, entry);
        if let Some(offer) = wire.take(cpu, entry, enclave) {
            let judged = self.judge(number, enclave, cpu, &offer.txn);
            self.verdict(
                wires,
                number,
                enclave,
                cpu,
                &offer.txn,
                judged.err().unwrap_or(Outcome::CpuUnavailable),
            );
        }
        let message = self.message(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0));
        self.tell_of_cpu(wires, number, entry, message);
    }

    /// The IPU has rung for a CPU: whether it is to preempt what runs there, for a decision that would be committed now. The slot
    /// is fetched anew.
    pub fn rung<W: Wires>(&self, wires: &W, cpu: u16) -> bool {
        let Some(entry) = self.cpu(cpu) else { return false };
        entry.counters.one(Count::Interrupts);
        entry.rings.fetch_add(1, Ordering::Relaxed);
        let Some(number) = entry.owner() else { return false };
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return false };
        wire.flush(cpu);
        let offer = wire.look(cpu, entry.taken.load(Ordering::Relaxed) as u8);
        wire.prefetch(cpu);
        enclave.level() == Level::Ipu
            && offer.is_some_and(|offer| {
                offer.txn.flags.has(TxnFlags::PREEMPT) && self.judge(number, enclave, cpu, &offer.txn).is_ok()
            })
    }

    pub(crate) fn count(&self, cpu: u16, count: Count) {
        if let Some(cpu) = self.cpu(cpu) {
            cpu.counters.one(count);
        }
    }
}
