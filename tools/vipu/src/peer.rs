//! A peer that is a process: the worker host, the on-host agent, the DMA engine.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use thiserror::Error;

use crate::server::timespec;
use crate::wire::{self, MESSAGE_BYTES, PEERS_MAX, VECTORS_MAX};
use crate::{Mapping, WindowError};

/// Most messages that one [`Peer::poll_changes`] reads, so that a babbling server can't hold its caller.
const MESSAGES_PER_POLL: usize = 8192;

/// Why a peer can't go on. Those that name a message are the server's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// Nobody listens there.
    #[error("can't connect to {}: {reason}; start the server first", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The vector count asked for is out of range.
    #[error("{vectors} vectors asked for, and a peer may have 1 to {VECTORS_MAX}")]
    VectorCount {
        /// The count asked for.
        vectors: u16,
    },
    /// The server did not finish its greeting in time.
    #[error(
        "the server gave {have} of {want} vectors in {timeout_ms} ms; its domain may have fewer, or this process \
         may be short of open files (ulimit -n)"
    )]
    Timeout {
        /// Own vectors received.
        have: usize,
        /// Own vectors expected.
        want: u16,
        /// How long it had.
        timeout_ms: u128,
    },
    /// The server closed the connection between two messages: it is gone, or it refused this peer.
    #[error("the server closed the connection; its events say why, if it still runs")]
    Closed,
    /// The server closed the connection inside a message.
    #[error("the server closed the connection after {bytes} of a message's 8 bytes")]
    Truncated {
        /// Bytes of the message that came.
        bytes: usize,
    },
    /// The first message is not the version that we speak.
    #[error("the server speaks protocol version {version}, and we speak 0")]
    Version {
        /// What the server said.
        version: i64,
    },
    /// An id is out of range.
    #[error("the server named peer {id}; ids are 0 to 65535")]
    Id {
        /// What the server said.
        id: i64,
    },
    /// A descriptor came with a message that has none.
    #[error("the server sent a descriptor with {with}, which carries none")]
    DescriptorUnexpected {
        /// The message.
        with: &'static str,
    },
    /// A descriptor is missing.
    #[error("the server sent {with} without its descriptor")]
    DescriptorMissing {
        /// The message.
        with: &'static str,
    },
    /// More than one descriptor came with one message.
    #[error("the server sent several descriptors with one message")]
    DescriptorsTooMany,
    /// The system dropped a descriptor on its way to us.
    #[error("a descriptor was lost on its way; raise the limit on open files (ulimit -n)")]
    DescriptorLost,
    /// The third message is not the window.
    #[error("the server sent {value} where the window (-1) was due")]
    WindowExpected {
        /// What the server sent.
        value: i64,
    },
    /// The window came a second time.
    #[error("the server sent the window a second time")]
    WindowTwice,
    /// A peer has more vectors than the domain's.
    #[error("the server gave peer {peer} more than the {vectors} vectors of this domain")]
    VectorsTooMany {
        /// The peer.
        peer: u16,
        /// Vectors of each peer of the domain.
        vectors: u16,
    },
    /// More peers than a domain may have.
    #[error("the server announced more than {PEERS_MAX} peers")]
    PeersTooMany,
    /// Somebody left who had not joined, or we ourselves did.
    #[error("the server says that peer {peer} left, which was not there to leave")]
    LeftUnknown {
        /// The peer.
        peer: u16,
    },
    /// There is no such vector of ours.
    #[error("vector {vector} of {vectors}: no such vector")]
    Vector {
        /// The vector.
        vector: u16,
        /// Own vectors.
        vectors: u16,
    },
    /// The peer to ring is not there: not yet announced, or gone.
    #[error("peer {peer} is not in this domain; it may not have joined yet, or has left")]
    PeerUnknown {
        /// The peer.
        peer: u16,
    },
    /// The socket or an eventfd failed.
    #[error("the link failed: {0}")]
    Link(Errno),
}

/// A change among the others of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A peer is complete: all its vectors can be rung.
    Joined(u16),
    /// A peer is gone. Its id is not used again soon.
    Left(u16),
}

/// A peer of a domain. All methods take `&self`: a thread per vector may wait while others ring.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    id: u16,
    vectors: u16,
    window: OwnedFd,
    own: Vec<OwnedFd>,
    others: RwLock<Others>,
    inbox: Mutex<Inbox>,
}

