// SPDX-License-Identifier: GPL-2.0
//! One attachment to an IPU: the window as its hello page lays it out, and the lines in it.

use kernel::prelude::*;
use neap_abi::hello::{feature, Hello, Link, Region, RegionKind, HELLO_BYTES};
use neap_abi::{AgentControl, Clock, HostCommand, HostControl, Version, VERSION};
use neap_mechanism::Wire;
use neap_queue::{Line, SlotWriter};

use crate::window::{bytes_of, Hardware, Map, Type};

/// Where a function's parts lie.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The window on the bus, and its size in bytes.
    pub(crate) window: (u64, u64),
    /// The register page on the bus.
    pub(crate) registers: u64,
    /// The register that rings the IPU's vectors, mapped.
    pub(crate) doorbell: *mut u32,
    /// Our own peer number: where the IPU rings.
    pub(crate) peer: u16,
}

// SAFETY: It is an address, which the function's own mapping outlives.
unsafe impl Send for Place {}

/// An attachment.
pub(crate) struct Session {
    // In the order of their ends: what stands on mappings before the mappings.
    pub(crate) wire: Wire<'static, Hardware>,
    pub(crate) hello: KBox<Hello>,
    pub(crate) version: Version,
    pub(crate) number: u32,
    agent_line: &'static Line,
    pub(crate) manager: Option<&'static Line>,
    pub(crate) supervisor: &'static [Line],
    _maps: KVec<Map>,
}

/// The host's control line of a session, and what it says. It goes before the session.
pub(crate) struct Voice {
    line: &'static Line,
    writer: SlotWriter,
    control: HostControl,
}

/// Reads and checks the hello page.
pub(crate) fn hello(place: &Place) -> Result<Result<KBox<Hello>, neap_abi::HelloError>> {
    let map = Map::new(place.window.0, HELLO_BYTES, Type::Uncached)?;
    let mut page = KVec::from_elem(0u8, HELLO_BYTES, GFP_KERNEL)?;
    map.copy(&mut page);
    match Hello::read(&page, place.window.1, VERSION) {
        Ok(hello) => Ok(Ok(KBox::new(hello, GFP_KERNEL)?)),
        Err(error) => Ok(Err(error)),
    }
}

/// The memory type that a region is mapped with.
pub(crate) const fn type_of(kind: RegionKind) -> Type {
    match kind {
        RegionKind::HostControl | RegionKind::Messages | RegionKind::Manager | RegionKind::Image => {
            Type::WriteCombining
        }
        RegionKind::Slots => Type::WriteThrough,
        _ => Type::Uncached,
    }
}

impl Session {
    /// Maps the lines of a window whose hello page is `hello`, as the host that asks for `policy` under session `number`.
    pub(crate) fn new(
        place: &Place,
        hello: KBox<Hello>,
        cpus: u16,
        number: u32,
        policy: u32,
    ) -> Result<(Self, Voice)> {
        let mut maps = KVec::new();
        let mut lines = |kind| -> Result<&'static [Line]> {
            let region: Region = hello.region(kind, 0).ok_or(ENOENT)?;
            let map = Map::new(place.window.0 + region.offset, bytes_of(&region)?, type_of(kind))?;
            // SAFETY: The mappings are kept in the session, and end after all that borrows their lines.
            let lines = unsafe { map.lines() };
            maps.push(map, GFP_KERNEL)?;
            Ok(lines)
        };
        let first = |lines: &'static [Line]| lines.first().ok_or(EINVAL);
        let host_line = first(lines(RegionKind::HostControl)?)?;
        let agent_line = first(lines(RegionKind::AgentControl)?)?;
        let messages = lines(RegionKind::Messages)?;
        let slots = lines(RegionKind::Slots)?;
        let slots = slots.get(..usize::from(cpus)).ok_or(EINVAL)?;
        let manager = lines(RegionKind::Manager).ok().and_then(|lines| lines.first());
        let supervisor = lines(RegionKind::Supervisor).unwrap_or(&[]);
        let hardware = Hardware { doorbell: place.doorbell, flushes: hello.link == Link::Pcie };
        let sleeps = hello.features & feature::SLEEPS != 0;
        let wire = Wire::new(messages, slots, agent_line, sleeps, hardware).map_err(|_| EINVAL)?;
        let version = VERSION.negotiate(hello.version).map_err(|_| EPROTO)?;
        let control = HostControl {
            command: HostCommand::Attach,
            peer: place.peer,
            cpus,
            session: number,
            version: VERSION,
            features: hello.features,
            policy,
            confirmed: 0,
            clock: Clock::Own,
        };
        let voice = Voice { line: host_line, writer: SlotWriter::after(host_line), control };
        Ok((Self { wire, hello, version, number, agent_line, manager, supervisor, _maps: maps }, voice))
    }

    /// What the IPU's control line says, of whatever session.
    pub(crate) fn agent_line(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.agent_line.read_any()?.0)
    }

    /// What the IPU says of this session's agent.
    pub(crate) fn agent(&self) -> Option<AgentControl> {
        self.agent_line().filter(|agent| agent.session == self.number)
    }

    /// Wakes the IPU's supervisor, if it can be.
    pub(crate) fn ring_supervisor(&self) {
        if let Some(agent) = self.agent_line() {
            neap_mechanism::Platform::ring(&self.wire.platform, agent.peer, 0);
        }
    }

    /// Whether the hello page that stands there now is still that of this boot.
    pub(crate) fn is_of_boot(&self, place: &Place) -> bool {
        let Ok(map) = Map::new(place.window.0, HELLO_BYTES, Type::Uncached) else { return true };
        let mut head = [0; 16];
        map.copy(&mut head);
        let [m0, m1, m2, m3, m4, m5, m6, m7, _, _, _, _, b0, b1, b2, b3] = head;
        u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]) == neap_abi::hello::MAGIC
            && u32::from_le_bytes([b0, b1, b2, b3]) == self.hello.boot
    }
}

impl Voice {
    fn write(&mut self, session: &Session) {
        self.writer.write(self.line, &self.control.to_payload(), 0);
        neap_mechanism::Platform::drain(&session.wire.platform);
    }

    /// Asks for an agent.
    pub(crate) fn ask(&mut self, session: &Session) {
        self.write(session);
        session.ring_supervisor();
    }

    /// Says that the host is content with an agent: its trial is over.
    pub(crate) fn confirm(&mut self, session: &Session, incarnation: u32) {
        if self.control.confirmed != incarnation && self.control.command == HostCommand::Attach {
            self.control.confirmed = incarnation;
            self.write(session);
        }
    }

    /// Tells the IPU that the host goes away.
    pub(crate) fn detach(&mut self, session: &Session) {
        self.control.command = HostCommand::Detach;
        self.write(session);
        session.wire.ring();
        session.ring_supervisor();
    }
}
