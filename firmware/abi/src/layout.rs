//! How the IPU lays out its window.

use core::fmt;

use crate::CPUS_MAX;
use crate::epitaph::EPITAPHS_BYTES;
use crate::hello::{HELLO_BYTES, Hello, HelloError, Link, REGION_ALIGN, Region, RegionKind};
use crate::image::IMAGE_BYTES_MAX;
use crate::line::LINE_BYTES;
use crate::logring::HEADER_BYTES;
use crate::supervisor::SUPERVISOR_LINES;

/// Tasks that an agent holds in the usual layout.
pub const TASKS_USUAL: u32 = 1 << 15;

/// Bytes that DMA may move, in the usual layout.
pub const BUFFER_BYTES: u64 = 1 << 20;

/// What a window is laid out for. All is the firmware's choice: the host reads the hello page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size of the window in bytes.
    pub window_bytes: u64,
    /// Decision slots, 1 to [`CPUS_MAX`].
    pub cpus: u16,
    /// Cores of the IPU.
    pub cores: u16,
    /// Which of them have their log ring and their epitaphs in this window, a bit each.
    pub logged: u32,
    /// Tasks that an agent can hold.
    pub tasks: u32,
    /// Lines in the message ring, a power of two.
    pub message_lines: u32,
    /// Bytes in each core's log region, header included.
    pub log_bytes: u32,
}

/// A layout that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// More cores than the hello page has regions for.
    Cores {
        /// How many.
        cores: u16,
    },
    /// The page it gives would be refused.
    Hello(HelloError),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cores { cores } => write!(f, "layout: no room in the hello page for {cores} cores"),
            Self::Hello(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LayoutError {}

impl Layout {
    /// The usual layout over `window_bytes` for an IPU of `cores`.
    #[must_use]
    pub const fn usual(window_bytes: u64, cores: u16) -> Self {
        Self {
            window_bytes,
            cpus: CPUS_MAX,
            cores,
            logged: u32::MAX,
            tasks: TASKS_USUAL,
            message_lines: 4096,
            log_bytes: (64 << 10) + HEADER_BYTES as u32,
        }
    }

    /// The hello page of this layout. Regions follow each other, each on its own pages; the first after the hello
    /// page is channel 0's register page, so that the engine finds it before any firmware runs.
    ///
    /// # Errors
    /// What does not fit.
    pub fn hello(&self, boot: u32, features: u64, link: Link) -> Result<Hello, LayoutError> {
        let mut hello =
            Hello::new(boot, features, self.window_bytes, self.cpus, self.cores, self.tasks, link);
        let mut next = HELLO_BYTES as u64;
        let mut push = |kind, index, bytes: u64| {
            let region = Region { kind, index, offset: next, bytes };
            next += bytes.next_multiple_of(REGION_ALIGN);
            if hello.push(region) { Ok(()) } else { Err(LayoutError::Cores { cores: self.cores }) }
        };
        let line = LINE_BYTES as u64;
        push(RegionKind::Dma, 0, REGION_ALIGN)?;
        push(RegionKind::HostControl, 0, line)?;
        push(RegionKind::AgentControl, 0, line)?;
        push(RegionKind::Slots, 0, u64::from(self.cpus) * line)?;
        push(RegionKind::Messages, 0, u64::from(self.message_lines) * line)?;
        for core in (0..self.cores).filter(|&core| core < 32 && self.logged >> core & 1 == 1) {
            push(RegionKind::Log, core, u64::from(self.log_bytes))?;
            push(RegionKind::Epitaph, core, EPITAPHS_BYTES as u64)?;
        }
        push(RegionKind::Buffer, 0, BUFFER_BYTES)?;
        push(RegionKind::Manager, 0, line)?;
        push(RegionKind::Supervisor, 0, SUPERVISOR_LINES as u64 * line)?;
        push(RegionKind::Image, 0, IMAGE_BYTES_MAX as u64)?;
        hello.check(self.window_bytes).map_err(LayoutError::Hello)?;
        Ok(hello)
    }
}

/// Where channel 0's register page lies in every window.
pub const DMA_PAGE_OFFSET: u64 = HELLO_BYTES as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_layout_holds_from_two_to_sixteen_cores() {
        for cores in (2..=16).step_by(if cfg!(miri) { 14 } else { 1 }) {
            let hello = Layout::usual(16 << 20, cores).hello(1, 0, Link::Pcie).unwrap();
            assert_eq!(hello.region(RegionKind::Dma, 0).unwrap().offset, DMA_PAGE_OFFSET);
            for core in 0..cores {
                assert!(hello.region(RegionKind::Log, core).is_some());
                assert!(hello.region(RegionKind::Epitaph, core).is_some());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let small = Layout::usual(1 << 20, 4).hello(1, 0, Link::Pcie);
        assert!(
            matches!(small, Err(LayoutError::Hello(HelloError::RegionBounds(r))) if r.kind == RegionKind::Buffer)
        );
        let many = Layout::usual(64 << 20, 64).hello(1, 0, Link::Pcie);
        assert_eq!(many, Err(LayoutError::Cores { cores: 64 }));
        let one = Layout { logged: 1 << 5, ..Layout::usual(16 << 20, 16) }.hello(1, 0, Link::Pcie).unwrap();
        assert!(one.region(RegionKind::Log, 5).is_some() && one.region(RegionKind::Log, 4).is_none());
        let none = Layout { cpus: 0, ..Layout::usual(16 << 20, 4) }.hello(1, 0, Link::Pcie);
        assert_eq!(none, Err(LayoutError::Hello(HelloError::Cpus { cpus: 0 })));
    }
}
