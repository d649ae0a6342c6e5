//! The command for developers, and what it shares with `neap`: set-up, the firmware's build, the budgets.

pub mod bench;
