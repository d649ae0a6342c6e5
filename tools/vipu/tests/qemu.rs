//! A real QEMU as a peer, with no firmware: stores come by the qtest protocol, and its cores stand still.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use neap_hal::soc::dma::registers::{PAGE_BYTES, Registers};
use neap_hal::soc::dma::{Access, State, Status};
use neap_vipu::dma::{ChannelGrant, Engine, HostRange, IpuRange};
use neap_vipu::{Change, Domain, Event, LeaveReason, Peer, Server, Window};
use tempfile::TempDir;

/// How long anything may take before the test fails; nothing is measured against it.
const AMPLE: Duration = Duration::from_secs(60);
/// How long to wait for a doorbell before ringing again: QEMU may not have heard of its peer yet.
const AGAIN: Duration = Duration::from_millis(50);

/// Function 2.0 in the ECAM of `-M virt` with highmem, and where its BARs go.
const CONFIG: u64 = 0x40_1000_0000 + (2 << 15);
const BAR0: u64 = 0x1000_0000;
const BAR1: u64 = 0x1010_0000;
const BAR2: u64 = 0x80_0000_0000;
const IV_POSITION: u64 = BAR0 + 8;
const DOORBELL: u64 = BAR0 + 12;

/// A QEMU that does what it is told over a socket. Killed when dropped.
struct Qemu {
    child: Child,
    wire: BufReader<UnixStream>,
}

impl Qemu {
    fn start(place: &Path, socket: &Path, vectors: u16) -> Self {
        let control = place.join("qtest.sock");
        // From an earlier start, if any.
        let _ = std::fs::remove_file(&control);
        let listener = UnixListener::bind(&control).expect("a socket for qtest");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let mut child = Command::new("qemu-system-aarch64")
            .args(["-M", "virt", "-accel", "tcg", "-S", "-m", "128M", "-nodefaults", "-display", "none"])
            .arg("-qtest")
            .arg(format!("unix:{}", control.display()))
            .args(["-qtest-log", "/dev/null", "-chardev"])
            .arg(format!("socket,id=c0,path={}", socket.display()))
            .arg("-device")
            .arg(format!("ivshmem-doorbell,chardev=c0,vectors={vectors},addr=2.0,multifunction=on"))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-aarch64 is installed; `cargo xtask setup` does that");
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) => {
                    let ended = child.try_wait().expect("a child of ours");
                    assert!(ended.is_none(), "QEMU ended before it began: {ended:?}");
                    assert!(start.elapsed() < AMPLE, "QEMU did not connect to qtest");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        stream.set_nonblocking(false).expect("a socket that blocks");
        stream.set_read_timeout(Some(AMPLE)).expect("a socket with a limit");
        let mut qemu = Self { child, wire: BufReader::new(stream) };
        for (register, value) in
            [(0x10, BAR0), (0x14, BAR1), (0x18, BAR2 & 0xffff_ffff), (0x1c, BAR2 >> 32), (0x04, 6)]
        {
            qemu.store32(CONFIG + register, value);
        }
        qemu
    }

    fn tell(&mut self, command: &str) -> String {
        writeln!(self.wire.get_mut(), "{command}").expect("QEMU listens");
        loop {
            let mut line = String::new();
            assert_ne!(self.wire.read_line(&mut line).expect("QEMU answers"), 0, "QEMU hung up at {command}");
            // Interrupts are told on the same socket.
            if let Some(answer) = line.strip_prefix("OK") {
                return answer.trim().to_owned();
            }
            assert!(line.starts_with("IRQ"), "{command}: {line}");
        }
    }

    fn store32(&mut self, address: u64, value: u64) {
        self.tell(&format!("writel {address:#x} {value:#x}"));
    }

    fn store64(&mut self, address: u64, value: u64) {
        self.tell(&format!("writeq {address:#x} {value:#x}"));
    }

