//! The Shinjuku agent: policy and libOS put together, as [the FIFO agent](../../fifo/src/lib.rs) is.
#![no_std]
#![forbid(unsafe_code)]

use neap_policies::{Shinjuku, TASKS, Task};

neap_agent::agent_of!("shinjuku", Task, Shinjuku::<TASKS>::new);
