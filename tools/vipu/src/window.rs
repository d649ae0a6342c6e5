//! The window's file: a share of the IPU's DRAM that QEMU, the host and the engine map.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use memmap2::MmapRaw;
use neap_hal::soc::window as hal;
use rustix::fs::FallocateFlags;
use thiserror::Error;

/// Smallest window: QEMU's BAR 2 takes no less than a page.
pub const WINDOW_BYTES_MIN: u64 = 4096;

/// Why a window can't be made or mapped.
#[derive(Debug, Error)]
pub enum WindowError {
    /// The size can't be a BAR's.
    #[error("a window of {bytes} bytes can't be a PCI BAR; use a power of two, at least {WINDOW_BYTES_MIN}")]
    Size {
        /// The size asked for or found.
        bytes: u64,
    },
    /// The file can't be made or sized.
    #[error("can't make the window file {}: {source}; free some space there, or ask for a smaller window", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file can't be mapped.
    #[error("can't map the window: {source}")]
    Map {
        /// What the system said.
        source: io::Error,
    },
}

/// A window file, owned: it is removed when this is dropped, though maps of it live on.
#[derive(Debug)]
pub struct Window {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Window {
    /// Makes a zeroed window of `bytes` (a power of two, at least 4 KiB) named `name`: in `/dev/shm` where that
    /// exists and has room, so that it is memory and no disk writes it back, else in the temporary directory.
    /// The space is reserved now: a full `/dev/shm` is an error here, not a SIGBUS later.
    pub fn create(name: &str, bytes: u64) -> Result<Self, WindowError> {
        let shared_memory = Path::new("/dev/shm");
        if shared_memory.is_dir()
            && let Ok(window) = Self::create_in(shared_memory, name, bytes)
        {
            return Ok(window);
        }
        Self::create_in(&std::env::temp_dir(), name, bytes)
    }

    /// As [`create`](Self::create), in the directory `directory` and nowhere else.
    pub fn create_in(directory: &Path, name: &str, bytes: u64) -> Result<Self, WindowError> {
        if !bytes.is_power_of_two() || bytes < WINDOW_BYTES_MIN {
            return Err(WindowError::Size { bytes });
        }
        let path = directory.join(name);
        let file = match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(source) => return Err(WindowError::Create { path, source }),
        };
        // From here on the file is ours, and dropping `window` removes it.
        let window = Self { path, file, bytes };
        rustix::fs::fallocate(&window.file, FallocateFlags::empty(), 0, bytes)
            .map_err(|errno| WindowError::Create { path: window.path.clone(), source: errno.into() })?;
        Ok(window)
    }

    /// Where the file is: QEMU's `mem-path`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The window's size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A descriptor of the file, for a [`Domain`](crate::Domain) to hand to its peers.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Maps the whole window, shared, for reading and writing.
    pub fn map(&self) -> Result<Mapping, WindowError> {
        Mapping::new(self.file.as_fd())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Only the file that we made: another may have taken the name since.
        let ours = |there: &fs::Metadata, here: &fs::Metadata| {
            (there.dev(), there.ino()) == (here.dev(), here.ino())
        };
        if let (Ok(there), Ok(here)) = (fs::symlink_metadata(&self.path), self.file.metadata())
            && ours(&there, &here)
        {
            // Nothing to tell anybody if it fails: the owner is going away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A shared mapping of a whole file: the window, or memory of the host that a DMA engine may reach.
///
/// Others write it while we look. Reach it through atomics or volatile accesses, never through `&[u8]`.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    device: u64,
    inode: u64,
}

impl Mapping {
    /// Maps all of `file`, shared, for reading and writing.
    pub fn new(file: BorrowedFd<'_>) -> Result<Self, WindowError> {
        let map_error = |source: io::Error| WindowError::Map { source };
        let file = File::from(file.try_clone_to_owned().map_err(map_error)?);
        let metadata = file.metadata().map_err(map_error)?;
        if metadata.len() == 0 {
            return Err(WindowError::Size { bytes: 0 });
        }
        let map = MmapRaw::map_raw(&file).map_err(map_error)?;
        Ok(Self { map, device: metadata.dev(), inode: metadata.ino() })
    }

    /// The first byte. Page-aligned, valid for [`bytes`](Self::bytes) while this lives.
    pub fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("a mapping is never at address 0")
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The mapping as a claim, from which checked regions are cut.
    pub fn claim(&self) -> hal::Window<'_> {
        // SAFETY: the mapping is as long as it says and lives while it is borrowed; its bytes are given out as
        // atomics only. A file that somebody shortens is a SIGBUS, not a wrong access.
        unsafe { hal::Window::new(self.map.as_mut_ptr(), self.map.len()) }
            .expect("a mapping is never at address 0")
    }

    /// Which file this is (device, inode): two mappings of one file are the same memory.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}
