//! The paper's Table 1, left column, over the virtual link: `send_message`, `register_irq_handler`, `read_txn`,
//! `set_txn_outcome`.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use neap_abi::control::policy_id;
use neap_abi::{
    AgentControl, AgentState, Clock, Hello, HostCommand, HostControl, Message, Outcome, RegionKind, Txn,
    Version, VersionError,
};
use neap_queue::{Full, Line, RingError, SlotWriter};
use neap_vipu::{Peer, PeerError};
use thiserror::Error;

use crate::manager::Manager;
use crate::window::{HostWindow, HostWindowError};
use crate::wire::Wire;

/// How a host presents itself.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// One more than the highest number of a host CPU that the enclave may come to have: as many slots are used.
    pub cpus: u16,
    /// Number of this attachment; not that of the one before.
    pub session: u32,
    /// The policy to ask for.
    pub policy: String,
    /// Whose time the policy is told.
    pub clock: Clock,
    /// The ABI version to speak; [`neap_abi::VERSION`] but in tests.
    pub version: Version,
    /// How long to wait for the IPU at each step.
    pub timeout: Duration,
}

/// Why a host is not attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The window.
    #[error(transparent)]
    Window(#[from] HostWindowError),
    /// The link.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The message ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The IPU speaks another version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// More CPUs than decision slots.
    #[error("{cpus} CPUs asked for, the IPU has {slots} decision slots")]
    Cpus {
        /// Asked for.
        cpus: u16,
        /// There are.
        slots: u16,
    },
    /// More CPUs than vectors on the link.
    #[error("{cpus} CPUs asked for, the link has {vectors} vectors")]
    Vectors {
        /// Asked for.
        cpus: u16,
        /// There are.
        vectors: u16,
    },
    /// The IPU said no.
    #[error("the IPU refused: {state:?} (its version is {version}, ours {ours}); {}", remedy(*state))]
    Refused {
        /// Its state.
        state: AgentState,
        /// Its version.
        version: Version,
        /// Ours.
        ours: Version,
    },
    /// The IPU said nothing.
    #[error("no answer from the IPU to session {session} in {waited_ms} ms; look at its log (`neap log`)")]
    Silent {
        /// The session.
        session: u32,
        /// How long we waited.
        waited_ms: u128,
    },
}

fn remedy(state: AgentState) -> &'static str {
    match state {
        AgentState::RefusedVersion => "use releases at most one minor version apart",
        AgentState::RefusedCpus => "ask for fewer CPUs",
        AgentState::GivenUp => "its agent ended too often; its epitaphs say why (`neap status`)",
        AgentState::RefusedPolicy => "this image has another policy: try `--policy fifo`",
        _ => "look at its log (`neap log`) and its epitaphs (`neap status`)",
    }
}

/// An attached host: one enclave's end of the wire.
#[derive(Debug)]
pub struct Link<'w> {
    window: &'w HostWindow,
    peer: &'w Peer,
    hello: Hello,
    version: Version,
    session: u32,
    wire: Wire<'w>,
    host_line: &'w Line,
    control: Mutex<(SlotWriter, HostControl)>,
    rings: AtomicU32,
}

impl<'w> Link<'w> {
    /// Waits for the hello page in the peer's `window`, checks it, asks for an agent and waits until one runs.
    ///
    /// # Errors
    /// Whatever is wrong with the page, the IPU's answer, or its silence.
    pub fn attach(
        window: &'w HostWindow,
        peer: &'w Peer,
        attachment: &Attachment,
    ) -> Result<Self, AttachError> {
        let Attachment { cpus, session, version: ours, .. } = *attachment;
        let hello = wait_hello(window, ours, attachment.timeout)?;
        if cpus == 0 || cpus > hello.cpus {
            return Err(AttachError::Cpus { cpus, slots: hello.cpus });
        }
        if cpus > peer.vectors() {
            return Err(AttachError::Vectors { cpus, vectors: peer.vectors() });
        }
        let line = |kind| Ok::<_, AttachError>(&window.lines(&hello, kind)?[0]);
        let (host_line, agent_line) = (line(RegionKind::HostControl)?, line(RegionKind::AgentControl)?);
        let control = HostControl {
            command: HostCommand::Attach,
            peer: peer.id(),
            cpus,
            session,
            version: ours,
            features: hello.features,
            policy: policy_id(&attachment.policy),
            confirmed: 0,
            clock: attachment.clock,
        };
        let mut writer = SlotWriter::after(host_line);
        writer.write(host_line, &control.to_payload(), 0);
        let answer = wait_answer(agent_line, peer, &hello, attachment)?;
        if answer.state != AgentState::Running {
            return Err(AttachError::Refused { state: answer.state, version: answer.version, ours });
        }
        let version = ours.negotiate(hello.version)?;
        let messages = window.lines(&hello, RegionKind::Messages)?;
        let slots = &window.lines(&hello, RegionKind::Slots)?[..usize::from(cpus)];
        Ok(Self {
            window,
            peer,
            version,
            session,
            wire: Wire::new(messages, slots, agent_line)?,
            host_line,
            control: Mutex::new((writer, control)),
            rings: AtomicU32::new(0),
            hello,
        })
    }

