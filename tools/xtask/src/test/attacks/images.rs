//! Images that are none: what a host may lay into the window, and what the supervisor says to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail, ensure};
use neap_abi::crc::crc32c;
use neap_abi::grant::space;
use neap_abi::image::{HEADER_BYTES, IMAGE_BYTES_MAX, ImageHeader, NAME_BYTES, PAGE_BYTES, rights};
use neap_abi::{ImageError, RegionKind, Reply, VERSION, Version};
use neap_host::manager::ManageError;

use super::ground::{Ground, PATIENCE, Session, wait_for};
use super::{PATIENT, tried};
use crate::test::Verdict;

/// Where the header's fields are, as `neap_abi::image` says.
mod at {
    pub const CRC: usize = 8;
    pub const FORMAT: usize = 12;
    pub const SEGMENTS: usize = 14;
    pub const VERSION: usize = 16;
    pub const IMAGE_BYTES: usize = 20;
    pub const ENTRY: usize = 24;
    pub const STACK_BYTES: usize = 28;
    pub const NAME: usize = 32;
    pub const CORES: usize = 68;
    /// Of the first segment; each next one's follow.
    pub const ADDRESS: usize = 72;
    pub const MEMORY_BYTES: usize = 76;
    pub const FILE_BYTES: usize = 84;
    pub const RIGHTS: usize = 88;
    pub const NEXT: usize = 20;
}

/// What is done to a good image.
type Spoil = fn(&mut Vec<u8>);

/// Each with what is wrong then, as the supervisor numbers it.
const SPOILT: [(&str, Spoil, u8); 19] = [
    ("one that is cut off", |image| image.truncate(image.len() - 1), 1),
    ("one shorter than a header", |image| image.truncate(HEADER_BYTES - 1), 1),
    ("none at all", |image| image.iter_mut().for_each(|byte| *byte = 0), 2),
    ("one with a bit flipped", |image| image[HEADER_BYTES + 100] ^= 4, 3),
    ("one of a later format", |image| put(image, at::FORMAT, 2, 2), 4),
    (
        "one that says that it is larger than may be",
        |image| put(image, at::IMAGE_BYTES, IMAGE_BYTES_MAX as u64 + 1, 4),
        5,
    ),
    (
        "one of another ABI",
        |image| put(image, at::VERSION, Version { major: VERSION.major + 1, ..VERSION }.to_bits().into(), 4),
        6,
    ),
    (
        "one of a minor version two ahead",
        |image| put(image, at::VERSION, Version { minor: VERSION.minor + 2, ..VERSION }.to_bits().into(), 4),
        6,
    ),
    ("one without a segment", |image| put(image, at::SEGMENTS, 0, 2), 7),
    ("one with too many segments", |image| put(image, at::SEGMENTS, 5, 2), 7),
    (
        "one whose segment reaches beyond its space",
        |image| {
            put(image, at::ADDRESS, space::IMAGE_SPAN - PAGE_BYTES, 4);
            put(image, at::MEMORY_BYTES, 2 * PAGE_BYTES, 4);
            put(image, at::FILE_BYTES, 0, 4);
        },
        8,
    ),
    (
        "one whose segment is longer in the file than the file",
        |image| {
            put(image, at::MEMORY_BYTES, u32::MAX.into(), 4);
            put(image, at::FILE_BYTES, u32::MAX.into(), 4);
        },
        8,
    ),
    (
        "one whose segments overlap",
        |image| image.copy_within(at::ADDRESS..at::ADDRESS + 4, at::ADDRESS + at::NEXT),
        9,
    ),
    (
        "one with a segment to write and execute",
        |image| put(image, at::RIGHTS, (rights::READ | rights::WRITE | rights::EXECUTE).into(), 4),
        10,
    ),
    ("one that takes too much memory", |image| put(image, at::MEMORY_BYTES + 2 * at::NEXT, 5 << 20, 4), 11),
    ("one that starts outside its text", |image| put(image, at::ENTRY, 8 << 20, 4), 12),
    ("one without a stack", |image| put(image, at::STACK_BYTES, 0, 4), 13),
    ("one without a name", |image| image[at::NAME..at::NAME + NAME_BYTES].fill(0), 14),
    ("one for too many cores", |image| put(image, at::CORES, 9, 2), 15),
];

