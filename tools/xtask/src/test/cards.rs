//! Of stage `image`: what a card boots, when images are bad, when bits flip and when the power goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::{SigningKey, VerifyingKey};
use neap_abi::slots::{SECTOR_BYTES, Slot, State};
use neap_host::card_disk::{CardDisk, Sectors};
use neap_host::manager::Manager;
use neap_loader::image::{Draft, PartKind, Verified};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use tempfile::TempDir;

use super::{Verdict, sessions};
use crate::card_disk::{DISK_BYTES_MIN, Disk, Medium};
use crate::card_image::{Recipe, application, runtime};
use crate::ipu::Ipu;
use crate::machine::Uefi;
use crate::progress::Step;
use crate::{firmware, setup};

/// The board of all that is tried here.
pub(super) const BOARD: &str = "qemu_virt";
/// Bits that are flipped, each by itself.
const FLIPS: u32 = 1000;
/// Flashes that the power is cut in.
const CUTS: u32 = 200;
/// How long a card may take to boot, or to be reset and boot again, in a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(300);

/// A key, and two images that it has signed.
pub(super) struct Images {
    pub key: SigningKey,
    pub first: Vec<u8>,
    pub second: Vec<u8>,
}

impl Images {
    pub(super) fn build() -> Result<Self> {
        let key = SigningKey::from_bytes(&rand::random());
        let image = |agents: &[&str]| {
            let agents: Vec<String> = agents.iter().map(|&name| name.to_owned()).collect();
            Recipe { board: BOARD, agents: &agents, security_version: 1, args: "" }.build(&key)
        };
        let (first, second) = (image(&[])?, image(&["shinjuku"])?);
        ensure!(image(&[])? == first, "two builds of one image differ");
        Ok(Self { key, first, second })
    }

    /// A disk in memory whose slot A is confirmed and whose slot B holds the second image, to be tried.
    fn disk(&self) -> Result<Disk<Cursor<Vec<u8>>>> {
        let mut disk = self.installed()?;
        disk.flash(&self.second, &mut |_| {})?;
        Ok(disk)
    }

    /// A disk in memory whose slot A is confirmed.
    fn installed(&self) -> Result<Disk<Cursor<Vec<u8>>>> {
        let medium = Cursor::new(vec![0; DISK_BYTES_MIN as usize]);
        let mut disk = Disk::format(medium, b"a loader", &[self.key.verifying_key()])?;
        ensure!(disk.flash(&self.first, &mut |_| {})? == Slot::A, "the first image is for slot A");
        confirm(&mut disk, &self.key)?;
        Ok(disk)
    }

    /// Which of the two a slot holds.
    fn held(&self, slot: &[u8]) -> Option<&[u8]> {
        [&self.first, &self.second]
            .into_iter()
            .map(Vec::as_slice)
            .find(|image| slot.starts_with(image) && slot[image.len()..].iter().all(|&byte| byte == 0))
    }
}

/// What is wrong with a new image, how it is made of a good one, and what the console says of it.
type Bad = (&'static str, fn(&Images) -> Result<Vec<u8>>, &'static str);

const BAD: [Bad; 4] = [
    ("signed by a stranger", of_a_stranger, "which is none of those that are trusted here"),
    ("cut short", cut_short, "is not what was signed"),
    ("that gives up at its start", gives_up, "it was tried once and was not confirmed"),
    ("that panics at its start", panics, "it was tried once and was not confirmed"),
];
const HANGS: Bad = ("that hangs before it is confirmed", hangs, "it was tried once and was not confirmed");

fn of_a_stranger(images: &Images) -> Result<Vec<u8>> {
    resigned(images, &SigningKey::from_bytes(&[7; 32]), "", |_| {})
}

fn cut_short(images: &Images) -> Result<Vec<u8>> {
    Ok(images.second[..images.second.len() / 2].to_vec())
}