    /// The hello page.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The version that both sides speak.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> &HostWindow {
        self.window
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.session
    }

    /// The lines, without the bells.
    #[must_use]
    pub fn wire(&self) -> &Wire<'w> {
        &self.wire
    }

    /// Sends one message (`SEND_MESSAGE`): one line, carrying also the verdict on the last txn that its CPU took. Wakes
    /// the agent if it sleeps. Returns the line's number.
    ///
    /// # Errors
    /// [`Full`]: the line was not written, and the verdict waits for the next. Nothing blocks.
    pub fn send_message(&self, message: Message) -> Result<u32, Full> {
        let number = self.wire.send(message)?;
        self.wake();
        Ok(number)
    }

    /// Rings the agent if it sleeps.
    fn wake(&self) {
        // Either it sees our line, or we see that it sleeps: it says so, fences, and looks again, as we do.
        fence(Ordering::SeqCst);
        if let Some(agent) = self.agent().filter(|agent| agent.asleep) {
            self.rings.fetch_add(1, Ordering::Relaxed);
            // A peer that has gone away is what the agent's own state tells.
            let _ = self.peer.ring(agent.peer, agent.vector);
        }
    }

    /// Takes what lies in the slot of `cpu`, if it is new and whole (`READ_TXN`), and the credits with it.
    pub fn read_txn(&self, cpu: u16) -> Option<Txn> {
        self.wire.read_txn(cpu)
    }

    /// Keeps the verdict on txn `txn` for the next line of `cpu` (`SET_TXN_OUTCOME`).
    pub fn set_txn_outcome(&self, cpu: u16, txn: u32, outcome: Outcome) {
        self.wire.set_txn_outcome(cpu, txn, outcome);
    }

    /// The vector of `cpu` (`REGISTER_IRQ_HANDLER`): `handler` runs in the thread that waits, which is the CPU.
    #[must_use]
    pub fn register_irq_handler<H: FnMut() + Send>(&self, cpu: u16, handler: H) -> Irq<'w, H> {
        Irq { peer: self.peer, vector: cpu, handler }
    }

    /// Raises the vector of one of our own CPUs, e.g. to make it look at the time.
    pub fn kick(&self, cpu: u16) {
        // Our own vectors are there as long as we are.
        let _ = self.peer.ring(self.peer.id(), cpu);
    }

    /// What the agent last said of itself.
    #[must_use]
    pub fn agent(&self) -> Option<AgentControl> {
        self.wire.agent()
    }

    /// Says that the host is content with an agent: a newcomer's trial is then over.
    pub fn confirm(&self, incarnation: u32) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let (writer, line) = &mut *control;
        if line.confirmed != incarnation && line.command == HostCommand::Attach {
            line.confirmed = incarnation;
            writer.write(self.host_line, &line.to_payload(), 0);
        }
    }

    /// Messages sent.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.wire.messages()
    }

    /// How often the agent was woken.
    #[must_use]
    pub fn rings(&self) -> u32 {
        self.rings.load(Ordering::Relaxed)
    }

    /// Tells the IPU that this host goes away.
    pub fn detach(&self) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let (writer, line) = &mut *control;
        line.command = HostCommand::Detach;
        writer.write(self.host_line, &line.to_payload(), 0);
        self.wake();
        // The agent may be gone, and the supervisor asleep.
        if let Some(agent) = self.agent() {
            let _ = self.peer.ring(agent.peer, SUPERVISOR_VECTOR);
        }
    }
}

