//! What a decision costs each policy, in instructions, from few CPUs and tasks to many: `cargo xtask bench scale` reads it.
//!
//! Where instructions are not counted (on QEMU: without `-icount`) only the smallest case is run, and nothing is judged.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use neap_abi::message::TASK_NONE;
    use neap_abi::{CPUS_MAX, Message, MessageKind, Outcome, TaskFlags, Txn, TxnFlags};
    use neap_agent::{AgentError, Decide, Policy};
    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::pmu;
    use neap_hal::say;
    use neap_policies::{Fifo, FifoPerCore, MqShinjuku, Shinjuku, Task, Vm};
    use neap_qemu_tests::{pass, test_program};
    use spin::Mutex;

    test_program!(test);

    /// Entries of every table: the largest case, so that nothing but the number of tasks differs.
    const TASKS: usize = 1 << 20;
    const CPUS: [u16; 3] = [8, 64, 256];
    const TASK_COUNTS: [u32; 2] = [100, 1_000_000];
    /// Blocks and wake-ups that are counted.
    const ROUNDS: u32 = 2_000;
    /// A task runs for so long before it blocks, however many CPUs there are: longer than a slice of the Shinjukus.
    const RUN_NS: u64 = 80_000;

    static MEMORY: Mutex<[Task; TASKS]> = Mutex::new([Task::ABSENT; TASKS]);
    static STAMPS: Mutex<[u32; TASKS]> = Mutex::new([0; TASKS]);
    /// Not on the stack, which a policy fills.
    static SLOTS: Mutex<Slots> =
        Mutex::new(Slots { staged: [None; CPUS_MAX as usize], ids: [0; CPUS_MAX as usize], made: 0 });
    static RUNNING: Mutex<[u32; CPUS_MAX as usize]> = Mutex::new([TASK_NONE; CPUS_MAX as usize]);

    /// A decision in a slot.
    #[derive(Clone, Copy)]
    struct Staged {
        task: u32,
        id: u32,
        rung: bool,
        preempts: bool,
    }

    /// Slots without a host behind them.
    struct Slots {
        staged: [Option<Staged>; CPUS_MAX as usize],
        ids: [u32; CPUS_MAX as usize],
        made: u32,
    }

    impl Decide for Slots {
        fn txns_commit(&mut self, txns: &[Txn]) -> Result<u32, AgentError> {
            let mut id = 0;
            for txn in txns {
                let at = usize::from(txn.cpu as u8);
                self.ids[at] += 1;
                id = self.ids[at];
                let rung = !txn.flags.has(TxnFlags::PRESTAGED);
                let preempts = txn.flags.has(TxnFlags::PREEMPT);
                self.staged[at] = Some(Staged { task: txn.task, id, rung, preempts });
                self.made += 1;
            }
            Ok(id)
        }

        fn txns_commit_group(&mut self, txns: &mut [Txn]) -> Result<u32, AgentError> {
            self.txns_commit(txns)
        }

        fn nudge(&mut self, cpu: u16) {
            if let Some(staged) = &mut self.staged[usize::from(cpu as u8)] {
                staged.rung = true;
            }
        }

        fn resync(&mut self) {}
    }

    /// A host whose tasks block and wake in turn.
    struct Host<'a, P> {
        policy: &'a mut P,
        slots: &'a mut Slots,
        running: &'a mut [u32; CPUS_MAX as usize],
        now_ns: u64,
        step_ns: u64,
        instructions: u64,
        stamps: &'a mut [u32; TASKS],
    }

    impl<P: Policy> Host<'_, P> {
        /// Tells the policy, and counts what that takes.
        #[inline(never)]
        fn tell(&mut self, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags, verdict: Option<u32>) {
            self.now_ns += self.step_ns;
            let stamp = self.stamps.get(task as usize).copied().unwrap_or(0);
            let outcome = if verdict.is_some() { Outcome::Committed } else { Outcome::None };
            let message = Message {
                task,
                stamp,
                flags,
                outcome,
                txn: verdict.unwrap_or(0),
                time_ns: self.now_ns,
                class: 1 + (task % 3) as u8,
                group: 1 + task % 40,
                ..Message::new(kind, cpu)
            };
            let before = pmu::read();
            self.policy.message(&message, self.slots);
            if P::TIMED {
                self.policy.time(self.now_ns, self.slots);
            }
            self.instructions += u64::from(pmu::read().since(before).instructions);
        }

        /// CPUs take what they are rung for: idle ones, and those whose task is to be preempted.
        fn settle(&mut self, cpus: u16) {
            for cpu in 0..cpus {
                let at = usize::from(cpu);
                let was = self.running[at];
                let takes = |staged: &mut Staged| staged.rung && (was == TASK_NONE || staged.preempts);
                let Some(staged) = self.slots.staged[at].take_if(takes) else { continue };
                self.runs(cpu, staged.task);
                if was == TASK_NONE {
                    self.tell(MessageKind::TxnOutcome, cpu, staged.task, TaskFlags::ON_CPU, Some(staged.id));
                } else {
                    self.moves(was);
                    let flags = TaskFlags::RUNNABLE.with(TaskFlags::WAS_ON_CPU);
                    self.tell(MessageKind::TaskPreempt, cpu, was, flags, Some(staged.id));
                }
            }
        }

        fn runs(&mut self, cpu: u16, task: u32) {
            self.running[usize::from(cpu)] = task;
            self.moves(task);
        }

        fn moves(&mut self, task: u32) {
            if let Some(stamp) = self.stamps.get_mut(task as usize) {
                *stamp = stamp.wrapping_add(1);
            }
        }

        /// The task on a CPU blocks; what lies in the slot runs; the task wakes.
        fn round(&mut self, cpu: u16) {
            let at = usize::from(cpu);
            let task = self.running[at];
            let staged = self.slots.staged[at].take();
            self.moves(task);
            let next = staged.map_or(TASK_NONE, |staged| staged.task);
            let idle = if next == TASK_NONE { TaskFlags::CPU_IDLE } else { TaskFlags(0) };
            self.tell(
                MessageKind::TaskBlocked,
                cpu,
                task,
                TaskFlags::WAS_ON_CPU.with(idle),
                staged.map(|staged| staged.id),
            );
            self.running[at] = TASK_NONE;
            if next != TASK_NONE {
                self.runs(cpu, next);
            }
            self.moves(task);
            self.tell(MessageKind::TaskWakeup, cpu, task, TaskFlags::RUNNABLE, None);
        }
    }

    #[inline(never)]
    fn drive<P: Policy>(name: &str, policy: &mut P, cpus: u16, tasks: u32) {
        let mut stamps = STAMPS.lock();
        let (mut slots, mut running) = (SLOTS.lock(), RUNNING.lock());
        slots.staged.fill(None);
        slots.ids.fill(0);
        running.fill(TASK_NONE);
        let (slots, running, stamps) = (&mut *slots, &mut *running, &mut *stamps);
        let step_ns = RUN_NS / 2 / u64::from(cpus);
        let mut host = Host { policy, slots, running, now_ns: 0, step_ns, instructions: 0, stamps };
        host.tell(MessageKind::ResyncBegin, 0, TASK_NONE, TaskFlags(0), None);
        for cpu in 0..cpus {
            host.tell(MessageKind::ResyncCpu, cpu, TASK_NONE, TaskFlags::CPU_IDLE, None);
        }
        host.tell(MessageKind::ResyncEnd, 0, TASK_NONE, TaskFlags(0), None);
        for task in 0..tasks {
            let cpu = (task % u32::from(cpus)) as u16;
            host.tell(MessageKind::TaskNew, cpu, task, TaskFlags::RUNNABLE, None);
            if task < 4 * u32::from(cpus) {
                host.settle(cpus);
            }
        }
        host.settle(cpus);
        // Once round before it counts.
        for counted in [false, true] {
            (host.instructions, host.slots.made) = (0, 0);
            for round in 0..ROUNDS {
                host.round((round % u32::from(cpus)) as u16);
                // Few CPUs are ever idle; only those that this round can have rung are looked at.
                if host.slots.staged.iter().flatten().any(|staged| staged.rung) {
                    host.settle(cpus);
                }
            }
            if counted {
                let (instructions, decisions) = (host.instructions, host.slots.made);
                assert!(decisions > 0, "{name} decides nothing");
                say!("scale {name} {cpus} {tasks} {instructions} {decisions}");
            }
        }
    }

    /// Each on a stack of its own: a policy's CPUs are a third of what there is.
    macro_rules! driven {
        ($($function:ident $name:literal $policy:ident),*) => {$(
            #[inline(never)]
            fn $function(cpus: u16, tasks: u32) {
                drive($name, &mut $policy::<TASKS>::new(cpus, &mut MEMORY.lock()), cpus, tasks);
            }
        )*};
    }

    driven!(
        fifo "fifo" Fifo,
        fifo_per_core "fifo-per-core" FifoPerCore,
        shinjuku "shinjuku" Shinjuku,
        mq_shinjuku "mq-shinjuku" MqShinjuku,
        vm "vm" Vm
    );

    fn case(cpus: u16, tasks: u32) {
        for policy in [fifo, fifo_per_core, shinjuku, mq_shinjuku, vm] {
            policy(cpus, tasks);
        }
    }

    fn test(_level: u64, _machine: Machine) -> ! {
        pmu::start();
        if !pmu::counts_instructions() {
            case(CPUS[0], TASK_COUNTS[0]);
            say!("this machine counts no instructions");
            pass()
        }
        for cpus in CPUS {
            for tasks in TASK_COUNTS {
                case(cpus, tasks);
            }
        }
        pass()
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
