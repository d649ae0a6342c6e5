//! What takes minutes to make is made once, for all checkouts of the machine: a directory by what went into it.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{self, Limits};
use crate::setup::{apt, lock};

/// Removing a root that was half made.
const REMOVE: Limits = Limits::total(300);

/// The directory `name` that `make` makes of `inputs`, which appears under its name when it is whole. One process makes
/// it; others wait for that.
pub(super) fn ready(
    name: &str,
    inputs: &impl Hash,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    let parent = paths::cache_dir().join("linux");
    let dir = parent.join(format!("{name}-{:016x}", hasher.finish()));
    if dir.is_dir() {
        return Ok(dir);
    }
    let _lock = lock::take_for("linux")?;
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(&parent).with_context(|| format!("{} can't be made", parent.display()))?;
    let part = dir.with_extension("part");
    // Left by one who was ended, under the lock that we hold now.
    remove(&part)?;
    if let Err(error) = make(&part) {
        // The error that matters is the first.
        let _ = remove(&part);
        return Err(error);
    }
    fs::rename(&part, &dir).with_context(|| format!("{} can't be put in place", dir.display()))?;
    Ok(dir)
}

/// Removes a directory, much of which belongs to root.
fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut command: Command = apt::as_root("rm")?;
    let done = process::run(command.args(["-rf", "--one-file-system", "--"]).arg(dir), REMOVE, &mut ())?;
    if !done.ok() {
        bail!("{} is half made and can't be removed: {}\n{}", dir.display(), done.verdict(), done.tail(5));
    }
    Ok(())
}
