//! The ivshmem server: hands every peer of a domain the window and everybody's doorbells.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::wire::{self, PEERS_MAX, VECTORS_MAX};

/// Events kept for a reader that is late; the oldest go first.
const EVENTS_MAX: usize = 1024;
/// How long to leave the listeners and a congested peer alone after the system ran out of descriptors.
const BREATHER: Duration = Duration::from_millis(20);
/// How long a peer may leave its messages unread. QEMU reads from its main loop, which a debugger or a loaded
/// machine can hold up for a while; nobody else waits for that peer meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors that this process needs for everything but peers.
const FILES_SPARE: u64 = 256;

/// One peer domain, and so one enclave.
#[derive(Debug)]
pub struct Domain {
    /// Where to listen; made by [`Server::start`] (mode 0600) and removed when the server is dropped.
    pub socket: PathBuf,
    /// The shared memory that every peer is given: [`Window::descriptor`](crate::Window::descriptor).
    pub window: OwnedFd,
    /// Vectors of each peer, 1..=[`VECTORS_MAX`]. QEMU's `vectors=` must say the same.
    pub vectors: u16,
    /// Most peers at one time, 1..=[`PEERS_MAX`].
    pub peers_max: u16,
    /// How long a peer may leave messages unread before it is dropped.
    pub patience: Duration,
}

impl Domain {
    /// A domain with the usual bounds: eight peers, ten seconds.
    pub fn new(socket: impl Into<PathBuf>, window: OwnedFd, vectors: u16) -> Self {
        Self { socket: socket.into(), window, vectors, peers_max: 8, patience: PATIENCE }
    }
}

/// What happened in a domain, named by its index in the list given to [`Server::start`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer connected and got this id. It may not have read it yet.
    Joined {
        /// Index of the domain.
        domain: usize,
        /// The peer's id in that domain.
        peer: u16,
    },
    /// A peer is gone, and the others were told.
    Left {
        /// Index of the domain.
        domain: usize,
        /// The peer's id in that domain.
        peer: u16,
        /// Why.
        reason: LeaveReason,
    },
    /// A connection was closed before it became a peer.
    Refused {
        /// Index of the domain.
        domain: usize,
        /// Why.
        reason: RefuseReason,
    },
}

/// Why a peer left.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LeaveReason {
    /// It closed its socket, or died.
    #[error("it closed its connection")]
    Closed,
    /// It sent something. Clients of this protocol never do.
    #[error("it sent bytes to the server, which the protocol has no use for")]
    Spoke,
    /// It left messages unread for too long.
    #[error("it left {unread} messages unread for {patience_ms} ms")]
    Deaf {
        /// Messages that waited for it.
        unread: usize,
        /// The domain's patience.
        patience_ms: u128,
    },
    /// More messages waited for it than the domain's bound.
    #[error("{unread} messages waited for it, the most that are kept")]
    Swamped {
        /// Messages that waited for it.
        unread: usize,
    },
    /// Its socket failed.
    #[error("its socket failed: {0}")]
    Failed(Errno),
}

/// Why a connection was not made a peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefuseReason {
    /// The domain has as many peers as it may.
    #[error("the domain has its {peers_max} peers already")]
    Full {
        /// The domain's bound.
        peers_max: u16,
    },
    /// The system gave no socket or eventfd.
    #[error("the system gave no descriptor: {0}; raise the limit on open files (ulimit -n)")]
    Descriptors(Errno),
}

/// Why a server can't start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A bound of a domain is out of range.
    #[error("domain {domain}: {what} is {value}, and may be 1 to {max}")]
    Bound {
        /// Index of the domain.
        domain: usize,
        /// Which bound.
        what: &'static str,
        /// What it was.
        value: u16,
        /// The most it may be.
        max: u16,
    },
    /// Somebody listens there already.
    #[error("{} is in use by another server; stop it or choose another path", socket.display())]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket can't be made.
    #[error("can't listen on {}: {source}; the path must be new, writable and under 108 bytes", socket.display())]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The hard limit on open files is too low for the peers and vectors asked for.
    #[error(
        "{needed} open files needed and {limit} allowed; raise the hard limit (ulimit -Hn) or ask for fewer vectors"
    )]
    Files {
        /// Descriptors that the domains need when full.
        needed: u64,
        /// The process's hard limit.
        limit: u64,
    },
    /// The system refused an eventfd or a thread.
    #[error("can't start the server: {0}")]
    System(io::Error),
}

