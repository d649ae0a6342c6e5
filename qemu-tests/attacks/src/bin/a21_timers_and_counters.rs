//! Reads the virtual counter, as it may, and then turns to the timers and counters that it may not touch.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden;
    let before = forbidden::virtual_counter();
    assert!(forbidden::virtual_counter() >= before && before > 0, "the counter does not count");
    match told.variant {
        0 => forbidden::set_virtual_timer(),
        1 => forbidden::set_physical_timer(),
        2 => forbidden::read_physical_counter(),
        3 => forbidden::read_cycles(),
        _ => forbidden::set_performance_control(),
    }
});
