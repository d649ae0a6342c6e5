//! defmt into the window: each core writes frames to the log ring of its own and waits for nobody. What no host reads in
//! time is overwritten, and the reader learns how much (see [`neap_abi::logring`]).
//!
//! Never called between message and doorbell.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use defmt::Encoder;
use neap_abi::logring::{HEADER_BYTES, capacity};
use neap_hal::cpu::{CORES_MAX, power};
use neap_hal::soc::window::Region;

use crate::cores;

struct Port {
    encoder: Encoder,
    /// How deep this core is in frames: an exception may log while a frame is open. Only the outermost is written.
    depth: u32,
    ring: Option<(&'static AtomicU32, &'static [AtomicU8])>,
    written: u32,
}

struct Ports([UnsafeCell<Port>; CORES_MAX]);

// SAFETY: a core touches its own port only (`Ports::own`), and takes no interrupt; an exception that logs in the middle of a
// frame finds the depth not zero and leaves the port alone. `attach` runs before the other cores do.
unsafe impl Sync for Ports {}

static PORTS: Ports = Ports(
    [const { UnsafeCell::new(Port { encoder: Encoder::new(), depth: 0, ring: None, written: 0 }) };
        CORES_MAX],
);

impl Ports {
    fn own(&self) -> Option<*mut Port> {
        self.0.get(power::core()).map(UnsafeCell::get)
    }
}

/// Gives core `core` the log ring in `region`. Before that, its frames are dropped. A region that can't be one changes
/// nothing.
///
/// # Safety
/// `core` does not run yet, or is the caller and not inside a frame.
pub unsafe fn attach(core: usize, region: Region<'static>) {
    let bytes = capacity(region.bytes());
    let header = region.region(0, 4).and_then(|header| header.item::<AtomicU32>());
    let ring = region.region(HEADER_BYTES as u64, bytes as u64).and_then(|ring| ring.slice::<AtomicU8>());
    if let (Some(port), Ok(header), Ok(ring @ [_, ..])) = (PORTS.0.get(core), header, ring) {
        header.store(0, Ordering::Release);
        // SAFETY: the caller's promise: nobody else is at this port.
        let port = unsafe { &mut *port.get() };
        port.ring = Some((header, ring));
        port.written = 0;
    }
}

/// A core that starts again forgets the frame that its end cut off.
///
/// # Safety
/// `core` is off.
pub unsafe fn reset(core: usize) {
    if let Some(port) = PORTS.0.get(core) {
        // SAFETY: the caller's promise.
        let port = unsafe { &mut *port.get() };
        port.depth = 0;
        port.encoder = Encoder::new();
    }
}

fn put(ring: Option<(&AtomicU32, &[AtomicU8])>, written: &mut u32, bytes: &[u8]) {
    let Some((_, ring)) = ring else { return };
    let mask = ring.len() - 1;
    for byte in bytes {
        if let Some(place) = ring.get(*written as usize & mask) {
            place.store(*byte, Ordering::Relaxed);
        }
        *written = written.wrapping_add(1);
    }
}

#[defmt::global_logger]
struct WindowLogger;

// SAFETY: a frame is one core's from `acquire` to `release`, by `Ports`; no two cores share a ring, so frames don't mix.
unsafe impl defmt::Logger for WindowLogger {
    fn acquire() {
        if let Some(port) = PORTS.own() {
            // SAFETY: by `Ports`.
            let Port { encoder, depth, ring, written } = unsafe { &mut *port };
            *depth += 1;
            if *depth == 1 {
                encoder.start_frame(|bytes| put(*ring, written, bytes));
            }
        }
    }

    unsafe fn flush() {}

    unsafe fn release() {
        if let Some(port) = PORTS.own() {
            // SAFETY: by `Ports`.
            let Port { encoder, depth, ring, written } = unsafe { &mut *port };
            if *depth == 1 {
                encoder.end_frame(|bytes| put(*ring, written, bytes));
                if let Some((header, _)) = ring {
                    header.store(*written, Ordering::Release);
                }
            }
            *depth = depth.saturating_sub(1);
        }
    }

    unsafe fn write(bytes: &[u8]) {
        if let Some(port) = PORTS.own() {
            // SAFETY: by `Ports`.
            let Port { encoder, depth, ring, written } = unsafe { &mut *port };
            if *depth == 1 {
                encoder.write(bytes, |bytes| put(*ring, written, bytes));
            }
        }
    }
}

defmt::timestamp!("{=u64:us}", cores::shared().map_or(0, |shared| shared.timer.now_ns() / 1000));
