//! Masks interrupts, so that nobody can take its core.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::mask_exceptions());
