//! The table of cores: what the supervisor and each core tell each other.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use heapless::Vec;
use neap_hal::board::Conduit;
use neap_hal::board::bootargs::BootArgs;
use neap_hal::board::gic::{Gic, MessageFrame, Target};
use neap_hal::cpu::CORES_MAX;
use neap_hal::cpu::mmu::Root;
use neap_hal::cpu::timer::Timer;
use neap_hal::soc::window::Region;
use neap_queue::Line;
use spin::Once;
use spin::mutex::SpinMutex;

use crate::agents::Grant;
use crate::session::CoreState;

/// What every core needs to know of the machine, once it is up.
pub struct Shared {
    /// The interrupt controller.
    pub gic: Gic,
    /// What raises the host's interrupts; none on GICv3.
    pub message_frame: Option<MessageFrame>,
    /// How to reach PSCI.
    pub conduit: Conduit,
    /// The map that all cores share.
    pub map: Root,
    /// The cores' affinities.
    pub affinities: Vec<u64, CORES_MAX>,
    /// The command line.
    pub args: BootArgs,
    /// The clock.
    pub timer: Timer,
    /// Each core's epitaph.
    pub epitaphs: Vec<Region<'static>, CORES_MAX>,
    /// The agent's control line.
    pub agent_control: &'static Line,
}

static SHARED: Once<Shared> = Once::new();

/// Publishes the machine, once, before any other core starts.
pub fn share(shared: Shared) -> &'static Shared {
    SHARED.call_once(|| shared)
}

/// The machine, once it is up.
pub fn shared() -> Option<&'static Shared> {
    SHARED.get()
}

/// One core's entry in the table.
pub struct Core {
    state: AtomicU8,
    /// Not zero when the supervisor wants the core back: the agent's visible revocation.
    pub revoke: AtomicU32,
    /// The session that its agent serves.
    pub session: AtomicU32,
    /// What the core is to run next.
    grant: SpinMutex<Option<Grant>>,
    /// How to wake it, once it has joined the interrupt controller.
    target: SpinMutex<Option<Target>>,
}

static CORES: [Core; CORES_MAX] = [const { Core::new() }; CORES_MAX];

/// The entry of core `number`; of the first core for a number that no core has.
pub fn core(number: usize) -> &'static Core {
    CORES.get(number).unwrap_or(&CORES[0])
}

impl Core {
    const fn new() -> Self {
        Self {
            state: AtomicU8::new(CoreState::Down as u8),
            revoke: AtomicU32::new(0),
            session: AtomicU32::new(0),
            grant: SpinMutex::new(None),
            target: SpinMutex::new(None),
        }
    }

    /// Where the core stands.
    pub fn state(&self) -> CoreState {
        match self.state.load(Ordering::Acquire) {
            0 => CoreState::Down,
            1 => CoreState::Ready,
            2 => CoreState::Running,
            _ => CoreState::Dead,
        }
    }

    /// Notes where the core stands.
    pub fn set_state(&self, state: CoreState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Notes how to wake the core.
    pub fn set_target(&self, target: Target) {
        *self.target.lock() = Some(target);
    }

    /// Ends the core's sleep, if it can be woken yet.
    pub fn wake(&self) {
        let target = *self.target.lock();
        if let (Some(shared), Some(target)) = (shared(), target) {
            shared.gic.wake(target);
        }
    }

    /// Gives the core, which is ready, an agent to run.
    pub fn give(&self, grant: Grant) {
        self.revoke.store(0, Ordering::Relaxed);
        *self.grant.lock() = Some(grant);
        self.set_state(CoreState::Running);
        self.wake();
    }

    /// What the core was given, once.
    pub fn take(&self) -> Option<Grant> {
        self.grant.lock().take()
    }
}
