//! An engine that does as it is told, for tests of drivers: it moves nothing, and answers what the test says.

use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

use super::registers::{Descriptor, Fault, Grant, Registers, State};
use crate::soc::msix::Ring;

/// A channel's page, and how often its doorbell was rung.
pub struct Engine {
    registers: Registers,
    rings: Cell<u32>,
}

impl Engine {
    /// A page of zeroes: no engine serves it.
    pub fn absent() -> Self {
        // SAFETY: the registers are atomic integers, for which zeroes are a value.
        Self { registers: unsafe { core::mem::zeroed() }, rings: Cell::new(0) }
    }

    /// A served page.
    pub fn new(engine_peer: u16, channel: u16, bytes_max: u64, grants: &[Grant]) -> Self {
        let engine = Self::absent();
        engine.registers.publish(engine_peer, channel, bytes_max, grants);
        engine
    }

    /// The page, for the driver.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The doorbell, for the driver.
    pub fn ring(&self) -> impl Ring + '_ {
        || self.rings.set(self.rings.get() + 1)
    }

    /// How often the doorbell was rung since the last call.
    pub fn take_rings(&self) -> u32 {
        self.rings.take()
    }

    /// What the driver asks for.
    pub fn descriptor(&self) -> Result<Descriptor, Fault> {
        self.registers.descriptor().1
    }

    /// Answers what the driver asked for last.
    pub fn answer(&self, state: State, moved_bytes: u64) {
        self.registers.report(self.registers.ticket.load(Relaxed), state, moved_bytes);
    }
}
