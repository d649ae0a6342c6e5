//! Which version of QEMU's plugin API to declare.
//!
//! QEMU refuses a plugin outside its range (`plugins/loader.c`), and the ranges do not overlap: 7.2 takes 0
//! to 1, 9.0 takes 2 or more, and 11.1, which changed the signature of its callbacks, knows 7. The version
//! is a static in the plugin, so it is chosen when the plugin is built, for the QEMU that will load it.

/// The environment variable that carries [`declared_by`]'s answer into the plugin's build.
pub const VERSION_VARIABLE: &str = "NEAP_QEMU_PLUGIN_API";

/// The first API version whose translation callback takes the block first and user data second; before, it
/// took the plugin's id first and the block second.
pub const BLOCK_FIRST: u32 = 7;

/// A QEMU release, as `qemu-system-aarch64 --version` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Major number: 7 in 7.2.22.
    pub major: u32,
    /// Minor number: 2 in 7.2.22.
    pub minor: u32,
}

impl QemuVersion {
    /// Reads the first line of `qemu-system-aarch64 --version`; `None` if no version is in it.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let number =
            output.lines().next()?.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

/// The API version that a plugin for `qemu` declares.
#[must_use]
pub fn declared_by(qemu: QemuVersion) -> u32 {
    match (qemu.major, qemu.minor) {
        (..=8, _) => 1,
        (9 | 10, _) | (11, 0) => 2,
        _ => BLOCK_FIRST,
    }
}

/// How far `qemu` misreports the physical address of a RAM access, in bytes, wrapping: reported minus true.
///
/// Before 8.0, `qemu_plugin_hwaddr_phys_addr` added a RAM block's place in QEMU's own list to its place in
/// the machine's memory, and left out where that memory starts. With `node_0_bytes` of private RAM in front,
/// the window's block is second in both, `node_0_bytes` in. From 8.0 on, the address is the true one.
#[must_use]
pub fn ram_shift(qemu: QemuVersion, ram_base: u64, node_0_bytes: u64) -> u64 {
    if qemu.major >= 8 { 0 } else { node_0_bytes.wrapping_sub(ram_base) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(QemuVersion::parse(debian), Some(QemuVersion { major: 7, minor: 2 }));
        assert_eq!(
            QemuVersion::parse("QEMU emulator version 11.1.0-rc2"),
            Some(QemuVersion { major: 11, minor: 1 })
        );
        assert_eq!(QemuVersion::parse("qemu: not found"), None);
        assert_eq!(QemuVersion::parse(""), None);
    }

    #[test]
    fn each_release_is_told_a_version_in_its_range() {
        let declared = |major, minor| declared_by(QemuVersion { major, minor });
        assert_eq!([declared(7, 2), declared(8, 2)], [1, 1]);
        assert_eq!([declared(9, 0), declared(10, 2), declared(11, 0)], [2, 2, 2]);
        assert_eq!([declared(11, 1), declared(12, 0)], [7, 7]);
    }
}
