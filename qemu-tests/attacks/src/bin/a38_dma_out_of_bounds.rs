//! Has the DMA engine move what is not its own to have moved, or ring whom it may not.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, _| {
    use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
    use neap_abi::grant::space::{DMA, DOORBELL};
    use neap_hal::soc::dma::registers::{CONTROL_NOTIFY, Direction, MAGIC, Registers};
    neap_attacks::say(given);
    let registers = core::ptr::with_exposed_provenance::<Registers>(DMA as usize);
    // SAFETY: the runtime maps the channel's page there for as long as the agent is; registers are atomics.
    let registers = unsafe { &*registers };
    assert!(registers.magic.load(Acquire) == MAGIC, "no engine");
    let bell = registers.engine_peer.load(Relaxed) << 16 | registers.channel.load(Relaxed);
    let grant = |number: usize| registers.grant_table[number].base.load(Relaxed);
    // The first range is the host's, the second the window's.
    let (host, own) = (grant(0), grant(1));
    let mut ticket = registers.ticket.load(Relaxed);
    let mut faults = [0u8; 7];
    let descriptors = [
        (Direction::HostToIpu, host, 0, 64, 0),
        (Direction::IpuToHost, 0, host, 64, 0),
        (Direction::HostToIpu, host - 64, own, 128, 0),
        (Direction::IpuToHost, own, u64::MAX - 63, 64, 0),
        (Direction::IpuToHost, own + 4, host, 64, 0),
        (Direction::IpuToHost, own, host, u64::MAX - 7, 0),
        (Direction::IpuToHost, own, host, 64, 0x4242_0000),
    ];
    for (fault, (direction, source, destination, bytes, notify)) in faults.iter_mut().zip(descriptors) {
        registers.source.store(source, Relaxed);
        registers.destination.store(destination, Relaxed);
        registers.bytes.store(bytes, Relaxed);
        registers.direction.store(direction.bits(), Relaxed);
        registers.control.store(if notify == 0 { 0 } else { CONTROL_NOTIFY }, Relaxed);
        registers.notify.store(notify, Relaxed);
        ticket = ticket.wrapping_add(1);
        registers.ticket.store(ticket, Release);
        neap_hal::cpu::forbidden::store(DOORBELL + 0xc, bell);
        let status = loop {
            let status = registers.status.load(Acquire);
            if status as u32 == ticket && (status >> 32) as u8 > 1 {
                break status;
            }
        };
        *fault = (status >> 40) as u8;
    }
    panic!("{faults:?}");
});
