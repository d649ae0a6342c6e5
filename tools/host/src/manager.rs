//! Managing one enclave's agents: what is asked of the supervisor through the manager's line, and what it answers.
//!
//! There is one manager to a window, because a line has one writer. A request is answered by its number; a later one
//! takes the answer's place, and whoever waited for the earlier is told so.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neap_abi::control::policy_id;
use neap_abi::image::IMAGE_BYTES_MAX;
use neap_abi::supervisor::{
    BINDINGS_LINE, BOOKS_LINE, Binding, Books, Identity, REPLY_LINE, RUNNING_LINE, STANDBY_LINE,
    SUPERVISOR_LINES,
};
use neap_abi::{
    AgentControl, Cause, Hello, ImageError, Manage, ManagerLine, Payload, RegionKind, Reply, ReplyLine,
};
use neap_queue::{Line, SlotWriter};
use neap_vipu::Peer;
use thiserror::Error;

use crate::card_disk::Sectors;
use crate::device::DeviceError;
use crate::link::SUPERVISOR_VECTOR;
use crate::window::{HostWindow, HostWindowError};

/// Between two looks at the answer.
const LOOK: Duration = Duration::from_micros(500);

/// Why an agent was not managed as asked.
#[derive(Debug, Error)]
pub enum ManageError {
    /// The window has no place for it.
    #[error("this IPU's agents cannot be managed ({0}); use a release of 1.2 or later")]
    Unmanaged(HostWindowError),
    /// The image does not fit.
    #[error("the agent image has {bytes} bytes, and the IPU takes {max} at most; strip it")]
    TooLarge {
        /// Bytes that it has.
        bytes: usize,
        /// Bytes that there is room for.
        max: usize,
    },
    /// The supervisor said no.
    #[error("{what} {}{}", reply.in_words(), in_words(*reply, *detail))]
    Answered {
        /// What was asked.
        what: &'static str,
        /// What it said.
        reply: Reply,
        /// The rest of what it said.
        detail: u64,
    },
    /// The supervisor said nothing in time.
    #[error("{what}: no answer from the IPU's supervisor in {waited_ms} ms; look at its log (`neap log`)")]
    Silent {
        /// What was asked.
        what: &'static str,
        /// How long we waited.
        waited_ms: u128,
    },
    /// The driver.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A later request took the answer's place.
    #[error("{what}: a later request came before its answer; `neap agent list` says what became of it")]
    Superseded {
        /// What was asked.
        what: &'static str,
    },
}

/// What a reply's detail says.
fn in_words(reply: Reply, detail: u64) -> String {
    match reply {
        Reply::RefusedImage => format!(": {}", ImageError::in_words(detail)),
        Reply::RolledBack => match u8::try_from(detail).ok().and_then(Cause::from_bits) {
            Some(cause) => format!(", it ended by {}", cause.name()),
            None => ", the host did not confirm it in time".to_owned(),
        },
        Reply::Damaged => format!(": part {detail}"),
        _ => String::new(),
    }
}

/// A command's name in an error.
pub(crate) const fn name(command: Manage) -> &'static str {
    match command {
        Manage::None => "nothing",
        Manage::Load => "loading an agent",
        Manage::Replace => "replacing the agent",
        Manage::Kill => "killing the agent",
        Manage::CondemnLate | Manage::CondemnFlood | Manage::CondemnPoison => "condemning the agent",
        Manage::Audit => "the audit of the runtime's memory",
        Manage::Unload => "unloading the agent",
        Manage::ReadDisk => "reading the card's disk",
        Manage::WriteDisk => "writing to the card's disk",
    }
}

/// How long a line may be half written: its writer's core may have lost its turn meanwhile.
const HALF_WRITTEN: Duration = Duration::from_millis(50);

/// What a line says, once it is whole; nothing if none was ever written, or its writer stopped amid one.
fn whole(line: &Line) -> Option<Payload> {
    let start = Instant::now();
    loop {
        match line.read_any() {
            Some((payload, _)) => return Some(payload),
            None if line.is_fresh() || start.elapsed() >= HALF_WRITTEN => return None,
            None => std::thread::sleep(LOOK),
        }
    }
}

/// What the supervisor's lines say.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    /// The agent that runs, or ran last.
    pub running: Option<Identity>,
    /// The agent that is laid out beside it.
    pub standby: Option<Identity>,
    /// The books; none before the supervisor has written them.
    pub books: Option<Books>,
    /// The running agent's secure bindings.
    pub bindings: Vec<Binding>,
}

impl Agents {
    /// From the lines of a supervisor's region.
    #[must_use]
    pub fn read(lines: &[Line]) -> Self {
        Self::of(|at| whole(lines.get(at)?))
    }

    /// From the payloads of those lines, by their place.
    #[must_use]
    pub fn of(payload: impl Fn(usize) -> Option<Payload>) -> Self {
        let identity = |at| payload(at).map(|words| Identity::from_payload(&words));
        let there = |at| identity(at).filter(|identity| !identity.name().is_empty());
        let bindings = (BINDINGS_LINE..SUPERVISOR_LINES).map_while(|at| Binding::from_payload(&payload(at)?));
        Self {
            running: there(RUNNING_LINE),
            standby: there(STANDBY_LINE),
            books: payload(BOOKS_LINE).map(|words| Books::from_payload(&words)),
            bindings: bindings.collect(),
        }
    }
}

