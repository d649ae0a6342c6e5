//! One channel's register page.
//!
//! | offset | register | bits | written by | meaning |
//! | --- | --- | --- | --- | --- |
//! | 0x000 | MAGIC | 64 | engine, last | [`MAGIC`]: the registers up to 0x020 and the grants hold |
//! | 0x008 | VERSION | 32 | engine | [`VERSION`] |
//! | 0x00c | ENGINE_PEER | 32 | engine | the engine's id in the peer domain |
//! | 0x010 | CHANNEL | 32 | engine | the engine's vector that starts this channel |
//! | 0x014 | GRANTS | 32 | engine | how many entries of the grant table hold, at most [`GRANTS_MAX`] |
//! | 0x018 | BYTES_MAX | 64 | engine | the longest transfer |
//! | 0x040 | STATUS | 64 | engine | [`Status`]: 31:0 ticket, 39:32 state, 47:40 fault, 63:48 zero |
//! | 0x048 | MOVED_BYTES | 64 | engine | bytes moved for that ticket; written before STATUS |
//! | 0x080 | SOURCE | 64 | driver | address to read from |
//! | 0x088 | DESTINATION | 64 | driver | address to write to |
//! | 0x090 | BYTES | 64 | driver | length |
//! | 0x098 | DIRECTION | 32 | driver | 1 host to IPU, 2 IPU to host |
//! | 0x09c | CONTROL | 32 | driver | bit 0 ABORT, bit 1 NOTIFY; the rest zero |
//! | 0x0a0 | NOTIFY | 32 | driver | `peer << 16 \| vector` to ring at the end, if CONTROL says so |
//! | 0x0a4 | TICKET | 32 | driver, last | a new descriptor when it differs from the last one handled |
//! | 0x100 | grant table | 64 × 32 bytes | engine | 0x00 base, 0x08 bytes, 0x10 space, 0x14 access |
//!
//! What each side writes is in lines of its own. Space is 0 host, 1 IPU; access is bit 0 read, bit 1 write.
//!
//! **Life of a channel.** At reset the ticket is 0 and the state idle. A doorbell with the same ticket as the last
//! is spurious and ignored; with another it makes the state busy, then done or failed, always with that ticket. A
//! doorbell while busy makes the engine look at ABORT; a new ticket is looked at only after the end of the old.

use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use thiserror::Error;

use crate::soc::window::Shared;

/// Bytes of a channel's page.
pub const PAGE_BYTES: usize = 4096;
/// `NEAPDMA1`, in the order of the bytes in memory.
pub const MAGIC: u64 = u64::from_le_bytes(*b"NEAPDMA1");
/// The layout above.
pub const VERSION: u32 = 1;
/// Most ranges of one channel.
pub const GRANTS_MAX: usize = 64;
/// What addresses and lengths are multiples of.
pub const ALIGN_BYTES: u64 = 8;

/// A channel's registers. In the virtual IPU they are memory, which both sides reach through atomics.
#[repr(C, align(4096))]
pub struct Registers {
    /// [`MAGIC`] once the engine serves the channel.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// The engine's peer id.
    pub engine_peer: AtomicU32,
    /// The engine's vector for this channel.
    pub channel: AtomicU32,
    /// Entries of the grant table that hold.
    pub grants: AtomicU32,
    /// Longest transfer, in bytes.
    pub bytes_max: AtomicU64,
    _reserved0: [AtomicU64; 4],
    /// [`Status`].
    pub status: AtomicU64,
    /// Bytes moved for the status's ticket.
    pub moved_bytes: AtomicU64,
    _reserved1: [AtomicU64; 6],
    /// Where to read.
    pub source: AtomicU64,
    /// Where to write.
    pub destination: AtomicU64,
    /// How much.
    pub bytes: AtomicU64,
    /// [`Direction`].
    pub direction: AtomicU32,
    /// [`CONTROL_ABORT`] and [`CONTROL_NOTIFY`].
    pub control: AtomicU32,
    /// Whom to ring at the end.
    pub notify: AtomicU32,
    /// Which descriptor this is.
    pub ticket: AtomicU32,
    _reserved2: [AtomicU64; 11],
    /// What the channel may reach.
    pub grant_table: [GrantRegisters; GRANTS_MAX],
    _reserved3: [AtomicU64; 224],
}

