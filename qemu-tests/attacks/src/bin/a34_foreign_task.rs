//! Decides for a task of another enclave.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::{Outcome, Txn};
    let mut liar = neap_attacks::Liar::new(given, told);
    liar.task();
    liar.insist(Txn::run(told.own_cpu, told.neighbour_task, 1), Outcome::NotPermitted);
});
