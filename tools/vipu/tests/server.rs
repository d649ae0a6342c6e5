//! The server with peers that are well, dead, deaf and mad.

mod seed;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use neap_vipu::{
    Change, Domain, Event, LeaveReason, Peer, PeerError, RefuseReason, Server, ServerError, Window,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// How long anything may take before the test fails; nothing is measured against it.
const AMPLE: Duration = Duration::from_secs(60);

/// A directory for sockets and windows, removed at the end.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("neap-vipu-test-").tempdir().expect("a temporary directory"))
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.0.path().join(format!("domain{index}.sock"))
    }

    fn window(&self, index: usize) -> Window {
        Window::create_in(self.0.path(), &format!("window{index}"), 4096).expect("a window")
    }

    fn domain(&self, index: usize, vectors: u16) -> Domain {
        let window = self.window(index);
        Domain::new(self.socket(index), window.descriptor().expect("a descriptor"), vectors)
    }
}

fn join(socket: &Path, vectors: u16) -> Peer {
    Peer::connect(socket, vectors, AMPLE).expect("the server is up")
}

/// The next event that is not a joining.
fn next_end(server: &Server) -> Event {
    loop {
        match server.next_event(AMPLE).expect("an event") {
            Event::Joined { .. } => {}
            event => return event,
        }
    }
}

/// Reads changes until `wanted` of them came.
fn changes(peer: &Peer, wanted: usize) -> Vec<Change> {
    let (start, mut seen) = (Instant::now(), Vec::new());
    while seen.len() < wanted {
        assert!(start.elapsed() < AMPLE, "{seen:?} came, and {wanted} should");
        seen.extend(peer.poll_changes().expect("a sane server"));
        std::thread::sleep(Duration::from_millis(1));
    }
    seen
}

#[test]
fn peers_share_the_window_and_ring_each_other() {
    let place = Place::new();
    let server = Server::start(vec![place.domain(0, 4)]).expect("a server");
    let first = join(&place.socket(0), 4);
    let second = join(&place.socket(0), 4);
    assert_eq!((first.id(), second.id()), (0, 1));
    assert!(first.wait_peer(1, AMPLE).unwrap());
    assert!(second.wait_peer(0, AMPLE).unwrap());
    assert_eq!(changes(&first, 1), [Change::Joined(1)]);
    assert_eq!(changes(&second, 1), [Change::Joined(0)]);

    let (here, there) = (first.map_window().unwrap(), second.map_window().unwrap());
    assert_eq!((here.bytes(), here.identity()), (4096, there.identity()));

    for vector in 0..4 {
        for _ in 0..=vector {
            first.ring(1, vector).unwrap();
        }
    }
    for vector in 0..4 {
        assert_eq!(second.wait(vector, Some(AMPLE)), Ok(u64::from(vector) + 1), "vector {vector}");
        assert_eq!(second.wait(vector, Some(Duration::ZERO)), Ok(0), "taken once");
    }
    second.ring(0, 3).unwrap();
    assert_eq!(first.wait(3, None), Ok(1));
    first.ring(first.id(), 0).unwrap();
    assert_eq!(first.wait(0, None), Ok(1), "a peer may ring itself");

    drop(second);
    assert_eq!(next_end(&server), Event::Left { domain: 0, peer: 1, reason: LeaveReason::Closed });
    assert_eq!(changes(&first, 1), [Change::Left(1)]);
    assert_eq!(first.ring(1, 0), Err(PeerError::PeerUnknown { peer: 1 }));
    assert_eq!(join(&place.socket(0), 4).id(), 2, "an id is not used again at once");
}

#[test]
fn a_domain_hears_of_its_own_peers_only() {
    let place = Place::new();
    let _server = Server::start(vec![place.domain(0, 2), place.domain(1, 3)]).expect("a server");
    let blue = join(&place.socket(0), 2);
    let red = join(&place.socket(1), 3);
    let red_too = join(&place.socket(1), 3);
    assert_eq!((blue.id(), red.id(), red_too.id()), (0, 0, 1));
    assert!(red.wait_peer(1, AMPLE).unwrap());
    assert_eq!(blue.poll_changes(), Ok(vec![]));
    assert_eq!(blue.peers(), []);
    assert_eq!(blue.ring(1, 0), Err(PeerError::PeerUnknown { peer: 1 }));
    assert_ne!(blue.map_window().unwrap().identity(), red.map_window().unwrap().identity());
}

