//! How agents are managed: the manager's line, which the host writes, and the supervisor's lines, which answer it and
//! keep the books. All are slots: a line's tag moves with every change.
//!
//! | supervisor's line | |
//! | --- | --- |
//! | 0 | the answer to the manager's last request ([`ReplyLine`]) |
//! | 1 | the books ([`Books`]) |
//! | 2 | the agent that runs, or ran last ([`Identity`]) |
//! | 3 | the agent that is laid out beside it; name empty if none |
//! | 4 to 23 | the running agent's secure bindings ([`Binding`]), one each, the first unused one empty |

use crate::control::INCARNATION_MASK;
use crate::image::NAME_BYTES;
use crate::line::{PAYLOAD_MASK, Payload, field};

/// Lines of the supervisor's region.
pub const SUPERVISOR_LINES: usize = 24;
/// The line with the answer.
pub const REPLY_LINE: usize = 0;
/// The line with the books.
pub const BOOKS_LINE: usize = 1;
/// The line that says which agent runs.
pub const RUNNING_LINE: usize = 2;
/// The line that says which agent is laid out beside it.
pub const STANDBY_LINE: usize = 3;
/// The first line of bindings.
pub const BINDINGS_LINE: usize = 4;
/// Bindings that can be listed.
pub const BINDINGS_MAX: usize = SUPERVISOR_LINES - BINDINGS_LINE;

/// What the manager asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Manage {
    /// Nothing yet.
    None = 0,
    /// Check the image in the window, or find the bundle's agent for `policy`, and lay it out beside the running agent.
    Load = 1,
    /// Have what is laid out take over; first [`Manage::Load`], if nothing is. The newcomer is on trial for `trial_us`.
    Replace = 2,
    /// End the agent: revoke, and after `grace_us` abort. It is started again.
    Kill = 3,
    /// End the agent at once, because it owes a decision for too long. It counts as a crash.
    CondemnLate = 4,
    /// As above, because it rings without deciding.
    CondemnFlood = 5,
    /// As above, because it broke the protocol.
    CondemnPoison = 6,
    /// Compare the runtime's text, constants and translation tables with what they were at boot.
    Audit = 7,
    /// Forget what is laid out.
    Unload = 8,
    /// Copy `image_bytes` bytes of the card's disk, from sector `policy` on, to where images are laid. The answer's detail is
    /// the disk's sectors, of [`SECTOR_BYTES`](crate::slots::SECTOR_BYTES).
    ReadDisk = 9,
    /// The other way round, where that may be written ([`Writable`](crate::slots::Writable)); with no bytes, make durable what
    /// was written.
    WriteDisk = 10,
}

/// Bytes of the disk that one request reads or writes, at most.
pub const DISK_BYTES_MAX: usize = 64 << 10;

impl Manage {
    /// Every command, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Load,
        Self::Replace,
        Self::Kill,
        Self::CondemnLate,
        Self::CondemnFlood,
        Self::CondemnPoison,
        Self::Audit,
        Self::Unload,
        Self::ReadDisk,
        Self::WriteDisk,
    ];
}

/// The manager's line.
///
/// | word | |
/// | --- | --- |
/// | 0 | command 8 |
/// | 1 | request 32 |
/// | 2 | image_bytes 32 |
/// | 3 | grace_us 32 |
/// | 4 | trial_us 32 |
/// | 5 | policy 32; of the disk's commands the sector |
/// | 6 | incarnation 24 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManagerLine {
    /// What is asked.
    pub command: Manage,
    /// The request's number: another number is another request.
    pub request: u32,
    /// Bytes of the image in the window; 0 for the bundle's agent for `policy`.
    pub image_bytes: u32,
    /// How long a revoked agent may take to give its core back, in µs.
    pub grace_us: u32,
    /// How long a newcomer may take until the host confirms it, in µs.
    pub trial_us: u32,
    /// The policy of the bundle's agent that is asked for; of the disk's commands the first sector.
    pub policy: u32,
    /// The agent that is condemned: one that came after it is not meant. 0 for whichever runs.
    pub incarnation: u32,
}

