//! the wire format
#![no_std]
