//! The paper's Table 1, left column, over the virtual link: `send_message`, `register_irq_handler`, `read_txn`,
//! `set_txn_outcome`.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neap_abi::control::policy_id;
use neap_abi::{
    AgentControl, AgentState, Hello, HostCommand, HostControl, Message, Outcome, RegionKind, Txn, Version,
    VersionError,
};
use neap_queue::{CreditError, Full, Line, RingError, SharedProducer, SlotReader, SlotWriter};
use neap_vipu::{Peer, PeerError};
use thiserror::Error;

use crate::window::{HostWindow, HostWindowError};

/// How a host presents itself.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Host CPUs in the enclave.
    pub cpus: u16,
    /// Number of this attachment; not that of the one before.
    pub session: u32,
    /// The policy to ask for.
    pub policy: String,
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
    producer: SharedProducer<'w>,
    slots: &'w [Line],
    agent_line: &'w Line,
    control: Mutex<(SlotWriter, HostControl, &'w Line)>,
    cpus: Vec<Mutex<CpuEnd>>,
    poisoned: AtomicBool,
    rings: AtomicU32,
}

/// What the link keeps for one CPU.
#[derive(Debug, Default)]
struct CpuEnd {
    reader: SlotReader,
    /// The verdict that the CPU's next line carries.
    outcome: Option<(u32, Outcome)>,
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
        };
        let mut writer = SlotWriter::after(host_line);
        writer.write(host_line, &control.to_payload(), 0);
        let answer = wait_answer(agent_line, peer, session, attachment.timeout)?;
        if answer.state != AgentState::Running {
            return Err(AttachError::Refused { state: answer.state, version: answer.version, ours });
        }
        let version = ours.negotiate(hello.version)?;
        Ok(Self {
            window,
            peer,
            version,
            producer: SharedProducer::new(window.lines(&hello, RegionKind::Messages)?)?,
            slots: &window.lines(&hello, RegionKind::Slots)?[..usize::from(cpus)],
            agent_line,
            control: Mutex::new((writer, control, host_line)),
            cpus: (0..cpus).map(|_| Mutex::default()).collect(),
            poisoned: AtomicBool::new(false),
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

    /// Sends one message (`SEND_MESSAGE`): one line, carrying also the verdict on the last txn that its CPU took. Wakes
    /// the agent if it sleeps. Returns the line's number.
    ///
    /// # Errors
    /// [`Full`]: the line was not written, and the verdict waits for the next. Nothing blocks.
    pub fn send_message(&self, mut message: Message) -> Result<u32, Full> {
        let mut end = self.cpu(message.cpu);
        if let Some(end) = &end
            && let Some((txn, outcome)) = end.outcome
        {
            (message.txn, message.outcome) = (txn, outcome);
        }
        let payload = message.to_payload();
        let number = self.producer.push(&payload).or_else(|Full| {
            // Off the hot path: decision lines have brought no news, so look at what the agent reports when idle.
            self.refresh_credits();
            self.producer.push(&payload)
        })?;
        if let Some(end) = &mut end {
            end.outcome = None;
        }
        drop(end);
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
        let mut end = self.cpu(cpu)?;
        let taken = end.reader.take(self.slots.get(usize::from(cpu))?)?;
        let txn = Txn::from_payload(&taken.payload);
        // The tag follows from the id: a line that says otherwise is no libOS's.
        if Txn::tag(txn.id) != taken.tag || self.producer.credit(txn.credits).is_err() {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        Some(txn)
    }

    /// Keeps the verdict on txn `txn` for the next line of `cpu` (`SET_TXN_OUTCOME`).
    pub fn set_txn_outcome(&self, cpu: u16, txn: u32, outcome: Outcome) {
        if let Some(mut end) = self.cpu(cpu) {
            end.outcome = Some((txn, outcome));
        }
    }

    /// Takes the verdict that waits for the next line of `cpu`, for a line that is itself kept waiting.
    pub fn take_txn_outcome(&self, cpu: u16) -> Option<(u32, Outcome)> {
        self.cpu(cpu)?.outcome.take()
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
        AgentControl::from_payload(&self.agent_line.read_any()?.0)
    }

    /// Takes the credits from the agent's control line. True if they can be.
    pub fn refresh_credits(&self) -> bool {
        match self.agent().map(|agent| self.producer.credit(agent.credits)) {
            Some(Err(CreditError { .. })) => {
                self.poisoned.store(true, Ordering::Relaxed);
                false
            }
            Some(Ok(())) => true,
            None => false,
        }
    }

    /// Whether the agent has broken the protocol.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Lines that fit the ring before the next credit.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.producer.room()
    }

    /// Lines in the ring.
    #[must_use]
    pub fn ring_lines(&self) -> u32 {
        self.hello
            .region(RegionKind::Messages, 0)
            .map_or(0, |r| (r.bytes / neap_abi::LINE_BYTES as u64) as u32)
    }

    /// Messages sent.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.producer.written()
    }

    /// How often the agent was woken.
    #[must_use]
    pub fn rings(&self) -> u32 {
        self.rings.load(Ordering::Relaxed)
    }

    /// Tells the IPU that this host goes away.
    pub fn detach(&self) {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let (writer, line, at) = &mut *control;
        line.command = HostCommand::Detach;
        writer.write(at, &line.to_payload(), 0);
        self.wake();
    }

    fn cpu(&self, cpu: u16) -> Option<MutexGuard<'_, CpuEnd>> {
        Some(self.cpus.get(usize::from(cpu))?.lock().unwrap_or_else(PoisonError::into_inner))
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
    session: u32,
    timeout: Duration,
) -> Result<AgentControl, AttachError> {
    let start = Instant::now();
    loop {
        let answer = line.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
        if let Some(answer) = answer {
            if answer.session == session && answer.state != AgentState::Waiting {
                return Ok(answer);
            }
            // The supervisor may sleep. If it cannot be rung yet, its own timer wakes it.
            let _ = peer.ring(answer.peer, 0);
        }
        // Peers that join are announced on the socket; the IPU is rung only once it is known.
        peer.poll_changes()?;
        if start.elapsed() >= timeout {
            return Err(AttachError::Silent { session, waited_ms: start.elapsed().as_millis() });
        }
        std::thread::sleep(STEP);
    }
}
