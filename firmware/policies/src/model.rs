//! A host in miniature, for tests: it keeps tasks, stamps and slots as a host does, tells the policy of them in lines that may
//! be late, and holds each decision against what the policy has been told.

use std::collections::VecDeque;

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::{AgentError, Decide, Policy};

use crate::tasks::Task;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    Runnable,
    OnCpu(u16),
    Blocked,
}

/// A task, as the host has it.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    pub place: Place,
    pub stamp: u32,
    pub first_cpu: u16,
    pub cpu_count: u16,
    pub class: u8,
    pub group: u32,
    pub since_ns: u64,
    /// How long it has run in all.
    pub ran_ns: u64,
    /// When it was last seen to run, or to have no wish to.
    pub served_ns: u64,
    /// The longest that it waited to run.
    pub waited_ns: u64,
}

/// A CPU, as the host has it.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    pub task: u32,
    stamp: u32,
    /// The last line that was taken from its slot.
    taken: u32,
    rung: bool,
    here: bool,
}

/// What the policy has been told of a task.
#[derive(Clone, Copy, Debug)]
struct Told {
    stamp: u32,
    first_cpu: u16,
    cpu_count: u16,
    runnable: bool,
}

/// Where the policy puts its decisions.
#[derive(Debug)]
pub struct Slots {
    lines: Vec<Option<Txn>>,
    told: Vec<Told>,
    rings: Vec<u16>,
    pub resyncs: u32,
    pub decisions: u32,
    /// Decisions since the last message or time.
    made: u32,
    ids: Vec<u32>,
    /// Lines that the host knows nothing of yet.
    taken: Vec<u32>,
}

impl Decide for Slots {
    fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
        let mut last = 0;
        for txn in txns {
            let cpu = usize::from(txn.cpu);
            if cpu >= self.lines.len() {
                return Err(AgentError::NoCpu { cpu: txn.cpu });
            }
            assert!(txn.flags.valid(), "{txn:?}");
            if txn.operation == Operation::Run as u8 {
                self.made += 1;
                self.decisions += 1;
                let told = self.told[txn.task as usize];
                assert!(told.runnable, "a task that does not wait: {txn:?}");
                assert_eq!(told.stamp, txn.stamp, "an old stamp: {txn:?}");
                assert!(Task::affinity_allows(told.first_cpu, told.cpu_count, txn.cpu), "affinity: {txn:?}");
                for (other, line) in self.lines.iter().enumerate() {
                    let twice = line.is_some_and(|line| {
                        line.operation == Operation::Run as u8
                            && line.task == txn.task
                            && line.stamp == txn.stamp
                    });
                    assert!(other == cpu || !twice, "two placements: {txn:?} beside CPU {other}");
                }
            }
            self.ids[cpu] += 1;
            last = self.ids[cpu];
            assert!(last - self.taken[cpu] <= 126, "a slot of untaken lines");
            self.lines[cpu] = Some(Txn { id: last, ..*txn });
            if !txn.flags.has(TxnFlags::PRESTAGED) {
                self.rings.push(txn.cpu);
            }
        }
        Ok(last)
    }

    fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
        self.txns_commit(txns)
    }

    fn nudge(&mut self, cpu: u16) {
        self.rings.push(cpu);
    }

    fn resync(&mut self) {
        self.resyncs += 1;
    }
}

/// The host, with the lines that are on their way to the policy.
#[derive(Debug)]
pub struct Host {
    pub threads: Vec<Thread>,
    pub cores: Vec<Core>,
    pub slots: Slots,
    pub now_ns: u64,
    pub preemptions: u32,
    pub hits: u32,
    pub outcomes: Vec<Outcome>,
    lines: VecDeque<Message>,
    /// The verdict for the next line of each CPU.
    decisions_max: u32,
}

