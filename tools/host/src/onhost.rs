//! The agent on the host: the very one that the IPU runs, as a peer on the same link, with a supervisor of its own. It
//! stands in for the IPU where there is none, and beside it to be compared.

mod mischief;
mod supervisor;

use std::path::Path;
use std::time::{Duration, Instant};

use neap_abi::{LayoutError, VERSION, Version};
use neap_agent::AgentError;
use neap_vipu::{Peer, PeerError};
use thiserror::Error;

use crate::window::{HostWindow, HostWindowError};
use supervisor::Boot;

pub use mischief::Mischief;

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

/// How often the supervisor looks at the host's lines.
const LOOK: Duration = Duration::from_millis(1);

/// What an agent on the host is like.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Vectors of each peer on the link.
    pub vectors: u16,
    /// The ABI version to speak; [`VERSION`] but in tests.
    pub version: Version,
    /// Lines in the message ring, a power of two.
    pub message_lines: u32,
    /// What agents do amiss; nothing but in tests.
    pub mischief: Mischief,
    /// How many messages such an agent takes before it does.
    pub after_messages: u32,
    /// How many agents do it, from the first on.
    pub villains: u32,
}

impl Settings {
    /// As the firmware has it.
    #[must_use]
    pub const fn usual(vectors: u16) -> Self {
        Self {
            vectors,
            version: VERSION,
            message_lines: 4096,
            mischief: Mischief::None,
            after_messages: 0,
            villains: 1,
        }
    }
}

/// Joins the domain at `socket` in the IPU's place, lays out the window, and runs an agent for each host that attaches,
/// until `over` says so (asked every ms). It does what the IPU's supervisor does, as far as it can: an agent that is
/// killed, condemned or replaced is followed by the next; an image, which is for another machine, is refused.
///
/// # Errors
/// What kept it from starting.
pub fn run(socket: &Path, settings: Settings, over: impl Fn() -> bool + Sync) -> Result<(), OnHostError> {
    let mut agents = 0;
    for boot in 1.. {
        let peer = Peer::connect(socket, settings.vectors, Duration::from_secs(10))?;
        let window = HostWindow::new(peer.map_window().map_err(HostWindowError::Map)?);
        let Some(away) = Boot::new(&peer, &window, settings, boot)?.run(&over, &mut agents)? else { break };
        drop((window, peer));
        let gone = Instant::now();
        while gone.elapsed() < away && !over() {
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}
