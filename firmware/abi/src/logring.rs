//! A core's log ring: bytes that the core writes and any number of readers follow.
//!
//! The region starts with a header line: a 32-bit count of all bytes ever written, modulo 2^32, stored with release
//! after the bytes. The rest is the ring; its size is a power of two. The writer never waits: a reader that falls
//! behind by more than the ring has lost bytes, and learns how many.

/// Bytes before the ring.
pub const HEADER_BYTES: usize = 64;

/// The bytes that a ring may hold in a region of `region_bytes`: the greatest power of two that fits.
#[must_use]
pub const fn capacity(region_bytes: usize) -> usize {
    match region_bytes.checked_sub(HEADER_BYTES) {
        None | Some(0) => 0,
        Some(room) => 1 << room.ilog2(),
    }
}

/// What a reader at a position finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Where to go on, counted as the header counts.
    pub position: u32,
    /// Bytes that can be read from there.
    pub bytes: u32,
    /// Bytes overwritten since the reader last looked.
    pub lost: u32,
}

/// What a reader that has read `position` bytes finds once `written` have been written to a ring of `capacity`.
///
/// A reader keeps a quarter of the ring between itself and the writer, which goes on while it copies.
#[must_use]
pub const fn readable(written: u32, position: u32, capacity: u32) -> Readable {
    let behind = written.wrapping_sub(position);
    if behind <= capacity {
        return Readable { position, bytes: behind, lost: 0 };
    }
    let keep = capacity - capacity / 4;
    Readable { position: written.wrapping_sub(keep), bytes: keep, lost: behind - keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_keeps_up_loses_nothing() {
        assert_eq!(readable(10, 4, 16), Readable { position: 4, bytes: 6, lost: 0 });
        assert_eq!(readable(3, u32::MAX - 4, 16), Readable { position: u32::MAX - 4, bytes: 8, lost: 0 });
    }

    #[test]
    fn a_reader_that_falls_behind_learns_what_it_lost() {
        let found = readable(100, 10, 16);
        assert_eq!(found, Readable { position: 88, bytes: 12, lost: 78 });
        assert_eq!(found.position.wrapping_add(found.bytes), 100);
    }

    #[test]
    fn capacity_is_a_power_of_two_that_fits() {
        assert_eq!(capacity(64 << 10), 32 << 10);
        assert_eq!(capacity(64), 0);
        assert_eq!(capacity(0), 0);
        assert_eq!(capacity(65), 1);
    }
}
