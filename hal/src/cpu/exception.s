// Sixteen entries of 128 bytes (DDI 0487 D1.3.1.4), in four groups: from EL1 on SP_EL0, from EL1 on SP_EL1,
// from EL0 in AArch64, from EL0 in AArch32. Each keeps x0 and its own number; the rest is shared.
.section .text.vectors, "ax"
.balign 2048
.global neap_vectors
neap_vectors:
.set entry, 0
.rept 16
    .balign 128
    sub     sp, sp, #{frame}
    stp     x0, x1, [sp]
    mov     x0, #entry
    b       neap_exception_entry
    .set entry, entry + 1
.endr

.balign 128
neap_exception_entry:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x1, sp_el0
    stp     x30, x1, [sp, #240]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x1, x2, [sp, #256]
    mrs     x1, esr_el1
    mrs     x2, far_el1
    stp     x1, x2, [sp, #272]
    mrs     x1, fpsr
    mrs     x2, fpcr
    stp     x0, x1, [sp, #288]
    str     x2, [sp, #304]
    stp     q0, q1, [sp, #320]
    stp     q2, q3, [sp, #352]
    stp     q4, q5, [sp, #384]
    stp     q6, q7, [sp, #416]
    stp     q8, q9, [sp, #448]
    stp     q10, q11, [sp, #480]
    stp     q12, q13, [sp, #512]
    stp     q14, q15, [sp, #544]
    stp     q16, q17, [sp, #576]
    stp     q18, q19, [sp, #608]
    stp     q20, q21, [sp, #640]
    stp     q22, q23, [sp, #672]
    stp     q24, q25, [sp, #704]
    stp     q26, q27, [sp, #736]
    stp     q28, q29, [sp, #768]
    stp     q30, q31, [sp, #800]
    mov     x0, sp
    bl      neap_exception

    ldp     q0, q1, [sp, #320]
    ldp     q2, q3, [sp, #352]
    ldp     q4, q5, [sp, #384]
    ldp     q6, q7, [sp, #416]
    ldp     q8, q9, [sp, #448]
    ldp     q10, q11, [sp, #480]
    ldp     q12, q13, [sp, #512]
    ldp     q14, q15, [sp, #544]
    ldp     q16, q17, [sp, #576]
    ldp     q18, q19, [sp, #608]
    ldp     q20, q21, [sp, #640]
    ldp     q22, q23, [sp, #672]
    ldp     q24, q25, [sp, #704]
    ldp     q26, q27, [sp, #736]
    ldp     q28, q29, [sp, #768]
    ldp     q30, q31, [sp, #800]
    ldp     x1, x2, [sp, #296]
    msr     fpsr, x1
    msr     fpcr, x2
    ldp     x1, x2, [sp, #256]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x30, x1, [sp, #240]
    msr     sp_el0, x1
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp]
    add     sp, sp, #{frame}
    eret
