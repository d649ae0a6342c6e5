//! The routine that the loader left behind, as the runtime calls it (`resident.s`).

/// Confirms the running image and ends the watchdog. Returns the firmware's status: 0 where it is done.
///
/// # Safety
/// `routine` must be what the loader gave, mapped executable, and nobody else may be in it.
pub unsafe fn confirm(routine: u64) -> u64 {
    let routine = core::ptr::with_exposed_provenance::<()>(routine as usize);
    // SAFETY: the caller's promise. It keeps to the procedure call standard, and gives back the map that it is called with.
    unsafe { core::mem::transmute::<*const (), extern "C" fn() -> u64>(routine)() }
}
