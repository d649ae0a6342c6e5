//! Stores to its manager's line at its address in the machine (variant 0), and to what would lie beside its own line.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_abi::grant::space::CONTROL;
    use neap_hal::cpu::forbidden::store_long;
    match told.variant {
        0 => store_long(told.own_manager, 0),
        1 => store_long(CONTROL - 4096, 0),
        _ => store_long(CONTROL + 4096, 0),
    }
});
