//! Version numbers, as the programs print them.

use std::fmt;

/// Major and minor, which is all that a minimum is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second; 0 where there is none.
    pub minor: u32,
}

impl Version {
    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The number that follows `marker` in a program's `--version` text: "QEMU emulator version 7.2.22 (Debian …)".
    pub fn after(text: &str, marker: &str) -> Option<Self> {
        let (_, rest) = text.split_once(marker)?;
        Self::parse(rest.trim_start())
    }

    /// The upstream number of a Debian package's version: "1:7.2+dfsg-7+deb12u18" is 7.2.
    pub fn of_package(text: &str) -> Option<Self> {
        let upstream = text.split_once(':').map_or(text, |(_epoch, upstream)| upstream);
        Self::parse(upstream)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
        let major = digits(text);
        let minor = text[major.len()..].strip_prefix('.').map(digits).unwrap_or_default();
        let minor = if minor.is_empty() { 0 } else { minor.parse().ok()? };
        Some(Self { major: major.parse().ok()?, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_print_is_understood() {
        let qemu = |text| Version::after(text, "version ");
        assert_eq!(
            qemu("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"),
            Some(Version::new(7, 2))
        );
        assert_eq!(qemu("QEMU emulator version 10.0.2\nCopyright (c) 2003"), Some(Version::new(10, 0)));
        assert_eq!(qemu("QEMU emulator version 11.0.0-rc1"), Some(Version::new(11, 0)));
        let llvm = |text| Version::after(text, "LLVM version ");
        assert_eq!(llvm("Debian LLVM version 14.0.6\n  Optimized build."), Some(Version::new(14, 0)));
        assert_eq!(llvm("LLVM (http://llvm.org/):\n  LLVM version 22"), Some(Version::new(22, 0)));
    }

    #[test]
    fn package_versions_lose_their_epoch_and_their_revision() {
        assert_eq!(Version::of_package("1:7.2+dfsg-7+deb12u18+b3"), Some(Version::new(7, 2)));
        assert_eq!(Version::of_package("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some(Version::new(10, 0)));
        assert_eq!(Version::of_package("1.95.0+dfsg1-1~bpo13+1"), Some(Version::new(1, 95)));
    }

    #[test]
    fn nonsense_is_no_version() {
        for text in ["", "QEMU", "version ", "version x.y", "version 99999999999.1", "version .5"] {
            assert_eq!(Version::after(text, "version "), None, "{text:?}");
        }
        assert_eq!(Version::of_package("(none)"), None);
    }

    #[test]
    fn ten_is_more_than_seven() {
        assert!(Version::new(10, 0) > Version::new(7, 2));
        assert!(Version::new(7, 2) > Version::new(7, 1));
    }
}
