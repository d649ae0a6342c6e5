//! A kernel in miniature: tasks, runqueues and sched_ext's bookkeeping (`kernel/sched/ext/ext.c`), for a mechanism that is
//! asked and told in the order in which sched_ext does, by the BPF program in `host-driver/bpf`.
//!
//! It runs on one thread. What another CPU could do in between is done by steps in between: a CPU's dispatch is several steps,
//! and a change of a task's properties is two. [`Kernel::may_step`] and its like keep to what the runqueues' locks allow.

use std::collections::VecDeque;

use neap_abi::{Operation, Outcome, TxnFlags};

use super::host::{Host, Judged};
use crate::cpu::{MEMBERS_MAX, Runs};
use crate::enclave::Standing;
use crate::events::{Custody, Wires};
use crate::judge::may_use;
use crate::resync::Arrival;
use crate::task::Phase;
use crate::{Level, Mechanism, Taken};

/// Where a task is, as the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It waits for something else than a CPU.
    Asleep,
    /// The agent has it.
    Custody,
    /// In the host's own queue.
    Queue,
    /// In a CPU's queue.
    Local(u16),
    /// A CPU runs it.
    Running(u16),
    /// It has ended, or is of another class.
    Gone,
}

/// A task.
#[derive(Clone, Copy, Debug)]
struct Thread {
    pid: u32,
    /// Its number in the mechanism's table, if that had room.
    number: Option<u32>,
    place: Place,
    /// Its runqueue.
    cpu: u16,
    affinity: (u16, u16),
    /// Moves each time that the agent gets it.
    custody: u64,
    /// It can't be given to the agent any more.
    exits: bool,
    /// It is off its queue, and its runqueue is locked.
    changes: bool,
    /// It has ended, and its last switch is done or to be done.
    dead: bool,
}

/// What a CPU has recorded to put in place.
#[derive(Clone, Copy, Debug)]
struct Insertion {
    thread: usize,
    custody: u64,
    target: Option<u16>,
}

/// How far a CPU's dispatch has come.
#[derive(Clone, Debug, Default)]
enum Stage {
    /// It executes something.
    #[default]
    None,
    /// It looks for what to execute.
    Dispatch { looks: u32 },
    /// Places are recorded; the runqueue is locked.
    Recorded { insertions: Vec<Insertion>, looks: u32 },
    /// Places are being filled. While a task is held that is to come from or go to another CPU, the runqueue is not locked.
    Filling { insertions: VecDeque<Insertion>, held: Option<Insertion>, looks: u32 },
    /// It takes what is in its queue.
    Pick,
}

/// What a CPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    Idle,
    Thread(usize),
    Other,
}

/// A CPU.
#[derive(Debug)]
struct Processor {
    current: Current,
    queue: VecDeque<usize>,
    stage: Stage,
    /// What ran there is to be put back: true if it still can run.
    gives: bool,
    online: bool,
    /// It is to look again.
    kicked: bool,
}

/// Looks of one dispatch (SCX_DSP_MAX_LOOPS).
const LOOKS_MAX: u32 = 32;

/// The kernel.
#[derive(Debug)]
pub struct Kernel<'m> {
    /// The mechanism that it asks.
    pub mechanism: Mechanism<'m>,
    /// The mechanism's wires.
    pub host: Host<'m>,
    threads: Vec<Thread>,
    processors: Vec<Processor>,
    queue: VecDeque<usize>,
    custodies: u64,
    pids: u32,
    arrivals: Vec<Arrival>,
    /// Tasks that have ended.
    pub ended: u32,
    /// Verdicts by outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
}

impl<'m> Kernel<'m> {
    /// A kernel that runs nothing.
    #[must_use]
    pub fn new(mechanism: Mechanism<'m>, host: Host<'m>) -> Self {
        let processor = || Processor {
            current: Current::Idle,
            queue: VecDeque::new(),
            stage: Stage::None,
            gives: false,
            online: true,
            kicked: false,
        };
        Self {
            processors: mechanism.cpus().iter().map(|_| processor()).collect(),
            arrivals: vec![Arrival::default(); mechanism.tasks().len()],
            mechanism,
            host,
            threads: Vec::new(),
            queue: VecDeque::new(),
            custodies: 0,
            pids: 1000,
            ended: 0,
            outcomes: [0; Outcome::ALL.len()],
        }
    }

