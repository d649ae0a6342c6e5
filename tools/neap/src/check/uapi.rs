//! The driver's uAPI under hostile arguments. Whatever a caller hands over, the driver refuses by name or does what was asked;
//! the kernel's log, at which the caller of this looks afterwards, stays clean.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use neap_abi::hello::HELLO_BYTES;
use neap_abi::{Manage, RegionKind, Reply};
use neap_host::device::{Device, DeviceError, Measured};
use rustix::io::Errno;

use super::Checks;
use super::raw::{Ended, Map, Use, in_child, ioctl};
use crate::bench::{Place, stay_on};

const PAGE: usize = 4096;
/// `_IOWR('N', …)` with the structures' sizes.
const INFO: u32 = command(0x40, 64);
const MANAGE: u32 = command(0x41, 48);
const SETTINGS: u32 = command(0x42, 24);
const MEASURE: u32 = command(0x43, 24);
/// How long a function may take to be attached again.
const ATTACH: Duration = Duration::from_secs(30);

const fn command(number: u32, bytes: u32) -> u32 {
    3 << 30 | bytes << 16 | (b'N' as u32) << 8 | number
}

/// Words of a page that a structure is written to.
struct Page(Map);

impl Page {
    fn new(words: &[u32]) -> Result<Self> {
        let page = Self(Map::new(None, 0, PAGE, Use::Write).context("a page of memory")?);
        for (at, pair) in words.chunks(2).enumerate() {
            let high = pair.get(1).copied().unwrap_or(0);
            page.0.set_word(8 * at, u64::from(high) << 32 | u64::from(pair[0]));
        }
        Ok(page)
    }

    fn word(&self, at: usize) -> u32 {
        (self.0.word(4 * at / 8 * 8) >> (32 * (at % 2))) as u32
    }
}

/// What an ioctl on a page of `words` gives.
fn ask(file: &File, command: u32, words: &[u32]) -> Result<Result<i32, Errno>> {
    Ok(ioctl(file, command, Page::new(words)?.0.address()))
}

/// Checks it.
pub fn uapi(device: Option<&Path>) -> Result<()> {
    let path = super::path(device);
    let device = Device::open(&path)?;
    let file = File::options().read(true).write(true).open(&path)?;
    ensure!(device.info()?.link == 1, "no agent has answered behind {}", path.display());
    let mut checks = Checks::default();
    structures(&mut checks, &file)?;
    commands(&mut checks, &file)?;
    measuring(&mut checks, &device, &file)?;
    settings(&mut checks, &file)?;
    managing(&mut checks, &file)?;
    mappings(&mut checks, &device, &file)?;
    at_once(&mut checks, &path)?;
    departure(&mut checks, &path)?;
    checks.end()
}

fn structures(checks: &mut Checks, file: &File) -> Result<()> {
    for (name, command, first) in
        [("info", INFO, 64u32), ("manage", MANAGE, 48), ("settings", SETTINGS, 24), ("measure", MEASURE, 24)]
    {
        for size in [0, 3, first - 1, PAGE as u32 + 1, 0x8000_0000, u32::MAX] {
            checks.is(
                format!("{name} of {size} bytes"),
                &ask(file, command, &[size])?,
                &Err(Errno::INVAL),
            )?;
        }
        for address in [0, 1, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, usize::MAX - 3, usize::MAX - 63] {
            let found = ioctl(file, command, address);
            checks.is(format!("{name} at {address:#x}"), &found, &Err(Errno::FAULT))?;
        }
        let pages = Map::new(None, 0, 2 * PAGE, Use::Write)?;
        pages.punch(1);
        pages.set_word(PAGE - 8, u64::from(first) << 32);
        let found = ioctl(file, command, pages.address() + PAGE - 4);
        checks.is(format!("{name} across a page's end"), &found, &Err(Errno::FAULT))?;
        let found = ioctl(file, command, pages.address() + PAGE - 2);
        checks.is(format!("{name} whose size is across a page's end"), &found, &Err(Errno::FAULT))?;
    }
    // A caller that knows more is told what there is, and the rest is left.
    let page = Page::new(&[PAGE as u32])?;
    page.0.set_word(64, 0x1234_5678_9abc_def0);
    checks.is("info of a newer caller", &ioctl(file, INFO, page.0.address()), &Ok(0))?;
    checks.is("its version", &page.word(1), &1)?;
    checks.is("what the driver does not know", &page.0.word(64), &0x1234_5678_9abc_def0)?;
    let zero = File::open("/dev/zero")?;
    let unwritable = Map::new(Some(&zero), 0, PAGE, Use::Read)?;
    checks.is(
        "info in memory of zeros that can't be written",
        &ioctl(file, INFO, unwritable.address()),
        &Err(Errno::INVAL),
    )
}

