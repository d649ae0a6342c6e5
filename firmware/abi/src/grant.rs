//! The grant page: what an agent finds when it starts. It lists the agent's secure bindings, and is the agent's to read
//! only; the one word in it that changes asks for the core back (visible revocation).
//!
//! The page is one of 64-bit words. Those that a version does not know are zero.
//!
//! An agent's addresses are the same on every IPU ([`space`]); what is not bound is not mapped.

use crate::control::Clock;
use crate::version::Version;

/// Where things lie in an agent's address space.
pub mod space {
    /// The agent's own image: its segments, each where its linker put it.
    pub const IMAGE: u64 = 0x20_0000_0000;
    /// Bytes of address space for the image.
    pub const IMAGE_SPAN: u64 = 16 << 20;
    /// The end of the first core's stack, which grows down from here; below it nothing is bound.
    pub const STACK_END: u64 = IMAGE + (34 << 20);
    /// The next core's stack ends so much lower.
    pub const STACK_SPACING: u64 = 2 << 20;
    /// The grant page: to be read.
    pub const GRANT: u64 = IMAGE + (64 << 20);
    /// The agent's control line.
    pub const CONTROL: u64 = GRANT + 0x2000;
    /// The doorbell page: Device memory.
    pub const DOORBELL: u64 = GRANT + 0x4000;
    /// The DMA channel's register page.
    pub const DMA: u64 = GRANT + 0x6000;
    /// The decision slots.
    pub const SLOTS: u64 = GRANT + 0x1_0000;
    /// The message ring: to be read.
    pub const MESSAGES: u64 = GRANT + 0x4_0000;
    /// Bytes that DMA may move.
    pub const BUFFER: u64 = GRANT + 0x10_0000;
    /// The end of what can be bound.
    pub const END: u64 = GRANT + 0x20_0000;
}

/// System calls, by the number in the SVC instruction. Any other ends the agent.
pub mod call {
    /// Sleeps until the host rings or x0 nanoseconds have passed (at most 2^32 − 1; 0 for none). Changes no register.
    pub const SLEEP: u16 = 0;
    /// Gives the core back, as asked by a revocation. Does not return.
    pub const EXIT: u16 = 1;
    /// Ends the agent by a panic: x0 and x1 are address and length of the message, x2 and x3 of the source file's name, x4
    /// its line. Does not return.
    pub const PANIC: u16 = 2;
}

/// "NEAPGRNT".
pub const MAGIC: u64 = u64::from_le_bytes(*b"NEAPGRNT");
/// Words of the page that are given a meaning.
pub const WORDS: usize = 24;
/// The word that says where the agent goes on: taken and resyncs.
pub const RESUME_WORD: usize = 8;
/// The word that is not zero when the supervisor wants the core back.
pub const REVOKE_WORD: usize = 31;

/// What an agent is bound to, as numbers.
///
/// | word | |
/// | --- | --- |
/// | 0 | magic |
/// | 1 | version 32, core 8 at 32 |
/// | 2 | session 32, incarnation 32 |
/// | 3 | message_lines |
/// | 4 | slots |
/// | 5 | host_peer 16, wake_peer 16, wake_vector 16 |
/// | 6 | empty polls before sleep; 0 to spin for ever |
/// | 7 | sleep_ns |
/// | 8 | taken 32, resyncs 32 |
/// | 9 | tasks |
/// | 10 | dma_bytes (0: no channel), buffer_bytes at 32 |
/// | 11 | cores 8, clock 1 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The version that host and IPU speak; not newer than the agent's image.
    pub version: Version,
    /// The first core that is the agent's; where it has more, they are the next ones.
    pub core: u8,
    /// How many cores it has. Each enters at the image's entry, its place among them in x0.
    pub cores: u8,
    /// The host's session.
    pub session: u32,
    /// Which agent of its enclave this is.
    pub incarnation: u32,
    /// Lines of the message ring at [`space::MESSAGES`].
    pub message_lines: u32,
    /// Decision slots at [`space::SLOTS`], one a host CPU.
    pub slots: u16,
    /// The host's peer number in the enclave's domain: where doorbells go.
    pub host_peer: u16,
    /// The IPU's own peer number, for the host to ring.
    pub wake_peer: u16,
    /// The vector that wakes this core.
    pub wake_vector: u16,
    /// Empty polls in a row after which the agent sleeps; 0: it never does.
    pub idle_polls: u32,
    /// How long it sleeps at most, in ns.
    pub sleep_ns: u32,
    /// Lines of the ring that earlier agents of this session have taken, modulo 2^32.
    pub taken: u32,
    /// Resyncs that they have asked for.
    pub resyncs: u32,
    /// Task numbers are below this.
    pub tasks: u32,
    /// Bytes of the DMA channel's register page at [`space::DMA`]; 0 for no channel.
    pub dma_bytes: u32,
    /// Bytes at [`space::BUFFER`] that DMA may move.
    pub buffer_bytes: u32,
    /// Whose time the policy is told.
    pub clock: Clock,
}

