//! Has two cores, of which the second does what may not be done, and the first notices nothing.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod both {
    use core::hint::black_box;
    use core::sync::atomic::{AtomicU64, Ordering};

    use neap_abi::grant::call;
    use neap_agent_start::Given;
    use neap_attacks::Told;
    use neap_attacks::told::ASKED;
    use neap_hal::cpu::call::relax;
    use neap_hal::cpu::forbidden;

    /// What the second core counts and the first one sees.
    static BEATS: AtomicU64 = AtomicU64::new(0);

    pub fn first(given: &Given, told: &Told) {
        neap_attacks::say(given);
        if told.variant == 0 {
            while BEATS.load(Ordering::Relaxed) < 1000 {
                relax();
            }
            panic!("the second core has run");
        }
        if told.variant == 6 {
            forbidden::hold(ASKED);
        }
        while given.bindings.revoke.load(Ordering::Relaxed) == 0 {
            relax();
        }
        forbidden::call::<{ call::EXIT }>([0; 5]);
    }

    pub fn second(told: &Told) {
        match told.variant {
            0 => loop {
                BEATS.fetch_add(1, Ordering::Relaxed);
                relax();
            },
            1 => _ = forbidden::load_long(0),
            2 => panic!("deliberate, on the second core"),
            3 => _ = deeper(black_box(1)),
            4 => forbidden::call::<{ call::EXIT }>([0; 5]),
            5 => forbidden::call::<99>([0; 5]),
            _ => forbidden::hold(ASKED),
        }
    }

    #[expect(unconditional_recursion, reason = "the end of the stack ends it")]
    fn deeper(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        deeper(frame[3] + 1) + black_box(frame)[5]
    }
}

neap_attacks::attack!(super::both::first, super::both::second);
