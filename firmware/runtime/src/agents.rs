//! Agents' cores: how a core is lent to an agent at EL0, what it can ask for there, and how the core comes back.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::num::NonZeroU32;
use core::sync::atomic::Ordering;

use neap_abi::grant::{call, space};
use neap_abi::{Cause, Epitaph};
use neap_hal::cpu::exception::{Frame, Kind};
use neap_hal::cpu::timer::Timer;
use neap_hal::cpu::{CORES_MAX, el0, power};

use crate::cores::{self, End, Lent};
use crate::enclave::{Came, CoreState};
use crate::idle::CoreIdle;
use crate::window::Resume;

/// What a core keeps for itself.
struct Own {
    idle: CoreIdle,
    /// The agent that has the core.
    lent: Option<Lent>,
    /// How it ended.
    end: Option<End>,
}

/// Each core's own, uninitialised until [`own`] makes it.
struct Owned([UnsafeCell<MaybeUninit<Own>>; CORES_MAX]);

// SAFETY: a core touches its own entry only, by [`Owned::make`] and [`Owned::with`], in the runtime with interrupts masked
// or in the handler of an exception from EL0, never in both: the handler interrupts the agent, not the runtime.
unsafe impl Sync for Owned {}

static OWNED: Owned = Owned([const { UnsafeCell::new(MaybeUninit::uninit()) }; CORES_MAX]);

impl Owned {
    /// Makes the running core's own.
    fn make(&self, own: Own) {
        // SAFETY: by `Owned`.
        unsafe { (*self.0[power::core() % CORES_MAX].get()).write(own) };
    }

    /// Uses the running core's own, which [`own`] has made before any agent ran here.
    fn with<T>(&self, use_it: impl FnOnce(&mut Own) -> T) -> T {
        let own = self.0[power::core() % CORES_MAX].get();
        // SAFETY: by `Owned`; made, as said; no caller calls this again inside `use_it`.
        use_it(unsafe { (*own).assume_init_mut() })
    }
}

/// A started core's life: it sleeps until it is given an agent, lends itself, and takes itself back.
///
/// # Panics
/// When the machine does not let it join; its epitaph then says why.
pub fn own(number: usize) -> ! {
    let core = cores::core(number);
    let Some(shared) = cores::shared() else { panic!("core {number} started before the machine was up") };
    let timer = Timer::new().unwrap_or_else(|error| panic!("{error}"));
    let interface = shared.gic.join().unwrap_or_else(|error| panic!("{error}"));
    core.set_target(interface.target());
    if let Some(frame) = shared.message_frame {
        // A core beyond the frame's last interrupt is woken by timer only.
        if (number as u32) < frame.count
            && let Err(error) = shared.gic.route(frame.first + number as u32, &interface)
        {
            panic!("{error}");
        }
    }
    el0::prepare();
    OWNED.make(Own { idle: CoreIdle::new(timer, interface), lent: None, end: None });
    core.set_state(CoreState::Ready);
    defmt::debug!("core {=usize} is ready", number);
    loop {
        let Some(mut lent) = core.take() else {
            idle(|idle| idle.sleep(None));
            continue;
        };
        // It may have been given as the next of one that ended meanwhile.
        core.set_state(CoreState::Running);
        loop {
            core.session.store(lent.session, Ordering::Relaxed);
            let end = lend(lent);
            // The next one first: whoever looks on can wait.
            let next = core.ended(end);
            cores::core(0).wake();
            match next {
                Some(next) => lent = next,
                None => break,
            }
        }
    }
}

fn idle(use_it: impl FnOnce(&mut CoreIdle)) {
    OWNED.with(|own| use_it(&mut own.idle));
}

/// Runs an agent on this core until it gives the core back or has it taken.
fn lend(lent: Lent) -> End {
    let (space, entry, number, incarnation) = (lent.space, lent.entry, lent.number, lent.incarnation);
    let mut began = Resume::default();
    if number == 0 {
        // Only now: the one before it has read on until it ended.
        began = lent.goes_on.map_or(began, |(window, from)| window.resume(from));
        lent.grant.set_resume(began);
    }
    let stack = space::STACK_END - number as u64 * space::STACK_SPACING;
    OWNED.with(|own| {
        own.lent = Some(lent);
        own.end = None;
        own.idle.lend();
    });
    // An abort that came before is acknowledged by now and interrupts nothing; one that comes from here on waits for EL0.
    let cause = if cores::core(power::core()).is_to_abort(incarnation) {
        Cause::Abort
    } else {
        // SAFETY: the supervisor gives out spaces that are whole and keeps them until the core has told their agent's end.
        // Interrupts are masked in the runtime, and `on_exception` knows agents.
        unsafe { el0::enter(space, entry, stack, number as u64) };
        Cause::Exit
    };
    OWNED.with(|own| {
        own.lent = None;
        own.idle.reclaim();
        let came = Came { incarnation, cause: Some(cause) };
        let end = own.end.take().unwrap_or(End { came, began, epitaph: None });
        End { began, ..end }
    })
}