/// The vectors of each other peer, in order.
type Others = BTreeMap<u16, Vec<OwnedFd>>;

impl Peer {
    /// Joins the domain at `socket`, whose peers have `vectors` vectors each, and waits up to `timeout` for the
    /// server to hand over our id, the window and all our own vectors.
    pub fn connect(socket: &Path, vectors: u16, timeout: Duration) -> Result<Self, PeerError> {
        if vectors == 0 || vectors > VECTORS_MAX {
            return Err(PeerError::VectorCount { vectors });
        }
        let stream = UnixStream::connect(socket)
            .map_err(|error| PeerError::Connect { socket: socket.to_owned(), reason: error.to_string() })?;
        Self::greet(stream.into(), vectors, timeout)
    }

    /// Goes through the server's greeting on a connected socket.
    pub(crate) fn greet(socket: OwnedFd, vectors: u16, timeout: Duration) -> Result<Self, PeerError> {
        let start = Instant::now();
        let mut inbox = Inbox::default();
        let mut state = Greeting { vectors, ..Greeting::default() };
        loop {
            while let Some(message) = inbox.next(socket.as_fd())? {
                state.take(message)?;
                if state.own.len() == usize::from(vectors) {
                    // The window precedes the first vector, so it is there.
                    let (Some(id), Some(window)) = (state.id, state.window) else {
                        return Err(PeerError::DescriptorMissing { with: "the window" });
                    };
                    for (&peer, bells) in &state.others {
                        if bells.len() == usize::from(vectors) {
                            inbox.changes.push_back(Change::Joined(peer));
                        }
                    }
                    let (others, inbox) = (RwLock::new(state.others), Mutex::new(inbox));
                    return Ok(Self { socket, id, vectors, window, own: state.own, others, inbox });
                }
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                let (have, timeout_ms) = (state.own.len(), timeout.as_millis());
                return Err(PeerError::Timeout { have, want: vectors, timeout_ms });
            }
            readable(socket.as_fd(), Some(left))?;
        }
    }