impl ManagerLine {
    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.command as u64,
            self.request as u64,
            self.image_bytes as u64,
            self.grace_us as u64,
            self.trial_us as u64,
            self.policy as u64,
            self.incarnation as u64 & INCARNATION_MASK,
            0,
        ]
    }

    /// From a line's payload; an unknown command comes back as the number of its request.
    ///
    /// # Errors
    /// The request's number, for the refusal.
    pub fn from_payload(words: &Payload) -> Result<Self, u32> {
        let request = words[1] as u32;
        let command = *Manage::ALL.get(field(words[0], 0, 8) as usize).ok_or(request)?;
        Ok(Self {
            command,
            request,
            image_bytes: words[2] as u32,
            grace_us: words[3] as u32,
            trial_us: words[4] as u32,
            policy: words[5] as u32,
            incarnation: field(words[6], 0, 24) as u32,
        })
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reply {
    /// It is under way.
    Pending = 0,
    /// It was done.
    Done = 1,
    /// A command that this version does not know.
    UnknownCommand = 2,
    /// The image was refused: the detail is an [`ImageError`](crate::ImageError)'s number.
    RefusedImage = 3,
    /// The bundle has no agent for that policy.
    NoPolicy = 4,
    /// Too little memory is free for another agent.
    NoMemory = 5,
    /// No agent runs.
    NoAgent = 6,
    /// Another replacement is under way.
    Busy = 7,
    /// The newcomer failed its trial and the agent before it runs again: the detail is the [`Cause`](crate::Cause)'s
    /// number, 0 if the host did not confirm it in time.
    RolledBack = 8,
    /// The runtime's memory is not what it was: the detail tells which part.
    Damaged = 9,
    /// The loader has left no disk.
    NoDisk = 10,
    /// That may not be read or written so.
    Forbidden = 11,
    /// The disk did not do it.
    DiskFailed = 12,
}

impl Reply {
    /// Every reply, in the order of its number.
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::Done,
        Self::UnknownCommand,
        Self::RefusedImage,
        Self::NoPolicy,
        Self::NoMemory,
        Self::NoAgent,
        Self::Busy,
        Self::RolledBack,
        Self::Damaged,
        Self::NoDisk,
        Self::Forbidden,
        Self::DiskFailed,
    ];

    /// The reply in words, as the end of a sentence.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Pending => "is under way",
            Self::Done => "was done",
            Self::UnknownCommand => "is not known to this IPU's release",
            Self::RefusedImage => "was refused for its image",
            Self::NoPolicy => "was refused: the firmware's bundle has no agent for that policy",
            Self::NoMemory => "was refused: the IPU has too little memory left for another agent",
            Self::NoAgent => "was refused: no agent runs",
            Self::Busy => "was refused: another request of its kind is under way",
            Self::RolledBack => "was rolled back: the newcomer failed its trial",
            Self::Damaged => "found the runtime's memory changed",
            Self::NoDisk => {
                "was refused: no disk was left to the runtime; it has one where the loader booted it from virtio's"
            }
            Self::Forbidden => {
                "was refused: that part of the disk is not to be written, or the image that runs is on trial still"
            }
            Self::DiskFailed => "failed: the disk did not do it",
        }
    }
}

/// The supervisor's answer.
///
/// | word | |
/// | --- | --- |
/// | 0 | reply 8 |
/// | 1 | request 32 |
/// | 2 | detail 56 |
/// | 3 | incarnation 24 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLine {
    /// What became of it.
    pub reply: Reply,
    /// Of which request.
    pub request: u32,
    /// More about it.
    pub detail: u64,
    /// The agent that runs, or ran last.
    pub incarnation: u32,
}

