//! What ESR_EL1 says about an exception (DDI 0487 D24.2.41).

use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields! [u64,
    ESR [
        /// Exception class.
        EC OFFSET(26) NUMBITS(6) [],
        /// The number in an SVC instruction.
        IMM16 OFFSET(0) NUMBITS(16) [],
        /// A data abort was a store.
        WNR OFFSET(6) NUMBITS(1) [],
        /// Fault status code of an abort.
        FSC OFFSET(0) NUMBITS(6) []
    ]
];

/// A syndrome register's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// The exception class, EC: six bits.
    pub fn class(self) -> u8 {
        self.fields().read(ESR::EC) as u8
    }

    fn fields(self) -> LocalRegisterCopy<u64, ESR::Register> {
        LocalRegisterCopy::new(self.0)
    }

    /// Whether FAR_EL1 holds the address that faulted: aborts, and program counters and stacks out of line.
    pub fn has_fault_address(self) -> bool {
        matches!(self.class(), 0x20 | 0x21 | 0x22 | 0x24 | 0x25)
    }

    /// Whether a data abort was a store (WnR).
    pub fn is_store(self) -> bool {
        matches!(self.class(), 0x24 | 0x25) && self.fields().is_set(ESR::WNR)
    }

    /// Whether it is a system call from AArch64.
    pub fn is_system_call(self) -> bool {
        self.class() == 0x15
    }

    /// The number in the SVC instruction; meaningless for any other exception.
    pub fn call_number(self) -> u16 {
        self.fields().read(ESR::IMM16) as u16
    }

    /// The exception in words.
    pub fn name(self) -> &'static str {
        match self.class() {
            0x00 => "unknown or undefined instruction",
            0x01 => "trapped WFI or WFE",
            0x07 => "trapped vector instruction",
            0x0e => "illegal execution state",
            0x15 => "system call",
            0x16 => "hypervisor call",
            0x17 => "monitor call",
            0x18 => "trapped system register",
            0x20 | 0x21 => "instruction abort",
            0x22 => "misaligned program counter",
            0x24 | 0x25 => match self.fields().read(ESR::FSC) {
                0x04..=0x07 => "data abort: not mapped",
                0x0c..=0x0f => "data abort: not permitted",
                0x10 | 0x14..=0x17 => "data abort: no device answered",
                0x21 => "data abort: misaligned",
                _ => "data abort",
            },
            0x26 => "misaligned stack pointer",
            0x2c => "floating-point exception",
            0x2f => "SError",
            0x30..=0x35 => "debug event",
            0x3c => "breakpoint instruction",
            _ => "exception of a reserved class",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_to_an_unmapped_page_reads_as_one() {
        // What QEMU and hardware report for it: EC 0x25, IL, WnR, translation fault at level 3.
        let syndrome = Syndrome(0x9600_0047);
        assert_eq!(syndrome.class(), 0x25);
        assert!(syndrome.is_store() && syndrome.has_fault_address());
        assert_eq!(syndrome.name(), "data abort: not mapped");
        assert!(!Syndrome(0x9600_0007).is_store());
        assert!(!Syndrome(0xf200_0000).has_fault_address());
        assert_eq!(Syndrome(0xf200_0000).name(), "breakpoint instruction");
        let call = Syndrome(0x5600_0007);
        assert!(call.is_system_call() && !syndrome.is_system_call());
        assert_eq!(call.call_number(), 7);
    }
}
