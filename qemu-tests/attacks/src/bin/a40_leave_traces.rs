//! Fills its memory with a pattern, and when it is asked for its core, its registers.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use core::sync::atomic::Ordering::Relaxed;
    use neap_abi::grant::{call, space};
    use neap_attacks::traces;
    /// More than the one that looks for it has, which is then laid out where this was.
    static OWN: traces::Own<{ 256 << 10 >> 3 }> = traces::Own::new();
    neap_attacks::say(given);
    traces::fill(space::STACK_END - neap_attacks::STACK_BYTES..space::STACK_END - traces::STACK_USED);
    traces::fill(OWN.range());
    while given.bindings.revoke.load(Relaxed) == 0 {
        neap_hal::cpu::call::relax();
    }
    neap_hal::cpu::forbidden::fill_registers::<{ call::EXIT }>(traces::PATTERN)
});