    fn load(&mut self, command: &str, address: u64) -> u64 {
        let answer = self.tell(&format!("{command} {address:#x}"));
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).expect("a number")
    }

    /// Rings `vector` of `peer` until it arrives: a doorbell for a peer that QEMU has not heard of yet is lost.
    fn ring_until(&mut self, peer: &Peer, vector: u16) {
        let start = Instant::now();
        loop {
            self.store32(DOORBELL, u64::from(peer.id()) << 16 | u64::from(vector));
            if peer.wait(vector, Some(AGAIN)).expect("an eventfd") > 0 {
                return;
            }
            assert!(start.elapsed() < AMPLE, "vector {vector} never arrived");
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct House {
    server: Server,
    window: Window,
    place: TempDir,
}

fn house(vectors: u16) -> House {
    let place = tempfile::Builder::new().prefix("neap-vipu-test-").tempdir().expect("a temporary directory");
    let window = Window::create_in(place.path(), "window", 1 << 20).expect("a window");
    let descriptor = window.descriptor().expect("a descriptor");
    let domain = Domain::new(place.path().join("domain.sock"), descriptor, vectors);
    let server = Server::start(vec![domain]).expect("a server");
    House { server, window, place }
}

impl House {
    fn join(&self, vectors: u16) -> Peer {
        Peer::connect(&self.place.path().join("domain.sock"), vectors, AMPLE).expect("a peer")
    }

    fn qemu(&self, vectors: u16) -> Qemu {
        Qemu::start(self.place.path(), &self.place.path().join("domain.sock"), vectors)
    }
}

#[test]
fn qemu_rings_every_vector_of_a_process() {
    for vectors in [1, 16, 256, 1024] {
        let house = house(vectors);
        let host = house.join(vectors);
        let mut qemu = house.qemu(vectors);
        assert_eq!(qemu.load("readl", IV_POSITION), 1);
        assert!(host.wait_peer(1, AMPLE).expect("a sane server"));
        // The last vector is the last that QEMU hears of.
        qemu.ring_until(&host, vectors - 1);
        let base = u64::from(host.id()) << 16;
        for vector in 0..vectors {
            qemu.store32(DOORBELL, base | u64::from(vector));
            assert_ne!(host.wait(vector, Some(AMPLE)), Ok(0), "vector {vector} of {vectors}");
        }
        // Nobody's doorbells reach nobody.
        for value in [base | u64::from(vectors), 9 << 16, u64::from(u32::MAX)] {
            qemu.store32(DOORBELL, value);
        }
        qemu.ring_until(&host, 0);
        for vector in 0..vectors {
            host.ring(1, vector).expect("QEMU's vectors are there");
        }
    }
}

#[test]
fn the_bar_is_the_window() {
    let house = house(2);
    let host = house.join(2);
    let mapping = host.map_window().expect("a mapping");
    let words = mapping.claim().whole().slice::<AtomicU64>().expect("whole words");
    let mut qemu = house.qemu(2);
    let last = house.window.bytes() - 8;
    qemu.store64(BAR2 + last, 0x0123_4567_89ab_cdef);
    assert_eq!(words[words.len() - 1].load(Relaxed), 0x0123_4567_89ab_cdef);
    words[1].store(42, Relaxed);
    assert_eq!(qemu.load("readq", BAR2 + 8), 42);
}

#[test]
fn a_killed_qemu_leaves_and_another_takes_its_place() {
    let house = house(4);
    let host = house.join(4);
    let qemu = house.qemu(4);
    assert!(host.wait_peer(1, AMPLE).expect("a sane server"));
    drop(qemu);
    let left = loop {
        match house.server.next_event(AMPLE).expect("an event") {
            Event::Joined { .. } => {}
            event => break event,
        }
    };
    assert_eq!(left, Event::Left { domain: 0, peer: 1, reason: LeaveReason::Closed });
    let mut successor = house.qemu(4);
    assert_eq!(successor.load("readl", IV_POSITION), 2);
    assert!(host.wait_peer(2, AMPLE).expect("a sane server"));
    assert_eq!(
        host.poll_changes().expect("a sane server"),
        [Change::Joined(1), Change::Left(1), Change::Joined(2)]
    );
    successor.ring_until(&host, 3);
}

#[test]
fn qemu_starts_the_engine() {
    let house = house(4);
    let host = house.join(4);
    let memory = Window::create_in(house.place.path(), "host", 1 << 16).expect("host memory");
    let memory = Arc::new(memory.map().expect("a mapping"));
    let page_offset = house.window.bytes() - PAGE_BYTES as u64;
    let grant = ChannelGrant {
        page_offset,
        host: vec![HostRange {
            iova: 0x10_0000,
            memory: Arc::clone(&memory),
            offset: 0,
            bytes: 1 << 16,
            access: Access::Read,
        }],
        ipu: vec![IpuRange { offset: 0, bytes: 1 << 16, access: Access::Write }],
    };
    let _engine = Engine::start(house.join(4), vec![grant]).expect("an engine");
    memory.claim().whole().slice::<AtomicU64>().expect("words")[2].store(0xfeed, Relaxed);

    let mut qemu = house.qemu(4);
    let page = BAR2 + page_offset;
    // All that firmware knows is where the page is.
    let engine_peer = qemu.load("readl", page + 0x0c);
    let channel = qemu.load("readl", page + 0x10);
    let notify = u64::from(host.id()) << 16 | 3;
    for (register, value) in
        [(0x80, 0x10_0000), (0x88, 0x40), (0x90, 64), (0x98, 2 << 32 | 1), (0xa0, 1 << 32 | notify)]
    {
        qemu.store64(page + register, value);
    }
    let start = Instant::now();
    loop {
        // A second doorbell for one ticket does nothing.
        qemu.store32(DOORBELL, engine_peer << 16 | channel);
        if host.wait(3, Some(AGAIN)).expect("an eventfd") > 0 {
            break;
        }
        assert!(start.elapsed() < AMPLE, "the engine never rang back");
    }
    let status = Status::from_bits(qemu.load("readq", page + 0x40));
    assert_eq!(status, Some(Status { ticket: 1, state: State::Done }));
    assert_eq!(qemu.load("readq", page + 0x48), 64);
    assert_eq!(qemu.load("readq", BAR2 + 0x50), 0xfeed);
    let window = host.map_window().expect("a mapping");
    let registers: &Registers =
        window.claim().region(page_offset, PAGE_BYTES as u64).unwrap().item().unwrap();
    assert_eq!(registers.descriptor().0, 1);
}
