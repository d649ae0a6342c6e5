//! A claim over the window, from which checked regions are cut.
//!
//! Where the window is and how big comes from outside (a device tree, a UEFI memory map, `fstat`), and so do the
//! offsets within it (the hello page). A [`Window`] is made once, by somebody who vouches for the memory; every
//! offset after that is an allegation, and [`Window::region`] and [`Region::slice`] check it.
//!
//! The other side writes while we read. So the window is given out as atomics only ([`Shared`]), never as `&[u8]`.

use core::marker::PhantomData;
use core::mem;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use thiserror::Error;

/// Why a part of the window can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// The window itself wraps around the end of the address space, or is null.
    #[error("no memory of {bytes} bytes can be at {base:#x}")]
    Window {
        /// The alleged base address.
        base: usize,
        /// The alleged length.
        bytes: usize,
    },
    /// The part is not inside.
    #[error("bytes {offset:#x} + {bytes:#x} are not inside the {available_bytes:#x} that there are")]
    Bounds {
        /// Where the part would start.
        offset: u64,
        /// How long it would be.
        bytes: u64,
        /// How long the whole is.
        available_bytes: usize,
    },
    /// The part's address does not suit the type.
    #[error("address {address:#x} is not a multiple of {align}")]
    Align {
        /// The part's address.
        address: usize,
        /// What it would have to be a multiple of.
        align: usize,
    },
    /// The part's length is not a whole number of items.
    #[error("{bytes:#x} bytes are not a whole number of items of {item_bytes} bytes")]
    Size {
        /// The part's length.
        bytes: usize,
        /// The length of one item.
        item_bytes: usize,
    },
}

/// Types that memory may be viewed as while somebody else writes it.
///
/// # Safety
///
/// Every bit pattern is a value, there is no padding, nothing is dropped, the size is not zero, and all access
/// through `&Self` is atomic.
pub unsafe trait Shared: Sync {}

// SAFETY: an atomic integer of the size it is named for; any bits are a value.
unsafe impl Shared for AtomicU8 {}
// SAFETY: as for `AtomicU8`.
unsafe impl Shared for AtomicU16 {}
// SAFETY: as for `AtomicU8`.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as for `AtomicU8`.
unsafe impl Shared for AtomicU64 {}
// SAFETY: a line is eight atomic words, and an array has no padding and no length but its items'.
unsafe impl Shared for [AtomicU64; 8] {}

/// The window: `bytes` of memory at `base` for the life of `'a`, shared with the other side of the link.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    whole: Region<'a>,
}

impl Window<'_> {
    /// Claims the window.
    ///
    /// # Safety
    ///
    /// `base` to `base + bytes` is mapped, readable and writable memory for the life of `'a`, and no reference to
    /// it exists or will (other claims and other processes reach it through atomics or volatile accesses only).
    pub unsafe fn new(base: *mut u8, bytes: usize) -> Result<Self, ClaimError> {
        let wraps = base.addr().checked_add(bytes).is_none() || bytes > isize::MAX as usize;
        match NonNull::new(base) {
            Some(base) if !wraps => Ok(Self { whole: Region { base, bytes, shared: PhantomData } }),
            _ => Err(ClaimError::Window { base: base.addr(), bytes }),
        }
    }
}

impl<'a> Window<'a> {
    /// The part of `bytes` bytes at `offset` from the window's start.
    pub fn region(&self, offset: u64, bytes: u64) -> Result<Region<'a>, ClaimError> {
        self.whole.region(offset, bytes)
    }

    /// All of it.
    pub fn whole(&self) -> Region<'a> {
        self.whole
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.whole.bytes
    }
}

/// A part of the window, known to be inside it.
///
/// # Invariants
///
/// `base` to `base + bytes` is inside the window that it was cut from, and so valid for `'a`.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    base: NonNull<u8>,
    bytes: usize,
    shared: PhantomData<&'a [AtomicU8]>,
}

// SAFETY: a region gives out `&[T]` of `T: Sync` only; sending or sharing it is sending or sharing those.
unsafe impl Send for Region<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region<'_> {}

