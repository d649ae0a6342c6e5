//! every register and every instruction that Rust cannot name
#![no_std]
