//! The bounds of a channel, with descriptors of all kinds.

use super::*;
use crate::Window;
use proptest::prelude::*;

const BYTES_MAX: u64 = 1 << 14;
const WINDOW_BYTES: u64 = 1 << 16;
const HOST_BYTES: u64 = 1 << 14;
const PAGE: u64 = 0xf000;

/// A window, host memory, and a channel with ranges of every right.
struct Table {
    window: Arc<Mapping>,
    host: Arc<Mapping>,
    _files: tempfile::TempDir,
}

fn table() -> Table {
    let files = tempfile::tempdir().expect("a temporary directory");
    let map = |name, bytes| {
        Arc::new(
            Window::create_in(files.path(), name, bytes).and_then(|window| window.map()).expect("a mapping"),
        )
    };
    let (window, host) = (map("window", WINDOW_BYTES), map("host", HOST_BYTES));
    Table { window, host, _files: files }
}

impl Table {
    fn channel(&self) -> ChannelGrant {
        let host = |iova, offset, bytes, access| HostRange {
            iova,
            memory: Arc::clone(&self.host),
            offset,
            bytes,
            access,
        };
        ChannelGrant {
            page_offset: PAGE,
            host: vec![
                host(0x8000_0000, 0, 0x1000, Access::Read),
                host(0x8000_1000, 0x1000, 0x1000, Access::Write),
                host(u64::MAX - 0xfff, 0x2000, 0xff8, Access::ReadWrite),
            ],
            ipu: vec![
                IpuRange { offset: 0, bytes: 0x1000, access: Access::ReadWrite },
                IpuRange { offset: 0x4000, bytes: 0x2000, access: Access::Read },
            ],
        }
    }

    fn bounds(&self, channels: &[ChannelGrant]) -> Result<Bounds, GrantError> {
        check_pages(channels, WINDOW_BYTES)?;
        Bounds::new(channels, channels.len() - 1, &self.window, BYTES_MAX)
    }

    fn refusal(&self, change: impl FnOnce(&mut ChannelGrant)) -> GrantError {
        let mut channel = self.channel();
        change(&mut channel);
        self.bounds(&[channel]).expect_err("a bad grant was taken")
    }
}

const PULL: Descriptor = Descriptor {
    source: 0x8000_0000,
    destination: 0,
    bytes: 64,
    direction: Direction::HostToIpu,
    notify: None,
};

#[test]
fn each_fault_has_its_descriptor() {
    use Direction::IpuToHost;
    let table = table();
    let bounds = table.bounds(&[table.channel()]).unwrap();
    let push = Descriptor { source: 0x4000, destination: 0x8000_1000, direction: IpuToHost, ..PULL };
    for (descriptor, fault) in [
        (Descriptor { source: PULL.source + 4, ..PULL }, Fault::Alignment),
        (Descriptor { destination: 1, ..PULL }, Fault::Alignment),
        (Descriptor { bytes: 0, ..PULL }, Fault::Size),
        (Descriptor { bytes: 9, ..PULL }, Fault::Size),
        (Descriptor { bytes: BYTES_MAX + 8, ..PULL }, Fault::Size),
        (Descriptor { source: PULL.source - 8, ..PULL }, Fault::SourceBounds),
        (Descriptor { source: PULL.source + 0x1000 - 56, ..PULL }, Fault::SourceBounds),
        (Descriptor { source: 0x8000_1000, ..PULL }, Fault::SourceBounds),
        (Descriptor { source: u64::MAX - 7, ..PULL }, Fault::SourceBounds),
        (Descriptor { source: 0, ..PULL }, Fault::SourceBounds),
        (Descriptor { bytes: 0x1008, ..PULL }, Fault::SourceBounds),
        (Descriptor { destination: 0x1000 - 56, ..PULL }, Fault::DestinationBounds),
        (Descriptor { destination: 0x4000, ..PULL }, Fault::DestinationBounds),
        (Descriptor { destination: PAGE, ..PULL }, Fault::DestinationBounds),
        (Descriptor { destination: 0x8000_1000, ..PULL }, Fault::DestinationBounds),
        (Descriptor { destination: 0x8000_0000, ..push }, Fault::DestinationBounds),
        (Descriptor { source: 0x6000 - 56, ..push }, Fault::SourceBounds),
        (Descriptor { direction: IpuToHost, ..PULL }, Fault::SourceBounds),
    ] {
        assert_eq!(bounds.check(&descriptor).map(|_| ()), Err(fault), "{descriptor:x?}");
    }
    for good in [
        PULL,
        push,
        Descriptor { bytes: 0x1000, ..PULL },
        Descriptor { source: PULL.source + 0x1000 - 64, destination: 0x1000 - 64, ..PULL },
        Descriptor { source: u64::MAX - 0xfff, bytes: 0xff8, ..PULL },
    ] {
        assert!(bounds.check(&good).is_ok(), "{good:x?}");
    }
}

#[test]
fn memory_that_is_both_sides_must_not_overlap() {
    let table = table();
    let mut channel = table.channel();
    channel.host[0].memory = Arc::clone(&table.window);
    let bounds = table.bounds(&[channel]).unwrap();
    for (destination, fits) in [(0, false), (56, false), (64, true), (0x1000 - 64, true)] {
        let verdict = bounds.check(&Descriptor { destination, ..PULL }).map(|_| ());
        assert_eq!(verdict, if fits { Ok(()) } else { Err(Fault::Overlap) }, "{destination:#x}");
    }
}

