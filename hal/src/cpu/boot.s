// x19 device tree, x20 core, x21 translation table, x22 exception level of entry.
.section .text.boot, "ax"
.global _start
_start:
    mov     x19, x0
    mov     x20, #0
    adrp    x21, {early_table}
    add     x21, x21, :lo12:{early_table}
    b       1f

// PSCI CPU_ON: x0 is the context, a page-aligned translation table with the core's number in its low bits.
.global _secondary
_secondary:
    mov     x19, #0
    and     x20, x0, #{core_mask}
    bic     x21, x0, #{core_mask}

1:  mrs     x22, CurrentEL
    lsr     x22, x22, #2
    cmp     x22, #1
    b.eq    3f
    cmp     x22, #2
    b.eq    2f
park_el3:
    wfi
    b       park_el3

// EL2: leave nothing of ours to trap. EL1 is AArch64; timers, counters, PMU, FP and the GIC are EL1's.
2:  mov     x9, #(1 << 31)          // HCR_EL2.RW
    msr     hcr_el2, x9
    mov     x9, #0x33ff             // CPTR_EL2: RES1 bits, no trap
    msr     cptr_el2, x9
    msr     hstr_el2, xzr
    mov     x9, #3                  // CNTHCTL_EL2.EL1PCTEN | EL1PCEN
    msr     cnthctl_el2, x9
    msr     cntvoff_el2, xzr
    mrs     x9, midr_el1
    msr     vpidr_el2, x9
    mrs     x9, mpidr_el1
    msr     vmpidr_el2, x9
    mrs     x9, pmcr_el0            // MDCR_EL2.HPMN = PMCR_EL0.N: all counters are EL1's
    ubfx    x9, x9, #11, #5
    msr     mdcr_el2, x9
    mrs     x9, id_aa64pfr0_el1     // GICv3: let EL1 use its system registers
    ubfx    x9, x9, #24, #4
    cbz     x9, 21f
    mrs     x9, icc_sre_el2
    mov     x10, #9                 // SRE | Enable
    orr     x9, x9, x10
    msr     icc_sre_el2, x9
    isb
    msr     ich_hcr_el2, xzr
21: ldr     x9, =0x30d00800         // SCTLR_EL1: its RES1 bits, MMU and caches off
    msr     sctlr_el1, x9
    mov     x9, #0x3c4              // SPSR_EL2: EL1t, all masked
    msr     spsr_el2, x9
    adr     x9, 3f
    msr     elr_el2, x9
    eret

3:  msr     daifset, #0xf
    msr     tpidr_el1, x20
    mov     x9, #(3 << 20)          // CPACR_EL1.FPEN: the compiler uses vector registers
    msr     cpacr_el1, x9
    adrp    x9, neap_vectors
    add     x9, x9, :lo12:neap_vectors
    msr     vbar_el1, x9

    adrp    x9, __stacks
    add     x9, x9, :lo12:__stacks
    add     x9, x9, x20, lsl #{stacks_shift}
    mov     x10, #{exception_stack_top}
    add     x10, x9, x10
    msr     spsel, #1
    mov     sp, x10
    msr     spsel, #0
    mov     x10, #1
    add     x9, x9, x10, lsl #{stacks_shift}
    mov     sp, x9

    // The first core makes its map. What the caches may hold of that page is dropped, before so that it does not come to
    // lie over it, and after because the walks look there.
    cbnz    x20, 33f
    bl      34f
    ldr     x9, ={early_registers}
    mov     x10, #0
31: orr     x11, x9, x10, lsl #30
    str     x11, [x21, x10, lsl #3]
    add     x10, x10, #1
    cmp     x10, #512
    b.lo    31b
    ldr     x9, ={early_memory}
    str     x9, [x21, #{early_memory_at}]
    bl      34f
    b       33f
34: dmb     sy
    mov     x9, x21
    add     x10, x21, #4096
32: dc      ivac, x9
    add     x9, x9, #16             // no line is shorter
    cmp     x9, x10
    b.lo    32b
    dsb     sy
    ret
33: ldr     x9, ={mair}
    msr     mair_el1, x9
    ldr     x9, ={tcr}
    msr     tcr_el1, x9
    msr     ttbr0_el1, x21
    dsb     ish
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, ={sctlr}
    ldr     x10, ={sctlr_wxn}       // the early map has the whole image writable; the final one does not
    orr     x10, x9, x10
    cmp     x20, #0
    csel    x9, x9, x10, eq
    msr     sctlr_el1, x9
    isb

    mov     x29, xzr
    mov     x30, xzr
    cbnz    x20, 5f

    adrp    x9, __bss_start
    add     x9, x9, :lo12:__bss_start
    adrp    x10, __bss_end
    add     x10, x10, :lo12:__bss_end
4:  cmp     x9, x10
    b.hs    6f
    stp     xzr, xzr, [x9], #16
    b       4b

6:  mov     x0, x19
    mov     x1, x22
    bl      neap_primary
    brk     #0
5:  mov     x0, x20
    bl      neap_secondary
    brk     #0
.ltorg
