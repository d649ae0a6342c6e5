//! Where a record goes.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xtask::progress::say;

use crate::print;
use crate::report::{self, Record};

/// The page's file, known to be writable before the run: a long one shall not end in an error that could be seen at
/// once.
#[derive(Debug)]
pub struct PageFile(PathBuf);

/// Checks that `path`, an option's, can be written; what stands there stays until there is something better.
pub fn claim(option: &str, path: &Path) -> Result<PathBuf> {
    let fresh = !path.exists();
    OpenOptions::new().create(true).append(true).open(path).with_context(|| {
        format!("{option} {} can't be written; name a file in a directory that can", path.display())
    })?;
    if fresh {
        // Whatever ends the run before its report leaves no empty page.
        fs::remove_file(path).with_context(|| format!("{option} {}", path.display()))?;
    }
    Ok(path.to_owned())
}

impl PageFile {
    /// The file of `--report`.
    pub fn claim(path: &Path) -> Result<Self> {
        claim("--report", path).map(Self)
    }

    /// Writes the page.
    fn write(&self, page: &str) -> Result<()> {
        fs::write(&self.0, page)
            .with_context(|| format!("the report {} can't be written", self.0.display()))?;
        say(&format!("neap: report in {}", self.0.display()));
        Ok(())
    }
}

/// Prints the record to stdout, writes the page, and says on stderr what went wrong.
pub fn show(record: &Record, json: bool, page: Option<PageFile>) -> Result<()> {
    print(&if json { format!("{:#}", record.json()) } else { report::table(record) })?;
    if let Some(page) = page {
        page.write(&report::page(record))?;
    }
    for complaint in record.complaints() {
        say(&format!("neap: {complaint}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_a_run_leaves_no_file_and_spoils_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page.html");
        PageFile::claim(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "an older and longer report").unwrap();
        PageFile::claim(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "an older and longer report");
        PageFile::claim(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_place_that_can_not_be_written_is_named() {
        let error = PageFile::claim(Path::new("/proc/no-such/page.html")).unwrap_err().to_string();
        assert!(error.contains("/proc/no-such/page.html"), "{error}");
    }
}
