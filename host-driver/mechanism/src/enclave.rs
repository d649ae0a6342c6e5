//! An enclave: who decides for it, and what its agent is to be believed.

use neap_abi::Version;

use crate::sync::figures;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Level {
    /// The IPU's agent.
    Ipu = 0,
    /// The host's own rule: first come, first served, within the extensible class.
    Host = 1,
    /// The kernel's own class: the extensible one is to be left.
    Kernel = 2,
}

impl Level {
    /// Its name on every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipu => "ipu",
            Self::Host => "host",
            Self::Kernel => "kernel",
        }
    }
}

/// What standing the agent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Standing {
    /// Its txns count.
    Good = 0,
    /// It broke the protocol: nothing that it staged counts until it is started afresh.
    Poisoned = 1,
    /// It has ended.
    Gone = 2,
}

/// Any agent's txns count.
pub(crate) const ANY: u32 = u32::MAX;

/// Groups that can be incomplete at one time.
pub(crate) const GROUPS: usize = if cfg!(loom) { 1 } else { 16 };

/// Lines that may be written after a resync until it is forgotten when its first line came.
const RESYNC_REMEMBERED: u32 = 1 << 30;

/// An enclave.
#[derive(Debug)]
pub struct Enclave {
    pub(crate) level: AtomicU32,
    pub(crate) standing: AtomicU32,
    /// The agent whose txns count, or [`ANY`].
    pub(crate) incarnation: AtomicU32,
    /// The version that both sides speak.
    pub(crate) version: AtomicU32,
    /// Tasks that wait for a decision.
    pub(crate) runnable: figures::AtomicU32,
    /// A resync is due: lines were lost, or the agent asked.
    pub(crate) resync_due: AtomicBool,
    /// Lines lost since the last that came through.
    pub(crate) dropped: AtomicU32,
    /// The number of the line with which the last resync began, + 1 << 32; 0 for none.
    resync: AtomicU64,
    /// Decisions committed of the agent, for the watchdog.
    pub(crate) decisions: figures::AtomicU64,
    /// Groups that are incomplete ([`crate::group`]), each in the place that follows from its number; 0 for none.
    pub(crate) groups: [AtomicU64; GROUPS],
}

impl Default for Enclave {
    fn default() -> Self {
        Self {
            level: AtomicU32::new(Level::Host as u32),
            standing: AtomicU32::new(Standing::Gone as u32),
            incarnation: AtomicU32::new(ANY),
            version: AtomicU32::new(0),
            runnable: figures::AtomicU32::new(0),
            resync_due: AtomicBool::new(false),
            dropped: AtomicU32::new(0),
            resync: AtomicU64::new(0),
            decisions: figures::AtomicU64::new(0),
            groups: Default::default(),
        }
    }
}

impl Enclave {
    /// Who decides.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Acquire) {
            0 => Level::Ipu,
            1 => Level::Host,
            _ => Level::Kernel,
        }
    }

    /// Says who decides from now on. Whoever looks under a runqueue's lock sees it when every CPU has passed out of its own.
    pub fn set_level(&self, level: Level) {
        self.level.store(level as u32, Ordering::SeqCst);
    }

    /// What standing its agent has.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Good,
            1 => Standing::Poisoned,
            _ => Standing::Gone,
        }
    }

    /// Says what standing its agent has.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.store(standing as u32, Ordering::Release);
    }

    /// Its agent has broken the protocol. One that has ended stays ended.
    pub(crate) fn poison(&self) {
        let (good, poisoned) = (Standing::Good as u32, Standing::Poisoned as u32);
        if self.standing.load(Ordering::Relaxed) == good {
            let _ = self.standing.compare_exchange(good, poisoned, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Another agent's txns count from now on; any agent's with none.
    pub fn set_agent(&self, incarnation: Option<u32>, version: Version) {
        self.incarnation.store(incarnation.unwrap_or(ANY), Ordering::Release);
        self.version.store(version.to_bits(), Ordering::Release);
    }

    /// The agent whose txns count; none if any agent's do.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        Some(self.incarnation.load(Ordering::Acquire)).filter(|&agent| agent != ANY)
    }

    /// The version that both sides speak.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::from_bits(self.version.load(Ordering::Acquire))
    }

    /// Tasks that wait for a decision.
    #[must_use]
    pub fn runnable(&self) -> u32 {
        // A task's word moves before it is counted, so that a decision in between takes off what is not there yet.
        (self.runnable.load(Ordering::Relaxed) as i32).max(0) as u32
    }

    /// Decisions of the agent that were committed.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions.load(Ordering::Relaxed)
    }

    /// Whether a resync is due.
    #[must_use]
    pub fn resync_due(&self) -> bool {
        self.resync_due.load(Ordering::Acquire)
    }

    /// Asks for a resync.
    pub fn ask_for_resync(&self) {
        self.resync_due.store(true, Ordering::Release);
    }

    /// A resync begins with line `line` of the ring; none in a fresh ring.
    pub(crate) fn set_resync(&self, line: Option<u32>) {
        let mark = line.map_or(0, |line| 1 << 32 | u64::from(line));
        self.resync.store(mark, Ordering::Release);
    }

    /// Whether an agent that had taken `credits` lines, of `written`, had not heard of the last resync yet. What it held then is
    /// void.
    pub(crate) fn predates_resync(&self, credits: u32, written: u32) -> bool {
        let mark = self.resync.load(Ordering::Acquire);
        let begun = mark as u32;
        let (since, heard) = (written.wrapping_sub(begun), credits.wrapping_sub(begun));
        mark != 0 && since < RESYNC_REMEMBERED && (heard == 0 || heard > since)
    }

    /// A line was lost.
    pub(crate) fn lose(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.resync_due.store(true, Ordering::Release);
    }
}
