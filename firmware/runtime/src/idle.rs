//! What a core does when there is nothing to do: it spins on silicon, it sleeps on a simulator.

use core::num::NonZeroU32;

use neap_hal::board::bootargs::Idle;
use neap_hal::board::gic::CoreInterface;
use neap_hal::cpu::timer::Timer;
use neap_hal::cpu::{irq, power};

use crate::agents::{NAP_NS, SLEEP_NS};

/// Interrupts acknowledged after one sleep at most: more than a core has sources (its timer, its vector, other cores).
const TAKES_MAX: usize = 8;

/// A core's idleness. Interrupts stay masked: a pending one ends a sleep, and is then acknowledged here.
pub struct CoreIdle {
    knob: Idle,
    timer: Timer,
    interface: CoreInterface,
    sleep_ns: NonZeroU32,
}

impl CoreIdle {
    /// Idleness as the command line wants it. `host_wakes`: whether a host's vector can end a sleep.
    pub fn new(knob: Idle, timer: Timer, interface: CoreInterface, host_wakes: bool) -> Self {
        Self { knob, timer, interface, sleep_ns: if host_wakes { SLEEP_NS } else { NAP_NS } }
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
        for _ in 0..TAKES_MAX {
            if self.interface.take().is_none() {
                break;
            }
        }
    }
}

impl neap_agent::Idle for CoreIdle {
    #[inline(always)]
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool) {
        match self.knob {
            Idle::Poll(polls) if empty_polls >= polls.get() => {
                if drowse() {
                    self.sleep(Some(self.sleep_ns));
                }
            }
            Idle::Spin | Idle::Poll(_) => power::relax(),
        }
    }
}
