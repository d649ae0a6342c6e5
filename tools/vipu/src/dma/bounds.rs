//! What a channel may reach, and where that lies in the files behind it.

use std::sync::Arc;

use neap_hal::soc::dma::registers::{ALIGN_BYTES, GRANTS_MAX, PAGE_BYTES};
use neap_hal::soc::dma::{Access, Descriptor, Direction, Fault, Grant, Space};
use thiserror::Error;

use crate::Mapping;

/// A range of the host's memory that a channel may reach.
#[derive(Clone, Debug)]
pub struct HostRange {
    /// The address that descriptors use for its first byte.
    pub iova: u64,
    /// The memory: a file that the host shares.
    pub memory: Arc<Mapping>,
    /// Where in that file it starts.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What for.
    pub access: Access,
}

/// A range of the window that a channel may reach.
#[derive(Clone, Copy, Debug)]
pub struct IpuRange {
    /// Where in the window it starts; descriptors use the same number.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What for.
    pub access: Access,
}

/// One channel: where its registers are and what it may reach.
#[derive(Clone, Debug)]
pub struct ChannelGrant {
    /// Window offset of its register page.
    pub page_offset: u64,
    /// Ranges of the host's memory.
    pub host: Vec<HostRange>,
    /// Ranges of the window.
    pub ipu: Vec<IpuRange>,
}

/// Why a channel can't be granted what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// The register page is not a page of the window.
    #[error("channel {channel}: no register page can be at window offset {page_offset:#x}")]
    Page {
        /// The channel.
        channel: usize,
        /// Where the page would be.
        page_offset: u64,
    },
    /// Two channels have one page.
    #[error("channel {channel}: the register page at {page_offset:#x} is another channel's too")]
    PageShared {
        /// The channel.
        channel: usize,
        /// Where the page is.
        page_offset: u64,
    },
    /// More ranges than the page can list.
    #[error("channel {channel}: {ranges} ranges, and a channel may have {GRANTS_MAX}")]
    Ranges {
        /// The channel.
        channel: usize,
        /// How many were asked for.
        ranges: usize,
    },
    /// A range is empty, not aligned, or not inside its memory.
    #[error(
        "channel {channel}: the {space:?} range {base:#x} + {bytes:#x} is empty, not aligned to 8, or not inside its memory"
    )]
    Range {
        /// The channel.
        channel: usize,
        /// Whose memory.
        space: Space,
        /// Its first address.
        base: u64,
        /// Its length.
        bytes: u64,
    },
    /// An address would mean two places.
    #[error("channel {channel}: the IOVA range {iova:#x} + {bytes:#x} overlaps another")]
    IovaShared {
        /// The channel.
        channel: usize,
        /// The range's first address.
        iova: u64,
        /// Its length.
        bytes: u64,
    },
    /// The engine could be made to write registers, or to read them as data.
    #[error("channel {channel}: the {space:?} range {base:#x} + {bytes:#x} covers a register page")]
    Registers {
        /// The channel.
        channel: usize,
        /// Whose memory.
        space: Space,
        /// Its first address.
        base: u64,
        /// Its length.
        bytes: u64,
    },
}

/// One granted range, resolved.
#[derive(Clone, Debug)]
struct Span {
    grant: Grant,
    memory: Arc<Mapping>,
    /// Where in the memory's file the range starts.
    file_offset: u64,
}

/// A part of a file: where bytes come from, or go.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub memory: Arc<Mapping>,
    pub offset: u64,
}

/// A checked transfer.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub source: Place,
    pub destination: Place,
    pub bytes: u64,
    pub notify: Option<(u16, u16)>,
}

/// The engine's own table for one channel. The copy in the register page is for the driver to read.
#[derive(Debug)]
pub(super) struct Bounds {
    spans: Vec<Span>,
    bytes_max: u64,
}

/// Whether two ranges share a byte. Neither wraps.
fn overlap(a: u64, a_bytes: u64, b: u64, b_bytes: u64) -> bool {
    a < b + b_bytes && b < a + a_bytes
}

/// Whether `bytes` at `offset` are inside `limit_bytes`.
fn inside(offset: u64, bytes: u64, limit_bytes: u64) -> bool {
    offset.checked_add(bytes).is_some_and(|end| end <= limit_bytes)
}