fn commands(checks: &mut Checks, file: &File) -> Result<()> {
    let page = Page::new(&[64])?;
    let with_bits = |command: u32, bits: u32| command & !(3 << 30) | bits << 30;
    for (name, command) in [
        ("of number 0", command(0, 64)),
        ("of number 0x3f", command(0x3f, 64)),
        ("of number 0x44", command(0x44, 64)),
        ("of number 0xff", command(0xff, 64)),
        ("of another letter", INFO & !0xff00 | u32::from(b'M') << 8),
        ("without a size", INFO & !(0x3fff << 16)),
        ("of three bytes", command(0x40, 3)),
        ("without a direction", with_bits(INFO, 0)),
        ("that only reads", with_bits(INFO, 2)),
        ("that only writes", with_bits(INFO, 1)),
        ("of all ones", u32::MAX),
    ] {
        let found = ioctl(file, command, page.0.address());
        checks.is(format!("a command {name}"), &found, &Err(Errno::NOTTY))?;
    }
    for bytes in [4, 8, 0x3fff] {
        let found = ioctl(file, command(0x40, bytes), page.0.address());
        checks.is(format!("info by a command of {bytes} bytes"), &found, &Ok(0))?;
    }
    let mut plain = file;
    let kind = |done: io::Result<usize>| done.err().and_then(|error| Errno::from_io_error(&error));
    checks.is("a plain read", &kind(plain.read(&mut [0; 8])), &Some(Errno::INVAL))?;
    checks.is("a plain write", &kind(plain.write(&[0; 8])), &Some(Errno::INVAL))
}

fn measuring(checks: &mut Checks, device: &Device, file: &File) -> Result<()> {
    let samples = Map::new(None, 0, 65_536 * 8, Use::Write)?;
    let of =
        |what: u32, count: u32, samples: u64| [24, what, count, 0, samples as u32, (samples >> 32) as u32];
    let to = samples.address() as u64;
    for count in [0, 65_537, 0x8000_0000, u32::MAX] {
        let found = ask(file, MEASURE, &of(8, count, to))?;
        checks.is(format!("{count} samples"), &found, &Err(Errno::INVAL))?;
    }
    for what in [9, 0x100, u32::MAX] {
        let found = ask(file, MEASURE, &of(what, 1, to))?;
        checks.is(format!("measuring number {what}"), &found, &Err(Errno::INVAL))?;
    }
    for address in [0, 4096, 0xffff_8000_0000_0000, u64::MAX - 7] {
        let found = ask(file, MEASURE, &of(8, 2, address))?;
        checks.is(format!("samples to {address:#x}"), &found, &Err(Errno::FAULT))?;
    }
    checks.is("samples to an odd address", &ask(file, MEASURE, &of(8, 100, to + 3))?, &Ok(0))?;
    checks.is("as many samples as there can be", &ask(file, MEASURE, &of(8, 65_536, to))?, &Ok(0))?;
    let decided = |device: &Device| device.info().map(|info| (info.level, info.fault));
    let before = decided(device)?;
    let cpus = device.info()?.cpus as usize;
    for (name, what, count) in [
        ("read_uncached", Measured::ReadUncached, 1000),
        ("read_write_through", Measured::ReadWriteThrough, 1000),
        ("read_cached", Measured::ReadCached, 1000),
        ("write_uncached", Measured::WriteUncached, 1000),
        ("write_combining", Measured::WriteCombining, 1000),
        // More than an agent could ring without being taken for one that floods.
        ("msix_send", Measured::MsixSend, 6000),
        ("msix_receive", Measured::MsixReceive, 200),
        ("msix_end_to_end", Measured::MsixEndToEnd, 200),
    ] {
        for cpu in 0..cpus {
            stay_on(cpu)?;
            let taken = device.measure(what, count).map(|samples| samples.len() as u32);
            let found = taken.map_err(|error| error.to_string());
            checks.is(format!("{name} on CPU {cpu}"), &found, &Ok(count))?;
        }
    }
    checks.is("who decides after it, and the last fault", &decided(device)?, &before)
}

