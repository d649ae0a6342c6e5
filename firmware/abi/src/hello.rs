//! The hello page: the first 4 KiB of the window, written by the IPU before a host may look.
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | version, [`Version::to_bits`] |
//! | 12 | 4 | boot number: another number is another boot of the IPU |
//! | 16 | 8 | feature bits |
//! | 24 | 8 | window_bytes |
//! | 32 | 2 | cpus: decision slots, and so host CPUs at most |
//! | 34 | 2 | cores of the IPU, the supervisor's included |
//! | 36 | 2 | number of regions |
//! | 38 | 1 | link type |
//! | 39 | 1 | zero |
//! | 40 | 4 | tasks: task numbers are below this |
//! | 44 | 2 | number of further regions, listed after the others: those of kinds that 1.1 does not know (since 1.2) |
//! | 46 | 2 | zero |
//! | 48 | 4 | counter_hz: ticks of the [ledger](crate::ledger) in a second; 0 where agents keep none (passed over before) |
//! | 52 | 12 | zero |
//! | 64 | 24 each | regions: kind 2, index 2, zero 4, offset 8, bytes 8 |
//! | 3584 | 508 | what booted, as a loader tells it: the slot, and behind a line feed what was refused and why; UTF-8, zeros behind it (passed over before) |
//! | 4092 | 4 | CRC-32C of all before |

use core::fmt;

use crate::CPUS_MAX;
use crate::crc::crc32c;
use crate::line::LINE_BYTES;
use crate::supervisor::SUPERVISOR_LINES;
use crate::version::{VERSION, Version, VersionError};

/// Bytes in the page.
pub const HELLO_BYTES: usize = 4096;
/// "NEAP" and a form feed, so that text is not mistaken for it.
pub const MAGIC: u64 = u64::from_le_bytes(*b"\x0cNEAP\x0c\x1a\n");
/// Regions that the page can name.
pub const REGIONS_MAX: usize = 64;
/// Regions start on this boundary, so that each can have a memory type of its own.
pub const REGION_ALIGN: u64 = 4096;

/// The longest text of what booted, in bytes.
pub const ORIGIN_BYTES: usize = CRC_AT - ORIGIN_AT;

const REGIONS_AT: usize = 64;
const REGION_BYTES: usize = 24;
const ORIGIN_AT: usize = 3584;
const CRC_AT: usize = HELLO_BYTES - 4;
const _: () = assert!(REGIONS_AT + REGIONS_MAX * REGION_BYTES <= ORIGIN_AT);

/// Feature bits.
pub mod feature {
    /// Groups of txns commit together.
    pub const GROUPS: u64 = 1;
    /// The DMA engine has a channel for this enclave.
    pub const DMA: u64 = 2;
    /// The agent sleeps when idle and must be rung ([`crate::AgentControl::asleep`]).
    pub const SLEEPS: u64 = 4;
    /// The host may have policies told the messages' time in place of the agent's own
    /// ([`crate::control::Clock::Messages`]).
    pub const MESSAGE_CLOCK: u64 = 8;
    /// The counter of the agents' [`Ledger`](crate::Ledger) is the host's own monotonic clock.
    pub const HOST_CLOCK: u64 = 16;
}

/// What lies between host and IPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// PCIe: slots are flushed by the host after each take (section 4.2.2).
    Pcie = 0,
    /// CXL, UPI or plain shared memory: the same protocol without a flush.
    Coherent = 1,
}

/// What a region of the window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RegionKind {
    /// The host's control line. Host: write-combining.
    HostControl = 1,
    /// The IPU's control line. Host: uncached.
    AgentControl = 2,
    /// The message ring. Host: write-combining.
    Messages = 3,
    /// The decision slots, one line a CPU. Host: write-through.
    Slots = 4,
    /// A core's log ring (index: the core).
    Log = 5,
    /// A core's epitaph (index: the core).
    Epitaph = 6,
    /// A DMA channel's registers (index: the channel).
    Dma = 7,
    /// Bytes that DMA may move (index: the channel).
    Buffer = 8,
    /// The line by which agents are managed (since 1.2). Host: write-combining.
    Manager = 9,
    /// The supervisor's lines: its answers, its books, its bindings (since 1.2). Host: uncached.
    Supervisor = 10,
    /// Where the host lays an agent's image (since 1.2). Host: write-combining.
    Image = 11,
}

