//! Telling an agent the whole state, and taking tasks out of its hands.

use core::sync::atomic::{AtomicU32, Ordering};

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, TaskFlags};

use crate::counters::Count;
use crate::cpu::{Cpu, Runs};
use crate::events::{Mechanism, Wires};
use crate::judge::may_use;
use crate::task::{Phase, Word};

/// Tasks that an agent held and the host is to queue itself: filled by one, claimed by any CPU.
#[derive(Debug)]
pub(crate) struct Rescue<'m> {
    numbers: &'m [AtomicU32],
    filled: AtomicU32,
    claimed: AtomicU32,
}

impl<'m> Rescue<'m> {
    pub(crate) const fn new(numbers: &'m [AtomicU32]) -> Self {
        Self { numbers, filled: AtomicU32::new(0), claimed: AtomicU32::new(0) }
    }

    /// Claims up to `most`: the first one's place, and how many.
    pub(crate) fn claim(&self, most: u32) -> (u32, u32) {
        let mut claimed = self.claimed.load(Ordering::Acquire);
        for _ in 0..64 {
            let left = self.filled.load(Ordering::Acquire).wrapping_sub(claimed).min(most);
            if left == 0 {
                break;
            }
            let next = claimed.wrapping_add(left);
            match self.claimed.compare_exchange(claimed, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return (claimed, left),
                Err(found) => claimed = found,
            }
        }
        (0, 0)
    }

    /// What stands at a place that was claimed.
    pub(crate) fn get(&self, place: u32) -> Option<u32> {
        let mask = self.numbers.len().wrapping_sub(1);
        Some(self.numbers.get(place as usize & mask)?.load(Ordering::Acquire))
    }

    /// Whether there is room for another.
    fn has_room(&self) -> bool {
        (self.left() as usize) < self.numbers.len()
    }

    /// Puts one in. It has one writer, who asks for room before.
    fn put(&self, task: u32) {
        let (filled, mask) = (self.filled.load(Ordering::Relaxed), self.numbers.len().wrapping_sub(1));
        if let Some(place) = self.numbers.get(filled as usize & mask) {
            place.store(task, Ordering::Release);
            self.filled.store(filled.wrapping_add(1), Ordering::Release);
        }
    }

    fn left(&self) -> u32 {
        self.filled.load(Ordering::Acquire).wrapping_sub(self.claimed.load(Ordering::Acquire))
    }
}

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
    /// has changed and a grace period has passed; from one thread only, and again until none is left. Returns how many.
    pub fn rescue_from(&self, enclave: u8) -> u32 {
        let mut rescued = 0;
        for (number, task) in (0..).zip(self.tasks()) {
            let word = task.word();
            if word.phase != Phase::Runnable || word.enclave != enclave || !self.rescue().has_room() {
                continue;
            }
            let after = word.moved(Phase::Host);
            // One that has changed is no more in the agent's hands, or never was.
            if task.swap(word, after) {
                self.recount(word, after);
                self.rescue().put(number);
                rescued += 1;
            }
        }
        rescued
    }

    /// Tasks that wait to be queued by a CPU.
    #[must_use]
    pub fn to_be_rescued(&self) -> u32 {
        self.rescue().left()
    }

    /// What CPUs would have told another agent is forgotten.
    pub fn forget(&self, enclave: u8) {
        self.forget_groups(enclave);
        for cpu in self.cpus().iter().filter(|cpu| cpu.owner() == Some(enclave)) {
            cpu.forget();
        }
    }

    /// A session begins, whose slots are fresh: what was taken from those of the one before says nothing of them. While nobody
    /// takes anything.
    pub fn begin_session(&self, enclave: u8) {
        self.forget(enclave);
        for cpu in self.cpus().iter().filter(|cpu| cpu.owner() == Some(enclave)) {
            cpu.taken.store(0, Ordering::Relaxed);
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
        for (task, entry) in (0..).zip(self.tasks()) {
            let word = entry.word();
            if word.phase == Phase::Runnable && word.enclave == number {
                if let Some(place) = arrivals.get_mut(count) {
                    *place = Arrival { since_ns: entry.since_ns(), task };
                    count += 1;
                }
            }
        }
        let needed = count + self.cpus().len() + 2;
        if (wire.room() as usize) < needed.max(wire.lines() as usize / 2) {
            return false;
        }
        let arrivals = arrivals.get_mut(..count).unwrap_or_default();
        sort(arrivals);
        self.forget(number);
        let dropped = enclave.dropped.swap(0, Ordering::AcqRel);
        enclave.resync_due.store(false, Ordering::Release);
        let mut begin = Message::new(MessageKind::ResyncBegin, voice);
        begin.argument = count as u64;
        begin.dropped = dropped;
        begin.flags = if dropped > 0 { TaskFlags::OVERFLOW } else { TaskFlags(0) };
        let mut whole = true;
        let mut say = |message: Message| {
            let message = Message { time_ns: wires.now_ns(), ..message };
            whole &= wire.send(&message, writer, false).0.is_ok();
        };
        say(begin);
        for &mut Arrival { task, .. } in arrivals {
            say(self.message(MessageKind::ResyncTask, voice, task, TaskFlags::RUNNABLE));
        }
        for (cpu, entry) in (0..).zip(self.cpus()).filter(|(_, cpu)| cpu.owner() == Some(number)) {
            if !entry.is_open() {
                say(self.message(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0)));
                continue;
            }
            let task = entry.task();
            let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
            entry.told_idle.store(task == TASK_NONE, Ordering::Relaxed);
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
        for (cpu, entry) in (0..).zip(self.cpus()).filter(|(_, cpu)| cpu.owner() == Some(number)) {
            if entry.task() != TASK_NONE
                || !entry.is_open()
                || entry.runs.load(Ordering::Acquire) != Runs::Idle as u32
            {
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
        let own = self.cpus().iter().filter(|cpu| cpu.owner() == Some(enclave));
        own.map(|cpu| cpu.rings.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// Forgets how often CPUs were rung for.
    pub fn forget_rings(&self, enclave: u8) {
        for cpu in self.cpus().iter().filter(|cpu| cpu.owner() == Some(enclave)) {
            cpu.rings.store(0, Ordering::Relaxed);
        }
    }

    /// A count over all CPUs.
    #[must_use]
    pub fn sum(&self, count: Count) -> u64 {
        self.cpus().iter().map(|cpu: &Cpu| cpu.counters.get(count)).sum()
    }
}
