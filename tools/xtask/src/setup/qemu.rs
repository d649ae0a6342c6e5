//! QEMU, for the card's architecture and for the host's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Version, apt, lock};
use crate::paths;
use crate::process::{self, Limits};

/// The oldest that knows `-cpu neoverse-n1` on `-M virt` with all that the runtime boots on.
const OLDEST: Version = Version::new(7, 2);

/// One of QEMU's programs.
struct Qemu {
    program: &'static str,
    /// Debian's package of it.
    package: &'static str,
}

/// For the firmware.
const CARD: Qemu = Qemu { program: "qemu-system-aarch64", package: "qemu-system-arm" };
/// For a Linux guest with the host driver.
const HOST: Qemu = Qemu { program: "qemu-system-x86_64", package: "qemu-system-x86" };

/// The QEMU to boot the firmware with; installs one from the distribution or its backports where there is none.
///
/// Fails where one can't be installed, and where the one in `$PATH` is too old: that one is somebody's own choice.
pub fn qemu() -> Result<PathBuf> {
    CARD.ready()
}

/// As [`qemu`], to boot Linux with.
pub fn qemu_host() -> Result<PathBuf> {
    HOST.ready()
}

impl Qemu {
    fn ready(&self) -> Result<PathBuf> {
        if let Some(path) = self.present()? {
            return Ok(path);
        }
        let _lock = lock::take()?;
        if let Some(path) = self.present()? {
            return Ok(path);
        }
        let Self { program, package } = self;
        self.install().with_context(|| {
            format!("QEMU is missing. Install {program} {OLDEST} or newer (on Debian: `apt-get install {package}` as root)")
        })?;
        self.present()?.with_context(|| format!("{package} was installed, but there is no {program} in PATH"))
    }

    /// The one in `$PATH`, if it is new enough.
    fn present(&self) -> Result<Option<PathBuf>> {
        paths::find_program(self.program).map(|path| self.checked(&path).map(|()| path)).transpose()
    }

    fn checked(&self, path: &Path) -> Result<()> {
        let text = process::output(Command::new(path).arg("--version"), Limits::total(20))
            .with_context(|| format!("{} does not run; remove it or reinstall it", path.display()))?;
        judge(&text, self.package).with_context(|| path.display().to_string())
    }

    fn install(&self) -> Result<()> {
        let package = self.package;
        if !apt::present() {
            bail!("this system has no apt-get, which is all that set-up can install it with");
        }
        apt::refresh_for(package)?;
        let own = apt::candidate(package);
        if own.as_deref().and_then(Version::of_package).is_some_and(|version| version >= OLDEST) {
            return apt::install(package, None);
        }
        let codename = apt::codename()?;
        let backports = apt::Suite::fetch(&format!("{codename}-backports"), Some(&codename))?;
        match apt::newest(&backports.versions(package)?) {
            Some(version) if version >= OLDEST => apt::install(package, Some(&backports)),
            found => bail!(
                "the distribution has {package} {}, its backports {}; {OLDEST} or newer is needed",
                own.as_deref().unwrap_or("not at all"),
                found.map_or("not at all".to_owned(), |version| version.to_string()),
            ),
        }
    }
}

/// Whether that `--version` text is of a QEMU that will do.
fn judge(text: &str, package: &str) -> Result<()> {
    let Some(version) = Version::after(text, "version ") else {
        let line = text.lines().next().unwrap_or_default();
        bail!("its version is not understood: {line:?}; QEMU {OLDEST} or newer is needed");
    };
    if version < OLDEST {
        bail!(
            "QEMU {version} is too old: {OLDEST} or newer is needed. \
             Remove it from PATH or upgrade it (on Debian: `apt-get install {package}`, or that of the backports)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_7_2_on_all_will_do() {
        for version in ["7.2.0", "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "8.0.0", "10.0.2", "11.0.0"] {
            judge(&format!("QEMU emulator version {version}"), "q").unwrap();
        }
    }

    #[test]
    fn an_old_one_is_named_with_its_remedy() {
        for old in ["7.1", "6.2", "5.2"] {
            let error =
                judge(&format!("QEMU emulator version {old}.0 (Debian)"), "q").unwrap_err().to_string();
            assert!(error.contains(&format!("QEMU {old} is too old")), "{error}");
            assert!(error.contains("7.2") && error.contains("apt-get install"), "{error}");
        }
    }

    #[test]
    fn what_is_no_qemu_is_shown() {
        let error = judge("hello\nworld", "q").unwrap_err().to_string();
        assert!(error.contains("\"hello\"") && error.contains("7.2"), "{error}");
    }
}
