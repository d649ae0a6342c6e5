//! The DMA engine's model: a peer of the enclave's domain, which moves bytes when one of its vectors is rung.
//!
//! Registers and their meaning are [`neap_hal::soc::dma::registers`]'. Vector *n* of the engine's peer starts
//! channel *n*. Transfers of several channels go side by side, a chunk of each in turn, so that an abort, a stop
//! and a neighbour wait for one chunk at most.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use neap_hal::soc::dma::Access;
//! use neap_vipu::dma::{ChannelGrant, Engine, HostRange, IpuRange};
//! use neap_vipu::{Domain, Mapping, Peer, Server, Window};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let window = Window::create("neap-window", 16 << 20)?;
//! let memory = Window::create("neap-host-memory", 1 << 20)?;
//! let server = Server::start(vec![Domain::new("/tmp/neap.sock", window.descriptor()?, 16)])?;
//! let peer = Peer::connect("/tmp/neap.sock".as_ref(), 16, Duration::from_secs(5))?;
//! let host = HostRange {
//!     iova: 0x8000_0000,
//!     memory: Arc::new(memory.map()?),
//!     offset: 0,
//!     bytes: 1 << 20,
//!     access: Access::ReadWrite,
//! };
//! let ipu = IpuRange { offset: 8 << 20, bytes: 1 << 20, access: Access::ReadWrite };
//! let page_offset = (16 << 20) - 4096;
//! let engine = Engine::start(peer, vec![ChannelGrant { page_offset, host: vec![host], ipu: vec![ipu] }])?;
//! # Ok(()) }
//! ```

mod bounds;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use neap_hal::soc::dma::registers::{ALIGN_BYTES, PAGE_BYTES, Registers};
use neap_hal::soc::dma::{Fault, State};
use neap_hal::soc::window::ClaimError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use thiserror::Error;

use bounds::{Bounds, Place, Plan};
pub use bounds::{ChannelGrant, GrantError, HostRange, IpuRange};

use crate::server::timespec;
use crate::{Mapping, Peer, WindowError};

/// Longest transfer, in bytes: what a descriptor's 24-bit length field could say in hardware.
pub const BYTES_MAX: u64 = 16 << 20;
/// How much moves before anything else is looked at, in bytes: some microseconds' worth.
const CHUNK_BYTES: u64 = 64 << 10;

/// Why an engine can't start.
#[derive(Debug, Error)]
pub enum EngineError {
    /// More channels than the engine's peer has vectors to start them.
    #[error(
        "{channels} channels, and the engine's peer has {vectors} vectors to start them; give its domain more"
    )]
    Channels {
        /// Channels asked for.
        channels: usize,
        /// Vectors of the peer.
        vectors: u16,
    },
    /// A channel's page or ranges can't be.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The window can't be mapped.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The system refused an eventfd or a thread.
    #[error("can't start the DMA engine: {0}")]
    System(#[from] io::Error),
}

/// A running engine. Dropping it ends what runs as aborted, takes the channels out of service and stops its thread.
#[derive(Debug)]
pub struct Engine {
    peer: u16,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Serves `channels` as `peer`: publishes every channel's page, and waits for doorbells from then on.
    pub fn start(peer: Peer, channels: Vec<ChannelGrant>) -> Result<Self, EngineError> {
        if channels.len() > usize::from(peer.vectors()) {
            return Err(EngineError::Channels { channels: channels.len(), vectors: peer.vectors() });
        }
        let window = Arc::new(peer.map_window()?);
        bounds::check_pages(&channels, window.bytes() as u64)?;
        // All or nothing: no page is published before every grant was found good.
        let bounds: Result<Vec<Bounds>, GrantError> =
            (0..channels.len()).map(|index| Bounds::new(&channels, index, &window, BYTES_MAX)).collect();
        let served: Vec<Served> = bounds?
            .into_iter()
            .zip(&channels)
            .map(|(bounds, channel)| Served {
                page_offset: channel.page_offset,
                bounds,
                handled: 0,
                running: None,
            })
            .collect();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let wake = Arc::new(wake);
        let id = peer.id();
        let service = Service { peer, window, served, wake: Arc::clone(&wake), server_heard: true };
        service.publish();
        let thread = thread::Builder::new().name("neap-dma".into()).spawn(move || service.run())?;
        Ok(Self { peer: id, wake, thread: Some(thread) })
    }

    /// The engine's id in its domain, which its channels' pages say too.
    pub fn peer(&self) -> u16 {
        self.peer
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A full counter wakes the thread as well as a new count would.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its hook; there is nothing more to undo here.
            let _ = thread.join();
        }
    }
}

/// A transfer on its way.
struct Running {
    plan: Plan,
    moved_bytes: u64,
}

/// A channel at work.
struct Served {
    page_offset: u64,
    bounds: Bounds,
    /// The last ticket looked at: ours, whatever the page says by now.
    handled: u32,
    running: Option<Running>,
}

/// The thread's whole state.
struct Service {
    peer: Peer,
    window: Arc<Mapping>,
    served: Vec<Served>,
    wake: Arc<OwnedFd>,
    /// Whether the server still speaks: doorbells outlive it.
    server_heard: bool,
}

/// A channel's registers in the window.
fn registers(window: &Mapping, page_offset: u64) -> &Registers {
    let page = window.claim().region(page_offset, PAGE_BYTES as u64).and_then(|region| region.item());
    page.expect("the page was checked against this very mapping")
}

