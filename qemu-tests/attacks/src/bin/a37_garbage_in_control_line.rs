//! Writes random bytes into its control line, of which one in two speaks of the right session.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use neap_abi::line::PAYLOAD_MASK;
    use neap_queue::SlotWriter;
    neap_attacks::say(given);
    let mut random = neap_attacks::random(37);
    let mut writer = SlotWriter::after(given.bindings.control);
    loop {
        let mut payload = core::array::from_fn(|_| random() & PAYLOAD_MASK);
        if random() & 1 == 0 {
            payload[0] = (payload[0] & !0xff) | (random() % 9);
            payload[1] = u64::from(given.grant.session);
        }
        writer.write(given.bindings.control, &payload, 3);
        (0..random() % 20_000).for_each(|_| neap_hal::cpu::call::relax());
    }
});
