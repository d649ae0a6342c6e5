//! What takes minutes to make is made once, for all checkouts of the machine: a directory by what went into it.
//!
//! What no checkout has asked for in a month goes when something else is made, for each takes gigabytes.

use std::fs::{self, File, FileTimes};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{self, Limits};
use crate::setup::{apt, lock};

/// Removing a root that was half made.
const REMOVE: Limits = Limits::total(300);
/// How long something stays that nobody asks for.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where all of them lie, and where the one called `name` does that is made of `inputs`.
fn place(name: &str, inputs: &impl Hash) -> (PathBuf, PathBuf) {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    let parent = paths::cache_dir().join("linux");
    let dir = parent.join(format!("{name}-{:016x}", hasher.finish()));
    (parent, dir)
}

/// Whether the directory `name` of `inputs` has been made.
pub(super) fn is_there(name: &str, inputs: &impl Hash) -> bool {
    place(name, inputs).1.is_dir()
}

/// The directory `name` that `make` makes of `inputs`, which appears under its name when it is whole. One process makes
/// it; others wait for that.
pub(super) fn ready(
    name: &str,
    inputs: &impl Hash,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let (parent, dir) = place(name, inputs);
    if dir.is_dir() {
        asked_for(&dir);
        return Ok(dir);
    }
    let _lock = lock::take_for(&format!("linux-{name}"))?;
    if dir.is_dir() {
        return Ok(dir);
    }
    fs::create_dir_all(&parent).with_context(|| format!("{} can't be made", parent.display()))?;
    let part = dir.with_extension("part");
    // Left by one who was ended, under the lock that we hold now.
    remove(&part)?;
    for old in forgotten(&parent, SystemTime::now()) {
        remove(&old)?;
    }
    if let Err(error) = make(&part) {
        // The error that matters is the first.
        let _ = remove(&part);
        return Err(error);
    }
    fs::rename(&part, &dir).with_context(|| format!("{} can't be put in place", dir.display()))?;
    asked_for(&dir);
    Ok(dir)
}

/// Where it is noted when `dir` was last asked for: beside it, for the directory itself may be root's.
fn note(dir: &Path) -> PathBuf {
    dir.with_extension("asked")
}

/// Notes that somebody asks for `dir`. Where that can't be written, nothing is lost but the time to make it again.
fn asked_for(dir: &Path) {
    let note = File::create(note(dir));
    let _ = note.and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())));
}

/// What nobody has asked for in a long time.
fn forgotten(parent: &Path, now: SystemTime) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let old = |dir: &PathBuf| {
        let asked = fs::metadata(note(dir)).and_then(|meta| meta.modified());
        dir.is_dir() && asked.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > KEPT))
    };
    entries.filter(old).collect()
}

/// Removes a directory, much of which belongs to root.
fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut command = apt::as_root("rm")?;
    let done = process::run(command.args(["-rf", "--one-file-system", "--"]).arg(dir), REMOVE, &mut ())?;
    if !done.ok() {
        bail!("{} is half made and can't be removed: {}\n{}", dir.display(), done.verdict(), done.tail(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("root-0123");
        fs::create_dir(&root).unwrap();
        // Made before anybody noted: it is not known to be old.
        assert!(forgotten(parent.path(), SystemTime::now() + 2 * KEPT).is_empty());
        asked_for(&root);
        assert!(forgotten(parent.path(), SystemTime::now()).is_empty());
        assert_eq!(forgotten(parent.path(), SystemTime::now() + 2 * KEPT), [root]);
    }
}