/// One entry of the grant table.
#[repr(C)]
pub struct GrantRegisters {
    /// First address.
    pub base: AtomicU64,
    /// Length.
    pub bytes: AtomicU64,
    /// [`Space`].
    pub space: AtomicU32,
    /// [`Access`].
    pub access: AtomicU32,
    _reserved0: AtomicU64,
}

const _: () = assert!(offset_of!(Registers, magic) == 0x000);
const _: () = assert!(offset_of!(Registers, version) == 0x008);
const _: () = assert!(offset_of!(Registers, engine_peer) == 0x00c);
const _: () = assert!(offset_of!(Registers, channel) == 0x010);
const _: () = assert!(offset_of!(Registers, grants) == 0x014);
const _: () = assert!(offset_of!(Registers, bytes_max) == 0x018);
const _: () = assert!(offset_of!(Registers, status) == 0x040);
const _: () = assert!(offset_of!(Registers, moved_bytes) == 0x048);
const _: () = assert!(offset_of!(Registers, source) == 0x080);
const _: () = assert!(offset_of!(Registers, destination) == 0x088);
const _: () = assert!(offset_of!(Registers, bytes) == 0x090);
const _: () = assert!(offset_of!(Registers, direction) == 0x098);
const _: () = assert!(offset_of!(Registers, control) == 0x09c);
const _: () = assert!(offset_of!(Registers, notify) == 0x0a0);
const _: () = assert!(offset_of!(Registers, ticket) == 0x0a4);
const _: () = assert!(offset_of!(Registers, grant_table) == 0x100);
const _: () = assert!(offset_of!(GrantRegisters, space) == 0x10);
const _: () = assert!(offset_of!(GrantRegisters, access) == 0x14);
const _: () = assert!(size_of::<GrantRegisters>() == 0x20);
const _: () = assert!(size_of::<Registers>() == PAGE_BYTES);

// SAFETY: atomics alone, and the offsets above leave no room for padding between or after them.
unsafe impl Shared for Registers {}

/// CONTROL: end the transfer as soon as may be.
pub const CONTROL_ABORT: u32 = 1 << 0;
/// CONTROL: ring NOTIFY's vector at the end.
pub const CONTROL_NOTIFY: u32 = 1 << 1;
const CONTROL_KNOWN: u32 = CONTROL_ABORT | CONTROL_NOTIFY;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// SOURCE is an IOVA, DESTINATION a window offset.
    HostToIpu,
    /// SOURCE is a window offset, DESTINATION an IOVA.
    IpuToHost,
}

impl Direction {
    /// The register's value.
    pub fn bits(self) -> u32 {
        match self {
            Self::HostToIpu => 1,
            Self::IpuToHost => 2,
        }
    }

    /// What a register's value means, if anything.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            1 => Some(Self::HostToIpu),
            2 => Some(Self::IpuToHost),
            _ => None,
        }
    }
}

/// Whose memory a range is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The host's, by IOVA.
    Host,
    /// The window's, by offset.
    Ipu,
}

/// What a channel may do to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Be a source.
    Read,
    /// Be a destination.
    Write,
    /// Be both.
    ReadWrite,
}

impl Access {
    /// Whether the range may be a source.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether the range may be a destination.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// One range that a channel was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// First address in its space.
    pub base: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whose memory.
    pub space: Space,
    /// What for.
    pub access: Access,
}

impl GrantRegisters {
    /// Publishes a grant. The engine's side.
    pub fn store(&self, grant: &Grant) {
        self.base.store(grant.base, Relaxed);
        self.bytes.store(grant.bytes, Relaxed);
        self.space.store(if grant.space == Space::Host { 0 } else { 1 }, Relaxed);
        self.access.store(u32::from(grant.access.reads()) | u32::from(grant.access.writes()) << 1, Relaxed);
    }

    /// The grant, `None` if its bits mean nothing.
    pub fn load(&self) -> Option<Grant> {
        let space = match self.space.load(Relaxed) {
            0 => Space::Host,
            1 => Space::Ipu,
            _ => return None,
        };
        let access = match self.access.load(Relaxed) {
            1 => Access::Read,
            2 => Access::Write,
            3 => Access::ReadWrite,
            _ => return None,
        };
        Some(Grant { base: self.base.load(Relaxed), bytes: self.bytes.load(Relaxed), space, access })
    }
}

