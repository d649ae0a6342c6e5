//! The multi-queue Shinjuku agent as a program of its own, at EL0. Built for another machine it is empty.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
neap_agent_start::policy!(
    neap_agent_mq_shinjuku::start,
    [neap_policies::Task; neap_policies::TASKS] = [neap_policies::Task::ABSENT; neap_policies::TASKS]
);

#[cfg(not(target_os = "none"))]
fn main() {}
