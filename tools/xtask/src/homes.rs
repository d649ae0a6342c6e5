//! The four homes of an agent, and replaying a trace in each: the same messages, told one by one, by their own clock.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use neap_abi::{Clock, Txn, VERSION};
use neap_host::link::{Attachment, Link};
use neap_host::manager::Manager;
use neap_host::onhost::{self, Settings};
use neap_host::policies::BUNDLED;
use neap_host::trace::{self, Trace};
use neap_host::window::HostWindow;
use neap_vipu::{Domain, Peer, Server, Window};

use crate::firmware::{self, Kind};
use crate::ipu::{Ipu, VECTORS};
use crate::machine::WINDOW_BYTES;
use crate::setup;

/// How long an agent may take to anything, in a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Cores of the virtual IPU.
const CORES: u32 = 2;

/// Where an agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the simulator, in virtual time.
    Sim,
    /// In this thread, over lines in its own memory: as in a unit test.
    Thread,
    /// On the host, in the IPU's place.
    OnHost,
    /// On the virtual IPU.
    Qemu,
}

impl Home {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sim, Self::Thread, Self::OnHost, Self::Qemu];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Thread => "thread",
            Self::OnHost => "on-host",
            Self::Qemu => "qemu",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|home| home.name() == name)
    }
}

/// What was decided after each message.
type Decided = Vec<Vec<Txn>>;

/// Homes, of which the virtual IPU is booted when it is first asked for.
#[derive(Default)]
pub struct Homes {
    card: Option<Ipu>,
    session: u32,
}

impl Homes {
    /// Replays a trace in a home: what was decided after each message. `progress` is told how many of them are done.
    ///
    /// # Errors
    /// A home that is not there, an agent that falls silent.
    pub fn replay(&mut self, home: Home, trace: &Trace, progress: &mut dyn FnMut(usize)) -> Result<Decided> {
        match home {
            Home::Sim => neap_sim::trace::replay(trace)
                .with_context(|| format!("the simulator has no policy {}", trace.policy)),
            Home::Thread => Ok(trace::replay_here(trace)?),
            Home::OnHost => on_host(trace, progress),
            Home::Qemu => self.on_card(trace, progress),
        }
    }

    fn on_card(&mut self, trace: &Trace, progress: &mut dyn FnMut(usize)) -> Result<Decided> {
        let card = match &mut self.card {
            Some(card) => card,
            none => {
                setup::all()?;
                let elf = firmware::build(&Kind::Runtime)?.elf;
                none.insert(Ipu::boot(&setup::qemu()?, &elf, CORES, 1)?)
            }
        };
        self.session += 1;
        let peer = Peer::connect(&card.socket(0), VECTORS, PATIENCE)?;
        let window = HostWindow::new(card.window(0).map()?);
        // The firmware brings one agent; the others are loaded.
        let image = match trace.policy.as_str() {
            BUNDLED => None,
            policy => Some(fs::read(firmware::agent_image(policy)?)?),
        };
        let told = attach(&window, &peer, trace, BUNDLED, self.session).and_then(|link| {
            if let Some(image) = image {
                let manager = Manager::new(&window, &peer, link.hello())?;
                take_over(&link, &manager, &image)?;
            }
            let decided = trace::replay_over(&link, trace, PATIENCE, progress)?;
            link.detach();
            Ok(decided)
        });
        told.map_err(|error| anyhow!("{error:#}\nits console said:\n{}", card.console()))
    }
}

fn attach<'w>(
    window: &'w HostWindow,
    peer: &'w Peer,
    trace: &Trace,
    policy: &str,
    session: u32,
) -> Result<Link<'w>> {
    let attachment = Attachment {
        cpus: trace.cpus,
        session,
        policy: policy.to_owned(),
        clock: Clock::Messages,
        version: VERSION,
        timeout: PATIENCE,
    };
    Ok(Link::attach(window, peer, &attachment)?)
}

/// Has an agent take over from the one that has been told nothing yet, and says at once that the host is content with it: its
/// first decision will be on the trace's word.
fn take_over(link: &Link<'_>, manager: &Manager<'_>, image: &[u8]) -> Result<()> {
    manager.load(Some(image), "", PATIENCE)?;
    let before = manager.running().map_or(0, |agent| agent.incarnation);
    thread::scope(|scope| {
        let asked = scope.spawn(|| manager.replace("", PATIENCE, PATIENCE));
        while !asked.is_finished() {
            if let Some(agent) = manager.running().filter(|agent| agent.incarnation != before) {
                link.confirm(agent.incarnation);
            }
            thread::sleep(Duration::from_millis(1));
        }
        asked.join().map_err(|_| anyhow!("whoever asked for the agent has panicked"))
    })??;
    let taken = link.agent().map_or(0, |agent| agent.credits);
    ensure!(taken == 0, "the agent before had taken {taken} messages, and none had been sent");
    Ok(())
}

/// An agent on the host, as `neap run --on-host` has one, for one trace.
fn on_host(trace: &Trace, progress: &mut dyn FnMut(usize)) -> Result<Decided> {
    let directory = tempfile::Builder::new().prefix(&format!("neap-{}-", std::process::id())).tempdir()?;
    let name = directory.path().file_name().context("a temporary directory has a name")?;
    let vectors = VECTORS.max(trace.cpus);
    let window = Window::create(&name.to_string_lossy(), WINDOW_BYTES)?;
    let socket = directory.path().join("enclave0");
    let _server = Server::start(vec![Domain::new(&socket, window.descriptor()?, vectors)])?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let agent =
            scope.spawn(|| onhost::run(&socket, Settings::usual(vectors), || over.load(Ordering::Relaxed)));
        let decided = (|| {
            let peer = Peer::connect(&socket, vectors, PATIENCE)?;
            let window = HostWindow::new(window.map()?);
            let link = attach(&window, &peer, trace, &trace.policy, 1)?;
            let decided = trace::replay_over(&link, trace, PATIENCE, progress)?;
            link.detach();
            Ok(decided)
        })();
        over.store(true, Ordering::Relaxed);
        agent.join().map_err(|_| anyhow!("the on-host agent has panicked"))??;
        decided
    })
}