#[test]
fn bad_grants_are_refused_by_name() {
    let table = table();
    for page_offset in [1, 0x800, WINDOW_BYTES, WINDOW_BYTES - 0x800, u64::MAX - 0xfff] {
        let error = table.refusal(|channel| channel.page_offset = page_offset);
        assert_eq!(error, GrantError::Page { channel: 0, page_offset });
    }
    let twins = [table.channel(), table.channel()];
    assert_eq!(table.bounds(&twins).unwrap_err(), GrantError::PageShared { channel: 1, page_offset: PAGE });

    let many = table.refusal(|channel| channel.ipu = vec![channel.ipu[0]; 62]);
    assert_eq!(many, GrantError::Ranges { channel: 0, ranges: 65 });

    for (offset, bytes) in
        [(0, 0), (4, 64), (0, 12), (WINDOW_BYTES - 64, 128), (u64::MAX - 7, 16), (0, u64::MAX - 7)]
    {
        let error = table.refusal(|channel| {
            channel.ipu = vec![IpuRange { offset, bytes, access: Access::Read }];
        });
        assert_eq!(error, GrantError::Range { channel: 0, space: Space::Ipu, base: offset, bytes });
    }
    let base = u64::MAX - 7;
    let wraps = table.refusal(|channel| (channel.host[0].iova, channel.host[0].bytes) = (base, 64));
    assert_eq!(wraps, GrantError::Range { channel: 0, space: Space::Host, base, bytes: 64 });
    assert!(matches!(table.refusal(|channel| channel.host[0].offset = 4), GrantError::Range { .. }));
    assert!(matches!(table.refusal(|channel| channel.host[0].offset = HOST_BYTES), GrantError::Range { .. }));

    let shared = table.refusal(|channel| channel.host[1].iova = 0x8000_0ff8);
    assert_eq!(shared, GrantError::IovaShared { channel: 0, iova: 0x8000_0ff8, bytes: 0x1000 });
}

#[test]
fn no_range_covers_any_channels_registers() {
    let table = table();
    let over = IpuRange { offset: PAGE - 8, bytes: 16, access: Access::Read };
    assert!(matches!(
        table.refusal(|channel| channel.ipu.push(over)),
        GrantError::Registers { channel: 0, .. }
    ));
    let through_the_host = |channel: &mut ChannelGrant| {
        (channel.host[0].memory, channel.host[0].offset) = (Arc::clone(&table.window), PAGE);
    };
    assert!(matches!(table.refusal(through_the_host), GrantError::Registers { space: Space::Host, .. }));
    // The neighbour's page is as forbidden as one's own.
    let neighbour = ChannelGrant { page_offset: 0x5000, host: vec![], ipu: vec![] };
    let error = table.bounds(&[neighbour, table.channel()]).unwrap_err();
    assert!(matches!(error, GrantError::Registers { channel: 1, base: 0x4000, .. }));
}

/// Numbers near where something changes, and any number.
fn address() -> impl Strategy<Value = u64> {
    let edges = prop::sample::select(vec![
        0,
        0x1000,
        0x4000,
        0x6000,
        PAGE,
        WINDOW_BYTES,
        0x8000_0000,
        0x8000_1000,
        0x8000_2000,
        u64::MAX - 0xfff,
        u64::MAX,
    ]);
    prop_oneof![
        4 => (edges, -0x900i64..0x900).prop_map(|(edge, by)| edge.wrapping_add_signed(by * 8)),
        1 => any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(crate::seed::cases(20_000))]

    /// What is allowed lies inside one range with the right that it needs, and nothing else is allowed.
    #[test]
    fn what_passes_is_inside_a_grant(
        source in address(),
        destination in address(),
        bytes in prop_oneof![(0u64..0x300).prop_map(|words| words * 8), any::<u64>()],
        pull in any::<bool>(),
    ) {
        let (window_inside, host_inside) = (
            |at: u128, bytes: u128, write: bool| {
                at + bytes <= 0x1000 || (!write && at >= 0x4000 && at + bytes <= 0x6000)
            },
            |at: u128, bytes: u128, write: bool| {
                let last = u128::from(u64::MAX - 0xfff);
                (!write && at >= 0x8000_0000 && at + bytes <= 0x8000_1000)
                    || (write && at >= 0x8000_1000 && at + bytes <= 0x8000_2000)
                    || (at >= last && at + bytes <= last + 0xff8)
            },
        );
        thread_local! {
            static TABLE: Table = table();
        }
        let direction = if pull { Direction::HostToIpu } else { Direction::IpuToHost };
        let descriptor = Descriptor { source, destination, bytes, direction, notify: None };
        let verdict = TABLE.with(|table| table.bounds(&[table.channel()]).unwrap().check(&descriptor));
        let (from, to, length) = (u128::from(source), u128::from(destination), u128::from(bytes));
        let allowed = source % 8 == 0
            && destination % 8 == 0
            && bytes % 8 == 0
            && (8..=BYTES_MAX).contains(&bytes)
            && if pull {
                host_inside(from, length, false) && window_inside(to, length, true)
            } else {
                window_inside(from, length, false) && host_inside(to, length, true)
            };
        prop_assert_eq!(verdict.is_ok(), allowed, "{:x?}: {:?}", descriptor, verdict);
        if let Ok(plan) = verdict {
            for place in [&plan.source, &plan.destination] {
                prop_assert!(place.offset + plan.bytes <= place.memory.bytes() as u64);
            }
        }
    }
}