    /// Places for tasks that were ever used: tasks are numbered below this.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Where a task is, with its number in the mechanism's table.
    #[must_use]
    pub fn thread(&self, thread: usize) -> Option<(Place, Option<u32>)> {
        self.threads.get(thread).map(|thread| (thread.place, thread.number))
    }

    /// Whether a task is between two queues.
    #[must_use]
    pub fn changes(&self, thread: usize) -> bool {
        self.threads.get(thread).is_some_and(|thread| thread.changes)
    }

    /// Whether a CPU is between two things that it executes.
    #[must_use]
    pub fn switches(&self, cpu: u16) -> bool {
        !matches!(self.processors[usize::from(cpu)].stage, Stage::None)
    }

    /// Whether a CPU executes nothing and is not about to.
    #[must_use]
    pub fn rests(&self, cpu: u16) -> bool {
        let processor = &self.processors[usize::from(cpu)];
        processor.current == Current::Idle && !self.switches(cpu) && !processor.kicked
    }

    /// Whether a runqueue is locked, by its own CPU or by whoever changes a task of it.
    fn is_locked(&self, cpu: u16) -> bool {
        self.is_locked_by_itself(cpu) || self.is_changing(cpu)
    }

    fn is_locked_by_itself(&self, cpu: u16) -> bool {
        let stage = &self.processors[usize::from(cpu)].stage;
        !matches!(stage, Stage::None | Stage::Filling { held: Some(_), .. })
    }

    fn is_changing(&self, cpu: u16) -> bool {
        self.threads.iter().any(|thread| thread.changes && thread.cpu == cpu)
    }

    /// Whether an event of a task may come now.
    #[must_use]
    pub fn may_touch(&self, thread: usize) -> bool {
        self.threads
            .get(thread)
            .is_some_and(|thread| thread.place != Place::Gone && !self.is_locked(thread.cpu))
    }

    /// Whether a CPU may take the next step of what it is at: it holds its runqueue's lock, and those of the others that it needs.
    #[must_use]
    pub fn may_step(&self, cpu: u16) -> bool {
        let others = match &self.processors[usize::from(cpu)].stage {
            Stage::None => return false,
            Stage::Filling { held: Some(held), .. } => [Some(self.threads[held.thread].cpu), held.target],
            _ => [None, None],
        };
        let free = |other: u16| other == cpu || !self.is_locked(other);
        !self.is_changing(cpu) && others.into_iter().flatten().all(free)
    }

    // Tasks.

    /// A task comes to the class, and can run or not.
    pub fn spawn(&mut self, cpu: u16, affinity: (u16, u16), runs: bool) -> bool {
        if self.is_locked(cpu) || !self.processors[usize::from(cpu)].online || !may_use(affinity, cpu) {
            return false;
        }
        self.pids += 1;
        let number = self.mechanism.enable(self.pids, affinity, cpu);
        if let Some(number) = number {
            self.mechanism.set_affinity(&self.host, number, affinity, cpu);
        }
        let thread = Thread {
            pid: self.pids,
            number,
            place: Place::Asleep,
            cpu,
            affinity,
            custody: 0,
            exits: false,
            changes: false,
            dead: false,
        };
        let at = self.free_thread();
        match self.threads.get_mut(at) {
            Some(place) => *place = thread,
            None => self.threads.push(thread),
        }
        if runs {
            self.enqueue(at);
        }
        true
    }

    /// Where the next task goes: to the place of one that has ended, or after the last.
    fn free_thread(&self) -> usize {
        let under_way = |thread: usize| {
            self.processors.iter().any(|processor| match &processor.stage {
                _ if processor.current == Current::Thread(thread) => true,
                Stage::Recorded { insertions, .. } => insertions.iter().any(|one| one.thread == thread),
                Stage::Filling { insertions, held, .. } => {
                    insertions.iter().chain(held).any(|one| one.thread == thread)
                }
                _ => false,
            })
        };
        let free = |&at: &usize| self.threads[at].place == Place::Gone && !under_way(at);
        (0..self.threads.len()).find(free).unwrap_or(self.threads.len())
    }