impl Host {
    /// A host of `cpus` idle CPUs, with room for `tasks` tasks, that tells its whole state.
    pub fn new<P: Policy>(cpus: u16, tasks: usize, policy: &mut P) -> Self {
        let none = Thread {
            place: Place::Free,
            stamp: 0,
            first_cpu: 0,
            cpu_count: 0,
            class: 0,
            group: 0,
            since_ns: 0,
            ran_ns: 0,
            served_ns: 0,
            waited_ns: 0,
        };
        let count = usize::from(cpus);
        let told = Told { stamp: 0, first_cpu: 0, cpu_count: 0, runnable: false };
        let mut host = Self {
            threads: vec![none; tasks],
            cores: vec![Core { task: TASK_NONE, stamp: 1, taken: 0, rung: false, here: true }; count],
            slots: Slots {
                lines: vec![None; count],
                told: vec![told; tasks],
                rings: Vec::new(),
                resyncs: 0,
                decisions: 0,
                made: 0,
                ids: vec![0; count],
                taken: vec![0; count],
            },
            now_ns: 1_000_000,
            preemptions: 0,
            hits: 0,
            outcomes: Vec::new(),
            lines: VecDeque::new(),
            decisions_max: 2,
        };
        host.resync();
        host.deliver_all(policy);
        host
    }

    fn line(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) -> Message {
        let mut message = Message { flags, time_ns: self.now_ns, ..Message::new(kind, cpu) };
        message.cpu_stamp = self.cores[usize::from(cpu)].stamp;
        message.txn = self.cores[usize::from(cpu)].taken;
        if let Some(thread) = self.threads.get(task as usize) {
            message.task = task;
            message.stamp = thread.stamp;
            (message.first_cpu, message.cpu_count) = (thread.first_cpu, thread.cpu_count);
            (message.class, message.group) = (thread.class, thread.group);
        }
        message
    }

    fn tell(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) {
        let message = self.line(kind, cpu, task, flags);
        self.lines.push_back(message);
    }

