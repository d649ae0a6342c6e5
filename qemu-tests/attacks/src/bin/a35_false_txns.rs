//! Decides on what does not hold: stale stamps, CPUs and tasks that are not, operations that nobody knows.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::{Outcome, Txn, TxnFlags};
    let mut liar = neap_attacks::Liar::new(given, told);
    let (task, stamp) = liar.task();
    let good = Txn::run(told.own_cpu, task, stamp);
    let (txn, outcome) = match told.variant {
        0 => (Txn { stamp: stamp.wrapping_sub(1), ..good }, Outcome::TaskStale),
        1 => (Txn { flags: TxnFlags::CHECK_CPU, cpu_stamp: u32::MAX, ..good }, Outcome::CpuStale),
        2 => (Txn { cpu: u16::MAX, ..good }, Outcome::InvalidCpu),
        3 => (Txn { task: u32::MAX - 1, ..good }, Outcome::InvalidTask),
        4 => (Txn { operation: 0xee, ..good }, Outcome::UnknownOperation),
        _ => (Txn { flags: TxnFlags(1 << 15), ..good }, Outcome::InvalidFlags),
    };
    liar.insist(txn, outcome);
});