    /// `do_enqueue_task`.
    fn enqueue(&mut self, at: usize) {
        let Thread { number, cpu, pid, exits, .. } = self.threads[at];
        if exits || !self.processors[usize::from(cpu)].online {
            self.threads[at].place = Place::Local(cpu);
            self.processors[usize::from(cpu)].queue.push_back(at);
            self.kick(cpu);
            return;
        }
        let custody =
            number.map_or(Custody::Host, |number| self.mechanism.enqueue(&self.host, number, pid, cpu));
        if custody == Custody::Agent {
            self.custodies += 1;
            self.threads[at].custody = self.custodies;
            self.threads[at].place = Place::Custody;
        } else {
            self.push_to_queue(at);
        }
    }

    /// Into the host's own queue; an idle CPU that may run it is made to look.
    fn push_to_queue(&mut self, at: usize) {
        self.threads[at].place = Place::Queue;
        self.queue.push_back(at);
        let affinity = self.threads[at].affinity;
        let idle = |cpu: &u16| {
            self.fits(affinity, *cpu) && self.processors[usize::from(*cpu)].current == Current::Idle
        };
        if let Some(cpu) = (0..self.processors.len() as u16).find(idle) {
            self.kick(cpu);
        }
    }

    /// A task that sleeps can run again.
    pub fn wake(&mut self, at: usize) -> bool {
        let Some(thread) = self.threads.get(at) else { return false };
        // One that has not left its CPU yet is woken there, later.
        let leaves = self.processors[usize::from(thread.cpu)].current == Current::Thread(at);
        if thread.place != Place::Asleep || leaves || thread.dead || !self.may_touch(at) {
            return false;
        }
        if !self.fits(thread.affinity, thread.cpu) {
            let Some(cpu) = self.usable(thread.affinity) else { return false };
            self.threads[at].cpu = cpu;
        }
        self.enqueue(at);
        true
    }

    fn fits(&self, affinity: (u16, u16), cpu: u16) -> bool {
        may_use(affinity, cpu) && self.processors[usize::from(cpu)].online
    }

    /// A CPU that a task may use and whose runqueue is not locked.
    fn usable(&self, affinity: (u16, u16)) -> Option<u16> {
        let cpus = 0..self.processors.len() as u16;
        cpus.into_iter().find(|&cpu| self.fits(affinity, cpu) && !self.is_locked(cpu))
    }

    /// exec() of a thread: it takes its process's number.
    pub fn rename(&mut self, at: usize) {
        if let Some(thread) =
            self.threads.get_mut(at).filter(|thread| matches!(thread.place, Place::Running(_)))
        {
            self.pids += 1;
            thread.pid = self.pids;
        }
    }

    /// A change of a task's properties begins: it is taken off its queue.
    pub fn begin_change(&mut self, at: usize) -> bool {
        if !self.may_touch(at) {
            return false;
        }
        let Thread { place, number, cpu, .. } = self.threads[at];
        if self.threads[at].dead {
            return false;
        }
        match place {
            Place::Gone => return false,
            Place::Asleep => {}
            Place::Custody | Place::Queue => {
                // Both are in custody: ops.dequeue() and ops.quiescent() come.
                self.queue.retain(|&queued| queued != at);
                if let Some(number) = number {
                    self.mechanism.dequeue(number);
                    self.mechanism.quiescent(&self.host, number, cpu, false);
                }
            }
            Place::Local(local) => {
                self.processors[usize::from(local)].queue.retain(|&queued| queued != at);
                if let Some(number) = number {
                    self.mechanism.quiescent(&self.host, number, cpu, false);
                }
            }
            Place::Running(_) => {
                if let Some(number) = number {
                    self.mechanism.stopping(&self.host, cpu);
                    self.mechanism.quiescent(&self.host, number, cpu, false);
                }
            }
        }
        self.threads[at].changes = true;
        true
    }

    /// The change of a task that is off its queue: other CPUs that it may use, if `affinity` says so; and it is put back.
    pub fn end_change(&mut self, at: usize, affinity: Option<(u16, u16)>) -> bool {
        let Some(thread) = self.threads.get_mut(at).filter(|thread| thread.changes) else { return false };
        thread.changes = false;
        let Thread { place, number, cpu, .. } = *thread;
        let affinity = affinity.filter(|&affinity| self.usable(affinity).is_some());
        if let Some(affinity) = affinity {
            self.threads[at].affinity = affinity;
            if let Some(number) = number {
                self.mechanism.set_affinity(&self.host, number, affinity, cpu);
            }
        }
        match place {
            Place::Running(_) => {
                // Put back at once, without a word to ops.enqueue().
                if let Some(number) = number {
                    self.mechanism.running(&self.host, number, cpu);
                }
                if !may_use(self.threads[at].affinity, cpu) {
                    self.migrate(at);
                }
            }
            Place::Custody | Place::Queue | Place::Local(_) => {
                self.enqueue(at);
                if !may_use(self.threads[at].affinity, cpu) {
                    self.migrate(at);
                }
            }
            Place::Asleep | Place::Gone => {}
        }
        true
    }

