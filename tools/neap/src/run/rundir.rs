//! A run's directory and window files, and what dead runs left of theirs.
//!
//! All are named `neap-<pid>-<n>` and are locked while their owner lives: the kernel lets go of a lock with its
//! process, so a lock that can be had is the proof that nobody needs them any more.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

use anyhow::{Context, Result};
use neap_vipu::Window;

use crate::inspect::snapshot::window_name;
use rustix::process::{Pid, geteuid, test_kill_process};

/// What a run's window files are called, after the run's name; from the second enclave's on with its number.
const WINDOW_SUFFIX: &str = ".window";
/// The file in a run directory that its owner holds locked.
const LOCK: &str = "lock";

/// A run's directory with its windows; all are removed when this is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    windows: Vec<Window>,
    _locks: Vec<File>,
}

impl RunDir {
    /// Removes what dead runs left, then makes a directory (in `$TMPDIR`, else `/tmp`) and `enclaves` windows of
    /// `window_bytes` each.
    pub fn create(window_bytes: u64, enclaves: usize) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for place in places() {
            reap(&place);
        }
        let name = format!("neap-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(&name);
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("the run directory {} can't be made; set TMPDIR to a directory that can", path.display())
        })?;
        // From here on whatever fails leaves nothing: the directory goes with this guard.
        let guard = Removed(path.clone());
        let lock = File::create_new(path.join(LOCK)).context("making the run directory's lock")?;
        lock.try_lock().context("locking the run directory")?;
        let (mut windows, mut locks) = (Vec::new(), vec![lock]);
        for enclave in 0..enclaves {
            let number = if enclave == 0 { String::new() } else { enclave.to_string() };
            let window = Window::create(&format!("{name}{WINDOW_SUFFIX}{number}"), window_bytes)?;
            let held = File::from(window.descriptor().context("the window's descriptor")?);
            held.try_lock().context("locking the window")?;
            std::os::unix::fs::symlink(window.path(), path.join(window_name(enclave)))
                .context("linking the window")?;
            windows.push(window);
            locks.push(held);
        }
        std::mem::forget(guard);
        Ok(Self { path, windows, _locks: locks })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The windows, by enclave.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(Removed(self.path.clone()));
    }
}

/// A directory that is removed on drop.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Run directories of runs that are alive, the newest first.
pub fn alive() -> Vec<PathBuf> {
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = entries(&env::temp_dir())
        .filter(|(path, pid)| path.is_dir() && !is_left_over(path, *pid))
        .filter_map(|(path, _)| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

/// Where runs leave something.
fn places() -> Vec<PathBuf> {
    let mut places = vec![env::temp_dir(), PathBuf::from("/dev/shm")];
    places.dedup();
    places
}

/// Removes what dead runs of this user left in `place`. What can't be removed stays: no run depends on it.
fn reap(place: &Path) {
    for (path, pid) in entries(place) {
        if !is_left_over(&path, pid) {
            continue;
        }
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

/// What lies in `place` by a run's name and is this user's, with the pid in its name.
fn entries(place: &Path) -> impl Iterator<Item = (PathBuf, Pid)> {
    let ours = |path: &Path| {
        fs::symlink_metadata(path)
            .is_ok_and(|meta| meta.uid() == geteuid().as_raw() && !meta.file_type().is_symlink())
    };
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = pid_in(entry.file_name().to_str()?)?;
        ours(&entry.path()).then(|| (entry.path(), pid))
    })
}

/// The pid in a run's name, with or without a window's suffix.
fn pid_in(name: &str) -> Option<Pid> {
    let (name, enclave) = name.split_once(WINDOW_SUFFIX).unwrap_or((name, ""));
    if !enclave.is_empty() {
        enclave.parse::<u16>().ok()?;
    }
    let (pid, count) = name.strip_prefix("neap-")?.split_once('-')?;
    count.parse::<u32>().ok()?;
    Pid::from_raw(pid.parse().ok().filter(|pid| *pid > 0)?)
}

/// Whether nobody holds `path` any more. An owner that has not locked yet is told by its pid.
fn is_left_over(path: &Path, pid: Pid) -> bool {
    let lock = if path.is_dir() { path.join(LOCK) } else { path.to_owned() };
    let free = match File::open(&lock) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    free && !is_neap(pid)
}

/// Whether a process of that pid lives and is a neap: a pid comes round again.
fn is_neap(pid: Pid) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    name.map_or_else(|_| test_kill_process(pid).is_ok(), |name| name.starts_with("neap"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A pid that nobody has any more.
    fn dead_pid() -> u32 {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_a_dead_run_left_is_removed_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let dead = dead_pid();
        let left =
            [format!("neap-{dead}-0"), format!("neap-{dead}-7.window"), format!("neap-{dead}-7.window3")];
        fs::create_dir(place.path().join(&left[0])).unwrap();
        fs::write(place.path().join(&left[0]).join("serial.log"), "x").unwrap();
        fs::write(place.path().join(&left[1]), "x").unwrap();
        fs::write(place.path().join(&left[2]), "x").unwrap();
        let kept = [
            format!("neap-{}-0", process::id()),
            format!("neap-{dead}"),
            format!("neap-{dead}-x"),
            format!("neap-{dead}-7.windows"),
            "neap-cache".to_owned(),
            "other-1-2".to_owned(),
        ];
        for name in &kept {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        reap(place.path());
        for name in &left {
            assert!(!place.path().join(name).exists(), "{name} stayed");
        }
        for name in &kept {
            assert!(place.path().join(name).exists(), "{name} is gone");
        }
    }

    #[test]
    fn what_is_locked_stays_though_its_pid_is_dead() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(format!("neap-{}-0.window", dead_pid()));
        let held = File::create(&path).unwrap();
        held.try_lock().unwrap();
        reap(place.path());
        assert!(path.exists());
        drop(held);
        reap(place.path());
        assert!(!path.exists());
    }

    #[test]
    fn a_run_directory_is_found_while_it_lives_and_gone_after() {
        let run = RunDir::create(1 << 16, 3).unwrap();
        let path = run.path().to_owned();
        let windows: Vec<_> = run.windows().iter().map(|window| window.path().to_owned()).collect();
        assert!(alive().contains(&path));
        for name in ["window", "window1", "window2"] {
            assert_eq!(fs::read(path.join(name)).unwrap().len(), 1 << 16);
        }
        drop(run);
        assert!(!path.exists() && !windows.iter().any(|window| window.exists()));
        assert!(!alive().contains(&path));
    }
}
