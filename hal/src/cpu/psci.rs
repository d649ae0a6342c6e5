//! Power by PSCI (DEN 0022): starting cores, turning the machine off.

use smccc::psci::{self, LowestAffinityLevel};
use smccc::{Hvc, Smc};

use crate::cpu::CORES_MAX;
use crate::cpu::boot;
use crate::cpu::mmu::Root;

pub use crate::board::Conduit;

/// Why a core did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The image has stacks for fewer cores.
    #[error("core {0} is one too many: the image has stacks for {CORES_MAX}")]
    NoStack(usize),
    /// The platform's firmware refused.
    #[error("PSCI refused to start core {core} (MPIDR {mpidr:#x}): {reason}")]
    Refused {
        /// Our number for it.
        core: usize,
        /// The device tree's.
        mpidr: u64,
        /// What firmware says.
        reason: psci::error::Error,
    },
}

/// Starts the core `mpidr` as number `core`, on `map`; it appears in `neap_secondary`.
///
/// # Errors
/// [`StartError`]; nothing has started then.
pub fn start_core(conduit: Conduit, core: usize, mpidr: u64, map: Root) -> Result<(), StartError> {
    if core == 0 || core >= CORES_MAX {
        return Err(StartError::NoStack(core));
    }
    let entry = boot::secondary_entry();
    // The entry code takes this apart again: the table is page-aligned, the number is below a page.
    let context = map.address() | core as u64;
    match conduit {
        Conduit::Hvc => psci::cpu_on::<Hvc>(mpidr, entry, context),
        Conduit::Smc => psci::cpu_on::<Smc>(mpidr, entry, context),
    }
    .map_err(|reason| StartError::Refused { core, mpidr, reason })
}

/// Whether firmware says that the core `mpidr` is off, and can be started.
pub fn is_off(conduit: Conduit, mpidr: u64) -> bool {
    state(conduit, mpidr) == Ok(psci::AffinityState::Off)
}

/// Turns this core off. Returns only if firmware refuses.
pub fn core_off(conduit: Conduit) {
    // The result is the refusal, and there is nobody left to act on it but the caller.
    let _ = match conduit {
        Conduit::Hvc => psci::cpu_off::<Hvc>(),
        Conduit::Smc => psci::cpu_off::<Smc>(),
    };
}

fn state(conduit: Conduit, mpidr: u64) -> Result<psci::AffinityState, psci::Error> {
    match conduit {
        Conduit::Hvc => psci::affinity_info::<Hvc>(mpidr, LowestAffinityLevel::All),
        Conduit::Smc => psci::affinity_info::<Smc>(mpidr, LowestAffinityLevel::All),
    }
}

/// Turns the machine off. Returns only if firmware refuses.
pub fn system_off(conduit: Conduit) {
    // The result is the refusal, and there is nobody left to act on it but the caller.
    let _ = match conduit {
        Conduit::Hvc => psci::system_off::<Hvc>(),
        Conduit::Smc => psci::system_off::<Smc>(),
    };
}
