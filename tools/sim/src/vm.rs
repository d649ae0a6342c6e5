//! The VM's socket (section 7.3.3): ticks, sleep and turbo.