    /// Sends the whole state; what is on its way is void, but for each CPU's latest verdict, which its line brings.
    pub fn resync(&mut self) {
        let mut verdicts = vec![None; self.cores.len()];
        for line in self.lines.drain(..).filter(|line| line.outcome != Outcome::None) {
            verdicts[usize::from(line.cpu)] = Some((line.txn, line.outcome));
        }
        self.tell(MessageKind::ResyncBegin, 0, TASK_NONE, TaskFlags(0));
        for task in 0..self.threads.len() as u32 {
            if self.threads[task as usize].place == Place::Runnable {
                self.tell(MessageKind::ResyncTask, 0, task, TaskFlags::RUNNABLE);
            }
        }
        for (cpu, verdict) in (0..).zip(verdicts) {
            let core = self.cores[usize::from(cpu)];
            let mut line = if !core.here {
                self.line(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0))
            } else {
                let flags = if core.task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
                self.line(MessageKind::ResyncCpu, cpu, core.task, flags)
            };
            if let Some((txn, outcome)) = verdict {
                (line.txn, line.outcome) = (txn, outcome);
            }
            self.lines.push_back(line);
        }
        self.tell(MessageKind::ResyncEnd, 0, TASK_NONE, TaskFlags(0));
    }

    /// Has the policy hear one line.
    pub fn deliver<P: Policy>(&mut self, policy: &mut P) -> bool {
        let Some(message) = self.lines.pop_front() else { return false };
        if message.kind == MessageKind::ResyncBegin {
            self.slots.told.iter_mut().for_each(|told| told.runnable = false);
        }
        if message.outcome != Outcome::None {
            let cpu = usize::from(message.cpu);
            self.slots.taken[cpu] = self.slots.taken[cpu].max(message.txn);
        }
        if let Some(told) = self.slots.told.get_mut(message.task as usize) {
            let kept = told.runnable;
            let runnable = match message.kind {
                MessageKind::TaskNew
                | MessageKind::TaskWakeup
                | MessageKind::TaskPreempt
                | MessageKind::TaskYield
                | MessageKind::ResyncTask => true,
                MessageKind::TaskAffinityChanged | MessageKind::TaskPriorityChanged => kept,
                MessageKind::TxnOutcome => kept && message.outcome != Outcome::Committed,
                _ => false,
            };
            *told = Told {
                stamp: message.stamp,
                first_cpu: message.first_cpu,
                cpu_count: message.cpu_count,
                runnable,
            };
        }
        self.slots.made = 0;
        policy.message(&message, &mut self.slots);
        let cpus = self.cores.len() as u32;
        let max = if message.kind == MessageKind::ResyncEnd { cpus } else { self.decisions_max + 1 };
        assert!(self.slots.made <= max, "{} decisions on {message:?}", self.slots.made);
        self.ring();
        if P::TIMED {
            self.tick(policy, 0);
        }
        true
    }

    pub fn deliver_all<P: Policy>(&mut self, policy: &mut P) {
        while self.deliver(policy) {}
    }

    fn ring(&mut self) {
        for cpu in self.slots.rings.drain(..) {
            self.cores[usize::from(cpu)].rung = true;
        }
    }

    /// Time passes, and the policy is told.
    pub fn tick<P: Policy>(&mut self, policy: &mut P, ns: u64) {
        self.now_ns += ns;
        if P::TIMED {
            self.slots.made = 0;
            policy.time(self.now_ns, &mut self.slots);
            assert!(self.slots.made <= 1, "{} decisions at one time", self.slots.made);
            self.ring();
        }
    }

    /// A task begins. It is told of in the name of the first CPU.
    pub fn create(&mut self, task: u32, class: u8, group: u32, first_cpu: u16, cpu_count: u16) {
        let now_ns = self.now_ns;
        let thread = &mut self.threads[task as usize];
        assert_eq!(thread.place, Place::Free);
        let stamp = thread.stamp + 1;
        *thread = Thread {
            place: Place::Runnable,
            stamp,
            class,
            group,
            first_cpu,
            cpu_count,
            since_ns: now_ns,
            ran_ns: 0,
            served_ns: now_ns,
            waited_ns: 0,
        };
        self.tell(MessageKind::TaskNew, 0, task, TaskFlags::RUNNABLE);
    }

    pub fn wake(&mut self, task: u32, cpu: u16) {
        if self.threads[task as usize].place == Place::Blocked {
            self.change(task, Place::Runnable);
            self.tell(MessageKind::TaskWakeup, cpu, task, TaskFlags::RUNNABLE);
        }
    }

    pub fn bind(&mut self, task: u32, first_cpu: u16, cpu_count: u16) {
        let thread = &mut self.threads[task as usize];
        if thread.place == Place::Runnable {
            (thread.first_cpu, thread.cpu_count) = (first_cpu, cpu_count);
            thread.stamp += 1;
            self.tell(MessageKind::TaskAffinityChanged, 0, task, TaskFlags::RUNNABLE);
        }
    }

    pub fn reclass(&mut self, task: u32, class: u8) {
        let thread = &mut self.threads[task as usize];
        if thread.place == Place::Runnable {
            thread.class = class;
            thread.stamp += 1;
            self.tell(MessageKind::TaskPriorityChanged, 0, task, TaskFlags::RUNNABLE);
        }
    }

    /// A waiting task is killed.
    pub fn kill(&mut self, task: u32) {
        if matches!(self.threads[task as usize].place, Place::Runnable | Place::Blocked) {
            self.change(task, Place::Free);
            self.tell(MessageKind::TaskDead, 0, task, TaskFlags(0));
        }
    }

    fn change(&mut self, task: u32, place: Place) {
        let now_ns = self.now_ns;
        let thread = &mut self.threads[task as usize];
        match thread.place {
            Place::OnCpu(cpu) => {
                let core = &mut self.cores[usize::from(cpu)];
                core.task = TASK_NONE;
                core.stamp += 1;
                thread.ran_ns += now_ns - thread.since_ns;
                thread.served_ns = now_ns;
            }
            Place::Runnable => thread.waited_ns = thread.waited_ns.max(now_ns - thread.served_ns),
            Place::Free | Place::Blocked => thread.served_ns = now_ns,
        }
        (thread.place, thread.since_ns) = (place, now_ns);
        thread.stamp += 1;
        if let Place::OnCpu(cpu) = place {
            let core = &mut self.cores[usize::from(cpu)];
            core.task = task;
            core.stamp += 1;
        }
    }

    fn judge(&self, cpu: u16, txn: &Txn) -> Outcome {
        let core = &self.cores[usize::from(cpu)];
        if txn.operation == Operation::Withdraw as u8 {
            return Outcome::Withdrawn;
        }
        if !core.here {
            return Outcome::CpuUnavailable;
        }
        if txn.flags.has(TxnFlags::CHECK_CPU) && txn.cpu_stamp != core.stamp {
            return Outcome::CpuStale;
        }
        if core.task != TASK_NONE && !txn.flags.has(TxnFlags::PREEMPT) {
            return Outcome::CpuUnavailable;
        }
        let thread = &self.threads[txn.task as usize];
        if thread.place == Place::Free {
            return Outcome::TaskGone;
        }
        if thread.stamp != txn.stamp {
            return Outcome::TaskStale;
        }
        match thread.place {
            Place::OnCpu(_) => Outcome::TaskOnCpu,
            Place::Blocked => Outcome::TaskNotRunnable,
            _ if !Task::affinity_allows(thread.first_cpu, thread.cpu_count, cpu) => Outcome::Affinity,
            _ => Outcome::Committed,
        }
    }

    /// Takes what lies in a CPU's slot: the verdict, if anything did.
    fn take(&mut self, cpu: u16) -> Option<(u32, Outcome)> {
        let txn = self.slots.lines[usize::from(cpu)].take()?;
        let outcome = self.judge(cpu, &txn);
        self.outcomes.push(outcome);
        self.cores[usize::from(cpu)].taken = txn.id;
        if outcome == Outcome::Committed {
            self.change(txn.task, Place::OnCpu(cpu));
        }
        Some((txn.id, outcome))
    }

    /// A CPU that was rung looks: an idle one at any decision, a busy one whether it is to be preempted.
    pub fn look(&mut self, cpu: u16) {
        let place = usize::from(cpu);
        if !std::mem::take(&mut self.cores[place].rung) {
            return;
        }
        let runs = self.cores[place].task;
        if runs != TASK_NONE {
            let preempts = self.slots.lines[place].is_some_and(|txn| {
                txn.flags.has(TxnFlags::PREEMPT) && self.judge(cpu, &txn) == Outcome::Committed
            });
            if !preempts {
                return;
            }
            self.change(runs, Place::Runnable);
            // The stamp moved by our own doing.
            let stamp = self.cores[place].stamp;
            if let Some(txn) = &mut self.slots.lines[place] {
                txn.cpu_stamp = stamp;
            }
            self.preemptions += 1;
            let (_, outcome) = self.take(cpu).unwrap();
            let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
            let mut message = self.line(MessageKind::TaskPreempt, cpu, runs, flags);
            message.outcome = outcome;
            self.lines.push_back(message);
            return;
        }
        if let Some((_, outcome)) = self.take(cpu) {
            let task = self.cores[place].task;
            let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
            let mut message = self.line(MessageKind::TxnOutcome, cpu, task, flags);
            message.outcome = outcome;
            self.lines.push_back(message);
        }
    }

    /// What runs on a CPU stops: it ends, blocks or yields. The slot is looked at in the same line.
    pub fn stop(&mut self, cpu: u16, kind: MessageKind) {
        let place = usize::from(cpu);
        let task = self.cores[place].task;
        if task == TASK_NONE {
            return;
        }
        let to = match kind {
            MessageKind::TaskDead => Place::Free,
            MessageKind::TaskBlocked => Place::Blocked,
            _ => Place::Runnable,
        };
        self.change(task, to);
        let mut message = self.line(kind, cpu, task, TaskFlags::WAS_ON_CPU);
        if let Some((txn, outcome)) = self.take(cpu) {
            (message.txn, message.outcome) = (txn, outcome);
            self.hits += u32::from(outcome == Outcome::Committed);
        }
        if self.cores[place].task == TASK_NONE {
            message.flags = message.flags.with(TaskFlags::CPU_IDLE);
        }
        message.cpu_stamp = self.cores[place].stamp;
        self.lines.push_back(message);
    }

    /// A CPU goes to a higher class, or comes back.
    pub fn borrow(&mut self, cpu: u16) {
        let place = usize::from(cpu);
        if self.cores[place].here {
            let task = self.cores[place].task;
            if task != TASK_NONE {
                self.change(task, Place::Runnable);
                let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
                self.tell(MessageKind::TaskPreempt, cpu, task, flags);
            }
            let core = &mut self.cores[place];
            (core.here, core.stamp) = (false, core.stamp + 1);
            let verdict = self.take(cpu);
            let mut message = self.line(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0));
            if let Some((txn, outcome)) = verdict {
                (message.txn, message.outcome) = (txn, outcome);
            }
            self.lines.push_back(message);
        } else {
            let core = &mut self.cores[place];
            (core.here, core.stamp) = (true, core.stamp + 1);
            self.tell(MessageKind::CpuAvailable, cpu, TASK_NONE, TaskFlags::CPU_IDLE);
        }
    }

    /// Runs whatever there is to its end: each CPU looks when it is rung, and what has run for `run_ns` ends. Time passes in
    /// steps of `step_ns`.
    pub fn finish<P: Policy>(&mut self, policy: &mut P, step_ns: u64, run_ns: u64) {
        for cpu in 0..self.cores.len() as u16 {
            if !self.cores[usize::from(cpu)].here {
                self.borrow(cpu);
            }
        }
        for _ in 0..200_000 {
            self.deliver_all(policy);
            let mut left = false;
            for task in 0..self.threads.len() as u32 {
                self.wake(task, 0);
                left |= self.threads[task as usize].place != Place::Free;
            }
            if !left {
                return;
            }
            for cpu in 0..self.cores.len() as u16 {
                self.look(cpu);
                let task = self.cores[usize::from(cpu)].task;
                if let Some(thread) = self.threads.get(task as usize)
                    && thread.ran_ns + (self.now_ns - thread.since_ns) >= run_ns
                {
                    self.stop(cpu, MessageKind::TaskDead);
                }
            }
            self.deliver_all(policy);
            self.tick(policy, step_ns);
        }
        panic!(
            "work is left: {:?}",
            self.threads.iter().filter(|t| t.place != Place::Free).collect::<Vec<_>>()
        );
    }

    /// Plays one step of a script: something happens to a task or a CPU, or lines arrive, or time passes.
    pub fn play<P: Policy>(&mut self, policy: &mut P, (what, who, how): (u8, u8, u16), step_ns: u64) {
        let cpus = self.cores.len() as u16;
        let (cpu, task) = (u16::from(who) % cpus, u32::from(who) % self.threads.len() as u32);
        let first = how % cpus;
        let count = if how & 0x100 == 0 { 0 } else { 1 + how / 512 % (cpus - first) };
        match what % 24 {
            0..=3 if self.threads[task as usize].place == Place::Free => {
                self.create(task, (how % 10) as u8, u32::from(how % 7), first, count);
            }
            0..=3 => self.wake(task, cpu),
            4 => self.wake(task, cpu),
            5 => self.bind(task, first, count),
            6 => self.reclass(task, (how % 10) as u8),
            7 => self.kill(task),
            8 => self.stop(cpu, MessageKind::TaskDead),
            9 | 10 => self.stop(cpu, MessageKind::TaskBlocked),
            11 => self.stop(cpu, MessageKind::TaskYield),
            12 if how.is_multiple_of(4) => self.borrow(cpu),
            13 if how.is_multiple_of(16) => self.resync(),
            12..=16 => self.look(cpu),
            17..=19 => self.tick(policy, u64::from(how) % 64 * step_ns / 16),
            _ => {
                for _ in 0..=how % 8 {
                    self.deliver(policy);
                }
            }
        }
    }
}