fn gives_up(images: &Images) -> Result<Vec<u8>> {
    resigned(images, &images.key, "neap.unknown=1", |_| {})
}

fn panics(images: &Images) -> Result<Vec<u8>> {
    let panicking = runtime(&["panics"])?;
    resigned(images, &images.key, "", |runtime| *runtime = panicking)
}

/// arm64's `Image` with nothing but `b .` in the place of the runtime: nothing can interrupt it.
fn hangs(images: &Images) -> Result<Vec<u8>> {
    const HERE: u32 = 0x1400_0000;
    resigned(images, &images.key, "", |runtime| runtime[..4].copy_from_slice(&HERE.to_le_bytes()))
}

/// The second image with other words for the runtime, or with the runtime changed, signed anew.
fn resigned(
    images: &Images,
    key: &SigningKey,
    args: &str,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<Vec<u8>> {
    let good = Verified::check(&images.second, &[images.key.verifying_key()])?;
    let mut manifest = good.manifest.clone();
    manifest.args = args.to_owned();
    let runtime = manifest.parts.iter().find(|part| part.kind == PartKind::Runtime);
    let mut runtime = good.part(runtime.context("an image has a runtime")?).to_vec();
    change(&mut runtime);
    let parts = vec![(PartKind::Runtime, "runtime", runtime.as_slice())];
    Ok(Draft { manifest, parts }.sign(key)?)
}

/// A card: its disk, and what its UEFI keeps.
struct Card {
    qemu: PathBuf,
    code: PathBuf,
    directory: TempDir,
    /// Whether its UEFI describes the machine by ACPI's tables.
    by_acpi: bool,
}

impl Card {
    /// One whose first slot holds an image on trial.
    fn new(images: &Images) -> Result<Self> {
        let card = Self::made(&firmware::loader()?, &[images.key.verifying_key()])?;
        card.flash(&images.first)?;
        Ok(card)
    }

    /// One that trusts no key and has nothing in its slots: the application is all there is.
    fn with(application: &[u8]) -> Result<Self> {
        Self::made(application, &[])
    }

    fn made(loader: &[u8], keys: &[VerifyingKey]) -> Result<Self> {
        let setup::Uefi { code, vars: variables } = setup::uefi()?;
        let directory = tempfile::Builder::new().prefix("neap-card-").tempdir()?;
        let card = Self { qemu: setup::qemu()?, code, directory, by_acpi: false };
        fs::copy(&variables, card.variables())
            .with_context(|| format!("{} can't be copied", variables.display()))?;
        let medium = File::create_new(card.file()).context("the disk can't be made")?;
        medium.set_len(DISK_BYTES_MIN)?;
        Disk::format(OpenOptions::new().read(true).write(true).open(card.file())?, loader, keys)?;
        Ok(card)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn variables(&self) -> PathBuf {
        self.directory.path().join("variables")
    }

    fn disk(&self) -> Result<Disk<File>> {
        Disk::open(OpenOptions::new().read(true).write(true).open(self.file())?)
    }

    fn flash(&self, image: &[u8]) -> Result<Slot> {
        self.disk()?.flash(image, &mut |_| {})
    }

    /// Boots it, waits until the console says `words`, and has a host's tasks decided. The window says the same: it is of `slot`,
    /// and that `refused` was.
    fn works(&self, words: &[&str], slot: &str, refused: Option<&str>) -> Result<()> {
        self.booted(words, slot, refused, sessions::works)
    }

    fn booted(
        &self,
        words: &[&str],
        slot: &str,
        refused: Option<&str>,
        works: impl FnOnce(&mut sessions::Ipu) -> Result<()>,
    ) -> Result<()> {
        let variables = self.variables();
        let disk = self.file();
        let uefi = Uefi { code: &self.code, variables: &variables, disk: &disk, by_acpi: self.by_acpi };
        let mut ipu = Ipu::boot_by(2, 1, |machine, _| machine.command_of_disk(&self.qemu, &uefi))?;
        for words in words {
            says(&mut ipu, words)?;
        }
        let mut host = sessions::Ipu::of(ipu);
        let worked = works(&mut host);
        worked.with_context(|| format!("its console said:\n{}", host.console()))?;
        let told = host.origin()?;
        let is_told = told.as_ref().is_some_and(|told| {
            let refusal = match (&told.refused, refused) {
                (Some(told), Some(why)) => told.contains(why),
                (told, why) => told.is_none() && why.is_none(),
            };
            told.slot == slot && refusal
        });
        ensure!(
            is_told,
            "expected: the window tells of slot {slot}, and of {refused:?} refused; it tells of {told:?}"
        );
        Ok(())
    }
}

fn says(ipu: &mut Ipu, words: &str) -> Result<()> {
    let since = Instant::now();
    loop {
        let said = ipu.console();
        if said.contains(words) {
            return Ok(());
        }
        if since.elapsed() > PATIENCE || said.contains("(QEMU has ended") {
            bail!("expected: the console says `{words}`; it said:\n{said}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// All of it, on two cards side by side: for the most part a watchdog is waited for.
pub(super) fn all(images: &Images) -> Result<Verdict> {
    let (boots, others) = thread::scope(|scope| {
        let others = scope.spawn(|| -> Result<Verdict> {
            let mut verdict = in_memory(images)?;
            if verdict.failing() {
                return Ok(verdict);
            }
            let card = Card::new(images)?;
            let what = "a host writes a new image over the window, and nothing else, while the old one runs";
            tried(&mut verdict, what.to_owned(), || by_window(&card, images))?;
            gives_way(&mut verdict, &card, images, &HANGS)?;
            Ok(verdict)
        });
        (boots(images), others.join())
    });
    let mut verdict = Verdict::default();
    // Where both fail, neither takes the other's place.
    for card in [others.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), boots] {
        match card {
            Ok(tried) => verdict += tried,
            Err(error) => verdict.fail(format!("{error:#}")),
        }
    }
    Ok(verdict)
}

/// One of the trials, each of which has to go well.
fn tried(verdict: &mut Verdict, what: String, trial: impl FnOnce() -> Result<()>) -> Result<()> {
    let step = Step::start(what.clone());
    trial().context(what)?;
    step.done();
    verdict.pass();
    Ok(())
}

/// Boots a card's disk by UEFI, with good images and with bad ones.
fn boots(images: &Images) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let card = Card::new(images)?;
    tried(&mut verdict, "booting the runtime alone, as arm64's Image".to_owned(), || {
        let good = Verified::check(&images.first, &[images.key.verifying_key()])?;
        let runtime = good.manifest.parts.first().context("an image has a runtime")?;
        let raw = card.directory.path().join("Image");
        fs::write(&raw, good.part(runtime))?;
        sessions::works(&mut sessions::Ipu::of(Ipu::boot(&card.qemu, &raw, 2, 1)?))
    })?;
    tried(&mut verdict, "booting a UEFI application that an image is bound into".to_owned(), || {
        let bound = application(&images.key.verifying_key(), &images.first)?;
        let mut card = Card::with(&bound)?;
        card.works(&["booting the image that is bound"], "none, bound", None)?;
        card.by_acpi = true;
        card.works(&["booting the image that is bound"], "none, bound", None).context("by ACPI's tables")
    })?;
    tried(&mut verdict, "booting a disk's first image by UEFI".to_owned(), || {
        card.works(&["booting slot A, on trial"], "A, on trial", None)
    })?;
    tried(&mut verdict, "it has confirmed itself by the next boot".to_owned(), || {
        card.works(&["slot A has confirmed itself, and stays", "booting slot A"], "A", None)?;
        ensure!(card.disk()?.state()?.state.good == Some(Slot::A), "slot A was not confirmed");
        Ok(())
    })?;
    for bad in &BAD {
        gives_way(&mut verdict, &card, images, bad)?;
    }
    tried(&mut verdict, "a good new image is tried, and stays".to_owned(), || {
        card.flash(&images.second)?;
        card.works(&["booting slot B, on trial"], "B, on trial", None)?;
        // It brings an agent more.
        let by_another = |host: &mut sessions::Ipu| {
            sessions::works_by(host, "shinjuku")?;
            sessions::works(host)
        };
        card.booted(&["slot B has confirmed itself, and stays"], "B", None, by_another)?;
        ensure!(card.disk()?.state()?.state.good == Some(Slot::B), "slot B was not confirmed");
        Ok(())
    })?;
    Ok(verdict)
}

/// Flashes a card whose slot A is confirmed with an image that is bad, and boots it.
fn gives_way(verdict: &mut Verdict, card: &Card, images: &Images, bad: &Bad) -> Result<()> {
    let (what, spoil, reason) = bad;
    tried(verdict, format!("a new image {what} gives way to the one before"), || {
        ensure!(card.flash(&spoil(images)?)? == Slot::B, "slot A is not the good one");
        card.works(&[reason, "booting slot A"], "A", Some(reason))?;
        ensure!(card.disk()?.state()?.state.good == Some(Slot::A), "slot A is not the good one any more");
        Ok(())
    })
}

/// Flashes a card twice while it runs, each time in the boot that has confirmed what runs.
fn by_window(card: &Card, images: &Images) -> Result<()> {
    let flash = |manager: &Manager<'_>, image: &[u8], slot: Slot| -> Result<()> {
        let mut disk = Disk::open(CardDisk::open(manager)?)?;
        ensure!(
            disk.keys()? == [images.key.verifying_key()],
            "the window shows other keys than the disk has"
        );
        let plan = disk.plan_of_running()?;
        ensure!(plan.slot == slot, "expected: slot {slot} would be written");
        disk.settle(&plan)?;
        ensure!(disk.flash(image, &mut |_| {})? == slot, "expected: slot {slot} is written");
        Ok(())
    };
    card.booted(&["booting slot A, on trial"], "A, on trial", None, |host| {
        host.managed(|manager| {
            forbidden(card, manager, "while the image is on trial", &[card.disk()?.ranges()[2].start])
        })?;
        sessions::works(host)?;
        host.managed(|manager| {
            let [state, a, b] = card.disk()?.ranges();
            let others = [0, SECTOR_BYTES as u64, state.end - 512, a.start, a.end - 512, b.end];
            forbidden(card, manager, "that no flash writes", &others)?;
            flash(manager, &images.second, Slot::B)?;
            downgrade(card, manager)
        })?;
        sessions::works(host)
    })?;
    ensure!(images.held(&card.disk()?.slot(Slot::B)?) == Some(&images.second), "slot B holds another image");
    card.booted(&["booting slot B, on trial"], "B, on trial", None, |host| {
        sessions::works_by(host, "shinjuku")?;
        host.managed(|manager| flash(manager, &images.first, Slot::A))?;
        sessions::works(host)
    })?;
    card.works(&["booting slot A, on trial"], "A, on trial", None)?;
    card.works(&["slot A has confirmed itself, and stays"], "A", None)
}

/// Nothing may be written at these places, and nothing is.
fn forbidden(card: &Card, manager: &Manager<'_>, what: &str, places: &[u64]) -> Result<()> {
    let before = fs::read(card.file())?;
    for &at in places {
        let sector = u32::try_from(at / SECTOR_BYTES as u64)?;
        refused(manager, sector, &[0x5a; SECTOR_BYTES])
            .with_context(|| format!("sector {sector}, {what}"))?;
    }
    ensure!(fs::read(card.file())? == before, "the disk has changed {what}");
    Ok(())
}

/// No state may take back what is confirmed, or the least security version.
fn downgrade(card: &Card, manager: &Manager<'_>) -> Result<()> {
    let mut disk = card.disk()?;
    let sector = u32::try_from(disk.ranges()[0].start / SECTOR_BYTES as u64)?;
    let mut copies = disk.state()?;
    let state = copies.state;
    for state in [
        State { security_version: 0, ..state },
        State { security_version: u32::MAX, ..state },
        State { good: state.good.map(Slot::other), ..state },
        State::default(),
    ] {
        let (at, copy) = copies.write(state);
        let mut bytes = [0; SECTOR_BYTES];
        bytes[..copy.len()].copy_from_slice(&copy);
        refused(manager, sector + 8 * at as u32, &bytes).with_context(|| format!("{state:?}"))?;
    }
    Ok(())
}

fn refused(manager: &Manager<'_>, sector: u32, bytes: &[u8]) -> Result<()> {
    let Err(error) = manager.write_sectors(sector, bytes) else {
        bail!("expected: it is refused; it is written")
    };
    ensure!(error.to_string().contains("is not to be written"), "expected: it is refused; {error}");
    Ok(())
}

/// Boots what is to be tried, as the loader does, and confirms it.
fn confirm<M: Medium>(disk: &mut Disk<M>, key: &SigningKey) -> Result<()> {
    let choice = disk.choice(BOARD, &[key.verifying_key()])??;
    let mut copies = disk.state()?;
    let tried = choice.write.context("nothing is on trial")?;
    disk.set_state(&mut copies, tried)?;
    disk.set_state(&mut copies, tried.confirmed(1))
}

fn in_memory(images: &Images) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let seed = rand::random();
    let trials: [(&str, Trial, u32); 2] =
        [("flipped bits", flips, FLIPS), ("power cuts in a flash", cuts, CUTS)];
    for (what, trial, count) in trials {
        let mut step = Step::start(format!("{count} {what} (seed {seed:#x})"));
        match trial(images, seed, &mut step).with_context(|| format!("{what}, seed {seed:#x}")) {
            Ok(found) => {
                step.done();
                verdict.remarks.push(format!("{count} {what} (seed {seed:#x}): {found}"));
                verdict.pass();
            }
            Err(error) => verdict.fail(format!("{error:#}")),
        }
    }
    Ok(verdict)
}

type Trial = fn(&Images, u64, &mut Step) -> Result<String>;

/// A bit in the state or in one of the images is flipped: what is booted then is one of the two images, as it was signed.
fn flips(images: &Images, seed: u64, step: &mut Step) -> Result<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let keys = [images.key.verifying_key()];
    let mut disk = images.disk()?;
    let [state, a, b] = disk.ranges();
    // Half of them in what is signed; the rest in all that the loader reads.
    let signed =
        [a.start..a.start + images.first.len() as u64, b.start..b.start + images.second.len() as u64];
    let (mut refused, mut harmless) = (0, 0);
    for flip in 0..FLIPS {
        let range = match flip % 4 {
            0 => signed[0].clone(),
            1 => signed[1].clone(),
            2 => state.start..state.start + 2 * 4096,
            _ => a.start..b.end,
        };
        let (at, bit) = (random.random_range(range), random.random_range(0..8u32));
        let turn = |disk: Disk<Cursor<Vec<u8>>>| {
            let mut medium = disk.into_medium();
            medium.get_mut()[at as usize] ^= 1 << bit;
            Disk::open(medium)
        };
        disk = turn(disk)?;
        let choice = disk.choice(BOARD, &keys)?;
        let choice = choice.with_context(|| format!("bit {bit} of byte {at}: nothing boots"))?;
        let slot = disk.slot(choice.slot)?;
        ensure!(
            images.held(&slot).is_some(),
            "bit {bit} of byte {at}: slot {} boots, and is changed",
            choice.slot
        );
        *(if choice.refused.is_some() { &mut refused } else { &mut harmless }) += 1;
        disk = turn(disk)?;
        step.note(&format!("{flip}"));
    }
    ensure!(refused > 0, "not one was refused");
    Ok(format!("{refused} refused, {harmless} in what is not booted or does not count"))
}

/// The power goes in the middle of a flash: what boots then is the image of before, or the new one whole.
fn cuts(images: &Images, seed: u64, step: &mut Step) -> Result<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let keys = [images.key.verifying_key()];
    let before = images.installed()?.into_medium().into_inner();
    // How many writes a flash is.
    let mut whole = Disk::open(Cut::new(before.clone(), u64::MAX))?;
    whole.flash(&images.second, &mut |_| {})?;
    let writes = whole.into_medium().writes;
    let (mut old, mut new) = (0, 0);
    for cut in 0..CUTS {
        // Each fourth close to the end, where the state is.
        let after =
            if cut % 4 == 0 { writes - random.random_range(0..3) } else { random.random_range(0..writes) };
        let mut disk = Disk::open(Cut::new(before.clone(), after))?;
        let flashed = disk.flash(&images.second, &mut |_| {});
        let left = disk.into_medium().left(&mut random);
        let mut disk = Disk::open(Cursor::new(left)).context("its partition table is gone")?;
        let choice = disk.choice(BOARD, &keys)?.with_context(|| format!("cut after {after} writes"))?;
        let slot = disk.slot(choice.slot)?;
        let image =
            images.held(&slot).with_context(|| format!("cut after {after} writes: slot {}", choice.slot))?;
        let is_new = choice.slot == Slot::B;
        ensure!(
            image == if is_new { &images.second } else { &images.first },
            "the wrong image is in slot {}",
            choice.slot
        );
        ensure!(is_new || flashed.is_err(), "a flash that went well is lost");
        // The state must not have lost what it knew.
        ensure!(
            disk.state()?.state.good == Some(Slot::A),
            "cut after {after} writes: slot A is not the good one any more"
        );
        *(if is_new { &mut new } else { &mut old }) += 1;
        step.note(&format!("{cut}"));
    }
    Ok(format!("the old image boots after {old}, the new one after {new}"))
}

