// x0 kept, x1 TTBR0 of the space, x2 entry, x3 the agent's stack, x4 SPSR, x5 the agent's x0. Called at EL1 on SP_EL0.
.section .text.el0, "ax"
.global neap_enter_agent
neap_enter_agent:
    sub     sp, sp, #160
    stp     x19, x20, [sp]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     d8, d9, [sp, #96]
    stp     d10, d11, [sp, #112]
    stp     d12, d13, [sp, #128]
    stp     d14, d15, [sp, #144]
    mov     x9, sp
    str     x9, [x0]
    msr     spsel, #1
    mov     x9, sp
    str     x9, [x0, #8]
    msr     sp_el0, x3
    msr     elr_el1, x2
    msr     spsr_el1, x4
    msr     ttbr0_el1, x1
    isb
    // Nothing of the runtime's is left in a register that the agent can read.
    msr     tpidr_el0, xzr
    msr     tpidrro_el0, xzr
    msr     fpcr, xzr
    msr     fpsr, xzr
    mov     x0, x5
    .irp    n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    mov     x\n, xzr
    .endr
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    movi    v\n\().2d, #0
    .endr
    msr     nzcv, xzr
    eret
    // No speculation beyond.
    dsb     nsh
    isb

// x0 kept, x1 TTBR0 of the runtime, x2 what to return. Called at EL1 on SP_EL1, somewhere in the exception stack.
.global neap_leave_agent
neap_leave_agent:
    msr     ttbr0_el1, x1
    isb
    ldr     x9, [x0, #8]
    mov     sp, x9
    ldr     x9, [x0]
    msr     sp_el0, x9
    msr     spsel, #0
    mov     x0, x2
    msr     fpcr, xzr
    ldp     x19, x20, [sp]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     d8, d9, [sp, #96]
    ldp     d10, d11, [sp, #112]
    ldp     d12, d13, [sp, #128]
    ldp     d14, d15, [sp, #144]
    add     sp, sp, #160
    ret
