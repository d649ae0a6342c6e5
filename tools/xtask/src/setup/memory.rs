//! What did not work lately, so that nobody waits for it twice.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::paths;

/// How long a failure is remembered: a closed network seldom opens within the hour.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Whether `what` failed within the last hour.
pub fn failed_lately(what: &str) -> bool {
    let since = fs::metadata(file(what)).and_then(|meta| meta.modified());
    // A stamp from the future is a clock that was set back: not lately.
    since.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < REMEMBERED))
}

/// Remembers that `what` failed just now. Where even that fails, the next set-up only waits again.
pub fn failed(what: &str) {
    let file = file(what);
    let _ = fs::create_dir_all(paths::cache_dir());
    let _ = fs::write(file, b"");
}

/// Forgets it.
pub fn worked(what: &str) {
    let _ = fs::remove_file(file(what));
}

fn file(what: &str) -> PathBuf {
    paths::cache_dir().join(format!("{what}.failed"))
}