/// A medium whose power goes after so many writes. What was not made durable before is there or is not, sector by sector.
#[derive(Debug)]
struct Cut {
    durable: Vec<u8>,
    now: Cursor<Vec<u8>>,
    /// Since the last time that it was all made durable.
    written: Vec<std::ops::Range<usize>>,
    writes: u64,
    writes_max: u64,
}

impl Cut {
    fn new(bytes: Vec<u8>, writes_max: u64) -> Self {
        Self { durable: bytes.clone(), now: Cursor::new(bytes), written: Vec::new(), writes: 0, writes_max }
    }

    /// What is there when the power comes back.
    fn left(mut self, random: &mut ChaCha8Rng) -> Vec<u8> {
        for range in &self.written {
            for from in range.clone().step_by(SECTOR_BYTES) {
                let sector = from..(from + SECTOR_BYTES).min(range.end);
                if random.random_range(0..2u32) == 0 {
                    self.durable[sector.clone()].copy_from_slice(&self.now.get_ref()[sector]);
                }
            }
        }
        self.durable
    }
}

impl Read for Cut {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.now.read(buffer)
    }
}

impl Seek for Cut {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.now.seek(to)
    }
}

impl Write for Cut {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.writes >= self.writes_max {
            return Err(io::Error::other("the power is gone"));
        }
        self.writes += 1;
        let from = self.now.position() as usize;
        let written = self.now.write(buffer)?;
        self.written.push(from..from + written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for Cut {
    fn persist(&mut self) -> io::Result<()> {
        if self.writes >= self.writes_max {
            return Err(io::Error::other("the power is gone"));
        }
        for range in self.written.drain(..) {
            self.durable[range.clone()].copy_from_slice(&self.now.get_ref()[range]);
        }
        Ok(())
    }
}