/// What an exception from EL0 comes to: nothing, and the agent goes on, or its end.
pub fn on_exception(frame: &mut Frame) {
    match frame.kind() {
        Kind::Irq => idle(CoreIdle::take),
        Kind::Synchronous if frame.syndrome().is_system_call() => system_call(frame),
        Kind::Synchronous => end(frame, Cause::Synchronous, frame.syndrome().name()),
        Kind::SError => end(frame, Cause::SystemError, "SError"),
        Kind::Fiq => end(frame, Cause::Interrupt, "a fast interrupt, and nothing is routed to it"),
    }
    let incarnation = OWNED.with(|own| own.lent.as_ref().map_or(0, |lent| lent.incarnation));
    if incarnation != 0 && cores::core(power::core()).is_to_abort(incarnation) {
        end(frame, Cause::Abort, "it did not give its core back");
    }
}

fn system_call(frame: &mut Frame) {
    match frame.syndrome().call_number() {
        call::SLEEP => {
            let deadline_ns = NonZeroU32::new(frame.x[0] as u32);
            idle(|idle| idle.sleep_for_agent(deadline_ns));
        }
        call::EXIT => leave(None),
        call::PANIC => {
            let [text, text_bytes, file, file_bytes, line, ..] = frame.x;
            let mut epitaph = epitaph(frame, Cause::Panic);
            epitaph.line = line as u32;
            OWNED.with(|own| {
                let Some(lent) = &own.lent else { return };
                lent.memory.copy(text, text_bytes, &mut epitaph.text);
                // The end of a path tells more than its beginning.
                let cut = file_bytes.saturating_sub(epitaph.file.len() as u64);
                lent.memory.copy(file.saturating_add(cut), file_bytes - cut, &mut epitaph.file);
            });
            leave(Some(epitaph));
        }
        number => {
            let mut epitaph = epitaph(frame, Cause::Call);
            epitaph.line = number.into();
            epitaph.set_text("a system call that there is not");
            leave(Some(epitaph));
        }
    }
}

/// Ends the agent for `cause`.
fn end(frame: &Frame, cause: Cause, why: &str) -> ! {
    let mut epitaph = epitaph(frame, cause);
    epitaph.set_text(why);
    leave(Some(epitaph))
}

/// An epitaph with all that the frame tells.
pub fn epitaph(frame: &Frame, cause: Cause) -> Epitaph {
    let number = power::core();
    let mut epitaph = Epitaph::new(cause, number as u8);
    epitaph.session = cores::core(number).session.load(Ordering::Relaxed);
    epitaph.time_ns = cores::shared().map_or(0, |shared| shared.timer.now_ns());
    epitaph.elr = frame.elr;
    // An interrupt has no syndrome: what stands there is of whatever came before.
    if matches!(frame.kind(), Kind::Synchronous | Kind::SError) {
        epitaph.esr = frame.esr;
        epitaph.far = if frame.syndrome().has_fault_address() { frame.far } else { 0 };
    }
    epitaph.spsr = frame.spsr;
    epitaph.registers[..31].copy_from_slice(&frame.x);
    epitaph.registers[31] = frame.sp;
    epitaph
}

/// Takes the core back from its agent, with an epitaph unless it gave it back itself.
fn leave(epitaph: Option<Epitaph>) -> ! {
    OWNED.with(|own| {
        let incarnation = own.lent.as_ref().map_or(0, |lent| lent.incarnation);
        let came = Came { incarnation, cause: epitaph.map(|epitaph| epitaph.cause) };
        own.end = Some(End { came, began: Resume::default(), epitaph });
    });
    match cores::shared() {
        // SAFETY: called from the handler of an exception from EL0 only, so this core is inside `enter`.
        Some(shared) => unsafe { el0::leave(shared.map, 0) },
        None => power::park(),
    }
}
