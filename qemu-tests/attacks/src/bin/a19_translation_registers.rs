//! Has addresses mean something else.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden::{set_translation_table, set_vectors};
    match told.variant {
        0 => set_translation_table(),
        _ => set_vectors(),
    }
});
