//! Telling an agent the whole state, and taking tasks out of its hands.

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, TaskFlags};

use crate::counters::Count;
use crate::cpu::Cpu;
use crate::events::{Mechanism, Wires};
use crate::judge::may_use;
use crate::sync::Ordering;
use crate::task::{Phase, Task, Word};

/// A task that waits, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrival {
    /// When it became runnable, in ns.
    pub since_ns: u64,
    /// Its number.
    pub task: u32,
}

impl Mechanism<'_> {
    /// Takes every task that waits for an agent's decision out of its hands: the CPUs queue them. After the enclave's level
    /// has changed and every CPU has passed out of its runqueue's lock, in a thread, and again until none is left: one that is in
    /// flux at this moment is passed over. Returns how many.
    pub fn rescue_from(&self, enclave: u8) -> u32 {
        let mut rescued = 0;
        // The last one put there is the first one taken.
        for (number, task) in self.tasks().iter().enumerate().rev() {
            let number = number as u32;
            let word = task.word();
            if word.phase != Phase::Runnable || word.enclave != enclave {
                continue;
            }
            let after = word.moved(Phase::Host);
            // One that has changed is no more in the agent's hands, or never was.
            if !task.swap(word, after) {
                continue;
            }
            self.recount(word, after);
            rescued += 1;
            self.have_queued(number, task);
        }
        rescued
    }

    /// Has the host queue what has waited since `before_ns` and may use no CPU that is to be had. Its agent cannot decide for it;
    /// but a CPU that a higher class keeps has moments in between, and the kernel gives our class a share of it, for
    /// whatever is queued there. The agent has the task still, and hears when it runs, as of all that the kernel runs by itself.
    pub fn rescue_stranded(&self, enclave: u8, before_ns: u64) {
        for (number, task) in self.tasks().iter().enumerate().rev() {
            let word = task.word();
            if word.phase == Phase::Runnable
                && word.enclave == enclave
                && task.since_ns() < before_ns
                // It is queued already where nothing has befallen it since.
                && task.queued_stamp.load(Ordering::Relaxed) != word.stamp
                && self.is_stranded(enclave, task.affinity())
            {
                self.have_queued(number as u32, task);
            }
        }
    }

    /// Calls `each` with the process number of every task of an enclave's that the host queued, and that no CPU has taken: those
    /// that are stranded, since `stranded_ns`, and those that are the host's still from when it decided for all, since `hosts_ns`.
    pub fn starved(&self, enclave: u8, stranded_ns: u64, hosts_ns: u64, mut each: impl FnMut(u32)) {
        for task in self.tasks() {
            let word = task.word();
            let before_ns = match word.phase {
                Phase::Host => hosts_ns,
                Phase::Runnable if self.is_stranded(enclave, task.affinity()) => stranded_ns,
                _ => continue,
            };
            let since_ns = task.since_ns();
            if word.enclave == enclave && since_ns < before_ns && task.ran_ns() < since_ns {
                each(task.pid());
            }
        }
    }

    /// Has a CPU queue a task. Whoever takes it from there says so first and then looks where it stands.
    fn have_queued(&self, number: u32, task: &Task) {
        if !task.to_be_rescued.swap(true, Ordering::AcqRel) {
            while !self.to_rescue().give(self.tasks(), number) {}
        }
    }

    /// Whether tasks wait to be queued by a CPU.
    #[must_use]
    pub fn has_rescued(&self) -> bool {
        !self.to_rescue().is_empty()
    }

    /// An enclave has a new wire: what its CPUs have taken from slots and would tell is of another. Before the wire is used.
    pub fn begin_session<W: Wires>(&self, wires: &W, enclave: u8) {
        self.forget_groups(wires, enclave);
        for (_, cpu) in self.cpus_of(enclave) {
            cpu.forget();
            cpu.taken.store(0, Ordering::Relaxed);
        }
        if let Some(enclave) = self.enclave(enclave) {
            enclave.set_resync(None);
        }
    }

    /// Tells an agent the whole state: runnable tasks in the order of their arrival, then each CPU. Nothing else may happen
    /// meanwhile: the machine is stopped. `arrivals` is memory for as many as there are tasks, and `sort` puts them in order.
    /// False if the ring has no room for all of it yet.
    pub fn resync<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        arrivals: &mut [Arrival],
        sort: impl FnOnce(&mut [Arrival]),
    ) -> bool {
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else { return false };
        let voice = self.voice(number);
        let Some(writer) = self.cpu(voice) else { return false };
        wire.refresh_credits();
        let mut count = 0;
        for (task, entry) in (0..self.tasks().len() as u32).zip(self.tasks()) {
            let word = entry.word();
            if word.phase == Phase::Runnable && word.enclave == number {
                if let Some(place) = arrivals.get_mut(count) {
                    *place = Arrival { since_ns: entry.since_ns(), task };
                    count = count.wrapping_add(1);
                }
            }
        }
        let needed = count.saturating_add(self.cpus().len()).saturating_add(2);
        if (wire.room() as usize) < needed.max(wire.lines() as usize / 2) {
            return false;
        }
        let arrivals = arrivals.get_mut(..count).unwrap_or_default();
        sort(arrivals);
        self.forget_groups(wires, number);
        for (_, cpu) in self.cpus_of(number) {
            cpu.forget();
        }
        let dropped = enclave.dropped.swap(0, Ordering::AcqRel);
        enclave.resync_due.store(false, Ordering::Release);
        let mut begin = Message::new(MessageKind::ResyncBegin, voice);
        begin.argument = count as u64;
        begin.dropped = dropped;
        begin.flags = if dropped > 0 { TaskFlags::OVERFLOW } else { TaskFlags(0) };
        enclave.set_resync(Some(wire.written()));
        let mut whole = true;
        let mut say = |message: Message| {
            let message = Message { time_ns: wires.now_ns(), ..message };
            whole &= Self::say(wire, &message, writer);
        };
        say(begin);
        for &mut Arrival { task, .. } in arrivals {
            say(self.message(MessageKind::ResyncTask, voice, task, TaskFlags::RUNNABLE));
        }
        for (cpu, entry) in self.cpus_of(number) {
            if !entry.is_open() {
                say(self.message(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0)));
                continue;
            }
            let task = entry.task();
            let idle = entry.idle_flag();
            let flags = if idle == TaskFlags(0) { TaskFlags::ON_CPU } else { idle };
            say(self.message(MessageKind::ResyncCpu, cpu, task, flags));
        }
        say(Message::new(MessageKind::ResyncEnd, voice));
        if !whole {
            enclave.ask_for_resync();
        }
        whole
    }

    /// What an agent owes: whether a task waits that an idle CPU without a decision may run, and whether a decision lies
    /// there that an idle CPU does not take. Off the hot path.
    pub fn debts<W: Wires>(&self, wires: &W, number: u8) -> (bool, bool) {
        let (Some(enclave), Some(wire)) = (self.enclave(number), wires.wire(number)) else {
            return (false, false);
        };
        let (mut owes, mut lies) = (false, false);
        for (cpu, entry) in self.cpus_of(number) {
            if entry.task() != TASK_NONE || !entry.is_open() || !entry.is_idle() {
                continue;
            }
            let offer = wire.look(cpu, entry.taken.load(Ordering::Relaxed) as u8);
            let counts = |agent: Option<u32>, named: u32| agent.is_none_or(|agent| agent == named);
            if offer.is_some_and(|offer| counts(enclave.agent(), offer.txn.incarnation)) {
                lies = true;
            } else if enclave.runnable() > 0 {
                owes |= self.waits_for(number, cpu);
            }
        }
        (owes, lies)
    }

    /// Whether a task waits for a decision that may run on `cpu`.
    fn waits_for(&self, enclave: u8, cpu: u16) -> bool {
        self.tasks().iter().any(|task| {
            let word: Word = task.word();
            word.phase == Phase::Runnable && word.enclave == enclave && may_use(task.affinity(), cpu)
        })
    }

    /// The most that a CPU of the enclave was rung for without a new line.
    #[must_use]
    pub fn rings(&self, enclave: u8) -> u32 {
        self.cpus_of(enclave).map(|(_, cpu)| cpu.rings.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// Forgets how often CPUs were rung for.
    pub fn forget_rings(&self, enclave: u8) {
        for (_, cpu) in self.cpus_of(enclave) {
            cpu.rings.store(0, Ordering::Relaxed);
        }
    }

    /// A count over all CPUs.
    #[must_use]
    pub fn sum(&self, count: Count) -> u64 {
        self.cpus().iter().map(|cpu: &Cpu| cpu.counters.get(count)).sum()
    }
}
