//! A card's disk, as its host reaches it through the window while the card runs: any sector can be read, and written what a new
//! image needs (`firmware/runtime/src/card_disk.rs` says what that is).

use std::io::{self, Read, Seek, SeekFrom, Write};

use neap_abi::slots::SECTOR_BYTES;
use neap_abi::supervisor::DISK_BYTES_MAX;

/// Who reaches the sectors of a card's disk: a manager, or a device.
pub trait Sectors {
    /// Reads whole sectors, at most [`DISK_BYTES_MAX`] bytes; how many sectors the disk has.
    ///
    /// # Errors
    /// A card without a disk, a place that is not on it, a disk that fails, silence.
    fn read_sectors(&self, sector: u32, to: &mut [u8]) -> io::Result<u64>;

    /// Writes whole sectors, at most [`DISK_BYTES_MAX`] bytes; none makes durable what was written.
    ///
    /// # Errors
    /// As above, and a place that may not be written.
    fn write_sectors(&self, sector: u32, bytes: &[u8]) -> io::Result<()>;
}

/// The disk, byte by byte.
#[derive(Debug)]
pub struct CardDisk<'s, S> {
    sectors: &'s S,
    at: u64,
    bytes: u64,
}

impl<'s, S: Sectors> CardDisk<'s, S> {
    /// The disk that `sectors` reaches.
    ///
    /// # Errors
    /// A card that has none, silence.
    pub fn open(sectors: &'s S) -> io::Result<Self> {
        let count = sectors.read_sectors(0, &mut [0; SECTOR_BYTES])?;
        Ok(Self { sectors, at: 0, bytes: count.saturating_mul(SECTOR_BYTES as u64) })
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// A disk that fails, silence.
    pub fn persist(&mut self) -> io::Result<()> {
        self.sectors.write_sectors(0, &[])
    }

    /// The sectors, at most as many as one request takes, that hold the next `bytes` bytes or the first of them: the first one,
    /// their bytes, and where in them the next byte is.
    fn next(&self, bytes: usize) -> io::Result<(u32, usize, usize)> {
        let left = self.bytes.saturating_sub(self.at).min(bytes as u64) as usize;
        let sector = u32::try_from(self.at / SECTOR_BYTES as u64).map_err(io::Error::other)?;
        let within = (self.at % SECTOR_BYTES as u64) as usize;
        let whole = if left == 0 { 0 } else { (within + left).next_multiple_of(SECTOR_BYTES) };
        Ok((sector, whole.min(DISK_BYTES_MAX), within))
    }
}

impl<S: Sectors> Read for CardDisk<'_, S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (sector, whole, within) = self.next(to.len())?;
        if whole == 0 {
            return Ok(0);
        }
        let mut read = vec![0; whole];
        self.sectors.read_sectors(sector, &mut read)?;
        let read = &read[within..];
        let bytes = read.len().min(to.len());
        to[..bytes].copy_from_slice(&read[..bytes]);
        self.at += bytes as u64;
        Ok(bytes)
    }
}

impl<S: Sectors> Write for CardDisk<'_, S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let (sector, whole, within) = self.next(from.len())?;
        if whole == 0 {
            return Ok(0);
        }
        let bytes = from.len().min(whole - within);
        let mut sectors = vec![0; whole];
        if within != 0 || bytes != whole {
            // What lies beside it in its sectors stays.
            self.sectors.read_sectors(sector, &mut sectors)?;
        }
        sectors[within..within + bytes].copy_from_slice(&from[..bytes]);
        self.sectors.write_sectors(sector, &sectors)?;
        self.at += bytes as u64;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S> Seek for CardDisk<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = sought(to, self.at, self.bytes)?;
        Ok(self.at)
    }
}

/// Where a seek from `at` leads, on what has so many bytes.
///
/// # Errors
/// A place before the first byte.
pub fn sought(to: SeekFrom, at: u64, bytes: u64) -> io::Result<u64> {
    let at = match to {
        SeekFrom::Start(at) => Some(at),
        SeekFrom::End(by) => bytes.checked_add_signed(by),
        SeekFrom::Current(by) => at.checked_add_signed(by),
    };
    Ok(at.ok_or(io::ErrorKind::InvalidInput)?)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// A disk in memory that takes whole sectors only, and not too many.
    #[derive(Debug)]
    struct Memory(RefCell<Vec<u8>>);

    impl Memory {
        fn range(&self, sector: u32, bytes: usize) -> io::Result<std::ops::Range<usize>> {
            let start = sector as usize * SECTOR_BYTES;
            let fits = bytes.is_multiple_of(SECTOR_BYTES)
                && bytes <= DISK_BYTES_MAX
                && start + bytes <= self.0.borrow().len();
            if fits { Ok(start..start + bytes) } else { Err(io::ErrorKind::InvalidInput.into()) }
        }
    }

    impl Sectors for Memory {
        fn read_sectors(&self, sector: u32, to: &mut [u8]) -> io::Result<u64> {
            to.copy_from_slice(&self.0.borrow()[self.range(sector, to.len())?]);
            Ok((self.0.borrow().len() / SECTOR_BYTES) as u64)
        }

        fn write_sectors(&self, sector: u32, bytes: &[u8]) -> io::Result<()> {
            let range = self.range(sector, bytes.len())?;
            self.0.borrow_mut()[range].copy_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn a_disk_ends_where_it_ends() {
        let memory = Memory(RefCell::new(vec![7; 3 * SECTOR_BYTES]));
        let mut disk = CardDisk::open(&memory).unwrap();
        assert_eq!(disk.seek(SeekFrom::End(-1)).unwrap(), 1535);
        assert_eq!(disk.read(&mut [0; 9]).unwrap(), 1);
        assert_eq!(disk.read(&mut [0; 9]).unwrap(), 0);
        assert_eq!(disk.write(&[0; 9]).unwrap(), 0);
        assert!(disk.seek(SeekFrom::Current(-1537)).is_err());
    }

    proptest! {
        /// What is written anywhere, however long, is what a disk in memory would hold, and is read again.
        #[test]
        fn bytes_are_where_they_were_put(
            writes in proptest::collection::vec((0usize..200_000, 1usize..140_000, any::<u8>()), 1..6)
        ) {
            let bytes = 512 * SECTOR_BYTES;
            let memory = Memory(RefCell::new(vec![0; bytes]));
            let mut disk = CardDisk::open(&memory).unwrap();
            let mut model = vec![0; bytes];
            for (at, length, value) in writes {
                let length = length.min(bytes - at);
                disk.seek(SeekFrom::Start(at as u64)).unwrap();
                disk.write_all(&vec![value; length]).unwrap();
                model[at..at + length].fill(value);
                disk.seek(SeekFrom::Start(at as u64)).unwrap();
                let mut read = vec![0; length];
                disk.read_exact(&mut read).unwrap();
                prop_assert!(read == model[at..at + length]);
            }
            prop_assert!(*memory.0.borrow() == model);
        }
    }
}
