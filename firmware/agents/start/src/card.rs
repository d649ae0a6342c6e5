//! What an agent is given, and what becomes of it.

use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use neap_abi::Grant;
use neap_abi::epitaph::Cut;
use neap_abi::grant::{REVOKE_WORD, WORDS, call, space};
use neap_agent::{AgentError, Bindings, Doorbell, Exit, Idle};
use neap_hal::cpu::call::{call, last_call, relax};
use neap_hal::cpu::timer::{self, Counter};
use neap_hal::soc::msix::{DoorbellPage, Doorbells};
use neap_queue::Line;
use safe_mmio::UniqueMmioPointer;

/// The right to ring the enclave's host CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Bell(Doorbells<'static>);

impl Doorbell for Bell {
    #[inline(always)]
    fn ring(&self, cpu: u16) {
        // The libOS rings no CPU outside the enclave; the handle would not either.
        self.0.ring(cpu);
    }

    #[inline(always)]
    fn ticks(&self) -> u64 {
        timer::ticks()
    }
}

/// What an agent does when there is nothing to do: it spins on silicon, it sleeps on a simulator.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// Empty polls before it sleeps; 0: it never does.
    polls: u32,
    sleep_ns: u32,
    /// Made when the time is asked for first: many agents never do.
    counter: Option<Counter>,
}

impl Idle for Sleep {
    #[inline(always)]
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool) {
        if self.polls == 0 || empty_polls < self.polls {
            relax();
        } else if drowse() {
            call::<{ call::SLEEP }>(self.sleep_ns.into());
        }
    }

    #[inline(always)]
    fn now_ns(&mut self) -> u64 {
        match self.counter {
            Some(counter) => counter.now_ns(),
            None => self.first_ns(),
        }
    }
}

impl Sleep {
    #[cold]
    fn first_ns(&mut self) -> u64 {
        // The runtime keeps its own time by this counter: where that told none, no agent would run.
        self.counter = Counter::new().ok();
        self.counter.map_or(0, |counter| counter.now_ns())
    }
}

/// All that an agent may touch.
#[derive(Debug)]
pub struct Given {
    /// Its bindings, for the libOS.
    pub bindings: Bindings<'static, Bell>,
    /// The message ring.
    pub messages: &'static [Line],
    /// How it is idle.
    pub idle: Sleep,
    /// The grant, as it stands in its page.
    pub grant: Grant,
}

/// Memory of the agent's own, taken once.
#[derive(Debug)]
pub struct Private<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by whoever took it, and it is taken once.
unsafe impl<T: Send> Sync for Private<T> {}

impl<T> Private<T> {
    /// Memory that holds `value`.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The memory, the first time.
    #[expect(clippy::mut_from_ref, reason = "it is given out once")]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: nobody else gets here.
        Some(unsafe { &mut *self.value.get() })
    }
}

/// The grant page's words.
fn page() -> &'static [AtomicU64] {
    let page = core::ptr::with_exposed_provenance::<AtomicU64>(space::GRANT as usize);
    // SAFETY: the runtime maps the grant page there, for as long as the agent is; it is read only, and as atomics.
    unsafe { slice::from_raw_parts(page, REVOKE_WORD + 1) }
}

/// `count` lines that are bound at `address`.
fn lines(address: u64, count: usize) -> &'static [Line] {
    let lines = core::ptr::with_exposed_provenance::<Line>(address as usize);
    // SAFETY: the callers name what the grant lists: memory of that length is mapped there for as long as the agent is,
    // and lines are atomic words, whatever their bits. (The ring can only be read, and a consumer only reads.)
    unsafe { slice::from_raw_parts(lines, count) }
}

/// What the grant page says; none where it says nothing that can be.
fn given() -> Option<Given> {
    let page = page();
    let mut words = [0; WORDS];
    for (word, place) in words.iter_mut().zip(page) {
        *word = place.load(Ordering::Relaxed);
    }
    let grant = Grant::from_words(&words)?;
    let registers = NonNull::new(core::ptr::with_exposed_provenance_mut(space::DOORBELL as usize))?;
    // SAFETY: the runtime maps the enclave's doorbell page there as registers, and this is called once.
    let doorbells = DoorbellPage::new(unsafe { UniqueMmioPointer::new(registers) });
    let bell = doorbells.doorbells(grant.host_peer, 0, grant.slots).ok()?;
    Some(Given {
        bindings: Bindings {
            slots: lines(space::SLOTS, grant.slots.into()),
            control: lines(space::CONTROL, 1).first()?,
            revoke: page.get(REVOKE_WORD)?,
            doorbell: Bell(bell),
            core: grant.core,
            wake: (grant.wake_peer, grant.wake_vector),
            session: grant.session,
            version: grant.version,
            incarnation: grant.incarnation,
            taken: grant.taken,
            resyncs: grant.resyncs,
            clock: grant.clock,
        },
        messages: lines(space::MESSAGES, grant.message_lines as usize),
        idle: Sleep { polls: grant.idle_polls, sleep_ns: grant.sleep_ns, counter: None },
        grant,
    })
}

/// What a core of an agent's does that the agent has no use for.
pub fn rest(_core: usize) {}

/// An agent's whole life, on its core number `core`.
pub fn begin(core: usize, main: fn(Given) -> Result<Exit, AgentError>, other: fn(usize)) -> ! {
    if core > 0 {
        other(core);
        loop {
            call::<{ call::SLEEP }>(0);
        }
    }
    let Some(given) = given() else { panic!("the grant page says nothing that can be") };
    match main(given) {
        Ok(Exit::Revoked) => last_call::<{ call::EXIT }>([0; 5]),
        Err(error) => panic!("the agent can't start: {error}"),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let text = Cut::new(format_args!("{}", info.message()));
    let text = text.bytes();
    let (file, line) = info.location().map_or(("", 0), |location| (location.file(), location.line()));
    last_call::<{ call::PANIC }>([
        text.as_ptr().expose_provenance() as u64,
        text.len() as u64,
        file.as_ptr().expose_provenance() as u64,
        file.len() as u64,
        line.into(),
    ])
}
