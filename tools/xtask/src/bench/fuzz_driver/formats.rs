//! What the driver reads once, or off the hot path: pages and lines that stand for themselves.

use neap_abi::control::came_after;
use neap_abi::crc::crc32c;
use neap_abi::epitaph::{EPITAPH_BYTES, EPITAPHS_BYTES};
use neap_abi::hello::{HELLO_BYTES, Hello, HelloError, Link, Region, RegionKind};
use neap_abi::supervisor::{Binding, Books, Identity, ManagerLine};
use neap_abi::{
    AgentControl, CPUS_MAX, Cause, Epitaph, EpitaphRecord, HostControl, Payload, ReplyLine, VERSION, Version,
};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::{Kind, Tally};

/// Window of the host that reads.
const MAPPED_BYTES: u64 = 1 << 20;
/// Where the hello page's checksum lies.
const CRC_AT: usize = HELLO_BYTES - 4;

/// A page as a good IPU writes it.
fn good_page() -> [u8; HELLO_BYTES] {
    let mut hello = Hello::new(7, 7, MAPPED_BYTES, 4, 8, 4096, Link::Pcie);
    let kinds = [
        (RegionKind::HostControl, 4096),
        (RegionKind::AgentControl, 4096),
        (RegionKind::Messages, 65_536),
        (RegionKind::Slots, 16_384),
        (RegionKind::Log, 4096),
        (RegionKind::Epitaph, EPITAPHS_BYTES as u64),
        (RegionKind::Manager, 4096),
        (RegionKind::Supervisor, 4096),
        (RegionKind::Image, 262_144),
    ];
    let mut offset = HELLO_BYTES as u64;
    for (kind, bytes) in kinds {
        let fits = hello.push(Region { kind, index: 0, offset, bytes });
        assert!(fits, "a page has room for its regions");
        offset = (offset + bytes).next_multiple_of(4096);
    }
    let mut page = [0; HELLO_BYTES];
    hello.write(&mut page);
    page
}

/// Bits, bytes and words changed here and there in the first `within` bytes.
fn spoil(bytes: &mut [u8], within: usize, random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..within);
        match random.random_range(0..4) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes[at..(at + 8).min(within)].fill([0, 0xff, 0x80, 1][random.random_range(0..4)]),
            _ => random.fill_bytes(&mut bytes[at..(at + 8).min(within)]),
        }
    }
}

const fn refusal(error: &HelloError) -> &'static str {
    match error {
        HelloError::Truncated { .. } => "truncated",
        HelloError::Magic { .. } => "magic",
        HelloError::Checksum { .. } => "checksum",
        HelloError::Version(_) => "version",
        HelloError::WindowTooSmall { .. } => "window_too_small",
        HelloError::Cpus { .. } => "cpus",
        HelloError::Link { .. } => "link",
        HelloError::RegionCount { .. } => "region_count",
        HelloError::RegionKind { .. } => "region_kind",
        HelloError::RegionBounds(_) => "region_bounds",
        HelloError::RegionOverlap(..) => "region_overlap",
        HelloError::RegionMissing(_) => "region_missing",
        HelloError::RegionSize(_) => "region_size",
    }
}

