//! Stores to its grant page: nobody is to want its core back.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| {
    use neap_abi::grant::{REVOKE_WORD, space};
    neap_hal::cpu::forbidden::store_long(space::GRANT + 8 * REVOKE_WORD as u64, 0);
});