/// The writing end of the manager's line.
#[derive(Debug)]
struct Writer {
    slot: SlotWriter,
    request: u32,
}

/// How long a request for the disk may take.
pub(crate) const DISK_PATIENCE: Duration = Duration::from_secs(60);

/// The manager of one enclave's agents.
#[derive(Debug)]
pub struct Manager<'w> {
    window: &'w HostWindow,
    peer: &'w Peer,
    hello: Hello,
    line: &'w Line,
    supervisor: &'w [Line],
    agent: &'w Line,
    writer: Mutex<Writer>,
    /// Held over an image and the request that names it.
    staging: Mutex<()>,
}

impl<'w> Manager<'w> {
    /// The manager over a window whose hello page is `hello`. There may be no other.
    ///
    /// # Errors
    /// A window without the lines for it.
    pub fn new(window: &'w HostWindow, peer: &'w Peer, hello: &Hello) -> Result<Self, ManageError> {
        let lines = |kind| window.lines(hello, kind).map_err(ManageError::Unmanaged);
        let line = &lines(RegionKind::Manager)?[0];
        // The last request's number is another's, if this host is not the first.
        let asked = line.read_any().map_or(0, |(payload, _)| payload[1] as u32);
        Ok(Self {
            window,
            peer,
            hello: hello.clone(),
            line,
            supervisor: lines(RegionKind::Supervisor)?,
            agent: &lines(RegionKind::AgentControl)?[0],
            writer: Mutex::new(Writer { slot: SlotWriter::after(line), request: asked }),
            staging: Mutex::new(()),
        })
    }

    /// Lays an agent out beside the one that runs: from `image`, or the bundle's for `policy`.
    ///
    /// # Errors
    /// An image that is too large or refused, a bundle without such an agent, a full IPU, silence.
    pub fn load(
        &self,
        image: Option<&[u8]>,
        policy: &str,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let _staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = image {
            let (bytes, max) = (image.len(), IMAGE_BYTES_MAX);
            if bytes > max {
                return Err(ManageError::TooLarge { bytes, max });
            }
            self.window
                .set_region_bytes(&self.hello, RegionKind::Image, 0, image)
                .map_err(ManageError::Unmanaged)?;
        }
        let image_bytes = image.map_or(0, <[u8]>::len) as u32;
        let line = ManagerLine { image_bytes, policy: policy_id(policy), ..asking(Manage::Load) };
        self.carry_out(line, timeout)
    }

