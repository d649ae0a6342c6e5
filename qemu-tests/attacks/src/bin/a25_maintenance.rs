//! Has everybody's translations, instructions or data forgotten.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden;
    match told.variant {
        0 => forbidden::forget_translations(),
        1 => forbidden::forget_instructions(),
        2 => forbidden::invalidate_by_set(),
        _ => forbidden::invalidate_line(),
    }
});
