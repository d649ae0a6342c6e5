//! the command for users
fn main() {}
