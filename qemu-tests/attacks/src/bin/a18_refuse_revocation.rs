//! Sees that its core is wanted back, and keeps it.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use core::sync::atomic::Ordering::Relaxed;
    neap_attacks::say(given);
    let asked = || given.bindings.revoke.load(Relaxed) != 0;
    // Whether it was asked is seen in x0 of its last registers.
    loop {
        core::hint::black_box(asked());
    }
});
