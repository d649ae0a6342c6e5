//! The card's DMA driver against the engine's model, over a window and a domain as the card has them.

mod seed;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use embedded_hal::delay::DelayNs;
use neap_hal::soc::dma::registers::{CONTROL_ABORT, CONTROL_NOTIFY, PAGE_BYTES, Registers};
use neap_hal::soc::dma::{
    Access, Channel, Completion, Descriptor, Direction, Dma, DmaError, Fault, Grant, Identity, Space, State,
    Status,
};
use neap_hal::soc::msix::Ring;
use neap_vipu::dma::{BYTES_MAX, ChannelGrant, Engine, EngineError, GrantError, HostRange, IpuRange};
use neap_vipu::{Domain, Mapping, Peer, Server, Window};
use proptest::prelude::*;
use tempfile::TempDir;

/// How long anything may take before the test fails; nothing is measured against it.
const AMPLE: Duration = Duration::from_secs(60);
/// The same for a driver's wait: looks, with [`Nap`] between.
const POLLS_AMPLE: u32 = 600_000;

const VECTORS: u16 = 4;
const WINDOW_BYTES: u64 = 8 << 20;
const HOST_BYTES: u64 = 8 << 20;
/// Register pages of channels 0 and 1, at the window's end.
const PAGES: [u64; 2] = [WINDOW_BYTES - 4096, WINDOW_BYTES - 8192];
const IOVA: [u64; 2] = [0x8000_0000, 0xffff_ffff_0000_0000];

/// A domain with an engine of two channels, each with half of the host's memory and its own part of the window.
struct House {
    engine: Engine,
    driver: Arc<Peer>,
    window: Mapping,
    host: Arc<Mapping>,
    _server: Server,
    _place: TempDir,
}

fn socket(place: &TempDir) -> PathBuf {
    place.path().join("domain.sock")
}

fn range(host: &Arc<Mapping>, channel: usize) -> HostRange {
    HostRange {
        iova: IOVA[channel],
        memory: Arc::clone(host),
        offset: channel as u64 * HOST_BYTES / 2,
        bytes: HOST_BYTES / 2,
        access: Access::ReadWrite,
    }
}

fn part(channel: usize) -> IpuRange {
    IpuRange { offset: channel as u64 * (3 << 20), bytes: 3 << 20, access: Access::ReadWrite }
}

fn house() -> House {
    let place = tempfile::Builder::new().prefix("neap-vipu-test-").tempdir().expect("a temporary directory");
    let window = Window::create_in(place.path(), "window", WINDOW_BYTES).expect("a window");
    let host = Window::create_in(place.path(), "host", HOST_BYTES).expect("host memory");
    let host = Arc::new(host.map().expect("a mapping"));
    let domain = Domain::new(socket(&place), window.descriptor().expect("a descriptor"), VECTORS);
    let server = Server::start(vec![domain]).expect("a server");
    let join = || Peer::connect(&socket(&place), VECTORS, AMPLE).expect("a peer");
    let driver = join();
    let channels = (0..2)
        .map(|index| ChannelGrant {
            page_offset: PAGES[index],
            host: vec![range(&host, index)],
            ipu: vec![part(index)],
        })
        .collect();
    let engine = Engine::start(join(), channels).expect("an engine");
    assert!(driver.wait_peer(engine.peer(), AMPLE).expect("a sane server"));
    let window = driver.map_window().expect("a mapping");
    House { engine, driver: Arc::new(driver), window, host, _server: server, _place: place }
}

/// Waits as a core does between two looks, without burning the machine's.
struct Nap;

impl DelayNs for Nap {
    fn delay_ns(&mut self, ns: u32) {
        std::thread::sleep(Duration::from_nanos(ns.into()));
    }
}

impl House {
    fn registers(&self, channel: usize) -> &Registers {
        let page = self.window.claim().region(PAGES[channel], PAGE_BYTES as u64).expect("inside");
        page.item().expect("a page")
    }

