//! The FIFO-per-core agent: policy and libOS put together, as [the FIFO agent](../../fifo/src/lib.rs) is.
#![no_std]
#![forbid(unsafe_code)]

use neap_policies::{FifoPerCore, TASKS, Task};

neap_agent::agent_of!("fifo-per-core", Task, FifoPerCore::<TASKS>::new);
