//! The supervisor of an agent on the host: one boot of what stands in for an IPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_abi::control::came_after;
use neap_abi::epitaph::EPITAPHS_KEPT;
use neap_abi::hello::{Link, feature};
use neap_abi::image::NAME_BYTES;
use neap_abi::supervisor::{BOOKS_LINE, Identity, REPLY_LINE, RUNNING_LINE};
use neap_abi::{
    AgentControl, AgentState, Books, Cause, Epitaph, EpitaphRecord, Hello, HostCommand, HostControl, Layout,
    Manage, ManagerLine, Payload, RegionKind, Reply, ReplyLine, Version,
};
use neap_agent::{Bindings, Doorbell};
use neap_policies::Task;
use neap_queue::{Line, SlotReader, SlotWriter};
use neap_vipu::Peer;

use super::mischief::{AGENT_VECTOR, ENDED, Nap};
use super::{LOOK, Mischief, OnHostError, Settings};
use crate::ledger::{HOST_COUNTER_HZ, host_ticks};
use crate::policies;
use crate::window::{HostWindow, HostWindowError};

/// The core that the agent is said to have.
const CORE: u8 = 1;
/// Cores that the IPU is said to have.
const CORES: u16 = 2;
/// In the word by which the supervisor wants its core back: it wants it.
const WANTED: u64 = 1;

struct HostBell<'p> {
    peer: &'p Peer,
    host: u16,
}

impl Doorbell for HostBell<'_> {
    fn ring(&self, cpu: u16) {
        // A host that has gone away hears nothing; the supervisor learns of it.
        let _ = self.peer.ring(self.host, cpu);
    }

    fn ticks(&self) -> u64 {
        host_ticks()
    }
}

/// What ends an agent.
enum Word {
    /// The host has said something else.
    Host(HostControl),
    /// The manager wants it to end.
    Manage(ManagerLine),
    /// It ended by itself.
    Ended,
    /// All is over.
    Over,
}

/// The manager's lines.
struct Office<'w> {
    manager: &'w Line,
    supervisor: &'w [Line],
    reader: SlotReader,
    books: Books,
    /// The session's policy.
    policy: u32,
}

impl Office<'_> {
    fn write(&self, at: usize, payload: &Payload) {
        if let Some(line) = self.supervisor.get(at) {
            SlotWriter::after(line).write(line, payload, 0);
        }
    }

    fn answer(&self, request: u32, reply: Reply, incarnation: u32) {
        self.write(BOOKS_LINE, &self.books.to_payload());
        self.write(REPLY_LINE, &ReplyLine { reply, request, detail: 0, incarnation }.to_payload());
    }

    /// The next request that ends the agent; the others are answered on the spot.
    fn request(&mut self, incarnation: u32) -> Option<ManagerLine> {
        let line = match ManagerLine::from_payload(&self.reader.take(self.manager)?.payload) {
            Ok(line) => line,
            Err(request) => {
                self.books.commands_refused += 1;
                self.answer(request, Reply::UnknownCommand, incarnation);
                return None;
            }
        };
        let reply = match line.command {
            // Who is condemned has ended, and its successor has done nothing.
            _ if line.incarnation != 0 && came_after(incarnation, line.incarnation) => Reply::Done,
            Manage::Kill
            | Manage::Replace
            | Manage::CondemnLate
            | Manage::CondemnFlood
            | Manage::CondemnPoison => return Some(line),
            Manage::None | Manage::Audit | Manage::Unload => Reply::Done,
            Manage::Load if line.image_bytes > 0 => {
                self.books.images_refused += 1;
                Reply::RefusedImage
            }
            Manage::Load if line.policy == self.policy => Reply::Done,
            Manage::Load => Reply::NoPolicy,
            Manage::ReadDisk | Manage::WriteDisk => Reply::NoDisk,
        };
        self.answer(line.request, reply, incarnation);
        None
    }
}

/// One boot.
pub(super) struct Boot<'w> {
    peer: &'w Peer,
    window: &'w HostWindow,
    settings: Settings,
    hello: Hello,
    messages: &'w [Line],
    slots: &'w [Line],
    control: &'w Line,
    host_line: &'w Line,
    host_reader: SlotReader,
    office: Option<Office<'w>>,
    incarnation: u32,
}

