//! The runtime's half: one request at a time, by polling.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::WriteOnly;

use super::{
    AVAILABLE_AT, BUFFER_AT, HEAD_AT, Left, QUEUE_BYTES, READY_AT, REQUEST_BYTES_MAX, STATUS_AT, USED_AT,
};
use crate::soc::window::{Region, Window};

/// What is asked of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To read from this sector on, as many bytes.
    Read(u64, u32),
    /// To write from this sector on, as many bytes.
    Write(u64, u32),
    /// To make durable what was written.
    Flush,
}

/// Descriptor flags (§2.7.5).
const NEXT: u64 = 1;
const WRITTEN: u64 = 2;
/// No interrupt, in the flags of what is available.
const NO_INTERRUPT: u64 = 1;
/// Kinds of request (§5.2.6).
const IN: u64 = 0;
const OUT: u64 = 1;
const FLUSH: u64 = 4;
/// The head's length, in bytes.
const HEAD_BYTES: u64 = 16;
/// A status that no device writes.
const NO_STATUS: u64 = 0xff;

/// A disk that the loader has left.
#[derive(Debug)]
pub struct Disk {
    queue: &'static [AtomicU64],
    buffer: &'static [AtomicU8],
    /// Where the queue's memory is, as the function sees it.
    base: u64,
    notify: UniqueMmioPointer<'static, WriteOnly<u16>>,
    /// Requests begun, modulo 2^16.
    begun: u16,
}

impl Disk {
    /// What the loader has left; none if it could not start it.
    ///
    /// # Safety
    /// It is what the loader has left, mapped: the register as such, and the memory. Once.
    pub unsafe fn new(left: &Left) -> Option<Self> {
        let base = core::ptr::with_exposed_provenance_mut::<u8>(left.memory as usize);
        // SAFETY: the caller's promise; the other side is the function.
        let memory: Region<'static> = unsafe { Window::new(base, QUEUE_BYTES) }.ok()?.whole();
        let queue = memory.region(0, BUFFER_AT as u64).ok()?.slice::<AtomicU64>().ok()?;
        let buffer =
            memory.region(BUFFER_AT as u64, REQUEST_BYTES_MAX as u64).ok()?.slice::<AtomicU8>().ok()?;
        if queue.get(READY_AT / 8)?.load(Ordering::Relaxed) != 1 {
            return None;
        }
        let notify = NonNull::new(core::ptr::with_exposed_provenance_mut(left.notify as usize))?;
        // SAFETY: as above.
        let notify = unsafe { UniqueMmioPointer::new(notify) };
        Some(Self { queue, buffer, base: left.memory, notify, begun: 0 })
    }

    /// The bytes of a request: before a write begins they are what is written, after a read has ended what was read.
    #[must_use]
    pub fn buffer(&self) -> &'static [AtomicU8] {
        self.buffer
    }

    /// Begins a request. The one before has ended.
    pub fn begin(&mut self, request: Request) {
        let (kind, sector, bytes, flags) = match request {
            Request::Read(sector, bytes) => (IN, sector, bytes, NEXT | WRITTEN),
            Request::Write(sector, bytes) => (OUT, sector, bytes, NEXT),
            Request::Flush => (FLUSH, 0, 0, 0),
        };
        // The head is followed by the bytes, if there are any, and by the status.
        let after_head = if bytes == 0 { 2 } else { 1 };
        self.describe(0, HEAD_AT, HEAD_BYTES, NEXT | after_head << 16);
        self.describe(1, BUFFER_AT, bytes.min(REQUEST_BYTES_MAX as u32).into(), flags | 2 << 16);
        self.describe(2, STATUS_AT, 1, WRITTEN);
        self.put(HEAD_AT, &[kind, sector, NO_STATUS]);
        self.begun = self.begun.wrapping_add(1);
        // What is available is always the chain that begins at descriptor 0, so nothing but their number changes.
        fence(Ordering::Release);
        self.put(AVAILABLE_AT, &[NO_INTERRUPT | u64::from(self.begun) << 16]);
        publish();
        self.notify.write(0);
    }

    /// Whether the request has been done; none before it has ended.
    #[must_use]
    pub fn end(&self) -> Option<bool> {
        let used = (self.get(USED_AT) >> 16) as u16;
        fence(Ordering::Acquire);
        (used == self.begun).then(|| self.get(STATUS_AT) & NO_STATUS == 0)
    }

    fn describe(&self, number: usize, at: usize, bytes: u64, flags_and_next: u64) {
        self.put(16 * number, &[self.base + at as u64, bytes | flags_and_next << 32]);
    }

    fn put(&self, at: usize, words: &[u64]) {
        for (place, word) in self.queue.iter().skip(at / 8).zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
    }

    fn get(&self, at: usize) -> u64 {
        self.queue.get(at / 8).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// Orders what is in memory before the register.
fn publish() {
    #[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
    crate::cpu::barrier::publish_before_doorbell();
}