/// A link that keeps what it stands on, with its manager.
#[derive(Debug)]
pub struct OwnedLink {
    // In the order of their ends: what borrows before what is borrowed.
    link: Link<'static>,
    manager: Option<Manager<'static>>,
    window: Arc<HostWindow>,
    _peer: Arc<Peer>,
}

impl OwnedLink {
    /// As [`Link::attach`].
    ///
    /// # Errors
    /// As [`Link::attach`].
    pub fn attach(
        window: Arc<HostWindow>,
        peer: Arc<Peer>,
        attachment: &Attachment,
    ) -> Result<Self, AttachError> {
        // SAFETY: both are kept by `Self` beside what borrows them, behind `Arc`s that are never given away or replaced,
        // and are dropped after it. No borrow leaves with this lifetime: the accessors shorten it to that of `self`.
        let (kept_window, kept_peer): (&'static HostWindow, &'static Peer) =
            unsafe { (&*Arc::as_ptr(&window), &*Arc::as_ptr(&peer)) };
        let link = Link::attach(kept_window, kept_peer, attachment)?;
        let manager = Manager::new(kept_window, kept_peer, link.hello()).ok();
        Ok(Self { link, manager, window, _peer: peer })
    }

    /// The link.
    #[must_use]
    pub fn link<'a>(&'a self) -> &'a Link<'a> {
        &self.link
    }

    /// Its manager; none where the IPU speaks 1.1.
    #[must_use]
    pub fn manager<'a>(&'a self) -> Option<&'a Manager<'a>> {
        self.manager.as_ref()
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> &HostWindow {
        &self.window
    }
}

/// A CPU's vector with its handler.
#[derive(Debug)]
pub struct Irq<'w, H> {
    peer: &'w Peer,
    vector: u16,
    handler: H,
}

impl<H: FnMut()> Irq<'_, H> {
    /// Waits up to `timeout` for the doorbell and runs the handler on it. True if it rang.
    ///
    /// # Errors
    /// The link.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, PeerError> {
        let rang = self.peer.wait(self.vector, Some(timeout))? > 0;
        if rang {
            (self.handler)();
        }
        Ok(rang)
    }
}

/// The vector that wakes the IPU's supervisor.
pub(crate) const SUPERVISOR_VECTOR: u16 = 0;

const STEP: Duration = Duration::from_micros(500);

fn wait_hello(window: &HostWindow, ours: Version, timeout: Duration) -> Result<Hello, AttachError> {
    let start = Instant::now();
    loop {
        match window.hello(ours) {
            Ok(hello) => return Ok(hello),
            // Nobody has written it yet, or is about to finish.
            Err(neap_abi::HelloError::Magic { .. } | neap_abi::HelloError::Checksum { .. })
                if start.elapsed() < timeout =>
            {
                std::thread::sleep(STEP);
            }
            Err(error) => return Err(HostWindowError::Hello(error).into()),
        }
    }
}

fn wait_answer(
    line: &Line,
    peer: &Peer,
    hello: &Hello,
    attachment: &Attachment,
) -> Result<AgentControl, AttachError> {
    let &Attachment { session, timeout, .. } = attachment;
    let start = Instant::now();
    // Since 1.2 an agent that has ended is started again: its end is no answer.
    let restarts = hello.region(RegionKind::Supervisor, 0).is_some();
    let settled = |state| match state {
        AgentState::Waiting => false,
        AgentState::Dead | AgentState::Stopped => !restarts || start.elapsed() >= timeout,
        _ => true,
    };
    loop {
        let answer = line.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
        if let Some(answer) = answer {
            if answer.session == session && settled(answer.state) {
                return Ok(answer);
            }
            // The supervisor may sleep. If it cannot be rung yet, its own timer wakes it.
            let _ = peer.ring(answer.peer, SUPERVISOR_VECTOR);
        }
        // Peers that join are announced on the socket; the IPU is rung only once it is known.
        peer.poll_changes()?;
        if start.elapsed() >= timeout {
            return Err(AttachError::Silent { session, waited_ms: start.elapsed().as_millis() });
        }
        std::thread::sleep(STEP);
    }
}
