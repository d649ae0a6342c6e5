//! Waits for an interrupt (variant 0) or an event, and never looks up again.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_hal::cpu::forbidden::{wait_for_events, wait_for_interrupts};
    neap_attacks::say(given);
    match told.variant {
        0 => wait_for_interrupts(),
        _ => wait_for_events(),
    }
});
