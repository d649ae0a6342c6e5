//! The agent on the host: the very one that the IPU runs, as a peer on the same link. It stands in for the IPU where
//! there is none, and beside it to be compared.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_abi::hello::{Link, feature};
use neap_abi::{
    AgentControl, AgentState, HostCommand, HostControl, Layout, LayoutError, RegionKind, VERSION, Version,
};
use neap_agent::{AgentError, Bindings, Doorbell, Idle};
use neap_policies::Task;
use neap_queue::{Line, SlotReader, SlotWriter};
use neap_vipu::{Peer, PeerError};
use thiserror::Error;

use crate::window::{HostWindow, HostWindowError};

/// Why no agent could run on the host.
#[derive(Debug, Error)]
pub enum OnHostError {
    /// The link.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The window.
    #[error(transparent)]
    Window(#[from] HostWindowError),
    /// The window is too small for the layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The libOS.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// The vector that wakes the agent; 0 is the supervisor's.
const AGENT_VECTOR: u16 = 1;
/// Empty polls before the agent sleeps.
const POLLS_MAX: u32 = 200;
/// A sleep's longest time.
const SLEEP: Duration = Duration::from_millis(1);
/// How often the supervisor looks at the host's control line.
const LOOK: Duration = Duration::from_millis(1);

struct HostBell<'p> {
    peer: &'p Peer,
    host: u16,
}

impl Doorbell for HostBell<'_> {
    fn ring(&self, cpu: u16) {
        // A host that has gone away hears nothing; the supervisor learns of it.
        let _ = self.peer.ring(self.host, cpu);
    }
}

struct Nap<'p>(&'p Peer);

impl Idle for Nap<'_> {
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool) {
        if empty_polls.is_multiple_of(POLLS_MAX) && drowse() {
            let _ = self.0.wait(AGENT_VECTOR, Some(SLEEP));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// What an agent on the host is like.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Vectors of each peer on the link.
    pub vectors: u16,
    /// The ABI version to speak; [`VERSION`] but in tests.
    pub version: Version,
    /// Lines in the message ring, a power of two.
    pub message_lines: u32,
}

impl Settings {
    /// As the firmware has it.
    #[must_use]
    pub const fn usual(vectors: u16) -> Self {
        Self { vectors, version: VERSION, message_lines: 4096 }
    }
}

/// Joins the domain at `socket` in the IPU's place, lays out the window, and runs an agent for each host that attaches,
/// until `over` says so (asked every ms).
///
/// # Errors
/// What kept it from starting.
pub fn run(socket: &Path, settings: Settings, over: impl Fn() -> bool + Sync) -> Result<(), OnHostError> {
    let Settings { vectors, version, message_lines } = settings;
    let peer = Peer::connect(socket, vectors, Duration::from_secs(10))?;
    let mapping = peer.map_window().map_err(HostWindowError::Map)?;
    let layout = Layout { message_lines, ..Layout::usual(mapping.bytes() as u64, 2) };
    let mut hello = layout.hello(1, feature::GROUPS | feature::SLEEPS, Link::Coherent)?;
    hello.version = version;
    let window = HostWindow::new(mapping);
    let messages = window.lines(&hello, RegionKind::Messages)?;
    let slots = window.lines(&hello, RegionKind::Slots)?;
    let control = &window.lines(&hello, RegionKind::AgentControl)?[0];
    let host_line = &window.lines(&hello, RegionKind::HostControl)?[0];
    window.set_hello(&hello).map_err(HostWindowError::Hello)?;
    let mut memory = vec![Task::default(); hello.tasks as usize];
    let mut reader = SlotReader::default();
    report(control, &peer, AgentState::Waiting, 0, version);
    let mut asked = wait_for(&mut reader, host_line, &peer, &over);
    while let Some(host) = asked {
        if host.command != HostCommand::Attach {
            report(control, &peer, AgentState::Stopped, host.session, version);
            asked = wait_for(&mut reader, host_line, &peer, &over);
            continue;
        }
        let agreed = match host.admit(version, hello.cpus, &[neap_agent_fifo::POLICY]) {
            Ok(agreed) => agreed,
            Err(state) => {
                report(control, &peer, state, host.session, version);
                asked = wait_for(&mut reader, host_line, &peer, &over);
                continue;
            }
        };
        // As on the IPU, lines of an earlier session must prove nothing in this one.
        messages.iter().chain(slots).for_each(Line::clear);
        let revoke = AtomicU64::new(0);
        let bindings = Bindings {
            slots: &slots[..usize::from(host.cpus)],
            control,
            revoke: &revoke,
            doorbell: HostBell { peer: &peer, host: host.peer },
            core: 1,
            wake: (peer.id(), AGENT_VECTOR),
            session: host.session,
            version: agreed,
            incarnation: 1,
            taken: 0,
            resyncs: 0,
        };
        asked = std::thread::scope(|scope| {
            let supervisor = scope.spawn(|| {
                let next = wait_for(&mut reader, host_line, &peer, &over);
                revoke.store(1, Ordering::Relaxed);
                let _ = peer.ring(peer.id(), AGENT_VECTOR);
                next
            });
            let ended = neap_agent_fifo::start(bindings, messages, &mut memory, &mut Nap(&peer));
            if ended.is_err() {
                report(control, &peer, AgentState::Dead, host.session, agreed);
            }
            // A supervisor that panicked is a run that is over.
            let next = supervisor.join().unwrap_or_default();
            ended.map(|_| next)
        })?;
    }
    Ok(())
}

/// Waits for the host's next word.
fn wait_for(
    reader: &mut SlotReader,
    line: &Line,
    peer: &Peer,
    over: &(impl Fn() -> bool + Sync),
) -> Option<HostControl> {
    while !over() {
        // Peers that join are announced on the socket.
        peer.poll_changes().ok()?;
        if let Some(taken) = reader.take(line)
            && let Some(host) = HostControl::from_payload(&taken.payload)
        {
            // Its vectors must be known before the first doorbell.
            let known = Instant::now();
            while host.command == HostCommand::Attach
                && !peer.peers().contains(&host.peer)
                && known.elapsed() < Duration::from_secs(1)
            {
                peer.poll_changes().ok()?;
                std::thread::sleep(LOOK);
            }
            return Some(host);
        }
        std::thread::sleep(LOOK);
    }
    None
}

/// Writes the agent's line in its stead. What an agent of this session had counted still holds.
fn report(line: &Line, peer: &Peer, state: AgentState, session: u32, version: Version) {
    let before = line.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
    let counted = before.filter(|before| before.session == session);
    let agent = AgentControl {
        state,
        core: 1,
        asleep: false,
        peer: peer.id(),
        vector: AGENT_VECTOR,
        session,
        version,
        incarnation: 1,
        ..counted.unwrap_or(AgentControl::NOTHING)
    };
    SlotWriter::after(line).write(line, &agent.to_payload(), 3);
}
