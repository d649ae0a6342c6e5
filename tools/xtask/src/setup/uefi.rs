//! UEFI for QEMU's `virt`: Debian's AAVMF, unpacked into the cache where the system has none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{apt, lock};
use crate::paths;

/// Debian's package of it.
const PACKAGE: &str = "qemu-efi-aarch64";
/// Where the package puts it.
const DIR: &str = "usr/share/AAVMF";
/// Its files: the code, and the variables as they are before the first boot.
const FILES: [&str; 2] = ["AAVMF_CODE.fd", "AAVMF_VARS.fd"];

/// The firmware's two files. A machine needs a copy of `vars` of its own, which it writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uefi {
    /// The code: the first flash, read-only.
    pub code: PathBuf,
    /// The variables of a fresh machine: the second flash, a copy of it.
    pub vars: PathBuf,
}

/// The UEFI to use: the system's, else one from the cache, else one that is fetched there. Nothing is installed.
pub fn uefi() -> Result<Uefi> {
    let cached = paths::cache_dir().join("uefi");
    let present = || [Path::new("/").join(DIR), cached.clone()].iter().find_map(|dir| within(dir));
    if let Some(uefi) = present() {
        return Ok(uefi);
    }
    let _lock = lock::take()?;
    if let Some(uefi) = present() {
        return Ok(uefi);
    }
    fetch(&cached).with_context(|| {
        format!("UEFI for QEMU is missing. Install it (on Debian: `apt-get install {PACKAGE}` as root)")
    })?;
    within(&cached).with_context(|| format!("{} does not hold {FILES:?}", cached.display()))
}

fn within(dir: &Path) -> Option<Uefi> {
    let [code, vars] = FILES.map(|name| dir.join(name));
    (code.is_file() && vars.is_file()).then_some(Uefi { code, vars })
}

/// Fetches the package of this Debian and keeps its files in `cached`, all of them or none.
fn fetch(cached: &Path) -> Result<()> {
    if !apt::present() {
        bail!("this system has no apt-get, which is all that set-up can fetch it with");
    }
    let suite = apt::Suite::fetch(&apt::codename()?, None)?;
    // The list has the newest first.
    let versions = suite.versions(PACKAGE)?;
    let version = versions.first().with_context(|| format!("{} has no {PACKAGE}", suite.name))?;
    keep(&suite.unpack(PACKAGE, version)?.join(DIR), cached)
}

fn keep(from: &Path, cached: &Path) -> Result<()> {
    ensure!(within(from).is_some(), "{} does not hold {FILES:?}", from.display());
    let half = cached.with_extension("part");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half).with_context(|| format!("{} can't be made", half.display()))?;
    for name in FILES {
        fs::copy(from.join(name), half.join(name)).with_context(|| format!("{name} can't be kept"))?;
    }
    let _ = fs::remove_dir_all(cached);
    fs::rename(&half, cached).with_context(|| format!("{} can't be put in place", cached.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_it_is_not_kept() {
        let (from, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cached = cache.path().join("uefi");
        fs::write(from.path().join(FILES[0]), "code").unwrap();
        assert!(keep(from.path(), &cached).is_err() && within(&cached).is_none());
        fs::write(from.path().join(FILES[1]), "vars").unwrap();
        keep(from.path(), &cached).unwrap();
        let uefi = within(&cached).unwrap();
        assert_eq!(
            (fs::read(uefi.code).unwrap(), fs::read(uefi.vars).unwrap()),
            (b"code".into(), b"vars".into())
        );
        assert!(!cached.with_extension("part").exists());
    }
}