    /// Rings as the Doorbell register would: with what the page says.
    fn ring(&self, channel: usize) -> impl Ring + use<> {
        let identity = Identity::read(self.registers(channel)).expect("a served page");
        let driver = Arc::clone(&self.driver);
        move || driver.ring(identity.engine_peer, identity.channel).expect("the engine is there")
    }

    fn channel(&self, channel: usize) -> Channel<'_, impl Ring + use<>> {
        Channel::open(self.registers(channel), self.ring(channel)).expect("a served page")
    }

    fn words(mapping: &Mapping, offset: u64, words: usize) -> &[AtomicU64] {
        let region = mapping.claim().region(offset, words as u64 * 8).expect("inside");
        region.slice().expect("whole words")
    }

    /// Waits for the engine's word on `ticket`.
    fn verdict(&self, channel: usize, ticket: u32) -> State {
        for _ in 0..POLLS_AMPLE {
            let bits = self.registers(channel).status.load(Relaxed);
            match Status::from_bits(bits).expect("the engine's words mean something") {
                Status { ticket: at, state } if at == ticket && state != State::Busy => return state,
                _ => Nap.delay_us(100),
            }
        }
        panic!("the engine did not answer ticket {ticket}");
    }
}

fn wait(channel: &mut Channel<'_, impl Ring>) -> Result<Completion, DmaError> {
    channel.wait(&mut Nap, 100_000, POLLS_AMPLE)
}

