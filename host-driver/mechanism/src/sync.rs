//! The atomics: core's, or loom's when it explores the interleavings.

pub(crate) use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};

/// Keeps a write before it and a read after it in order, where both are `SeqCst` and so in order by themselves: loom takes those
/// for weaker than they are.
#[inline(always)]
pub(crate) fn in_order() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// For figures on which nothing rests: loom has no need to try them in every order.
pub(crate) mod figures {
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64};
}
