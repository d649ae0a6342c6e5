//! The mechanism under a kernel in miniature.

mod bench;
mod fifo;
mod interleavings;
mod lines;
mod outcomes;

/// How many random cases a test tries: `usual`, or as many as `PROPTEST_CASES` says.
fn cases(usual: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|asked| asked.parse().ok());
    asked.unwrap_or(usual)
}
