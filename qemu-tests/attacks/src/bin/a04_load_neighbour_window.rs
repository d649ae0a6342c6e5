//! Loads from another enclave's window.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    let _ = neap_hal::cpu::forbidden::load_long(told.neighbour_window);
});