    /// Our own id: what the firmware puts into its Doorbell value to reach us.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Vectors of each peer of this domain.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// The window's descriptor.
    pub fn window(&self) -> BorrowedFd<'_> {
        self.window.as_fd()
    }

    /// Maps the window.
    pub fn map_window(&self) -> Result<Mapping, WindowError> {
        Mapping::new(self.window())
    }

    /// The descriptor of one of our vectors, readable when it was rung; for a caller's own poll.
    pub fn vector_descriptor(&self, vector: u16) -> Result<BorrowedFd<'_>, PeerError> {
        Ok(self.own_vector(vector)?.as_fd())
    }

    /// The other peers that are complete.
    pub fn peers(&self) -> Vec<u16> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let whole = others.iter().filter(|(_, bells)| bells.len() == usize::from(self.vectors));
        whole.map(|(&peer, _)| peer).collect()
    }

    /// Rings `vector` of `peer` (which may be ourselves). A vector rung before it is looked at is rung once.
    pub fn ring(&self, peer: u16, vector: u16) -> Result<(), PeerError> {
        if peer == self.id {
            return ring(self.own_vector(vector)?);
        }
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let bells = others.get(&peer).ok_or(PeerError::PeerUnknown { peer })?;
        match bells.get(usize::from(vector)) {
            Some(bell) => ring(bell),
            // Announced in part: its remaining vectors are on their way.
            None if vector < self.vectors => Err(PeerError::PeerUnknown { peer }),
            None => Err(PeerError::Vector { vector, vectors: self.vectors }),
        }
    }

    /// Waits until our `vector` is rung, up to `timeout` (for ever if `None`), and takes its rings: how often it
    /// was rung since last taken, 0 when the time was up.
    pub fn wait(&self, vector: u16, timeout: Option<Duration>) -> Result<u64, PeerError> {
        let bell = self.own_vector(vector)?;
        let start = Instant::now();
        loop {
            let rings = take_rings(bell.as_fd())?;
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            if rings > 0 || left.is_some_and(|left| left.is_zero()) {
                return Ok(rings);
            }
            readable(bell.as_fd(), left)?;
        }
    }

    /// Reads what the server says, and tells who joined and left since the last call, in order. Does not block:
    /// poll this peer's descriptor ([`AsFd`]) to learn when it is worth calling. After an error the peer hears
    /// no more of others, though the vectors that it knows still ring.
    pub fn poll_changes(&self) -> Result<Vec<Change>, PeerError> {
        let mut inbox = self.inbox();
        let mut changes: Vec<Change> = inbox.changes.drain(..).collect();
        for _ in 0..MESSAGES_PER_POLL {
            match self.poll_message(&mut inbox) {
                Ok(None) => break,
                Ok(Some(None)) => {}
                Ok(Some(Some(change))) => changes.push(change),
                Err(error) if changes.is_empty() => return Err(error),
                // First what was heard; the error stays for the next call.
                Err(_) => break,
            }
        }
        Ok(changes)
    }

    /// Waits up to `timeout` for `peer` to be complete. Changes seen on the way stay for
    /// [`poll_changes`](Self::poll_changes).
    pub fn wait_peer(&self, peer: u16, timeout: Duration) -> Result<bool, PeerError> {
        let start = Instant::now();
        loop {
            if self.peers().contains(&peer) {
                return Ok(true);
            }
            let seen = self.poll_changes()?;
            let progress = !seen.is_empty();
            self.inbox().changes.extend(seen);
            if progress {
                continue;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            readable(self.socket.as_fd(), Some(left))?;
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_vector(&self, vector: u16) -> Result<&OwnedFd, PeerError> {
        self.own.get(usize::from(vector)).ok_or(PeerError::Vector { vector, vectors: self.vectors })
    }

    /// Takes one message: `None` when none waits, `Some(None)` when it changed nobody's standing.
    fn poll_message(&self, inbox: &mut Inbox) -> Result<Option<Option<Change>>, PeerError> {
        let Some(message) = inbox.next(self.socket.as_fd())? else { return Ok(None) };
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        let change = match message.peer() {
            Err(error) => Err(error),
            Ok(peer) if peer == self.id && message.fd.is_some() => {
                Err(PeerError::VectorsTooMany { peer, vectors: self.vectors })
            }
            Ok(peer) if peer == self.id => Err(PeerError::LeftUnknown { peer }),
            Ok(peer) => apply(&mut others, peer, message.fd, self.vectors),
        };
        if let Err(error) = &change {
            inbox.failed = Some(error.clone());
        }
        change.map(Some)
    }
}

impl AsFd for Peer {
    /// The server's socket: readable when [`poll_changes`](Peer::poll_changes) has something to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Adds a vector to `peer`, or removes it.
fn apply(
    others: &mut Others,
    peer: u16,
    fd: Option<OwnedFd>,
    vectors: u16,
) -> Result<Option<Change>, PeerError> {
    let Some(fd) = fd else {
        return match others.remove(&peer) {
            None => Err(PeerError::LeftUnknown { peer }),
            // Never complete, so never said to have joined.
            Some(bells) if bells.len() < usize::from(vectors) => Ok(None),
            Some(_) => Ok(Some(Change::Left(peer))),
        };
    };
    if others.len() >= usize::from(PEERS_MAX) && !others.contains_key(&peer) {
        return Err(PeerError::PeersTooMany);
    }
    let bells = others.entry(peer).or_default();
    if bells.len() >= usize::from(vectors) {
        return Err(PeerError::VectorsTooMany { peer, vectors });
    }
    bells.push(bell(fd)?);
    Ok((bells.len() == usize::from(vectors)).then_some(Change::Joined(peer)))
}

/// Takes in a vector's eventfd. Ours don't block already; those of another server might, and nobody here may hang
/// on one.
fn bell(fd: OwnedFd) -> Result<OwnedFd, PeerError> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(PeerError::Link)?;
    if !flags.contains(OFlags::NONBLOCK) {
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(PeerError::Link)?;
    }
    Ok(fd)
}

/// Adds one ring to an eventfd.
fn ring(bell: &OwnedFd) -> Result<(), PeerError> {
    loop {
        match rustix::io::write(bell, &1u64.to_ne_bytes()) {
            // A counter that can hold no more has been rung enough.
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(PeerError::Link(errno)),
        }
    }
}

/// Takes the count of an eventfd, 0 if it was not rung. A server that hands out some other kind of descriptor
/// is told by the length it reads.
fn take_rings(bell: BorrowedFd<'_>) -> Result<u64, PeerError> {
    let mut count = [0; 8];
    loop {
        match rustix::io::read(bell, &mut count) {
            Ok(8) => return Ok(u64::from_ne_bytes(count)),
            Ok(_) => return Err(PeerError::Link(Errno::IO)),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(PeerError::Link(errno)),
        }
    }
}

/// Waits until `fd` has something to read, or an end, up to `timeout`; may return early.
fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<(), PeerError> {
    let timeout = timeout.map(timespec);
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(PeerError::Link(errno)),
    }
}

/// A whole message.
struct Message {
    value: i64,
    fd: Option<OwnedFd>,
}

impl Message {
    /// The peer that a message after the greeting's third names.
    fn peer(&self) -> Result<u16, PeerError> {
        match self.value {
            wire::WINDOW => Err(PeerError::WindowTwice),
            value => u16::try_from(value).map_err(|_| PeerError::Id { id: value }),
        }
    }
}

/// Assembles messages from what the socket gives.
#[derive(Debug, Default)]
struct Inbox {
    bytes: [u8; MESSAGE_BYTES],
    filled: usize,
    fd: Option<OwnedFd>,
    /// Changes heard but not yet told.
    changes: VecDeque<Change>,
    /// Once out of step, always out of step.
    failed: Option<PeerError>,
}

impl Inbox {
    /// The next whole message, `None` when it has not come yet.
    fn next(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, PeerError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let message = self.assemble(socket);
        if let Err(error) = &message {
            self.failed = Some(error.clone());
        }
        message
    }

    fn assemble(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, PeerError> {
        loop {
            let part = match wire::receive(socket, &mut self.bytes[self.filled..]) {
                Ok(part) => part,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(PeerError::Closed),
                Err(errno) => return Err(PeerError::Link(errno)),
            };
            if part.fds_lost {
                return Err(PeerError::DescriptorLost);
            }
            for fd in part.fds {
                if self.fd.replace(fd).is_some() {
                    return Err(PeerError::DescriptorsTooMany);
                }
            }
            match (part.bytes, self.filled) {
                (0, 0) => return Err(PeerError::Closed),
                (0, bytes) => return Err(PeerError::Truncated { bytes }),
                (bytes, _) => self.filled += bytes,
            }
            if self.filled == MESSAGE_BYTES {
                self.filled = 0;
                return Ok(Some(Message { value: i64::from_le_bytes(self.bytes), fd: self.fd.take() }));
            }
        }
    }
}

/// What the greeting has brought so far.
#[derive(Default)]
struct Greeting {
    vectors: u16,
    version_heard: bool,
    id: Option<u16>,
    window: Option<OwnedFd>,
    own: Vec<OwnedFd>,
    others: Others,
}

impl Greeting {
    fn take(&mut self, message: Message) -> Result<(), PeerError> {
        let Message { value, fd } = &message;
        match (self.version_heard, self.id, &self.window) {
            (false, ..) if *value != wire::VERSION => Err(PeerError::Version { version: *value }),
            (false, ..) if fd.is_some() => Err(PeerError::DescriptorUnexpected { with: "its version" }),
            (false, ..) => {
                self.version_heard = true;
                Ok(())
            }
            (true, None, _) if fd.is_some() => Err(PeerError::DescriptorUnexpected { with: "our id" }),
            (true, None, _) => {
                self.id = Some(u16::try_from(*value).map_err(|_| PeerError::Id { id: *value })?);
                Ok(())
            }
            (true, Some(_), None) if *value != wire::WINDOW => {
                Err(PeerError::WindowExpected { value: *value })
            }
            (true, Some(_), None) => {
                self.window = Some(message.fd.ok_or(PeerError::DescriptorMissing { with: "the window" })?);
                Ok(())
            }
            (true, Some(id), Some(_)) => {
                let peer = message.peer()?;
                if peer != id {
                    return apply(&mut self.others, peer, message.fd, self.vectors).map(|_| ());
                }
                self.own.push(bell(message.fd.ok_or(PeerError::LeftUnknown { peer })?)?);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
