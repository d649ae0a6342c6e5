//! Core 0: it brings the machine up, lays the windows out, starts the other cores, and from then on sees to it that each
//! enclave has the agent that its host asks for.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU32;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};

use neap_abi::hello::feature;
use neap_abi::image::{IMAGE_BYTES_MAX, PAGE_BYTES};
use neap_abi::supervisor::{
    BINDINGS_LINE, BINDINGS_MAX, BOOKS_LINE, Binding, BindingKind, Books, REPLY_LINE, RUNNING_LINE,
    STANDBY_LINE,
};
use neap_abi::{
    AgentControl, AgentState, CPUS_MAX, Cause, Epitaph, EpitaphRecord, Grant, ImageError, ImageHeader,
    ManagerLine, Reply, ReplyLine, VERSION, Version,
};
use neap_hal::board::bootargs::Idle;
use neap_hal::board::qemu_virt::{Machine, bring_up};
use neap_hal::cpu::{CORES_MAX, boot, power, psci, resident, timer};
use neap_hal::say;
use neap_hal::soc::msix::DoorbellPage;
use neap_queue::SlotReader;

use crate::card_disk::CardDisk;
use crate::cores::{self, Core, End, Lent, Shared};
use crate::enclave::{Action, Came, CoreState, Demand, Enclave, Place, Start};
use crate::end::{self, Summary, status};
use crate::idle::CoreIdle;
use crate::pages::{Pages, Run};
use crate::space::{Image, LaidOut, LayOutError};
use crate::window::{self, Resume, Wanted};
use crate::{audit, bundle, heap, log};

/// The vector that makes the supervisor look at the host's lines.
const SUPERVISOR_VECTOR: u16 = 0;
/// The supervisor looks at the hosts' lines this often even if nobody rings, in µs.
const LOOK_US: u64 = 5_000;
/// Nanoseconds that a drowsy agent sleeps at most: a host's vector wakes it earlier. Where no vector can (GICv3) the
/// timer is all there is, so the sleep is short.
const SLEEP_NS: u32 = 2_000_000;
/// As [`SLEEP_NS`], where only the timer wakes.
const NAP_NS: u32 = 100_000;
/// How long an image on trial waits for a host, in µs. Where none has come by then it confirms itself, if all its cores run.
const HOST_WAIT_US: u64 = 10_000_000;
/// The same while the disk has something to do, in µs.
const DISK_LOOK_US: u64 = 100;
/// Steps of one look at one enclave: more than any event takes, so that one look is bounded.
const STEPS_MAX: usize = 32;

