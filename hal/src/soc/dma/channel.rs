//! The driver of one channel.

use core::fmt::Debug;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use embedded_hal::delay::DelayNs;
use thiserror::Error;

use super::registers::{
    ALIGN_BYTES, Descriptor, Fault, GRANTS_MAX, Grant, Identity, MAGIC, Registers, State, Status, VERSION,
};
use crate::soc::msix::Ring;

/// What any DMA driver's error can be asked, in the manner of embedded-hal's error traits.
pub trait Error: Debug {
    /// What kind of error it is, whatever the driver.
    fn kind(&self) -> ErrorKind;
}

/// Kinds of errors of a DMA driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no engine, or one that we can't talk to.
    Absent,
    /// A transfer runs already, or none does.
    State,
    /// The transfer is not one that the engine would make.
    Refused,
    /// The transfer was aborted.
    Aborted,
    /// The engine did not answer in time.
    Timeout,
    /// The engine said something that means nothing.
    Other,
}

/// Names a driver's error.
pub trait ErrorType {
    /// The error.
    type Error: Error;
}

/// A channel of some DMA engine, one transfer at a time.
pub trait Dma: ErrorType {
    /// Starts a transfer.
    fn start(&mut self, descriptor: &Descriptor) -> Result<(), Self::Error>;
    /// The transfer's end, `None` while it runs. An end is told once.
    fn poll(&mut self) -> Result<Option<Completion>, Self::Error>;
    /// Asks the engine to end the transfer; how it ended is for [`poll`](Self::poll) to say.
    fn abort(&mut self) -> Result<(), Self::Error>;
}

/// A transfer that moved all that it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// How much moved.
    pub moved_bytes: u64,
}

/// Why a channel can't do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DmaError {
    /// The page is no channel's, or not yet.
    #[error("the page's magic is {magic:#018x}: the DMA engine does not serve it (yet)")]
    Absent {
        /// What stands there.
        magic: u64,
    },
    /// The engine has another register layout.
    #[error("the DMA engine's registers are version {version}, and this driver knows {VERSION}")]
    Version {
        /// The engine's version.
        version: u32,
    },
    /// A constant of the page is out of range.
    #[error("the DMA channel's {register} is {value:#x}, which can't be")]
    Identity {
        /// Which register.
        register: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A transfer runs: poll it to its end first, or abort it.
    #[error("a transfer runs on this channel; wait for its end, or abort it")]
    Busy,
    /// No transfer runs.
    #[error("no transfer runs on this channel")]
    Idle,
    /// The transfer can't be one: found before the engine was asked.
    #[error("{0}")]
    Refused(Fault),
    /// The engine ended the transfer short.
    #[error("{fault}; {moved_bytes} bytes had moved")]
    Fault {
        /// Why.
        fault: Fault,
        /// How much had moved.
        moved_bytes: u64,
    },
    /// The status word means nothing.
    #[error("the DMA engine's status is {status:#018x}, which means nothing")]
    Status {
        /// What it reads.
        status: u64,
    },
    /// The engine did not finish in the time that the caller gave. The transfer still runs.
    #[error("the DMA engine did not finish in {polls} polls; abort the transfer")]
    Timeout {
        /// How often the status was read.
        polls: u32,
    },
}

impl Error for DmaError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent { .. } | Self::Version { .. } | Self::Identity { .. } => ErrorKind::Absent,
            Self::Busy | Self::Idle => ErrorKind::State,
            Self::Fault { fault: Fault::Aborted, .. } => ErrorKind::Aborted,
            Self::Refused(_) | Self::Fault { .. } => ErrorKind::Refused,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Status { .. } => ErrorKind::Other,
        }
    }
}

impl Identity {
    /// What the page says of its channel: whom to ring, and how much may move at once.
    pub fn read(registers: &Registers) -> Result<Self, DmaError> {
        // Acquire: the magic is written last.
        let magic = registers.magic.load(Acquire);
        if magic != MAGIC {
            return Err(DmaError::Absent { magic });
        }
        let version = registers.version.load(Relaxed);
        if version != VERSION {
            return Err(DmaError::Version { version });
        }
        let half = |register, value: u32| {
            u16::try_from(value).map_err(|_| DmaError::Identity { register, value: value.into() })
        };
        let grants = registers.grants.load(Relaxed);
        if grants as usize > GRANTS_MAX {
            return Err(DmaError::Identity { register: "GRANTS", value: grants.into() });
        }
        Ok(Self {
            engine_peer: half("ENGINE_PEER", registers.engine_peer.load(Relaxed))?,
            channel: half("CHANNEL", registers.channel.load(Relaxed))?,
            grants: grants as usize,
            bytes_max: registers.bytes_max.load(Relaxed),
        })
    }
}

