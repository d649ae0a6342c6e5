//! A scripted IPU: a peer in the IPU's place, whose supervisor and agent do what a test has them do.

use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use neap_abi::control::{came_after, policy_id};
use neap_abi::hello::{Link, feature};
use neap_abi::supervisor::{BOOKS_LINE, Identity, REPLY_LINE, RUNNING_LINE};
use neap_abi::txn::CREDIT_WORD;
use neap_abi::{
    AgentControl, AgentState, Books, Hello, HostCommand, HostControl, Layout, Manage, ManagerLine, Message,
    Payload, RegionKind, Reply, ReplyLine, Txn, VERSION, Version,
};
use neap_host::window::HostWindow;
use neap_queue::{Consumer, Line, SlotReader, SlotWriter};
use neap_vipu::{Peer, Window};

use super::view::View;

/// The core that the agent is said to have, and the vector that wakes it.
const CORE: u8 = 1;
const AGENT_VECTOR: u16 = 1;
/// The first version that knows managers.
const MANAGED: Version = Version::AGENTS_COME_AND_GO;
/// How long joining may take.
const JOIN: Duration = Duration::from_secs(10);
/// What a poll waits for at most.
const NAP: Duration = Duration::from_millis(1);
/// Messages kept for whoever looks.
const MESSAGES_KEPT: usize = 100_000;

/// What an IPU is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Make {
    pub version: Version,
    /// Whether its agents sleep, and have to be rung.
    pub sleeps: bool,
    /// Lines in the ring.
    pub message_lines: u32,
}

/// As the firmware has it.
pub(super) const USUAL: Make = Make { version: VERSION, sleeps: true, message_lines: 4096 };

/// What the supervisor does about an agent that is condemned, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It starts the next.
    Restart,
    /// It starts none for now.
    Rest,
    /// It starts none any more.
    GiveUp,
    /// It does not even listen.
    Deaf,
}

/// How the agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conduct {
    /// It takes messages, and decides.
    Good {
        /// Also ahead of time.
        prestages: bool,
    },
    /// It takes messages, and decides nothing.
    Lazy,
    /// It does nothing at all.
    Hung,
}

/// A session's agent.
#[derive(Debug)]
struct Agent {
    host: HostControl,
    version: Version,
    /// Lines taken of the session's ring.
    taken: u32,
    resyncs: u32,
    order: u32,
    doorbells: u32,
    /// The first resync has begun.
    listens: bool,
    /// It runs.
    alive: bool,
    /// Of each slot, the last txn's id.
    ids: Vec<u32>,
}

/// The IPU.
pub(super) struct Ipu {
    window: HostWindow,
    file: Window,
    socket: std::path::PathBuf,
    vectors: u16,
    make: Make,
    peer: Option<Peer>,
    hello: Option<Hello>,
    boot: u32,
    host_reader: SlotReader,
    manager_reader: SlotReader,
    agent: Option<Agent>,
    incarnation: u32,
    books: Books,
    pub view: View,
    pub after: After,
    pub conduct: Conduct,
    /// What the host's manager has asked.
    pub asked: Vec<ManagerLine>,
    /// Sessions that hosts have asked for.
    pub sessions: u32,
    /// Agents that were started.
    pub agents: u32,
    /// The last incarnation that the host was content with.
    pub confirmed: u32,
    /// It says nothing of itself any more: somebody else writes to its window.
    pub mute: bool,
    group: u32,
}

impl Ipu {
    /// In the domain of `socket`, whose peers have `vectors` vectors each. It is not there before it is booted.
    pub(super) fn new(file: Window, socket: std::path::PathBuf, vectors: u16) -> Result<Self> {
        Ok(Self {
            window: HostWindow::new(file.map()?),
            file,
            socket,
            vectors,
            make: USUAL,
            peer: None,
            hello: None,
            boot: 0,
            host_reader: SlotReader::default(),
            manager_reader: SlotReader::default(),
            agent: None,
            incarnation: 0,
            books: Books::default(),
            view: View::default(),
            after: After::Restart,
            conduct: Conduct::Good { prestages: false },
            asked: Vec::new(),
            sessions: 0,
            agents: 0,
            confirmed: 0,
            mute: false,
            group: 0,
        })
    }

