//! The window, as a host sees it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use neap_abi::epitaph::RECORD_BYTES;
use neap_abi::hello::{self, HELLO_BYTES, Hello, HelloError, MAGIC};
use neap_abi::image::NAME_BYTES;
use neap_abi::{Epitaph, EpitaphRecord, Region, RegionKind, Version};
use neap_hal::soc::window::ClaimError;
use neap_queue::Line;
use neap_vipu::{Mapping, WindowError};
use thiserror::Error;

/// Why a window cannot be used.
#[derive(Debug, Error)]
pub enum HostWindowError {
    /// The file.
    #[error("cannot open the window {}: {reason}; is an IPU running?", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The mapping.
    #[error(transparent)]
    Map(#[from] WindowError),
    /// The hello page.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// A region that the hello page names cannot be had.
    #[error("the hello page's region {region:?}: {reason}")]
    Region {
        /// The region.
        region: Region,
        /// Why not.
        reason: ClaimError,
    },
    /// A region that is needed and not there.
    #[error("the hello page names no region {kind:?} {index}")]
    NoRegion {
        /// Its kind.
        kind: RegionKind,
        /// Its index.
        index: u16,
    },
}

/// What a loader says of what it booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The slot: "B, on trial".
    pub slot: String,
    /// The slot that it refused, and why.
    pub refused: Option<String>,
}

impl Origin {
    /// As a hello page that was read says it.
    #[must_use]
    pub fn of(page: &[u8]) -> Option<Self> {
        let (slot, refused) = hello::origin(page)?;
        Some(Self { slot: slot.to_owned(), refused: refused.map(str::to_owned) })
    }
}

/// A mapped window.
#[derive(Debug)]
pub struct HostWindow {
    mapping: Mapping,
}

impl HostWindow {
    /// The window in a mapping.
    #[must_use]
    pub fn new(mapping: Mapping) -> Self {
        Self { mapping }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes() as u64
    }

    /// Reads and checks the hello page, as a host of version `ours`.
    ///
    /// # Errors
    /// What is wrong with it, by name.
    pub fn hello(&self, ours: Version) -> Result<Hello, HelloError> {
        let bytes = self.mapping.bytes();
        Hello::read(&self.copy(0, bytes.min(HELLO_BYTES)), bytes as u64, ours)
    }

