//! Core 0: it brings the machine up, lays the window out, starts the other cores, and from then on sees to it that the
//! enclave has the agent that its host asks for.

use alloc::vec;
use core::fmt;
use core::num::NonZeroU32;

use neap_abi::hello::feature;
use neap_abi::{AgentControl, AgentState, CPUS_MAX, VERSION, Version};
use neap_hal::board::bootargs::Idle;
use neap_hal::board::qemu_virt::{Machine, bring_up};
use neap_hal::cpu::{boot, power, psci};
use neap_hal::say;
use neap_hal::soc::msix::DoorbellPage;
use neap_policies::Task;
use neap_queue::{Line, SlotReader, SlotWriter};

use crate::agents::{Bell, Grant, PrivateMemory};
use crate::cores::{self, Core, Shared};
use crate::end::{self, Summary, status};
use crate::heap;
use crate::idle::CoreIdle;
use crate::log;
use crate::session::{Accepted, Action, CoreState, Limits, Sessions};
use crate::window::{self, LaidOut};

/// The core that the enclave's agent owns.
const AGENT_CORE: usize = 1;
/// The vector that makes the supervisor look at the host's line.
const SUPERVISOR_VECTOR: u16 = 0;
/// The supervisor looks at the host's line this often even if nobody rings.
const LOOK_NS: NonZeroU32 = NonZeroU32::new(5_000_000).unwrap();
/// Steps of one look: more than any event of the session takes, so that one look is bounded.
const STEPS_MAX: usize = 8;

/// The supervisor, from the boot code's call on.
pub fn start(device_tree: u64) -> ! {
    // SAFETY: called once, by `neap_primary`, with what it was given.
    let machine = match unsafe { bring_up(device_tree) } {
        Ok(machine) => machine,
        Err(error) => give_up(format_args!("{error}")),
    };
    let heap = machine.board.free_memory(&boot::image());
    if heap.end - heap.start < heap::HEAP_BYTES {
        give_up(format_args!("{} bytes of memory above the image are too few", heap.end - heap.start));
    }
    // SAFETY: memory above the image, which the map has as data and which nobody else uses.
    unsafe { heap::init(heap.start) };
    let (mut supervisor, mut idle) = set_up(machine);
    loop {
        supervisor.look();
        idle.sleep(Some(LOOK_NS));
    }
}

/// Says what is wrong with the machine and stops, for good or with the simulator.
fn give_up(why: fmt::Arguments<'_>) -> ! {
    say!("neap: can't start: {why}");
    if cores::shared().is_none_or(|shared| shared.args.exit) {
        power::exit_simulator(status::NO_MACHINE);
    }
    power::park()
}

/// From a machine to a window that says hello and cores that wait.
fn set_up(mut machine: Machine) -> (Supervisor, CoreIdle) {
    let Some(function) = machine.functions.first().copied() else {
        give_up(format_args!("no ivshmem function, and so no doorbell: give QEMU -device ivshmem-doorbell"))
    };
    let Some(doorbells) = machine.take_doorbells(0) else {
        give_up(format_args!("the doorbell page is taken"))
    };
    let cores = machine.board.cores.len();
    let cpus = function.vectors.min(CPUS_MAX);
    let sleeps = if machine.board.args.idle == Idle::Spin { 0 } else { feature::SLEEPS };
    // SAFETY: the board's window, which the map has as data; nobody else here reaches it.
    let laid_out = match unsafe { window::lay_out(&machine.board.window, cores as u16, cpus, sleeps) } {
        Ok(laid_out) => laid_out,
        Err(error) => give_up(format_args!("{error}")),
    };
    for (core, region) in laid_out.logs.iter().enumerate() {
        // SAFETY: the other cores don't run yet, and this one is not inside a frame.
        unsafe { log::attach(core, *region) };
    }
    let vectors = match machine.receive_vectors(0) {
        Ok(vectors) => vectors,
        Err(error) => give_up(format_args!("{error}")),
    };
    let Machine { board, map, gic, interface, message_frame, timer, .. } = machine;
    let shared = cores::share(Shared {
        gic,
        message_frame,
        conduit: board.conduit,
        map,
        affinities: board.cores,
        args: board.args,
        timer,
        epitaphs: laid_out.epitaphs.clone(),
        agent_control: laid_out.agent_control,
    });
    cores::core(0).set_target(interface.target());
    if let Some(frame) = message_frame
        && let Err(error) = shared.gic.route(frame.first, &interface)
    {
        give_up(format_args!("{error}"));
    }

    let memory = vec![Task::default(); laid_out.tasks as usize].leak();
    let mut supervisor = Supervisor {
        shared,
        sessions: Sessions::new(Limits { cpus, policy: neap_agent_fifo::POLICY }),
        host: SlotReader::default(),
        doorbells,
        memory: PrivateMemory::new(memory),
        laid_out,
    };
    supervisor.report(AgentState::Waiting, 0, VERSION);
    for core in 1..cores {
        supervisor.start_core(core);
    }
    say!(
        "neap: window of {} KiB for {cpus} host CPUs, {cores} cores ({} free), {vectors} vectors to wake them, boot {}",
        (board.window.end - board.window.start) >> 10,
        cores.saturating_sub(AGENT_CORE + 1),
        supervisor.laid_out.boot
    );
    defmt::info!("boot {=u32}: {=usize} cores, {=u16} host CPUs", supervisor.laid_out.boot, cores, cpus);
    let idle = CoreIdle::new(shared.args.idle, timer, interface, message_frame.is_some());
    (supervisor, idle)
}

