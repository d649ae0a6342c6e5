//! Panics with words that are not its own to read: the runtime's, a neighbour's, nobody's.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_abi::grant::{call, space};
    let (text, bytes) = match told.variant {
        0 => (told.runtime_text, 64),
        1 => (told.neighbour_window, 64),
        2 => (space::GRANT, 64),
        3 => (space::END, 64),
        4 => (u64::MAX - 7, u64::MAX),
        5 => (space::IMAGE, u64::MAX),
        _ => (space::IMAGE - 8, 64),
    };
    neap_hal::cpu::forbidden::call::<{ call::PANIC }>([text, bytes, text, bytes, 28]);
});
