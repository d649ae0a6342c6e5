//! `neap image disk` and `neap flash`: a card's disk, and new images for it.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use neap_abi::slots::{Failed, Slot, State};
use neap_host::card_disk::{CardDisk, Sectors};
use neap_loader::image::{Manifest, Verified};
use tempfile::NamedTempFile;
use xtask::card_disk::{DISK_BYTES_MIN, Disk, Medium, SLOT_BYTES, checked};
use xtask::firmware;

use crate::args::{DiskOptions, FlashOptions};
use crate::driver::agents::of;
use crate::image::verifying;
use crate::manage::{Answer, Asked, Host, Line};
use crate::print;

/// Does what `neap image disk` is asked.
pub fn disk(options: &DiskOptions) -> Result<()> {
    let DiskOptions { out, key, image, force } = options;
    let keys = key.iter().map(|file| verifying(file)).collect::<Result<Vec<_>>>()?;
    let image = image.as_deref().map(|file| -> Result<_> {
        let bytes = read(file)?;
        Verified::check(&bytes, &keys).with_context(|| file.display().to_string())?;
        Ok(bytes)
    });
    let image = image.transpose()?;
    let loader = firmware::loader()?;
    let medium = claim(out, *force)?;
    let mut disk = Disk::format(medium, &loader, &keys).with_context(|| out.display().to_string())?;
    if let Some(image) = &image {
        disk.flash(image, &mut |_| {}).with_context(|| out.display().to_string())?;
    }
    let holds =
        if image.is_some() { "its first image is in slot A, on trial" } else { "its slots are empty" };
    print(&format!("{} is a card's disk that trusts {} keys; {holds}", out.display(), keys.len()))
}

/// A file or device that may be written over: a new file, or whatever is there if that was said.
fn claim(out: &Path, force: bool) -> Result<File> {
    let fresh = OpenOptions::new().read(true).write(true).create_new(true).open(out);
    match fresh {
        Ok(file) => {
            file.set_len(DISK_BYTES_MIN)
                .with_context(|| format!("{} can't be made so long", out.display()))?;
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            ensure!(
                force,
                "{} is there already, and all of it would be lost: name another, or say --force",
                out.display()
            );
            let file = open(out, true)?;
            if !file.metadata()?.file_type().is_block_device() {
                file.set_len(0)?;
                file.set_len(DISK_BYTES_MIN)?;
            }
            Ok(file)
        }
        Err(error) => Err(anyhow!(error).context(format!("{} can't be made", out.display()))),
    }
}

/// Does what `neap flash` is asked.
pub fn flash(options: &FlashOptions) -> Result<()> {
    let FlashOptions { image, to, enclave, device, .. } = options;
    let image = read(image)?;
    let Some(to) = to else {
        return match Host::meant(device.as_deref())? {
            Host::Machine(devices) => {
                let device = of(&devices, *enclave)?;
                flash_running(options, &image, device, &device.path().display().to_string())
            }
            Host::Run(dir) => {
                let run = Run::open(&dir, *enclave)?;
                flash_running(options, &image, &run, "the disk of the card that runs")
            }
        };
    };
    let name = to.display().to_string();
    let disk = Disk::open(open(to, options.force)?).with_context(|| {
        format!("{name} is no card's disk; `neap image disk --out` makes one, and all that is there is lost")
    })?;
    write(options, &image, disk, &name, false)
}

/// Flashes the disk that a running card was booted from.
fn flash_running<S: Sectors + fmt::Debug>(
    options: &FlashOptions,
    image: &[u8],
    sectors: &S,
    name: &str,
) -> Result<()> {
    let disk = CardDisk::open(sectors).map_err(anyhow::Error::from).and_then(Disk::open);
    write(options, image, disk.with_context(|| name.to_owned())?, name, true)
}

/// Writes an image to a disk, or says what that would do.
fn write<M: Medium>(
    options: &FlashOptions,
    image: &[u8],
    mut disk: Disk<M>,
    name: &str,
    runs: bool,
) -> Result<()> {
    let FlashOptions { image: file, board, dry_run, .. } = options;
    let name = || name.to_owned();
    let keys = disk.keys().with_context(name)?;
    let plan = if runs { disk.plan_of_running() } else { disk.plan() }.with_context(name)?;
    checked(image, &keys, board, plan.state.security_version)
        .with_context(|| format!("{} would not boot from {}", file.display(), name()))?;
    let (manifest, _) = Manifest::alleged(image)?;
    let before = in_words(plan.state);
    if *dry_run {
        return print(&format!(
            "{before}\nslot {} would be written with Neap {}, security version {}, {} bytes, and tried at the next boot",
            plan.slot,
            manifest.neap,
            manifest.security_version,
            image.len()
        ));
    }
    if runs {
        disk.settle(&plan).with_context(name)?;
    }
    let bar = bar(plan.slot);
    let slot = disk.flash(image, &mut |bytes| bar.set_position(bytes)).with_context(name)?;
    bar.finish_and_clear();
    print(&format!(
        "{before}\nslot {slot} holds {} now, read back: the next boot tries it once",
        file.display()
    ))
}

/// The card of a run, whose host is asked.
#[derive(Debug)]
struct Run {
    line: RefCell<Line>,
    enclave: u16,
    /// What is read or written goes by this.
    file: NamedTempFile,
}

impl Run {
    fn open(dir: &Path, enclave: u16) -> Result<Self> {
        let line = RefCell::new(Line::open(dir)?);
        let file = NamedTempFile::new().context("no place for what is read and written")?;
        Ok(Self { line, enclave, file })
    }

