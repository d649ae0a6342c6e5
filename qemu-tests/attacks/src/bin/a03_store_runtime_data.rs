//! Stores to the runtime's data, where the runtime itself has it.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| neap_hal::cpu::forbidden::store_long(told.runtime_data, 0));
