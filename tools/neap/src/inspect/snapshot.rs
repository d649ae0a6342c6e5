//! A look into the windows: the running instance's files, or the copies that the last run left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use neap_abi::hello::HELLO_BYTES;
use neap_abi::line::{LINE_BYTES, Tag, WORDS, open};
use neap_abi::{AgentControl, EpitaphRecord, Hello, Payload, Region, RegionKind, VERSION};
use neap_host::device::DeviceWindow;
use neap_host::manager::Agents;
use neap_host::window::{Origin, records};
use xtask::paths;

use crate::measured::Measured;
use crate::run::{Notes, alive};

/// What `<cache>/last-run` and a run directory both hold.
pub const NOTES: &str = "run.json";
/// A run's newest figures, absent before its load has begun.
pub const FIGURES: &str = "figures.json";
/// The firmware that ran, absent for an on-host run.
pub const FIRMWARE: &str = "firmware.elf";

/// Looks before a line that is just being written counts as torn.
const TRIES: u32 = 1000;

/// A run that can be looked at.
#[derive(Debug)]
pub struct Snapshot {
    /// Its directory.
    pub dir: PathBuf,
    /// Whether it is still running.
    pub running: bool,
    /// What it was asked.
    pub notes: Notes,
    /// What its host has measured, from its load's begin on.
    pub figures: Option<Measured>,
    /// Its enclaves' windows.
    pub views: Vec<View>,
}

/// A look into one enclave's window.
#[derive(Debug)]
pub struct View {
    window: Source,
}

/// Where a window can be read.
#[derive(Debug)]
enum Source {
    /// In the file that it is, or a copy.
    File(File),
    /// Through a driver.
    Device(DeviceWindow),
}

impl Snapshot {
    /// The running instance, the newest if there are several, else the last run.
    pub fn find() -> Result<Self> {
        if let Some(running) = Self::running() {
            return Ok(running);
        }
        let last = last_run();
        if !last.is_dir() {
            bail!(
                "nothing runs, and no run has been kept in {}; start one with `cargo neap run`",
                last.display()
            );
        }
        Self::open(&last, false)
    }

    /// The running instance, the newest if there are several.
    pub fn running() -> Option<Self> {
        // A run that is about to begin or to end may not have all yet, or no more.
        alive().iter().find_map(|dir| Self::open(dir, true).ok())
    }

    /// The run in `dir`.
    pub fn open(dir: &Path, running: bool) -> Result<Self> {
        let notes = fs::read(dir.join(NOTES)).with_context(|| format!("{} has no notes", dir.display()))?;
        let notes: Notes = serde_json::from_slice(&notes)
            .with_context(|| format!("{} is of another release of neap; run once more", dir.display()))?;
        let view = |enclave| {
            let window = File::open(dir.join(window_name(enclave)));
            let window = window.with_context(|| format!("a window in {} can't be opened", dir.display()))?;
            Ok(View { window: Source::File(window) })
        };
        let views = (0..notes.parameters.enclaves.len()).map(view).collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_owned(), running, notes, figures: figures(dir), views })
    }
}

impl View {
    /// Through a driver.
    pub fn of_device(window: DeviceWindow) -> Self {
        Self { window: Source::Device(window) }
    }

    /// The hello page, checked.
    pub fn hello(&self) -> Result<Hello> {
        Ok(self.greeting()?.0)
    }

    /// The hello page, checked, and what it says of what booted.
    pub fn greeting(&self) -> Result<(Hello, Option<Origin>)> {
        let mut page = vec![0; HELLO_BYTES];
        self.read(&mut page, 0).context("reading the hello page")?;
        Ok((Hello::read(&page, self.bytes()?, VERSION)?, Origin::of(&page)))
    }

    /// The window's size in bytes.
    fn bytes(&self) -> Result<u64> {
        match &self.window {
            Source::File(file) => Ok(file.metadata()?.len()),
            Source::Device(window) => Ok(window.bytes()),
        }
    }

    /// The IPU's control line; none when no firmware has written one.
    pub fn agent(&self, hello: &Hello) -> Result<Option<AgentControl>> {
        let Some(region) = hello.region(RegionKind::AgentControl, 0) else { return Ok(None) };
        let line = self.line(region.offset).context("the agent's control line")?;
        Ok(line.as_ref().and_then(AgentControl::from_payload))
    }

    /// What the supervisor says of the enclave's agents; nothing before 1.2.
    pub fn agents(&self, hello: &Hello) -> Result<Agents> {
        let Some(region) = hello.region(RegionKind::Supervisor, 0) else { return Ok(Agents::default()) };
        let count = region.bytes / LINE_BYTES as u64;
        let lines = (0..count).map(|at| self.line(region.offset + at * LINE_BYTES as u64));
        let lines = lines.collect::<Result<Vec<_>>>().context("the supervisor's lines")?;
        Ok(Agents::of(|at| *lines.get(at)?))
    }

