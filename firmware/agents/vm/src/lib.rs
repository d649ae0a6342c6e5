//! The VM agent: policy and libOS put together, as [the FIFO agent](../../fifo/src/lib.rs) is.
#![no_std]
#![forbid(unsafe_code)]

use neap_policies::{TASKS, Task, Vm};

neap_agent::agent_of!("vm", Task, Vm::<TASKS>::new);