impl RegionKind {
    /// From the wire.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Option<Self> {
        Some(match bits {
            1 => Self::HostControl,
            2 => Self::AgentControl,
            3 => Self::Messages,
            4 => Self::Slots,
            5 => Self::Log,
            6 => Self::Epitaph,
            7 => Self::Dma,
            8 => Self::Buffer,
            9 => Self::Manager,
            10 => Self::Supervisor,
            11 => Self::Image,
            _ => return None,
        })
    }

    /// Whether a host of 1.1 knows the kind. The others are listed apart, so that it need not.
    #[must_use]
    const fn is_old(self) -> bool {
        (self as u16) < Self::Manager as u16
    }

    /// Those that a host cannot do without.
    pub const REQUIRED: [Self; 4] = [Self::HostControl, Self::AgentControl, Self::Messages, Self::Slots];
}

/// A part of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What for.
    pub kind: RegionKind,
    /// Which of its kind.
    pub index: u16,
    /// Where, in bytes from the window's start.
    pub offset: u64,
    /// How much, in bytes.
    pub bytes: u64,
}

/// The hello page, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The IPU's ABI version.
    pub version: Version,
    /// Number of this boot.
    pub boot: u32,
    /// Feature bits ([`feature`]).
    pub features: u64,
    /// Size of the window in bytes.
    pub window_bytes: u64,
    /// Decision slots.
    pub cpus: u16,
    /// Cores of the IPU.
    pub cores: u16,
    /// Task numbers are below this.
    pub tasks: u32,
    /// The link.
    pub link: Link,
    /// How fast the counter runs by which agents keep their [`Ledger`](crate::Ledger), in ticks a second; 0 where they keep none.
    pub counter_hz: u32,
    regions: [Option<Region>; REGIONS_MAX],
    count: usize,
}

/// What is wrong with a hello page. Each names the culprit; [`HelloError::remedy`] says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// Fewer bytes than a page.
    Truncated {
        /// How many there are.
        bytes: usize,
    },
    /// No IPU has written here.
    Magic {
        /// What stands there.
        found: u64,
    },
    /// The page is damaged or half written.
    Checksum {
        /// As the page has it.
        stored: u32,
        /// As its bytes have it.
        computed: u32,
    },
    /// Too far apart.
    Version(VersionError),
    /// The page speaks of more window than there is.
    WindowTooSmall {
        /// What the page needs, in bytes.
        needed: u64,
        /// What is mapped, in bytes.
        mapped: u64,
    },
    /// No CPU, or more than [`CPUS_MAX`].
    Cpus {
        /// How many it says.
        cpus: u16,
    },
    /// A link type that this version does not know.
    Link {
        /// Its number.
        link: u8,
    },
    /// More regions than the page holds.
    RegionCount {
        /// How many it says.
        count: u16,
    },
    /// A region of unknown kind.
    RegionKind {
        /// Its place in the list.
        place: u16,
        /// Its kind's number.
        kind: u16,
    },
    /// A region outside the window, empty, or not on its boundary.
    RegionBounds(Region),
    /// Two regions share bytes.
    RegionOverlap(Region, Region),
    /// A region that no host can do without is missing.
    RegionMissing(RegionKind),
    /// A region is too small, or not the size of a ring: lines are a power of two.
    RegionSize(Region),
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hello page: ")?;
        match self {
            Self::Truncated { bytes } => write!(f, "{bytes} bytes, not {HELLO_BYTES}"),
            Self::Magic { found } => write!(f, "magic {found:#018x}, not {MAGIC:#018x}"),
            Self::Checksum { stored, computed } => {
                write!(f, "checksum {stored:#010x} stored, {computed:#010x} computed")
            }
            Self::Version(error) => error.fmt(f),
            Self::WindowTooSmall { needed, mapped } => {
                write!(f, "needs a window of {needed} bytes, {mapped} mapped")
            }
            Self::Cpus { cpus } => write!(f, "{cpus} decision slots, not 1 to {CPUS_MAX}"),
            Self::Link { link } => write!(f, "link type {link} is unknown"),
            Self::RegionCount { count } => write!(f, "{count} regions, more than {REGIONS_MAX}"),
            Self::RegionKind { place, kind } => write!(f, "region {place} has unknown kind {kind}"),
            Self::RegionBounds(r) => write!(f, "{r:?} is empty, misaligned or outside the window"),
            Self::RegionOverlap(a, b) => write!(f, "{a:?} and {b:?} share bytes"),
            Self::RegionMissing(kind) => write!(f, "no region {kind:?}"),
            Self::RegionSize(r) => write!(f, "{r:?} has a size that its kind cannot have"),
        }?;
        write!(f, "; {}", self.remedy())
    }
}

