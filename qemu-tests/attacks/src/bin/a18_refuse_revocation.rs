//! Sees that its core is wanted back, and keeps it.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use core::sync::atomic::Ordering::Relaxed;
    neap_attacks::say(given);
    while given.bindings.revoke.load(Relaxed) == 0 {
        neap_hal::cpu::call::relax();
    }
    neap_hal::cpu::forbidden::hold(neap_attacks::told::ASKED);
});