impl<'w> Boot<'w> {
    /// Lays out the window.
    pub(super) fn new(
        peer: &'w Peer,
        window: &'w HostWindow,
        settings: Settings,
        boot: u32,
    ) -> Result<Self, OnHostError> {
        let Settings { message_lines, version, .. } = settings;
        let layout = Layout { message_lines, ..Layout::usual(window.bytes(), CORES) };
        let features = feature::GROUPS | feature::SLEEPS | feature::MESSAGE_CLOCK | feature::HOST_CLOCK;
        let mut hello = layout.hello(boot, features, Link::Coherent)?;
        hello.counter_hz = HOST_COUNTER_HZ;
        let managed = version >= Version::AGENTS_COME_AND_GO;
        if !managed {
            hello = without_managers(&hello);
        }
        hello.version = version;
        let lines = |kind| window.lines(&hello, kind);
        let messages = lines(RegionKind::Messages)?;
        let slots = lines(RegionKind::Slots)?;
        let control = &lines(RegionKind::AgentControl)?[0];
        let host_line = &lines(RegionKind::HostControl)?[0];
        let office = if managed {
            let (manager, supervisor) = (&lines(RegionKind::Manager)?[0], lines(RegionKind::Supervisor)?);
            let mut reader = SlotReader::default();
            // What was asked of the IPU before this boot is over.
            reader.take(manager);
            let books = Books { cores: 1, cores_free: 1, ..Books::default() };
            Some(Office { manager, supervisor, reader, books, policy: 0 })
        } else {
            None
        };
        window.set_hello(&hello).map_err(HostWindowError::Hello)?;
        let mut host_reader = SlotReader::default();
        if boot > 1 {
            // As above.
            host_reader.take(host_line);
        }
        Ok(Self {
            peer,
            window,
            settings,
            hello,
            messages,
            slots,
            control,
            host_line,
            host_reader,
            office,
            incarnation: 0,
        })
    }

    /// Runs agents, of which there were `agents` before, until all is over; or until the IPU goes away, for so long.
    pub(super) fn run(
        mut self,
        over: &(impl Fn() -> bool + Sync),
        agents: &mut u32,
    ) -> Result<Option<Duration>, OnHostError> {
        let version = self.settings.version;
        self.report(AgentState::Waiting, 0, version);
        let mut asked = self.host_word(over);
        while let Some(host) = asked {
            if host.command != HostCommand::Attach {
                self.report(AgentState::Stopped, host.session, version);
                asked = self.host_word(over);
                continue;
            }
            match host.admit(version, self.hello.cpus, &policies::NUMBERS) {
                Err(state) => {
                    self.report(state, host.session, version);
                    asked = self.host_word(over);
                }
                Ok(agreed) => match self.session(host, agreed, over, agents)? {
                    Some(Word::Host(next)) => asked = Some(next),
                    Some(_) => return Ok(None),
                    None => {
                        let Mischief::Leave { away_ms } = self.settings.mischief else { return Ok(None) };
                        return Ok(Some(Duration::from_millis(away_ms)));
                    }
                },
            }
        }
        Ok(None)
    }

