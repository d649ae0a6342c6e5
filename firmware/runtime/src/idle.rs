//! How a core sleeps, in the runtime and on behalf of its agent.

use core::num::NonZeroU32;

use neap_hal::board::gic::CoreInterface;
use neap_hal::cpu::irq;
use neap_hal::cpu::timer::Timer;

/// Interrupts acknowledged after one sleep at most: more than a core has sources (its timer, its vector, other cores).
const TAKES_MAX: usize = 8;

/// A core's interrupts and its timer. In the runtime interrupts stay masked: a pending one ends a sleep, and is then
/// acknowledged here. While an agent runs they are not, and all but an abort wait for its next sleep.
pub struct CoreIdle {
    timer: Timer,
    interface: CoreInterface,
}

impl CoreIdle {
    /// The running core's own.
    pub fn new(timer: Timer, interface: CoreInterface) -> Self {
        Self { timer, interface }
    }

    /// Sleeps until an interrupt comes or, where given, `deadline_ns` nanoseconds have passed.
    #[inline(never)]
    pub fn sleep(&mut self, deadline_ns: Option<NonZeroU32>) {
        if let Some(ns) = deadline_ns {
            self.timer.arm(ns.get().into());
        }
        irq::wait_for_interrupt();
        // The timer's interrupt is a level: it goes with its cause, before anything is acknowledged.
        self.timer.disarm();
        self.take();
    }

    /// As [`CoreIdle::sleep`], for an agent: meanwhile every interrupt counts.
    pub fn sleep_for_agent(&mut self, deadline_ns: Option<NonZeroU32>) {
        self.interface.open();
        self.sleep(deadline_ns);
        self.interface.restrict();
    }

    /// Acknowledges what there is.
    pub fn take(&mut self) {
        for _ in 0..TAKES_MAX {
            if self.interface.take().is_none() {
                break;
            }
        }
    }

    /// The core is about to be an agent's: only an abort interrupts it.
    pub fn lend(&mut self) {
        self.interface.restrict();
    }

    /// The core is the runtime's again.
    pub fn reclaim(&mut self) {
        self.interface.open();
        self.take();
    }

    /// The clock.
    pub fn timer(&self) -> Timer {
        self.timer
    }
}
