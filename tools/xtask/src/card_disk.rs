//! A card's disk: the loader and the keys that it trusts, the slots' state, and two slots.
//!
//! | partition | bytes | |
//! | --- | --- | --- |
//! | `neap-esp` | 16 MiB | FAT: `EFI/BOOT/BOOTAA64.EFI`, and `EFI/NEAP/KEYS`, a public key to a line |
//! | `neap-state` | 1 MiB | each copy of the state in a block of its own, 4096 bytes apart |
//! | `neap-a`, `neap-b` | 16 MiB each | an image from byte 0 on, and zeros |
//!
//! A flash writes the slot that is not booted, reads it back, and only then says so in the state, each step made durable before the
//! next: wherever the power is cut, what was booted before is booted again, or the new image whole.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ed25519_dalek::VerifyingKey;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{EFI, OperatingSystem, Type};
use neap_abi::slots::{COPIES, COPY_BYTES, COPY_STEP_BYTES, Copies, Slot, State};
use neap_host::card_disk::{CardDisk, Sectors, sought};
use neap_loader::image::{IMAGE_BYTES_MAX, Manifest, Refusal, Verified, hex};
use neap_loader::keys;
use neap_loader::slots::{Choice, Nothing, choose};

/// The partitions' names.
pub const ESP: &str = "neap-esp";
/// As [`ESP`].
pub const STATE: &str = "neap-state";
/// As [`ESP`]; in the slots' order.
pub const SLOTS: [&str; 2] = ["neap-a", "neap-b"];
/// Where UEFI looks for the loader on a disk.
const LOADER: [&str; 3] = ["EFI", "BOOT", "BOOTAA64.EFI"];
/// Where the loader looks for the keys that it trusts.
const KEYS: [&str; 3] = ["EFI", "NEAP", "KEYS"];

/// Bytes of a slot.
pub const SLOT_BYTES: u64 = IMAGE_BYTES_MAX as u64;
const ESP_BYTES: u64 = 16 << 20;
const STATE_BYTES: u64 = 1 << 20;
/// Where partitions begin and end.
const ALIGN_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 512;
/// The least that a disk has: the partitions, and a table at each end.
pub const DISK_BYTES_MIN: u64 = ESP_BYTES + STATE_BYTES + 2 * SLOT_BYTES + 2 * ALIGN_BYTES;
/// What is written at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Files of the first partition are no longer.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The types of our own partitions.
const STATE_TYPE: &str = "6B2F0A54-0E3C-4B6B-9A53-2E1D6E5A7001";
const SLOT_TYPE: &str = "6B2F0A54-0E3C-4B6B-9A53-2E1D6E5A7002";

