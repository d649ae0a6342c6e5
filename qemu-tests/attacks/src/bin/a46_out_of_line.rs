//! Puts its stack (variant 0) or its next instruction out of line.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden::{jump, misalign_stack};
    match told.variant {
        0 => misalign_stack(),
        _ => jump(neap_abi::grant::space::IMAGE + 2),
    }
});