fn settings(checks: &mut Checks, file: &File) -> Result<()> {
    for (name, words) in [
        ("attach_anew of 2", [24, 0, 0, 2, 0, 0]),
        ("attach_anew of all ones", [24, 0, 0, u32::MAX, 0, 0]),
        ("what is reserved", [24, 0, 0, 0, 0, 1]),
    ] {
        checks.is(format!("settings with {name}"), &ask(file, SETTINGS, &words)?, &Err(Errno::INVAL))?;
    }
    checks.is("settings that leave all", &ask(file, SETTINGS, &[24])?, &Ok(0))
}

fn managing(checks: &mut Checks, file: &File) -> Result<()> {
    for command in [0, 4, 5, 6, 11, 255, 257, u32::MAX] {
        let found = ask(file, MANAGE, &[48, command, 0, 0, 0, 0, 0, 1000])?;
        checks.is(format!("management command {command}"), &found, &Err(Errno::INVAL))?;
    }
    let (load, replace, audit) = (Manage::Load as u32, Manage::Replace as u32, Manage::Audit as u32);
    let reply_of = |words: &[u32]| -> Result<(Result<i32, Errno>, Option<Reply>)> {
        let page = Page::new(words)?;
        let done = ioctl(file, MANAGE, page.0.address());
        Ok((done, Reply::ALL.get(page.word(8) as usize).copied()))
    };
    for bytes in [1, 4096, 0x7fff_ffff, u32::MAX] {
        let found = reply_of(&[48, load, 0, bytes, 0, 0, 0, 10_000])?;
        let expected = (Ok(0), Some(Reply::RefusedImage));
        checks.is(format!("an image of {bytes} bytes that is none"), &found, &expected)?;
    }
    let nobody = u32::from_le_bytes(*b"none");
    let found = reply_of(&[48, load, nobody, 0, 0, 0, 0, 10_000])?;
    checks.is("loading a policy that is not there", &found, &(Ok(0), Some(Reply::NoPolicy)))?;
    let found = reply_of(&[48, replace, nobody, 0, 0, 0, 1000, 10_000])?;
    checks.is("replacing by a policy that is not there", &found, &(Ok(0), Some(Reply::NoPolicy)))?;
    for (what, command) in [("reading", Manage::ReadDisk), ("writing", Manage::WriteDisk)] {
        let found = reply_of(&[48, command as u32, 0, 512, 0, 0, 0, 10_000])?;
        let what = format!("{what} the disk of a card that has none");
        checks.is(what, &found, &(Ok(0), Some(Reply::NoDisk)))?;
    }
    checks.is("an audit", &reply_of(&[48, audit, 0, 0, 0, 0, 0, 20_000])?, &(Ok(0), Some(Reply::Done)))?;
    let (done, reply) = reply_of(&[48, audit, 0, 0, 0, 0, 0, 0])?;
    let sound = done == Err(Errno::TIMEDOUT) || (done, reply) == (Ok(0), Some(Reply::Done));
    checks.note("an audit without a wait", (!sound).then(|| format!("{done:?}, {reply:?}")))?;
    // What it was asked is answered before the next is asked.
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn mappings(checks: &mut Checks, device: &Device, file: &File) -> Result<()> {
    let hello = device.window()?.hello()?;
    let window = device.info()?.window_bytes;
    let map = |offset: u64, bytes: usize, how: Use| Map::new(Some(file), offset, bytes, how).map(drop);
    let page = HELLO_BYTES;
    checks.is("the hello page, read", &map(0, page, Use::Read), &Ok(()))?;
    checks.is("the hello page, written", &map(0, page, Use::Write), &Err(Errno::PERM))?;
    checks.is("the hello page and what follows", &map(0, 2 * page, Use::Read), &Err(Errno::PERM))?;
    checks.is("the whole window", &map(0, usize::try_from(window)?, Use::Read), &Err(Errno::PERM))?;
    checks.is("a page behind the window", &map(window, page, Use::Read), &Err(Errno::PERM))?;
    checks.is(
        "the window's last page and one more",
        &map(window - 4096, 2 * page, Use::Read),
        &Err(Errno::PERM),
    )?;
    for offset in [1 << 40, 1 << 62, i64::MAX as u64 - 4095] {
        let found = map(offset, page, Use::Read);
        let sound = matches!(found, Err(Errno::PERM | Errno::INVAL | Errno::OVERFLOW));
        checks.note(format!("a page at {offset:#x}"), (!sound).then(|| format!("{found:?}")))?;
    }
    checks.is("an offset within a page", &map(64, page, Use::Read), &Err(Errno::INVAL))?;
    checks.is("no bytes", &map(0, 0, Use::Read), &Err(Errno::INVAL))?;
    for region in hello.regions() {
        let name = format!("{:?} {}", region.kind, region.index);
        let bytes = usize::try_from(region.bytes)?.next_multiple_of(page);
        let (read, write) = match region.kind {
            RegionKind::Image => (Ok(()), Ok(())),
            RegionKind::Log | RegionKind::Epitaph | RegionKind::AgentControl | RegionKind::Supervisor => {
                (Ok(()), Err(Errno::PERM))
            }
            _ => (Err(Errno::PERM), Err(Errno::PERM)),
        };
        checks.is(format!("{name}, read"), &map(region.offset, bytes, Use::Read), &read)?;
        checks.is(format!("{name}, written"), &map(region.offset, bytes, Use::Write), &write)?;
        checks.is(format!("{name}, for oneself"), &map(region.offset, bytes, Use::Private), &write)?;
        let more = map(region.offset, bytes + page, Use::Read);
        checks.is(format!("{name} and a page more"), &more, &Err(Errno::PERM))?;
        if read.is_ok() && write.is_err() {
            let mapped = Map::new(Some(file), region.offset, bytes, Use::Read)?;
            checks.is(format!("{name}, made writable"), &mapped.make_writable(), &Err(Errno::ACCESS))?;
        }
    }
    let image = hello.region(RegionKind::Image, 0).context("no image region")?;
    let mut written = Map::new(Some(file), image.offset, page, Use::Write)?;
    written.set_word(8, 0x0123_4567_89ab_cdef);
    let again = Map::new(Some(file), image.offset, page, Use::Read)?;
    checks.is("what was written to the image region", &again.word(8), &0x0123_4567_89ab_cdef)?;
    checks.is("a mapping that grows", &written.grow(), &Err(Errno::FAULT))?;
    let private = Map::new(Some(file), image.offset, page, Use::Private)?;
    private.set_word(8, 5);
    checks.is(
        "what was written for oneself",
        &(private.word(8), again.word(8)),
        &(5, 0x0123_4567_89ab_cdef),
    )?;
    let child = in_child(|| {
        again.punch(0);
        written.set_word(16, 9);
        written.punch(0);
    });
    checks.is("a child that unmaps what it has inherited", &child, &Ok(Ended::With(0)))?;
    checks.is("what the child has written", &again.word(16), &9)
}

/// Many at once: each is served, or told that somebody else is.
fn at_once(checks: &mut Checks, path: &Path) -> Result<()> {
    let over = AtomicBool::new(false);
    let odd = thread::scope(|scope| -> Result<Vec<String>> {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let over = &over;
                scope.spawn(move || -> Result<Option<String>> {
                    let device = Device::open(path)?;
                    let whats = [
                        Measured::MsixEndToEnd,
                        Measured::WriteCombining,
                        Measured::ReadCached,
                        Measured::Clock,
                    ];
                    while !over.load(Ordering::Relaxed) {
                        match device.measure(whats[number], 20) {
                            Ok(_) | Err(DeviceError::Busy { .. }) => {}
                            Err(other) => return Ok(Some(other.to_string())),
                        }
                        let _ = device.window()?;
                        device.info()?;
                    }
                    Ok(None)
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        let ended = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
        Ok(ended.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })?;
    checks.is("four at once", &odd, &Vec::new())
}

/// The function goes, and comes back, while it is open, mapped and being measured.
fn departure(checks: &mut Checks, path: &Path) -> Result<()> {
    let device = Device::open(path)?;
    let file = File::options().read(true).write(true).open(path)?;
    let function = Place::of(&device)?.function;
    let driver = Path::new("/sys/bus/pci/drivers/neap");
    let hello = Map::new(Some(&file), 0, PAGE, Use::Read)?;
    let measuring = thread::spawn({
        let path = path.to_owned();
        move || -> Result<DeviceError> {
            let device = Device::open(&path)?;
            loop {
                if let Err(error) = device.measure(Measured::MsixEndToEnd, 100) {
                    return Ok(error);
                }
            }
        }
    });
    thread::sleep(Duration::from_millis(200));
    fs::write(driver.join("unbind"), &function).context("taking the function from its driver")?;
    let ended = measuring.join().expect("it does not panic")?;
    checks.note(
        "measuring while it goes",
        match ended {
            DeviceError::Gone { .. } => None,
            other => Some(other.to_string()),
        },
    )?;
    checks.is("the device", &path.exists(), &false)?;
    checks.is("info of what is gone", &ask(&file, INFO, &[64])?, &Err(Errno::NODEV))?;
    checks.is("settings of what is gone", &ask(&file, SETTINGS, &[24])?, &Err(Errno::NODEV))?;
    let manage = [48, Manage::Audit as u32, 0, 0, 0, 0, 0, 1000];
    checks.is("managing what is gone", &ask(&file, MANAGE, &manage)?, &Err(Errno::NODEV))?;
    let samples = Map::new(None, 0, PAGE, Use::Write)?.address() as u64;
    for what in 0..9 {
        let words = [24, what, 1, 0, samples as u32, (samples >> 32) as u32];
        checks.is(
            format!("measuring number {what} of what is gone"),
            &ask(&file, MEASURE, &words)?,
            &Err(Errno::NODEV),
        )?;
    }
    let mapped = Map::new(Some(&file), 0, PAGE, Use::Read).map(drop);
    checks.is("mapping what is gone", &mapped, &Err(Errno::NODEV))?;
    let child = in_child(|| {
        std::hint::black_box(hello.word(0));
    });
    checks.is("a look at what was mapped", &child, &Ok(Ended::By(libc::SIGBUS)))?;
    fs::write(driver.join("bind"), &function).context("giving the function back to its driver")?;
    let again = Device::open(path)?;
    let since = Instant::now();
    while again.info()?.link != 1 && since.elapsed() < ATTACH {
        thread::sleep(Duration::from_millis(20));
    }
    checks.is("the link after it has come back", &again.info()?.link, &1)?;
    checks.is("info of what was gone", &ask(&file, INFO, &[64])?, &Err(Errno::NODEV))?;
    drop((hello, file, device));
    let taken = again.measure(Measured::MsixEndToEnd, 10).map(|samples| samples.len());
    checks.is("measuring after it has come back", &taken.map_err(|error| error.to_string()), &Ok(10))
}
