//! A window, laid out: the supervisor's view of one enclave's.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use heapless::Vec;
use neap_abi::epitaph::{EPITAPHS_KEPT, RECORD_BYTES};
use neap_abi::hello::{HELLO_BYTES, HelloError, Link, MAGIC, REGION_ALIGN};
use neap_abi::line::Tag;
use neap_abi::supervisor::SUPERVISOR_LINES;
use neap_abi::{AgentControl, EpitaphRecord, Hello, Layout, LayoutError, Payload, RegionKind, Txn};
use neap_hal::cpu::CORES_MAX;
use neap_hal::soc::window::{ClaimError, Region, Window};
use neap_queue::{Line, SlotWriter};

use crate::space::Shared;

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
    /// The manager's line.
    pub manager: &'static Line,
    /// The supervisor's lines.
    pub supervisor: &'static [Line],
    /// Where the host lays images.
    pub image: Region<'static>,
    /// The log rings that lie here, by their core.
    pub logs: Vec<(usize, Region<'static>), CORES_MAX>,
    /// The epitaphs that lie here, by their core.
    pub epitaphs: Vec<(usize, Region<'static>), CORES_MAX>,
    /// What agents are bound to, but for the doorbell page, which lies elsewhere.
    pub shared: Shared,
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
                "the window is too small: it takes {} KiB and more: make the window's memory larger",
                (region.offset + region.bytes).div_ceil(1024)
            ),
            // The rest can't be with what this board gives; the page's own errors in words would be the image's largest text.
            Self::Layout(_) => {
                f.write_str("the window can't be laid out for so many cores or host CPUs: ask for fewer")
            }
            Self::Claim(error) => write!(f, "the window: {error}"),
        }
    }
}

impl From<ClaimError> for WindowError {
    fn from(error: ClaimError) -> Self {
        Self::Claim(error)
    }
}

/// What a window is to be laid out for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Cores of the IPU.
    pub cores: u16,
    /// Those whose logs and epitaphs lie in this window, a bit each.
    pub logged: u32,
    /// Decision slots.
    pub cpus: u16,
    /// Feature bits.
    pub features: u64,
    /// How fast the agents' counter runs, in ticks a second.
    pub counter_hz: u32,
    /// What booted, in the loader's words.
    pub origin: &'a str,
}

/// Lays the window at `range` out, and says hello. Until the page is whole no host takes it for one; what an earlier boot
/// left is gone by then.
///
/// # Errors
/// [`WindowError`]; the window then says nothing.
///
/// # Safety
/// `range` is memory shared with the host, mapped, and reached by nobody here but through what this returns. Once.
#[inline(never)]
pub unsafe fn lay_out(
    range: &Range<u64>,
    doorbell_page: u64,
    wanted: Wanted<'_>,
) -> Result<LaidOut, WindowError> {
    let Wanted { cores, logged, cpus, features, counter_hz, origin } = wanted;
    let bytes = range.end - range.start;
    let base = core::ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: the caller's promise.
    let window = unsafe { Window::new(base, bytes as usize) }?;
    let page = window.region(0, HELLO_BYTES as u64)?.slice::<AtomicU64>()?;
    let boot = silence(page).wrapping_add(1);

    let layout = Layout { cpus, logged, ..Layout::usual(bytes, cores) };
    let mut hello = layout.hello(boot, features, Link::Pcie).map_err(WindowError::Layout)?;
    hello.counter_hz = counter_hz;
    let missing = || WindowError::Layout(LayoutError::Cores { cores });
    let region = |kind, index| {
        let region = hello.region(kind, index).ok_or_else(missing)?;
        Ok::<_, WindowError>(window.region(region.offset, region.bytes)?)
    };
    let lines = |kind| {
        // SAFETY: a line is eight atomic words, without padding; any bits are one.
        Ok::<_, WindowError>(unsafe { region(kind, 0)?.slice_of::<Line>() }?)
    };
    let one = |kind| match lines(kind)? {
        [line, ..] => Ok(line),
        [] => Err(missing()),
    };
    let shared = shared(&hello, range.start, doorbell_page).ok_or_else(missing)?;
    let mut laid_out = LaidOut {
        boot,
        tasks: hello.tasks,
        host_control: one(RegionKind::HostControl)?,
        agent_control: one(RegionKind::AgentControl)?,
        slots: lines(RegionKind::Slots)?,
        messages: lines(RegionKind::Messages)?,
        manager: one(RegionKind::Manager)?,
        supervisor: lines(RegionKind::Supervisor)?,
        image: region(RegionKind::Image, 0)?,
        logs: Vec::new(),
        epitaphs: Vec::new(),
        shared,
    };
    for core in (0..cores).filter(|core| logged >> core & 1 == 1) {
        let full = |_| missing();
        laid_out.logs.push((core.into(), region(RegionKind::Log, core)?)).map_err(full)?;
        let epitaphs = region(RegionKind::Epitaph, core)?;
        for word in epitaphs.slice::<AtomicU64>()? {
            word.store(0, Ordering::Relaxed);
        }
        laid_out.epitaphs.push((core.into(), epitaphs)).map_err(full)?;
    }
    laid_out.host_control.clear();
    laid_out.agent_control.clear();
    laid_out.manager.clear();
    laid_out.supervisor.iter().for_each(Line::clear);

    let mut bytes = [0; HELLO_BYTES];
    hello.write_with(&mut bytes, origin);
    speak(page, &bytes);
    Ok(laid_out)
}