impl ReplyLine {
    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.reply as u64,
            self.request as u64,
            self.detail & PAYLOAD_MASK,
            self.incarnation as u64,
            0,
            0,
            0,
            0,
        ]
    }

    /// From a line's payload; none for an unknown reply.
    #[must_use]
    pub fn from_payload(words: &Payload) -> Option<Self> {
        Some(Self {
            reply: *Reply::ALL.get(field(words[0], 0, 8) as usize)?,
            request: words[1] as u32,
            detail: words[2] & PAYLOAD_MASK,
            incarnation: words[3] as u32,
        })
    }
}

/// The supervisor's books: what it has, and what it has done since boot. Counts are modulo 2^28.
///
/// | word | |
/// | --- | --- |
/// | 0 | pages 28, pages_free 28: of the whole IPU |
/// | 1 | cores 8, cores_free 8, cores_lost 8: of the whole IPU; restart_in_ms 28 at 28 |
/// | 2 | started 28, faults 28 |
/// | 3 | aborts 28, revocations 28 |
/// | 4 | replacements 28, rollbacks 28 |
/// | 5 | images_refused 28, commands_refused 28 |
/// | 6 | restarts 28, given_up 28 |
/// | 7 | epitaphs 28, pages_held 28: of this enclave |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Pages that agents can have, in all.
    pub pages: u32,
    /// Those that no agent has.
    pub pages_free: u32,
    /// Cores that agents can have.
    pub cores: u8,
    /// Those on which no agent runs.
    pub cores_free: u8,
    /// Those that came to no good: the runtime itself ended there.
    pub cores_lost: u8,
    /// Time until the next restart, in ms; 0 if none is due.
    pub restart_in_ms: u32,
    /// Agents started.
    pub started: u32,
    /// Agents that ended by a fault, a panic, a forbidden call or the host's verdict.
    pub faults: u32,
    /// Cores taken back by an interrupt.
    pub aborts: u32,
    /// Cores asked for.
    pub revocations: u32,
    /// Newcomers that took over and stayed.
    pub replacements: u32,
    /// Newcomers that failed their trial.
    pub rollbacks: u32,
    /// Images refused.
    pub images_refused: u32,
    /// Commands refused.
    pub commands_refused: u32,
    /// Agents started again after an end.
    pub restarts: u32,
    /// Sessions in which no more restart was tried.
    pub given_up: u32,
    /// Epitaphs written.
    pub epitaphs: u32,
    /// Pages that this enclave's agents have.
    pub pages_held: u32,
}

const fn pair(low: u32, high: u32) -> u64 {
    (low & 0xfff_ffff) as u64 | ((high & 0xfff_ffff) as u64) << 28
}

impl Books {
    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            pair(self.pages, self.pages_free),
            self.cores as u64
                | (self.cores_free as u64) << 8
                | (self.cores_lost as u64) << 16
                | pair(0, self.restart_in_ms),
            pair(self.started, self.faults),
            pair(self.aborts, self.revocations),
            pair(self.replacements, self.rollbacks),
            pair(self.images_refused, self.commands_refused),
            pair(self.restarts, self.given_up),
            pair(self.epitaphs, self.pages_held),
        ]
    }

    /// From a line's payload.
    #[must_use]
    pub fn from_payload(words: &Payload) -> Self {
        let low = |word: usize| field(words[word], 0, 28) as u32;
        let high = |word: usize| field(words[word], 28, 28) as u32;
        Self {
            pages: low(0),
            pages_free: high(0),
            cores: words[1] as u8,
            cores_free: field(words[1], 8, 8) as u8,
            cores_lost: field(words[1], 16, 8) as u8,
            restart_in_ms: high(1),
            started: low(2),
            faults: high(2),
            aborts: low(3),
            revocations: high(3),
            replacements: low(4),
            rollbacks: high(4),
            images_refused: low(5),
            commands_refused: high(5),
            restarts: low(6),
            given_up: high(6),
            epitaphs: low(7),
            pages_held: high(7),
        }
    }
}

