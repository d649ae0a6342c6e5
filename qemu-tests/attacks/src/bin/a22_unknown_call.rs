//! Makes a system call that there is not.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden::call;
    match told.variant {
        0 => call::<3>([0; 5]),
        _ => call::<0xffff>([u64::MAX; 5]),
    }
});
