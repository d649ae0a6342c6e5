//! The memory types of the window's regions (section 4.2 of the paper), as the kernel has given them.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use neap_abi::hello::HELLO_BYTES;
use neap_abi::{Hello, RegionKind};
use neap_host::device::Device;

use super::Checks;
use super::raw::{Map, Use};
use crate::bench::Place;

/// Where the kernel lists what it has mapped with which type.
const LIST: &str = "/sys/kernel/debug/x86/pat_memtype_list";

/// Checks them.
pub fn types(device: Option<&Path>) -> Result<()> {
    let path = super::path(device);
    let device = Device::open(&path)?;
    let (base, bytes) = Place::of(&device)?.window()?;
    // What the driver itself maps for a moment only is mapped here meanwhile.
    let window = device.window()?;
    let hello = window.hello()?;
    let file = File::options().read(true).write(true).open(&path)?;
    let image = hello.region(RegionKind::Image, 0).context("the window has no image region")?;
    let image = Map::new(Some(&file), image.offset, 4096, Use::Write).context("mapping the image region")?;
    let text = fs::read_to_string(LIST)
        .with_context(|| format!("{LIST} can't be read: it takes debugfs, and a kernel with PAT"))?;
    drop(image);
    let mut checks = Checks::default();
    check(&mut checks, &entries(&text), base, bytes, &hello)?;
    checks.end()
}

/// A line of the list.
type Entry = (Range<u64>, String);

/// The list's lines: `PAT: [mem 0x…-0x…] type`, the second number that of the byte behind.
fn entries(text: &str) -> Vec<Entry> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let entry = |line: &str| {
        let (range, kind) = line.strip_prefix("PAT: [mem ")?.split_once("] ")?;
        let (start, end) = range.split_once('-')?;
        Some((number(start)?..number(end)?, kind.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// The type that a region is to have, and whether it is mapped all the time.
fn expected(kind: RegionKind) -> (&'static str, bool) {
    match kind {
        RegionKind::HostControl | RegionKind::Messages | RegionKind::Manager | RegionKind::Image => {
            ("write-combining", true)
        }
        RegionKind::Slots => ("write-through", true),
        RegionKind::AgentControl | RegionKind::Supervisor | RegionKind::Log | RegionKind::Epitaph => {
            ("uncached-minus", true)
        }
        RegionKind::Dma | RegionKind::Buffer => ("uncached-minus", false),
    }
}

fn check(checks: &mut Checks, entries: &[Entry], base: u64, bytes: u64, hello: &Hello) -> Result<()> {
    let page = (base..base + HELLO_BYTES as u64, "the hello page".to_owned(), ("uncached-minus", true));
    let regions = hello.regions().map(|region| {
        let start = base + region.offset;
        let name = format!("{:?} {}", region.kind, region.index);
        (start..start + region.bytes.next_multiple_of(4096), name, expected(region.kind))
    });
    let mut known = 0;
    for (range, name, (kind, always)) in std::iter::once(page).chain(regions) {
        let over = |entry: &&Entry| entry.0.start < range.end && range.start < entry.0.end;
        let mapped: Vec<&Entry> = entries.iter().filter(over).collect();
        known += mapped.len();
        let wrong = mapped.iter().find(|entry| entry.1 != kind || !within(&entry.0, &range));
        let problem = match wrong {
            Some((at, found)) => Some(format!("{:#x}-{:#x} is {found}", at.start, at.end)),
            None if mapped.is_empty() && always => Some("it is not mapped".to_owned()),
            None => None,
        };
        let state = if mapped.is_empty() { "not mapped" } else { kind };
        checks.note(format!("{name} at {:#x}: {state}", range.start), problem)?;
    }
    let inside = entries.iter().filter(|entry| within(&entry.0, &(base..base + bytes))).count();
    checks.note(
        "nothing else of the window is mapped",
        (inside != known).then(|| format!("{inside} entries in the window, {known} in its regions")),
    )
}

fn within(part: &Range<u64>, whole: &Range<u64>) -> bool {
    whole.start <= part.start && part.end <= whole.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::Layout;
    use neap_abi::hello::Link;

    const BASE: u64 = 0xfe00_0000;

    fn hello() -> Hello {
        Layout::usual(8 << 20, 1).hello(1, 0, Link::Pcie).unwrap()
    }

    /// A list as it should be.
    fn list(hello: &Hello) -> String {
        let mut text =
            "PAT memtype list:\nPAT: [mem 0x00000000bffe0000-0x00000000bffe3000] write-back\n".to_owned();
        let line =
            |start: u64, end: u64, kind: &str| format!("PAT: [mem {start:#018x}-{end:#018x}] {kind}\n");
        text += &line(BASE, BASE + 0x1000, "uncached-minus");
        for region in hello.regions() {
            if let (kind, true) = expected(region.kind) {
                let start = BASE + region.offset;
                text += &line(start, start + 0x1000, kind);
            }
        }
        text
    }

    fn wrong(text: &str) -> Vec<String> {
        let mut checks = Checks::default();
        check(&mut checks, &entries(text), BASE, 8 << 20, &hello()).unwrap();
        checks.wrong
    }

    #[test]
    fn a_list_as_it_should_be_passes_and_another_does_not() {
        let hello = hello();
        let text = list(&hello);
        assert_eq!(wrong(&text), Vec::<String>::new());
        let slots = wrong(&text.replace("write-through", "uncached-minus"));
        assert!(slots[0].contains("Slots 0") && slots[0].contains("uncached-minus"), "{slots:?}");
        let rings = wrong(&text.replace("write-combining", "uncached-minus"));
        assert_eq!(rings.len(), 4, "{rings:?}");
        assert!(wrong("")[0].contains("it is not mapped"));
        // One mapping over two regions has one type for both.
        let over =
            text.replace("0x00000000fe000000-0x00000000fe001000", "0x00000000fe000000-0x00000000fe002000");
        assert!(wrong(&over)[0].contains("the hello page"), "{:?}", wrong(&over));
    }

    #[test]
    fn a_line_of_the_list_is_a_range_and_a_type() {
        let text =
            "PAT: [mem 0x00000000fe000000-0x00000000fe001000] write-combining\nnoise\nPAT: [mem x-y] z\n";
        assert_eq!(entries(text), [(0xfe00_0000..0xfe00_1000, "write-combining".to_owned())]);
    }
}
