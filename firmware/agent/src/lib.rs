//! the libOS
#![no_std]
