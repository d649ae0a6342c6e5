//! The MSI-X generator: one store raises one of the host's vectors.
//!
//! On QEMU it is BAR 0 of an `ivshmem-doorbell` function (QEMU, `docs/specs/ivshmem-spec.rst`), alone on its 4 KiB
//! page so that the MMU can give it to one agent:
//!
//! | offset | register | access | meaning |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04 | reserved | | interrupt mask and status of revision 0; not used |
//! | 0x08 | IVPosition | read | our own peer id in the enclave's domain |
//! | 0x0c | Doorbell | write | `peer << 16 \| vector`: raises that vector of that peer |
//!
//! **Ordering.** The host must find the txn when the vector arrives. The txn is in write-back memory and the
//! Doorbell is a Device register, so a barrier stands between: DMB OSHST, which orders the stores before it against
//! those after it in the outer shareable domain, memory and Device alike (DDI 0487 B2.3.11; Linux's `dma_wmb` is the
//! same). No DSB: nothing waits for the store to arrive.
//!
//! **Form of the store.** One `STR` of 32 bits, base register only. A write-back or pair form that faults, or that
//! a hypervisor must emulate, has no valid syndrome (Arm ARM, ESR_ELx.ISV); a compiler may choose such a form for a
//! volatile store, so the instruction is written out.

use core::marker::PhantomData;
use core::mem::offset_of;
use core::ptr::NonNull;

use safe_mmio::fields::{ReadPure, WriteOnly};
use safe_mmio::{UniqueMmioPointer, split_fields};
use thiserror::Error;

#[cfg(any(test, feature = "fakes"))]
pub mod fake;

/// The generator's registers.
#[repr(C)]
pub struct Registers {
    _reserved0: [u32; 2],
    /// Our own peer id.
    pub position: ReadPure<u32>,
    /// `peer << 16 | vector`.
    pub doorbell: WriteOnly<u32>,
}

const _: () = assert!(offset_of!(Registers, position) == 0x08);
const _: () = assert!(offset_of!(Registers, doorbell) == 0x0c);
const _: () = assert!(size_of::<Registers>() == 0x10);

/// Why doorbells can't be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsixError {
    /// The vectors asked for go past the last that the register can name.
    #[error("vectors {first} + {count} go past 65535, the last that a doorbell can name")]
    Vectors {
        /// First vector asked for.
        first: u16,
        /// How many.
        count: u16,
    },
}

/// One function's register page: the right to make [`Doorbells`] of it.
pub struct DoorbellPage<'a> {
    position: UniqueMmioPointer<'a, ReadPure<u32>>,
    doorbell: NonNull<u32>,
}

impl<'a> DoorbellPage<'a> {
    /// Takes a page's registers.
    pub fn new(registers: UniqueMmioPointer<'a, Registers>) -> Self {
        // SAFETY: each field is named once.
        let (position, mut doorbell) = unsafe { split_fields!(registers, position, doorbell) };
        Self { position, doorbell: doorbell.ptr_nonnull().cast() }
    }

    /// Our own id in the enclave's domain, `None` while the server has not given one (the register is then -1).
    pub fn position(&self) -> Option<u16> {
        u16::try_from(self.position.read()).ok()
    }

    /// A handle that rings `count` vectors of `peer`, from `first` on, and nothing else: one enclave's, for `peer`
    /// its host and `first` 0; or one channel's, for `peer` the DMA engine and `first` the channel.
    pub fn doorbells(&self, peer: u16, first: u16, count: u16) -> Result<Doorbells<'a>, MsixError> {
        if u32::from(first) + u32::from(count) > 0x1_0000 {
            return Err(MsixError::Vectors { first, count });
        }
        let base = u32::from(peer) << 16 | u32::from(first);
        Ok(Doorbells { register: self.doorbell, base, count, page: PhantomData })
    }
}

/// The right to ring some vectors of one peer.
///
/// # Invariants
///
/// `register` is a generator's Doorbell, mapped for `'a`; `base + count` does not carry into the peer's half.
#[derive(Clone, Copy, Debug)]
pub struct Doorbells<'a> {
    register: NonNull<u32>,
    base: u32,
    count: u16,
    page: PhantomData<&'a Registers>,
}

