//! Looking at an instance from outside: it runs on undisturbed, whatever the reader does.

mod log;
mod metrics;
mod scene;
pub mod snapshot;
mod status;
mod top;

pub use log::log;
pub use metrics::{LOOPBACK, metrics};
pub use status::{of_books, of_identity, status};
pub use top::top;

use snapshot::Snapshot;

impl Snapshot {
    /// The instance, as the start of a sentence.
    pub fn what(&self) -> &'static str {
        if self.running { "The running instance" } else { "The last run" }
    }

    /// Whether the instance is still there.
    pub fn lives(&self) -> bool {
        self.dir.join(snapshot::NOTES).exists()
    }
}