/// A hello page. What is accepted can be mapped as the driver maps it.
pub(super) fn hello(kind: Kind, random: &mut ChaCha8Rng, tally: &mut Tally) {
    let mut page = good_page();
    if kind == Kind::HelloRandom {
        // All of it, or all but the magic and the version: nothing else would be looked at.
        let from = [0, 12][random.random_range(0..2)];
        random.fill_bytes(&mut page[from..]);
    } else {
        // The head and the regions that are listed, or anywhere.
        let within = [64, 64 + 9 * 24, CRC_AT][random.random_range(0..3)];
        spoil(&mut page, within, random);
    }
    if random.random_range(0..8) != 0 {
        let crc = crc32c(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
    let length =
        if random.random_range(0..64) == 0 { random.random_range(0..HELLO_BYTES) } else { HELLO_BYTES };
    let mapped = if random.random_range(0..16) == 0 { random.random() } else { MAPPED_BYTES };
    let hello = match Hello::read(&page[..length], mapped, VERSION) {
        Ok(hello) => hello,
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.remedy().is_empty());
            return tally.count(kind, refusal(&error));
        }
    };
    assert!((1..=CPUS_MAX).contains(&hello.cpus) && hello.window_bytes <= mapped);
    let version = VERSION.negotiate(hello.version).expect("its version is one that we speak");
    assert!(version <= VERSION && version <= hello.version);
    for region in hello.regions() {
        let end = region.offset.checked_add(region.bytes).expect("a region's end is a number");
        assert!(region.offset >= HELLO_BYTES as u64 && end <= mapped && region.bytes > 0, "{region:?}");
    }
    let lines = |kind| hello.region(kind, 0).map_or(0, |region| region.bytes / 64);
    assert!(lines(RegionKind::Messages).is_power_of_two() && lines(RegionKind::Slots) >= hello.cpus.into());
    assert!(lines(RegionKind::HostControl) > 0 && lines(RegionKind::AgentControl) > 0);
    tally.count(kind, "accepted");
}

/// Any payload: of random words, small ones among them.
pub(super) fn payload(random: &mut ChaCha8Rng) -> Payload {
    core::array::from_fn(|_| match random.random_range(0..4) {
        0 => random.random_range(0..16),
        1 => random.random::<u64>() & 0xff00_00ff_00ff,
        _ => random.random::<u64>() & neap_abi::line::PAYLOAD_MASK,
    })
}

/// A line of the supervisor's, or a control line, whichever way it is read.
pub(super) fn supervisor(random: &mut ChaCha8Rng, tally: &mut Tally) {
    let words = payload(random);
    let reply = ReplyLine::from_payload(&words);
    if let Some(reply) = reply {
        assert_eq!(ReplyLine::from_payload(&reply.to_payload()), Some(reply));
        assert!(!reply.reply.in_words().is_empty());
    }
    tally.count(Kind::Supervisor, if reply.is_some() { "reply" } else { "no_reply" });
    let identity = Identity::from_payload(&words);
    let _ = (identity.name().len(), Version::from_bits(identity.version) < VERSION);
    let _ = came_after(identity.incarnation, random.random());
    assert_eq!(Books::from_payload(&Books::from_payload(&words).to_payload()), Books::from_payload(&words));
    if let Some(binding) = Binding::from_payload(&words) {
        assert!(!binding.kind.name().is_empty());
    }
    let _ = (ManagerLine::from_payload(&words), HostControl::from_payload(&words));
    let _ = AgentControl::from_payload(&words);
}

/// An epitaph with something changed, or of random bytes.
pub(super) fn epitaph(random: &mut ChaCha8Rng, tally: &mut Tally) {
    let mut bytes = [0; EPITAPHS_BYTES];
    if random.random_range(0..4) == 0 {
        random.fill_bytes(&mut bytes);
    } else {
        let good = Epitaph::new(Cause::Panic, 3).to_bytes();
        bytes[..EPITAPH_BYTES].copy_from_slice(&good);
        spoil(&mut bytes, EPITAPH_BYTES, random);
        if random.random_range(0..2) == 0 {
            let crc = crc32c(&bytes[8..EPITAPH_BYTES]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let found = Epitaph::from_bytes(&bytes);
    if let Some(epitaph) = &found {
        assert!(
            epitaph.text().len() <= 128 && epitaph.file().len() <= 60 && !epitaph.cause.name().is_empty()
        );
    }
    let _ = EpitaphRecord::from_bytes(&bytes);
    tally.count(Kind::Epitaph, if found.is_some() { "epitaph" } else { "no_epitaph" });
}