/// Which agent: its name, its image, its number.
///
/// | word | |
/// | --- | --- |
/// | 0 to 4 | name, seven bytes each |
/// | 5 | image's CRC-32C 32, on trial 1 |
/// | 6 | incarnation 24, version 32 at 24 |
/// | 7 | policy 32 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its name, zero-filled; all zero if there is no agent.
    pub name: [u8; NAME_BYTES],
    /// Its image.
    pub image_crc: u32,
    /// Whether it is on trial.
    pub on_trial: bool,
    /// Its number; 0 if it has not run yet.
    pub incarnation: u32,
    /// The ABI version that it was built for, [`Version::to_bits`](crate::Version::to_bits).
    pub version: u32,
    /// Its policy's number.
    pub policy: u32,
}

impl Identity {
    /// The line's payload.
    #[must_use]
    pub fn to_payload(&self) -> Payload {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(self.name.chunks(7)) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        words[5] = u64::from(self.image_crc) | u64::from(self.on_trial) << 32;
        words[6] = u64::from(self.incarnation & 0xff_ffff) | u64::from(self.version) << 24;
        words[7] = u64::from(self.policy);
        words
    }

    /// From a line's payload.
    #[must_use]
    pub fn from_payload(words: &Payload) -> Self {
        let mut name = [0; NAME_BYTES];
        for (word, bytes) in words.iter().zip(name.chunks_mut(7)) {
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = (word >> (8 * place)) as u8;
            }
        }
        Self {
            name,
            image_crc: words[5] as u32,
            on_trial: field(words[5], 32, 1) == 1,
            incarnation: field(words[6], 0, 24) as u32,
            version: field(words[6], 24, 32) as u32,
            policy: words[7] as u32,
        }
    }

    /// The name, as far as it is text; empty if there is no agent.
    #[must_use]
    pub fn name(&self) -> &str {
        crate::epitaph::printable(&self.name)
    }
}

/// What a binding is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BindingKind {
    /// Its cores: the first one's number, and in `bytes` how many.
    Core = 1,
    /// The image and its data: private memory.
    Memory = 2,
    /// The first core's stack; the others' are as long.
    Stack = 3,
    /// The grant page.
    Grant = 4,
    /// The message ring.
    Messages = 5,
    /// The decision slots.
    Slots = 6,
    /// The agent's control line.
    Control = 7,
    /// The doorbell page: the enclave's vectors and no others.
    Doorbell = 8,
    /// The DMA channel's register page.
    Dma = 9,
    /// Bytes that DMA may move.
    Buffer = 10,
    /// The virtual counter.
    Counter = 11,
}

impl BindingKind {
    /// From the wire.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Core,
            2 => Self::Memory,
            3 => Self::Stack,
            4 => Self::Grant,
            5 => Self::Messages,
            6 => Self::Slots,
            7 => Self::Control,
            8 => Self::Doorbell,
            9 => Self::Dma,
            10 => Self::Buffer,
            11 => Self::Counter,
            _ => return None,
        })
    }

    /// Its name on every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Memory => "memory",
            Self::Stack => "stack",
            Self::Grant => "grant",
            Self::Messages => "messages",
            Self::Slots => "slots",
            Self::Control => "control",
            Self::Doorbell => "doorbell",
            Self::Dma => "dma",
            Self::Buffer => "buffer",
            Self::Counter => "counter",
        }
    }
}

/// One secure binding.
///
/// | word | |
/// | --- | --- |
/// | 0 | kind 8, rights 8 ([`rights`](crate::image::rights)), device 1 |
/// | 1 | where the agent has it: an address, or the number of a core |
/// | 2 | the physical address |
/// | 3 | bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// To what.
    pub kind: BindingKind,
    /// What the agent may do with it, [`rights`](crate::image::rights).
    pub rights: u8,
    /// Whether it is mapped as Device memory.
    pub device: bool,
    /// The agent's address of it; of a core, its number.
    pub address: u64,
    /// The physical address, 0 where there is none.
    pub physical: u64,
    /// Its length in bytes, 0 where it has none.
    pub bytes: u64,
}

