//! Turns the MMU off, looks whether it is on, or returns to EL1.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden::{read_control, return_from_exception, set_control};
    match told.variant {
        0 => set_control(),
        1 => read_control(),
        _ => return_from_exception(),
    }
});
