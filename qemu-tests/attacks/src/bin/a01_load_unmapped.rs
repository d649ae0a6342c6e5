//! Loads from address 0, where nothing is mapped.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| {
    let _ = neap_hal::cpu::forbidden::load_long(0);
});
