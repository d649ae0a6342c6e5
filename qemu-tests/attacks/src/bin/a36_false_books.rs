//! Says of itself in a txn what can't be: that it has taken lines that nobody has written (variant 0), a number that
//! its tag denies (1), that it is the agent before it (2).
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|given, told| {
    use neap_abi::Txn;
    let mut liar = neap_attacks::Liar::new(given, told);
    let (task, stamp) = liar.task();
    let txn = liar.signed(Txn::run(told.own_cpu, task, stamp));
    let txn = match told.variant {
        0 => Txn { credits: txn.credits.wrapping_add(1 << 20), ..txn },
        1 => Txn { id: txn.id.wrapping_add(1), ..txn },
        _ => Txn { incarnation: txn.incarnation - 1, ..txn },
    };
    liar.publish(&txn);
    loop {
        liar.hear();
    }
});
