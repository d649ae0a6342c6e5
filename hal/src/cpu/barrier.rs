//! The barriers, by what they are for (DDI 0487 B2.3.11).
//!
//! Between agents and the host, acquire and release accesses do the ordering. What they can't order is a store to
//! memory against one to a register block: that is [`publish_before_doorbell`]. A DSB waits until stores have
//! *completed*, which across PCIe is a round trip, so it is for teardown and for the tables only.

use aarch64_cpu::asm::barrier::{self, ISH, OSHST, SY};

/// Orders earlier stores to the window before a later store to a doorbell: a DMB OSHST. Whoever sees the
/// interrupt sees what was stored before. It waits for nothing.
#[inline(always)]
pub fn publish_before_doorbell() {
    barrier::dmb(OSHST);
}

/// Waits until all earlier accesses have completed, device stores included: a DSB SY. For teardown.
#[inline]
pub fn complete_all() {
    barrier::dsb(SY);
}

/// Waits until earlier stores are seen by all cores, translation walks included: a DSB ISH. For tables.
#[inline]
pub fn complete_tables() {
    barrier::dsb(ISH);
}

/// Makes changes to system registers hold for the next instruction: an ISB.
#[inline(always)]
pub fn synchronise_context() {
    barrier::isb(SY);
}
