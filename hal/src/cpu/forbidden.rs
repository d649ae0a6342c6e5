//! What code at EL0 may not do, written out for agents that try to. Only tests ask for it (feature `forbidden`).
//!
//! The first kind of function is one instruction that has to trap; should it not, the function returns, and its caller
//! tells. The others make registers speak: of what an agent leaves in them, and of what one finds there.

use core::arch::asm;

/// Functions of one forbidden act each.
macro_rules! forbidden {
    ($($(#[$about:meta])+ $name:ident: $($line:literal)+;)+) => {
        $(
            $(#[$about])+
            pub fn $name() {
                // SAFETY: none: it traps, which is the point.
                unsafe { asm!($($line),+, inout("x0") 0u64 => _, inout("x1") 0u64 => _, options(nostack)) };
            }
        )+
    };
}

forbidden! {
    /// Translates by tables at address 0.
    set_translation_table: "msr ttbr0_el1, x0";
    /// Moves the vector table.
    set_vectors: "msr vbar_el1, x0";
    /// Turns the MMU off.
    set_control: "msr sctlr_el1, x0";
    /// Reads whether the MMU is on.
    read_control: "mrs x0, sctlr_el1";
    /// Masks all exceptions.
    mask_exceptions: "msr daifset, #0xf";
    /// Returns from an exception that never was.
    return_from_exception: "eret";
    /// Stops the runtime's timer.
    set_virtual_timer: "msr cntv_ctl_el0, x0";
    /// Arms the physical timer.
    set_physical_timer: "msr cntp_ctl_el0, x0";
    /// Reads the physical counter.
    read_physical_counter: "mrs x0, cntpct_el0";
    /// Reads the cycle counter.
    read_cycles: "mrs x0, pmccntr_el0";
    /// Starts the performance counters.
    set_performance_control: "msr pmcr_el0, x0";
    /// Calls a hypervisor: PSCI's SYSTEM_OFF.
    call_hypervisor: "movz x0, #0x8400, lsl #16" "movk x0, #0x0008" "hvc #0";
    /// Calls a monitor: PSCI's SYSTEM_OFF.
    call_monitor: "movz x0, #0x8400, lsl #16" "movk x0, #0x0008" "smc #0";
    /// Forgets all translations.
    forget_translations: "tlbi vmalle1";
    /// Empties the instruction cache.
    forget_instructions: "ic iallu";
    /// Throws a line of the data cache away, unwritten, by set and way.
    invalidate_by_set: "dc isw, x0";
    /// Throws a line of the data cache away, unwritten, by its address.
    invalidate_line: "dc ivac, x0";
    /// Executes what is no instruction.
    execute_nothing: "udf #0";
    /// Calls a debugger.
    break_here: "brk #0x2a";
    /// Puts the stack pointer out of line, and uses it.
    misalign_stack: "mov x1, sp" "add x1, x1, #4" "mov sp, x1" "ldr x0, [sp]";
}

/// Ends the simulator, as semihosting's SYS_EXIT would.
pub fn exit_simulator() {
    let block: [u64; 2] = [0x2_0026, 0];
    // SAFETY: none: it traps, which is the point.
    unsafe { asm!("hlt #0xf000", inout("x0") 0x18u64 => _, in("x1") block.as_ptr(), options(nostack)) };
}

/// Waits for an interrupt, for ever.
pub fn wait_for_interrupts() -> ! {
    loop {
        // SAFETY: a hint, which an agent may use.
        unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
    }
}

/// Waits for an event, for ever.
pub fn wait_for_events() -> ! {
    loop {
        // SAFETY: a hint, which an agent may use.
        unsafe { asm!("wfe", options(nomem, nostack, preserves_flags)) };
    }
}

/// Spins for ever, with `mark` in x0 for its epitaph to show.
pub fn hold(mark: u64) -> ! {
    // SAFETY: it touches nothing.
    unsafe { asm!("2: b 2b", in("x0") mark, options(noreturn, nomem, nostack, preserves_flags)) }
}

/// The virtual counter, which an agent may read.
#[must_use]
pub fn virtual_counter() -> u64 {
    let count;
    // SAFETY: it reads a counter.
    unsafe { asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack, preserves_flags)) };
    count
}

/// Stores one byte.
pub fn store_byte(address: u64, value: u8) {
    // SAFETY: none: it faults, which is the point.
    unsafe { asm!("strb {:w}, [{}]", in(reg) u32::from(value), in(reg) address, options(nostack)) };
}

/// Stores 32 bits, whatever the address.
pub fn store(address: u64, value: u32) {
    // SAFETY: none: it faults, which is the point.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Stores 64 bits, whatever the address.
pub fn store_long(address: u64, value: u64) {
    // SAFETY: none: it faults, which is the point.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

/// Loads 64 bits, whatever the address.
#[must_use]
pub fn load_long(address: u64) -> u64 {
    let value;
    // SAFETY: none: it faults, which is the point.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Adds to 32 bits by an exclusive pair.
pub fn add_exclusively(address: u64) {
    // SAFETY: none: it faults, or its store is never taken, which is the point.
    unsafe {
        asm!(
            "2: ldxr {value:w}, [{address}]",
            "add {value:w}, {value:w}, #1",
            "stxr {failed:w}, {value:w}, [{address}]",
            "cbnz {failed:w}, 2b",
            value = out(reg) _,
            failed = out(reg) _,
            address = in(reg) address,
            options(nostack),
        );
    }
}

/// Goes on at `address`.
pub fn jump(address: u64) {
    // SAFETY: none: it faults, which is the point.
    unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) };
}

/// Makes system call `NUMBER` with these registers.
pub fn call<const NUMBER: u16>(arguments: [u64; 5]) {
    let [a, b, c, d, e] = arguments;
    // SAFETY: none: the runtime refuses it, which is the point.
    unsafe {
        asm!(
            "svc #{}",
            const NUMBER,
            inout("x0") a => _,
            inout("x1") b => _,
            inout("x2") c => _,
            inout("x3") d => _,
            inout("x4") e => _,
            options(nostack),
        );
    }
}

/// Fills every register that is EL0's with `pattern`, and then makes system call `NUMBER`, which does not return.
pub fn fill_registers<const NUMBER: u16>(pattern: u64) -> ! {
    // SAFETY: nothing of the caller's is used any more: the core goes back to the runtime.
    unsafe {
        asm!(
            "msr tpidr_el0, x0",
            "msr fpsr, x0",
            ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            "dup v\\n\\().2d, x0",
            ".endr",
            ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
            "dup v\\n\\().2d, x0",
            ".endr",
            ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
            "mov x\\n, x0",
            ".endr",
            ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
            "mov x\\n, x0",
            ".endr",
            "svc #{}",
            "udf #0",
            const NUMBER,
            in("x0") pattern,
            options(noreturn),
        )
    }
}

/// What an agent finds in its registers when it starts.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// x0 to x30, and TPIDR_EL0.
    pub general: [u64; 32],
    /// The vector registers.
    pub vectors: [u128; 32],
    /// FPSR, FPCR, TPIDRRO_EL0, NZCV.
    pub others: [u64; 4],
}

const _: () = assert!(size_of::<Found>() == 800);

/// Makes `fn(&Found) -> !` an agent's entry: it is called with what the registers held before anything else ran.
#[macro_export]
macro_rules! entry_that_looks {
    ($main:path) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "C" fn neap_agent_entry() -> ! {
            core::arch::naked_asm!(
                "sub sp, sp, #800",
                "stp x0, x1, [sp]",
                "mrs x0, nzcv",
                "str x0, [sp, #792]",
                "mrs x0, tpidr_el0",
                "stp x30, x0, [sp, #240]",
                "mrs x0, fpsr",
                "mrs x1, fpcr",
                "str x0, [sp, #768]",
                "str x1, [sp, #776]",
                "mrs x0, tpidrro_el0",
                "str x0, [sp, #784]",
                "stp x2, x3, [sp, #16]",
                "stp x4, x5, [sp, #32]",
                "stp x6, x7, [sp, #48]",
                "stp x8, x9, [sp, #64]",
                "stp x10, x11, [sp, #80]",
                "stp x12, x13, [sp, #96]",
                "stp x14, x15, [sp, #112]",
                "stp x16, x17, [sp, #128]",
                "stp x18, x19, [sp, #144]",
                "stp x20, x21, [sp, #160]",
                "stp x22, x23, [sp, #176]",
                "stp x24, x25, [sp, #192]",
                "stp x26, x27, [sp, #208]",
                "stp x28, x29, [sp, #224]",
                "stp q0, q1, [sp, #256]",
                "stp q2, q3, [sp, #288]",
                "stp q4, q5, [sp, #320]",
                "stp q6, q7, [sp, #352]",
                "stp q8, q9, [sp, #384]",
                "stp q10, q11, [sp, #416]",
                "stp q12, q13, [sp, #448]",
                "stp q14, q15, [sp, #480]",
                "stp q16, q17, [sp, #512]",
                "stp q18, q19, [sp, #544]",
                "stp q20, q21, [sp, #576]",
                "stp q22, q23, [sp, #608]",
                "stp q24, q25, [sp, #640]",
                "stp q26, q27, [sp, #672]",
                "stp q28, q29, [sp, #704]",
                "stp q30, q31, [sp, #736]",
                "mov x0, sp",
                "b {main}",
                main = sym $main,
            )
        }
    };
}