impl Binding {
    /// The line's payload.
    #[must_use]
    pub const fn to_payload(&self) -> Payload {
        [
            self.kind as u64 | (self.rights as u64) << 8 | (self.device as u64) << 16,
            self.address & PAYLOAD_MASK,
            self.physical & PAYLOAD_MASK,
            self.bytes & PAYLOAD_MASK,
            0,
            0,
            0,
            0,
        ]
    }

    /// From a line's payload; none for an empty line or an unknown kind.
    #[must_use]
    pub const fn from_payload(words: &Payload) -> Option<Self> {
        let Some(kind) = BindingKind::from_bits(field(words[0], 0, 8) as u8) else { return None };
        Some(Self {
            kind,
            rights: field(words[0], 8, 8) as u8,
            device: field(words[0], 16, 1) == 1,
            address: words[1],
            physical: words[2],
            bytes: words[3],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::rights;

    #[test]
    fn commands_and_answers_round_trip() {
        for command in Manage::ALL {
            let line = ManagerLine {
                command,
                request: u32::MAX,
                image_bytes: 7,
                grace_us: 8,
                trial_us: 9,
                policy: 10,
                incarnation: 0xff_ffff,
            };
            assert_eq!(ManagerLine::from_payload(&line.to_payload()), Ok(line));
        }
        assert_eq!(ManagerLine::from_payload(&[99, 3, 0, 0, 0, 0, 0, 0]), Err(3));
        for reply in Reply::ALL {
            let line = ReplyLine { reply, request: 5, detail: PAYLOAD_MASK, incarnation: 0xff_ffff };
            assert_eq!(ReplyLine::from_payload(&line.to_payload()), Some(line));
            assert!(!reply.in_words().is_empty());
        }
        assert_eq!(ReplyLine::from_payload(&[99, 3, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn books_round_trip_field_by_field() {
        let mut next = 0;
        let mut count = || {
            next += 1;
            0xfff_ff00 + next
        };
        let books = Books {
            pages: count(),
            pages_free: count(),
            cores: 15,
            cores_free: 14,
            cores_lost: 13,
            restart_in_ms: count(),
            started: count(),
            faults: count(),
            aborts: count(),
            revocations: count(),
            replacements: count(),
            rollbacks: count(),
            images_refused: count(),
            commands_refused: count(),
            restarts: count(),
            given_up: count(),
            epitaphs: count(),
            pages_held: count(),
        };
        let payload = books.to_payload();
        assert!(payload.iter().all(|word| *word <= PAYLOAD_MASK));
        assert_eq!(Books::from_payload(&payload), books);
    }

    #[test]
    fn identities_and_bindings_round_trip() {
        let mut name = [0; NAME_BYTES];
        name[..26].copy_from_slice(b"abcdefghijklmnopqrstuvwxyz");
        let identity = Identity {
            name,
            image_crc: 0xdead_beef,
            on_trial: true,
            incarnation: 0xab_cdef,
            version: 0x0001_0002,
            policy: u32::MAX,
        };
        let payload = identity.to_payload();
        assert!(payload.iter().all(|word| *word <= PAYLOAD_MASK));
        assert_eq!(Identity::from_payload(&payload), identity);
        assert_eq!(identity.name(), "abcdefghijklmnopqrstuvwxyz");
        assert_eq!(Identity::default().name(), "");
        for kind in (0..=255).filter_map(BindingKind::from_bits) {
            let binding = Binding {
                kind,
                rights: (rights::READ | rights::WRITE) as u8,
                device: true,
                address: 0x20_0400_4000,
                physical: 0x1000_0000,
                bytes: 4096,
            };
            assert_eq!(Binding::from_payload(&binding.to_payload()), Some(binding));
            assert!(!kind.name().is_empty());
        }
        assert_eq!(Binding::from_payload(&[0; 8]), None);
    }
}
