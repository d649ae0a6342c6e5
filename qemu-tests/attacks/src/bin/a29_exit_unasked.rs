//! Gives its core back though nobody has asked.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::call::<{ neap_abi::grant::call::EXIT }>([0; 5]));