/// What a channel says of itself: all that firmware needs to start it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The engine's peer id: the upper half of the Doorbell value.
    pub engine_peer: u16,
    /// The engine's vector for this channel: the lower half.
    pub channel: u16,
    /// How many grants it lists.
    pub grants: usize,
    /// Longest transfer, in bytes.
    pub bytes_max: u64,
}

/// A transfer, as the engine reads it from the page or the driver writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where to read.
    pub source: u64,
    /// Where to write.
    pub destination: u64,
    /// How much.
    pub bytes: u64,
    /// Which way.
    pub direction: Direction,
    /// The peer and vector to ring at the end, if any.
    pub notify: Option<(u16, u16)>,
}

/// Why the engine ended a transfer short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// 1: direction or control bits that mean nothing.
    #[error("the engine knows no such descriptor; check direction and control")]
    Unknown,
    /// 2: an address is no multiple of 8.
    #[error("an address is not a multiple of 8 bytes")]
    Alignment,
    /// 3: the length is 0, no multiple of 8, or over BYTES_MAX.
    #[error("the length is zero, not a multiple of 8 bytes, or over the channel's maximum")]
    Size,
    /// 4: the source is not inside one readable grant.
    #[error("the source is not inside one range that the channel may read")]
    SourceBounds,
    /// 5: the destination is not inside one writable grant.
    #[error("the destination is not inside one range that the channel may write")]
    DestinationBounds,
    /// 6: source and destination share bytes.
    #[error("source and destination overlap")]
    Overlap,
    /// 7: the driver asked for the end.
    #[error("the transfer was aborted by its driver")]
    Aborted,
    /// 8: nobody has the vector that NOTIFY names.
    #[error("no peer of this domain has the vector to notify")]
    NotifyUnknown,
}

impl Fault {
    /// All of them, in the order of their codes, the first of which is 1.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Alignment,
        Self::Size,
        Self::SourceBounds,
        Self::DestinationBounds,
        Self::Overlap,
        Self::Aborted,
        Self::NotifyUnknown,
    ];

    /// The status word's code.
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The fault of a code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// 0: nothing was started since reset.
    Idle,
    /// 1: moving.
    Busy,
    /// 2: moved all.
    Done,
    /// 3: ended short.
    Failed(Fault),
}

/// The status word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The descriptor it is about.
    pub ticket: u32,
    /// How it stands.
    pub state: State,
}

impl Status {
    /// The register's value.
    pub fn bits(self) -> u64 {
        let (state, fault) = match self.state {
            State::Idle => (0, 0),
            State::Busy => (1, 0),
            State::Done => (2, 0),
            State::Failed(fault) => (3, u64::from(fault.code())),
        };
        u64::from(self.ticket) | state << 32 | fault << 40
    }

    /// What a register's value means, if anything.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let ticket = bits as u32;
        let state = match (bits >> 32 & 0xff, bits >> 40) {
            (0, 0) => State::Idle,
            (1, 0) => State::Busy,
            (2, 0) => State::Done,
            (3, fault) => State::Failed(Fault::from_code(u8::try_from(fault).ok()?)?),
            _ => return None,
        };
        Some(Self { ticket, state })
    }
}

impl Registers {
    /// Publishes the channel and resets it. The engine's side, before anybody may ring.
    ///
    /// At most [`GRANTS_MAX`] grants are listed.
    pub fn publish(&self, engine_peer: u16, channel: u16, bytes_max: u64, grants: &[Grant]) {
        self.version.store(VERSION, Relaxed);
        self.engine_peer.store(u32::from(engine_peer), Relaxed);
        self.channel.store(u32::from(channel), Relaxed);
        self.grants.store(grants.len().min(GRANTS_MAX) as u32, Relaxed);
        self.bytes_max.store(bytes_max, Relaxed);
        for (entry, grant) in self.grant_table.iter().zip(grants) {
            entry.store(grant);
        }
        self.ticket.store(0, Relaxed);
        self.control.store(0, Relaxed);
        self.moved_bytes.store(0, Relaxed);
        self.status.store(Status { ticket: 0, state: State::Idle }.bits(), Relaxed);
        self.magic.store(MAGIC, Release);
    }

    /// Takes the channel out of service. The engine's side.
    pub fn withdraw(&self) {
        self.magic.store(0, Release);
    }

