// SPDX-License-Identifier: GPL-2.0
//! Measures the link, on the calling CPU (Tables 2 and 3 of the paper): what a user with a card runs first.

use core::arch::asm;
use core::sync::atomic::Ordering;

use kernel::{prelude::*, sync::Arc};
use neap_abi::hello::RegionKind;
use neap_mechanism::Platform;
use neap_queue::Line;

use crate::function::Function;
use crate::host::{host, now_ns};
use crate::window::{bytes_of, Hardware, Map, Type};

/// As `enum neap_measured` of the uAPI.
const READ_UNCACHED: u32 = 0;
const READ_WRITE_THROUGH: u32 = 1;
const READ_CACHED: u32 = 2;
const WRITE_UNCACHED: u32 = 3;
const WRITE_COMBINING: u32 = 4;
const MSIX_SEND: u32 = 5;
const MSIX_RECEIVE: u32 = 6;
const MSIX_END_TO_END: u32 = 7;

/// How long a measured interrupt may take, in ns.
const INTERRUPT_NS: u64 = 100_000_000;

/// Takes `count` samples, in ns.
pub(crate) fn measure(function: &Arc<Function>, what: u32, count: u32) -> Result<KVVec<u64>> {
    let mut samples = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
    match what {
        MSIX_SEND..=MSIX_END_TO_END => {
            for _ in 0..count {
                samples.push(interrupt(function, what)?, GFP_KERNEL)?;
            }
        }
        READ_UNCACHED..=WRITE_COMBINING => {
            let ground = Ground::new(function, what)?;
            for _ in 0..count {
                samples.push(ground.sample(what), GFP_KERNEL)?;
            }
        }
        _ => return Err(EINVAL),
    }
    Ok(samples)
}

/// The memory that is measured: a part of the window, mapped as it is on the way that it stands for.
struct Ground {
    hardware: Hardware,
    map: Map,
}

impl Ground {
    fn new(function: &Arc<Function>, what: u32) -> Result<Self> {
        let host = host().ok_or(ENODEV)?;
        let watch = function.watch.lock();
        if watch.left {
            return Err(ENODEV);
        }
        let session = host.session(function.number).ok_or(ENODEV)?;
        // A region may be mapped with one type at a time: slots are written through as they are, the image's region gathers
        // writes, and the rest is uncached.
        let (kind, memory) = match what {
            READ_WRITE_THROUGH | READ_CACHED => (RegionKind::Slots, Type::WriteThrough),
            WRITE_COMBINING => (RegionKind::Image, Type::WriteCombining),
            _ => (RegionKind::Buffer, Type::Uncached),
        };
        let region = session.hello.region(kind, 0).ok_or(EOPNOTSUPP)?;
        let map = Map::new(function.place.window.0 + region.offset, bytes_of(&region)?, memory)?;
        Ok(Self { hardware: Hardware { doorbell: core::ptr::null_mut(), flushes: true }, map })
    }

    /// The last line: of the slots that of the highest CPU, which is only read; of the buffer and the image nobody's.
    fn line(&self) -> Option<&Line> {
        // SAFETY: The slice is used while the mapping is borrowed.
        unsafe { self.map.lines() }.last()
    }

    /// Where the last line begins.
    fn last(&self) -> usize {
        self.map.bytes().saturating_sub(neap_abi::LINE_BYTES)
    }

    fn sample(&self, what: u32) -> u64 {
        let Some(line) = self.line() else { return 0 };
        let word = self.map.address().wrapping_byte_add(self.last()).cast::<u64>();
        let _off = kernel::interrupt::local_interrupt_disable();
        match what {
            READ_WRITE_THROUGH => self.hardware.flush(line),
            READ_CACHED => {
                let _ = line.read_any();
            }
            _ => {}
        }
        fence();
        let start = now_ns();
        match what {
            // SAFETY: The word is mapped.
            READ_UNCACHED => unsafe {
                core::ptr::read_volatile(word);
            },
            READ_WRITE_THROUGH | READ_CACHED => {
                let _ = core::hint::black_box(line.read_any());
            }
            // SAFETY: The word is mapped, for writing, and nobody else's.
            WRITE_UNCACHED => unsafe { core::ptr::write_volatile(word, 0) },
            _ => {
                line.clear();
                self.hardware.drain();
            }
        }
        fence();
        now_ns().wrapping_sub(start)
    }
}

fn fence() {
    // SAFETY: A fence has no precondition.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Rings a vector of our own CPU, through the link and back.
fn interrupt(function: &Arc<Function>, what: u32) -> Result<u64> {
    let host = host().ok_or(ENODEV)?;
    let heard = &function.heard;
    let _stay = Pinned::new();
    let cpu = kernel::cpu::CpuId::current().as_u32();
    if cpu >= function.vectors {
        return Err(EOPNOTSUPP);
    }
    {
        let watch = function.watch.lock();
        if watch.left || host.session(function.number).is_none() {
            return Err(ENODEV);
        }
    }
    heard.left_ns.store(0, Ordering::Relaxed);
    heard.count.store(1, Ordering::Release);
    let hardware = Hardware { doorbell: function.place.doorbell, flushes: false };
    let start = now_ns();
    hardware.ring(function.place.peer, cpu as u16);
    let sent = now_ns();
    loop {
        let left = heard.left_ns.load(Ordering::Acquire);
        if left != 0 {
            let entered = heard.entered_ns.load(Ordering::Acquire);
            return Ok(match what {
                MSIX_SEND => sent.wrapping_sub(start),
                MSIX_RECEIVE => left.wrapping_sub(entered),
                _ => entered.wrapping_sub(start),
            });
        }
        if now_ns().wrapping_sub(start) > INTERRUPT_NS {
            heard.count.store(0, Ordering::Release);
            return Err(ETIMEDOUT);
        }
        core::hint::spin_loop();
    }
}

extern "C" {
    fn neap_migrate_disable();
    fn neap_migrate_enable();
}

/// Keeps the caller on its CPU.
struct Pinned;

impl Pinned {
    fn new() -> Self {
        // SAFETY: Paired with the enabling on drop.
        unsafe { neap_migrate_disable() };
        Self
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: Paired with the disabling.
        unsafe { neap_migrate_enable() };
    }
}