    /// Has what is laid out take over, or first lays out the bundle's agent for `policy`. The newcomer has `trial` until
    /// the host has confirmed it, which an attached host does by itself.
    ///
    /// # Errors
    /// No agent to replace, a newcomer that was rolled back, silence.
    pub fn replace(
        &self,
        policy: &str,
        trial: Duration,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let before = self.list().books.unwrap_or_default();
        let trial_us = u32::try_from(trial.as_micros()).unwrap_or(u32::MAX);
        let asked = self.carry_out(
            ManagerLine { trial_us, policy: policy_id(policy), ..asking(Manage::Replace) },
            timeout,
        );
        let Err(ManageError::Superseded { what }) = asked else { return asked };
        // The answer is another request's, but the books tell.
        let start = Instant::now();
        loop {
            let Agents { running, books, .. } = self.list();
            let books = books.unwrap_or_default();
            let (request, incarnation) = (0, running.map_or(0, |running| running.incarnation));
            if books.rollbacks != before.rollbacks {
                return Err(ManageError::Answered { what, reply: Reply::RolledBack, detail: 0 });
            }
            if books.replacements != before.replacements {
                return Ok(ReplyLine { reply: Reply::Done, request, detail: 0, incarnation });
            }
            if start.elapsed() >= timeout {
                return Err(ManageError::Superseded { what });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the agent: it is asked for its core, and after `grace` the core is taken. It is started again at once.
    ///
    /// # Errors
    /// No agent to end, silence.
    pub fn kill(&self, grace: Duration, timeout: Duration) -> Result<ReplyLine, ManageError> {
        let grace_us = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX);
        self.carry_out(ManagerLine { grace_us, ..asking(Manage::Kill) }, timeout)
    }

    /// Has the runtime compare its memory with what it was at boot.
    ///
    /// # Errors
    /// Memory that has changed, silence.
    pub fn audit(&self, timeout: Duration) -> Result<ReplyLine, ManageError> {
        self.carry_out(asking(Manage::Audit), timeout)
    }

    /// Has the supervisor forget what is laid out.
    ///
    /// # Errors
    /// Silence.
    pub fn unload(&self, timeout: Duration) -> Result<ReplyLine, ManageError> {
        self.carry_out(asking(Manage::Unload), timeout)
    }

    /// Ends the agent `incarnation` for what it did (one of the commands that condemn), if it still runs, and does not wait.
    /// Returns the request.
    pub fn condemn(&self, command: Manage, incarnation: u32) -> u32 {
        self.ask(ManagerLine { incarnation, ..asking(command) })
    }

    /// The agents, the books and the bindings as they are.
    #[must_use]
    pub fn list(&self) -> Agents {
        Agents::read(self.supervisor)
    }

    /// The agent that runs, or ran last, by the supervisor's word; none while that is being written.
    #[must_use]
    pub fn running(&self) -> Option<Identity> {
        let (payload, _) = self.supervisor.get(RUNNING_LINE)?.read_any()?;
        Some(Identity::from_payload(&payload)).filter(|agent| !agent.name().is_empty())
    }

    /// Writes a request and rings the supervisor. Returns the request's number, for [`Manager::answer`].
    pub fn ask(&self, line: ManagerLine) -> u32 {
        let mut writer = self.writer();
        writer.request = writer.request.wrapping_add(1);
        let line = ManagerLine { request: writer.request, ..line };
        writer.slot.write(self.line, &line.to_payload(), 0);
        // If it cannot be rung, its own timer wakes it.
        let agent = self.agent.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
        if let Some(agent) = agent {
            let _ = self.peer.ring(agent.peer, SUPERVISOR_VECTOR);
        }
        line.request
    }

    /// The answer to a request so far; none before the supervisor has looked at it, or when it has answered a later one.
    #[must_use]
    pub fn answer(&self, request: u32) -> Option<ReplyLine> {
        let (payload, _) = self.supervisor.get(REPLY_LINE)?.read_any()?;
        ReplyLine::from_payload(&payload).filter(|reply| reply.request == request)
    }

    fn carry_out(&self, line: ManagerLine, timeout: Duration) -> Result<ReplyLine, ManageError> {
        let what = name(line.command);
        let request = self.ask(line);
        let start = Instant::now();
        loop {
            match self.answer(request) {
                Some(ReplyLine { reply: Reply::Pending, .. }) | None => {}
                Some(reply) if reply.reply == Reply::Done => return Ok(reply),
                Some(ReplyLine { reply, detail, .. }) => {
                    return Err(ManageError::Answered { what, reply, detail });
                }
            }
            if self.writer().request != request {
                return Err(ManageError::Superseded { what });
            }
            if start.elapsed() >= timeout {
                return Err(ManageError::Silent { what, waited_ms: start.elapsed().as_millis() });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sectors for Manager<'_> {
    fn read_sectors(&self, sector: u32, to: &mut [u8]) -> io::Result<u64> {
        let _staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let line = reaching(Manage::ReadDisk, sector, to.len());
        let reply = self.carry_out(line, DISK_PATIENCE).map_err(io::Error::other)?;
        let head = self.window.region_head(&self.hello, RegionKind::Image, to.len());
        // One that is shorter is no such region.
        if head.len() != to.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.copy_from_slice(&head);
        Ok(reply.detail)
    }

    fn write_sectors(&self, sector: u32, bytes: &[u8]) -> io::Result<()> {
        let _staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let laid = self.window.set_region_bytes(&self.hello, RegionKind::Image, 0, bytes);
        laid.map_err(io::Error::other)?;
        let line = reaching(Manage::WriteDisk, sector, bytes.len());
        self.carry_out(line, DISK_PATIENCE).map(drop).map_err(io::Error::other)
    }
}

fn reaching(command: Manage, sector: u32, bytes: usize) -> ManagerLine {
    ManagerLine { policy: sector, image_bytes: bytes as u32, ..asking(command) }
}

const fn asking(command: Manage) -> ManagerLine {
    let (image_bytes, grace_us, trial_us) = (0, 0, 0);
    ManagerLine { command, request: 0, image_bytes, grace_us, trial_us, policy: 0, incarnation: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_culprit_and_remedy() {
        let refused =
            ManageError::Answered { what: name(Manage::Load), reply: Reply::RefusedImage, detail: 10 };
        assert_eq!(
            refused.to_string(),
            "loading an agent was refused for its image: a segment has rights that it may not have (writable and \
             executable, or unknown)"
        );
        let late = ManageError::Answered { what: name(Manage::Replace), reply: Reply::RolledBack, detail: 0 };
        assert!(late.to_string().ends_with("the host did not confirm it in time"), "{late}");
        let died = ManageError::Answered { what: name(Manage::Replace), reply: Reply::RolledBack, detail: 2 };
        assert!(died.to_string().ends_with("it ended by synchronous_exception"), "{died}");
        let silent = ManageError::Silent { what: name(Manage::Kill), waited_ms: 7 };
        assert!(silent.to_string().contains("killing the agent") && silent.to_string().contains("neap log"));
    }

    #[test]
    fn what_no_supervisor_has_written_is_nothing() {
        let lines: Vec<Line> = (0..16).map(|_| Line::default()).collect();
        let agents = Agents::read(&lines);
        assert!(agents.running.is_none() && agents.standby.is_none() && agents.books.is_none());
        assert!(agents.bindings.is_empty());
    }
}