    /// A task that may not use the CPU of its runqueue any more goes to another's. Its CPU, if it runs, is stopped for that.
    fn migrate(&mut self, at: usize) {
        let Thread { place, number, cpu: from, affinity, .. } = self.threads[at];
        let Some(to) = self.usable(affinity) else { return };
        match place {
            // Its CPU is at it: it will be moved from where it is put.
            Place::Running(_) if self.switches(from) => return,
            Place::Running(_) => {
                self.other_comes(from);
                self.processors[usize::from(from)].queue.retain(|&queued| queued != at);
            }
            Place::Local(_) => self.processors[usize::from(from)].queue.retain(|&queued| queued != at),
            Place::Custody | Place::Queue => {
                self.queue.retain(|&queued| queued != at);
                if let Some(number) = number {
                    // No ops.quiescent(): it is TASK_ON_RQ_MIGRATING.
                    self.mechanism.dequeue(number);
                }
            }
            Place::Asleep | Place::Gone => return,
        }
        self.threads[at].cpu = to;
        self.enqueue(at);
        if matches!(place, Place::Running(_)) {
            self.other_goes(from);
        }
    }

    /// A task leaves the class, whatever it is at.
    pub fn leave(&mut self, at: usize) -> bool {
        if !self.begin_change(at) {
            return false;
        }
        let Thread { place, number, cpu, .. } = self.threads[at];
        self.threads[at].changes = false;
        self.threads[at].place = Place::Gone;
        if let Some(number) = number {
            self.mechanism.disable(&self.host, number, false, cpu);
        }
        if let Place::Running(cpu) = place {
            // It goes on, in another class; to the CPU, it does not switch.
            self.processors[usize::from(cpu)].current = Current::Other;
        }
        true
    }

    // CPUs.

    /// Makes a CPU look.
    pub fn kick(&mut self, cpu: u16) {
        if let Some(processor) = self.processors.get_mut(usize::from(cpu)) {
            processor.kicked = true;
        }
    }

    /// An interrupt of the IPU's.
    pub fn ring(&mut self, cpu: u16) {
        if self.mechanism.rung(&self.host, cpu) {
            self.expire(cpu, false);
        }
        self.kick(cpu);
    }

    /// A CPU that was kicked while it runs nothing looks.
    pub fn heed(&mut self, cpu: u16) -> bool {
        let Some(processor) = self.processors.get_mut(usize::from(cpu)) else { return false };
        let heeds = processor.kicked && processor.current == Current::Idle && processor.online;
        if heeds && matches!(processor.stage, Stage::None) {
            (processor.kicked, processor.gives) = (false, false);
            processor.stage = Stage::Dispatch { looks: 0 };
            return true;
        }
        false
    }

    fn current(&self, cpu: u16) -> Option<usize> {
        let processor = self.processors.get(usize::from(cpu))?;
        match processor.current {
            Current::Thread(thread) if matches!(processor.stage, Stage::None) && !self.is_locked(cpu) => {
                Some(thread)
            }
            _ => None,
        }
    }

    /// What runs on a CPU has used up its slice, or yields.
    pub fn expire(&mut self, cpu: u16, yields: bool) -> bool {
        let Some(at) = self.current(cpu) else { return false };
        if let (Some(number), true) = (self.threads[at].number, yields) {
            self.mechanism.yields(number);
        }
        let processor = &mut self.processors[usize::from(cpu)];
        processor.gives = true;
        processor.stage = Stage::Dispatch { looks: 0 };
        true
    }

    /// What runs on a CPU sleeps, or ends.
    pub fn block(&mut self, cpu: u16, ends: bool) -> bool {
        let Some(at) = self.current(cpu) else { return false };
        self.mechanism.stopping(&self.host, cpu);
        if let Some(number) = self.threads[at].number {
            self.mechanism.quiescent(&self.host, number, cpu, true);
        }
        self.threads[at].place = Place::Asleep;
        self.threads[at].dead = ends;
        let processor = &mut self.processors[usize::from(cpu)];
        processor.gives = false;
        processor.stage = Stage::Dispatch { looks: 0 };
        true
    }

