//! Whatever bytes the IPU writes: the driver refuses and reports, work goes on, and the next boot of the IPU is a good one.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use neap_abi::hello::{HELLO_BYTES, MAGIC};
use neap_abi::{AgentControl, AgentState, Layout, RegionKind, Tag, Txn, VERSION};
use neap_queue::SlotWriter;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Case;
use super::falls::{decided, work};
use super::ipu::USUAL;
use super::rig::{PATIENCE, Rig};

pub(super) const CASES: &[Case] = &[
    Case { name: "garbage_slots", about: "decision slots hold whole lines of random words", run: slots },
    Case { name: "garbage_control", about: "the control lines say what they like", run: control },
    Case { name: "garbage_hello", about: "the hello page lays out the window at random", run: hello },
    Case { name: "garbage_window", about: "the whole window holds random bytes", run: window },
];

const SEED: u64 = 0x6e65_6170_6761_7262;
/// How long each lasts.
const TIME: Duration = Duration::from_secs(3);

/// Has `scribble` write what it likes while work goes on; then all is well again.
fn survives(
    rig: &mut Rig,
    mute: bool,
    mut scribble: impl FnMut(&mut Rig, &mut ChaCha8Rng) -> Result<()>,
) -> Result<()> {
    let workers = work(rig)?;
    decided(rig, &workers)?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let attached = rig.attached();
    rig.ipus[0].mute = mute;
    let since = Instant::now();
    while since.elapsed() < TIME {
        scribble(rig, &mut random)?;
        rig.turn()?;
    }
    if !mute {
        // An agent whose slots others have written to may wait for ever for a verdict on what no CPU took for news.
        rig.ipus[0].end(AgentState::Dead)?;
        rig.ipus[0].start()?;
    }
    rig.until_work(&workers, 5).with_context(|| format!("under garbage of seed {SEED:#x}"))?;
    rig.ipus[0].mute = false;
    rig.ipus[0].fill(0)?;
    rig.boot_ipu(0, USUAL).with_context(|| format!("after garbage of seed {SEED:#x}"))?;
    let state = rig.read("/sys/kernel/sched_ext/state")?;
    if state.trim() != "enabled" {
        rig.until_attached(attached, PATIENCE)?;
    }
    decided(rig, &workers).with_context(|| format!("after garbage of seed {SEED:#x}"))
}

/// A whole line of random words; some of them near to what a decision may hold.
fn words(random: &mut ChaCha8Rng) -> [u64; 8] {
    let wild: [u64; 8] = std::array::from_fn(|_| random.next_u64() >> 8);
    let mut txn = Txn::from_payload(&wild);
    if random.random_range(0..4u32) != 0 {
        txn.operation = random.random_range(0..3);
        txn.cpu = random.random_range(0..5);
        txn.task = random.random_range(0..32);
        txn.incarnation = random.random_range(0..4);
        txn.flags.0 &= 127;
        txn.group %= 8;
        txn.group_size %= 6;
        txn.id &= 127;
    }
    txn.to_payload()
}

fn slots(rig: &mut Rig) -> Result<()> {
    survives(rig, false, |rig, random| {
        // An agent that can't be told from a good one decides so, restarted whenever it is seen through.
        let lines = rig.ipus[0].lines(RegionKind::Slots)?;
        for line in lines.iter().take(4) {
            let payload = words(random);
            let id = Txn::from_payload(&payload).id;
            let tag = if random.random_range(0..8u32) == 0 { random.random() } else { id };
            line.publish(&payload, Txn::tag(tag));
        }
        let cpu = random.random_range(0..4);
        rig.ipus[0].ring(cpu)?;
        std::thread::sleep(Duration::from_micros(300));
        Ok(())
    })
}

fn control(rig: &mut Rig) -> Result<()> {
    survives(rig, true, |rig, random| {
        for kind in [RegionKind::AgentControl, RegionKind::Supervisor] {
            for line in rig.ipus[0].lines(kind)?.iter().take(24) {
                let mut payload: [u64; 8] = std::array::from_fn(|_| random.next_u64() >> 8);
                if kind == RegionKind::AgentControl {
                    let states = AgentState::ALL;
                    let said = line.read_any().and_then(|(words, _)| AgentControl::from_payload(&words));
                    let session = said.map_or(0, |said| said.session);
                    let state = states[random.random_range(0..states.len())];
                    let wild = AgentControl::from_payload(&payload).unwrap_or(AgentControl::NOTHING);
                    let credits = if random.random() { wild.credits } else { 0 };
                    payload = AgentControl { state, session, version: VERSION, credits, ..wild }.to_payload();
                }
                SlotWriter::after(line).write(line, &payload, 3);
            }
        }
        std::thread::sleep(Duration::from_millis(3));
        Ok(())
    })
}

/// Writes bytes of the window.
fn put(rig: &Rig, at: usize, bytes: &[u8]) -> Result<()> {
    let mapping = rig.ipus[0].window().map()?;
    let region =
        mapping.claim().region(at as u64, bytes.len() as u64).map_err(|error| anyhow::anyhow!("{error}"))?;
    let to = region.slice::<AtomicU8>().map_err(|error| anyhow::anyhow!("{error}"))?;
    for (to, from) in to.iter().zip(bytes) {
        to.store(*from, Ordering::Relaxed);
    }
    Ok(())
}

fn hello(rig: &mut Rig) -> Result<()> {
    let mut boot = 1000;
    survives(rig, true, |rig, random| {
        boot += 1;
        let layout = Layout {
            cpus: random.random_range(0..300),
            tasks: 1 << random.random_range(0..20u32),
            message_lines: 1 << random.random_range(0..14u32),
            ..Layout::usual(16 << 20, random.random_range(0..20))
        };
        let mut page = [0; HELLO_BYTES];
        if let Ok(mut hello) = layout.hello(boot, random.random(), neap_abi::hello::Link::Pcie) {
            hello.version.minor = random.random_range(0..4);
            hello.write(&mut page);
        }
        // A few fields of it, under a checksum that holds.
        for _ in 0..random.random_range(0..4u32) {
            let at = random.random_range(8..1200usize);
            page[at] = random.random();
        }
        let crc = neap_abi::crc::crc32c(&page[..HELLO_BYTES - 4]);
        page[..8].copy_from_slice(&MAGIC.to_le_bytes());
        page[HELLO_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        put(rig, 0, &page)?;
        rig.go_on(Duration::from_millis(150))
    })
}

fn window(rig: &mut Rig) -> Result<()> {
    let mut turn = 0u32;
    survives(rig, true, |rig, random| {
        turn += 1;
        // What makes a window of it stays half of the time: then the rest is looked at.
        let from = if turn.is_multiple_of(2) { HELLO_BYTES } else { 0 };
        let mut bytes = vec![0; 1 << 20];
        random.fill_bytes(&mut bytes);
        if turn.is_multiple_of(3) {
            // Each line whole, under the tag of some lap.
            for line in bytes.chunks_exact_mut(64) {
                let tag = Tag::of_lap(random.random_range(0..300u32)).byte();
                line.iter_mut().skip(7).step_by(8).for_each(|byte| *byte = tag);
            }
        }
        put(rig, from, &bytes[from..])?;
        for cpu in 0..4 {
            rig.ipus[0].ring(cpu)?;
        }
        rig.go_on(Duration::from_millis(40))
    })?;
    ensure!(turn > 4, "expected: some turns; there were {turn}");
    Ok(())
}
