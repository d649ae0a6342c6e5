//! `neap log`: the firmware's defmt stream, read from the window by anybody and at any time.

use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use defmt_decoder::{DecodeError, Locations, StreamDecoder, Table};
use neap_abi::logring::{HEADER_BYTES, capacity, readable};
use neap_abi::{Region, RegionKind};

use super::snapshot::{FIRMWARE, Snapshot, View};

/// How often `--follow` looks.
const EVERY: Duration = Duration::from_millis(100);

/// Prints the log; with `follow`, until the instance has ended.
pub fn log(follow: bool) -> Result<()> {
    let snapshot = Snapshot::find()?;
    let elf = snapshot.dir.join(FIRMWARE);
    if snapshot.notes.parameters.on_host {
        bail!(
            "{} ran on the host: only firmware writes a defmt stream. Run without --on-host",
            snapshot.what()
        );
    }
    let elf = fs::read(&elf).with_context(|| format!("{} can't be read", elf.display()))?;
    let table = Table::parse(&elf).context("reading the firmware's defmt strings")?;
    let table =
        table.context("this firmware has no defmt strings: build it with the linker script defmt.x")?;
    let locations = table.get_locations(&elf).unwrap_or_default();
    // Each enclave's window has the logs of some cores.
    let mut readers = Vec::new();
    for view in &snapshot.views {
        let hello = view.hello().with_context(|| format!("{} has no log", snapshot.what()))?;
        readers.extend(view.logs(&hello).iter().map(|region| (view, Reader::new(*region, &table))));
    }
    loop {
        let mut lines = Vec::new();
        for (view, reader) in &mut readers {
            reader.take(view, &locations, &mut lines)?;
        }
        // Cores share one clock: together their lines tell a story.
        lines.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        let mut out = io::stdout().lock();
        for line in lines {
            match writeln!(out, "{}", line.text) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                done => done?,
            }
        }
        out.flush()?;
        if !follow || !snapshot.running || !snapshot.lives() {
            return Ok(());
        }
        thread::sleep(EVERY);
    }
}

/// A decoded line.
struct Line {
    at_s: f64,
    text: String,
}

/// Follows one core's ring.
struct Reader<'t> {
    region: Region,
    capacity: u32,
    position: u32,
    decoder: Box<dyn StreamDecoder + Send + Sync + 't>,
    last_s: f64,
}

impl<'t> Reader<'t> {
    fn new(region: Region, table: &'t Table) -> Self {
        debug_assert_eq!(region.kind, RegionKind::Log);
        let capacity = capacity(usize::try_from(region.bytes).unwrap_or(0)) as u32;
        Self { region, capacity, position: 0, decoder: table.new_stream_decoder(), last_s: 0.0 }
    }

    /// Decodes what has come since the last look.
    fn take(&mut self, from: &View, locations: &Locations, to: &mut Vec<Line>) -> Result<()> {
        let (bytes, lost) =
            self.unread(|bytes, offset| from.read(bytes, offset)).context("reading a log ring")?;
        if lost != 0 {
            to.push(Line {
                at_s: self.last_s,
                text: format!("core {}: {lost} bytes of log were overwritten", self.region.index),
            });
        }
        self.decoder.received(&bytes);
        loop {
            match self.decoder.decode() {
                Ok(frame) => {
                    let stamp = frame.display_timestamp().map(|stamp| stamp.to_string());
                    let level = frame.level().map_or("print", |level| level.as_str());
                    let place = locations.get(&frame.index());
                    let place =
                        place.map_or_else(String::new, |at| format!("  {}:{}", short(&at.file), at.line));
                    self.last_s = stamp.as_deref().and_then(|s| s.trim().parse().ok()).unwrap_or(self.last_s);
                    to.push(Line {
                        at_s: self.last_s,
                        text: format!(
                            "core {:<2} {:>12} {level:<5} {}{place}",
                            self.region.index,
                            stamp.unwrap_or_default(),
                            frame.display_message()
                        ),
                    });
                }
                Err(DecodeError::UnexpectedEof) => return Ok(()),
                // The ring was cut in the middle of a frame: the decoder goes on with the next.
                Err(DecodeError::Malformed) => {}
            }
        }
    }

