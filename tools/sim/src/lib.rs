//! The simulator: the same agents in virtual time, with PCIe's costs and faults.
//!
//! 1. One thread, one seed, one order of events: the same seed gives the same trace, byte by byte.
//! 2. What runs is what ships: the ring, the slots, the libOS, the policies, and on the host's side the mechanism, the
//!    wire and the watchdog of `neap-host`. Only time, the link and the tasks' own work are made up.
//! 3. Time comes from `parameters.toml`, where each number has its source. What was fitted says so.
//! 4. Nothing it says is a measurement: it is modelled, and every output says that.
#![forbid(unsafe_code)]

pub mod clock;
pub mod columns;
pub mod faults;
pub mod figures;
pub mod load;
pub mod parameters;
pub mod policy;
pub mod rtapp;
pub mod trace;
pub mod vm;
pub mod world;
