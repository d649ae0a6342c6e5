//! What the guest of a run is to do, as it finds it beside its init.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::Parameters;

/// What a guest is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The run's parameters, with the command if there is one.
    pub parameters: Parameters,
    /// The driver's module; none where it is there without.
    pub module: Option<PathBuf>,
    /// The scheduler's BPF object.
    pub object: PathBuf,
    /// Where the driver shows its state.
    pub debugfs: PathBuf,
    /// Where to tell what happens, and to hear.
    pub channel: PathBuf,
}

impl Order {
    /// The order for a run of `parameters` with everything where the guest's root has it.
    pub fn usual(parameters: Parameters) -> Self {
        Self {
            parameters,
            module: Some("/lib/neap/neap.ko".into()),
            object: "/lib/neap/neap.bpf.o".into(),
            debugfs: "/sys/kernel/debug/neap".into(),
            channel: "/dev/ttyS1".into(),
        }
    }
}
