//! Rings and rings, and never decides: its host (variant 0), or the runtime and all its cores.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::grant::space::DOORBELL;
    use neap_agent::Doorbell;
    neap_attacks::say(given);
    let ipu = u32::from(given.grant.wake_peer) << 16;
    loop {
        match told.variant {
            0 => given.bindings.doorbell.ring(told.own_cpu),
            _ => (0..16).for_each(|vector| neap_hal::cpu::forbidden::store(DOORBELL + 0xc, ipu | vector)),
        }
    }
});
