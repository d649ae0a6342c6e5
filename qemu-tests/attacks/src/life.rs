//! What hostile agents have in common.

use core::sync::atomic::{AtomicU64, Ordering};

use neap_abi::grant::space;
use neap_abi::{AgentControl, AgentState};
use neap_agent_start::Given;
use neap_hal::cpu::call::relax;
use neap_queue::SlotWriter;

use crate::told::{GO_WORD, Told, WORDS};

/// A hostile agent's whole life.
pub fn live(given: &Given, crime: impl FnOnce(&Given, &Told)) -> ! {
    crime(given, &told());
    panic!("went unpunished")
}

/// What a hostile agent does on a core that is not its first.
pub fn live_beside(crime: impl FnOnce(&Told)) -> ! {
    crime(&told());
    panic!("went unpunished on a further core")
}

/// The words that agent and host share.
fn words() -> &'static [AtomicU64; WORDS] {
    let words = core::ptr::with_exposed_provenance::<[AtomicU64; WORDS]>(space::BUFFER as usize);
    // SAFETY: the runtime maps the buffer there for as long as the agent is; words are atomics, whatever their bits.
    unsafe { &*words }
}

fn told() -> Told {
    Told::from_words(&core::array::from_fn(|word| words()[word].load(Ordering::Relaxed)))
}

/// Waits until the host lets it go on, and hears what it is told then.
#[must_use]
pub fn wait_for_leave() -> Told {
    while words()[GO_WORD].load(Ordering::Acquire) == 0 {
        relax();
    }
    told()
}

/// Says that the agent runs, as a good one does first of all; it has taken nothing of the ring.
pub fn say(given: &Given) {
    let bound = &given.bindings;
    let line = AgentControl {
        state: AgentState::Running,
        core: bound.core,
        peer: bound.wake.0,
        vector: bound.wake.1,
        session: bound.session,
        version: bound.version,
        credits: bound.taken,
        resyncs: bound.resyncs,
        incarnation: bound.incarnation,
        ..AgentControl::NOTHING
    };
    SlotWriter::after(bound.control).write(bound.control, &line.to_payload(), 3);
}

/// The address of some data of the agent's own.
#[must_use]
pub fn own_data() -> u64 {
    static DATA: AtomicU64 = AtomicU64::new(0x14_00_00_00_14_00_00_00);
    DATA.as_ptr().expose_provenance() as u64
}

/// Random numbers from a seed, the same in every run.
pub fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