#[test]
fn every_vector_count_arrives_and_rings() {
    for vectors in [1, 2, 15, 16, 64, 255, 256, 1023, 1024] {
        let place = Place::new();
        let _server =
            Server::start(vec![Domain { peers_max: 2, ..place.domain(0, vectors) }]).expect("a server");
        let first = join(&place.socket(0), vectors);
        let second = join(&place.socket(0), vectors);
        assert!(first.wait_peer(second.id(), AMPLE).unwrap());
        for vector in 0..vectors {
            first.ring(second.id(), vector).unwrap();
            assert_eq!(second.wait(vector, Some(AMPLE)), Ok(1), "vector {vector} of {vectors}");
        }
        assert_eq!(first.ring(second.id(), vectors), Err(PeerError::Vector { vector: vectors, vectors }));
    }
}

#[test]
fn bounds_are_refused_by_name() {
    let place = Place::new();
    for (domain, what, value, max) in [
        (place.domain(0, 0), "vectors", 0, 1024),
        (place.domain(1, 1025), "vectors", 1025, 1024),
        (Domain { peers_max: 0, ..place.domain(2, 1) }, "peers_max", 0, 64),
        (Domain { peers_max: 65, ..place.domain(3, 1) }, "peers_max", 65, 64),
    ] {
        match Server::start(vec![domain]).expect_err("out of bounds") {
            ServerError::Bound { domain: 0, what: w, value: v, max: m } => {
                assert_eq!((w, v, m), (what, value, max));
            }
            other => panic!("{other}"),
        }
    }
    assert!(matches!(Peer::connect(&place.socket(0), 0, AMPLE), Err(PeerError::VectorCount { vectors: 0 })));
    assert!(matches!(Peer::connect(&place.socket(0), 1, AMPLE), Err(PeerError::Connect { .. })));
}

#[test]
fn a_full_domain_refuses_and_has_room_again() {
    let place = Place::new();
    let server = Server::start(vec![Domain { peers_max: 1, ..place.domain(0, 2) }]).expect("a server");
    let only = join(&place.socket(0), 2);
    assert_eq!(Peer::connect(&place.socket(0), 2, AMPLE).unwrap_err(), PeerError::Closed);
    assert_eq!(next_end(&server), Event::Refused { domain: 0, reason: RefuseReason::Full { peers_max: 1 } });
    drop(only);
    assert_eq!(next_end(&server), Event::Left { domain: 0, peer: 0, reason: LeaveReason::Closed });
    assert_eq!(join(&place.socket(0), 2).id(), 1);
}

#[test]
fn a_peer_that_dies_inside_its_greeting_harms_nobody() {
    let place = Place::new();
    // So many vectors that the greeting cannot fit the socket: the death falls inside it.
    let server = Server::start(vec![Domain { peers_max: 4, ..place.domain(0, 1024) }]).expect("a server");
    let survivor = join(&place.socket(0), 1024);
    drop(UnixStream::connect(place.socket(0)).unwrap());
    assert!(matches!(
        next_end(&server),
        Event::Left { domain: 0, peer: 1, reason: LeaveReason::Closed | LeaveReason::Failed(_) }
    ));
    let newcomer = join(&place.socket(0), 1024);
    assert_eq!(newcomer.peers(), [0]);
    assert!(survivor.wait_peer(newcomer.id(), AMPLE).unwrap());
    survivor.ring(newcomer.id(), 1023).unwrap();
    assert_eq!(newcomer.wait(1023, None), Ok(1));
}

#[test]
fn a_peer_that_speaks_is_dropped() {
    let place = Place::new();
    let server = Server::start(vec![place.domain(0, 2)]).expect("a server");
    let survivor = join(&place.socket(0), 2);
    let mut mad = UnixStream::connect(place.socket(0)).unwrap();
    mad.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(next_end(&server), Event::Left { domain: 0, peer: 1, reason: LeaveReason::Spoke });
    assert_eq!(changes(&survivor, 2), [Change::Joined(1), Change::Left(1)]);
}

