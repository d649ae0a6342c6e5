//! The disk that the card was booted from, as hosts may reach it while its image runs: to read all of it, and to write what a new
//! image needs. One request at a time, and nobody waits for it here.

use core::sync::atomic::{AtomicU8, Ordering};

use neap_abi::slots::{COPY_BYTES, SECTOR_BYTES, Writable};
use neap_abi::supervisor::DISK_BYTES_MAX;
use neap_abi::{Manage, ManagerLine, Reply};
use neap_hal::board::pci::virtio::{Disk, Left, REQUEST_BYTES_MAX, Request};

use crate::window::copy;

const _: () = assert!(DISK_BYTES_MAX == REQUEST_BYTES_MAX);

/// The disk, and who has asked for it last.
pub struct CardDisk {
    disk: Disk,
    writable: Writable,
    /// Sectors that it has.
    pub sectors: u64,
    /// What is under way.
    pub asked: Option<Asked>,
}

/// What is under way.
#[derive(Clone, Copy)]
pub struct Asked {
    /// Whose it is.
    pub index: usize,
    /// Which request.
    pub request: u32,
    reads: bool,
}

impl CardDisk {
    /// What the loader has left; none if it could not start it.
    ///
    /// # Safety
    /// As [`Disk::new`].
    pub unsafe fn new(left: &Left) -> Option<Self> {
        // SAFETY: the caller's promise.
        let disk = unsafe { Disk::new(left) }?;
        let writable = Writable::from_words(left.writable);
        Some(Self { disk, writable, sectors: left.sectors, asked: None })
    }

    /// Begins what an enclave's host asks for; `region` is where it lays images. Where there is nothing the disk refuses by
    /// itself, as it does parts of sectors.
    pub fn begin(
        &mut self,
        index: usize,
        line: &ManagerLine,
        region: &[AtomicU8],
        is_trial: bool,
    ) -> Result<(), Reply> {
        if self.asked.is_some() {
            return Err(Reply::Busy);
        }
        let (sector, bytes) = (u64::from(line.policy), line.image_bytes);
        let buffer = self.disk.buffer();
        if bytes as usize > buffer.len() {
            return Err(Reply::Forbidden);
        }
        let reads = line.command == Manage::ReadDisk;
        let request = if bytes == 0 {
            Request::Flush
        } else if reads {
            Request::Read(sector, bytes)
        } else {
            // A copy first: what is looked at is what is written, whatever the host does meanwhile.
            copy(buffer, region);
            let mut head = [0; COPY_BYTES];
            for (to, from) in head.iter_mut().zip(buffer) {
                *to = from.load(Ordering::Relaxed);
            }
            let sectors = bytes.div_ceil(SECTOR_BYTES as u32);
            if is_trial || !self.writable.allows(sector, sectors.into(), &head) {
                return Err(Reply::Forbidden);
            }
            Request::Write(sector, bytes)
        };
        self.disk.begin(request);
        self.asked = Some(Asked { index, request: line.request, reads });
        Ok(())
    }

    /// What became of what is under way, once it has ended: what was read is laid into `region` then.
    pub fn ended(&mut self, asked: &Asked, region: &[AtomicU8]) -> Option<Reply> {
        let is_done = self.disk.end()?;
        self.asked = None;
        if asked.reads {
            copy(region, self.disk.buffer());
        }
        Some(if is_done { Reply::Done } else { Reply::DiskFailed })
    }
}
