//! Never looks up again. Variant 0 says first that it runs.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    if told.variant == 0 {
        neap_attacks::say(given);
    }
    loop {
        core::hint::black_box(());
    }
});