/// One channel, and the doorbell that starts it.
pub struct Channel<'a, R> {
    registers: &'a Registers,
    identity: Identity,
    ring: R,
    ticket: u32,
    running: bool,
}

impl<'a, R: Ring> Channel<'a, R> {
    /// Opens the channel of `registers`, whose engine `ring` rings: a
    /// [`Doorbells`](crate::soc::msix::Doorbells) of the page's [`Identity`] (its engine's peer, its channel, one
    /// vector). A transfer that an earlier owner left running is this one's now: poll or abort it first.
    pub fn open(registers: &'a Registers, ring: R) -> Result<Self, DmaError> {
        let identity = Identity::read(registers)?;
        let bits = registers.status.load(Acquire);
        let status = Status::from_bits(bits).ok_or(DmaError::Status { status: bits })?;
        let running = status.state == State::Busy;
        Ok(Self { registers, identity, ring, ticket: status.ticket, running })
    }

    /// What the page said at opening.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The ranges that the channel was granted; those whose bits mean nothing are left out.
    pub fn grants(&self) -> impl Iterator<Item = Grant> + 'a {
        self.registers.grant_table.iter().take(self.identity.grants).filter_map(|entry| entry.load())
    }

    /// Polls to the end of the transfer, with `poll_ns` between two looks and `polls_max` looks at most.
    pub fn wait(
        &mut self,
        delay: &mut impl DelayNs,
        poll_ns: u32,
        polls_max: u32,
    ) -> Result<Completion, DmaError> {
        for _ in 0..polls_max {
            if let Some(completion) = self.poll()? {
                return Ok(completion);
            }
            delay.delay_ns(poll_ns);
        }
        Err(DmaError::Timeout { polls: polls_max })
    }
}

impl<R> ErrorType for Channel<'_, R> {
    type Error = DmaError;
}

impl<R: Ring> Dma for Channel<'_, R> {
    fn start(&mut self, descriptor: &Descriptor) -> Result<(), DmaError> {
        if self.running {
            return Err(DmaError::Busy);
        }
        // What the engine would refuse whatever it granted costs no doorbell.
        let aligned = |value: u64| value.is_multiple_of(ALIGN_BYTES);
        if !aligned(descriptor.source) || !aligned(descriptor.destination) {
            return Err(DmaError::Refused(Fault::Alignment));
        }
        if descriptor.bytes == 0 || !aligned(descriptor.bytes) || descriptor.bytes > self.identity.bytes_max {
            return Err(DmaError::Refused(Fault::Size));
        }
        self.ticket = self.ticket.wrapping_add(1);
        self.registers.request(self.ticket, descriptor);
        self.running = true;
        self.ring.ring();
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Completion>, DmaError> {
        if !self.running {
            return Err(DmaError::Idle);
        }
        // Acquire: with the status come the bytes moved and their number.
        let bits = self.registers.status.load(Acquire);
        let Some(status) = Status::from_bits(bits) else {
            return Err(DmaError::Status { status: bits });
        };
        if status.ticket != self.ticket {
            // Still the last one's: the doorbell is on its way.
            return Ok(None);
        }
        let moved_bytes = self.registers.moved_bytes.load(Relaxed);
        match status.state {
            State::Idle | State::Busy => Ok(None),
            State::Done => {
                self.running = false;
                Ok(Some(Completion { moved_bytes }))
            }
            State::Failed(fault) => {
                self.running = false;
                Err(DmaError::Fault { fault, moved_bytes })
            }
        }
    }

    fn abort(&mut self) -> Result<(), DmaError> {
        if !self.running {
            return Err(DmaError::Idle);
        }
        self.registers.request_abort();
        self.ring.ring();
        Ok(())
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
