//! Version negotiation: one minor apart works, in both directions.

use core::fmt;

/// An ABI version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Moves when an old peer could misread a line.
    pub major: u16,
    /// Moves when bits that were zero gain a meaning that the other side has to know of. It has not where it may pass them
    /// over: the messages' clock, the ledger.
    pub minor: u16,
}

/// The version these files describe. 1.1 added the decision number ([`crate::Txn::order`]) to 1.0; 1.2 added agents that
/// come and go within a session: incarnations, the manager's and the supervisor's lines, more than one epitaph.
pub const VERSION: Version = Version { major: 1, minor: 2 };

impl Version {
    /// The first in which agents come and go within a session: each has a number, and there are managers.
    pub const AGENTS_COME_AND_GO: Self = Self { major: 1, minor: 2 };

    /// The version that two sides speak together: the older minor of the two.
    ///
    /// # Errors
    /// Another major, or minors more than one apart.
    pub const fn negotiate(self, peer: Self) -> Result<Self, VersionError> {
        if self.major != peer.major || self.minor.abs_diff(peer.minor) > 1 {
            return Err(VersionError { ours: self, theirs: peer });
        }
        Ok(if self.minor < peer.minor { self } else { peer })
    }

    /// As 32 bits: major above minor.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        ((self.major as u32) << 16) | self.minor as u32
    }

    /// From [`Version::to_bits`].
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self { major: (bits >> 16) as u16, minor: bits as u16 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Two sides that cannot speak together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionError {
    /// The version of the side that says so.
    pub ours: Version,
    /// The version of its peer.
    pub theirs: Version,
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs } = self;
        write!(
            f,
            "ABI {ours} here, {theirs} there: they may be one minor apart at most; bring the older side up to date"
        )
    }
}

impl core::error::Error for VersionError {}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v(major: u16, minor: u16) -> Version {
        Version { major, minor }
    }

    #[test]
    fn one_minor_apart_works_both_ways() {
        assert_eq!(v(1, 1).negotiate(v(1, 0)), Ok(v(1, 0)));
        assert_eq!(v(1, 0).negotiate(v(1, 1)), Ok(v(1, 0)));
        assert_eq!(v(1, 1).negotiate(v(1, 2)), Ok(v(1, 1)));
        assert_eq!(v(1, 1).negotiate(v(1, 1)), Ok(v(1, 1)));
    }

    #[test]
    fn further_apart_is_refused_both_ways() {
        for (a, b) in [(v(1, 0), v(1, 2)), (v(1, 1), v(2, 1)), (v(1, 0), v(1, u16::MAX))] {
            assert_eq!(a.negotiate(b), Err(VersionError { ours: a, theirs: b }));
            assert_eq!(b.negotiate(a), Err(VersionError { ours: b, theirs: a }));
        }
    }

    #[test]
    fn bits_round_trip() {
        assert_eq!(Version::from_bits(VERSION.to_bits()), VERSION);
    }
}
