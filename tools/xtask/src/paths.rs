//! Where things lie: the checkout, the build's output, the cache.

use std::env;
use std::path::{Path, PathBuf};

/// Root of the checkout that this program was built from.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// The build's output: `$CARGO_TARGET_DIR`, else `target/` in the checkout.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What outlives the checkout: `$NEAP_CACHE`, else `$XDG_CACHE_HOME/neap`, else `~/.cache/neap`.
pub fn cache_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("NEAP_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("neap")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/neap")))
        .unwrap_or_else(|| env::temp_dir().join("neap-cache"))
}

/// The first program of that name in `$PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