    /// Joins, lays out the window, and waits for a host from now on.
    pub(super) fn boot(&mut self, make: Make) -> Result<()> {
        if self.peer.is_none() {
            self.peer = Some(Peer::connect(&self.socket, self.vectors, JOIN)?);
        }
        self.boot += 1;
        self.make = make;
        self.agent = None;
        self.incarnation = 0;
        self.books = Books { cores: 1, cores_free: 1, ..Books::default() };
        let features = feature::GROUPS | if make.sleeps { feature::SLEEPS } else { 0 };
        let layout = Layout { message_lines: make.message_lines, ..Layout::usual(self.window.bytes(), 2) };
        let hello = layout.hello(self.boot, features, Link::Pcie)?;
        let managed = make.version >= MANAGED;
        let mut hello = if managed { hello } else { without_managers(&hello) };
        hello.version = make.version;
        // What was asked before is over.
        if let [line, ..] = self.window.lines(&hello, RegionKind::HostControl)? {
            self.host_reader.take(line);
        }
        if managed && let [line, ..] = self.window.lines(&hello, RegionKind::Manager)? {
            self.manager_reader.take(line);
        }
        self.hello = Some(hello.clone());
        self.report(AgentState::Waiting, false, 0)?;
        self.window.set_hello(&hello)?;
        Ok(())
    }

    /// Leaves the link, and the window reads as `byte` throughout.
    pub(super) fn vanish(&mut self, byte: u8) -> Result<()> {
        self.peer = None;
        self.fill(byte)
    }

    /// Has the window read as `byte` throughout.
    pub(super) fn fill(&mut self, byte: u8) -> Result<()> {
        use std::os::unix::fs::FileExt;
        (self.hello, self.agent) = (None, None);
        let file = std::fs::OpenOptions::new().write(true).open(self.file.path())?;
        let page = vec![byte; 1 << 16];
        for at in (0..self.file.bytes()).step_by(page.len()) {
            file.write_all_at(&page, at)?;
        }
        Ok(())
    }

    pub(super) fn hello(&self) -> Result<&Hello> {
        self.hello.as_ref().context("the IPU is not there")
    }

    /// The lines of a region that it has.
    pub(super) fn lines(&self, kind: RegionKind) -> Result<&[Line]> {
        Ok(self.window.lines(self.hello()?, kind)?)
    }

    /// The whole window.
    pub(super) fn window(&self) -> &Window {
        &self.file
    }

    fn peer(&self) -> Result<&Peer> {
        self.peer.as_ref().context("the IPU is not there")
    }