impl Service {
    fn publish(&self) {
        for (channel, served) in self.served.iter().enumerate() {
            let registers = registers(&self.window, served.page_offset);
            // CAST: no more channels than vectors, which are u16.
            registers.publish(self.peer.id(), channel as u16, BYTES_MAX, &served.bounds.grants());
        }
    }

    fn run(mut self) {
        while let Some(rung) = self.wait() {
            for channel in rung {
                self.begin(channel);
            }
            for channel in 0..self.served.len() {
                self.advance(channel);
            }
        }
        for channel in 0..self.served.len() {
            self.end(channel, State::Failed(Fault::Aborted));
            registers(&self.window, self.served[channel].page_offset).withdraw();
        }
    }

    /// Sleeps until a doorbell, unless transfers run. The channels rung, or `None` when the owner wants the
    /// thread gone.
    fn wait(&mut self) -> Option<Vec<usize>> {
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        let bells = (0..self.served.len()).map(|channel| {
            // CAST: no more channels than vectors, which are u16.
            self.peer.vector_descriptor(channel as u16).expect("no more channels than vectors")
        });
        fds.extend(bells.map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN)));
        if self.server_heard {
            fds.push(PollFd::from_borrowed_fd(self.peer.as_fd(), PollFlags::IN));
        }
        let busy = self.served.iter().any(|served| served.running.is_some());
        let timeout = busy.then(|| timespec(Duration::ZERO));
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // Interrupted: look again.
            return Some(Vec::new());
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return None;
        }
        if ready.get(1 + self.served.len()).copied().unwrap_or(false) {
            self.server_heard = self.peer.poll_changes().is_ok();
        }
        let rung = (0..self.served.len()).filter(|channel| ready[1 + channel]);
        let taken = rung.filter(|&channel| {
            // An eventfd of ours that fails to be read is treated as rung: a look at a page does no harm.
            self.peer.wait(channel as u16, Some(Duration::ZERO)).unwrap_or(1) > 0
        });
        Some(taken.collect())
    }

    /// Looks at a channel whose doorbell was rung.
    fn begin(&mut self, channel: usize) {
        let served = &self.served[channel];
        if served.running.is_some() {
            // An abort, which `advance` sees, or a descriptor too early, which `finish` comes back to.
            return;
        }
        let registers = registers(&self.window, served.page_offset);
        let (ticket, descriptor) = registers.descriptor();
        if ticket == served.handled {
            return;
        }
        let plan = descriptor.and_then(|descriptor| served.bounds.check(&descriptor));
        let plan = plan.and_then(|plan| match plan.notify {
            Some((peer, vector)) if !self.can_ring(peer, vector) => Err(Fault::NotifyUnknown),
            _ => Ok(plan),
        });
        match &plan {
            Err(fault) => registers.report(ticket, State::Failed(*fault), 0),
            Ok(_) => registers.report(ticket, State::Busy, 0),
        }
        let served = &mut self.served[channel];
        served.handled = ticket;
        served.running = plan.ok().map(|plan| Running { plan, moved_bytes: 0 });
    }

    /// Whether `peer` is complete and has `vector`.
    fn can_ring(&self, peer: u16, vector: u16) -> bool {
        let there = || peer == self.peer.id() || self.peer.peers().contains(&peer);
        // Its joining may wait in the socket still. An error comes again when `wait` reads there.
        vector < self.peer.vectors() && (there() || (self.peer.poll_changes().is_ok() && there()))
    }

    /// Moves a channel's next chunk, and ends the transfer if that was the last or its driver wants no more.
    fn advance(&mut self, channel: usize) {
        let served = &mut self.served[channel];
        let Some(running) = &mut served.running else { return };
        if registers(&self.window, served.page_offset).abort_asked() {
            return self.finish(channel, State::Failed(Fault::Aborted));
        }
        let Plan { source, destination, bytes, .. } = &running.plan;
        let chunk_bytes = CHUNK_BYTES.min(bytes - running.moved_bytes);
        move_words(source, destination, running.moved_bytes, chunk_bytes)
            .expect("the plan was checked against these very mappings");
        running.moved_bytes += chunk_bytes;
        if running.moved_bytes == *bytes {
            self.finish(channel, State::Done);
        }
    }

    /// Ends a channel's transfer, and looks at what its driver wrote meanwhile.
    fn finish(&mut self, channel: usize, state: State) {
        self.end(channel, state);
        self.begin(channel);
    }

    /// Ends a channel's transfer, if one runs: reports, and rings who wanted to know.
    fn end(&mut self, channel: usize, state: State) {
        let served = &mut self.served[channel];
        let Some(Running { plan, moved_bytes }) = served.running.take() else { return };
        registers(&self.window, served.page_offset).report(served.handled, state, moved_bytes);
        if let Some((peer, vector)) = plan.notify {
            // Whoever left meanwhile need not know.
            let _ = self.peer.ring(peer, vector);
        }
    }
}

/// Moves `bytes` at `done` bytes into a transfer, in words: others may look at either side meanwhile.
fn move_words(source: &Place, destination: &Place, done: u64, bytes: u64) -> Result<(), ClaimError> {
    debug_assert!(bytes.is_multiple_of(ALIGN_BYTES));
    let from = source.memory.claim().region(source.offset + done, bytes)?.slice::<AtomicU64>()?;
    let to = destination.memory.claim().region(destination.offset + done, bytes)?.slice::<AtomicU64>()?;
    for (to, from) in to.iter().zip(from) {
        to.store(from.load(Relaxed), Relaxed);
    }
    Ok(())
}
