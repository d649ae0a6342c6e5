//! Exceptions: the vector table, the frame it saves, and the one function that it calls.
//!
//! The image's owner defines the handler:
//!
//! ```ignore
//! #[unsafe(no_mangle)]
//! extern "C" fn neap_exception(frame: &mut Frame) { .. }
//! ```
//!
//! It runs on the core's exception stack with all exceptions masked. When it returns, execution goes on at
//! [`Frame::elr`] with the registers of the frame, which it may have changed. An exception inside the handler
//! calls it again, one frame deeper: the handler has to notice.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::cpu::syndrome::Syndrome;

/// Everything that an exception interrupts.
#[repr(C, align(16))]
#[derive(Debug, Clone)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// SP_EL0: Rust's stack pointer at EL1, or the agent's.
    pub sp: u64,
    /// ELR_EL1: where it happened.
    pub elr: u64,
    /// SPSR_EL1: the processor state before.
    pub spsr: u64,
    /// ESR_EL1, see [`Frame::syndrome`].
    pub esr: u64,
    /// FAR_EL1, when [`Syndrome::has_fault_address`].
    pub far: u64,
    /// The entry of the vector table, 0 to 15, see [`Frame::source`].
    vector: u64,
    /// FPSR.
    pub fpsr: u64,
    /// FPCR.
    pub fpcr: u64,
    _reserved: u64,
    /// The vector registers.
    pub q: [u128; 32],
}

const _: () = assert!(offset_of!(Frame, sp) == 248);
const _: () = assert!(offset_of!(Frame, elr) == 256);
const _: () = assert!(offset_of!(Frame, esr) == 272);
const _: () = assert!(offset_of!(Frame, vector) == 288);
const _: () = assert!(offset_of!(Frame, fpsr) == 296);
const _: () = assert!(offset_of!(Frame, q) == 320);
const _: () = assert!(size_of::<Frame>() == 832);

/// What kind of exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An instruction's own doing; [`Frame::esr`] says what.
    Synchronous,
    /// An interrupt.
    Irq,
    /// A fast interrupt; nothing is routed to it.
    Fiq,
    /// A late bus error; [`Frame::esr`] may say more.
    SError,
}

/// Whom it interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The runtime, on its main stack.
    Runtime,
    /// An exception's handler: it is nested.
    Handler,
    /// EL0.
    Agent,
}

impl Frame {
    /// What kind of exception this is.
    pub fn kind(&self) -> Kind {
        match self.vector & 3 {
            0 => Kind::Synchronous,
            1 => Kind::Irq,
            2 => Kind::Fiq,
            _ => Kind::SError,
        }
    }

    /// Whom it interrupted.
    pub fn source(&self) -> Source {
        match self.vector >> 2 {
            0 => Source::Runtime,
            1 => Source::Handler,
            _ => Source::Agent,
        }
    }

    /// What the hardware says about it; meaningless for [`Kind::Irq`] and [`Kind::Fiq`].
    pub fn syndrome(&self) -> Syndrome {
        Syndrome(self.esr)
    }
}

global_asm!(include_str!("exception.s"), frame = const size_of::<Frame>());