    /// What runs on a CPU is about to end: the agent gets it no more.
    pub fn begin_exit(&mut self, cpu: u16) {
        if let Some(at) = self.current(cpu) {
            self.threads[at].exits = true;
        }
    }

    /// A higher class takes a CPU.
    pub fn other_comes(&mut self, cpu: u16) -> bool {
        if self.switches(cpu) || self.is_locked(cpu) || !self.processors[usize::from(cpu)].online {
            return false;
        }
        match self.processors[usize::from(cpu)].current {
            Current::Other => return false,
            Current::Idle => {}
            Current::Thread(at) => {
                // It has some of its slice left: it is the first of its CPU's queue.
                self.mechanism.stopping(&self.host, cpu);
                self.threads[at].place = Place::Local(cpu);
                self.processors[usize::from(cpu)].queue.push_front(at);
            }
        }
        self.processors[usize::from(cpu)].current = Current::Other;
        self.mechanism.switch(&self.host, cpu, Runs::Other);
        true
    }

    /// A higher class lets go of a CPU.
    pub fn other_goes(&mut self, cpu: u16) -> bool {
        if self.switches(cpu) || self.is_locked(cpu) {
            return false;
        }
        let processor = &mut self.processors[usize::from(cpu)];
        let goes = processor.current == Current::Other;
        if goes {
            processor.gives = false;
            processor.stage = Stage::Dispatch { looks: 0 };
        }
        goes
    }

    /// A CPU has been a higher class's for long, or has just been.
    pub fn withhold(&mut self, cpu: u16) {
        // Interrupts are off while a CPU is at its own queue.
        if !self.switches(cpu) {
            self.mechanism.withhold(&self.host, cpu);
        }
    }

    /// A CPU with nothing to do goes from the machine, or comes back.
    pub fn plug(&mut self, cpu: u16, online: bool) -> bool {
        if self.processors[usize::from(cpu)].current != Current::Idle
            || self.switches(cpu)
            || self.is_locked(cpu)
            || self.processors[usize::from(cpu)].online == online
        {
            return false;
        }
        let others = self.processors.iter().filter(|processor| processor.online).count();
        let bound =
            |thread: &Thread| thread.place != Place::Gone && (thread.affinity.1 != 0 || thread.cpu == cpu);
        if !online && (others < 2 || self.threads.iter().any(bound)) {
            return false;
        }
        self.processors[usize::from(cpu)].online = online;
        self.mechanism.set_online(cpu, online);
        if online {
            self.mechanism.announce(&self.host, cpu);
        } else {
            self.mechanism.withhold(&self.host, cpu);
            // The machine's own threads run there once more.
            self.mechanism.switch(&self.host, cpu, Runs::Other);
            self.mechanism.switch(&self.host, cpu, Runs::Idle);
        }
        true
    }

    fn find(&self, pid: u32, number: u32) -> Option<usize> {
        let found =
            self.threads.iter().position(|thread| thread.pid == pid && thread.place != Place::Gone)?;
        (self.threads[found].number == Some(number)).then_some(found)
    }

    /// The next step of a CPU's dispatch. `host_first` has it look at the host's own queue first.
    ///
    /// # Panics
    /// Where the mechanism asks for what sched_ext would end the scheduler for.
    pub fn step(&mut self, cpu: u16, host_first: bool) -> bool {
        if !self.may_step(cpu) {
            return false;
        }
        let at = usize::from(cpu);
        match core::mem::take(&mut self.processors[at].stage) {
            Stage::None => return false,
            Stage::Dispatch { looks } => {
                let next = self.dispatch(cpu, looks, host_first);
                self.processors[at].stage = next;
            }
            Stage::Recorded { insertions, looks } => {
                let rescues = insertions.iter().any(|insertion| insertion.target.is_none());
                let kept = self.mechanism.settle(&self.host, cpu);
                self.check_verdicts();
                if kept {
                    self.leave_idle(cpu);
                }
                self.processors[at].stage = if kept && !insertions.is_empty() {
                    Stage::Filling { insertions: insertions.into(), held: None, looks: looks + 1 }
                } else {
                    assert!(!rescues, "what is rescued is not to be taken back");
                    self.consume(cpu);
                    Stage::Pick
                };
            }
            Stage::Filling { mut insertions, held, looks } => {
                let held = match held {
                    Some(held) => {
                        self.fill(cpu, held);
                        None
                    }
                    None => insertions.pop_front().and_then(|next| self.begin_fill(cpu, next)),
                };
                self.processors[at].stage = if held.is_some() || !insertions.is_empty() {
                    Stage::Filling { insertions, held, looks }
                } else if self.processors[at].queue.is_empty() && looks < LOOKS_MAX {
                    Stage::Dispatch { looks }
                } else {
                    Stage::Pick
                };
            }
            Stage::Pick => self.pick(cpu),
        }
        true
    }