#[test]
fn a_peer_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let place = Place::new();
    let domain = Domain { patience: Duration::from_millis(100), peers_max: 4, ..place.domain(0, 1024) };
    let server = Server::start(vec![domain]).expect("a server");
    let deaf = UnixStream::connect(place.socket(0)).unwrap();
    let survivor = join(&place.socket(0), 1024);
    match next_end(&server) {
        Event::Left { domain: 0, peer: 0, reason: LeaveReason::Deaf { unread, patience_ms: 100 } } => {
            assert!(unread > 0);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(survivor.id(), 1);
    drop(deaf);
}

#[test]
fn what_waits_for_a_deaf_peer_is_bounded() {
    let place = Place::new();
    // A patience that never ends: only the bound can end it.
    let domain = Domain { patience: AMPLE * 100, peers_max: 2, ..place.domain(0, 1024) };
    let server = Server::start(vec![domain]).expect("a server");
    let _deaf = UnixStream::connect(place.socket(0)).unwrap();
    let swamped = loop {
        drop(join(&place.socket(0), 1024));
        // The socket frees the id's room when its leaving is seen.
        match next_end(&server) {
            Event::Left { peer: 0, reason, .. } => break reason,
            Event::Left { reason: LeaveReason::Closed, .. } => {}
            other => panic!("{other:?}"),
        }
    };
    // Twice over, three peers' vectors and leaving.
    match swamped {
        LeaveReason::Swamped { unread } => assert!((6150..6150 + 2 * 1025).contains(&unread), "{unread}"),
        other => panic!("{other}"),
    }
}

#[test]
fn the_sockets_come_and_go_with_the_server() {
    let place = Place::new();
    let server = Server::start(vec![place.domain(0, 1)]).expect("a server");
    assert_eq!(server.sockets().collect::<Vec<_>>(), [place.socket(0)]);
    let window = place.0.path().join("other-window");
    let other = Window::create_in(place.0.path(), "other-window", 4096).unwrap();
    let second = Server::start(vec![Domain::new(place.socket(0), other.descriptor().unwrap(), 1)]);
    assert!(matches!(second, Err(ServerError::InUse { .. })));
    let peer = join(&place.socket(0), 1);
    assert_eq!(peer.id(), 0, "nobody joined to see whether the server lives");
    drop(server);
    assert!(!place.socket(0).exists());
    // The server's thread is gone, and its end of the socket with it.
    assert_eq!(peer.poll_changes(), Err(PeerError::Closed));

    // What a killed server left behind does not stop the next one.
    drop(std::os::unix::net::UnixListener::bind(place.socket(0)).unwrap());
    assert!(place.socket(0).exists());
    drop(Server::start(vec![place.domain(0, 1)]).expect("a stale socket is replaced"));
    fs::write(place.socket(0), "a file of somebody's").unwrap();
    assert!(matches!(
        Server::start(vec![place.domain(1, 1), place.domain(0, 1)]),
        Err(ServerError::Listen { .. })
    ));
    assert!(!place.socket(1).exists(), "a start that failed leaves nothing");
    assert_eq!(fs::read(place.socket(0)).unwrap(), b"a file of somebody's");
    drop(other);
    assert!(!window.exists());
}

#[test]
fn a_window_is_a_bar_or_nothing() {
    let place = Place::new();
    for bytes in [0, 1, 4095, 4097, 6144, u64::MAX] {
        assert!(Window::create_in(place.0.path(), "odd", bytes).is_err(), "{bytes}");
    }
    // More than any disk: the space is not there, and no file stays.
    assert!(Window::create_in(place.0.path(), "vast", 1 << 62).is_err());
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
    let window = Window::create(&format!("neap-vipu-test-{}", std::process::id()), 1 << 20).unwrap();
    let path = window.path().to_owned();
    assert_eq!((fs::metadata(&path).unwrap().len(), window.bytes()), (1 << 20, 1 << 20));
    assert!(
        Window::create_in(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap(), 4096).is_err()
    );
    drop(window);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(seed::cases(24))]

    /// Clients that send random bytes, read a random part and die in a random order never hurt a good one.
    #[test]
    fn random_clients_are_survived(
        clients in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0usize..200, any::<bool>()), 1..12)
    ) {
        use std::io::Read;
        let place = Place::new();
        let server = Server::start(vec![Domain { peers_max: 32, ..place.domain(0, 3) }]).expect("a server");
        let survivor = join(&place.socket(0), 3);
        let mut held = Vec::new();
        for (bytes, read_bytes, hold) in &clients {
            let mut client = UnixStream::connect(place.socket(0)).unwrap();
            client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            // The server may have hung up on us by now, as it should.
            let _ = client.read(&mut vec![0; *read_bytes]);
            let _ = client.write_all(bytes);
            if *hold {
                held.push(client);
            }
        }
        let newcomer = join(&place.socket(0), 3);
        prop_assert!(survivor.wait_peer(newcomer.id(), AMPLE).unwrap());
        survivor.ring(newcomer.id(), 2).unwrap();
        prop_assert_eq!(newcomer.wait(2, Some(AMPLE)), Ok(1));
        drop(server);
        prop_assert!(!place.socket(0).exists());
    }
}
