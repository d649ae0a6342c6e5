//! the command for developers
fn main() {}
