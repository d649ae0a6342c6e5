//! Says of itself in its control line what is not so: random things, of which one in two speaks of the right session
//! (variant 0); that it is the next agent, again and again (1) or once (2); that it has ended (3).
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::line::PAYLOAD_MASK;
    use neap_abi::{AgentControl, AgentState};
    use neap_queue::SlotWriter;
    neap_attacks::say(given);
    // Its host should have heard of it before it hears anything else.
    let _ = neap_attacks::wait_for_leave();
    let line = given.bindings.control;
    let said = line.read_any().and_then(|(payload, _)| AgentControl::from_payload(&payload));
    let said = said.unwrap_or(AgentControl::NOTHING);
    let mut random = neap_attacks::random(37);
    let mut writer = SlotWriter::after(line);
    for count in 1.. {
        let payload = match told.variant {
            0 => {
                let mut payload = core::array::from_fn(|_| random() & PAYLOAD_MASK);
                if random() & 1 == 0 {
                    payload[0] = (payload[0] & !0xff) | (random() % 9);
                    payload[1] = u64::from(given.grant.session);
                }
                payload
            }
            1 => AgentControl { incarnation: said.incarnation + count, ..said }.to_payload(),
            2 => AgentControl { incarnation: said.incarnation + 1, ..said }.to_payload(),
            _ => AgentControl { state: AgentState::Dead, ..said }.to_payload(),
        };
        writer.write(line, &payload, 3);
        (0..random() % 20_000).for_each(|_| neap_hal::cpu::call::relax());
    }
});