/// A running server. Dropping it stops its thread, closes every peer's connection and removes its sockets.
#[derive(Debug)]
pub struct Server {
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    sockets: Vec<SocketFile>,
}

impl Server {
    /// Listens on every domain's socket and serves them from one thread. Peers may connect once this returns.
    ///
    /// Raises the process's soft limit on open files as far as the domains need and the hard limit allows;
    /// children (QEMU) inherit it, and with many vectors need it.
    pub fn start(domains: Vec<Domain>) -> Result<Self, ServerError> {
        for (index, domain) in domains.iter().enumerate() {
            let bound = |what, value, max| match value {
                0 => Err(ServerError::Bound { domain: index, what, value, max }),
                _ if value > max => Err(ServerError::Bound { domain: index, what, value, max }),
                _ => Ok(()),
            };
            bound("vectors", domain.vectors, VECTORS_MAX)?;
            bound("peers_max", domain.peers_max, PEERS_MAX)?;
        }
        make_room(&domains)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?);
        let shared = Arc::new(Shared::default());
        let mut sockets = Vec::with_capacity(domains.len());
        let mut rooms = Vec::with_capacity(domains.len());
        for domain in domains {
            let (listener, file) = listen(&domain.socket)?;
            sockets.push(file);
            rooms.push(Room::new(listener, domain));
        }
        let service = Service { rooms, wake: Arc::clone(&wake), shared: Arc::clone(&shared) };
        let thread = thread::Builder::new()
            .name("neap-ivshmem".into())
            .spawn(move || service.run())
            .map_err(ServerError::System)?;
        Ok(Self { wake, shared, thread: Some(thread), sockets })
    }

    /// The sockets, in the order of the domains.
    pub fn sockets(&self) -> impl Iterator<Item = &std::path::Path> {
        self.sockets.iter().map(|socket| socket.0.as_path())
    }

    /// The oldest event not yet taken, waiting for one up to `timeout`; `None` when none came. At most
    /// 1024 events are kept for a reader that is late: the oldest are forgotten.
    pub fn next_event(&self, timeout: Duration) -> Option<Event> {
        let mut events = self.shared.events();
        if events.is_empty() {
            let waited = self.shared.arrived.wait_timeout_while(events, timeout, |events| events.is_empty());
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        events.pop_front()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A full counter wakes the thread as well as a new count would.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its hook; there is nothing more to undo here.
            let _ = thread.join();
        }
    }
}

/// Raises the soft limit on open files for `domains`, if need be.
fn make_room(domains: &[Domain]) -> Result<(), ServerError> {
    let per_copy: u64 =
        domains.iter().map(|domain| u64::from(domain.peers_max) * (u64::from(domain.vectors) + 1)).sum();
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit is the highest limit.
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let needed = per_copy + FILES_SPARE;
    if hard < needed {
        return Err(ServerError::Files { needed, limit: hard });
    }
    // A peer inside this process holds a copy of everything: room for the server, a host and an engine.
    let wanted = (3 * per_copy + FILES_SPARE).min(hard);
    if soft < wanted {
        let raised = Rlimit { current: Some(wanted), maximum };
        setrlimit(Resource::Nofile, raised).map_err(system)?;
    }
    Ok(())
}

fn system(errno: Errno) -> ServerError {
    ServerError::System(errno.into())
}

/// A socket's path, removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a living process has the socket. Asked with a socket of another type, which a living one turns away
/// (`EPROTOTYPE`) and only a dead one does not know (`ECONNREFUSED`): a stream would join its domain as a peer.
fn is_alive(socket: &std::path::Path) -> bool {
    let probe = || {
        let stranger = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        rustix::net::connect(&stranger, &SocketAddrUnix::new(socket)?)
    };
    probe() != Err(Errno::CONNREFUSED)
}

/// Listens on `socket`, first removing what a dead server left there.
fn listen(socket: &std::path::Path) -> Result<(UnixListener, SocketFile), ServerError> {
    let error = |source| ServerError::Listen { socket: socket.to_owned(), source };
    if fs::symlink_metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        if is_alive(socket) {
            return Err(ServerError::InUse { socket: socket.to_owned() });
        }
        fs::remove_file(socket).map_err(error)?;
    }
    let listener = UnixListener::bind(socket).map_err(error)?;
    let file = SocketFile(socket.to_owned());
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok((listener, file))
}

/// What the thread tells its owner.
#[derive(Debug, Default)]
struct Shared {
    events: Mutex<VecDeque<Event>>,
    arrived: Condvar,
}

impl Shared {
    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        let mut events = self.events();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
        self.arrived.notify_all();
    }
}

