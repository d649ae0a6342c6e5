//! The host's end of the wire in user space (the paper's Table 1, left column), and the worker host.
//!
//! 1. The host is the source of truth: [`mechanism`] alone says what a txn does, and a refusal changes nothing.
//! 2. Every byte of the window that the IPU could write is an allegation. It can make the host refuse and report.
//! 3. Nothing is lost: what does not fit the ring is counted, and made good by a resync.
//!
//! 4. What an agent fails to do others do in its place, so that work goes on whatever becomes of the IPU.
//!
//! [`link`] is `SEND_MESSAGE`, `REGISTER_IRQ_HANDLER`, `READ_TXN` and `SET_TXN_OUTCOME`; [`manager`] is how agents are
//! loaded, replaced and ended; [`worker`] is a host made of threads, each a host CPU; [`spare`] and [`onhost`] run the
//! very agent that the IPU runs in this process: the one when the IPU fails, the other in the IPU's place. [`device`] is a machine's
//! own driver, which does all of this in the kernel; [`card_disk`] is what the card was booted from. [`trace`] keeps what an agent was told, and tells it again; [`sights`] keeps
//! what a host saw, for a timeline; [`ledger`] says how long agents took.

pub mod card_disk;
pub mod device;
pub mod event;
pub mod fifo_check;
pub mod ledger;
pub mod link;
pub mod manager;
pub mod mechanism;
pub mod onhost;
pub mod ownership;
pub mod policies;
pub mod report;
pub mod sights;
pub mod spare;
pub mod trace;
pub mod window;
pub mod wire;
pub mod worker;