/// Checks where the channels' register pages are: whole pages of the window, each for one channel.
pub(super) fn check_pages(channels: &[ChannelGrant], window_bytes: u64) -> Result<(), GrantError> {
    for (channel, grant) in channels.iter().enumerate() {
        let page_offset = grant.page_offset;
        let page_bytes = PAGE_BYTES as u64;
        if !page_offset.is_multiple_of(page_bytes) || !inside(page_offset, page_bytes, window_bytes) {
            return Err(GrantError::Page { channel, page_offset });
        }
        if channels[..channel].iter().any(|other| other.page_offset == page_offset) {
            return Err(GrantError::PageShared { channel, page_offset });
        }
    }
    Ok(())
}

impl Bounds {
    /// Resolves the ranges of channel `channel` of `channels`, whose pages are good.
    pub fn new(
        channels: &[ChannelGrant],
        channel: usize,
        window: &Arc<Mapping>,
        bytes_max: u64,
    ) -> Result<Self, GrantError> {
        let ChannelGrant { host, ipu, .. } = &channels[channel];
        let ranges = host.len() + ipu.len();
        if ranges > GRANTS_MAX {
            return Err(GrantError::Ranges { channel, ranges });
        }
        let host = host.iter().map(|range| Span {
            grant: Grant { base: range.iova, bytes: range.bytes, space: Space::Host, access: range.access },
            memory: Arc::clone(&range.memory),
            file_offset: range.offset,
        });
        let ipu = ipu.iter().map(|range| Span {
            grant: Grant { base: range.offset, bytes: range.bytes, space: Space::Ipu, access: range.access },
            memory: Arc::clone(window),
            file_offset: range.offset,
        });
        let spans: Vec<Span> = host.chain(ipu).collect();
        for (index, span) in spans.iter().enumerate() {
            let Grant { base, bytes, space, .. } = span.grant;
            let aligned =
                [base, bytes, span.file_offset].iter().all(|value| value.is_multiple_of(ALIGN_BYTES));
            let in_file = inside(span.file_offset, bytes, span.memory.bytes() as u64);
            if bytes == 0 || !aligned || !in_file || base.checked_add(bytes).is_none() {
                return Err(GrantError::Range { channel, space, base, bytes });
            }
            // A host range may be memory of the window's file; the pages are just as much registers there.
            let in_window = span.memory.identity() == window.identity();
            let covers =
                |page: &ChannelGrant| overlap(span.file_offset, bytes, page.page_offset, PAGE_BYTES as u64);
            if in_window && channels.iter().any(covers) {
                return Err(GrantError::Registers { channel, space, base, bytes });
            }
            let same_iova = |other: &Span| {
                other.grant.space == Space::Host && overlap(base, bytes, other.grant.base, other.grant.bytes)
            };
            if space == Space::Host && spans[..index].iter().any(same_iova) {
                return Err(GrantError::IovaShared { channel, iova: base, bytes });
            }
        }
        Ok(Self { spans, bytes_max })
    }

    /// The ranges as the register page lists them.
    pub fn grants(&self) -> Vec<Grant> {
        self.spans.iter().map(|span| span.grant).collect()
    }

    /// Where a descriptor's bytes come from and go, or which fault it has.
    pub fn check(&self, descriptor: &Descriptor) -> Result<Plan, Fault> {
        let Descriptor { source, destination, bytes, direction, notify } = *descriptor;
        if !source.is_multiple_of(ALIGN_BYTES) || !destination.is_multiple_of(ALIGN_BYTES) {
            return Err(Fault::Alignment);
        }
        if bytes == 0 || !bytes.is_multiple_of(ALIGN_BYTES) || bytes > self.bytes_max {
            return Err(Fault::Size);
        }
        let (from, to) = match direction {
            Direction::HostToIpu => (Space::Host, Space::Ipu),
            Direction::IpuToHost => (Space::Ipu, Space::Host),
        };
        let source = self.place(from, source, bytes, Access::reads).ok_or(Fault::SourceBounds)?;
        let destination =
            self.place(to, destination, bytes, Access::writes).ok_or(Fault::DestinationBounds)?;
        let same_file = source.memory.identity() == destination.memory.identity();
        if same_file && overlap(source.offset, bytes, destination.offset, bytes) {
            return Err(Fault::Overlap);
        }
        Ok(Plan { source, destination, bytes, notify })
    }

    /// The place of `bytes` at `address`, inside one range of `space` that allows it.
    fn place(&self, space: Space, address: u64, bytes: u64, allows: fn(Access) -> bool) -> Option<Place> {
        self.spans.iter().find_map(|span| {
            let grant = &span.grant;
            let offset = address.checked_sub(grant.base)?;
            let allowed = grant.space == space && allows(grant.access) && inside(offset, bytes, grant.bytes);
            allowed.then(|| Place { memory: Arc::clone(&span.memory), offset: span.file_offset + offset })
        })
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
