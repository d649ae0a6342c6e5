//! What its host tells a hostile agent, as words at the beginning of the buffer that they share.

/// Words that are given a meaning.
pub const WORDS: usize = 16;
/// The word that is not zero when the agent may go on; it is written after the others.
pub const GO_WORD: usize = 0;
/// Bytes of an agent's stack, as `ld/agent.ld` has it.
pub const STACK_BYTES: u64 = 64 << 10;
/// What an agent has in x0 that was asked for its core and keeps it.
pub const ASKED: u64 = 0x6173_6b65_6421;

/// What the agent is to know. Addresses are physical ones, which are the runtime's own too.
///
/// | word | |
/// | --- | --- |
/// | 0 | go |
/// | 1 | variant |
/// | 2 | runtime_text |
/// | 3 | runtime_data |
/// | 4 | neighbour_window |
/// | 5 | neighbour_doorbell |
/// | 6 | own_manager |
/// | 7 | own_tables |
/// | 8 | interrupt_controller |
/// | 9 | own_cpu 16, neighbour_cpu 16, neighbour_task 32 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Which of its acts the agent is to commit.
    pub variant: u64,
    /// The runtime's text.
    pub runtime_text: u64,
    /// The runtime's data.
    pub runtime_data: u64,
    /// The window of another enclave.
    pub neighbour_window: u64,
    /// The doorbell page of another enclave.
    pub neighbour_doorbell: u64,
    /// The manager's line, in the enclave's own window.
    pub own_manager: u64,
    /// The agent's own translation tables; known once it runs.
    pub own_tables: u64,
    /// The interrupt controller's registers.
    pub interrupt_controller: u64,
    /// A host CPU of the enclave.
    pub own_cpu: u16,
    /// A host CPU of another enclave.
    pub neighbour_cpu: u16,
    /// A task of another enclave.
    pub neighbour_task: u32,
}

impl Told {
    /// The words, without leave to go on.
    #[must_use]
    pub const fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[1] = self.variant;
        words[2] = self.runtime_text;
        words[3] = self.runtime_data;
        words[4] = self.neighbour_window;
        words[5] = self.neighbour_doorbell;
        words[6] = self.own_manager;
        words[7] = self.own_tables;
        words[8] = self.interrupt_controller;
        words[9] =
            self.own_cpu as u64 | (self.neighbour_cpu as u64) << 16 | (self.neighbour_task as u64) << 32;
        words
    }

    /// From the words.
    #[must_use]
    pub const fn from_words(words: &[u64; WORDS]) -> Self {
        Self {
            variant: words[1],
            runtime_text: words[2],
            runtime_data: words[3],
            neighbour_window: words[4],
            neighbour_doorbell: words[5],
            own_manager: words[6],
            own_tables: words[7],
            interrupt_controller: words[8],
            own_cpu: words[9] as u16,
            neighbour_cpu: (words[9] >> 16) as u16,
            neighbour_task: (words[9] >> 32) as u32,
        }
    }
}
