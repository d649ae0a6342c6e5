//! Fills its memory with a pattern, and when it is asked for its core, its registers.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use core::sync::atomic::Ordering::Relaxed;
    use neap_abi::grant::{call, space};
    use neap_attacks::traces;
    neap_attacks::say(given);
    traces::fill(space::STACK_END - neap_attacks::STACK_BYTES..space::STACK_END - traces::STACK_USED);
    traces::fill(traces::own_memory());
    while given.bindings.revoke.load(Relaxed) == 0 {
        neap_hal::cpu::call::relax();
    }
    neap_hal::cpu::forbidden::fill_registers::<{ call::EXIT }>(traces::PATTERN)
});
