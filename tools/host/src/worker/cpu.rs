//! An enclave's CPUs: each takes its decisions, runs its tasks, and tells of both.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use neap_abi::message::TASK_NONE;
use neap_abi::{Ledger, Message, MessageKind, TaskFlags, Txn};

use super::enclave::{Alarm, Enclave, Job, State};
use super::telling::note_arrival;
use super::{Step, Work};
use crate::event::{EventKind, Level};
use crate::ledger::host_ticks;
use crate::mechanism::{AgentStanding, TaskState, Verdict};
use crate::sights::Sight;

/// A CPU that waits looks up so often, to see whether it is wanted elsewhere.
pub(super) const LOOK_UP: Duration = Duration::from_millis(20);

impl Enclave {
    /// A while of a CPU's life: until it finds no decision, or is to `leave`, or `LOOK_UP` is over.
    pub(super) fn turn<W: Work>(&self, cpu: u16, work: &W, leave: &dyn Fn() -> bool) {
        match self.schedule(cpu) {
            Some(task) => self.run(cpu, task, work, leave),
            None => match self.peer.wait(cpu, Some(LOOK_UP)) {
                Ok(0) => {}
                Ok(rings) => {
                    let rings = u32::try_from(rings).unwrap_or(u32::MAX);
                    self.rings[usize::from(cpu)].fetch_add(rings, Ordering::Relaxed);
                    self.heard(cpu, rings);
                }
                // An eventfd of ours that fails is no reason to spin.
                Err(_) => std::thread::sleep(LOOK_UP),
            },
        }
    }

    /// Keeps that a CPU heard its doorbell, if that is asked for.
    fn heard(&self, cpu: u16, rings: u32) {
        if self.is_seeing.load(Ordering::Relaxed) {
            self.lock().see(Sight::Doorbell { cpu, rings });
        }
    }

    /// A CPU that is nobody's joins the enclave, idle. One that it has already stays as it is.
    pub(super) fn join(&self, cpu: u16) {
        let mut state = self.lock();
        let state = &mut *state;
        if state.mechanism.owns_cpu(cpu) || !state.mechanism.adopt_cpu(cpu) {
            return;
        }
        state.fifo.set_cpus(state.mechanism.own_cpus().count());
        state.assigned[usize::from(cpu)] = TASK_NONE;
        state.idle_since[usize::from(cpu)] = Instant::now();
        self.note(state, EventKind::CpuJoined { cpu });
        let message = state.mechanism.message(MessageKind::CpuAvailable, cpu, TASK_NONE, TaskFlags::CPU_IDLE);
        self.emit(state, message);
        // How many CPUs there are is part of the state.
        self.tell_soon(state);
    }

    /// A CPU leaves the enclave: what it was about to run goes back, in its old place.
    pub(super) fn leave(&self, cpu: u16) {
        let mut state = self.lock();
        let state = &mut *state;
        if !state.mechanism.owns_cpu(cpu) {
            return;
        }
        state.assigned[usize::from(cpu)] = TASK_NONE;
        self.give_up(state, cpu);
        state.mechanism.set_cpu(cpu, true, false);
        if state.level != Level::Host {
            // What lies in its slot is refused, so that the agent does not count on it.
            self.decide(state, cpu, false);
        }
        let message = state.mechanism.message(MessageKind::CpuBusy, cpu, TASK_NONE, TaskFlags(0));
        self.emit(state, message);
        state.mechanism.release_cpu(cpu);
        self.note(state, EventKind::CpuLeft { cpu });
        // A decision may be on its way to the slot of a CPU that will not look: the agent has to think anew.
        self.tell_soon(state);
        self.kick_idle(state);
    }

    fn tell_soon(&self, state: &mut State) {
        if state.closing {
            return;
        }
        state.resync_due = state.level != Level::Host;
        state.outbox.clear();
        self.pump(state);
    }

    /// Takes from a CPU what it has not begun to run.
    fn give_up(&self, state: &mut State, cpu: u16) {
        let Some(task) = state.mechanism.preempt(cpu) else { return };
        state.see(Sight::Left { cpu, task, how: MessageKind::TaskPreempt });
        if let Some(entry) = state.mechanism.task(task) {
            // It keeps its place, and so comes out of the turn of its next decision.
            state.fifo.refused(entry.arrival);
        }
        let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
        self.arrive(state, MessageKind::TaskPreempt, cpu, task, flags);
    }

    /// An idle CPU looks for its decision. Nothing else is there to carry the verdict, so it gets a line of its own:
    /// the agent can then fill the slot again while the task runs.
    fn schedule(&self, cpu: u16) -> Option<u32> {
        let mut state = self.lock();
        let assigned = std::mem::replace(&mut state.assigned[usize::from(cpu)], TASK_NONE);
        if assigned != TASK_NONE {
            return Some(assigned);
        }
        let task = self.decide(&mut state, cpu, false)?;
        let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
        let message = state.mechanism.message(MessageKind::TxnOutcome, cpu, task, flags);
        self.emit(&mut state, message);
        self.kick_idle(&state);
        (task != TASK_NONE).then_some(task)
    }