impl Grant {
    /// The page's first words.
    #[must_use]
    pub const fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = MAGIC;
        words[1] = self.version.to_bits() as u64 | (self.core as u64) << 32;
        words[2] = self.session as u64 | (self.incarnation as u64) << 32;
        words[3] = self.message_lines as u64;
        words[4] = self.slots as u64;
        words[5] = self.host_peer as u64 | (self.wake_peer as u64) << 16 | (self.wake_vector as u64) << 32;
        words[6] = self.idle_polls as u64;
        words[7] = self.sleep_ns as u64;
        words[RESUME_WORD] = self.taken as u64 | (self.resyncs as u64) << 32;
        words[9] = self.tasks as u64;
        words[10] = self.dma_bytes as u64 | (self.buffer_bytes as u64) << 32;
        words[11] = self.cores as u64 | (self.clock as u64) << 8;
        words
    }

    /// From the page's first words; none where no grant stands.
    #[must_use]
    pub const fn from_words(words: &[u64; WORDS]) -> Option<Self> {
        if words[0] != MAGIC {
            return None;
        }
        Some(Self {
            version: Version::from_bits(words[1] as u32),
            core: (words[1] >> 32) as u8,
            session: words[2] as u32,
            incarnation: (words[2] >> 32) as u32,
            message_lines: words[3] as u32,
            slots: words[4] as u16,
            host_peer: words[5] as u16,
            wake_peer: (words[5] >> 16) as u16,
            wake_vector: (words[5] >> 32) as u16,
            idle_polls: words[6] as u32,
            sleep_ns: words[7] as u32,
            taken: words[RESUME_WORD] as u32,
            resyncs: (words[RESUME_WORD] >> 32) as u32,
            tasks: words[9] as u32,
            dma_bytes: words[10] as u32,
            buffer_bytes: (words[10] >> 32) as u32,
            cores: words[11] as u8,
            clock: if words[11] >> 8 & 1 == 1 { Clock::Messages } else { Clock::Own },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSION;

    #[test]
    fn a_grant_is_read_as_it_was_written() {
        let grant = Grant {
            version: VERSION,
            core: 15,
            cores: 8,
            session: 0xffff_fffe,
            incarnation: 0xff_ffff,
            message_lines: 1 << 24,
            slots: 256,
            host_peer: 65_535,
            wake_peer: 1,
            wake_vector: 65_534,
            idle_polls: 200,
            sleep_ns: u32::MAX,
            taken: 0x8000_0001,
            resyncs: 77,
            tasks: 1 << 15,
            dma_bytes: 4096,
            buffer_bytes: 1 << 20,
            clock: Clock::Messages,
        };
        assert_eq!(Grant::from_words(&grant.to_words()), Some(grant));
        let usual = Grant { clock: Clock::Own, ..grant };
        assert_eq!(Grant::from_words(&usual.to_words()), Some(usual));
        assert_eq!(Grant::from_words(&[0; WORDS]), None);
        const { assert!(REVOKE_WORD >= WORDS) };
    }

    #[test]
    fn what_is_bound_lies_apart() {
        use space::*;
        const LOWEST: u64 = STACK_END - STACK_SPACING * crate::image::CORES_MAX as u64;
        const {
            assert!(crate::image::STACK_BYTES_MAX as u64 <= STACK_SPACING - 4096);
            assert!(IMAGE + IMAGE_SPAN <= LOWEST && STACK_END <= GRANT);
            assert!(CONTROL >= GRANT + 4096 && DOORBELL >= CONTROL + 4096 && DMA >= DOORBELL + 4096);
            assert!(SLOTS + crate::CPUS_MAX as u64 * 64 < MESSAGES && MESSAGES + 4096 * 64 < BUFFER);
            assert!(BUFFER + crate::layout::BUFFER_BYTES <= END);
        }
    }
}