    /// Says how ticket `ticket` stands, having moved `moved_bytes`. The engine's side.
    pub fn report(&self, ticket: u32, state: State, moved_bytes: u64) {
        self.moved_bytes.store(moved_bytes, Relaxed);
        // Release: whoever sees this status sees how much moved, and the bytes themselves.
        self.status.store(Status { ticket, state }.bits(), Release);
    }

    /// Reads the descriptor: its ticket, and what it asks for or why that means nothing. Every register is read
    /// once; what the driver writes meanwhile makes another descriptor, never half of a checked one.
    pub fn descriptor(&self) -> (u32, Result<Descriptor, Fault>) {
        // Acquire: the ticket is written last, so the rest is at least as new.
        let ticket = self.ticket.load(Acquire);
        let control = self.control.load(Relaxed);
        let notify = self.notify.load(Relaxed);
        let (source, destination) = (self.source.load(Relaxed), self.destination.load(Relaxed));
        let bytes = self.bytes.load(Relaxed);
        let direction = Direction::from_bits(self.direction.load(Relaxed));
        let descriptor = match direction {
            _ if control & !CONTROL_KNOWN != 0 => Err(Fault::Unknown),
            None => Err(Fault::Unknown),
            Some(_) if control & CONTROL_ABORT != 0 => Err(Fault::Aborted),
            Some(direction) => {
                let notify =
                    (control & CONTROL_NOTIFY != 0).then_some(((notify >> 16) as u16, notify as u16));
                Ok(Descriptor { source, destination, bytes, direction, notify })
            }
        };
        (ticket, descriptor)
    }

    /// Whether the driver asks for the end of what runs.
    pub fn abort_asked(&self) -> bool {
        self.control.load(Acquire) & CONTROL_ABORT != 0
    }

    /// Writes a descriptor; its ticket last. The driver's side.
    pub fn request(&self, ticket: u32, descriptor: &Descriptor) {
        self.source.store(descriptor.source, Relaxed);
        self.destination.store(descriptor.destination, Relaxed);
        self.bytes.store(descriptor.bytes, Relaxed);
        self.direction.store(descriptor.direction.bits(), Relaxed);
        let (control, notify) = match descriptor.notify {
            Some((peer, vector)) => (CONTROL_NOTIFY, u32::from(peer) << 16 | u32::from(vector)),
            None => (0, 0),
        };
        self.control.store(control, Relaxed);
        self.notify.store(notify, Relaxed);
        self.ticket.store(ticket, Release);
    }

    /// Asks for the end of what runs. The driver's side; it rings next.
    pub fn request_abort(&self) {
        // The driver is the one writer of CONTROL.
        self.control.store(self.control.load(Relaxed) | CONTROL_ABORT, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_words_read_back_and_others_mean_nothing() {
        let mut states = vec![State::Idle, State::Busy, State::Done];
        states.extend(Fault::ALL.map(State::Failed));
        for state in states {
            for ticket in [0, 1, u32::MAX] {
                let status = Status { ticket, state };
                assert_eq!(Status::from_bits(status.bits()), Some(status));
                // A bit more than is defined, anywhere above the fault, makes it nobody's.
                for bit in 48..64 {
                    assert_eq!(Status::from_bits(status.bits() | 1 << bit), None);
                }
            }
        }
        for (state, fault) in [(0, 1), (1, 1), (2, 7), (3, 0), (3, 9), (3, 255), (4, 0), (255, 0)] {
            assert_eq!(Status::from_bits(state << 32 | fault << 40), None, "state {state}, fault {fault}");
        }
    }

    #[test]
    fn fault_codes_are_the_documented_ones() {
        let codes: Vec<u8> = Fault::ALL.iter().map(|fault| fault.code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Fault::from_code(0), None);
        assert_eq!(Fault::from_code(9), None);
    }

    #[test]
    fn grants_read_back() {
        let entry: GrantRegisters = const {
            GrantRegisters {
                base: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                space: AtomicU32::new(0),
                access: AtomicU32::new(0),
                _reserved0: AtomicU64::new(0),
            }
        };
        assert_eq!(entry.load(), None, "no access is no grant");
        for space in [Space::Host, Space::Ipu] {
            for access in [Access::Read, Access::Write, Access::ReadWrite] {
                let grant = Grant { base: 0x1000, bytes: 64, space, access };
                entry.store(&grant);
                assert_eq!(entry.load(), Some(grant));
            }
        }
        entry.space.store(2, Relaxed);
        assert_eq!(entry.load(), None);
    }
}
