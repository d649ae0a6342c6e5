//! the FIFO agent
#![no_std]