    /// One session: agent after agent, until the host says something else or all is over. None when the IPU goes away.
    fn session(
        &mut self,
        host: HostControl,
        agreed: Version,
        over: &(impl Fn() -> bool + Sync),
        agents: &mut u32,
    ) -> Result<Option<Word>, OnHostError> {
        // As on the IPU, lines of an earlier session must prove nothing in this one.
        self.messages.iter().chain(self.slots).for_each(Line::clear);
        let mut memory = vec![Task::default(); self.hello.tasks as usize];
        let (mut taken, mut resyncs) = (0, 0);
        loop {
            *agents += 1;
            self.incarnation += 1;
            self.introduce(host.policy);
            let word = self.agent(&host, agreed, (taken, resyncs), over, *agents, &mut memory)?;
            let last = AgentControl::from_payload(&self.control.read_any().map_or([0; 8], |(line, _)| line));
            let last = last.unwrap_or(AgentControl::NOTHING);
            (taken, resyncs) = (last.credits, last.resyncs.wrapping_add(1));
            let (command, request) = match &word {
                Word::Host(_) | Word::Over => return Ok(Some(word)),
                Word::Manage(line) => (line.command, Some(line.request)),
                Word::Ended => (Manage::None, None),
            };
            let cause = match command {
                Manage::CondemnLate => Some(Cause::Late),
                Manage::CondemnFlood => Some(Cause::Flood),
                Manage::CondemnPoison => Some(Cause::Poison),
                Manage::None => Some(Cause::Exit),
                _ => None,
            };
            if let Some(cause) = cause {
                self.bury(cause, &host, &last);
            }
            if command == Manage::None {
                self.report(AgentState::Dead, host.session, agreed);
                if let Mischief::Leave { .. } = self.settings.mischief {
                    return Ok(None);
                }
                if let Some(word) = self.rest(over) {
                    return Ok(Some(word));
                }
            }
            if let Some(office) = &mut self.office {
                let books = &mut office.books;
                books.faults += u32::from(cause.is_some());
                books.epitaphs += u32::from(cause.is_some());
                books.revocations += u32::from(command == Manage::Kill);
                books.replacements += u32::from(command == Manage::Replace);
                books.restarts += u32::from(command != Manage::Replace);
                if let Some(request) = request {
                    office.answer(request, Reply::Done, self.incarnation + 1);
                }
            }
        }
    }

    /// Runs one agent to its end, and says what ended it.
    fn agent(
        &mut self,
        host: &HostControl,
        agreed: Version,
        (taken, resyncs): (u32, u32),
        over: &(impl Fn() -> bool + Sync),
        number: u32,
        memory: &mut [Task],
    ) -> Result<Word, OnHostError> {
        let revoke = AtomicU64::new(0);
        let (peer, control, messages) = (self.peer, self.control, self.messages);
        let slots = &self.slots[..usize::from(host.cpus)];
        let bindings = Bindings {
            slots,
            control,
            revoke: &revoke,
            doorbell: HostBell { peer, host: host.peer },
            core: CORE,
            wake: (peer.id(), AGENT_VECTOR),
            session: host.session,
            version: agreed,
            incarnation: if agreed >= Version::AGENTS_COME_AND_GO { self.incarnation } else { 0 },
            taken,
            resyncs,
            clock: host.clock,
        };
        let villain = number <= self.settings.villains;
        let mischief = if villain { self.settings.mischief } else { Mischief::None };
        let after = taken.wrapping_add(self.settings.after_messages);
        let began = Instant::now();
        let mut nap = Nap { peer, host: host.peer, slots, control, revoke: &revoke, mischief, after, began };
        std::thread::scope(|scope| {
            let supervisor = scope.spawn(|| {
                let word = self.word(&revoke, over);
                revoke.fetch_or(WANTED, Ordering::Relaxed);
                let _ = peer.ring(peer.id(), AGENT_VECTOR);
                word
            });
            let ended = policies::start(host.policy, bindings, messages, memory, &mut nap);
            if ended.is_err() {
                revoke.fetch_or(ENDED, Ordering::Relaxed);
            }
            // A supervisor that panicked is a run that is over.
            let word = supervisor.join().unwrap_or(Word::Over);
            ended.map(|_| word).map_err(OnHostError::Agent)
        })
    }

    /// Waits for what ends the agent.
    fn word(&mut self, revoke: &AtomicU64, over: &(impl Fn() -> bool + Sync)) -> Word {
        while !over() {
            // Peers that join are announced on the socket.
            if self.peer.poll_changes().is_err() {
                return Word::Over;
            }
            if revoke.load(Ordering::Relaxed) & ENDED != 0 {
                return Word::Ended;
            }
            if let Some(host) = self.new_host_word() {
                return Word::Host(host);
            }
            if let Some(line) = self.office.as_mut().and_then(|office| office.request(self.incarnation)) {
                return Word::Manage(line);
            }
            std::thread::sleep(LOOK);
        }
        Word::Over
    }

