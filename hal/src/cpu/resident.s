// The routine that confirms an image on trial: the loader copies it to a page that the firmware keeps, and the runtime calls it
// there. It depends on no address. The firmware's services are entered with translation tables that hold all memory, executable
// too; the caller's are back when it returns. While translation is off nothing is loaded or stored.
.macro switch_map sctlr, table, tcr, mair
    dsb     sy
    mrs     x13, sctlr_el1
    bic     x13, x13, #1
    msr     sctlr_el1, x13
    isb
    msr     ttbr0_el1, \table
    msr     tcr_el1, \tcr
    msr     mair_el1, \mair
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, \sctlr
    isb
.endm

.text
.balign 16
.global neap_resident
neap_resident:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x19, daif
    msr     daifset, #0xf
    mrs     x20, sctlr_el1
    mrs     x21, ttbr0_el1
    mrs     x22, tcr_el1
    mrs     x23, mair_el1
    mov     x24, sp

    adr     x25, neap_resident_data
    ldp     x9, x10, [x25]              // table, sctlr
    ldp     x11, x12, [x25, #16]        // tcr, mair
    switch_map x10, x9, x11, x12

    ldp     x9, x26, [x25, #32]         // the stack's end, the register that ends the watchdog
    mov     sp, x9
    ldp     x9, x0, [x25, #48]          // SetVariable; the variable's name,
    ldp     x1, x2, [x25, #64]          // its vendor, its attributes,
    ldp     x3, x4, [x25, #80]          // how many bytes and where
    blr     x9
    mov     x27, x0
    cbnz    x27, 1f                     // not confirmed: then the watchdog has its way
    cbz     x26, 1f
    strb    wzr, [x26]
1:
    switch_map x20, x21, x22, x23
    mov     sp, x24
    mov     x0, x27
    msr     daif, x19
    ldp     x27, x28, [sp, #80]
    ldp     x25, x26, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #96
    ret
.balign 16
.global neap_resident_data
neap_resident_data:

// x0 the device tree, x1 the image: translation and caches off, and into it.
.balign 16
.global neap_enter
neap_enter:
    msr     daifset, #0xf
    mov     x4, x1
    mov     x5, #0x1005                 // SCTLR: M, C, I
    dsb     sy
    mrs     x6, CurrentEL
    cmp     x6, #(2 << 2)
    b.eq    2f
    mrs     x6, sctlr_el1
    bic     x6, x6, x5
    msr     sctlr_el1, x6
    isb
    tlbi    vmalle1
    b       3f
2:  mrs     x6, sctlr_el2
    bic     x6, x6, x5
    msr     sctlr_el2, x6
    isb
    tlbi    alle2
3:  ic      iallu
    dsb     sy
    isb
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    br      x4
.global neap_enter_end
neap_enter_end:
