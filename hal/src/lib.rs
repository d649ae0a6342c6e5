//! Every register and every instruction that Rust cannot name.
//!
//! 1. Nothing above this crate names a register or holds inline assembly.
//! 2. A register block is typed, its offsets are asserted, and its driver runs on the host against a fake.
//! 3. What a driver reads from outside (a device tree, a BAR, a status word) is an allegation until checked.
//! 4. What needs the card's instructions is there only when it is built for the card; the rest (device
//!    trees, address plans, PCI configuration, unit conversion) is built and tested on any machine.
#![cfg_attr(not(test), no_std)]

pub mod board;
pub mod cpu;
pub mod soc;