    /// ops.dispatch(), up to the verdict.
    fn dispatch(&mut self, cpu: u16, looks: u32, host_first: bool) -> Stage {
        if !self.processors[usize::from(cpu)].queue.is_empty() || !self.processors[usize::from(cpu)].online {
            return Stage::Pick;
        }
        if host_first && self.consume(cpu) {
            return Stage::Pick;
        }
        let taken = self.mechanism.take(&self.host, cpu);
        self.check_verdicts();
        let count = match taken {
            Taken::Nothing => {
                self.consume(cpu);
                return Stage::Pick;
            }
            Taken::Keep => {
                let member = self.mechanism.member(cpu, 0).expect("what is kept is a member");
                let runs = match self.processors[usize::from(cpu)].current {
                    Current::Thread(at) => self.threads[at].number,
                    Current::Idle | Current::Other => None,
                };
                if runs == Some(member.task) {
                    // It goes on: no switch.
                    return Stage::None;
                }
                // The kernel has moved it without a word, as it does with a task that exits.
                self.consume(cpu);
                return Stage::Pick;
            }
            Taken::Members(count) | Taken::Rescue(count) => count,
        };
        assert!(count as usize <= MEMBERS_MAX, "{count} members at one time");
        let mut insertions = Vec::new();
        for member in 0..count {
            if let Some((pid, number)) = self.mechanism.rescued(cpu, member) {
                match self.find(pid, number) {
                    Some(found) => insertions.push(self.insertion(found, None)),
                    None => self.mechanism.bar(cpu, member, true),
                }
                continue;
            }
            let Some(member_found) = self.mechanism.member(cpu, member) else { continue };
            if member_found.idles || member_found.keeps {
                continue;
            }
            let Some(found) = self.find(member_found.pid, member_found.task) else {
                self.mechanism.bar(cpu, member, true);
                continue;
            };
            if may_use(self.threads[found].affinity, member_found.cpu) {
                insertions.push(self.insertion(found, Some(member_found.cpu)));
            } else {
                self.mechanism.bar(cpu, member, false);
            }
        }
        Stage::Recorded { insertions, looks }
    }

    /// CPUs that a group leaves idle lose what runs there.
    fn leave_idle(&mut self, cpu: u16) {
        for member in (0..).map_while(|member| self.mechanism.member(cpu, member)).collect::<Vec<_>>() {
            if member.idles && member.cpu != cpu {
                self.expire(member.cpu, false);
            }
        }
    }

    fn insertion(&self, thread: usize, target: Option<u16>) -> Insertion {
        let Thread { place, custody, changes, .. } = self.threads[thread];
        let custody = if place == Place::Custody && !changes { custody } else { 0 };
        Insertion { thread, custody, target }
    }

    /// Whether a place that was recorded still holds: it is void if the task has been off its queue since.
    fn holds(&self, insertion: Insertion) -> bool {
        let thread = &self.threads[insertion.thread];
        thread.place == Place::Custody && !thread.changes && thread.custody == insertion.custody
    }

    /// `finish_dispatch`: what has to wait for another runqueue's lock is held.
    fn begin_fill(&mut self, cpu: u16, insertion: Insertion) -> Option<Insertion> {
        let source = self.threads[insertion.thread].cpu;
        if self.holds(insertion) && insertion.target.is_some_and(|target| target != cpu || source != cpu) {
            return Some(insertion);
        }
        self.fill(cpu, insertion);
        None
    }

