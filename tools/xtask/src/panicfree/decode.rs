//! Where an A64 instruction goes, besides to the next one.
//!
//! Encodings: Arm ARM (DDI 0487), C4.1.93 "Branches, Exception Generating and System instructions".

/// How one instruction may leave the straight line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Not at all; or back to the caller (RET), which the call graph has already.
    Next,
    /// To a fixed address: B, BL, B.cond, BC.cond, CBZ, CBNZ, TBZ, TBNZ.
    To(u64),
    /// Calls the address in a register: BLR and its authenticated forms.
    CallRegister(u8),
    /// Goes to the address in a register: BR and its authenticated forms.
    JumpRegister(u8),
}

/// Decodes the instruction word that stands at `address`.
pub fn flow(address: u64, word: u32) -> Flow {
    if word & 0x7c00_0000 == 0x1400_0000 {
        return Flow::To(relative(address, word, 0, 26)); // B, BL
    }
    if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        return Flow::To(relative(address, word, 5, 19)); // B.cond, BC.cond; CBZ, CBNZ
    }
    if word & 0x7e00_0000 == 0x3600_0000 {
        return Flow::To(relative(address, word, 5, 14)); // TBZ, TBNZ
    }
    // Unconditional branch (register): bits 24 and 21 tell the authenticated forms apart.
    let register = (word >> 5 & 0x1f) as u8;
    match word & 0xfeff_f000 {
        0xd61f_0000 => Flow::JumpRegister(register),
        0xd63f_0000 => Flow::CallRegister(register),
        _ => Flow::Next,
    }
}

/// Whether `word` computes `register` as a sum of two registers: the end of a jump table's address, and never
/// that of a function pointer, which is loaded.
pub fn adds_into(word: u32, register: u8) -> bool {
    // ADD (shifted register) and ADD (extended register), 64-bit: C6.2.5, C6.2.3.
    let add = word & 0xff20_0000 == 0x8b00_0000 || word & 0xffe0_0000 == 0x8b20_0000;
    add && (word & 0x1f) as u8 == register
}

/// `address` plus the signed field of `width` bits at `low`, in words.
fn relative(address: u64, word: u32, low: u32, width: u32) -> u64 {
    let field = i64::from(word >> low) << (64 - width) >> (64 - width);
    address.wrapping_add_signed(field * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x4020_1000;

    /// Words as LLVM's assembler encodes them.
    #[test]
    fn fixed_targets() {
        let cases: [(&str, u32, i64); 14] = [
            ("b .+4", 0x1400_0001, 4),
            ("b .-4", 0x17ff_ffff, -4),
            ("bl .+0x7fffffc", 0x95ff_ffff, 0x7ff_fffc),
            ("bl .-0x8000000", 0x9600_0000, -0x800_0000),
            ("b.eq .+8", 0x5400_0040, 8),
            ("b.ne .-16", 0x54ff_ff81, -16),
            ("bc.eq .+8", 0x5400_0050, 8),
            ("cbz w0, .+12", 0x3400_0060, 12),
            ("cbnz w3, .-8", 0x35ff_ffc3, -8),
            ("cbz x0, .+12", 0xb400_0060, 12),
            ("cbnz x30, .+0xffffc", 0xb57f_fffe, 0xf_fffc),
            ("tbz w5, #3, .+8", 0x3618_0045, 8),
            ("tbnz w5, #3, .-4", 0x371f_ffe5, -4),
            ("tbnz x9, #63, .+0x7ffc", 0xb7fb_ffe9, 0x7ffc),
        ];
        for (text, word, offset) in cases {
            assert_eq!(flow(AT, word), Flow::To(AT.wrapping_add_signed(offset)), "{text}");
        }
    }

    #[test]
    fn targets_in_registers() {
        let cases = [
            ("br x16", 0xd61f_0200, Flow::JumpRegister(16)),
            ("blr x8", 0xd63f_0100, Flow::CallRegister(8)),
            ("braaz x16", 0xd61f_0a1f, Flow::JumpRegister(16)),
            ("blraaz x8", 0xd63f_091f, Flow::CallRegister(8)),
            ("blraa x8, x9", 0xd73f_0909, Flow::CallRegister(8)),
            ("braa x16, x17", 0xd71f_0a11, Flow::JumpRegister(16)),
        ];
        for (text, word, wanted) in cases {
            assert_eq!(flow(AT, word), wanted, "{text}");
        }
    }

    #[test]
    fn everything_else_goes_on() {
        let cases = [
            ("ret", 0xd65f_03c0),
            ("retaa", 0xd65f_0bff),
            ("eret", 0xd69f_03e0),
            ("nop", 0xd503_201f),
            ("svc #0", 0xd400_0001),
            ("ldr x1, [x1, #24]", 0xf940_0c21),
            ("add x11, x11, x12, lsl #2", 0x8b0c_096b),
            ("dsb sy", 0xd503_3f9f),
            ("udf #0", 0),
        ];
        for (text, word) in cases {
            assert_eq!(flow(AT, word), Flow::Next, "{text}");
        }
    }

    #[test]
    fn a_jump_table_s_address_is_a_sum() {
        assert!(adds_into(0x8b0c_096b, 11), "add x11, x11, x12, lsl #2");
        assert!(adds_into(0x8b2c_c96b, 11), "add x11, x11, w12, sxtw #2");
        assert!(!adds_into(0x8b0c_096b, 12), "another register");
        assert!(!adds_into(0xf940_0c21, 1), "ldr x1, [x1, #24]");
        assert!(!adds_into(0x9100_0421, 1), "add x1, x1, #1");
        assert!(!adds_into(0xcb0c_016b, 11), "sub x11, x11, x12");
    }
}
