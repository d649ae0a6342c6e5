// SPDX-License-Identifier: GPL-2.0
//! The window: BAR 2 of a function, each region mapped with the memory type that the wire asks for (section 4.2).

use core::arch::asm;
use core::sync::atomic::Ordering;

use kernel::{bindings, prelude::*};
use neap_abi::hello::Region;
use neap_abi::{Message, Outcome, Txn, LINE_BYTES};
use neap_mechanism::Platform;
use neap_queue::Line;

/// A memory type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Each access goes out by itself.
    Uncached,
    /// Writes gather into lines.
    WriteCombining,
    /// Reads come from the cache; writes go through it.
    WriteThrough,
}

/// A mapping.
pub(crate) struct Map {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: A mapping of the device's memory may be used and ended from any thread.
unsafe impl Send for Map {}
// SAFETY: It is reached through atomics and volatile accesses only.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `bytes` bytes of the bus's address space from `at` on.
    pub(crate) fn new(at: u64, bytes: usize, kind: Type) -> Result<Self> {
        // SAFETY: The caller's device claims the range; any range can be mapped, and the result is checked.
        let address = unsafe {
            match kind {
                Type::Uncached => bindings::ioremap(at, bytes),
                Type::WriteCombining => bindings::ioremap_wc(at, bytes),
                Type::WriteThrough => bindings::ioremap_wt(at, bytes),
            }
        };
        if address.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self { address, bytes })
    }

    /// Its lines.
    ///
    /// # Safety
    /// The slice is not used after the mapping has ended.
    pub(crate) unsafe fn lines(&self) -> &'static [Line] {
        // SAFETY: The mapping is page-aligned, `bytes` long, and device memory that reads as any bits, which is what a line of
        // atomics may hold. By this function's requirement it outlives the slice.
        unsafe { core::slice::from_raw_parts(self.address.cast::<Line>(), self.bytes / LINE_BYTES) }
    }

    /// Copies its first bytes.
    pub(crate) fn copy(&self, to: &mut [u8]) {
        for (at, byte) in to.iter_mut().enumerate().take(self.bytes) {
            // SAFETY: `at` is inside the mapping.
            *byte = unsafe { core::ptr::read_volatile(self.address.cast::<u8>().add(at)) };
        }
    }

    /// Its address, for measurements.
    pub(crate) fn address(&self) -> *mut c_void {
        self.address
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: It came from one of `ioremap`'s kind, and is unmapped once.
        unsafe { bindings::iounmap(self.address) };
    }
}

/// A region's end and whole pages, as a size that this machine can map.
pub(crate) fn bytes_of(region: &Region) -> Result<usize> {
    usize::try_from(region.bytes).map_err(|_| EOVERFLOW)
}

/// What the hardware does for a function's wire.
pub(crate) struct Hardware {
    /// The register that rings the IPU's vectors.
    pub(crate) doorbell: *mut u32,
    /// The link is not coherent: slots are flushed.
    pub(crate) flushes: bool,
}

// SAFETY: The register is posted to from any CPU; a store to it is whole.
unsafe impl Send for Hardware {}
// SAFETY: As above.
unsafe impl Sync for Hardware {}

extern "C" {
    fn neap_trace_message(cpu: u32, kind: u32, task: u32, stamp: u32, txn: u32, outcome: u32, flags: u32);
    fn neap_trace_verdict(
        cpu: u32,
        txn: u32,
        task: u32,
        stamp: u32,
        operation: u32,
        flags: u32,
        outcome: u32,
    );
}

impl Platform for Hardware {
    fn now_ns(&self) -> u64 {
        crate::host::now_ns()
    }

    fn drain(&self) {
        // SAFETY: A fence has no precondition.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }

    fn flush(&self, line: &Line) {
        if !self.flushes {
            return;
        }
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: The line is mapped; to flush it changes nothing that it holds.
        unsafe { asm!("clflush [{}]", in(reg) core::ptr::from_ref(line), options(nostack, preserves_flags)) };
    }

    fn prefetch(&self, line: &Line) {
        // SAFETY: A prefetch faults nowhere and changes nothing.
        unsafe {
            asm!("prefetcht0 [{}]", in(reg) core::ptr::from_ref(line), options(nostack, preserves_flags, readonly))
        };
    }

    fn ring(&self, peer: u16, vector: u16) {
        let value = u32::from(peer) << 16 | u32::from(vector);
        // SAFETY: The register is mapped as long as this lives: the session that holds it ends before the mapping.
        unsafe { core::ptr::write_volatile(self.doorbell, value) };
    }

    fn sent(&self, message: &Message) {
        let m = message;
        // SAFETY: Tracing has no precondition here.
        unsafe {
            neap_trace_message(
                m.cpu.into(),
                m.kind as u32,
                m.task,
                m.stamp,
                m.txn,
                m.outcome as u32,
                m.flags.0.into(),
            )
        };
    }

    fn judged(&self, cpu: u16, txn: &Txn, outcome: Outcome) {
        let t = txn;
        // SAFETY: As above.
        unsafe {
            neap_trace_verdict(
                cpu.into(),
                t.id,
                t.task,
                t.stamp,
                t.operation.into(),
                t.flags.0.into(),
                outcome as u32,
            )
        };
    }
}
