//! The driver's module, in the kernel for the time of a run.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};

use crate::report::Parameters;

/// The module's name.
const NAME: &std::ffi::CStr = c"neap";
/// How long it may be in use after the last program of the scheduler has gone: the kernel frees those in its own time.
const IN_USE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// The module.
#[derive(Debug)]
pub struct Module(());

impl Module {
    /// Loads it.
    pub fn load(file: &Path, asked: &Parameters) -> Result<Self> {
        let module =
            File::open(file).with_context(|| format!("the module {} can't be read", file.display()))?;
        let parameters = CString::new(parameters(asked)).context("the module's parameters")?;
        let loaded = finit_module(&module, &parameters, 0);
        loaded.map_err(|error| Refused { file: file.to_owned(), error })?;
        Ok(Self(()))
    }

    /// Unloads it. One that stays in use is an error.
    pub fn unload(self) -> Result<()> {
        let asked = Instant::now();
        loop {
            match delete_module(NAME, i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN | Errno::BUSY) if asked.elapsed() < IN_USE => thread::sleep(LOOK),
                Err(error) => return Err(error).context("the module can't be unloaded"),
            }
        }
    }
}

fn parameters(asked: &Parameters) -> String {
    format!("watchdog_ms={} policy={}", asked.watchdog_ms, asked.policy)
}

/// Why the kernel did not take it.
#[derive(Debug)]
struct Refused {
    file: PathBuf,
    error: Errno,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let remedy = match self.error {
            Errno::NOEXEC => "it was built for another kernel",
            Errno::EXIST => "it is loaded already",
            Errno::NOENT => "it needs a function that this kernel does not have",
            Errno::PERM => "this kernel takes no modules of ours",
            _ => "the kernel's log says why",
        };
        write!(f, "the kernel refuses {} ({}): {remedy}", self.file.display(), self.error)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_told_what_was_asked() {
        let asked = Parameters { watchdog_ms: 50, ..crate::report::tests::example().parameters };
        assert_eq!(parameters(&asked), "watchdog_ms=50 policy=fifo");
    }

    #[test]
    fn a_refusal_has_its_remedy() {
        let refused = Refused { file: "/lib/neap/neap.ko".into(), error: Errno::NOEXEC }.to_string();
        assert!(refused.contains("/lib/neap/neap.ko") && refused.contains("another kernel"), "{refused}");
    }
}