/// What word `index` of a pattern is: no two alike.
fn mark(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn pull(bytes: u64) -> Descriptor {
    let (source, destination) = (IOVA[0], 0);
    Descriptor { source, destination, bytes, direction: Direction::HostToIpu, notify: None }
}

#[test]
fn the_page_tells_all_that_a_driver_needs() {
    let house = house();
    for (index, iova) in IOVA.into_iter().enumerate() {
        let channel = house.channel(index);
        let engine_peer = house.engine.peer();
        let identity = Identity { engine_peer, channel: index as u16, grants: 2, bytes_max: BYTES_MAX };
        assert_eq!(channel.identity(), identity);
        let access = Access::ReadWrite;
        let grants = [
            Grant { base: iova, bytes: HOST_BYTES / 2, space: Space::Host, access },
            Grant { base: part(index).offset, bytes: 3 << 20, space: Space::Ipu, access },
        ];
        assert_eq!(channel.grants().collect::<Vec<_>>(), grants);
    }
}

#[test]
fn bytes_go_both_ways_and_nowhere_else() {
    let house = house();
    let mut channel = house.channel(0);
    let words = 40_001;
    let bytes = words as u64 * 8;
    for (index, word) in House::words(&house.host, 64, words).iter().enumerate() {
        word.store(mark(index), Relaxed);
    }
    channel.start(&Descriptor { source: IOVA[0] + 64, destination: 128, ..pull(bytes) }).unwrap();
    assert_eq!(wait(&mut channel), Ok(Completion { moved_bytes: bytes }));

    let back = Descriptor {
        source: 128,
        destination: IOVA[0] + (1 << 20),
        bytes,
        direction: Direction::IpuToHost,
        notify: None,
    };
    channel.start(&back).unwrap();
    assert_eq!(wait(&mut channel), Ok(Completion { moved_bytes: bytes }));

    for (mapping, offset) in [(&house.window, 128), (&*house.host, 1 << 20)] {
        let moved = House::words(mapping, offset - 8, words + 2);
        assert_eq!(moved[0].load(Relaxed), 0, "the word before");
        assert_eq!(moved[words + 1].load(Relaxed), 0, "the word after");
        for (index, word) in moved[1..=words].iter().enumerate() {
            assert_eq!(word.load(Relaxed), mark(index), "word {index} at {offset:#x}");
        }
    }
}

#[test]
fn a_transfer_can_end_with_a_ring() {
    let house = house();
    let mut channel = house.channel(1);
    let (source, destination) = (IOVA[1], part(1).offset);
    for (vector, notify) in [(3, Some((house.driver.id(), 3))), (0, Some((house.driver.id(), 0)))] {
        channel.start(&Descriptor { source, destination, notify, ..pull(8) }).unwrap();
        assert_eq!(house.driver.wait(vector, Some(AMPLE)), Ok(1));
        assert_eq!(
            channel.poll(),
            Ok(Some(Completion { moved_bytes: 8 })),
            "the status is there before the ring"
        );
    }
    for nobody in [(house.driver.id(), VECTORS), (17, 0), (u16::MAX, u16::MAX)] {
        channel.start(&Descriptor { source, destination, notify: Some(nobody), ..pull(8) }).unwrap();
        let fault = DmaError::Fault { fault: Fault::NotifyUnknown, moved_bytes: 0 };
        assert_eq!(wait(&mut channel), Err(fault), "{nobody:?}");
    }
}

#[test]
fn a_channel_reaches_its_own_grants_only() {
    let house = house();
    let secret = House::words(&house.host, HOST_BYTES / 2, 8);
    secret.iter().for_each(|word| word.store(0x5ec2e7, Relaxed));
    let mut channel = house.channel(0);
    for (descriptor, fault) in [
        (Descriptor { source: IOVA[1], ..pull(64) }, Fault::SourceBounds),
        (Descriptor { source: IOVA[0] + HOST_BYTES / 2 - 56, ..pull(64) }, Fault::SourceBounds),
        (Descriptor { source: IOVA[0] - 8, ..pull(64) }, Fault::SourceBounds),
        (Descriptor { destination: part(1).offset, ..pull(64) }, Fault::DestinationBounds),
        (Descriptor { destination: part(1).offset - 56, ..pull(64) }, Fault::DestinationBounds),
        (Descriptor { destination: PAGES[0], ..pull(64) }, Fault::DestinationBounds),
        (Descriptor { destination: PAGES[1], ..pull(64) }, Fault::DestinationBounds),
        (Descriptor { destination: u64::MAX - 7, ..pull(64) }, Fault::DestinationBounds),
    ] {
        channel.start(&descriptor).unwrap();
        assert_eq!(wait(&mut channel), Err(DmaError::Fault { fault, moved_bytes: 0 }), "{descriptor:x?}");
    }
    // What the page says was granted is for reading: to write there grants nothing.
    let entry = &house.registers(0).grant_table[0];
    entry.store(&Grant { base: 0, bytes: u64::MAX, space: Space::Host, access: Access::ReadWrite });
    channel.start(&Descriptor { source: IOVA[1], ..pull(64) }).unwrap();
    let refused = DmaError::Fault { fault: Fault::SourceBounds, moved_bytes: 0 };
    assert_eq!(wait(&mut channel), Err(refused));

    let untouched = House::words(&house.window, 0, (6 << 20) / 8);
    assert!(untouched.iter().all(|word| word.load(Relaxed) == 0), "nothing moved");
    channel.start(&pull(64)).expect("a fault does not end the channel");
    assert_eq!(wait(&mut channel), Ok(Completion { moved_bytes: 64 }));
}

#[test]
fn channels_go_side_by_side() {
    let house = house();
    let mut channels = [house.channel(0), house.channel(1)];
    let bytes = 2 << 20;
    for round in 0..4u64 {
        for (index, channel) in channels.iter_mut().enumerate() {
            let mark = round * 2 + index as u64 + 1;
            let source = House::words(&house.host, index as u64 * HOST_BYTES / 2, bytes as usize / 8);
            source.iter().for_each(|word| word.store(mark, Relaxed));
            let (source, destination) = (IOVA[index], part(index).offset);
            channel.start(&Descriptor { source, destination, ..pull(bytes) }).unwrap();
        }
        for (index, channel) in channels.iter_mut().enumerate() {
            let mark = round * 2 + index as u64 + 1;
            assert_eq!(wait(channel), Ok(Completion { moved_bytes: bytes }));
            let moved = House::words(&house.window, part(index).offset, bytes as usize / 8);
            assert!(moved.iter().all(|word| word.load(Relaxed) == mark), "channel {index}, round {round}");
        }
    }
}

#[test]
fn an_abort_ends_a_transfer_or_comes_too_late() {
    let house = house();
    let mut channel = house.channel(0);
    for _ in 0..50 {
        channel.start(&pull(3 << 20)).unwrap();
        channel.abort().unwrap();
        match wait(&mut channel) {
            Ok(Completion { moved_bytes }) => assert_eq!(moved_bytes, 3 << 20),
            Err(DmaError::Fault { fault: Fault::Aborted, moved_bytes }) => assert!(moved_bytes < 3 << 20),
            Err(other) => panic!("{other}"),
        }
    }
    // One that is asked for before the start never starts.
    let registers = house.registers(0);
    let ticket = registers.ticket.load(Relaxed).wrapping_add(1);
    registers.request(ticket, &pull(64));
    registers.request_abort();
    house.ring(0).ring();
    assert_eq!(house.verdict(0, ticket), State::Failed(Fault::Aborted));
    assert_eq!(registers.moved_bytes.load(Relaxed), 0);
}

#[test]
fn a_doorbell_without_a_new_ticket_does_nothing() {
    let house = house();
    let mut channel = house.channel(0);
    let mut ring = house.ring(0);
    for _ in 0..100 {
        ring.ring();
    }
    channel.start(&pull(64)).unwrap();
    assert_eq!(wait(&mut channel), Ok(Completion { moved_bytes: 64 }));
    let before = house.registers(0).status.load(Relaxed);
    House::words(&house.host, 0, 1)[0].store(9, Relaxed);
    ring.ring();
    // The other channel's end shows that the engine looked: it takes its doorbells in order of channel.
    let mut other = house.channel(1);
    other.start(&Descriptor { source: IOVA[1], destination: part(1).offset, ..pull(8) }).unwrap();
    assert!(wait(&mut other).is_ok());
    assert_eq!(house.registers(0).status.load(Relaxed), before);
    assert_eq!(House::words(&house.window, 0, 1)[0].load(Relaxed), 0, "not moved again");
}

#[test]
fn an_engine_that_stops_says_so() {
    let House { engine, driver, window, _server, .. } = house();
    drop(engine);
    let page = window.claim().region(PAGES[0], PAGE_BYTES as u64).unwrap();
    let error = Identity::read(page.item().unwrap()).unwrap_err();
    assert_eq!(error, DmaError::Absent { magic: 0 });
    drop(driver);
}

#[test]
fn doorbells_outlive_the_server() {
    let House { engine, driver, window, host, _server, _place } = house();
    drop(_server);
    let place = tempfile::tempdir().expect("a directory");
    let server = Server::start(vec![]).expect("a server of nothing");
    let house = House { engine, driver, window, host, _server: server, _place: place };
    let mut channel = house.channel(0);
    channel.start(&pull(64)).unwrap();
    assert_eq!(wait(&mut channel), Ok(Completion { moved_bytes: 64 }));
}

#[test]
fn an_engine_takes_good_grants_only() {
    let house = house();
    let join = || {
        let socket = socket(&house._place);
        Peer::connect(&socket, VECTORS, AMPLE).expect("a peer")
    };
    let channel = |page_offset| ChannelGrant { page_offset, host: vec![], ipu: vec![] };
    let many = (0..5).map(|index| channel(index * 4096)).collect();
    assert!(matches!(
        Engine::start(join(), many),
        Err(EngineError::Channels { channels: 5, vectors: VECTORS })
    ));
    let odd = Engine::start(join(), vec![channel(64)]);
    assert!(matches!(odd, Err(EngineError::Grant(GrantError::Page { channel: 0, page_offset: 64 }))));
}

proptest! {
    #![proptest_config(seed::cases(8))]

    /// Garbage in every register that a driver can reach gives a fault and moves nothing outside the grants.
    #[test]
    fn garbage_in_every_register_is_a_fault(
        descriptors in prop::collection::vec((any::<[u64; 3]>(), any::<[u32; 3]>(), any::<bool>(), any::<[u64; 8]>()), 1..100)
    ) {
        let house = house();
        let guard = House::words(&house.host, HOST_BYTES / 2, 1 << 10);
        guard.iter().for_each(|word| word.store(0x5ec2e7, Relaxed));
        let registers = house.registers(0);
        let mut ring = house.ring(0);
        let mut ticket = 0u32;
        for ([source, destination, bytes], [direction, control, notify], tame, scribble) in descriptors {
            // Half of them are nearly right, so that they get past the first check.
            let shape = |value: u64, base: u64, mask: u64| if tame { base.wrapping_add(value & mask) } else { value };
            registers.source.store(shape(source, IOVA[0], 0x7f_ffff), Relaxed);
            registers.destination.store(shape(destination, 0, 0x7f_fff8), Relaxed);
            registers.bytes.store(shape(bytes, 0, 0xffff), Relaxed);
            registers.direction.store(if tame { direction % 4 } else { direction }, Relaxed);
            registers.control.store(if tame { control & (CONTROL_ABORT | CONTROL_NOTIFY) } else { control }, Relaxed);
            registers.notify.store(notify, Relaxed);
            // What the engine wrote is not what it reads.
            // No status that the engine would write: its upper half is not zero.
            registers.status.store(scribble[0] | 1 << 63, Relaxed);
            registers.moved_bytes.store(scribble[1], Relaxed);
            registers.magic.store(scribble[2], Relaxed);
            registers.engine_peer.store(scribble[3] as u32, Relaxed);
            registers.grants.store(scribble[4] as u32, Relaxed);
            registers.bytes_max.store(scribble[5], Relaxed);
            registers.grant_table[0].base.store(scribble[6], Relaxed);
            registers.grant_table[0].bytes.store(scribble[7], Relaxed);
            ticket = ticket.wrapping_add(scribble[0] as u32 | 1);
            registers.ticket.store(ticket, Relaxed);
            ring.ring();
            // Until the engine has spoken the status is the scribble, which may mean nothing.
            let mut looks = 0;
            let state = loop {
                match Status::from_bits(registers.status.load(Relaxed)) {
                    Some(Status { ticket: at, state }) if at == ticket && state != State::Busy && state != State::Idle => break state,
                    _ => Nap.delay_us(20),
                }
                looks += 1;
                prop_assert!(looks < POLLS_AMPLE, "the engine did not answer");
            };
            let fits = |at: u64, base: u64, length: u64| at >= base && at - base <= length && bytes_fit(at - base, registers.bytes.load(Relaxed), length);
            if state == State::Done {
                let (from, to) = (registers.source.load(Relaxed), registers.destination.load(Relaxed));
                let (host, ipu) = if registers.direction.load(Relaxed) == 1 { (from, to) } else { (to, from) };
                prop_assert!(fits(host, IOVA[0], HOST_BYTES / 2) && fits(ipu, 0, 3 << 20));
            }
        }
        prop_assert!(guard.iter().all(|word| word.load(Relaxed) == 0x5ec2e7), "the neighbour's memory");
        let theirs = House::words(&house.window, part(1).offset, (3 << 20) / 8);
        prop_assert!(theirs.iter().all(|word| word.load(Relaxed) == 0), "the neighbour's part of the window");
        // The engine lives, and its other channel with it.
        let mut other = house.channel(1);
        other.start(&Descriptor { source: IOVA[1], destination: part(1).offset, ..pull(64) }).unwrap();
        prop_assert_eq!(wait(&mut other), Ok(Completion { moved_bytes: 64 }));
    }
}

fn bytes_fit(offset: u64, bytes: u64, length: u64) -> bool {
    offset.checked_add(bytes).is_some_and(|end| end <= length)
}
