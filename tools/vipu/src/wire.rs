//! One message of the ivshmem client-server protocol, version 0 (QEMU, `docs/specs/ivshmem-spec.rst`).
//!
//! A message is eight bytes, a little-endian `i64`, with at most one file descriptor beside it:
//!
//! | order | value | descriptor | meaning |
//! | --- | --- | --- | --- |
//! | first | 0 | none | protocol version |
//! | second | 0..=65535 | none | the receiver's own id |
//! | third | -1 | window | the shared memory |
//! | any time after | a peer's id | eventfd | that peer's next vector, counted from 0; its own id names its own |
//! | any time after | a peer's id | none | that peer has left |

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The protocol version that both sides speak.
pub(crate) const VERSION: i64 = 0;
/// The value that carries the window's descriptor.
pub(crate) const WINDOW: i64 = -1;
/// Bytes of one message.
pub(crate) const MESSAGE_BYTES: usize = 8;
/// Most peers in one domain. An enclave has a host, an IPU and a DMA engine, and room for tools that look on.
pub const PEERS_MAX: u16 = 64;
/// Most vectors of one peer: half of what MSI-X allows (2048), and more than any host has CPUs in an enclave.
pub const VECTORS_MAX: u16 = 1024;

/// Sends one message without blocking.
///
/// A message is never split: the kernel takes eight bytes on a Unix stream whole or not at all. If it ever took
/// fewer, the stream would be out of step, and the peer is given up (`EPROTO`).
pub(crate) fn send(socket: BorrowedFd<'_>, value: i64, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let bytes = value.to_le_bytes();
    let fds: &[BorrowedFd<'_>] = fd.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)? {
        MESSAGE_BYTES => Ok(()),
        _ => Err(Errno::PROTO),
    }
}

/// What one read gave.
pub(crate) struct Part {
    /// Bytes written to the buffer; 0 at the end of the stream.
    pub bytes: usize,
    /// The descriptors that came with them, already owned, so none leaks whatever becomes of the message.
    pub fds: Vec<OwnedFd>,
    /// More descriptors came than a message may carry, and the kernel closed the rest.
    pub fds_lost: bool,
}

/// Reads up to `buffer.len()` bytes of a message without blocking.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Part, Errno> {
    // Room for two, so that a second descriptor is seen rather than guessed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Part { bytes: received.bytes, fds, fds_lost: received.flags.contains(ReturnFlags::CTRUNC) })
}
