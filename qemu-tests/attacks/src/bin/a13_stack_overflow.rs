//! Calls itself until its stack is full.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| {
    use core::hint::black_box;

    #[expect(unconditional_recursion, reason = "the end of the stack ends it")]
    fn deeper(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        deeper(frame[3] + 1) + black_box(frame)[5]
    }
    black_box(deeper(black_box(1)));
});
