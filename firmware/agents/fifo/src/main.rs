//! The FIFO agent as a program of its own, at EL0. Built for another machine it is empty.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use neap_agent::{AgentError, Exit};
    use neap_agent_start::{Given, Private, agent};
    use neap_policies::{TASKS, Task};

    agent!(main);

    static MEMORY: Private<[Task; TASKS]> = Private::new([Task::ABSENT; TASKS]);

    fn main(given: Given) -> Result<Exit, AgentError> {
        let memory = MEMORY.take().map_or(&mut [][..], |memory| memory);
        let mut idle = given.idle;
        neap_agent_fifo::start(given.bindings, given.messages, memory, &mut idle)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