impl HelloError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Magic { .. } => "is the firmware running, and is this its window?",
            Self::Checksum { .. } => "read again; if it stays, reset the IPU",
            Self::Version(_) => "use releases at most one minor version apart",
            Self::Truncated { .. } | Self::WindowTooSmall { .. } => "map the whole window",
            _ => "the firmware's layout is at fault: reset the IPU or flash another image",
        }
    }
}

impl core::error::Error for HelloError {}

/// What a page that was read says of what booted: the slot, and what was refused and why. Nothing where no loader has said
/// anything, or nothing that is text.
#[must_use]
pub fn origin(page: &[u8]) -> Option<(&str, Option<&str>)> {
    let bytes = page.get(ORIGIN_AT..CRC_AT)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = core::str::from_utf8(&bytes[..end]).ok().filter(|text| !text.is_empty())?;
    Some(text.split_once('\n').map_or((text, None), |(slot, refused)| (slot, Some(refused))))
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from(u16_at(page, at)) | u32::from(u16_at(page, at + 2)) << 16
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from(u32_at(page, at)) | u64::from(u32_at(page, at + 4)) << 32
}

impl Hello {
    /// A page with no region yet.
    #[must_use]
    pub const fn new(
        boot: u32,
        features: u64,
        window_bytes: u64,
        cpus: u16,
        cores: u16,
        tasks: u32,
        link: Link,
    ) -> Self {
        Self {
            version: VERSION,
            boot,
            features,
            window_bytes,
            cpus,
            cores,
            tasks,
            link,
            counter_hz: 0,
            regions: [None; REGIONS_MAX],
            count: 0,
        }
    }

    /// Adds a region; false when the page is full.
    #[must_use]
    pub fn push(&mut self, region: Region) -> bool {
        let Some(place) = self.regions.get_mut(self.count) else { return false };
        *place = Some(region);
        self.count += 1;
        true
    }

