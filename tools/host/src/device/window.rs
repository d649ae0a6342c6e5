//! What user space may see of a device's window: copies, taken word by word, of the regions that the driver lets it map.

use std::fs::File;
use std::io;

use memmap2::{MmapOptions, MmapRaw};
use neap_abi::hello::{HELLO_BYTES, Hello, HelloError, REGION_ALIGN};
use neap_abi::{RegionKind, VERSION};

/// The regions that can be read through a device.
const READABLE: [RegionKind; 4] =
    [RegionKind::AgentControl, RegionKind::Supervisor, RegionKind::Log, RegionKind::Epitaph];

/// The mappings of a window's regions.
///
/// While it lives, a function that goes takes its mappings with it, and a look at one is then a SIGBUS.
#[derive(Debug)]
pub struct DeviceWindow {
    bytes: u64,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    offset: u64,
    map: MmapRaw,
}

impl Part {
    fn new(device: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes.next_multiple_of(REGION_ALIGN)).map_err(io::Error::other)?;
        let map = MmapOptions::new().offset(offset).len(bytes).map_raw_read_only(device)?;
        Ok(Self { offset, map })
    }

    /// The word at `at` of the window, which is a multiple of eight.
    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at.checked_sub(self.offset)?).ok()?;
        if at.checked_add(size_of::<u64>())? > self.map.len() {
            return None;
        }
        // SAFETY: the word is inside the mapping, which begins on a page, so it is aligned; whoever writes it does so as a
        // whole, and a volatile load takes it as a whole.
        Some(unsafe { self.map.as_ptr().add(at).cast::<u64>().read_volatile() })
    }
}

impl DeviceWindow {
    /// Maps what can be read through `device`, of a window of `bytes`. Without a hello page that is only where it would be.
    pub(super) fn new(device: &File, bytes: u64) -> io::Result<Self> {
        let mut window = Self { bytes, parts: vec![Part::new(device, 0, HELLO_BYTES as u64)?] };
        let Ok(hello) = window.hello() else { return Ok(window) };
        for region in hello.regions().filter(|region| READABLE.contains(&region.kind)) {
            window.parts.push(Part::new(device, region.offset, region.bytes)?);
        }
        Ok(window)
    }

    /// The window's size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hello page, checked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn hello(&self) -> Result<Hello, HelloError> {
        let mut page = [0; HELLO_BYTES];
        if self.read(&mut page, 0).is_err() {
            return Err(HelloError::Truncated { bytes: 0 });
        }
        Hello::read(&page, self.bytes, VERSION)
    }

    /// Copies what stands at `offset` of the window.
    ///
    /// # Errors
    /// Bytes that the driver does not let user space see.
    pub fn read(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        let mut word = (u64::MAX, [0; 8]);
        for (at, byte) in (offset..).zip(to) {
            let begin = at & !7;
            if word.0 != begin {
                let found = self.parts.iter().find_map(|part| part.word(begin));
                let found = found.ok_or_else(|| {
                    io::Error::other(format!("the driver shows nobody what stands at {at:#x} of the window"))
                })?;
                word = (begin, found.to_ne_bytes());
            }
            *byte = word.1[(at - begin) as usize];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::Layout;
    use neap_abi::hello::Link;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_may_be_seen_is_and_the_rest_is_not() {
        let layout = Layout::usual(8 << 20, 2);
        let hello = layout.hello(7, 0, Link::Pcie).unwrap();
        let mut page = [0; HELLO_BYTES];
        hello.write(&mut page);
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&page, 0).unwrap();
        let log = hello.region(RegionKind::Log, 1).unwrap();
        file.write_all_at(b"0123456789abcdef", log.offset).unwrap();
        let window = DeviceWindow::new(&file, 8 << 20).unwrap();
        assert_eq!(window.hello().unwrap().boot, 7);
        let mut bytes = [0; 11];
        window.read(&mut bytes, log.offset + 3).unwrap();
        assert_eq!(&bytes, b"3456789abcd");
        let slots = hello.region(RegionKind::Slots, 0).unwrap();
        let error = window.read(&mut bytes, slots.offset).unwrap_err().to_string();
        assert!(error.contains("the driver shows nobody"), "{error}");
        let end = log.offset + log.bytes.next_multiple_of(REGION_ALIGN);
        let _ = window.read(&mut bytes, end - 11);
        assert!(window.read(&mut bytes, u64::MAX - 20).is_err());
    }

    #[test]
    fn a_window_without_a_page_is_empty() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let window = DeviceWindow::new(&file, 1 << 20).unwrap();
        assert!(matches!(window.hello(), Err(HelloError::Magic { .. })));
        assert_eq!(window.bytes(), 1 << 20);
    }
}
