//! What a card boots: signed images in two slots, and which of them it is.
//!
//! 1. Every byte of an image is covered: by its signature, by a hash that the signature covers, or by having to be zero.
//! 2. What can't be booted is refused with its reason, and the other slot is booted in its place.
//! 3. A new image is tried once. It stays if it is confirmed; else the next boot returns to the one before.
//! 4. One write decides, and a power cut before, in or after any write leaves a slot that boots.
//!
//! Nothing here knows a disk, a firmware or a machine: who has those (`neap image`, `neap flash`, the loader) hands in bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod bound;
pub mod handover;
pub mod image;
pub mod keys;
pub mod slots;
