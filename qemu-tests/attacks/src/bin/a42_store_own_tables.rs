//! Stores to its own translation tables.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    neap_attacks::say(given);
    let told = neap_attacks::wait_for_leave();
    neap_hal::cpu::forbidden::store_long(told.own_tables, 0);
});
