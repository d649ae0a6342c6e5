//! Sleeps whenever it is woken, and never looks up.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    neap_attacks::say(given);
    loop {
        neap_hal::cpu::call::call::<{ neap_abi::grant::call::SLEEP }>(0);
    }
});