    /// What a CPU is to do next: what lies in its slot, or while the host itself decides, what has waited longest.
    fn take(&self, state: &State, cpu: u16) -> Option<(Txn, Ledger)> {
        if state.level != Level::Host {
            return state.wire()?.read_line(cpu);
        }
        let task = state.mechanism.first_runnable_on(cpu)?;
        Some((Txn::run(cpu, task, state.mechanism.task(task)?.stamp), Ledger::default()))
    }

    /// Takes what lies in the CPU's slot and enforces it. None if nothing does; [`TASK_NONE`] if it was refused.
    fn decide(&self, state: &mut State, cpu: u16, prestaged: bool) -> Option<u32> {
        let (txn, ledger) = self.take(state, cpu)?;
        let taken_ticks = host_ticks();
        self.rings[usize::from(cpu)].store(0, Ordering::Relaxed);
        if state.level == Level::Ipu && state.mechanism.is_of_another_agent(&txn) {
            // It may be of an agent that has come since the last look.
            self.look(state);
        }
        if state.wire().is_some_and(|wire| wire.poisoned()) && state.agent_is_good() {
            state.mechanism.agent = AgentStanding::Poisoned;
        }
        let foreign = state.level == Level::Ipu && state.mechanism.is_of_another_agent(&txn);
        if state.level == Level::Ipu && !foreign {
            state.ledger.note(state.link.link().hello(), &txn, &ledger, taken_ticks);
        }
        let arrival = state.mechanism.task(txn.task).map(|task| task.arrival);
        let verdicts = state.mechanism.commit(cpu, &txn);
        let mut task = TASK_NONE;
        for verdict in verdicts {
            *state.outcomes.entry(verdict.outcome).or_default() += 1;
            if verdict.cpu != cpu {
                self.settle_elsewhere(state, &verdict);
                continue;
            }
            // An agent is not told what became of another's txns.
            if !foreign && let Some(wire) = state.wire() {
                wire.set_txn_outcome(cpu, verdict.txn, verdict.outcome);
            }
            let is_decision =
                arrival.is_some() && verdict.switch.is_some_and(|switch| switch.task != TASK_NONE);
            state.see_judged(txn, &verdict, is_decision, prestaged);
            match (verdict.switch, arrival) {
                (Some(switch), Some(arrival)) => {
                    task = switch.task;
                    if task == TASK_NONE {
                        continue;
                    }
                    self.count_decision(state);
                    state.fifo.started(arrival, txn.order);
                    if prestaged && state.level != Level::Host {
                        state.report.prestage_hits += 1;
                    } else if let Some(job) = state.jobs[task as usize] {
                        let since = job.runnable.max(state.idle_since[usize::from(cpu)]);
                        state.round_trip.saturating_record(since.elapsed().as_nanos() as u64);
                    }
                }
                (None, Some(arrival)) if verdict.outcome.is_refusal() && !foreign => {
                    state.fifo.refused(arrival);
                }
                _ => {}
            }
        }
        Some(task)
    }

    fn count_decision(&self, state: &mut State) {
        state.report.decisions += 1;
        state.report.decisions_by_level[usize::from(state.level.number())] += 1;
        state.agent_decisions += 1;
        let incarnation = state.incarnation;
        if state.level == Level::Ipu && state.decided != Some(incarnation) {
            state.decided = Some(incarnation);
            state.link.link().confirm(incarnation);
            self.note(state, EventKind::FirstDecision { incarnation });
        }
    }

