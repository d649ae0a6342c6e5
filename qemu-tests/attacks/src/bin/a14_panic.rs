//! Panics.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| panic!("deliberate, on core {}", given.grant.core));
