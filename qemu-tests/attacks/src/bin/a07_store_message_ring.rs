//! Stores to its message ring, which is its host's to write.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::store(neap_abi::grant::space::MESSAGES, 0));
