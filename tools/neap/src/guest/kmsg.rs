//! The kernel's log: its last words for an error, and what it complains of.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use xtask::linux::complaints;

/// Where it is read: one record a read.
const KMSG: &str = "/dev/kmsg";
/// Longer than any record.
const RECORD_BYTES: usize = 8192;
/// Lines that are shown of it.
const SHOWN: usize = 15;
/// A reader of the log.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    lines: Vec<String>,
}

impl Log {
    /// From the beginning. A machine without a log has an empty one.
    pub fn open() -> Self {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(KMSG).ok();
        Self { file, lines: Vec::new() }
    }

    /// Its lines so far.
    pub fn lines(&mut self) -> &[String] {
        let mut record = vec![0; RECORD_BYTES];
        while let Some(file) = &mut self.file {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(bytes) => self.lines.extend(text(&String::from_utf8_lossy(&record[..bytes]))),
                // Records that were overwritten before we came.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(_) => break,
            }
        }
        &self.lines
    }

    /// Its last lines, for an error.
    pub fn last_words(&mut self) -> String {
        let lines = self.lines();
        let last = &lines[lines.len().saturating_sub(SHOWN)..];
        if last.is_empty() { String::new() } else { format!("\nkernel:\n  {}", last.join("\n  ")) }
    }

    /// What the kernel complained of from line `from` on.
    pub fn complaints(&mut self, from: usize) -> Vec<String> {
        let lines = self.lines().get(from..).unwrap_or_default().join("\n");
        complaints(&lines).into_iter().map(str::to_owned).collect()
    }
}

/// The text of a record: `6,339,5140900,-;text`, and lines with a space at their head that explain it.
fn text(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_s_text_is_its_first_line() {
        let record = "4,1,0,-;neap 0: agent_dead: the kernel schedules; tasks go on\n SUBSYSTEM=pci\n";
        assert_eq!(text(record).unwrap(), "neap 0: agent_dead: the kernel schedules; tasks go on");
        assert_eq!(text("junk"), None);
    }
}