    /// The time from an agent's end to the next one's start; what ends the session meanwhile.
    fn rest(&mut self, over: &(impl Fn() -> bool + Sync)) -> Option<Word> {
        let Mischief::Die { down_ms } = self.settings.mischief else { return None };
        let ended = Instant::now();
        while ended.elapsed() < Duration::from_millis(down_ms) {
            if over() {
                return Some(Word::Over);
            }
            if let Some(host) = self.new_host_word() {
                return Some(Word::Host(host));
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Waits for the host's next word.
    fn host_word(&mut self, over: &(impl Fn() -> bool + Sync)) -> Option<HostControl> {
        while !over() {
            self.peer.poll_changes().ok()?;
            if let Some(host) = self.new_host_word() {
                // Its vectors must be known before the first doorbell.
                let _ = self.peer.wait_peer(host.peer, Duration::from_secs(1));
                return Some(host);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// The host's word, if it is new. One that only confirms an agent is none.
    fn new_host_word(&mut self) -> Option<HostControl> {
        let host = HostControl::from_payload(&self.host_reader.take(self.host_line)?.payload)?;
        let agent = AgentControl::from_payload(&self.control.read_any()?.0)?;
        let same = host.command == HostCommand::Attach
            && host.session == agent.session
            && !matches!(agent.state, AgentState::Waiting | AgentState::Stopped);
        (!same).then_some(host)
    }

    /// Says which agent runs.
    fn introduce(&mut self, policy: u32) {
        let Some(office) = &mut self.office else { return };
        office.policy = policy;
        office.books.started += 1;
        office.books.cores_free = 0;
        let identity = Identity {
            name: name(policy),
            image_crc: 0,
            on_trial: false,
            incarnation: self.incarnation,
            version: self.settings.version.to_bits(),
            policy,
        };
        office.write(RUNNING_LINE, &identity.to_payload());
        office.write(BOOKS_LINE, &office.books.to_payload());
    }

    /// Leaves an epitaph, before those that are there.
    fn bury(&self, cause: Cause, host: &HostControl, last: &AgentControl) {
        let region = self.window.region_bytes(&self.hello, RegionKind::Epitaph, u16::from(CORE));
        let before: Vec<EpitaphRecord> = EpitaphRecord::all(&region.unwrap_or_default()).collect();
        let mut epitaph = Epitaph::new(cause, CORE);
        epitaph.session = host.session;
        epitaph.messages = u64::from(last.credits);
        let record = EpitaphRecord {
            epitaph,
            incarnation: self.incarnation,
            image_crc: 0,
            number: before.first().map_or(1, |last| last.number.wrapping_add(1)),
            name: name(host.policy),
            last_message: None,
        };
        let records = std::iter::once(&record).chain(&before).take(EPITAPHS_KEPT);
        let bytes: Vec<u8> = records.flat_map(EpitaphRecord::to_bytes).collect();
        // The region is as long as that, by the layout.
        let _ = self.window.set_region_bytes(&self.hello, RegionKind::Epitaph, u16::from(CORE), &bytes);
    }

    /// Writes the agent's line in its stead. What an agent of this session had counted still holds.
    fn report(&self, state: AgentState, session: u32, version: Version) {
        let before = self.control.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
        let counted = before.filter(|before| before.session == session);
        let agent = AgentControl {
            state,
            core: CORE,
            asleep: false,
            peer: self.peer.id(),
            vector: AGENT_VECTOR,
            session,
            version,
            ..counted.unwrap_or(AgentControl::NOTHING)
        };
        SlotWriter::after(self.control).write(self.control, &agent.to_payload(), 3);
    }
}

fn name(policy: u32) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    let known = policies::name(policy).unwrap_or_default();
    for (byte, known) in name.iter_mut().zip(known.bytes()) {
        *byte = known;
    }
    name
}

/// The page as a release before managers has it.
fn without_managers(hello: &Hello) -> Hello {
    let Hello { boot, features, window_bytes, cpus, cores, tasks, link, .. } = *hello;
    let mut old = Hello::new(boot, features, window_bytes, cpus, cores, tasks, link);
    let new = [RegionKind::Manager, RegionKind::Supervisor, RegionKind::Image];
    for region in hello.regions().filter(|region| !new.contains(&region.kind)) {
        // There was room for more.
        let _ = old.push(region);
    }
    old
}
