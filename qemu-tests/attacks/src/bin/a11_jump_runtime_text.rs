//! Goes on in the runtime's text.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| neap_hal::cpu::forbidden::jump(told.runtime_text));
