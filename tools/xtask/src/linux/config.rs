//! A kernel's configuration, and what the driver asks of one.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use crate::setup::Version;

/// The oldest kernel whose Rust has what the driver stands on.
pub(super) const OLDEST: Version = Version::new(7, 3);
/// Where a kernel that will do comes from, for errors.
const REMEDY: &str = "Debian's linux-headers-amd64 of trixie-backports brings one that will do";

/// A `.config`: the symbols that are set, without their `CONFIG_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Config<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        Self(text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('=')).collect())
    }

    /// A string's or a number's value.
    pub(super) fn value(&self, symbol: &str) -> Option<&'a str> {
        self.0.get(symbol).map(|value| value.trim_matches('"'))
    }

    /// Fails where the driver can't be built for that kernel, or not be loaded into it.
    pub(super) fn suits(&self, release: &str) -> Result<()> {
        let version = Version::of_package(release);
        ensure!(
            version.is_some_and(|version| version >= OLDEST),
            "the kernel {release} is too old for the host driver, which needs {OLDEST} or newer; {REMEDY}"
        );
        for (symbol, why) in [
            ("RUST", "the driver is written in Rust"),
            ("SCHED_CLASS_EXT", "the driver schedules by sched_ext"),
            ("DEBUG_INFO_BTF_MODULES", "the sched_ext program finds the driver's functions by their BTF"),
        ] {
            ensure!(
                self.value(symbol) == Some("y"),
                "the kernel {release} was built without CONFIG_{symbol}, and {why}; {REMEDY}"
            );
        }
        ensure!(
            self.value("MODVERSIONS").is_none(),
            "the kernel {release} was built with CONFIG_MODVERSIONS, whose checksums of Rust's symbols can't be made \
             again outside of its own build; {REMEDY}"
        );
        Ok(())
    }

    /// Fails where `rustc --version` says `have`, and the kernel was built with another.
    pub(super) fn built_with(&self, release: &str, have: &str) -> Result<()> {
        match self.value("RUSTC_VERSION_TEXT") {
            Some(want) if want == have.trim() => Ok(()),
            want => bail!(
                "the kernel {release} (package linux-headers-{release}) was built with {:?}, and the root's package \
                 rustc brings {:?}: metadata of the one is of no use to the other. Debian builds the two for each \
                 other; one of them was updated first. Wait for the other, then remove the root from Neap's cache",
                want.unwrap_or("no rustc"),
                have.trim(),
            ),
        }
    }

    /// The lines of a config fragment that did not come true.
    pub(super) fn lacks<'b>(&self, fragment: &'b str) -> Vec<&'b str> {
        let untrue = |line: &&str| match line.strip_prefix("# CONFIG_") {
            Some(off) => off.strip_suffix(" is not set").is_some_and(|symbol| self.0.contains_key(symbol)),
            None => line
                .strip_prefix("CONFIG_")
                .and_then(|line| line.split_once('='))
                .is_some_and(|(symbol, value)| self.0.get(symbol) != Some(&value)),
        };
        fragment.lines().filter(untrue).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "CONFIG_RUST=y\nCONFIG_SCHED_CLASS_EXT=y\nCONFIG_DEBUG_INFO_BTF_MODULES=y\n\
                        # CONFIG_MODVERSIONS is not set\nCONFIG_RUSTC_VERSION_TEXT=\"rustc 1.85.1 (4eb161250)\"\n";

    #[test]
    fn from_7_3_on_with_rust_and_sched_ext_all_will_do() {
        for release in ["7.3.4+deb13-amd64", "7.10.0", "8.0-rc1"] {
            Config::parse(GOOD).suits(release).unwrap();
        }
    }

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let error = Config::parse(GOOD).suits("6.12.57+deb13-amd64").unwrap_err().to_string();
        assert!(
            error.contains("6.12.57") && error.contains("7.3") && error.contains("trixie-backports"),
            "{error}"
        );
        for symbol in ["RUST", "SCHED_CLASS_EXT", "DEBUG_INFO_BTF_MODULES"] {
            let text = GOOD.replace(&format!("CONFIG_{symbol}=y"), &format!("# CONFIG_{symbol} is not set"));
            let error = Config::parse(&text).suits("7.3.4").unwrap_err().to_string();
            assert!(error.contains(&format!("without CONFIG_{symbol},")), "{error}");
        }
        let versioned = format!("{GOOD}CONFIG_MODVERSIONS=y\n");
        let error = Config::parse(&versioned).suits("7.3.4").unwrap_err().to_string();
        assert!(error.contains("CONFIG_MODVERSIONS"), "{error}");
    }

    #[test]
    fn another_compiler_is_named_with_both_packages() {
        let config = Config::parse(GOOD);
        config.built_with("7.3.4", "rustc 1.85.1 (4eb161250)\n").unwrap();
        let error = config.built_with("7.3.4", "rustc 1.86.0\n").unwrap_err().to_string();
        for word in ["linux-headers-7.3.4", "package rustc", "rustc 1.85.1", "rustc 1.86.0"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(Config::parse("").built_with("7.3.4", "rustc 1.85.1").is_err());
    }

    #[test]
    fn a_fragment_s_untrue_lines_are_found() {
        let config = Config::parse("CONFIG_A=y\nCONFIG_N=64\nCONFIG_B=y\n");
        let fragment =
            "# Words.\n\nCONFIG_A=y\nCONFIG_N=16\nCONFIG_C=y\n# CONFIG_B is not set\n# CONFIG_D is not set\n";
        assert_eq!(config.lacks(fragment), ["CONFIG_N=16", "CONFIG_C=y", "# CONFIG_B is not set"]);
    }
}
