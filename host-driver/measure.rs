// SPDX-License-Identifier: GPL-2.0
//! Measures the link, on the calling CPU (Tables 2 and 3 of the paper): what a user with a card runs first. Whoever decides
//! meanwhile is not disturbed: what is written is nobody's, and what is rung is looked at as ever.

use core::arch::asm;
use core::sync::atomic::Ordering;

use kernel::{prelude::*, sync::Arc};
use neap_abi::hello::{RegionKind, HELLO_BYTES, REGION_ALIGN};
use neap_mechanism::Platform;
use neap_queue::Line;

use crate::function::{Function, NO_CPU};
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
const CLOCK: u32 = 8;

/// How long a measured interrupt may take, in ns.
const INTERRUPT_NS: u64 = 100_000_000;

/// Takes `count` samples, in ns.
pub(crate) fn measure(function: &Arc<Function>, what: u32, count: u32) -> Result<KVVec<u64>> {
    let _measuring = function.measuring.try_lock().ok_or(EBUSY)?;
    let ground = match what {
        READ_UNCACHED..=WRITE_COMBINING | CLOCK => Some(Ground::new(function, what)?),
        MSIX_SEND..=MSIX_END_TO_END => None,
        _ => return Err(EINVAL),
    };
    let mut samples = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
    for _ in 0..count {
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        let sample = match &ground {
            Some(ground) => ground.sample(what),
            None => interrupt(function, what)?,
        };
        samples.push(sample, GFP_KERNEL)?;
    }
    Ok(samples)
}

/// The memory that is measured, mapped as it is on the way that it stands for: a page has one type at a time.
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
        let region = |kind| session.hello.region(kind, 0).ok_or(EOPNOTSUPP);
        let window = function.place.window.0;
        let (at, bytes, memory) = match what {
            // Of the slots the last line, which is read only.
            READ_WRITE_THROUGH | READ_CACHED => {
                let slots = region(RegionKind::Slots)?;
                (window + slots.offset, bytes_of(&slots)?, Type::WriteThrough)
            }
            // Behind the host's control line, whose page nothing else lies in.
            WRITE_COMBINING => {
                let control = region(RegionKind::HostControl)?;
                if control.bytes > REGION_ALIGN - neap_abi::LINE_BYTES as u64 {
                    return Err(EOPNOTSUPP);
                }
                (window + control.offset, REGION_ALIGN as usize, Type::WriteCombining)
            }
            // The masks of an interrupt that nobody uses beside MSI-X, at the page's beginning.
            WRITE_UNCACHED => (function.place.registers, size_of::<u64>(), Type::Uncached),
            _ => (window, HELLO_BYTES, Type::Uncached),
        };
        let hardware = Hardware { doorbell: core::ptr::null_mut(), flushes: true };
        Ok(Self { hardware, map: Map::new(at, bytes, memory)? })
    }

    /// The last line.
    fn line(&self) -> Option<&Line> {
        // SAFETY: The slice is used while the mapping is borrowed.
        unsafe { self.map.lines() }.last()
    }

    fn sample(&self, what: u32) -> u64 {
        let (word, line) = (self.map.address().cast::<u64>(), self.line());
        let _off = kernel::interrupt::local_interrupt_disable();
        match (what, line) {
            (READ_WRITE_THROUGH, Some(line)) => self.hardware.flush(line),
            (READ_CACHED, Some(line)) => {
                let _ = core::hint::black_box(line.read_any());
            }
            _ => {}
        }
        fence();
        let start = now_ns();
        match (what, line) {
            // SAFETY: The word is mapped.
            (READ_UNCACHED, _) => unsafe {
                core::ptr::read_volatile(word);
            },
            (READ_WRITE_THROUGH | READ_CACHED, Some(line)) => {
                let _ = core::hint::black_box(line.read_any());
            }
            // SAFETY: The word is mapped, for writing, and 0 is what stands there.
            (WRITE_UNCACHED, _) => unsafe { core::ptr::write_volatile(word, 0) },
            (WRITE_COMBINING, Some(line)) => {
                line.clear();
                self.hardware.drain();
            }
            _ => {}
        }
        fence();
        let took = now_ns().wrapping_sub(start);
        if let (READ_WRITE_THROUGH | READ_CACHED, Some(line)) = (what, line) {
            // If it is some CPU's slot, that one is not to find there what was.
            self.hardware.flush(line);
        }
        took
    }
}

fn fence() {
    // SAFETY: A fence has no precondition.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Rings the vector of the CPU that we run on, through the link and back.
fn interrupt(function: &Arc<Function>, what: u32) -> Result<u64> {
    let host = host().ok_or(ENODEV)?;
    let heard = &function.heard;
    let _stay = Pinned::new();
    let cpu = kernel::cpu::CpuId::current().as_u32();
    if cpu >= function.vectors {
        return Err(EOPNOTSUPP);
    }
    heard.left_ns.store(0, Ordering::Relaxed);
    heard.cpu.store(cpu, Ordering::Release);
    let (start, sent) = {
        // Held: the register stays mapped.
        let watch = function.watch.lock();
        if watch.left || host.session(function.number).is_none() {
            heard.cpu.store(NO_CPU, Ordering::Relaxed);
            return Err(ENODEV);
        }
        // No flood of the agent's.
        host.mechanism.forget_rings(function.number);
        let hardware = Hardware { doorbell: function.place.doorbell, flushes: false };
        let _off = kernel::interrupt::local_interrupt_disable();
        fence();
        let start = now_ns();
        hardware.ring(function.place.peer, cpu as u16);
        if what == MSIX_SEND {
            fence();
        }
        (start, now_ns())
    };
    loop {
        let left = heard.left_ns.load(Ordering::Acquire);
        let over = now_ns().wrapping_sub(start) > INTERRUPT_NS;
        if left != 0 || over {
            heard.cpu.store(NO_CPU, Ordering::Relaxed);
            let entered = heard.entered_ns.load(Ordering::Relaxed);
            return match what {
                _ if left == 0 => Err(ETIMEDOUT),
                MSIX_SEND => Ok(sent.wrapping_sub(start)),
                MSIX_RECEIVE => Ok(left.wrapping_sub(entered)),
                _ => Ok(entered.wrapping_sub(start)),
            };
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