/// Where what agents share with their host lies. Every region starts on a page and has its pages for itself.
fn shared(hello: &Hello, base: u64, doorbell_page: u64) -> Option<Shared> {
    let range = |kind| {
        let region = hello.region(kind, 0)?;
        let start = base + region.offset;
        Some(start..start + region.bytes.next_multiple_of(REGION_ALIGN))
    };
    Some(Shared {
        messages: range(RegionKind::Messages)?,
        slots: range(RegionKind::Slots)?,
        control: range(RegionKind::AgentControl)?,
        doorbell: doorbell_page..doorbell_page + REGION_ALIGN,
        dma: range(RegionKind::Dma)?,
        buffer: range(RegionKind::Buffer)?,
    })
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

/// Where an agent's successor begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    /// Lines of the ring that have been taken.
    pub taken: u32,
    /// Resyncs asked for.
    pub resyncs: u32,
}

impl LaidOut {
    /// Makes ring and slots fresh: nothing in them proves anything.
    pub fn clear(&self) {
        self.messages.iter().chain(self.slots).for_each(Line::clear);
    }

    /// Where the agents of a session have come to, by what they left in their lines: at least as far as the host has been
    /// told, and no further than the host has written. `from` is where the last of them began.
    pub fn resume(&self, from: Resume) -> Resume {
        let control = self.agent();
        let mut taken = from.taken;
        let slots = self.slots.iter().filter_map(Line::read_any);
        let credits = slots.map(|(payload, _)| Txn::from_payload(&payload).credits);
        for alleged in credits.chain(control.map(|control| control.credits)) {
            let ahead = alleged.wrapping_sub(taken);
            // What an agent alleges counts only if the line before is there.
            if ahead != 0 && ahead <= u32::MAX / 2 && self.line_before(alleged).is_some() {
                taken = alleged;
            }
        }
        let resyncs = control.map_or(from.resyncs, |control| control.resyncs);
        Resume { taken, resyncs: resyncs.wrapping_add(1) }
    }

    /// The agent's control line, if it is whole.
    pub fn agent(&self) -> Option<AgentControl> {
        AgentControl::from_payload(&self.agent_control.read_any()?.0)
    }

    /// What stands in the ring as line `number` − 1, if that is there.
    pub fn line_before(&self, number: u32) -> Option<Payload> {
        let last = number.wrapping_sub(1);
        let lines = self.messages.len() as u32;
        let line = self.messages.get((last & (lines - 1)) as usize)?;
        line.read(Tag::of_lap(last >> lines.trailing_zeros()))
    }

    /// Writes the agent's control line in its stead.
    pub fn report(&self, report: &AgentControl) {
        SlotWriter::after(self.agent_control).write(self.agent_control, &report.to_payload(), 3);
    }

    /// Writes one of the supervisor's lines, if it says anything new.
    pub fn tell(&self, number: usize, payload: &Payload) {
        let Some(line) = self.supervisor.get(number % SUPERVISOR_LINES) else { return };
        if line.read_any().is_none_or(|(before, _)| before != *payload) {
            SlotWriter::after(line).write(line, payload, 0);
        }
    }

    /// The region of a core's epitaphs.
    pub fn epitaphs_of(&self, core: usize) -> Option<Region<'static>> {
        self.epitaphs.iter().find(|(number, _)| *number == core).map(|(_, region)| *region)
    }
}

/// Copies as many bytes as both have.
pub fn copy(to: &[AtomicU8], from: &[AtomicU8]) {
    for (to, from) in to.iter().zip(from) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Puts a record before a core's others; the oldest goes.
pub fn bury(region: &Region<'static>, record: &EpitaphRecord) {
    let Ok(bytes) = region.slice::<AtomicU8>() else { return };
    for place in (1..EPITAPHS_KEPT).rev() {
        let (before, own) = bytes.split_at_checked(place * RECORD_BYTES).unwrap_or_default();
        copy(own, before.get(before.len().saturating_sub(RECORD_BYTES)..).unwrap_or_default());
    }
    for (place, byte) in bytes.iter().zip(record.to_bytes()) {
        place.store(byte, Ordering::Release);
    }
}

/// A core's newest epitaph, if it is whole.
pub fn read_epitaph(region: &Region<'static>) -> Option<EpitaphRecord> {
    let mut bytes = [0; RECORD_BYTES];
    for (byte, place) in bytes.iter_mut().zip(region.slice::<AtomicU8>().ok()?) {
        *byte = place.load(Ordering::Acquire);
    }
    EpitaphRecord::from_bytes(&bytes)
}
