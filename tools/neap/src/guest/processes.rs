//! The machine's processes.

use std::fs;
use std::path::Path;

/// A process, as its `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its state's letter.
    pub state: char,
    /// Whether it is a thread of the kernel's.
    pub of_kernel: bool,
}

impl Process {
    /// Whether it has ended and only waits for its parent to look.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// The flag of a kernel's thread, `PF_KTHREAD`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// All processes under `proc`.
pub fn all(proc: &Path) -> Vec<Process> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| of_stat(&fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?)).collect()
}

fn of_stat(stat: &str) -> Option<Process> {
    // The name in between may hold anything, parentheses too.
    let (pid, rest) = stat.split_once(" (")?;
    let mut fields = rest.rsplit_once(") ")?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let flags: u64 = fields.nth(4)?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, state, of_kernel: flags & KERNEL_THREAD != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 77 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 7 0\n";
        let process = of_stat(stat).unwrap();
        assert_eq!(process, Process { pid: 42, parent: 1, state: 'S', of_kernel: false });
        let thread = of_stat("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0\n").unwrap();
        assert!(thread.of_kernel && !thread.is_zombie());
        assert_eq!(of_stat("junk"), None);
    }

    #[test]
    fn we_are_among_all() {
        let ours = i32::try_from(std::process::id()).unwrap();
        assert!(all(Path::new("/proc")).iter().any(|process| process.pid == ours && !process.of_kernel));
    }
}