/// Loads of an image that is being changed.
const RACES: u32 = 24;

fn put(image: &mut [u8], at: usize, value: u64, bytes: usize) {
    image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

/// Has an image's checksum say what its bytes are.
fn seal(image: &mut [u8]) {
    if image.len() > at::FORMAT {
        let crc = crc32c(&image[at::FORMAT..]);
        put(image, at::CRC, crc.into(), 4);
    }
}

pub(super) fn run(ground: &Ground<'_>, good: &[u8], verdict: &mut Verdict) -> Result<()> {
    ImageHeader::check(good, VERSION)?;
    tried(verdict, "images that are none", || {
        let since = ground.rounds();
        let (refused, _) = ground.session(PATIENT, |session| {
            let before = session.books()?.images_refused;
            for (what, spoil, code) in SPOILT {
                refuse(session, good, what, spoil, code)?;
            }
            // The answer comes before the books.
            wait_for("the books", || {
                let refused = session.books()?.images_refused - before;
                Ok((refused as usize >= SPOILT.len()).then_some(refused))
            })
        })?;
        ground.watch_neighbours(&since)?;
        ensure!(refused as usize == SPOILT.len(), "{refused} refusals in the books, not {}", SPOILT.len());
        Ok(format!("{refused} refused, each for what is wrong with it"))
    })?;
    tried(verdict, "an image that its host changes while it is looked at", || {
        let since = ground.rounds();
        let ((whole, torn), _) = ground.session(PATIENT, |session| race(session, good))?;
        ground.watch_neighbours(&since)?;
        Ok(format!("{whole} times whole, {torn} times refused, never in between"))
    })
}

fn refuse(session: &Session<'_>, good: &[u8], what: &str, spoil: Spoil, code: u8) -> Result<()> {
    let mut image = good.to_vec();
    spoil(&mut image);
    // A checksum that is wrong hides all else.
    if !matches!(code, 1..=3) {
        seal(&mut image);
    }
    let said = session.with_manager(|manager| Ok(manager.load(Some(&image), "", PATIENCE)))?;
    match said {
        Err(ManageError::Answered { reply: Reply::RefusedImage, detail, .. }) if detail as u8 == code => {
            Ok(())
        }
        other => bail!("{what}: {other:?}, not: {}", ImageError::in_words(code.into())),
    }
}

/// Has an image laid out again and again while another writes over it. Returns how often it was whole, and how often it was
/// refused.
fn race(session: &Session<'_>, good: &[u8]) -> Result<(u32, u32)> {
    let over = AtomicBool::new(false);
    let link = session.enclave.link();
    let crc = ImageHeader::check(good, VERSION)?.crc;
    let mut spoilt = good.to_vec();
    spoilt[HEADER_BYTES..].iter_mut().for_each(|byte| *byte = !*byte);
    thread::scope(|scope| {
        scope.spawn(|| {
            let hello = link.link().hello();
            for image in [&spoilt[..], good].iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // A region that was there a moment ago.
                let _ = link.window().set_region_bytes(hello, RegionKind::Image, 0, image);
                thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        let raced = (0..RACES).try_fold((0, 0), |(whole, torn), _| {
            let said = session.with_manager(|manager| Ok(manager.load(Some(good), "", PATIENCE)))?;
            match said {
                Ok(_) => {
                    let agents = session.agents()?;
                    let laid_out = agents.standby.map(|agent| agent.image_crc);
                    ensure!(laid_out.is_none_or(|laid_out| laid_out == crc), "{laid_out:x?} is laid out");
                    Ok((whole + 1, torn))
                }
                Err(ManageError::Answered { reply: Reply::RefusedImage, .. }) => Ok((whole, torn + 1)),
                Err(error) => bail!("{error}"),
            }
        });
        over.store(true, Ordering::Relaxed);
        session.with_manager(|manager| Ok(manager.unload(PATIENCE)?))?;
        raced
    })
}
