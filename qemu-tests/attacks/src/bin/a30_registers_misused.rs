//! Uses its doorbell page as if it were memory: out of line (variant 0), where no register is (1), as a lock (2).
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, told| {
    use neap_abi::grant::space::DOORBELL;
    use neap_hal::cpu::forbidden::{add_exclusively, store};
    match told.variant {
        0 => store(DOORBELL + 0xd, 0),
        1 => store(DOORBELL + 0xffc, 0),
        _ => add_exclusively(DOORBELL + 0x800),
    }
    panic!("the machine does not mind");
});
