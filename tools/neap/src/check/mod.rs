//! Checks of the driver that take a machine with it: hidden commands, which the test of the Linux host runs in its guest.

mod raw;
mod types;
mod uapi;

pub use types::types;
pub use uapi::uapi;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use neap_host::device::Device;

use crate::print;

fn path(device: Option<&Path>) -> PathBuf {
    device.map_or_else(|| Device::path_of(0), Path::to_owned)
}

/// What was checked, and how much of it was wrong.
#[derive(Debug, Default)]
struct Checks {
    done: u32,
    wrong: Vec<String>,
}

impl Checks {
    /// Takes note of one: a name, and what is wrong, if anything.
    fn note(&mut self, name: impl fmt::Display, wrong: Option<String>) -> Result<()> {
        self.done += 1;
        match wrong {
            None => print(&format!("ok    {name}")),
            Some(why) => {
                print(&format!("WRONG {name}: {why}"))?;
                self.wrong.push(format!("{name}: {why}"));
                Ok(())
            }
        }
    }

    /// Takes note of one whose outcome is to be `expected`.
    fn is<T: fmt::Debug + PartialEq>(
        &mut self,
        name: impl fmt::Display,
        found: &T,
        expected: &T,
    ) -> Result<()> {
        self.note(name, (found != expected).then(|| format!("{found:?}, not {expected:?}")))
    }

    fn end(self) -> Result<()> {
        ensure!(self.done != 0, "nothing was checked");
        ensure!(
            self.wrong.is_empty(),
            "{} of {} checks went wrong:\n{}",
            self.wrong.len(),
            self.done,
            self.wrong.join("\n")
        );
        print(&format!("{} checks passed", self.done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_at_the_end() {
        let mut checks = Checks::default();
        checks.is("one", &1, &1).unwrap();
        checks.is("other", &1, &2).unwrap();
        let error = checks.end().unwrap_err().to_string();
        assert_eq!(error, "1 of 2 checks went wrong:\nother: 1, not 2");
        assert!(Checks::default().end().is_err());
    }
}
