//! Which policy decides.

use neap_policies::{Fifo, Task};

/// Tasks that a simulated enclave can have at most.
pub const TASKS: usize = 1024;

/// Policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Global FIFO.
    Fifo,
}

impl Chosen {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Fifo];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fifo => "fifo",
        }
    }
}

/// FIFO over its memory.
pub fn fifo(cpus: u16, memory: &mut [Task; TASKS]) -> Fifo<'_, TASKS> {
    Fifo::new(cpus, memory)
}
