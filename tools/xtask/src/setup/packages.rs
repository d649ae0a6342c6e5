//! Debian packages that bring one thing each: for a Linux guest only.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, lock};
use crate::paths;
use crate::process::{self, Limits};

/// mmdebstrap, which makes Debian roots.
pub fn mmdebstrap() -> Result<()> {
    ready("mmdebstrap", "to make a Debian root", &|| paths::find_program("mmdebstrap").is_some())
}

/// What the loader of `neap`'s feature `linux` is linked with: libelf and zlib.
pub fn libelf() -> Result<()> {
    for (package, wanted) in
        [("pkg-config", None), ("zlib1g-dev", Some("zlib")), ("libelf-dev", Some("libelf"))]
    {
        ready(package, "to build the loader of the host driver", &|| pkg_config(wanted))?;
    }
    Ok(())
}

/// Whether pkg-config is there and knows `library`.
fn pkg_config(library: Option<&str>) -> bool {
    let mut command = Command::new("pkg-config");
    match library {
        Some(library) => command.args(["--exists", library]),
        None => command.arg("--version"),
    };
    process::run(&mut command, Limits::total(20), &mut ()).is_ok_and(|done| done.ok())
}

/// Installs `package` unless `present` holds already.
fn ready(package: &str, why: &str, present: &dyn Fn() -> bool) -> Result<()> {
    if present() {
        return Ok(());
    }
    let _lock = lock::take()?;
    if present() {
        return Ok(());
    }
    install(package).with_context(|| {
        format!("{package} is missing, which is needed {why}. Install it (on Debian: `apt-get install {package}` as root)")
    })?;
    if !present() {
        bail!("{package} was installed, and yet what it brings is not there: is another one first in PATH?");
    }
    Ok(())
}

fn install(package: &str) -> Result<()> {
    if !apt::present() {
        bail!("this system has no apt-get, which is all that set-up can install it with");
    }
    apt::refresh_for(package)?;
    apt::install(package, None)
}