/// What a disk is kept on.
pub trait Medium: Read + Write + Seek + fmt::Debug {
    /// Makes durable what was written.
    ///
    /// # Errors
    /// As the medium has them.
    fn persist(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn persist(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The disk of a card that runs, by its window.
impl<S: Sectors + fmt::Debug> Medium for CardDisk<'_, S> {
    fn persist(&mut self) -> io::Result<()> {
        Self::persist(self)
    }
}

impl Medium for Cursor<Vec<u8>> {
    fn persist(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A card's disk.
#[derive(Debug)]
pub struct Disk<M> {
    medium: M,
    esp: Range<u64>,
    state: Range<u64>,
    slots: [Range<u64>; 2],
}

/// What a flash would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What stands in the state now.
    pub state: State,
    /// The slot that is written.
    pub slot: Slot,
}

impl<M: Medium> Disk<M> {
    /// Lays a whole disk out on `medium`, with empty slots. All that was on it is lost.
    ///
    /// # Errors
    /// A medium that is too small, or can't be written.
    pub fn format(mut medium: M, loader: &[u8], trusted: &[VerifyingKey]) -> Result<Self> {
        let bytes = medium.seek(SeekFrom::End(0))?;
        ensure!(bytes >= DISK_BYTES_MIN, "it has {bytes} bytes, and a card's disk takes {DISK_BYTES_MIN}");
        let blocks = u32::try_from(bytes / BLOCK_BYTES - 1).unwrap_or(u32::MAX);
        ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut medium)?;
        let mut table = GptConfig::new()
            .writable(true)
            .logical_block_size(LogicalBlockSize::Lb512)
            .create_from_device(&mut medium, None)?;
        table.update_partitions(BTreeMap::new())?;
        let own = |guid: &str| -> Result<Type> {
            Ok(Type { guid: guid.parse()?, os: OperatingSystem::Custom("Neap".to_owned()) })
        };
        let parts = [
            (ESP, ESP_BYTES, EFI),
            (STATE, STATE_BYTES, own(STATE_TYPE)?),
            (SLOTS[0], SLOT_BYTES, own(SLOT_TYPE)?),
            (SLOTS[1], SLOT_BYTES, own(SLOT_TYPE)?),
        ];
        for (name, bytes, kind) in parts {
            table.add_partition(name, bytes, kind, 0, Some(ALIGN_BYTES / BLOCK_BYTES))?;
        }
        table.write()?;
        let mut disk = Self::open(medium)?;
        let esp = esp(loader, trusted)?;
        disk.write(disk.esp.start, &esp, &mut |_| {})?;
        let empty = vec![0; CHUNK_BYTES];
        for range in [disk.state.clone(), disk.slots[0].clone(), disk.slots[1].clone()] {
            for at in range.step_by(CHUNK_BYTES) {
                disk.write(at, &empty, &mut |_| {})?;
            }
        }
        disk.medium.persist()?;
        Ok(disk)
    }

    /// A disk that is there.
    ///
    /// # Errors
    /// What is no card's disk.
    pub fn open(mut medium: M) -> Result<Self> {
        let table = GptConfig::new()
            .writable(false)
            .logical_block_size(LogicalBlockSize::Lb512)
            .open_from_device(&mut medium)
            .context("it has no partition table (GPT)")?;
        let find = |name: &str, least: u64| -> Result<Range<u64>> {
            let mut found = table.partitions().values().filter(|part| part.name == name);
            let part = found.next().with_context(|| format!("it has no partition {name}"))?;
            ensure!(found.next().is_none(), "it has two partitions {name}");
            let range = part.first_lba * BLOCK_BYTES..(part.last_lba + 1) * BLOCK_BYTES;
            let bytes = range.end.saturating_sub(range.start);
            ensure!(bytes >= least, "its partition {name} has {bytes} bytes, and takes {least}");
            Ok(range)
        };
        let (esp, state) = (find(ESP, ESP_BYTES)?, find(STATE, STATE_BYTES)?);
        let slots = [find(SLOTS[0], SLOT_BYTES)?, find(SLOTS[1], SLOT_BYTES)?];
        drop(table);
        Ok(Self { medium, esp, state, slots })
    }

    /// What it is kept on.
    pub fn into_medium(self) -> M {
        self.medium
    }

    /// Where the state and the slots lie, in bytes.
    pub fn ranges(&self) -> [Range<u64>; 3] {
        [self.state.clone(), self.slots[0].clone(), self.slots[1].clone()]
    }

    fn read(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.medium.seek(SeekFrom::Start(at))?;
        self.medium.read_exact(&mut read).with_context(|| format!("byte {at} can't be read"))?;
        Ok(read)
    }

    fn write(&mut self, at: u64, bytes: &[u8], done: &mut dyn FnMut(u64)) -> Result<()> {
        self.medium.seek(SeekFrom::Start(at))?;
        let mut written = 0;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.medium
                .write_all(chunk)
                .with_context(|| format!("byte {} can't be written", at + written))?;
            written += chunk.len() as u64;
            done(written);
        }
        Ok(())
    }

    /// The keys that its loader trusts.
    ///
    /// # Errors
    /// A first partition that can't be read, or a key that is none.
    pub fn keys(&mut self) -> Result<Vec<VerifyingKey>> {
        let range = self.esp.clone();
        let volume = FileSystem::new(Part { medium: &mut self.medium, range, at: 0 }, FsOptions::new())
            .with_context(|| format!("{ESP} holds no file system"))?;
        let path = KEYS.join("/");
        let mut text = String::new();
        let file = volume.root_dir().open_file(&path).with_context(|| format!("{ESP} has no {path}"))?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(|| path.clone())?;
        let all: std::result::Result<_, usize> = keys::trusted(&text).collect();
        all.map_err(|line| anyhow!("line {line} of {path} is no public key"))
    }

    /// The state.
    ///
    /// # Errors
    /// It can't be read.
    pub fn state(&mut self) -> Result<Copies> {
        let mut copies = [[0; COPY_BYTES]; COPIES];
        for (at, copy) in (self.state.start..).step_by(COPY_STEP_BYTES as usize).zip(&mut copies) {
            copy.copy_from_slice(&self.read(at, COPY_BYTES)?);
        }
        Ok(Copies::read(copies.each_ref()))
    }

    /// A slot, all of it.
    ///
    /// # Errors
    /// It can't be read.
    pub fn slot(&mut self, slot: Slot) -> Result<Vec<u8>> {
        self.read(self.slots[slot as usize].start, SLOT_BYTES as usize)
    }

    /// What the loader would boot from it, on `board`.
    ///
    /// # Errors
    /// It can't be read. That neither slot boots is no error of this.
    pub fn choice(
        &mut self,
        board: &str,
        trusted: &[VerifyingKey],
    ) -> Result<std::result::Result<Choice, Nothing>> {
        let state = self.state()?.state;
        let slots = [self.slot(Slot::A)?, self.slot(Slot::B)?];
        Ok(choose(state, |slot, least| checked(&slots[slot as usize], trusted, board, least)))
    }

    /// What a flash would do now.
    ///
    /// # Errors
    /// The state can't be read.
    pub fn plan(&mut self) -> Result<Plan> {
        let state = self.state()?.state;
        Ok(Plan { state, slot: state.inactive() })
    }

    /// As [`Disk::plan`], where the card runs: what was tried then is what runs, and the next boot will read that it has confirmed
    /// itself.
    ///
    /// # Errors
    /// The state or the slot can't be read.
    pub fn plan_of_running(&mut self) -> Result<Plan> {
        let mut state = self.state()?.state;
        if let Some(slot) = state.trial.filter(|_| state.is_tried) {
            let (manifest, _) =
                Manifest::alleged(&self.slot(slot)?).with_context(|| format!("slot {slot}, which runs"))?;
            state = state.confirmed(manifest.security_version);
        }
        Ok(Plan { state, slot: state.inactive() })
    }

    /// Writes into the state what the next boot would, by [`Disk::plan_of_running`]. A card refuses it as long as what it runs has not
    /// confirmed itself.
    ///
    /// # Errors
    /// As the medium has them.
    pub fn settle(&mut self, plan: &Plan) -> Result<()> {
        let mut copies = self.state()?;
        if plan.state == copies.state { Ok(()) } else { self.set_state(&mut copies, plan.state) }
    }

    /// Writes `image` into the slot that is not booted, and has the next boot try it: the slot. `done` is told how many bytes
    /// of the slot are written.
    ///
    /// # Errors
    /// The image is longer than a slot, or the medium does not hold what is written to it. What was booted before is booted
    /// still.
    pub fn flash(&mut self, image: &[u8], done: &mut dyn FnMut(u64)) -> Result<Slot> {
        ensure!(image.len() as u64 <= SLOT_BYTES, "an image of {} bytes fits no slot", image.len());
        let mut copies = self.state()?;
        let slot = copies.state.inactive();
        if copies.state.trial.is_some() {
            let flashing = copies.state.flashing();
            self.set_state(&mut copies, flashing)?;
        }
        let mut whole = image.to_vec();
        whole.resize(SLOT_BYTES as usize, 0);
        let at = self.slots[slot as usize].start;
        self.write(at, &whole, done)?;
        self.medium.persist()?;
        if let Some(wrong) = self.slot(slot)?.iter().zip(&whole).position(|(is, was)| is != was) {
            bail!(
                "slot {slot} does not hold what was written to it, from byte {wrong} on: the medium is bad"
            );
        }
        let flashed = copies.state.flashed();
        self.set_state(&mut copies, flashed)?;
        Ok(slot)
    }

    /// Writes a new state over the copy that does not count.
    ///
    /// # Errors
    /// As the medium has them.
    pub fn set_state(&mut self, copies: &mut Copies, state: State) -> Result<()> {
        let (at, copy) = copies.write(state);
        self.write(self.state.start + at as u64 * COPY_STEP_BYTES, &copy, &mut |_| {})?;
        Ok(self.medium.persist()?)
    }
}

/// A partition of a medium, to be read.
struct Part<'m, M> {
    medium: &'m mut M,
    range: Range<u64>,
    at: u64,
}

