//! The meter: a QEMU TCG plugin that records the agent's path from message to decision, and its reader.
//!
//! 1. **What is counted is what ran.** Every executed instruction of the agent's core between the load that
//!    sees a whole new line and the doorbell store; no sampling, no markers in the code under test.
//! 2. **Physical addresses only.** The ring, the slots and the doorbell are found by where they are, so the
//!    meter needs no symbol and stays right when the agent moves to its own address space.
//! 3. **The plugin knows nothing else.** Opcodes, symbols and message kinds belong to whoever reads the
//!    records ([`record`]) beside the ELF and the script of messages.
//! 4. **Bounded.** An attempt keeps at most [`attempt::PATH_MAX`] addresses and a file at most
//!    [`recorder::RECORDS_MAX`] records; what was cut is marked, never dropped silently.
//!
//! As a library it is what `cargo xtask bench` reads records with. With the feature `plugin`, and as a
//! cdylib, it is what QEMU loads.

pub mod api;
pub mod args;
pub mod attempt;
#[cfg(all(feature = "plugin", not(test)))]
mod plugin;
pub mod record;
pub mod recorder;
