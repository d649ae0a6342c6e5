//! pure decisions
#![no_std]
