//! Stores to the interrupt controller.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| neap_hal::cpu::forbidden::store(told.interrupt_controller, 0));