impl<M: Medium> Read for Part<'_, M> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.range.start + self.at;
        let left = self.range.end.saturating_sub(from).min(to.len() as u64);
        self.medium.seek(SeekFrom::Start(from))?;
        let read = self.medium.read(&mut to[..left as usize])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<M> Write for Part<'_, M> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<M> Seek for Part<'_, M> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = sought(to, self.at, self.range.end - self.range.start)?;
        Ok(self.at)
    }
}

/// What is wrong with the image in a slot, on `board`.
///
/// # Errors
/// The reason.
pub fn checked(
    slot: &[u8],
    trusted: &[VerifyingKey],
    board: &str,
    security_version_least: u32,
) -> std::result::Result<(), Refusal> {
    Verified::check(slot, trusted)?.for_board(board, security_version_least).map(drop)
}

/// The first partition.
fn esp(loader: &[u8], trusted: &[VerifyingKey]) -> Result<Vec<u8>> {
    let mut volume = Cursor::new(vec![0; ESP_BYTES as usize]);
    fatfs::format_volume(&mut volume, FormatVolumeOptions::new().volume_label(*b"NEAP       "))?;
    volume.rewind()?;
    let files = FileSystem::new(&mut volume, FsOptions::new())?;
    let text: String =
        trusted.iter().map(|key| format!("{}{}\n", keys::PUBLIC, hex(key.as_bytes()))).collect();
    for (path, bytes) in [(LOADER, loader), (KEYS, text.as_bytes())] {
        let mut directory = files.root_dir();
        for name in &path[..path.len() - 1] {
            directory = directory.create_dir(name)?;
        }
        let mut file = directory.create_file(path[path.len() - 1])?;
        file.truncate()?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    files.unmount()?;
    Ok(volume.into_inner())
}
