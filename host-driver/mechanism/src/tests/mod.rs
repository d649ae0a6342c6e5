//! The mechanism under a kernel in miniature.

mod bench;
// Random scripts take Miri too long, and have nothing for it: no line here is unsafe.
#[cfg(not(miri))]
mod fifo;
#[cfg(not(miri))]
mod interleavings;
mod lines;
mod outcomes;

/// How many random cases a test tries: `usual`, or as many as `PROPTEST_CASES` says.
#[cfg(not(miri))]
fn cases(usual: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|asked| asked.parse().ok());
    asked.unwrap_or(usual)
}
