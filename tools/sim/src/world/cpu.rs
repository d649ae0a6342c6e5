//! The host's CPUs: each runs a task, then takes its next one from its slot, and writes its one line.

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
use neap_agent::Policy;
use neap_host::mechanism::{AgentStanding, TaskState};
use rand::RngExt;

use super::{Event, Follower, Job, World};
use std::cmp::Reverse;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// It does another enclave's work.
    Foreign,
    Idle,
    /// Between two tasks, or between idleness and a task.
    Switching,
    /// Runs a task, since a time.
    Running {
        task: u32,
        since_ns: u64,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cpu {
    pub(super) doing: Doing,
    /// Moves when what was to come does not come any more.
    pub(super) generation: u32,
    /// The event that waits for its line.
    pub(super) pending: Option<Message>,
    /// A line is in the cache: no read goes to the card before it is flushed.
    pub(super) cached: bool,
    /// An interrupt came while it could not be looked at.
    pub(super) rung: bool,
    pub(super) switch_since_ns: u64,
}
impl<'w, P: Policy> World<'w, P> {
    pub(super) fn ring(&mut self, cpu: u16) {
        if self.setup.is_told {
            return;
        }
        let at = usize::from(cpu);
        let receive_ns = self.setup.costs.receive_ns;
        match self.cpus[at].doing {
            Doing::Idle => {
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].generation += 1;
                self.flush(cpu);
                self.read_then(cpu, receive_ns, Event::Decide);
            }
            Doing::Foreign => self.violated(format!("CPU {cpu} is rung, and is another enclave's")),
            Doing::Switching => self.cpus[at].rung = true,
            Doing::Running { task, since_ns } => {
                let now_ns = self.clock.now_ns();
                let job = &mut self.jobs[task as usize];
                job.left_ns = job.left_ns.saturating_sub(now_ns - since_ns);
                self.cpus[at].generation += 1;
                self.flush(cpu);
                self.read_then(cpu, receive_ns, Event::Peek);
            }
        }
    }

    /// An interrupted CPU has its slot before it.
    pub(super) fn peek(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let Doing::Running { task, .. } = self.cpus[at].doing else { return };
        let now_ns = self.clock.now_ns();
        let words = self.memory.host.slots[at].words();
        let preempts = Txn::from_payload(&words).flags.has(TxnFlags::PREEMPT);
        if preempts && !self.host_decides && self.wire.has_untaken(cpu) {
            let taken = self.take(cpu);
            if self.cpu_task(cpu) != task {
                // It lost its CPU. Its event and the verdict are one line.
                self.seen.preemptions += 1;
                let job = &mut self.jobs[task as usize];
                (job.on, job.last_cpu, job.runnable_ns) = (None, cpu, now_ns);
                job.true_stamp += 1;
                let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
                self.tell(MessageKind::TaskPreempt, cpu, task, flags, self.setup.costs.write_ns);
                self.cpus[at].doing = Doing::Switching;
                self.cpus[at].switch_since_ns = now_ns;
                self.begin_or_idle(cpu, taken);
                return;
            }
            // Refused: the verdict goes by itself.
            self.tell(MessageKind::TxnOutcome, cpu, task, TaskFlags::ON_CPU, self.setup.costs.write_ns);
        }
        self.cpus[at].doing = Doing::Running { task, since_ns: now_ns };
        let generation = self.cpus[at].generation;
        self.clock.after(self.jobs[task as usize].left_ns, Event::End(cpu, generation));
    }

    pub(super) fn cpu_task(&self, cpu: u16) -> u32 {
        self.mechanism.cpu(cpu).map_or(TASK_NONE, |cpu| cpu.task)
    }

    /// What runs on a CPU has run.
    pub(super) fn end(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let Doing::Running { task, .. } = self.cpus[at].doing else { return };
        let now_ns = self.clock.now_ns();
        let job = &mut self.jobs[task as usize];
        (job.on, job.last_cpu, job.left_ns) = (None, cpu, 0);
        job.true_stamp += 1;
        let blocks = job.blocks_left > 0;
        let (kind, state) = match blocks {
            true => (MessageKind::TaskBlocked, TaskState::Blocked),
            false => (MessageKind::TaskDead, TaskState::Free),
        };
        self.mechanism.change(task, state);
        let message = self.message(kind, cpu, task, TaskFlags::WAS_ON_CPU);
        let job = &mut self.jobs[task as usize];
        if blocks {
            job.blocks_left -= 1;
            job.left_ns = job.request.map_or(0, |request| request.run_ns);
        } else if let Some(request) = job.request.take() {
            self.seen.finished += 1;
            if let Some(next) = self.load.finished(&request, now_ns) {
                self.followers.push(Reverse(Follower(next)));
                self.clock.at(next.at_ns, Event::Follow);
            }
        } else {
            self.violated(format!("task {task} ends twice"));
        }
        let entry = &mut self.cpus[at];
        entry.pending = Some(message);
        entry.doing = Doing::Switching;
        entry.generation += 1;
        entry.switch_since_ns = now_ns;
        let generation = entry.generation;
        let costs = self.setup.costs;
        if costs.prestages && !self.host_decides {
            // The prefetch goes out before the kernel's own work, and is back when that is done.
            self.clock.after(costs.transit_ns, Event::Sample(cpu, generation));
            self.clock.after(costs.before_ns.max(2 * costs.transit_ns), Event::Decide(cpu, generation));
        } else {
            // Nothing lies in its slot before the agent rings, or nobody looks there.
            self.clock.after(costs.before_ns, Event::Decide(cpu, generation));
        }
    }

    pub(super) fn next_from_backlog(&mut self) {
        if !self.free.is_empty()
            && !self.is_booting
            && let Some(request) = self.backlog.pop_front()
        {
            self.create(request);
        }
    }

    /// A CPU looks at its slot, enforces what it finds, and writes its one line.
    pub(super) fn decide(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let after_run = self.cpus[at].pending.is_some();
        let prestages = self.setup.costs.prestages;
        let cold = !self.cpus[at].cached && !self.host_decides;
        let next = if after_run && !prestages && !self.host_decides { None } else { self.take(cpu) };
        let write_ns = self.setup.costs.write_ns;
        match self.cpus[at].pending.take() {
            Some(message) => {
                let mut flags = message.flags;
                if next.is_none_or(|task| task == TASK_NONE) {
                    flags = flags.with(TaskFlags::CPU_IDLE);
                    self.seen.misses += 1;
                } else {
                    self.seen.hits += 1;
                }
                let cpu_stamp = self.mechanism.cpu(cpu).map_or(0, |cpu| cpu.stamp);
                self.emit(Message { flags, cpu_stamp, ..message }, write_ns);
                if message.kind == MessageKind::TaskBlocked {
                    // A task that is still on its way out is woken when it is out.
                    let (task, wait_ns) = (message.task, self.rng.random_range(1_000..100_000));
                    let stamp = self.jobs[task as usize].true_stamp;
                    self.clock.after(wait_ns, Event::Wake(task, stamp));
                }
                if message.kind == MessageKind::TaskDead {
                    // Its number is another's only after the agent has been told that it is gone.
                    self.free.push(message.task);
                    self.next_from_backlog();
                }
            }
            None => {
                if let Some(task) = next {
                    let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
                    self.tell(MessageKind::TxnOutcome, cpu, task, flags, write_ns);
                }
            }
        }
        if after_run && next.is_some_and(|task| task != TASK_NONE) {
            let costs = &self.setup.costs;
            let ns = self.clock.now_ns() - self.cpus[at].switch_since_ns
                + costs.after_ns
                + costs.protocol_ns
                + costs.write_ns;
            self.seen.hit_switch_ns += ns;
            self.seen.hit_uncached_reads += u64::from(cold);
        }
        self.begin_or_idle(cpu, next);
    }

    pub(super) fn begin_or_idle(&mut self, cpu: u16, next: Option<u32>) {
        let at = usize::from(cpu);
        let generation = self.cpus[at].generation;
        if next.is_some_and(|task| task != TASK_NONE) {
            let costs = &self.setup.costs;
            let ns = costs.after_ns + costs.protocol_ns + costs.write_ns;
            self.clock.after(ns, Event::Start(cpu, generation));
            return;
        }
        self.cpus[at].doing = Doing::Idle;
        if std::mem::take(&mut self.cpus[at].rung) {
            self.clock.after(1, Event::Ring(cpu));
        }
        self.host_kick();
    }

    /// Takes what lies before the CPU and carries it out. None if nothing does; [`TASK_NONE`] if it was refused.
    pub(super) fn take(&mut self, cpu: u16) -> Option<u32> {
        let txn = if self.host_decides {
            let task = self.mechanism.first_runnable_on(cpu)?;
            // Whoever decides, the stamps hold.
            Txn::run(cpu, task, self.mechanism.task(task)?.stamp)
        } else {
            let txn = self.wire.read_txn(cpu)?;
            self.flush(cpu);
            txn
        };
        let standing = self.mechanism.agent;
        let named = self.mechanism.incarnation;
        if self.host_decides {
            (self.mechanism.agent, self.mechanism.incarnation) = (AgentStanding::Good, None);
        }
        let foreign = self.mechanism.is_of_another_agent(&txn);
        let before = self.mechanism.task(txn.task).map(|task| task.stamp);
        let verdicts = self.mechanism.commit(cpu, &txn);
        (self.mechanism.agent, self.mechanism.incarnation) = (standing, named);
        let mut next = TASK_NONE;
        for verdict in verdicts {
            if !self.host_decides && !foreign {
                self.wire.set_txn_outcome(verdict.cpu, verdict.txn, verdict.outcome);
            }
            match verdict.switch {
                Some(switch) if verdict.cpu == cpu => {
                    next = switch.task;
                    self.seen.tickless += u64::from(txn.flags.has(TxnFlags::TICKLESS));
                    if before != Some(txn.stamp) {
                        self.violated(format!(
                            "a txn for task {} is committed on stamp {}, and the task's is {before:?}",
                            txn.task, txn.stamp
                        ));
                    }
                    self.carried_out(cpu, next, switch.preempted);
                }
                _ if verdict.outcome == Outcome::NotPermitted => {
                    self.violated(format!("a decision outside its enclave, for CPU {}", verdict.cpu));
                }
                _ => self.seen.refused += u64::from(verdict.outcome != Outcome::Committed),
            }
        }
        if self.wire.poisoned() {
            self.violated("an honest agent is found to have broken the protocol".to_owned());
        }
        Some(next)
    }

    pub(super) fn carried_out(&mut self, cpu: u16, task: u32, preempted: u32) {
        let now_ns = self.clock.now_ns();
        if usize::from(cpu) >= self.cpus.len() {
            return self.violated(format!("a decision for CPU {cpu}, which is not the enclave's"));
        }
        let Some(job) = self.jobs.get_mut(task as usize) else {
            return self.violated(format!("task {task} runs, and there is none"));
        };
        if job.request.is_none() {
            return self.violated(format!("task {task} runs, and has ended"));
        }
        if let Some(other) = job.on {
            return self.violated(format!("task {task} runs on CPU {other} and is given CPU {cpu}"));
        }
        let waited_ns = now_ns - job.runnable_ns;
        (job.on, job.last_cpu) = (Some(cpu), cpu);
        job.true_stamp += 1;
        if waited_ns > self.setup.starved_ns {
            return self.violated(format!("task {task} has waited for {} ms", waited_ns / 1_000_000));
        }
        if self.setup.faults {
            let has_it = |(_, job): &(u32, &Job)| job.on == Some(cpu) && job.request.is_some();
            let owner =
                (0..).zip(&self.jobs).find(|entry| has_it(entry) && ![task, preempted].contains(&entry.0));
            if let Some((owner, _)) = owner {
                return self.violated(format!("CPU {cpu} is given to task {task}, and task {owner} has it"));
            }
        }
        self.seen.committed += 1;
    }

    /// The task that a CPU was given begins to run.
    pub(super) fn start(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let task = self.cpu_task(cpu);
        let now_ns = self.clock.now_ns();
        if self.cpus[at].switch_since_ns > 0 {
            let ns = now_ns - self.cpus[at].switch_since_ns;
            self.seen.switches_ns.push(u32::try_from(ns).unwrap_or(u32::MAX));
            self.cpus[at].switch_since_ns = 0;
        }
        if task == TASK_NONE {
            self.cpus[at].doing = Doing::Idle;
            return;
        }
        self.cpus[at].doing = Doing::Running { task, since_ns: now_ns };
        self.cpus[at].generation += 1;
        let generation = self.cpus[at].generation;
        self.clock.after(self.jobs[task as usize].left_ns, Event::End(cpu, generation));
        if std::mem::take(&mut self.cpus[at].rung) {
            self.clock.after(1, Event::Ring(cpu));
        }
    }
}
