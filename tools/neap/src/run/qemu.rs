//! The QEMU that stands in for the card.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use xtask::process::{Limits, output};

/// The version that `program` says of itself.
pub fn version(program: &Path) -> Result<String> {
    version_of(Command::new(program))
}

/// As [`version`], of a command without its arguments.
pub fn version_of(mut program: Command) -> Result<String> {
    let text = output(program.arg("--version"), Limits::total(20))?;
    let version = version_in(&text);
    version.map(str::to_owned).with_context(|| format!("{program:?} does not tell its version"))
}

fn version_in(text: &str) -> Option<&str> {
    text.split_once("version ")?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_among_its_words() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022";
        assert_eq!(version_in(debian), Some("7.2.22"));
        assert_eq!(version_in("QEMU"), None);
    }
}
