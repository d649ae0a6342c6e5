//! Rings every vector of every peer that a doorbell can name, near its own.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use neap_abi::grant::space::DOORBELL;
    neap_attacks::say(given);
    for peer in (0..64).chain([0x7fff, 0xffff]) {
        for vector in (0..64).chain([0x7fff, 0xffff]) {
            neap_hal::cpu::forbidden::store(DOORBELL + 0xc, peer << 16 | vector);
        }
    }
    panic!("rang them all");
});
