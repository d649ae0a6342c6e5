//! How hard the host's processors are pressed, as the kernel has it (PSI). A thread that waits for a processor is nobody's
//! fault; where an IPU is emulated, its cores are threads too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Where the kernel tells of it, from 4.20 on.
const SOURCE: &str = "/proc/pressure/cpu";

/// Follows the time in which some thread of the machine waited for a processor.
#[derive(Debug)]
pub(super) struct Pressure {
    source: Option<File>,
    total_us: u64,
}

impl Pressure {
    /// From now on.
    pub(super) fn new() -> Self {
        let mut pressure = Self { source: File::open(SOURCE).ok(), total_us: 0 };
        pressure.stalled();
        pressure
    }

    /// Such time since the last call; none where the kernel does not tell.
    pub(super) fn stalled(&mut self) -> Duration {
        let Some(source) = &self.source else { return Duration::ZERO };
        let mut text = [0; 256];
        let read = source.read_at(&mut text, 0).unwrap_or(0);
        let Some(total_us) = total_us(text.get(..read).unwrap_or_default()) else { return Duration::ZERO };
        Duration::from_micros(total_us.saturating_sub(std::mem::replace(&mut self.total_us, total_us)))
    }
}

/// The total of the line `some`.
fn total_us(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_once("total=")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        let text = b"some avg10=42.06 avg60=60.12 avg300=66.04 total=999462923\nfull avg10=0.00 total=7\n";
        assert_eq!(total_us(text), Some(999_462_923));
        assert_eq!(total_us(b""), None);
        assert_eq!(total_us(b"some avg10=1 total=x"), None);
    }

    #[test]
    fn without_a_source_nothing_is_stalled() {
        assert_eq!(Pressure { source: None, total_us: 5 }.stalled(), Duration::ZERO);
    }
}
