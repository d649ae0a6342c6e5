//! The command for developers, and what it shares with `neap`: set-up, the firmware's build, the budgets.
//!
//! 1. Results go to stdout, remarks and progress to stderr.
//! 2. Every wait has a bound, and every error names its culprit and a remedy.
//! 3. What is missing is installed or named; nothing is skipped in silence.

pub mod agent_image;
pub mod bench;
pub mod budget;
pub mod card_disk;
pub mod card_image;
pub mod firmware;
pub mod homes;
pub mod ipu;
pub mod linux;
pub mod machine;
pub mod panicfree;
pub mod paths;
pub mod process;
pub mod progress;
pub mod qemu_run;
pub mod setup;
pub mod test;
