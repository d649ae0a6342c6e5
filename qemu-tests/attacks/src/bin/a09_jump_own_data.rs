//! Goes on in its own data, which holds instructions.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::jump(neap_attacks::own_data()));
