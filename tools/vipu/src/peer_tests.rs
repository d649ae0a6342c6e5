//! A peer against servers that lie.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::{Change, Peer, PeerError};
use crate::wire;

/// Ample for what is sent before it is read; no test waits this long unless it fails.
const AMPLE: Duration = Duration::from_secs(20);

fn fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// Whether a message has a descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum With {
    Fd,
    Nothing,
}
use With::{Fd, Nothing};

/// Sends `messages` down a socket pair, closes it, and has a peer of two vectors greet the other end.
fn greet(messages: &[(i64, With)]) -> Result<Peer, PeerError> {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    for &(value, with) in messages {
        let fd = (with == Fd).then(fd);
        wire::send(near.as_fd(), value, fd.as_ref().map(AsFd::as_fd)).expect("room in the socket");
    }
    drop(near);
    Peer::greet(far.into(), 2, AMPLE)
}

fn error(messages: &[(i64, With)]) -> PeerError {
    greet(messages).expect_err("a malformed greeting was taken")
}

/// Version, own id 3, window.
const PREAMBLE: [(i64, With); 3] = [(0, Nothing), (3, Nothing), (-1, Fd)];

fn after_preamble(messages: &[(i64, With)]) -> Vec<(i64, With)> {
    [&PREAMBLE, messages].concat()
}

#[test]
fn a_whole_greeting_is_taken() {
    let peer =
        greet(&after_preamble(&[(1, Fd), (1, Fd), (2, Fd), (3, Fd), (3, Fd)])).expect("a good greeting");
    assert_eq!(peer.id(), 3);
    assert_eq!(peer.peers(), [1], "peer 2 has one of its two vectors only");
    assert_eq!(peer.ring(2, 1), Err(PeerError::PeerUnknown { peer: 2 }));
    assert_eq!(peer.ring(1, 1), Ok(()));
    assert_eq!(peer.ring(1, 2), Err(PeerError::Vector { vector: 2, vectors: 2 }));
    assert_eq!(peer.ring(9, 0), Err(PeerError::PeerUnknown { peer: 9 }));
    assert_eq!(peer.poll_changes(), Ok(vec![Change::Joined(1)]));
    assert_eq!(peer.poll_changes(), Err(PeerError::Closed));
}

#[test]
fn each_malformed_message_has_its_error() {
    let cases: &[(&[(i64, With)], PeerError)] = &[
        (&[], PeerError::Closed),
        (&[(1, Nothing)], PeerError::Version { version: 1 }),
        (&[(0, Fd)], PeerError::DescriptorUnexpected { with: "its version" }),
        (&[(0, Nothing), (65_536, Nothing)], PeerError::Id { id: 65_536 }),
        (&[(0, Nothing), (-2, Nothing)], PeerError::Id { id: -2 }),
        (&[(0, Nothing), (3, Fd)], PeerError::DescriptorUnexpected { with: "our id" }),
        (&[(0, Nothing), (3, Nothing), (3, Fd)], PeerError::WindowExpected { value: 3 }),
        (&[(0, Nothing), (3, Nothing), (-1, Nothing)], PeerError::DescriptorMissing { with: "the window" }),
        (&after_preamble(&[(-1, Fd)]), PeerError::WindowTwice),
        (&after_preamble(&[(i64::MIN, Fd)]), PeerError::Id { id: i64::MIN }),
        (&after_preamble(&[(3, Nothing)]), PeerError::LeftUnknown { peer: 3 }),
        (&after_preamble(&[(8, Nothing)]), PeerError::LeftUnknown { peer: 8 }),
        (&after_preamble(&[(8, Fd), (8, Fd), (8, Fd)]), PeerError::VectorsTooMany { peer: 8, vectors: 2 }),
        (&after_preamble(&[(3, Fd)]), PeerError::Closed),
    ];
    for (messages, expected) in cases {
        assert_eq!(&error(messages), expected, "after {messages:?}");
    }
    let crowd: Vec<_> = (100..=100 + i64::from(wire::PEERS_MAX)).map(|peer| (peer, Fd)).collect();
    assert_eq!(error(&after_preamble(&crowd)), PeerError::PeersTooMany);
}