impl<'a> Region<'a> {
    /// The part of `bytes` bytes at `offset` from this region's start.
    pub fn region(&self, offset: u64, bytes: u64) -> Result<Region<'a>, ClaimError> {
        let outside = ClaimError::Bounds { offset, bytes, available_bytes: self.bytes };
        let start = usize::try_from(offset).map_err(|_| outside)?;
        let length = usize::try_from(bytes).map_err(|_| outside)?;
        match start.checked_add(length) {
            Some(end) if end <= self.bytes => {
                // SAFETY: `start <= end <= self.bytes`, so the address is inside the window, or just past its end
                // for an empty region there.
                let base = unsafe { self.base.add(start) };
                Ok(Region { base, bytes: length, shared: PhantomData })
            }
            _ => Err(outside),
        }
    }

    /// Address of the first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole region as items of `T`, if it is aligned for them and holds a whole number of them.
    pub fn slice<T: Shared>(&self) -> Result<&'a [T], ClaimError> {
        // SAFETY: `T: Shared` promises what `slice_of` asks for.
        unsafe { self.slice_of() }
    }

    /// As [`slice`](Self::slice), for a type of another crate that can't be [`Shared`], such as a queue's line.
    ///
    /// # Safety
    ///
    /// `T` keeps the promises of [`Shared`].
    pub unsafe fn slice_of<T: Sync>(&self) -> Result<&'a [T], ClaimError> {
        let (align, item_bytes) = (mem::align_of::<T>(), mem::size_of::<T>());
        if !self.base.addr().get().is_multiple_of(align) {
            return Err(ClaimError::Align { address: self.base.addr().get(), align });
        }
        if item_bytes == 0 || !self.bytes.is_multiple_of(item_bytes) {
            return Err(ClaimError::Size { bytes: self.bytes, item_bytes });
        }
        // SAFETY: by the invariant the memory is valid for `'a`; alignment and length were checked; by the caller's
        // promise any bits are a `T`, and all access through the references is atomic.
        Ok(unsafe { slice::from_raw_parts(self.base.cast().as_ptr(), self.bytes / item_bytes) })
    }

    /// The region as one `T`, if it is aligned for it and exactly as long.
    pub fn item<T: Shared>(&self) -> Result<&'a T, ClaimError> {
        match self.slice()? {
            [item] => Ok(item),
            _ => Err(ClaimError::Size { bytes: self.bytes, item_bytes: mem::size_of::<T>() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    /// Two pages of memory, as the window's owner sees them.
    #[repr(align(4096))]
    struct Memory([AtomicU64; 1024]);

    const BYTES: usize = 8192;

    fn memory() -> Box<Memory> {
        Box::new(Memory([const { AtomicU64::new(0) }; 1024]))
    }

    fn claim(memory: &Memory) -> Window<'_> {
        // SAFETY: the memory is borrowed for the claim's life, and is atomics.
        unsafe { Window::new((&raw const memory.0).cast_mut().cast(), BYTES) }.expect("a good claim")
    }

    #[test]
    fn a_line_is_where_it_should_be() {
        let memory = memory();
        let window = claim(&memory);
        let lines = window.region(4096, 128).unwrap().slice::<[AtomicU64; 8]>().unwrap();
        assert_eq!(lines.len(), 2);
        lines[1][3].store(7, Relaxed);
        assert_eq!(memory.0[512 + 8 + 3].load(Relaxed), 7);
    }

    #[test]
    fn every_byte_of_bounds_counts() {
        let memory = memory();
        let window = claim(&memory);
        for (offset, bytes) in
            [(0, 8193), (1, 8192), (8192, 1), (8193, 0), (u64::MAX, 2), (8, u64::MAX), (u64::MAX, u64::MAX)]
        {
            let error = ClaimError::Bounds { offset, bytes, available_bytes: BYTES };
            assert_eq!(window.region(offset, bytes).unwrap_err(), error);
        }
        for (offset, bytes) in [(0, 8192), (8192, 0), (8191, 1)] {
            assert_eq!(window.region(offset, bytes).unwrap().bytes() as u64, bytes);
        }
        let inner = window.region(4096, 64).unwrap();
        assert!(inner.region(0, 65).is_err(), "a part's part is bounded by the part");
        assert!(inner.region(64, 0).is_ok());
    }

    #[test]
    fn alignment_and_size_are_checked() {
        let memory = memory();
        let window = claim(&memory);
        assert!(matches!(
            window.region(4, 8).unwrap().slice::<AtomicU64>(),
            Err(ClaimError::Align { align: 8, .. })
        ));
        let odd = window.region(0, 65).unwrap();
        assert_eq!(
            odd.slice::<[AtomicU64; 8]>().unwrap_err(),
            ClaimError::Size { bytes: 65, item_bytes: 64 }
        );
        assert!(window.region(0, 16).unwrap().item::<AtomicU64>().is_err());
        assert!(window.region(0, 8).unwrap().item::<AtomicU64>().is_ok());
        #[repr(align(64))]
        struct Line(#[expect(dead_code, reason = "only its layout matters")] [AtomicU64; 8]);
        // SAFETY: a line is eight atomics.
        unsafe {
            assert_eq!(window.region(64, 64).unwrap().slice_of::<Line>().unwrap().len(), 1);
            assert!(matches!(
                window.region(8, 64).unwrap().slice_of::<Line>(),
                Err(ClaimError::Align { .. })
            ));
            assert!(matches!(window.region(0, 0).unwrap().slice_of::<()>(), Err(ClaimError::Size { .. })));
        }
    }

    #[test]
    fn no_window_at_null_or_around_the_end() {
        for (base, bytes) in [(0, 4096), (usize::MAX - 4095, 8192), (4096, usize::MAX - 8192)] {
            // SAFETY: the claim is refused, so nothing is reached through it.
            let claim = unsafe { Window::new(core::ptr::without_provenance_mut(base), bytes) };
            assert_eq!(claim.unwrap_err(), ClaimError::Window { base, bytes });
        }
    }
}