    fn ask(&self, asked: &Asked) -> io::Result<serde_json::Value> {
        match self.line.borrow_mut().ask(asked).map_err(io::Error::other)? {
            Answer::Done(value) => Ok(value),
            Answer::Failed(words) => Err(io::Error::other(words)),
        }
    }
}

impl Sectors for Run {
    fn read_sectors(&self, sector: u32, to: &mut [u8]) -> io::Result<u64> {
        let file = self.file.path().to_owned();
        let asked = Asked::ReadDisk { enclave: self.enclave, sector, bytes: to.len(), file };
        let sectors = self.ask(&asked)?;
        let read = fs::read(self.file.path())?;
        if read.len() != to.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.copy_from_slice(&read);
        sectors.as_u64().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn write_sectors(&self, sector: u32, bytes: &[u8]) -> io::Result<()> {
        fs::write(self.file.path(), bytes)?;
        let file = self.file.path().to_owned();
        self.ask(&Asked::WriteDisk { enclave: self.enclave, sector, file }).map(drop)
    }
}

/// The state in a line.
fn in_words(state: State) -> String {
    let good = state
        .good
        .map_or_else(|| "no slot is confirmed".to_owned(), |slot| format!("slot {slot} is confirmed"));
    let trial = match (state.trial, state.is_tried) {
        (None, _) => String::new(),
        (Some(slot), false) => format!(", slot {slot} is to be tried"),
        (Some(slot), true) => format!(", slot {slot} was tried and is not confirmed yet"),
    };
    let failed = match state.failed {
        Failed::Not => "",
        Failed::Unconfirmed => ", the last one that was tried was not confirmed",
        Failed::Refused => ", the last one that was to be tried was refused",
    };
    format!("{good}{trial}{failed}; the least security version is {}", state.security_version)
}

fn bar(slot: Slot) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(SLOT_BYTES);
    let style = ProgressStyle::with_template("{prefix} {bar:40} {bytes} of {total_bytes}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(format!("writing slot {slot}"));
    bar
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("{} can't be read", file.display()))
}

/// Opens a disk, unless somebody uses it.
fn open(path: &Path, force: bool) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("{} can't be opened", path.display()))?;
    let kind = file.metadata()?;
    if kind.file_type().is_block_device() {
        let (major, minor) = (rustix::fs::major(kind.st_rdev()), rustix::fs::minor(kind.st_rdev()));
        let node = node_of(&format!("{major}:{minor}"))
            .with_context(|| format!("{} is no disk that the kernel knows", path.display()))?;
        ensure!(
            !node.join("partition").exists(),
            "{} is a partition; name the disk that it is on",
            path.display()
        );
        if !force && let Some(used) = used_as(&node)? {
            bail!(
                "{} is in use ({used}): unmount it, or say --force if it is the one that you mean",
                path.display()
            );
        }
    } else {
        ensure!(kind.is_file(), "{} is neither a file nor a disk", path.display());
    }
    Ok(file)
}

/// A block device's directory in sysfs.
fn node_of(number: &str) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{number}")).ok()
}

/// What a disk or one of its partitions is used as, if it is.
fn used_as(node: &Path) -> Result<Option<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo can't be read")?;
    let mounted = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (number, _, at) = (words.next()?, words.next()?, words.next()?);
        is_of(node, &node_of(number)?).then(|| format!("mounted at {at}"))
    });
    if mounted.is_some() {
        return Ok(mounted);
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swapped = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).find(|swap| {
        let Ok(kind) = fs::metadata(swap) else { return false };
        let number = format!("{}:{}", rustix::fs::major(kind.st_rdev()), rustix::fs::minor(kind.st_rdev()));
        node_of(&number).is_some_and(|other| is_of(node, &other))
    });
    Ok(swapped.map(|swap| format!("swap on {swap}")))
}

/// Whether `other` is the disk, or one of its partitions.
fn is_of(node: &Path, other: &Path) -> bool {
    other.starts_with(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_written_over_unless_that_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        claim(&file, false).unwrap();
        let error = claim(&file, false).unwrap_err().to_string();
        assert!(error.contains("say --force"), "{error}");
        assert_eq!(claim(&file, true).unwrap().metadata().unwrap().len(), DISK_BYTES_MIN);
    }

    #[test]
    fn what_is_neither_file_nor_disk_is_refused() {
        let error = open(Path::new("/dev/null"), true).unwrap_err().to_string();
        assert!(error.contains("neither a file nor a disk"), "{error}");
        let error = format!("{:#}", open(Path::new("/no/such"), true).unwrap_err());
        assert!(error.contains("/no/such can't be opened"), "{error}");
    }

    #[test]
    fn a_disk_with_a_mounted_partition_is_in_use() {
        let node = Path::new("/sys/devices/pci/block/sda");
        assert!(is_of(node, Path::new("/sys/devices/pci/block/sda/sda1")));
        assert!(is_of(node, node));
        assert!(!is_of(node, Path::new("/sys/devices/pci/block/sdb/sdb1")));
    }

    #[test]
    fn what_the_state_says_is_in_words() {
        let state = State {
            good: Some(Slot::A),
            failed: Failed::Unconfirmed,
            security_version: 3,
            ..State::default()
        };
        let words = in_words(state);
        assert!(words.contains("slot A is confirmed") && words.contains("was not confirmed"), "{words}");
        assert!(in_words(State::default()).contains("no slot is confirmed"));
    }
}