#[test]
fn a_message_may_come_in_pieces_but_not_in_half() {
    use std::io::Write;
    let (mut near, far) = UnixStream::pair().expect("a socket pair");
    near.write_all(&0i64.to_le_bytes()).unwrap();
    near.write_all(&3i64.to_le_bytes()[..5]).unwrap();
    drop(near);
    assert_eq!(Peer::greet(far.into(), 2, AMPLE).unwrap_err(), PeerError::Truncated { bytes: 5 });

    // The rest of a message comes later, from another thread.
    let (mut near, far) = UnixStream::pair().expect("a socket pair");
    let sender = std::thread::spawn(move || {
        for byte in [0i64.to_le_bytes(), 3i64.to_le_bytes()].concat() {
            near.write_all(&[byte]).unwrap();
        }
        for (value, fd) in [(-1, fd()), (3, fd()), (3, fd())] {
            wire::send(near.as_fd(), value, Some(fd.as_fd())).unwrap();
        }
        near
    });
    let peer = Peer::greet(far.into(), 2, AMPLE).expect("a good greeting in pieces");
    assert_eq!(peer.id(), 3);
    drop(sender.join());
}

#[test]
fn a_silent_server_is_given_up() {
    let (_near, far) = UnixStream::pair().expect("a socket pair");
    let short = Duration::from_millis(10);
    let silent = Peer::greet(far.into(), 2, short).unwrap_err();
    assert_eq!(silent, PeerError::Timeout { have: 0, want: 2, timeout_ms: 10 });
}

#[test]
fn late_messages_are_checked_too() {
    for (value, with, expected) in [
        (3, Fd, PeerError::VectorsTooMany { peer: 3, vectors: 2 }),
        (3, Nothing, PeerError::LeftUnknown { peer: 3 }),
        (-1, Fd, PeerError::WindowTwice),
        (70_000, Fd, PeerError::Id { id: 70_000 }),
    ] {
        let good = after_preamble(&[(3, Fd), (3, Fd), (value, with)]);
        let peer = greet(&good).expect("the greeting was good");
        assert_eq!(peer.poll_changes().unwrap_err(), expected);
        assert_eq!(peer.poll_changes().unwrap_err(), expected, "an error stays");
        assert_eq!(peer.ring(3, 0), Ok(()), "known vectors still ring");
        assert_eq!(peer.wait(0, Some(AMPLE)), Ok(1));
    }
}

#[test]
fn a_vector_that_is_no_eventfd_is_an_error_when_waited_for() {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let null = File::open("/dev/null").expect("/dev/null");
    wire::send(near.as_fd(), 0, None).unwrap();
    wire::send(near.as_fd(), 3, None).unwrap();
    for value in [-1, 3, 3] {
        wire::send(near.as_fd(), value, Some(null.as_fd())).unwrap();
    }
    let peer = Peer::greet(far.into(), 2, AMPLE).expect("nobody can tell yet");
    assert!(matches!(peer.wait(0, Some(AMPLE)), Err(PeerError::Link(_))));
    assert!(matches!(peer.ring(3, 0), Err(PeerError::Link(_))));
}

proptest! {
    #![proptest_config(crate::seed::cases(256))]

    /// Whatever a server says, a peer ends in itself or in an error.
    #[test]
    fn random_messages_never_panic(messages in prop::collection::vec((-2i64..5, any::<bool>()), 0..24)) {
        let with: Vec<_> =
            messages.iter().map(|&(value, fd)| (value, if fd { Fd } else { Nothing })).collect();
        for start in [vec![], after_preamble(&[]), after_preamble(&[(3, Fd), (3, Fd)])] {
            if let Ok(peer) = greet(&[start, with.clone()].concat()) {
                while peer.poll_changes().is_ok() {}
            }
        }
    }
}
