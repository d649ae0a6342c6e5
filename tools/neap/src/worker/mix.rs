//! A cheap hash: what a request does follows from the seed and its number alone, on whatever thread it runs.

/// 64 well-mixed bits from three numbers (SplitMix64's finaliser, Steele et al., OOPSLA 2014).
pub fn mix(seed: u64, a: u64, b: u64) -> u64 {
    [a, b]
        .into_iter()
        .fold(finish(seed), |state, word| finish(state ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn finish(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
