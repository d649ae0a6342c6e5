//! the exokernel
#![no_std]