    /// A line's payload; none where none was ever written.
    fn line(&self, offset: u64) -> Result<Option<Payload>> {
        for _ in 0..TRIES {
            let mut bytes = [0; LINE_BYTES];
            self.read(&mut bytes, offset).context("reading a line")?;
            let words: [u64; WORDS] =
                std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * i + byte])));
            if words == [0; WORDS] {
                return Ok(None);
            }
            if Tag::of(&words).is_some() {
                return Ok(Some(open(words)));
            }
        }
        bail!("it stays torn: its writer has ended in the middle of it")
    }

    /// The epitaphs: by core, and of each core the newest first.
    pub fn epitaphs(&self, hello: &Hello) -> Result<Vec<EpitaphRecord>> {
        let mut found = Vec::new();
        for region in hello.regions().filter(|region| region.kind == RegionKind::Epitaph) {
            let mut bytes = vec![0; usize::try_from(region.bytes)?];
            self.read(&mut bytes, region.offset).context("reading epitaphs")?;
            found.extend(records(&bytes));
        }
        Ok(found)
    }

    /// The log rings, by core.
    pub fn logs(&self, hello: &Hello) -> Vec<Region> {
        hello.regions().filter(|region| region.kind == RegionKind::Log).collect()
    }

    /// Reads `bytes` from `offset` of the window.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.window {
            Source::File(file) => file.read_exact_at(bytes, offset),
            Source::Device(window) => window.read(bytes, offset),
        }
    }
}

/// What an enclave's window is called.
pub fn window_name(enclave: usize) -> String {
    if enclave == 0 { "window".to_owned() } else { format!("window{enclave}") }
}

/// What a run's host has measured so far, or in all.
fn figures(dir: &Path) -> Option<Measured> {
    serde_json::from_slice(&fs::read(dir.join(FIGURES)).ok()?).ok()
}

/// Notes what a run's host has measured so far, for whoever looks; whole or not at all.
pub fn note_figures(dir: &Path, figures: &Measured) -> Result<()> {
    let fresh = dir.join("figures.new");
    fs::write(&fresh, serde_json::to_vec(figures)?).context("writing the run's figures")?;
    fs::rename(&fresh, dir.join(FIGURES)).context("writing the run's figures")
}

/// Where the last run is kept.
pub fn last_run() -> PathBuf {
    paths::cache_dir().join("last-run")
}

/// Keeps what a run leaves: the parts of its windows that are read later, its firmware and its notes, in place of what
/// the run before left.
pub fn keep(dir: &Path) -> Result<()> {
    let last = last_run();
    let cache = last.parent().context("the cache has no place")?;
    fs::create_dir_all(cache).with_context(|| format!("the cache {} can't be made", cache.display()))?;
    let fresh = tempfile::Builder::new().prefix("last-run-").tempdir_in(cache)?;
    let snapshot = Snapshot::open(dir, true)?;
    for (enclave, view) in snapshot.views.iter().enumerate() {
        copy_window(view, &fresh.path().join(window_name(enclave)))?;
    }
    for name in [NOTES, FIGURES, FIRMWARE, crate::run::SERIAL] {
        match fs::copy(dir.join(name), fresh.path().join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context(name),
            _ => {}
        }
    }
    // Only a run whose host is a guest has one.
    let _ = fs::copy(crate::run::guest_console(dir), fresh.path().join("console.log"));
    // Two runs may end at once: the later one's stays.
    for _ in 0..10 {
        match fs::rename(fresh.path(), &last) {
            Ok(()) => {
                let _ = fresh.keep();
                return Ok(());
            }
            Err(_) => {
                let _ = fs::remove_dir_all(&last);
            }
        }
    }
    bail!("{} can't be replaced; remove it", last.display())
}

/// Copies the hello page, the agent's and the supervisor's lines, logs and epitaphs to their places in a file full of holes.
fn copy_window(from: &View, to: &Path) -> Result<()> {
    let copy = File::create(to)?;
    copy.set_len(from.bytes()?)?;
    let mut page = vec![0; HELLO_BYTES];
    from.read(&mut page, 0)?;
    copy.write_all_at(&page, 0)?;
    // Firmware that never came up has left no page: there is nothing more to keep.
    let Ok(hello) = from.hello() else { return Ok(()) };
    for region in hello.regions() {
        let read_later =
            [RegionKind::AgentControl, RegionKind::Supervisor, RegionKind::Log, RegionKind::Epitaph];
        if read_later.contains(&region.kind) {
            let mut bytes = vec![0; usize::try_from(region.bytes)?];
            from.read(&mut bytes, region.offset)?;
            copy.write_all_at(&bytes, region.offset)?;
        }
    }
    Ok(())
}
