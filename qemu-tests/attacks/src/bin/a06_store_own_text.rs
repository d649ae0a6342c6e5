//! Stores to its own text.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::store(neap_abi::grant::space::IMAGE, 0));
