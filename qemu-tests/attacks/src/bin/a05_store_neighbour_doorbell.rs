//! Stores to another enclave's doorbell.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| neap_hal::cpu::forbidden::store(told.neighbour_doorbell + 0xc, 0));