    /// A group came to its end on this CPU: the others' members have their verdicts too.
    fn settle_elsewhere(&self, state: &mut State, verdict: &Verdict) {
        let task = verdict.switch.map_or(TASK_NONE, |switch| switch.task);
        state.see_judged(verdict.of_member(), verdict, task != TASK_NONE, false);
        if let Some(wire) = state.wire() {
            wire.set_txn_outcome(verdict.cpu, verdict.txn, verdict.outcome);
        }
        let flags = if task == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags::ON_CPU };
        let message = state.mechanism.message(MessageKind::TxnOutcome, verdict.cpu, task, flags);
        self.emit(state, message);
        if task != TASK_NONE {
            self.count_decision(state);
            if let Some(entry) = state.mechanism.task(task) {
                state.fifo.started(entry.arrival, 0);
            }
            state.assigned[usize::from(verdict.cpu)] = task;
            self.kick(verdict.cpu);
        }
    }

    /// Runs a task on a CPU, and those prestaged after it, until the CPU finds no decision or is to `leave`.
    fn run<W: Work>(&self, cpu: u16, mut task: u32, work: &W, leave: &dyn Fn() -> bool) {
        loop {
            if leave() {
                // If it leaves, what it has not begun is given back; if it stays after all, it runs.
                self.lock().assigned[usize::from(cpu)] = task;
                return;
            }
            let Some(job) = self.lock().jobs[task as usize] else { return };
            let step = work.step(job.request, job.step);
            if step == Step::Going {
                let Some(next) = self.goes_on(cpu, task) else { return };
                task = next;
                continue;
            }
            let now = Instant::now();
            let mut state = self.lock();
            let state = &mut *state;
            if state.closed {
                return;
            }
            let kind = self.end_step(state, cpu, task, job, step, now);
            state.see(Sight::Left { cpu, task, how: kind });
            let message = state.mechanism.message(kind, cpu, task, TaskFlags::WAS_ON_CPU);
            // The slot is read before the line is written, so that one line carries the event and the verdict.
            let next = self.decide(state, cpu, true).unwrap_or(TASK_NONE);
            let mut flags = message.flags;
            if next == TASK_NONE {
                state.report.prestage_misses += u64::from(state.level != Level::Host);
                state.idle_since[usize::from(cpu)] = now;
                flags = flags.with(TaskFlags::CPU_IDLE);
            }
            let cpu_stamp = state.mechanism.cpu(cpu).map_or(0, |cpu| cpu.stamp);
            self.emit(state, Message { flags, cpu_stamp, ..message });
            self.kick_idle(state);
            if next == TASK_NONE {
                return;
            }
            task = next;
        }
    }

    /// A task goes on, unless its agent has the CPU given to another: which it is then; none when all is over.
    fn goes_on(&self, cpu: u16, task: u32) -> Option<u32> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.closed {
            return None;
        }
        if let Some(job) = &mut state.jobs[task as usize] {
            job.step += 1;
        }
        if !state.wire().is_some_and(|wire| wire.preempts(cpu)) {
            return Some(task);
        }
        let Some(next) = self.decide(state, cpu, false).filter(|&next| next != TASK_NONE) else {
            // Refused: the agent hears so, and that the task runs on.
            let message = state.mechanism.message(MessageKind::TxnOutcome, cpu, task, TaskFlags::ON_CPU);
            self.emit(state, message);
            return Some(task);
        };
        if next != task {
            state.report.preemptions += 1;
            if let Some(job) = &mut state.jobs[task as usize] {
                (job.runnable, job.cpu) = (Instant::now(), cpu);
            }
            let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
            self.arrive(state, MessageKind::TaskPreempt, cpu, task, flags);
        }
        Some(next)
    }

    /// What a step's end does to its task.
    fn end_step(
        &self,
        state: &mut State,
        cpu: u16,
        task: u32,
        job: Job,
        step: Step,
        now: Instant,
    ) -> MessageKind {
        let job = Job { step: job.step + 1, runnable: now, cpu, ..job };
        match step {
            Step::Done => {
                state.mechanism.change(task, TaskState::Free);
                self.give_back(state, task);
                state.report.tasks_finished += 1;
                if !state.finished_requests.insert(job.request) {
                    state.report.tasks_doubled += 1;
                }
                let took_ns = now.duration_since(job.created).as_nanos() as u64;
                state.request.saturating_record(took_ns);
                if !job.is_long {
                    state.request_short.saturating_record(took_ns);
                }
                MessageKind::TaskDead
            }
            // One that goes on has not ended: its caller knows.
            Step::Going | Step::Yield => {
                state.mechanism.change(task, TaskState::Runnable);
                state.jobs[task as usize] = Some(job);
                note_arrival(state, task);
                MessageKind::TaskYield
            }
            Step::Block { for_us } => {
                state.mechanism.change(task, TaskState::Blocked);
                state.jobs[task as usize] = Some(job);
                state.alarms.push(Alarm(std::cmp::Reverse(now + Duration::from_micros(for_us)), task));
                MessageKind::TaskBlocked
            }
        }
    }

    /// Wakes the tasks whose time has come.
    pub(super) fn wake_due(&self, state: &mut State, now: Instant) {
        while let Some(&Alarm(std::cmp::Reverse(due), task)) = state.alarms.peek()
            && due <= now
        {
            state.alarms.pop();
            if state.mechanism.task(task).is_some_and(|entry| entry.state == TaskState::Blocked) {
                state.mechanism.change(task, TaskState::Runnable);
                let voice = state.mechanism.voice();
                let cpu = state.jobs[task as usize].as_mut().map_or(voice, |job| {
                    job.runnable = now;
                    job.cpu
                });
                // The CPU where it ran last, unless that is another enclave's by now.
                let cpu = if state.mechanism.owns_cpu(cpu) { cpu } else { voice };
                self.arrive(state, MessageKind::TaskWakeup, cpu, task, TaskFlags::RUNNABLE);
            }
        }
    }
}