struct Supervisor {
    shared: &'static Shared,
    sessions: Sessions,
    host: SlotReader,
    doorbells: DoorbellPage<'static>,
    memory: PrivateMemory,
    laid_out: LaidOut,
}

impl Supervisor {
    fn agent_core(&self) -> &'static Core {
        cores::core(AGENT_CORE)
    }

    /// Our own number in the enclave's domain; no peer has the last one.
    fn peer(&self) -> u16 {
        self.doorbells.position().unwrap_or(u16::MAX)
    }

    /// Looks at the host's line and at the agent's core and does what follows; bounded.
    fn look(&mut self) {
        if let Some(taken) = self.host.take(self.laid_out.host_control) {
            self.sessions.host(&taken.payload);
        }
        for _ in 0..STEPS_MAX {
            match self.sessions.step(self.agent_core().state()) {
                Action::Rest => return,
                Action::Start(accepted) => self.start_agent(&accepted),
                Action::Revoke => {
                    self.agent_core().revoke.store(1, core::sync::atomic::Ordering::Release);
                    self.agent_core().wake();
                }
                Action::Revive => {
                    if !self.revive() {
                        return;
                    }
                }
                Action::Report { state, session, version } => {
                    if state == AgentState::Dead {
                        self.bury();
                    }
                    self.report(state, session, version);
                    defmt::warn!("session {=u32}: agent is {=str}", session, name(state));
                }
            }
        }
    }

    /// Clears the enclave's ring and slots and gives the agent's core its bindings.
    fn start_agent(&mut self, accepted: &Accepted) {
        let Some(slots) = self.laid_out.slots.get(..usize::from(accepted.cpus)) else { return };
        let Ok(doorbell) = self.doorbells.doorbells(accepted.peer, 0, accepted.cpus) else { return };
        self.laid_out.messages.iter().chain(self.laid_out.slots).for_each(Line::clear);
        self.agent_core().give(Grant {
            messages: self.laid_out.messages,
            slots,
            control: self.laid_out.agent_control,
            doorbell: Bell(doorbell),
            // SAFETY: the session asks for a start only while no agent runs on the core: the last one has returned, or its
            // core has been turned off.
            memory: unsafe { self.memory.again() },
            peer: self.peer(),
            session: accepted.session,
            version: accepted.version,
        });
    }

    /// Writes the agent's control line in its stead.
    fn report(&mut self, state: AgentState, session: u32, version: Version) {
        let line = self.laid_out.agent_control;
        let before = line.read_any().and_then(|(words, _)| AgentControl::from_payload(&words));
        let report = AgentControl {
            state,
            core: AGENT_CORE as u8,
            asleep: false,
            peer: self.peer(),
            vector: SUPERVISOR_VECTOR,
            session,
            version,
            // What the dead had counted still holds; who never ran has counted nothing.
            ..match before {
                Some(before) if before.session == session => before,
                _ => AgentControl::NOTHING,
            }
        };
        SlotWriter::after(line).write(line, &report.to_payload(), 3);
    }

    /// Says why the agent's core ended.
    fn bury(&self) {
        let epitaph = self.laid_out.epitaphs.get(AGENT_CORE).and_then(window::read_epitaph);
        match epitaph {
            Some(epitaph) => say!("neap: an agent ended: {}", Summary(&epitaph)),
            None => say!("neap: an agent ended, without an epitaph"),
        }
    }

    /// Starts the agent's core again, if firmware has turned it off by now.
    fn revive(&mut self) -> bool {
        let off = self
            .shared
            .affinities
            .get(AGENT_CORE)
            .is_some_and(|&affinity| psci::is_off(self.shared.conduit, affinity));
        if off {
            // SAFETY: the core is off.
            unsafe { log::reset(AGENT_CORE) };
            end::reset(AGENT_CORE);
            self.start_core(AGENT_CORE);
        }
        off
    }

    fn start_core(&mut self, number: usize) {
        let Some(&affinity) = self.shared.affinities.get(number) else { return };
        cores::core(number).set_state(CoreState::Down);
        if let Err(error) = psci::start_core(self.shared.conduit, number, affinity, self.shared.map) {
            say!("neap: {error}");
        }
    }
}

fn name(state: AgentState) -> &'static str {
    match state {
        AgentState::Waiting => "waiting",
        AgentState::Running => "running",
        AgentState::Stopped => "stopped",
        AgentState::Dead => "dead",
        AgentState::RefusedVersion => "refused: version",
        AgentState::RefusedCpus => "refused: CPUs",
        AgentState::RefusedPolicy => "refused: policy",
        AgentState::RefusedCommand => "refused: command",
    }
}