/// A message that waits for room in a peer's socket.
type Note = (i64, Option<Arc<OwnedFd>>);

/// A connected peer, as the server sees it.
struct Client {
    socket: UnixStream,
    vectors: Vec<Arc<OwnedFd>>,
    outbox: VecDeque<Note>,
    /// When it last took a message, or when the first of those that wait was put there.
    progress: Instant,
    /// The system could take no more descriptors in flight: no use in asking again before then.
    congested_until: Option<Instant>,
}

impl Client {
    fn post(&mut self, note: Note) {
        if self.outbox.is_empty() {
            self.progress = Instant::now();
        }
        self.outbox.push_back(note);
    }

    /// Sends what the socket takes.
    fn flush(&mut self) -> Result<(), LeaveReason> {
        self.congested_until = None;
        while let Some((value, fd)) = self.outbox.front() {
            match wire::send(self.socket.as_fd(), *value, fd.as_deref().map(AsFd::as_fd)) {
                Ok(()) => {
                    self.outbox.pop_front();
                    self.progress = Instant::now();
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // Too many descriptors are in flight, or no memory: it passes when somebody reads.
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                    self.congested_until = Some(Instant::now() + BREATHER);
                    break;
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LeaveReason::Closed),
                Err(errno) => return Err(LeaveReason::Failed(errno)),
            }
        }
        Ok(())
    }

    /// Reads the nothing that a client sends.
    fn listen(&self) -> Result<(), LeaveReason> {
        let mut byte = [0; 1];
        match rustix::net::recv(&self.socket, &mut byte, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(LeaveReason::Closed),
            Ok(_) => Err(LeaveReason::Spoke),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(LeaveReason::Failed(errno)),
        }
    }
}

/// A domain at work.
struct Room {
    listener: UnixListener,
    window: Arc<OwnedFd>,
    vectors: u16,
    peers_max: u16,
    patience: Duration,
    clients: BTreeMap<u16, Client>,
    id_next: u16,
    /// Accepting failed for want of descriptors: no use in trying again before then.
    closed_until: Option<Instant>,
}

impl Room {
    fn new(listener: UnixListener, domain: Domain) -> Self {
        Self {
            listener,
            window: Arc::new(domain.window),
            vectors: domain.vectors,
            peers_max: domain.peers_max,
            patience: domain.patience,
            clients: BTreeMap::new(),
            id_next: 0,
            closed_until: None,
        }
    }

    /// Most messages that wait for one peer: twice over, everybody's vectors and everybody's leaving.
    fn outbox_max(&self) -> usize {
        2 * (usize::from(self.peers_max) + 1) * (usize::from(self.vectors) + 1)
    }

    /// Takes in one connection, if one waits. Nothing is sent here: the greeting waits in the outbox.
    fn accept(&mut self) -> Option<Result<u16, RefuseReason>> {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return match errno {
                    Errno::AGAIN | Errno::INTR | Errno::CONNABORTED => None,
                    errno => {
                        self.closed_until = Some(Instant::now() + BREATHER);
                        Some(Err(RefuseReason::Descriptors(errno)))
                    }
                };
            }
        };
        if self.clients.len() >= usize::from(self.peers_max) {
            return Some(Err(RefuseReason::Full { peers_max: self.peers_max }));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let vectors: Result<Vec<_>, _> = (0..self.vectors).map(|_| eventfd(0, flags).map(Arc::new)).collect();
        let vectors = match vectors {
            Ok(vectors) => vectors,
            Err(errno) => return Some(Err(RefuseReason::Descriptors(errno))),
        };
        // Ids go up, so that a late doorbell for one that left reaches nobody; after 65,535 they start again.
        while self.clients.contains_key(&self.id_next) {
            self.id_next = self.id_next.wrapping_add(1);
        }
        let id = self.id_next;
        self.id_next = self.id_next.wrapping_add(1);

        let mut client = Client {
            socket,
            vectors,
            outbox: VecDeque::new(),
            progress: Instant::now(),
            congested_until: None,
        };
        client.post((wire::VERSION, None));
        client.post((i64::from(id), None));
        client.post((wire::WINDOW, Some(Arc::clone(&self.window))));
        for (&other_id, other) in &mut self.clients {
            for vector in &other.vectors {
                client.post((i64::from(other_id), Some(Arc::clone(vector))));
            }
            for vector in &client.vectors {
                other.post((i64::from(id), Some(Arc::clone(vector))));
            }
        }
        for index in 0..client.vectors.len() {
            let vector = Arc::clone(&client.vectors[index]);
            client.post((i64::from(id), Some(vector)));
        }
        self.clients.insert(id, client);
        Some(Ok(id))
    }

    /// Sees to one peer: what it sent, what waits for it, and for how long.
    fn attend(&mut self, id: u16, readable: bool, now: Instant) -> Result<(), LeaveReason> {
        let (outbox_max, patience) = (self.outbox_max(), self.patience);
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        if readable {
            client.listen()?;
        }
        if client.congested_until.is_none_or(|until| until <= now) {
            client.flush()?;
        }
        match client.outbox.len() {
            0 => Ok(()),
            unread if unread > outbox_max => Err(LeaveReason::Swamped { unread }),
            unread if now.saturating_duration_since(client.progress) >= patience => {
                Err(LeaveReason::Deaf { unread, patience_ms: patience.as_millis() })
            }
            _ => Ok(()),
        }
    }

    /// Forgets a peer and tells the others.
    fn dismiss(&mut self, id: u16) {
        self.clients.remove(&id);
        for other in self.clients.values_mut() {
            other.post((i64::from(id), None));
        }
    }

    /// When this domain next needs attention though nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let waiting = self.clients.values().filter(|client| !client.outbox.is_empty());
        let patience = waiting.map(|client| client.progress + self.patience).min();
        let congestion = self.clients.values().filter_map(|client| client.congested_until).min();
        [patience, congestion, self.closed_until].into_iter().flatten().min()
    }
}

