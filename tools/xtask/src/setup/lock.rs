//! One set-up at a time.

use std::fs::{self, File, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::progress::Step;

/// What another set-up may take before a waiting one gives up.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Held while something is installed; the kernel lets go of it with the process, however that ends.
pub struct Lock {
    _file: File,
}

/// Takes the lock on what is installed into the system and the toolchain, waiting for whoever has it.
pub fn take() -> Result<Lock> {
    take_for("setup")
}

/// Takes the lock of one set-up that takes long and that nothing else waits for. [`take`] comes after it, never before.
pub fn take_for(what: &str) -> Result<Lock> {
    let dir = paths::cache_dir();
    fs::create_dir_all(&dir).with_context(|| {
        format!("the cache {} can't be made; set NEAP_CACHE to a directory that can", dir.display())
    })?;
    let path = dir.join(format!("{what}.lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("{} can't be opened", path.display()))?;
    let started = Instant::now();
    let mut step = None;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error).context("locking the set-up"),
        }
        if started.elapsed() > PATIENCE {
            bail!(
                "another set-up has held {} for {} s; end it, then try again",
                path.display(),
                PATIENCE.as_secs()
            );
        }
        step.get_or_insert_with(|| Step::start("waiting for another set-up")).tick();
        thread::sleep(Duration::from_millis(100));
    }
    if let Some(step) = step {
        step.done();
    }
    Ok(Lock { _file: file })
}
