//! Decides for a host CPU of another enclave.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::{Outcome, Txn};
    let mut liar = neap_attacks::Liar::new(given, told);
    let (task, stamp) = liar.task();
    liar.insist(Txn::run(told.neighbour_cpu, task, stamp), Outcome::NotPermitted);
});
