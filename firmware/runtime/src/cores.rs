//! The table of cores: what the supervisor and each core tell each other.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use heapless::{Deque, Vec};
use neap_abi::Epitaph;
use neap_hal::board::Conduit;
use neap_hal::board::bootargs::BootArgs;
use neap_hal::board::gic::{Gic, MessageFrame, Target};
use neap_hal::cpu::CORES_MAX;
use neap_hal::cpu::mmu::{Root, Space};
use neap_hal::cpu::timer::Timer;
use neap_hal::soc::window::Region;
use spin::Once;
use spin::mutex::SpinMutex;

use crate::enclave::{Came, CoreState};
use crate::space::{GrantPage, OwnMemory};
use crate::window::{LaidOut, Resume};

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
    /// Each core's epitaphs.
    pub epitaphs: [Option<Region<'static>>; CORES_MAX],
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

/// An agent, as its core needs to know it: where it is entered, and in which space.
pub struct Lent {
    /// Its address space.
    pub space: Space,
    /// Where it starts.
    pub entry: u64,
    /// Which of the agent's cores this one is, from 0 on.
    pub number: usize,
    /// Its number in its enclave.
    pub incarnation: u32,
    /// The session that it serves.
    pub session: u32,
    /// What it may name in a system call.
    pub memory: OwnMemory,
    /// Where it is told how to go on.
    pub grant: GrantPage,
    /// Whose lines tell where that is, and where the agent before it began; none for the first of a session.
    pub goes_on: Option<(&'static LaidOut, Resume)>,
}

/// An agent's end, as its core tells it.
pub struct End {
    /// Which agent, and why.
    pub came: Came,
    /// Where it began.
    pub began: Resume,
    /// The epitaph, unless it gave its core back as asked.
    pub epitaph: Option<Epitaph>,
}

/// Ends that wait for the supervisor at most: an agent's and that of the one that took over from it, and as many again.
const ENDS_MAX: usize = 4;

/// One core's entry in the table.
pub struct Core {
    state: AtomicU8,
    /// The incarnation that is to be aborted; 0 for none.
    abort: AtomicU32,
    /// The session that its agent serves.
    pub session: AtomicU32,
    /// What the core is to run next: an agent that it has not taken yet, and the one that is to take over from that. (An
    /// empty collection is all zero, and so takes no room in the image.)
    next: SpinMutex<Deque<Lent, 2>>,
    ends: SpinMutex<Deque<End, ENDS_MAX>>,
    /// How to wake it, once it has joined the interrupt controller: one at most.
    target: SpinMutex<Vec<Target, 1>>,
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
            abort: AtomicU32::new(0),
            session: AtomicU32::new(0),
            next: SpinMutex::new(Deque::new()),
            ends: SpinMutex::new(Deque::new()),
            target: SpinMutex::new(Vec::new()),
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
        let mut known = self.target.lock();
        known.clear();
        // There is room for one, and it is empty.
        let _ = known.push(target);
    }

    /// Ends the core's sleep, if it can be woken yet.
    pub fn wake(&self) {
        let target = self.target.lock().first().copied();
        if let (Some(shared), Some(target)) = (shared(), target) {
            shared.gic.wake(target);
        }
    }

    /// Gives the core, which is ready, an agent to run.
    pub fn give(&self, lent: Lent) {
        self.forget();
        // First: the core may be awake, and back before we go on.
        self.set_state(CoreState::Running);
        self.give_next(lent);
        self.wake();
    }

    /// Gives the core, on which an agent runs or is about to, the one that follows it.
    pub fn give_next(&self, lent: Lent) {
        // There is room for both.
        let _ = self.next.lock().push_back(lent);
    }

    /// What the core was given is nobody's any more.
    pub fn forget(&self) {
        self.next.lock().clear();
    }

    /// What the core was given, once.
    pub fn take(&self) -> Option<Lent> {
        self.next.lock().pop_front()
    }

    /// Takes the core from the agent `incarnation`, whatever it does. If that has ended meanwhile, nothing happens.
    pub fn abort(&self, incarnation: u32) {
        self.abort.store(incarnation, Ordering::Release);
        let target = self.target.lock().first().copied();
        if let (Some(shared), Some(target)) = (shared(), target) {
            shared.gic.abort(target);
        }
    }

    /// Whether the agent `incarnation` is to be aborted.
    pub fn is_to_abort(&self, incarnation: u32) -> bool {
        self.abort.load(Ordering::Acquire) == incarnation
    }

    /// An agent has ended here; the core goes on with the next, if it has one, and is ready otherwise. Whichever it is, the
    /// supervisor learns of both at once.
    pub fn ended(&self, end: End) -> Option<Lent> {
        let mut ends = self.ends.lock();
        // One that the supervisor has not looked at for so long is lost, and its successor's end tells enough.
        if ends.is_full() {
            ends.pop_front();
        }
        let _ = ends.push_back(end);
        let next = self.take();
        if next.is_none() {
            self.set_state(CoreState::Ready);
        }
        next
    }

    /// The oldest end that the supervisor has not heard of.
    ///
    /// # Errors
    /// There is none, and this is where the core stands: both as of one moment, for an agent may end in any other.
    pub fn heard_of(&self) -> Result<End, CoreState> {
        self.ends.lock().pop_front().ok_or_else(|| self.state())
    }
}
