//! The atomics: core's, or loom's when it explores the interleavings.

pub(crate) use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};

/// For figures on which nothing rests: loom has no need to try them in every order.
pub(crate) mod figures {
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64};
}