    /// The regions, in the page's order.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.regions.iter().flatten().copied()
    }

    /// The region of a kind and index.
    #[must_use]
    pub fn region(&self, kind: RegionKind, index: u16) -> Option<Region> {
        self.regions().find(|r| r.kind == kind && r.index == index)
    }

    /// Writes the page, with nothing of what booted.
    pub fn write(&self, page: &mut [u8; HELLO_BYTES]) {
        self.write_with(page, "");
    }

    /// Writes the page, with as much of `origin` as there is room for: what booted, in a loader's words.
    pub fn write_with(&self, page: &mut [u8; HELLO_BYTES], origin: &str) {
        page.fill(0);
        page[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        page[8..12].copy_from_slice(&self.version.to_bits().to_le_bytes());
        page[12..16].copy_from_slice(&self.boot.to_le_bytes());
        page[16..24].copy_from_slice(&self.features.to_le_bytes());
        page[24..32].copy_from_slice(&self.window_bytes.to_le_bytes());
        page[32..34].copy_from_slice(&self.cpus.to_le_bytes());
        page[34..36].copy_from_slice(&self.cores.to_le_bytes());
        let old = self.regions().filter(|region| region.kind.is_old()).count();
        page[36..38].copy_from_slice(&(old as u16).to_le_bytes());
        page[44..46].copy_from_slice(&((self.count - old) as u16).to_le_bytes());
        page[38] = self.link as u8;
        page[40..44].copy_from_slice(&self.tasks.to_le_bytes());
        page[48..52].copy_from_slice(&self.counter_hz.to_le_bytes());
        let listed = self.regions().filter(|region| region.kind.is_old());
        let listed = listed.chain(self.regions().filter(|region| !region.kind.is_old()));
        for (region, bytes) in listed.zip(page[REGIONS_AT..].chunks_exact_mut(REGION_BYTES)) {
            bytes[0..2].copy_from_slice(&(region.kind as u16).to_le_bytes());
            bytes[2..4].copy_from_slice(&region.index.to_le_bytes());
            bytes[8..16].copy_from_slice(&region.offset.to_le_bytes());
            bytes[16..24].copy_from_slice(&region.bytes.to_le_bytes());
        }
        let mut room = origin.len().min(ORIGIN_BYTES);
        while !origin.is_char_boundary(room) {
            room -= 1;
        }
        page[ORIGIN_AT..ORIGIN_AT + room].copy_from_slice(&origin.as_bytes()[..room]);
        let crc = crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a page as the host at `ours`, from a window of which `mapped_bytes` are mapped, and checks all of it.
    ///
    /// # Errors
    /// The first thing wrong, by name. The version comes before the checksum: another major may lay the page out
    /// otherwise.
    pub fn read(page: &[u8], mapped_bytes: u64, ours: Version) -> Result<Self, HelloError> {
        if page.len() < HELLO_BYTES {
            return Err(HelloError::Truncated { bytes: page.len() });
        }
        let magic = u64_at(page, 0);
        if magic != MAGIC {
            return Err(HelloError::Magic { found: magic });
        }
        let version = Version::from_bits(u32_at(page, 8));
        let (stored, computed) = (u32_at(page, CRC_AT), crc32c(&page[..CRC_AT]));
        if version.major == ours.major && stored != computed {
            return Err(HelloError::Checksum { stored, computed });
        }
        ours.negotiate(version).map_err(HelloError::Version)?;
        let link = match page[38] {
            0 => Link::Pcie,
            1 => Link::Coherent,
            link => return Err(HelloError::Link { link }),
        };
        let mut hello = Self::new(
            u32_at(page, 12),
            u64_at(page, 16),
            u64_at(page, 24),
            u16_at(page, 32),
            u16_at(page, 34),
            u32_at(page, 40),
            link,
        );
        hello.version = version;
        hello.counter_hz = u32_at(page, 48);
        let count = u16_at(page, 36).saturating_add(u16_at(page, 44));
        if usize::from(count) > REGIONS_MAX {
            return Err(HelloError::RegionCount { count });
        }
        for place in 0..count {
            let at = REGIONS_AT + usize::from(place) * REGION_BYTES;
            let kind = u16_at(page, at);
            let kind = RegionKind::from_bits(kind).ok_or(HelloError::RegionKind { place, kind })?;
            let index = u16_at(page, at + 2);
            let region = Region { kind, index, offset: u64_at(page, at + 8), bytes: u64_at(page, at + 16) };
            // The count is at most REGIONS_MAX, so there is room.
            let _ = hello.push(region);
        }
        hello.check(mapped_bytes)?;
        Ok(hello)
    }

    /// Checks that the page makes sense over `mapped_bytes` of window.
    ///
    /// # Errors
    /// The first thing wrong, by name.
    pub fn check(&self, mapped_bytes: u64) -> Result<(), HelloError> {
        if self.window_bytes > mapped_bytes {
            return Err(HelloError::WindowTooSmall { needed: self.window_bytes, mapped: mapped_bytes });
        }
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return Err(HelloError::Cpus { cpus: self.cpus });
        }
        for (i, region) in self.regions().enumerate() {
            let end = region.offset.checked_add(region.bytes);
            if region.bytes == 0
                || region.offset % REGION_ALIGN != 0
                || region.offset < HELLO_BYTES as u64
                || end.is_none_or(|end| end > self.window_bytes)
            {
                return Err(HelloError::RegionBounds(region));
            }
            let line = LINE_BYTES as u64;
            let fits = match region.kind {
                RegionKind::HostControl | RegionKind::AgentControl | RegionKind::Manager => {
                    region.bytes >= line
                }
                RegionKind::Supervisor => region.bytes >= SUPERVISOR_LINES as u64 * line,
                RegionKind::Messages => region.bytes >= 2 * line && region.bytes.is_power_of_two(),
                RegionKind::Slots => region.bytes >= u64::from(self.cpus) * line,
                RegionKind::Log => region.bytes > crate::logring::HEADER_BYTES as u64,
                RegionKind::Epitaph => region.bytes >= crate::epitaph::EPITAPH_BYTES as u64,
                RegionKind::Dma => region.bytes >= REGION_ALIGN,
                RegionKind::Buffer | RegionKind::Image => true,
            };
            if !fits {
                return Err(HelloError::RegionSize(region));
            }
            for other in self.regions().take(i) {
                let apart = region.offset >= other.offset + other.bytes
                    || other.offset >= region.offset + region.bytes;
                if !apart || (region.kind == other.kind && region.index == other.index) {
                    return Err(HelloError::RegionOverlap(other, region));
                }
            }
        }
        for kind in RegionKind::REQUIRED {
            if self.region(kind, 0).is_none() {
                return Err(HelloError::RegionMissing(kind));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    const WINDOW_BYTES: u64 = 16 << 20;

    fn page() -> [u8; HELLO_BYTES] {
        let mut page = [0; HELLO_BYTES];
        let hello = Layout::usual(WINDOW_BYTES, 4).hello(7, feature::GROUPS, Link::Pcie).unwrap();
        Hello { counter_hz: 62_500_000, ..hello }.write(&mut page);
        page
    }

    fn read(page: &[u8]) -> Result<Hello, HelloError> {
        Hello::read(page, WINDOW_BYTES, VERSION)
    }

    /// A page with its checksum made right again after a change.
    fn forged(change: impl FnOnce(&mut [u8; HELLO_BYTES])) -> Result<Hello, HelloError> {
        let mut page = page();
        change(&mut page);
        let crc = crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        read(&page)
    }

    #[test]
    fn what_booted_is_told_as_far_as_there_is_room() {
        let hello = Hello::read(&page(), WINDOW_BYTES, VERSION).unwrap();
        let told = |origin: &str| {
            let mut page = [0; HELLO_BYTES];
            hello.write_with(&mut page, origin);
            assert_eq!(
                Hello::read(&page, WINDOW_BYTES, VERSION).as_ref(),
                Ok(&hello),
                "the rest is as it was"
            );
            page
        };
        assert_eq!(origin(&told("")), None);
        assert_eq!(origin(&told("A")), Some(("A", None)));
        assert_eq!(origin(&told("A\nB: part runtime")), Some(("A", Some("B: part runtime"))));
        let mut long = [b'x'; ORIGIN_BYTES + 1];
        // A character of two bytes, of which the second has no room.
        long[ORIGIN_BYTES - 1..].copy_from_slice("\u{e4}".as_bytes());
        let page = told(core::str::from_utf8(&long).unwrap());
        assert_eq!(origin(&page).map(|(slot, _)| slot.len()), Some(ORIGIN_BYTES - 1));
        let mut bad = told("A");
        bad[ORIGIN_AT] = 0xff;
        assert_eq!(origin(&bad), None);
        assert_eq!(origin(&bad[..ORIGIN_AT]), None);
    }

    #[test]
    fn round_trip() {
        let hello = read(&page()).unwrap();
        let mut again = [0; HELLO_BYTES];
        hello.write(&mut again);
        assert_eq!(again, page());
        assert_eq!((hello.version, hello.boot, hello.cpus), (VERSION, 7, CPUS_MAX));
        assert_eq!(hello.counter_hz, 62_500_000);
    }

    #[test]
    fn any_byte_wrong_is_a_named_error() {
        let good = page();
        // Miri is slow, and has nothing to find in the bytes between.
        for i in (0..HELLO_BYTES).step_by(if cfg!(miri) { 509 } else { 1 }) {
            for bit in (0..8).step_by(if cfg!(miri) { 8 } else { 1 }) {
                let mut bad = good;
                bad[i] ^= 1 << bit;
                let error = read(&bad).expect_err("a wrong byte went through");
                match i {
                    0..8 => assert!(matches!(error, HelloError::Magic { .. })),
                    10..12 => assert!(matches!(error, HelloError::Version(_))),
                    _ => assert!(matches!(error, HelloError::Checksum { .. }), "byte {i}: {error}"),
                }
            }
        }
    }

    #[test]
    fn a_short_page_or_window_is_named() {
        assert_eq!(read(&page()[1..]), Err(HelloError::Truncated { bytes: HELLO_BYTES - 1 }));
        let small = Hello::read(&page(), WINDOW_BYTES - 1, VERSION);
        assert_eq!(small, Err(HelloError::WindowTooSmall { needed: WINDOW_BYTES, mapped: WINDOW_BYTES - 1 }));
    }

    #[test]
    fn a_forged_page_is_refused_for_what_it_says() {
        let region = |place: usize| REGIONS_AT + place * REGION_BYTES;
        assert!(matches!(forged(|p| p[38] = 9), Err(HelloError::Link { link: 9 })));
        assert!(matches!(forged(|p| p[36] = 65), Err(HelloError::RegionCount { count: 68 })));
        assert!(matches!(forged(|p| p[45] = 0xff), Err(HelloError::RegionCount { .. })));
        assert!(matches!(forged(|p| p[32..34].fill(0)), Err(HelloError::Cpus { cpus: 0 })));
        assert!(matches!(forged(|p| p[33] = 0xff), Err(HelloError::Cpus { .. })));
        assert!(matches!(forged(|p| p[region(1)] = 99), Err(HelloError::RegionKind { place: 1, kind: 99 })));
        assert!(matches!(forged(|p| p[region(1) + 8] = 1), Err(HelloError::RegionBounds(_))));
        assert!(matches!(forged(|p| p[region(1) + 8..][..8].fill(0)), Err(HelloError::RegionBounds(_))));
        assert!(matches!(forged(|p| p[region(1) + 8..][..8].fill(0xff)), Err(HelloError::RegionBounds(_))));
        assert!(matches!(forged(|p| p[region(1) + 16..][..8].fill(0)), Err(HelloError::RegionBounds(_))));
        assert!(matches!(forged(|p| p[region(1) + 18] = 1), Err(HelloError::RegionOverlap(..))));
        assert!(matches!(
            forged(|p| p[region(1)] = RegionKind::Buffer as u8),
            Err(HelloError::RegionOverlap(..))
        ));
        let rename = |p: &mut [u8; HELLO_BYTES]| {
            p[region(1)] = RegionKind::Buffer as u8;
            p[region(1) + 2] = 7;
        };
        assert_eq!(forged(rename), Err(HelloError::RegionMissing(RegionKind::HostControl)));
        assert!(matches!(forged(|p| p[region(3) + 16..][..2].fill(1)), Err(HelloError::RegionSize(_))));
        assert!(matches!(forged(|p| p[8] = 9), Err(HelloError::Version(_))));
    }

    /// A host of 1.1 reads the first list only, and finds every region that it knows there.
    #[test]
    fn kinds_of_1_2_are_listed_apart() {
        let page = page();
        let kinds = u16_at(&page, 36);
        let old = (0..kinds).map(|place| u16_at(&page, REGIONS_AT + usize::from(place) * REGION_BYTES));
        assert!(old.clone().all(|kind| kind < RegionKind::Manager as u16) && old.count() > 8);
        assert_eq!(u16_at(&page, 44), 3);
    }

    #[test]
    fn a_page_one_minor_away_is_read_and_another_major_is_not() {
        for minor in [VERSION.minor - 1, VERSION.minor + 1] {
            assert_eq!(forged(|p| p[8] = minor as u8).unwrap().version.minor, minor);
        }
        assert!(matches!(forged(|p| p[10] = 2), Err(HelloError::Version(_))));
    }

    #[test]
    fn random_pages_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..if cfg!(miri) { 1 } else { 2000 } {
            let noise = |page: &mut [u8; HELLO_BYTES]| {
                for byte in &mut page[8..] {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    if state & 7 == 0 {
                        *byte = (state >> 32) as u8;
                    }
                }
            };
            assert!(forged(noise).is_err());
        }
    }
}