// SAFETY: the only access is a store of one 32-bit register, which takes stores of any number of cores.
unsafe impl Send for Doorbells<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Doorbells<'_> {}

impl Doorbells<'_> {
    /// How many vectors this rings: 0 to `count - 1`.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Raises `vector` (counted from this handle's first), after all earlier stores of this core are visible to
    /// whoever takes the interrupt. Says whether it did: a vector that is not ours is not rung.
    #[inline(always)]
    pub fn ring(&self, vector: u16) -> bool {
        let ours = vector < self.count;
        if ours {
            // SAFETY: by the invariant the register is a mapped Doorbell, and the value names a vector of ours.
            unsafe { store_after_stores(self.register.as_ptr(), self.base + u32::from(vector)) };
        }
        ours
    }
}

/// Something that raises one doorbell: what a DMA channel is started with.
pub trait Ring {
    /// Raises it, after all earlier stores are visible to whoever is rung.
    fn ring(&mut self);
}

impl Ring for Doorbells<'_> {
    /// Rings the handle's first vector.
    #[inline(always)]
    fn ring(&mut self) {
        Doorbells::ring(self, 0);
    }
}

impl<F: FnMut()> Ring for F {
    fn ring(&mut self) {
        self();
    }
}

/// DMB OSHST, then one 32-bit store.
///
/// # Safety
///
/// `register` is mapped, aligned and takes 32-bit stores.
#[inline(always)]
#[cfg(target_arch = "aarch64")]
unsafe fn store_after_stores(register: *mut u32, value: u32) {
    // SAFETY: by the caller's promise. Not `nomem`, so that the compiler keeps earlier stores earlier.
    unsafe {
        core::arch::asm!(
            "dmb oshst",
            "str {value:w}, [{register}]",
            value = in(reg) value,
            register = in(reg) register,
            options(nostack, preserves_flags),
        );
    }
}

/// A release fence, then one 32-bit volatile store.
///
/// # Safety
///
/// `register` is mapped, aligned and takes 32-bit stores.
#[inline(always)]
#[cfg(not(target_arch = "aarch64"))]
unsafe fn store_after_stores(register: *mut u32, value: u32) {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
    // SAFETY: by the caller's promise.
    unsafe { register.write_volatile(value) };
}

#[cfg(test)]
mod tests {
    use super::fake::Page;
    use super::*;

    #[test]
    fn a_ring_is_the_peer_and_the_vector() {
        let page = Page::new(2);
        let bells = page.doorbell_page().doorbells(0x1234, 0, 16).unwrap();
        assert_eq!(page.take(), None);
        for vector in 0..16 {
            assert!(bells.ring(vector));
            assert_eq!(page.take(), Some((0x1234, vector)));
        }
    }

    #[test]
    fn a_vector_that_is_not_ours_is_not_rung() {
        let page = Page::new(2);
        let bells = page.doorbell_page().doorbells(7, 8, 4).unwrap();
        for vector in [4, 5, 255, 65_535] {
            assert!(!bells.ring(vector));
            assert_eq!(page.take(), None);
        }
        assert!(bells.ring(3));
        assert_eq!(page.take(), Some((7, 11)));
        let none = page.doorbell_page().doorbells(7, 0, 0).unwrap();
        assert!(!none.ring(0));
        assert_eq!(page.take(), None);
    }

    #[test]
    fn vectors_never_carry_into_the_peer() {
        let page = Page::new(0);
        let last = page.doorbell_page().doorbells(1, 65_535, 1).unwrap();
        assert!(last.ring(0));
        assert_eq!(page.take(), Some((1, 65_535)));
        let error = page.doorbell_page().doorbells(1, 65_535, 2).unwrap_err();
        assert_eq!(error, MsixError::Vectors { first: 65_535, count: 2 });
    }

    #[test]
    fn the_position_may_not_be_known_yet() {
        assert_eq!(Page::new(u32::MAX).doorbell_page().position(), None);
        assert_eq!(Page::new(0x1_0000).doorbell_page().position(), None);
        assert_eq!(Page::new(9).doorbell_page().position(), Some(9));
    }
}