    /// Copies what this reader has not seen, and says how many bytes were gone before it looked.
    fn unread(&mut self, read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<(Vec<u8>, u32)> {
        let mut lost = 0;
        loop {
            let found = readable(self.written(&read)?, self.position, self.capacity);
            lost += found.lost;
            let mut bytes = vec![0; found.bytes as usize];
            let ring = self.region.offset + HEADER_BYTES as u64;
            let start = found.position & self.capacity.wrapping_sub(1);
            let first = found.bytes.min(self.capacity - start) as usize;
            read(&mut bytes[..first], ring + u64::from(start))?;
            read(&mut bytes[first..], ring)?;
            self.position = found.position.wrapping_add(found.bytes);
            // The writer never waits: had it come round while we copied, the copy would be worthless.
            if self.written(&read)?.wrapping_sub(found.position) <= self.capacity {
                return Ok((bytes, lost));
            }
            lost += found.bytes;
        }
    }

    fn written(&self, read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<u32> {
        let mut header = [0; 4];
        read(&mut header, self.region.offset)?;
        Ok(u32::from_le_bytes(header))
    }
}

/// A path from the checkout on, or its last three parts.
fn short(path: &std::path::Path) -> String {
    let path = path.strip_prefix(xtask::paths::root()).unwrap_or(path);
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let from = if path.is_absolute() { parts.len().saturating_sub(3) } else { 0 };
    parts[from..].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A log ring of 64 bytes at offset 128.
    fn ring() -> (Region, RefCell<Vec<u8>>) {
        let region = Region { kind: RegionKind::Log, index: 1, offset: 128, bytes: 64 + 64 };
        (region, RefCell::new(vec![0; 256]))
    }

    fn write(window: &RefCell<Vec<u8>>, written: &mut u32, bytes: &[u8]) {
        let mut window = window.borrow_mut();
        for byte in bytes {
            window[192 + (*written as usize & 63)] = *byte;
            *written = written.wrapping_add(1);
        }
        window[128..132].copy_from_slice(&written.to_le_bytes());
    }

    struct Silent;

    impl StreamDecoder for Silent {
        fn received(&mut self, _: &[u8]) {}
        fn decode(&mut self) -> std::result::Result<defmt_decoder::Frame<'_>, DecodeError> {
            Err(DecodeError::UnexpectedEof)
        }
    }

    #[test]
    fn a_reader_follows_round_the_ring_and_says_what_it_lost() {
        let (region, window) = ring();
        let read = |bytes: &mut [u8], offset: u64| {
            bytes.copy_from_slice(&window.borrow()[offset as usize..offset as usize + bytes.len()]);
            Ok(())
        };
        let mut reader = Reader { region, capacity: 64, position: 0, decoder: Box::new(Silent), last_s: 0.0 };
        let mut written = 0;
        let all: Vec<u8> = (0..200).collect();
        write(&window, &mut written, &all[..40]);
        assert_eq!(reader.unread(read).unwrap(), (all[..40].to_vec(), 0));
        write(&window, &mut written, &all[40..80]);
        assert_eq!(reader.unread(read).unwrap(), (all[40..80].to_vec(), 0));
        write(&window, &mut written, &all[80..200]);
        let (bytes, lost) = reader.unread(read).unwrap();
        assert_eq!((bytes.as_slice(), lost), (&all[152..200], 72));
        assert_eq!(reader.unread(read).unwrap(), (Vec::new(), 0));
    }

    #[test]
    fn paths_are_short() {
        let root = xtask::paths::root();
        assert_eq!(short(&root.join("firmware/runtime/src/main.rs")), "firmware/runtime/src/main.rs");
        assert_eq!(short(std::path::Path::new("/a/b/c/d/e.rs")), "c/d/e.rs");
    }
}
