//! QEMU for the card's architecture.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Version, apt, lock};
use crate::paths;
use crate::process::{self, Limits};

/// The program.
const PROGRAM: &str = "qemu-system-aarch64";
/// Debian's package of it.
const PACKAGE: &str = "qemu-system-arm";
/// The oldest that knows `-cpu neoverse-n1` on `-M virt` with all that the runtime boots on.
const OLDEST: Version = Version::new(7, 2);

/// The QEMU to use; installs one from the distribution or its backports where there is none.
///
/// Fails where one can't be installed, and where the one in `$PATH` is too old: that one is somebody's own choice.
pub fn qemu() -> Result<PathBuf> {
    if let Some(path) = present()? {
        return Ok(path);
    }
    let _lock = lock::take()?;
    if let Some(path) = present()? {
        return Ok(path);
    }
    install().with_context(|| {
        format!("QEMU is missing. Install {PROGRAM} {OLDEST} or newer (on Debian: `apt-get install {PACKAGE}` as root)")
    })?;
    present()?.with_context(|| format!("{PACKAGE} was installed, but there is no {PROGRAM} in PATH"))
}

/// The QEMU in `$PATH`, if it is new enough.
fn present() -> Result<Option<PathBuf>> {
    paths::find_program(PROGRAM).map(|path| checked(&path).map(|()| path)).transpose()
}

fn checked(path: &Path) -> Result<()> {
    let text = process::output(Command::new(path).arg("--version"), Limits::total(20))
        .with_context(|| format!("{} does not run; remove it or reinstall it", path.display()))?;
    judge(&text).with_context(|| path.display().to_string())
}

/// Whether that `--version` text is of a QEMU that will do.
fn judge(text: &str) -> Result<()> {
    let Some(version) = Version::after(text, "version ") else {
        let line = text.lines().next().unwrap_or_default();
        bail!("its version is not understood: {line:?}; QEMU {OLDEST} or newer is needed");
    };
    if version < OLDEST {
        bail!(
            "QEMU {version} is too old: {OLDEST} or newer is needed. \
             Remove it from PATH or upgrade it (on Debian: `apt-get install {PACKAGE}`, or that of the backports)"
        );
    }
    Ok(())
}

fn install() -> Result<()> {
    if !apt::present() {
        bail!("this system has no apt-get, which is all that set-up can install it with");
    }
    apt::refresh_for(PACKAGE)?;
    let own = apt::candidate(PACKAGE);
    if own.as_deref().and_then(Version::of_package).is_some_and(|version| version >= OLDEST) {
        return apt::install(PACKAGE, None);
    }
    let codename = apt::codename()?;
    let backports = apt::Suite::fetch(&format!("{codename}-backports"), Some(&codename))?;
    match apt::newest(&backports.versions(PACKAGE)?) {
        Some(version) if version >= OLDEST => apt::install(PACKAGE, Some(&backports)),
        found => bail!(
            "the distribution has {PACKAGE} {}, its backports {}; {OLDEST} or newer is needed",
            own.as_deref().unwrap_or("not at all"),
            found.map_or("not at all".to_owned(), |version| version.to_string()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_7_2_on_all_will_do() {
        for version in ["7.2.0", "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "8.0.0", "10.0.2", "11.0.0"] {
            judge(&format!("QEMU emulator version {version}")).unwrap();
        }
    }

    #[test]
    fn an_old_one_is_named_with_its_remedy() {
        for old in ["7.1", "6.2", "5.2"] {
            let error = judge(&format!("QEMU emulator version {old}.0 (Debian)")).unwrap_err().to_string();
            assert!(error.contains(&format!("QEMU {old} is too old")), "{error}");
            assert!(error.contains("7.2") && error.contains("apt-get install"), "{error}");
        }
    }

    #[test]
    fn what_is_no_qemu_is_shown() {
        let error = judge("hello\nworld").unwrap_err().to_string();
        assert!(error.contains("\"hello\"") && error.contains("7.2"), "{error}");
    }
}