    /// What booted the IPU, as its loader tells it.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        Origin::of(&self.copy(0, self.mapping.bytes().min(HELLO_BYTES)))
    }

    /// Writes the hello page, for an agent on the host.
    ///
    /// # Errors
    /// A window smaller than the page.
    pub fn set_hello(&self, hello: &Hello) -> Result<(), HelloError> {
        let mut page = [0; HELLO_BYTES];
        hello.write(&mut page);
        let region = self.mapping.claim().region(0, HELLO_BYTES as u64);
        let Ok(bytes) = region.and_then(|region| region.slice::<AtomicU8>()) else {
            return Err(HelloError::Truncated { bytes: self.mapping.bytes() });
        };
        // The magic last: whoever sees it sees the rest.
        for (to, from) in bytes.iter().zip(page).skip(8) {
            to.store(from, Ordering::Relaxed);
        }
        for (to, from) in bytes.iter().zip(page).take(8) {
            to.store(from, Ordering::Release);
        }
        Ok(())
    }

    /// The lines of a region of `hello`.
    ///
    /// # Errors
    /// A region that the page does not name, or that is not in the window.
    pub fn lines(&self, hello: &Hello, kind: RegionKind) -> Result<&[Line], HostWindowError> {
        let region = hello.region(kind, 0).ok_or(HostWindowError::NoRegion { kind, index: 0 })?;
        let error = |reason| HostWindowError::Region { region, reason };
        let claim = self.mapping.claim().region(region.offset, region.bytes).map_err(error)?;
        // Checks alignment and size for us: a line is eight atomic words.
        let words = claim.slice::<[std::sync::atomic::AtomicU64; 8]>().map_err(error)?;
        let base = words.as_ptr().cast::<Line>();
        if !base.is_aligned() {
            let (address, align) = (base.addr(), align_of::<Line>());
            return Err(error(ClaimError::Align { address, align }));
        }
        // SAFETY: a `Line` is eight `AtomicU64` and no more (`repr(C)`, its size is asserted where it is defined), the
        // slice covers as many of them, the base is aligned for it (checked above), and the mapping lives as long as
        // `self` is borrowed. All access goes through atomics.
        Ok(unsafe { std::slice::from_raw_parts(base, words.len()) })
    }

    /// The last epitaph of an IPU core, if a whole one lies there.
    #[must_use]
    pub fn epitaph(&self, hello: &Hello, core: u16) -> Option<Epitaph> {
        Epitaph::from_bytes(&self.region_bytes(hello, RegionKind::Epitaph, core)?)
    }

    /// All epitaphs in the window: by core, and of each core the newest first.
    #[must_use]
    pub fn epitaphs(&self, hello: &Hello) -> Vec<EpitaphRecord> {
        let regions = hello.regions().filter(|region| region.kind == RegionKind::Epitaph);
        let bytes = regions.filter_map(|region| self.region_bytes(hello, region.kind, region.index));
        bytes.flat_map(|bytes| records(&bytes)).collect()
    }

    /// Writes `bytes` to the beginning of a region.
    ///
    /// # Errors
    /// A region that the page does not name, that is not in the window, or that is too small.
    pub fn set_region_bytes(
        &self,
        hello: &Hello,
        kind: RegionKind,
        index: u16,
        bytes: &[u8],
    ) -> Result<(), HostWindowError> {
        let region = hello.region(kind, index).ok_or(HostWindowError::NoRegion { kind, index })?;
        let error = |reason| HostWindowError::Region { region, reason };
        let claim = self.mapping.claim().region(region.offset, region.bytes).map_err(error)?;
        let claim = claim.region(0, bytes.len() as u64).map_err(error)?;
        for (to, &from) in claim.slice::<AtomicU8>().map_err(error)?.iter().zip(bytes) {
            to.store(from, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A copy of a region's bytes, as they are at the moment; none where the hello page names no such region.
    #[must_use]
    pub fn region_bytes(&self, hello: &Hello, kind: RegionKind, index: u16) -> Option<Vec<u8>> {
        let region = hello.region(kind, index)?;
        Some(self.copy(region.offset, usize::try_from(region.bytes).ok()?))
    }

    /// A copy of a region's first bytes; fewer where it has fewer, none where the hello page names no such region.
    #[must_use]
    pub fn region_head(&self, hello: &Hello, kind: RegionKind, bytes: usize) -> Vec<u8> {
        let region = hello.region(kind, 0);
        region.map_or_else(Vec::new, |region| self.copy(region.offset, bytes.min(region.bytes as usize)))
    }

    /// Whether the hello page that stands there now is still of boot `boot`.
    #[must_use]
    pub fn is_of_boot(&self, boot: u32) -> bool {
        let head = self.copy(0, 16);
        head.starts_with(&MAGIC.to_le_bytes()) && head.get(12..16) == Some(&boot.to_le_bytes())
    }

    fn copy(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let region = self.mapping.claim().region(offset, bytes as u64);
        match region.and_then(|region| region.slice::<AtomicU8>()) {
            Ok(bytes) => bytes.iter().map(|byte| byte.load(Ordering::Acquire)).collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// The epitaphs in a core's region: several since 1.2, one before.
#[must_use]
pub fn records(region: &[u8]) -> Vec<EpitaphRecord> {
    if region.len() >= RECORD_BYTES {
        return EpitaphRecord::all(region).collect();
    }
    let alone = |epitaph| EpitaphRecord {
        epitaph,
        incarnation: 0,
        image_crc: 0,
        number: 1,
        name: [0; NAME_BYTES],
        last_message: None,
    };
    Epitaph::from_bytes(region).map(alone).into_iter().collect()
}