    /// Whether an agent runs, and has been told the state.
    pub(super) fn decides(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.alive && agent.listens) && self.view.resyncs > 0
    }

    /// The agent's number.
    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The CPUs that the host has given it.
    pub(super) fn cpus(&self) -> u16 {
        self.agent.as_ref().map_or(0, |agent| agent.host.cpus)
    }

    /// One turn of everything that the IPU does. Without news it rests for a moment.
    pub(super) fn turn(&mut self) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        if self.hello.is_none() {
            return Ok(());
        }
        peer.poll_changes()?;
        if self.mute {
            thread::sleep(NAP / 4);
            return Ok(());
        }
        self.hear_host()?;
        self.hear_manager()?;
        let heard = if self.conduct == Conduct::Hung { 0 } else { self.hear_messages()? };
        if let Conduct::Good { prestages } = self.conduct
            && self.decides()
        {
            while let Some(txn) = self.view.decide(prestages) {
                let id = self.stage(txn.cpu, txn)?;
                self.view.chosen(&Txn { id, ..txn });
                if !txn.flags.has(neap_abi::TxnFlags::PRESTAGED) {
                    self.ring(txn.cpu)?;
                }
            }
            for cpu in self.view.asleep_over() {
                self.ring(cpu)?;
            }
        }
        if heard == 0 { self.rest() } else { self.report_running(false) }
    }

    fn hear_host(&mut self) -> Result<()> {
        let Some(line) = self.lines(RegionKind::HostControl)?.first() else { return Ok(()) };
        let mut reader = self.host_reader;
        let taken = reader.take(line);
        self.host_reader = reader;
        let Some(host) = taken.and_then(|taken| HostControl::from_payload(&taken.payload)) else {
            return Ok(());
        };
        let same = self.agent.as_ref().is_some_and(|agent| agent.host.session == host.session);
        match host.command {
            HostCommand::Attach if same => self.confirmed = host.confirmed,
            HostCommand::Attach => self.attach(host)?,
            HostCommand::Detach | HostCommand::None => {
                self.agent = None;
                self.report(AgentState::Stopped, false, host.session)?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, host: HostControl) -> Result<()> {
        let policies = [policy_id("fifo")];
        let version = match host.admit(self.make.version, self.hello()?.cpus, &policies) {
            Ok(version) => version,
            Err(state) => return self.report(state, false, host.session),
        };
        self.peer()?.wait_peer(host.peer, JOIN)?;
        // Lines of an earlier session prove nothing in this one.
        for kind in [RegionKind::Messages, RegionKind::Slots] {
            self.lines(kind)?.iter().for_each(Line::clear);
        }
        self.sessions += 1;
        let ids = vec![0; usize::from(host.cpus)];
        let (taken, resyncs, order, doorbells) = (0, 0, 0, 0);
        self.agent = Some(Agent {
            host,
            version,
            taken,
            resyncs,
            order,
            doorbells,
            listens: false,
            alive: false,
            ids,
        });
        self.view.begin(host.cpus);
        self.start()
    }

    /// Starts the session's next agent.
    pub(super) fn start(&mut self) -> Result<()> {
        self.incarnation += 1;
        self.agents += 1;
        self.books.started += 1;
        let mut name = [0; neap_abi::image::NAME_BYTES];
        name[..4].copy_from_slice(b"fifo");
        let identity = Identity {
            name,
            image_crc: 0,
            on_trial: false,
            incarnation: self.incarnation,
            version: self.make.version.to_bits(),
            policy: policy_id("fifo"),
        };
        self.tell(RUNNING_LINE, &identity.to_payload())?;
        self.tell(BOOKS_LINE, &self.books.to_payload())?;
        let Some(agent) = &mut self.agent else { bail!("an agent without a session") };
        (agent.alive, agent.listens) = (true, false);
        agent.resyncs += 1;
        agent.order = 0;
        // What earlier ones were told is void.
        for cpu in &mut self.view.cpus {
            cpu.staged.clear();
        }
        self.view.resyncs = 0;
        self.report_running(false)
    }

    /// The agent ends.
    pub(super) fn end(&mut self, state: AgentState) -> Result<()> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        agent.alive = false;
        let session = agent.host.session;
        self.report(state, false, session)
    }

    fn hear_manager(&mut self) -> Result<()> {
        if self.make.version < MANAGED {
            return Ok(());
        }
        let Some(line) = self.lines(RegionKind::Manager)?.first() else { return Ok(()) };
        let mut reader = self.manager_reader;
        let taken = reader.take(line);
        self.manager_reader = reader;
        let Some(line) = taken.and_then(|taken| ManagerLine::from_payload(&taken.payload).ok()) else {
            return Ok(());
        };
        self.asked.push(line);
        if self.after == After::Deaf {
            return Ok(());
        }
        // It has one policy, takes no image, and was booted from no disk.
        let loads = matches!(line.command, Manage::Load | Manage::Replace);
        let reply = match line {
            ManagerLine { image_bytes: 1.., .. } if loads => Reply::RefusedImage,
            ManagerLine { policy, .. } if loads && policy != policy_id("fifo") => Reply::NoPolicy,
            ManagerLine { command: Manage::ReadDisk | Manage::WriteDisk, .. } => Reply::NoDisk,
            _ => Reply::Done,
        };
        let of_another = line.incarnation != 0 && came_after(self.incarnation, line.incarnation);
        let ends = reply == Reply::Done
            && !of_another
            && !matches!(line.command, Manage::None | Manage::Load | Manage::Audit | Manage::Unload);
        if ends {
            let state = if self.after == After::GiveUp { AgentState::GivenUp } else { AgentState::Dead };
            self.end(state)?;
            if self.after == After::Restart {
                // One that hangs would do it again.
                self.conduct = Conduct::Good { prestages: false };
                self.start()?;
            }
        }
        let answer = ReplyLine { reply, request: line.request, detail: 0, incarnation: self.incarnation };
        self.tell(REPLY_LINE, &answer.to_payload())
    }

    fn tell(&self, at: usize, payload: &Payload) -> Result<()> {
        if self.make.version >= MANAGED
            && let Some(line) = self.lines(RegionKind::Supervisor)?.get(at)
        {
            SlotWriter::after(line).write(line, payload, 0);
        }
        Ok(())
    }

    /// Takes what has come; how many lines.
    fn hear_messages(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(agent) = &self.agent
            && agent.alive
        {
            let mut queue = Consumer::resume(self.lines(RegionKind::Messages)?, agent.taken)?;
            let Some(payload) = queue.poll() else { break };
            let taken = queue.taken();
            let message = Message::from_payload(&payload);
            let Some(agent) = &mut self.agent else { break };
            agent.taken = taken;
            count += 1;
            let message = match message {
                Ok(message) => message,
                Err(unknown) => {
                    self.view.oddities.push(format!("{unknown:?}"));
                    continue;
                }
            };
            agent.listens |= message.kind == neap_abi::MessageKind::ResyncBegin;
            if !agent.listens {
                continue;
            }
            if let Some(cpu) = self.view.note(&message) {
                self.ring(cpu)?;
            }
        }
        let kept = self.view.messages.len();
        self.view.messages.drain(..kept.saturating_sub(MESSAGES_KEPT));
        Ok(count)
    }

    /// Nothing has come: sleeps until the host rings, for a moment at most.
    fn rest(&mut self) -> Result<()> {
        if !self.make.sleeps {
            thread::sleep(NAP / 4);
            return Ok(());
        }
        if self.agent.as_ref().is_none_or(|agent| !agent.alive) || self.conduct == Conduct::Hung {
            thread::sleep(NAP);
            return Ok(());
        }
        self.report_running(true)?;
        fence(Ordering::SeqCst);
        let Some(agent) = &self.agent else { return Ok(()) };
        let waits = Consumer::resume(self.lines(RegionKind::Messages)?, agent.taken)?.ready();
        if !waits {
            self.peer()?.wait(AGENT_VECTOR, Some(NAP))?;
        }
        self.report_running(false)
    }

    fn report_running(&self, asleep: bool) -> Result<()> {
        match &self.agent {
            Some(agent) if agent.alive => self.report(AgentState::Running, asleep, agent.host.session),
            _ => Ok(()),
        }
    }

    /// Writes the agent's control line.
    pub(super) fn report(&self, state: AgentState, asleep: bool, session: u32) -> Result<()> {
        let agent = self.agent.as_ref();
        let version = agent.map_or(self.make.version, |agent| agent.version);
        let named = if version >= MANAGED { self.incarnation } else { 0 };
        let said = AgentControl {
            state,
            core: CORE,
            asleep,
            peer: self.peer()?.id(),
            vector: AGENT_VECTOR,
            session,
            version,
            credits: agent.map_or(0, |agent| agent.taken),
            resyncs: agent.map_or(0, |agent| agent.resyncs),
            decisions: agent.map_or(0, |agent| agent.order.into()),
            unknown: 0,
            doorbells: agent.map_or(0, |agent| agent.doorbells.into()),
            incarnation: named,
        };
        let Some(line) = self.lines(RegionKind::AgentControl)?.first() else { return Ok(()) };
        let before = line.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
        if before != Some(said) {
            SlotWriter::after(line).write(line, &said.to_payload(), 3);
        }
        Ok(())
    }

    /// Puts a decision into a slot; its id.
    pub(super) fn stage(&mut self, slot: u16, txn: Txn) -> Result<u32> {
        self.stage_as(slot, txn, |_| {})
    }

    /// As [`Ipu::stage`], but what the libOS fills in is mended before it is written.
    pub(super) fn stage_as(&mut self, slot: u16, txn: Txn, mend: impl FnOnce(&mut Txn)) -> Result<u32> {
        let incarnation = if self.make.version >= MANAGED { self.incarnation } else { 0 };
        let Some(agent) = &mut self.agent else { bail!("a decision without an agent") };
        let last =
            agent.ids.get_mut(usize::from(slot)).with_context(|| format!("there is no slot {slot}"))?;
        let id = last.wrapping_add(1);
        *last = id;
        agent.order += 1;
        let mut txn = Txn { id, credits: agent.taken, order: agent.order, incarnation, ..txn };
        mend(&mut txn);
        let line = self.lines(RegionKind::Slots)?.get(usize::from(slot)).context("a slot in the window")?;
        SlotWriter::resume(id.wrapping_sub(1)).write(line, &txn.to_payload(), CREDIT_WORD);
        self.view.staged(slot, txn);
        Ok(id)
    }

    /// Another number for a group.
    pub(super) fn group(&mut self) -> u32 {
        self.group = self.group % 0xff_ffff + 1;
        self.group
    }

    /// Rings a CPU of the host.
    pub(super) fn ring(&mut self, cpu: u16) -> Result<()> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        agent.doorbells += 1;
        let host = agent.host.peer;
        // A host that has gone away hears nothing.
        let _ = self.peer()?.ring(host, cpu);
        Ok(())
    }
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