/// The thread's whole state.
struct Service {
    rooms: Vec<Room>,
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

/// Whom a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Source {
    Listener(usize),
    Client(usize, u16),
}

impl Service {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            let Some(ready) = ready else { return };
            let now = Instant::now();
            for (source, _) in &ready {
                if let Source::Listener(domain) = *source {
                    self.admit(domain);
                }
            }
            // Every peer is seen to, not only those that are ready: patience runs out in silence.
            for domain in 0..self.rooms.len() {
                let ids: Vec<u16> = self.rooms[domain].clients.keys().copied().collect();
                for id in ids {
                    let readable = ready.iter().any(|(source, readable)| {
                        *readable && matches!(*source, Source::Client(d, i) if (d, i) == (domain, id))
                    });
                    if let Err(reason) = self.rooms[domain].attend(id, readable, now) {
                        self.rooms[domain].dismiss(id);
                        self.shared.tell(Event::Left { domain, peer: id, reason });
                    }
                }
            }
        }
    }

    /// Takes in one connection of `domain`. One at a time: another waits in the backlog, and poll returns at once.
    fn admit(&mut self, domain: usize) {
        match self.rooms[domain].accept() {
            None => {}
            Some(Ok(peer)) => self.shared.tell(Event::Joined { domain, peer }),
            Some(Err(reason)) => self.shared.tell(Event::Refused { domain, reason }),
        }
    }

    /// Sleeps until something is to do. `None` when the owner wants the thread gone.
    fn wait(&mut self) -> Option<Vec<(Source, bool)>> {
        let now = Instant::now();
        for room in &mut self.rooms {
            room.closed_until = room.closed_until.filter(|until| *until > now);
        }
        let mut sources = Vec::new();
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        for (domain, room) in self.rooms.iter().enumerate() {
            if room.closed_until.is_none() {
                sources.push(Source::Listener(domain));
                fds.push(PollFd::from_borrowed_fd(room.listener.as_fd(), PollFlags::IN));
            }
            for (&id, client) in &room.clients {
                let mut interest = PollFlags::IN | PollFlags::RDHUP;
                if !client.outbox.is_empty() && client.congested_until.is_none() {
                    interest |= PollFlags::OUT;
                }
                sources.push(Source::Client(domain, id));
                fds.push(PollFd::from_borrowed_fd(client.socket.as_fd(), interest));
            }
        }
        let deadline = self.rooms.iter().filter_map(Room::deadline).min();
        let timeout = deadline.map(|at| timespec(at.saturating_duration_since(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // Interrupted, or no memory for a moment: look again.
            Err(_) => return Some(Vec::new()),
        }
        if !fds[0].revents().is_empty() {
            return None;
        }
        let ready = sources.into_iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty());
        Some(ready.map(|(source, fd)| (source, fd.revents() != PollFlags::OUT)).collect())
    }
}

/// `duration` for poll, rounded up to a millisecond so that a deadline has passed when poll returns.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    let ms = duration.as_nanos().div_ceil(1_000_000).min(i64::MAX as u128 / 1_000_000) as i64;
    Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 }
}
