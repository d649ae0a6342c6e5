//! Calls a hypervisor or a monitor, to turn the machine off.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_hal::cpu::forbidden::{call_hypervisor, call_monitor};
    match told.variant {
        0 => call_hypervisor(),
        _ => call_monitor(),
    }
});
