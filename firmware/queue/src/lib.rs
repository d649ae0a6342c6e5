//! rings and slots over self-proving lines
#![no_std]
