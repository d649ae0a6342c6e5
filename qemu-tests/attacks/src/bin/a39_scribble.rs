//! Writes random bytes to all that it may write to: its slots, its control line, its DMA page, its buffer.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use neap_abi::grant::space;
    use neap_hal::cpu::forbidden::store_long;
    neap_attacks::say(given);
    let mut random = neap_attacks::random(39);
    let pages =
        [(space::SLOTS, 16 << 10), (space::CONTROL, 4096), (space::DMA, 4096), (space::BUFFER, 1 << 20)];
    for (start, bytes) in pages.into_iter().cycle() {
        for address in (start..start + bytes).step_by(8) {
            store_long(address, random());
        }
    }
});
