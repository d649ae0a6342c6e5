// SPDX-License-Identifier: GPL-2.0
//! Managing agents: the manager's line has one writer, and that is the driver.

use kernel::prelude::*;
use neap_abi::supervisor::{Identity, REPLY_LINE, RUNNING_LINE};
use neap_abi::{Manage, ManagerLine, ReplyLine};
use neap_queue::SlotWriter;

use crate::session::Session;

/// A request that says no more than its command.
pub(crate) const fn asking(command: Manage) -> ManagerLine {
    let (image_bytes, grace_us, trial_us) = (0, 0, 0);
    ManagerLine { command, request: 0, image_bytes, grace_us, trial_us, policy: 0, incarnation: 0 }
}

impl Session {
    /// Writes a request and rings the supervisor: the request's number. One at a time, by the holder of the watch.
    pub(crate) fn manage(&self, line: ManagerLine) -> Result<u32> {
        let manager = self.manager.ok_or(EOPNOTSUPP)?;
        let request = self.requested().wrapping_add(1);
        // An image that lies in the window comes before the line that names it.
        neap_mechanism::Platform::drain(&self.wire.platform);
        SlotWriter::after(manager).write(manager, &ManagerLine { request, ..line }.to_payload(), 0);
        neap_mechanism::Platform::drain(&self.wire.platform);
        self.ring_supervisor();
        Ok(request)
    }

    /// The number of the last request; 0 before any.
    pub(crate) fn requested(&self) -> u32 {
        let last = self.manager.and_then(|manager| manager.read_any());
        last.map_or(0, |(payload, _)| payload.get(1).map_or(0, |&word| word as u32))
    }

    /// The answer to a request so far.
    pub(crate) fn answer(&self, request: u32) -> Option<ReplyLine> {
        let (payload, _) = self.supervisor.get(REPLY_LINE)?.read_any()?;
        ReplyLine::from_payload(&payload).filter(|reply| reply.request == request)
    }

    /// The agent that runs, or ran last, by the supervisor's word.
    pub(crate) fn running(&self) -> Option<Identity> {
        let (payload, _) = self.supervisor.get(RUNNING_LINE)?.read_any()?;
        Some(Identity::from_payload(&payload)).filter(|agent| !agent.name().is_empty())
    }
}