    fn fill(&mut self, cpu: u16, insertion: Insertion) {
        if !self.holds(insertion) {
            return;
        }
        let at = insertion.thread;
        let online = |target: u16| self.processors[usize::from(target)].online;
        let Some(target) = insertion.target.filter(|&target| online(target)) else {
            return self.push_to_queue(at);
        };
        let thread = &mut self.threads[at];
        assert!(
            may_use(thread.affinity, target),
            "sched_ext would end the scheduler: the CPU is not allowed"
        );
        thread.place = Place::Local(target);
        thread.cpu = target;
        self.processors[usize::from(target)].queue.push_back(at);
        if target != cpu {
            self.kick(target);
        }
    }

    /// Takes from the host's own queue what may run on a CPU.
    fn consume(&mut self, cpu: u16) -> bool {
        let found = self.queue.iter().position(|&at| {
            let thread = &self.threads[at];
            !thread.changes && may_use(thread.affinity, cpu)
        });
        let Some(at) = found.and_then(|found| self.queue.remove(found)) else { return false };
        self.threads[at].place = Place::Local(cpu);
        self.threads[at].cpu = cpu;
        self.processors[usize::from(cpu)].queue.push_back(at);
        true
    }

    /// A CPU goes on to the next of its queue: what ran there is put back, and the next begins.
    fn pick(&mut self, cpu: u16) {
        let at = usize::from(cpu);
        let before = self.processors[at].current;
        let next = self.processors[at].queue.pop_front();
        let gave = match before {
            Current::Thread(thread) => {
                // It may have left the class while the runqueue was not locked.
                if core::mem::take(&mut self.processors[at].gives)
                    && self.threads[thread].place == Place::Running(cpu)
                {
                    self.mechanism.stopping(&self.host, cpu);
                    self.enqueue(thread);
                }
                Some(thread)
            }
            Current::Idle | Current::Other => None,
        };
        // Put back, it may be the next itself: one that exits.
        let next = next.or_else(|| self.processors[at].queue.pop_front());
        let (current, runs) = match next {
            Some(thread) => {
                self.threads[thread].place = Place::Running(cpu);
                self.threads[thread].cpu = cpu;
                if let Some(number) = self.threads[thread].number {
                    self.mechanism.running(&self.host, number, cpu);
                }
                (Current::Thread(thread), Runs::Ours)
            }
            None => (Current::Idle, Runs::Idle),
        };
        self.processors[at].current = current;
        self.processors[at].stage = Stage::None;
        if current != before {
            self.mechanism.switch(&self.host, cpu, runs);
        }
        if current == Current::Idle && !self.processors[at].queue.is_empty() {
            self.kick(cpu);
        }
        if let Some(thread) = gave.filter(|&thread| self.threads[thread].dead) {
            // `finish_task_switch`.
            self.threads[thread].place = Place::Gone;
            self.ended += 1;
            if let Some(number) = self.threads[thread].number {
                self.mechanism.disable(&self.host, number, true, cpu);
            }
        }
    }

    // The agents' watch.

    /// The host's own rule decides from now on.
    pub fn fall_back(&mut self) -> bool {
        // A grace period: nobody is under a lock.
        let under_lock = |processor: &Processor| matches!(processor.stage, Stage::Recorded { .. });
        if self.processors.iter().any(under_lock) {
            return false;
        }
        if let Some(enclave) = self.mechanism.enclave(0) {
            enclave.set_level(Level::Host);
            enclave.set_standing(Standing::Gone);
        }
        self.mechanism.forget_groups(&self.host, 0);
        self.rescue();
        true
    }

    /// What the watch does at each beat.
    pub fn rescue(&mut self) {
        if self.mechanism.enclave(0).is_some_and(|enclave| enclave.level() != Level::Ipu) {
            self.mechanism.rescue_from(0);
        }
        let now = self.host.now_ns();
        self.mechanism.rescue_stranded(0, now);
        if self.mechanism.has_rescued() {
            for cpu in 0..self.processors.len() as u16 {
                self.kick(cpu);
            }
        }
        self.mechanism.break_old_groups(&self.host, 0, now.saturating_sub(1000));
    }

    /// The whole state is told, while the machine stands still.
    pub fn resync(&mut self) -> bool {
        let due = self.mechanism.enclave(0).is_some_and(|enclave| {
            enclave.resync_due() && enclave.level() == Level::Ipu && enclave.standing() == Standing::Good
        });
        if !due
            || (0..self.processors.len() as u16).any(|cpu| self.switches(cpu))
            || self.threads.iter().any(|thread| thread.changes)
        {
            return false;
        }
        let told = self.mechanism.resync(&self.host, 0, &mut self.arrivals, |arrivals| {
            arrivals.sort_by_key(|arrival| arrival.since_ns);
        });
        if told {
            for cpu in 0..self.processors.len() as u16 {
                self.kick(cpu);
            }
        }
        told
    }

