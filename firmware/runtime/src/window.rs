//! The window, laid out: the supervisor's view of it.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use heapless::Vec;
use neap_abi::epitaph::EPITAPH_BYTES;
use neap_abi::hello::{HELLO_BYTES, HelloError, Link, MAGIC};
use neap_abi::{Epitaph, Layout, LayoutError, RegionKind};
use neap_hal::cpu::CORES_MAX;
use neap_hal::soc::window::{ClaimError, Region, Window};
use neap_queue::Line;

/// The window's parts.
pub struct LaidOut {
    /// Number of this boot, as the hello page has it.
    pub boot: u32,
    /// Task numbers are below this.
    pub tasks: u32,
    /// The host's control line.
    pub host_control: &'static Line,
    /// The agent's control line.
    pub agent_control: &'static Line,
    /// The decision slots.
    pub slots: &'static [Line],
    /// The message ring.
    pub messages: &'static [Line],
    /// Each core's log ring.
    pub logs: Vec<Region<'static>, CORES_MAX>,
    /// Each core's epitaph.
    pub epitaphs: Vec<Region<'static>, CORES_MAX>,
}

/// A window that can't be laid out.
#[derive(Debug)]
pub enum WindowError {
    /// Too small, or for too many cores.
    Layout(LayoutError),
    /// A part is not where it should be.
    Claim(ClaimError),
}

impl core::fmt::Display for WindowError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Layout(LayoutError::Hello(HelloError::RegionBounds(region))) => write!(
                f,
                "the window is too small: {:?} {} ends at {} KiB: make the window's memory larger",
                region.kind,
                region.index,
                (region.offset + region.bytes).div_ceil(1024)
            ),
            Self::Layout(error) => write!(f, "the window: {error}"),
            Self::Claim(error) => write!(f, "the window: {error}"),
        }
    }
}

impl From<ClaimError> for WindowError {
    fn from(error: ClaimError) -> Self {
        Self::Claim(error)
    }
}

/// Lays the window at `range` out for `cores` and `cpus`, and says hello. Until the page is whole no host takes it for one;
/// what an earlier boot left is gone by then.
///
/// # Errors
/// [`WindowError`]; the window then says nothing.
///
/// # Safety
/// `range` is memory shared with the host, mapped, and reached by nobody here but through what this returns. Once.
#[inline(never)]
pub unsafe fn lay_out(
    range: &Range<u64>,
    cores: u16,
    cpus: u16,
    features: u64,
) -> Result<LaidOut, WindowError> {
    let bytes = range.end - range.start;
    let base = core::ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: the caller's promise.
    let window = unsafe { Window::new(base, bytes as usize) }?;
    let page = window.region(0, HELLO_BYTES as u64)?.slice::<AtomicU64>()?;
    let boot = silence(page).wrapping_add(1);

    let layout = Layout { cpus, ..Layout::usual(bytes, cores) };
    let hello = layout.hello(boot, features, Link::Pcie).map_err(WindowError::Layout)?;
    let region = |kind, index| {
        let missing = WindowError::Layout(LayoutError::Cores { cores });
        let region = hello.region(kind, index).ok_or(missing)?;
        Ok::<_, WindowError>(window.region(region.offset, region.bytes)?)
    };
    let lines = |kind| {
        // SAFETY: a line is eight atomic words, without padding; any bits are one.
        Ok::<_, WindowError>(unsafe { region(kind, 0)?.slice_of::<Line>() }?)
    };
    let one = |kind| match lines(kind)? {
        [line, ..] => Ok(line),
        [] => Err(WindowError::Layout(LayoutError::Cores { cores })),
    };
    let mut laid_out = LaidOut {
        boot,
        tasks: hello.tasks,
        host_control: one(RegionKind::HostControl)?,
        agent_control: one(RegionKind::AgentControl)?,
        slots: lines(RegionKind::Slots)?,
        messages: lines(RegionKind::Messages)?,
        logs: Vec::new(),
        epitaphs: Vec::new(),
    };
    for core in 0..cores {
        let full = |_| WindowError::Layout(LayoutError::Cores { cores });
        laid_out.logs.push(region(RegionKind::Log, core)?).map_err(full)?;
        let epitaph = region(RegionKind::Epitaph, core)?;
        for byte in epitaph.slice::<AtomicU8>()?.iter().take(4) {
            byte.store(0, Ordering::Relaxed);
        }
        laid_out.epitaphs.push(epitaph).map_err(full)?;
    }
    laid_out.host_control.clear();
    laid_out.agent_control.clear();

    let mut bytes = [0; HELLO_BYTES];
    hello.write(&mut bytes);
    speak(page, &bytes);
    Ok(laid_out)
}

/// Takes an earlier boot's hello away; its boot number, or 0.
fn silence(page: &[AtomicU64]) -> u32 {
    let mut boot = 0;
    if let [magic, version_and_boot, ..] = page
        && magic.swap(0, Ordering::AcqRel) == MAGIC
    {
        boot = (version_and_boot.load(Ordering::Relaxed) >> 32) as u32;
    }
    boot
}

/// Writes the page, its magic last.
fn speak(page: &[AtomicU64], bytes: &[u8; HELLO_BYTES]) {
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    for (place, word) in page.iter().zip(words).rev() {
        place.store(word, Ordering::Release);
    }
}

/// The epitaph of a core that ended, if it is whole.
pub fn read_epitaph(region: &Region<'static>) -> Option<Epitaph> {
    let mut bytes = [0; EPITAPH_BYTES];
    for (byte, place) in bytes.iter_mut().zip(region.slice::<AtomicU8>().ok()?) {
        *byte = place.load(Ordering::Acquire);
    }
    Epitaph::from_bytes(&bytes)
}
