//! end-to-end tests on QEMU
#![no_std]