/// The supervisor, from the boot code's call on.
pub fn start(device_tree: u64) -> ! {
    // SAFETY: called once, by `neap_primary`, with what it was given.
    let machine = match unsafe { bring_up(device_tree) } {
        Ok(machine) => machine,
        Err(error) => give_up(format_args!("{error}")),
    };
    let memory = machine.board.free_memory(&boot::image());
    if memory.end - memory.start < heap::HEAP_BYTES {
        give_up(format_args!("{} bytes of memory above the image are too few", memory.end - memory.start));
    }
    // SAFETY: memory above the image, which the map has as data and which nobody else uses.
    unsafe { heap::init(memory.start) };
    if cfg!(feature = "panics") {
        panic!("asked to");
    }
    let pages = Pages::new(memory.start + heap::HEAP_BYTES..memory.end);
    let (mut supervisor, mut idle) = set_up(machine, pages);
    loop {
        let sleep_ns = supervisor.look().saturating_mul(1000).min(u64::from(u32::MAX)) as u32;
        if let Some(sleep_ns) = NonZeroU32::new(sleep_ns) {
            idle.sleep(Some(sleep_ns));
        }
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

/// How long a core may take to come back from an agent that has ended on another, in µs: an interrupt's time.
const FOLLOW_US: u64 = 1_000_000;

/// The cores of each enclave, as many as are asked for and there are: one after the other, from core 1 on.
fn cores_of(machine: &Machine) -> Vec<Range<usize>> {
    let count = machine.functions.len().min(machine.board.windows.len());
    let mut next = 1;
    let mut all = Vec::new();
    for wanted in machine.board.args.cores.iter().take(count) {
        let end = next + usize::from(*wanted);
        if end > machine.board.cores.len() {
            break;
        }
        all.push(next..end);
        next = end;
    }
    all
}

/// From a machine to windows that say hello and cores that wait.
fn set_up(mut machine: Machine, pages: Pages) -> (Supervisor, CoreIdle) {
    if machine.functions.is_empty() {
        give_up(format_args!("no ivshmem function, and so no doorbell: give QEMU -device ivshmem-doorbell"));
    }
    let cores = machine.board.cores.len();
    let all = cores_of(&machine);
    let count = all.len();
    if count == 0 {
        give_up(format_args!("{cores} cores are too few for one agent beside the supervisor: raise -smp"));
    }
    let sleeps = if machine.board.args.idle == Idle::Spin { 0 } else { feature::SLEEPS };
    let features = feature::MESSAGE_CLOCK | sleeps;
    let mut enclaves: Vec<Held> = Vec::new();
    for index in 0..count {
        enclaves.push(hold(&mut machine, index, &all, features));
    }
    let mut epitaphs = [None; CORES_MAX];
    for (core, region) in enclaves.iter().flat_map(|held| &held.window.epitaphs) {
        if let Some(place) = epitaphs.get_mut(*core) {
            *place = Some(*region);
        }
    }
    for (core, region) in enclaves.iter().flat_map(|held| &held.window.logs) {
        // SAFETY: the other cores don't run yet, and this one is not inside a frame.
        unsafe { log::attach(*core, *region) };
    }
    audit::note();
    bundle::add(machine.agents);
    let Machine { board, map, gic, interface, message_frame, timer, .. } = machine;
    let shared = cores::share(Shared {
        gic,
        message_frame,
        conduit: board.conduit,
        map,
        affinities: board.cores,
        args: board.args,
        timer,
        epitaphs,
    });
    cores::core(0).set_target(interface.target());
    if let Some(frame) = message_frame
        && let Err(error) = shared.gic.route(frame.first, &interface)
    {
        give_up(format_args!("{error}"));
    }
    let trial = board.confirm.map(|routine| (routine, timer.now_ns() / 1000 + HOST_WAIT_US));
    // SAFETY: the tree's disk, which the map has; once.
    let disk = board.disk.and_then(|left| unsafe { CardDisk::new(&left) });
    let mut supervisor = Supervisor { shared, pages, enclaves, cores, trial, disk };
    for held in &supervisor.enclaves {
        held.report(AgentState::Waiting, 0, VERSION);
    }
    for core in 1..cores {
        supervisor.start_core(core);
    }
    for held in &supervisor.enclaves {
        say!(
            "neap: enclave {}: {} host CPUs at most, {} cores from {} on, boot {}",
            held.index,
            held.cpus,
            held.cores.len(),
            held.leader(),
            held.window.boot
        );
    }
    say!(
        "neap: {count} enclaves, {cores} cores ({} free), {} pages for agents, {} agents in the bundle",
        cores - all.last().map_or(1, |last| last.end),
        supervisor.pages.free(),
        bundle::all().count()
    );
    defmt::info!("{=usize} enclaves, {=usize} cores", count, cores);
    supervisor.keep_books();
    (supervisor, CoreIdle::new(timer, interface))
}

/// Takes the hardware of the `index`th enclave, of those with these cores, and lays its window out.
fn hold(machine: &mut Machine, index: usize, all: &[Range<usize>], features: u64) -> Held {
    let cores = machine.board.cores.len();
    let own = all.get(index).cloned().unwrap_or_default();
    let (Some(function), Some(range), Some(doorbells)) = (
        machine.functions.get(index).copied(),
        machine.board.windows.get(index).cloned(),
        machine.take_doorbells(index),
    ) else {
        give_up(format_args!("enclave {index}: its doorbell page is taken"))
    };
    // Each core's log lies with its enclave. The supervisor's lies with the first, as those of cores that nobody has.
    let mask = |cores: &Range<usize>| cores.clone().fold(0u32, |mask, core| mask | 1 << core);
    let others = all.iter().skip(1).fold(0u32, |all, cores| all | mask(cores));
    let logged = if index == 0 { !others } else { mask(&own) };
    let cpus = function.vectors.min(CPUS_MAX);
    // A frequency that can't be is none: the timer has refused it before.
    let counter_hz = u32::try_from(timer::frequency_hz()).unwrap_or(0);
    let wanted = Wanted { cores: cores as u16, logged, cpus, features, counter_hz, origin: &machine.origin };
    // SAFETY: the board's window, which the map has as data; nobody else here reaches it.
    let window = match unsafe { window::lay_out(&range, function.doorbell_page, wanted) } {
        Ok(window) => Box::leak(Box::new(window)),
        Err(error) => give_up(format_args!("enclave {index}: {error}")),
    };
    // An agent can ring its own function: it is not to wake others' cores by that.
    let wakes = |vector| vector == SUPERVISOR_VECTOR || own.contains(&usize::from(vector));
    if let Err(error) = machine.receive_vectors(index, wakes) {
        give_up(format_args!("enclave {index}: {error}"));
    }
    Held {
        index,
        cores: own,
        helpers: [Helper::default(); CORES_MAX],
        cpus,
        enclave: Enclave::new(cpus),
        host: SlotReader::default(),
        manager: SlotReader::default(),
        doorbells,
        window,
        places: [None, None],
        began: Resume::default(),
        epitaphs: 0,
        fallen: None,
    }
}

/// An enclave, with what it has of the machine.
struct Held {
    index: usize,
    /// Its cores. The first leads: the agent's life is its life, and the others follow.
    cores: Range<usize>,
    /// Whom each core but the first was lent to last.
    helpers: [Helper; CORES_MAX],
    cpus: u16,
    enclave: Enclave,
    host: SlotReader,
    manager: SlotReader,
    doorbells: DoorbellPage<'static>,
    window: &'static window::LaidOut,
    places: [Option<LaidOut>; 2],
    /// Where the agent that runs has begun, as far as is known.
    began: Resume,
    /// Epitaphs written.
    epitaphs: u32,
    /// How the agent ended on a core that follows, while the leader does not know yet.
    fallen: Option<End>,
}

/// Whom a core that follows was lent to last. An agent gets it once: what ends there ends the agent.
#[derive(Clone, Copy, Default)]
struct Helper {
    incarnation: u32,
    /// It has not come back.
    runs: bool,
}

/// An agent, as its core number `number` needs to know it.
fn lent(
    place: &LaidOut,
    number: usize,
    incarnation: u32,
    session: u32,
    goes_on: Option<(&'static window::LaidOut, Resume)>,
) -> Lent {
    Lent {
        space: place.space,
        entry: place.entry(),
        number,
        incarnation,
        session,
        memory: place.own_memory(),
        grant: place.grant_page(),
        goes_on,
    }
}

struct Supervisor {
    shared: &'static Shared,
    pages: Pages,
    enclaves: Vec<Held>,
    cores: usize,
    /// The loader's routine and when to call it without a host, in µs, while the image is on trial.
    trial: Option<(u64, u64)>,
    /// The disk, if the loader has left one.
    disk: Option<CardDisk>,
}

impl Held {
    fn leader(&self) -> usize {
        self.cores.start
    }

    fn core(&self) -> &'static Core {
        cores::core(self.leader())
    }

    /// Our own number in the enclave's domain; no peer has the last one.
    fn peer(&self) -> u16 {
        self.doorbells.position().unwrap_or(u16::MAX)
    }

    /// Writes the agent's control line in its stead.
    fn report(&self, state: AgentState, session: u32, version: Version) {
        let before = self.window.agent();
        self.window.report(&AgentControl {
            state,
            core: self.leader() as u8,
            asleep: false,
            peer: self.peer(),
            vector: SUPERVISOR_VECTOR,
            session,
            version,
            incarnation: self.enclave.incarnation(),
            // What the dead had counted still holds; who never ran has counted nothing.
            ..match before {
                Some(before) if before.session == session => before,
                _ => AgentControl::NOTHING,
            }
        });
    }

    /// Says why an agent ended.
    fn bury(&mut self, end: &End, place: Place, cause: Cause) {
        let core = self.leader() as u8;
        let mut epitaph = end.epitaph.unwrap_or_else(|| {
            // It has given its core back: nobody but us can say how that was.
            let mut epitaph = Epitaph::new(cause, core);
            epitaph.session = self.core().session.load(Ordering::Relaxed);
            epitaph.time_ns = cores::shared().map_or(0, |shared| shared.timer.now_ns());
            epitaph
        });
        if epitaph.cause != cause || end.epitaph.is_none() {
            epitaph.set_text(match cause {
                Cause::Late => "it owed its host a decision for too long",
                Cause::Flood => "it rang without deciding",
                Cause::Poison => "it broke the protocol",
                Cause::Exit => "it gave its core back unasked",
                Cause::Abort => "it did not give its core back",
                _ => epitaph.cause.name(),
            });
            epitaph.cause = cause;
        }
        let heard = self.window.resume(end.began).taken;
        epitaph.messages = heard.into();
        self.epitaphs += 1;
        let place = self.places.get(place).and_then(Option::as_ref);
        let record = EpitaphRecord {
            epitaph,
            incarnation: end.came.incarnation,
            image_crc: place.map_or(0, |place| place.header.crc),
            number: self.epitaphs,
            name: place.map_or([0; neap_abi::image::NAME_BYTES], |place| place.header.name),
            last_message: self.window.line_before(heard),
        };
        if let Some(region) = self.window.epitaphs_of(core.into()) {
            window::bury(&region, &record);
        }
        say!("neap: enclave {}: agent {} ended: {}", self.index, record.name(), Summary(&epitaph));
        defmt::warn!("enclave {=usize}: agent {=u32} has ended", self.index, end.came.incarnation);
    }

    /// What the agent of `start` is granted.
    fn grant(&self, start: &Start, args_idle: Idle, host_wakes: bool) -> Grant {
        let image = self.places.get(start.place).and_then(Option::as_ref).map(|place| place.header.version);
        let page = neap_hal::soc::dma::registers::PAGE_BYTES as u32;
        let buffer = &self.window.shared.buffer;
        Grant {
            version: image.map_or(start.accepted.version, |built| built.min(start.accepted.version)),
            core: self.leader() as u8,
            cores: self.cores_for(start.place) as u8,
            session: start.accepted.session,
            incarnation: start.incarnation,
            message_lines: self.window.messages.len() as u32,
            slots: start.accepted.cpus,
            host_peer: start.accepted.peer,
            wake_peer: self.peer(),
            wake_vector: self.leader() as u16,
            idle_polls: match args_idle {
                Idle::Spin => 0,
                Idle::Poll(polls) => polls.get(),
            },
            sleep_ns: if host_wakes { SLEEP_NS } else { NAP_NS },
            taken: 0,
            resyncs: 0,
            tasks: self.window.tasks,
            dma_bytes: page,
            buffer_bytes: (buffer.end - buffer.start) as u32,
            clock: self.enclave.clock(),
        }
    }

    /// How many of the enclave's cores the agent in a place can use.
    fn cores_for(&self, place: Place) -> usize {
        let place = self.places.get(place).and_then(Option::as_ref);
        place.map_or(1, |place| self.cores.len().min(place.header.cores.into()))
    }

    /// The agent of `start`, ready to be lent to the core: granted, and as fresh as its image unless it waits beside the
    /// one that runs, where it is so already.
    fn ready(&mut self, start: &Start, shared: &Shared) -> Option<Lent> {
        let grant = self.grant(start, shared.args.idle, shared.message_frame.is_some());
        let goes_on = start.resumes.then_some((self.window, self.began));
        let place = self.places.get_mut(start.place)?.as_mut()?;
        place.set_grant(&grant);
        Some(lent(place, 0, start.incarnation, start.accepted.session, goes_on))
    }

    /// Sees to the cores that follow the leader: those on which an agent runs that is not the leader's any more are taken
    /// back, and those that are free are lent to the one that is. True when none runs for another.
    fn lead(&mut self, runs: bool) -> bool {
        let incarnation = if runs { self.enclave.incarnation() } else { 0 };
        let place = self.enclave.current();
        let wanted = self.cores_for(place);
        let mut settled = true;
        for (number, core) in self.cores.clone().enumerate().skip(1) {
            let entry = cores::core(core);
            while let Ok(end) = entry.heard_of() {
                self.follower_ended(core, &end);
            }
            let Some(helper) = self.helpers.get_mut(core) else { continue };
            if helper.runs && helper.incarnation != incarnation {
                entry.abort(helper.incarnation);
                settled = false;
            } else if helper.incarnation != incarnation
                && incarnation != 0
                && number < wanted
                && entry.state() == CoreState::Ready
            {
                let session = self.core().session.load(Ordering::Relaxed);
                if let Some(laid_out) = self.places.get(place).and_then(Option::as_ref) {
                    self.helpers[core % CORES_MAX] = Helper { incarnation, runs: true };
                    entry.give(lent(laid_out, number, incarnation, session, None));
                }
            }
        }
        settled
    }

    /// A core that follows the leader has come back. What it did there is the whole agent's doing.
    fn follower_ended(&mut self, core: usize, end: &End) {
        let helper = &mut self.helpers[core % CORES_MAX];
        helper.runs = false;
        let incarnation = helper.incarnation;
        let place = self.places.get(self.enclave.current()).and_then(Option::as_ref);
        let asked = place.is_some_and(|place| place.revoke().load(Ordering::Relaxed) != 0);
        let aborted = end.came.cause == Some(Cause::Abort) || asked && end.came.cause.is_none();
        let told = self.fallen.as_ref().is_some_and(|fallen| fallen.came.incarnation == incarnation);
        if incarnation == self.enclave.incarnation() && !aborted && !told {
            self.fallen = Some(End { came: end.came, began: end.began, epitaph: end.epitaph });
            self.core().abort(incarnation);
        }
    }

    /// Waits until no core runs for an agent that has ended: an interrupt's time. False if one does not come back; what it
    /// runs in must then stay.
    fn all_back(&mut self, runs: bool, now_us: impl Fn() -> u64) -> bool {
        let begun_us = now_us();
        while !self.lead(runs) {
            if now_us() - begun_us > FOLLOW_US {
                say!("neap: enclave {}: a core does not come back from its agent", self.index);
                return false;
            }
            power::relax();
        }
        true
    }
}

impl Supervisor {
    /// Looks at every enclave and does what follows; bounded. Returns how long it may sleep, in µs.
    fn look(&mut self) -> u64 {
        let mut sleep_us = self.look_at_disk();
        for index in 0..self.enclaves.len() {
            if let Some(deadline_us) = self.attend(index) {
                sleep_us = sleep_us.min(deadline_us.saturating_sub(self.now_us()));
            }
        }
        self.confirm();
        self.keep_books();
        sleep_us
    }

    /// Tells whoever has asked for the disk what became of it. Returns when to look again, in µs.
    fn look_at_disk(&mut self) -> u64 {
        if let Some(disk) = &mut self.disk
            && let Some(asked) = disk.asked
            && let Some(held) = self.enclaves.get_mut(asked.index)
        {
            match disk.ended(&asked, held.window.image.slice().unwrap_or_default()) {
                Some(reply) => held.enclave.reached(asked.request, reply, disk.sectors),
                None => return DISK_LOOK_US,
            }
        }
        LOOK_US
    }

    /// Confirms an image on trial, once: when a host is content with an agent, or when none has come.
    fn confirm(&mut self) {
        let Some((routine, alone_us)) = self.trial else { return };
        let hosts = || self.enclaves.iter().filter_map(|held| held.enclave.contents_host());
        let whole = || (1..self.cores).all(|core| cores::core(core).state() == CoreState::Ready);
        if hosts().any(|content| content) || hosts().next().is_none() && self.now_us() > alone_us && whole() {
            self.trial = None;
            // SAFETY: the loader's, which the map has as text; called once, and by this core only.
            let status = unsafe { resident::confirm(routine) };
            say!("neap: confirmed: {status:#x}");
        }
    }

    fn now_us(&self) -> u64 {
        self.shared.timer.now_ns() / 1000
    }

    /// Looks at one enclave. Returns when it wants to be looked at again though nothing happens.
    fn attend(&mut self, index: usize) -> Option<u64> {
        let now_us = self.now_us();
        let held = self.enclaves.get_mut(index)?;
        if let Some(taken) = held.host.take(held.window.host_control) {
            held.enclave.host(&taken.payload);
        }
        let managed = held.manager.take(held.window.manager).map(|taken| taken.payload);
        self.hear_of_ends(index, now_us);
        if let Some(payload) = managed {
            self.manage(index, &payload, now_us);
        }
        for _ in 0..STEPS_MAX {
            let core = self.hear_of_ends(index, now_us)?;
            let held = self.enclaves.get_mut(index)?;
            match held.enclave.step(core, now_us) {
                Action::Rest => {
                    held.lead(core == CoreState::Running);
                    return held.enclave.deadline_us();
                }
                action => self.act(index, action)?,
            }
        }
        Some(now_us)
    }

    /// Takes note of the ends on an enclave's core; where the core stands after them.
    fn hear_of_ends(&mut self, index: usize, now_us: u64) -> Option<CoreState> {
        let held = self.enclaves.get_mut(index)?;
        loop {
            let mut end = match held.core().heard_of() {
                Ok(end) => end,
                Err(state) => return Some(state),
            };
            held.began = end.began;
            // If another of its cores was to blame, that is what is told.
            if let Some(fallen) =
                held.fallen.take_if(|fallen| fallen.came.incarnation == end.came.incarnation)
            {
                let cause = fallen.came.cause.or(Some(Cause::Exit));
                end = End { came: Came { cause, ..end.came }, epitaph: fallen.epitaph, ..end };
            }
            // After this it may be another's turn.
            let place = held.enclave.current();
            if let Some(cause) = held.enclave.came_back(end.came, now_us) {
                held.bury(&end, place, cause);
            }
        }
    }

    /// Does one action. None if the enclave is not there.
    fn act(&mut self, index: usize, action: Action) -> Option<()> {
        let shared = self.shared;
        match action {
            Action::Rest => {}
            Action::Prepare { policy, place } => self.prepare(index, policy, place),
            Action::Start(start) => {
                let held = self.enclaves.get_mut(index)?;
                if !start.resumes {
                    held.window.clear();
                    held.began = Resume::default();
                }
                if !held.all_back(false, || shared.timer.now_ns() / 1000) {
                    return None;
                }
                held.places.get_mut(start.place)?.as_mut()?.refresh();
                let lent = held.ready(&start, shared)?;
                defmt::info!(
                    "session {=u32}: agent {=u32} starts",
                    start.accepted.session,
                    start.incarnation
                );
                held.core().give(lent);
            }
            Action::HandOver(start) => {
                let held = self.enclaves.get_mut(index)?;
                let lent = held.ready(&start, shared)?;
                held.core().give_next(lent);
                self.revoke(index)?;
            }
            Action::Revoke => self.revoke(index)?,
            Action::Abort => {
                let held = self.enclaves.get(index)?;
                held.core().abort(held.enclave.incarnation());
            }
            Action::Forget(place) => self.forget(index, place),
            Action::Revive => {
                let leader = self.enclaves.get(index)?.leader();
                if !self.revive(leader) {
                    // It takes its time to be off; it is asked again with the next look.
                    return None;
                }
            }
            Action::Report { state, session, version } => {
                let held = self.enclaves.get(index)?;
                held.report(state, session, version);
                defmt::warn!("session {=u32}: agent is {=str}", session, name(state));
            }
            Action::Answer { request, reply, detail } => {
                let held = self.enclaves.get(index)?;
                let incarnation = held.enclave.incarnation();
                let line = ReplyLine { reply, request, detail, incarnation };
                held.window.tell(REPLY_LINE, &line.to_payload());
            }
        }
        Some(())
    }

    fn revoke(&mut self, index: usize) -> Option<()> {
        let held = self.enclaves.get(index)?;
        let place = held.places.get(held.enclave.current())?.as_ref()?;
        place.revoke().store(1, Ordering::Release);
        held.core().wake();
        Some(())
    }

    /// Lays the bundle's agent for `policy` out in a place of an enclave.
    fn prepare(&mut self, index: usize, policy: u32, place: Place) {
        self.forget(index, place);
        let laid_out = self.take_from_bundle(index, place, policy);
        if let Some(held) = self.enclaves.get_mut(index) {
            held.enclave.prepared(policy, laid_out.map(|_| ()).map_err(|_| AgentState::RefusedPolicy));
        }
    }

    /// Lays an agent of the bundle out; its policy.
    fn take_from_bundle(&mut self, index: usize, place: Place, policy: u32) -> Result<u32, (Reply, u64)> {
        let image = bundle::find(policy).ok_or((Reply::NoPolicy, 0))?.image().ok_or((Reply::NoPolicy, 0))?;
        let pages = self.pages_for(image.len())?;
        self.take_in(index, place, pages, |to| to.copy_from_slice(&image))
    }

    /// Lays out what a manager brings; its policy.
    fn take_from_window(&mut self, index: usize, place: Place, bytes: usize) -> Result<u32, (Reply, u64)> {
        let region = self.enclaves.get(index).ok_or((Reply::NoAgent, 0))?.window.image;
        let staged = region.slice::<AtomicU8>().unwrap_or_default();
        let staged = staged.get(..bytes.min(IMAGE_BYTES_MAX)).unwrap_or(staged);
        let pages = self.pages_for(staged.len())?;
        // A copy first: the host can write what it likes while we look, but not to this.
        self.take_in(index, place, pages, |to| {
            for (to, byte) in to.iter_mut().zip(staged) {
                *to = byte.load(Ordering::Relaxed);
            }
        })
    }

    fn pages_for(&mut self, bytes: usize) -> Result<(Run, usize), (Reply, u64)> {
        let run = self.pages.take((bytes as u64).div_ceil(PAGE_BYTES) as u32);
        run.map(|run| (run, bytes)).ok_or((Reply::NoMemory, 0))
    }

    /// Fills pages with an image, checks it and lays it out; its policy.
    fn take_in(
        &mut self,
        index: usize,
        place: Place,
        (run, bytes): (Run, usize),
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<u32, (Reply, u64)> {
        let mut image = Image::new(run, bytes);
        fill(image.bytes_mut());
        let checked = ImageHeader::check(image.bytes(), VERSION);
        let result = match checked {
            Ok(header) => self.lay_out(index, place, image, header).map(|()| header.policy),
            Err(error) => Err(((Reply::RefusedImage, error.to_bits()), image)),
        };
        result.map_err(|(refusal, image)| {
            image.give_back(&mut self.pages);
            if let Err(error) = checked {
                // In full its words would be among the image's longest; the host has the number, and says all.
                say!("neap: enclave {index}: an image: {}", ImageError::in_words(error.to_bits()));
            }
            refusal
        })
    }

    fn forget(&mut self, index: usize, place: Place) {
        let timer = self.shared.timer;
        let Some(held) = self.enclaves.get_mut(index) else { return };
        let runs = held.core().state() == CoreState::Running;
        if !held.all_back(runs, || timer.now_ns() / 1000) {
            return;
        }
        if let Some(laid_out) = held.places.get_mut(place).and_then(Option::take) {
            laid_out.give_back(&mut self.pages);
        }
    }

    fn lay_out(
        &mut self,
        index: usize,
        place: Place,
        image: Image,
        header: ImageHeader,
    ) -> Result<(), ((Reply, u64), Image)> {
        let Some(held) = self.enclaves.get_mut(index) else { return Err(((Reply::NoAgent, 0), image)) };
        let asid = (2 * index + place + 1) as u8;
        let cores = held.cores.len().min(header.cores.into()) as u16;
        let laid_out =
            LaidOut::new(image, header, &held.window.shared, cores, self.shared.map, asid, &mut self.pages);
        let mut laid_out = laid_out.map_err(|(error, image)| {
            if let LayOutError::Map(error) = error {
                say!("neap: enclave {index}: {error}");
            }
            ((Reply::NoMemory, 0), image)
        })?;
        laid_out.refresh();
        if let Some(place) = held.places.get_mut(place) {
            *place = Some(laid_out);
        }
        Ok(())
    }

    /// Does what a manager asks.
    fn manage(&mut self, index: usize, payload: &neap_abi::Payload, now_us: u64) {
        let line = ManagerLine::from_payload(payload);
        let Some(held) = self.enclaves.get_mut(index) else { return };
        match held.enclave.manage(line, now_us) {
            Demand::Nothing => {}
            Demand::Audit => held.enclave.audited(audit::damaged()),
            Demand::Disk(line) => {
                let region = held.window.image.slice().unwrap_or_default();
                let is_trial = self.trial.is_some();
                let begun = match &mut self.disk {
                    Some(disk) => disk.begin(index, &line, region, is_trial),
                    None => Err(Reply::NoDisk),
                };
                if let Err(reply) = begun {
                    held.enclave.reached(line.request, reply, 0);
                }
            }
            Demand::LayOut { place, image_bytes, policy } => {
                // What lay there is forgotten before anything new comes.
                if let Some(place) = held.enclave.take_forgotten() {
                    self.forget(index, place);
                }
                let result = match image_bytes {
                    0 => self.take_from_bundle(index, place, policy),
                    bytes => self.take_from_window(index, place, bytes as usize),
                };
                let grace_us = line.map_or(0, |line| line.grace_us);
                if let Some(held) = self.enclaves.get_mut(index) {
                    held.enclave.laid_out(result, grace_us, now_us);
                }
            }
        }
    }

    /// Writes what has changed in the books of every enclave.
    fn keep_books(&mut self) {
        let (pages, pages_free) = (self.pages.count(), self.pages.free());
        let agents = 1..self.cores;
        let state = |core: usize| cores::core(core).state();
        let cores_free = agents.clone().filter(|core| state(*core) != CoreState::Running).count() as u8;
        let cores_lost = agents.clone().filter(|core| state(*core) == CoreState::Dead).count() as u8;
        let now_us = self.now_us();
        for held in &self.enclaves {
            let books = Books {
                pages,
                pages_free,
                cores: agents.len() as u8,
                cores_free,
                cores_lost,
                restart_in_ms: held
                    .enclave
                    .restart_us()
                    .map_or(0, |due_us| (due_us.saturating_sub(now_us) / 1000) as u32),
                epitaphs: held.epitaphs,
                pages_held: held.places.iter().flatten().map(LaidOut::pages).sum(),
                ..held.enclave.tally()
            };
            held.window.tell(BOOKS_LINE, &books.to_payload());
            held.tell_agents();
        }
    }

    /// Starts a core again, if firmware has turned it off by now.
    fn revive(&mut self, number: usize) -> bool {
        let affinity = self.shared.affinities.get(number);
        let off = affinity.is_some_and(|&affinity| psci::is_off(self.shared.conduit, affinity));
        if off {
            // SAFETY: the core is off.
            unsafe { log::reset(number) };
            end::reset(number);
            cores::core(number).forget();
            self.start_core(number);
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

impl Held {
    /// Writes which agents there are, and what the running one is bound to.
    fn tell_agents(&self) {
        let enclave = &self.enclave;
        let place = |place: Option<Place>| place.and_then(|place| self.places.get(place)?.as_ref());
        let running = place(Some(enclave.current()));
        let identity = |laid_out: Option<&LaidOut>, incarnation, on_trial| {
            laid_out.map(|laid_out| laid_out.identity(incarnation, on_trial)).unwrap_or_default().to_payload()
        };
        self.window.tell(RUNNING_LINE, &identity(running, enclave.incarnation(), enclave.on_trial()));
        self.window.tell(STANDBY_LINE, &identity(place(enclave.newcomer()), 0, false));
        // The cores in one line: which is the first, and how many.
        let core = Binding {
            kind: BindingKind::Core,
            rights: 0,
            device: false,
            address: self.leader() as u64,
            physical: 0,
            bytes: self.cores_for(enclave.current()) as u64,
        };
        let counter = Binding { kind: BindingKind::Counter, rights: 1, address: 0, bytes: 0, ..core };
        // Of the stacks the first stands for all.
        let mut stacks = 0;
        let own = running.into_iter().flat_map(LaidOut::bindings).filter(|binding| {
            stacks += usize::from(binding.kind == BindingKind::Stack);
            binding.kind != BindingKind::Stack || stacks == 1
        });
        let all = [core, counter].into_iter().filter(|_| running.is_some()).chain(own);
        let mut lines = all.map(|binding| binding.to_payload()).chain(core::iter::repeat([0; 8]));
        for (number, payload) in (BINDINGS_LINE..BINDINGS_LINE + BINDINGS_MAX).zip(&mut lines) {
            self.window.tell(number, &payload);
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
        AgentState::GivenUp => "given up",
    }
}
