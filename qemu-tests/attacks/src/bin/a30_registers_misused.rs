//! Reaches for its doorbell as if it were memory, or for registers that are not there.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_abi::grant::space::DOORBELL;
    use neap_hal::cpu::forbidden;
    match told.variant {
        0 => forbidden::store(DOORBELL + 0xd, 0),
        1 => forbidden::store(DOORBELL + 0x800, 0),
        2 => forbidden::store_byte(DOORBELL + 0xfff, 0),
        3 => {
            let _ = forbidden::load_long(DOORBELL + 0x800);
        }
        _ => forbidden::add_exclusively(DOORBELL + 0x800),
    }
});