    /// Checks what must hold between any two steps.
    ///
    /// # Panics
    /// It does not.
    pub fn check(&self) {
        let mut runnable = vec![0; usize::from(crate::ENCLAVES_MAX as u8) + 8];
        let mut owners = vec![0; self.processors.len()];
        for (number, task) in (0u32..).zip(self.mechanism.tasks()) {
            let word = task.word();
            if word.phase == Phase::Runnable {
                runnable[usize::from(word.enclave)] += 1;
            }
            if word.phase == Phase::Placed {
                owners[usize::from(word.cpu)] += 1;
                let has = self.mechanism.cpu(word.cpu).map(crate::Cpu::task);
                assert_eq!(has, Some(number), "task {number} is placed where another is: {word:?}");
            }
        }
        assert!(owners.iter().all(|&placed| placed < 2), "a CPU is two tasks': {owners:?}");
        for (number, &counted) in (0..).zip(&runnable) {
            if let Some(enclave) = self.mechanism.enclave(number) {
                assert_eq!(enclave.runnable(), counted, "the count of those that wait");
            }
        }
        for (number, cpu) in (0u16..).zip(self.mechanism.cpus()) {
            let Some(task) = self.mechanism.task(cpu.task()) else { continue };
            let word = task.word();
            assert!(
                matches!(word.phase, Phase::Placed | Phase::OnCpu) && word.cpu == number,
                "CPU {number} has a task that is not there: {word:?}"
            );
        }
        for thread in &self.threads {
            let Some(task) = thread.number.and_then(|number| self.mechanism.task(number)) else { continue };
            if thread.place == Place::Gone {
                continue;
            }
            let word = task.word();
            let fits = match thread.place {
                Place::Asleep => word.phase == Phase::Blocked,
                // Placed: its place is about to be filled, or void.
                Place::Custody => matches!(word.phase, Phase::Runnable | Phase::Placed | Phase::Host),
                // Runnable: stranded when it was put there.
                Place::Queue => {
                    matches!(word.phase, Phase::Host | Phase::Placed | Phase::Runnable) || thread.changes
                }
                Place::Local(cpu) | Place::Running(cpu) => match word.phase {
                    Phase::Placed | Phase::OnCpu => {
                        word.cpu == cpu || thread.exits || thread.place == Place::Local(cpu)
                    }
                    Phase::Host => true,
                    // From the host's queue, or put there by the kernel itself.
                    Phase::Runnable => thread.place == Place::Local(cpu),
                    Phase::Blocked => thread.exits && thread.place == Place::Local(cpu),
                    Phase::Free => false,
                },
                Place::Gone => true,
            };
            assert!(fits, "{thread:?} is {word:?} to the mechanism");
            if thread.place == Place::Custody && word.phase == Phase::Placed && !thread.changes {
                let filled = self.processors.iter().any(|processor| match &processor.stage {
                    Stage::Filling { insertions, held, .. } => insertions
                        .iter()
                        .chain(held)
                        .any(|insertion| insertion.custody == thread.custody && insertion.target.is_some()),
                    _ => false,
                });
                assert!(filled, "{thread:?} is placed and nobody puts it there");
            }
        }
    }

    /// Checks what verdicts there have been just now: no txn was committed on a stamp that did not hold.
    fn check_verdicts(&mut self) {
        for verdict in self.host.judged(0) {
            self.outcomes[verdict.outcome as usize] += 1;
            let Judged { txn, outcome, .. } = verdict;
            if outcome != Outcome::Committed || txn.operation != Operation::Run as u8 {
                continue;
            }
            let word = self.mechanism.task(txn.task).expect("a task that is there").word();
            let placed = word.phase == Phase::Placed && word.stamp == txn.stamp.wrapping_add(1);
            let goes_on = word.phase == Phase::OnCpu && txn.flags.has(TxnFlags::ALLOW_ON_CPU);
            assert!((placed || goes_on) && word.cpu == txn.cpu, "{verdict:?} on {word:?}");
        }
    }
}
