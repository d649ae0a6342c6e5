//! What the ledgers of an agent's txns come to: how long each step of a decision took, by the agent's counter.
//!
//! An agent may enter what it likes. So what is told here is told, and nothing is decided by it.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use neap_abi::hello::feature;
use neap_abi::ledger::ticks_between;
use neap_abi::{Hello, Ledger, Txn, TxnFlags};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The counter of an agent on the host: the host's monotonic clock, in ticks as long as those of QEMU's counter. 24 bits of
/// them last 0.27 s; 24 bits of ns would come round while a busy machine lets a thread wait.
pub const HOST_COUNTER_HZ: u32 = 1_000_000_000 / HOST_TICK_NS;
const HOST_TICK_NS: u32 = 16;

/// That counter's value. It is the same in every process.
#[must_use]
pub fn host_ticks() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative.
    let ns = u128::from(now.tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(now.tv_nsec.unsigned_abs());
    (ns / u128::from(HOST_TICK_NS)) as u64
}

/// A step of a decision: from one entry of its ledger to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From the whole message to the policy's mind made up.
    SeenToDecided,
    /// From there to the line's first word.
    DecidedToPublished,
    /// From there to the doorbell rung; not of a prestaged txn.
    PublishedToDoorbell,
    /// From the line's first word to the host's taking it; not of a prestaged txn, which waits for its turn. Only where the
    /// agent's counter is the host's clock.
    PublishedToTaken,
}

impl Span {
    /// All, in order.
    pub const ALL: [Self; 4] =
        [Self::SeenToDecided, Self::DecidedToPublished, Self::PublishedToDoorbell, Self::PublishedToTaken];

    /// Its name, a key.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SeenToDecided => "seen_to_decided",
            Self::DecidedToPublished => "decided_to_published",
            Self::PublishedToDoorbell => "published_to_doorbell",
            Self::PublishedToTaken => "published_to_taken",
        }
    }
}

/// What one step took, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Txns whose ledgers tell of it.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Greatest.
    pub max_ns: u64,
}

/// The account of many txns.
#[derive(Clone, Debug, Default)]
pub struct Account {
    counter_hz: u32,
    /// By [`Span`]; made when there is a first entry.
    spans_ns: [Option<Histogram<u64>>; Span::ALL.len()],
}

impl Account {
    /// Takes note of a txn, which was taken at `taken_ticks` of the host's counter from an agent whose window begins with `hello`.
    pub fn note(&mut self, hello: &Hello, txn: &Txn, ledger: &Ledger, taken_ticks: u64) {
        if hello.counter_hz == 0 {
            return;
        }
        self.counter_hz = hello.counter_hz;
        let Ledger { seen_ticks, decided_ticks, published_ticks, doorbell_ticks } = *ledger;
        self.enter(Span::SeenToDecided, seen_ticks, decided_ticks);
        self.enter(Span::DecidedToPublished, decided_ticks, published_ticks);
        if txn.flags.has(TxnFlags::PRESTAGED) {
            return;
        }
        self.enter(Span::PublishedToDoorbell, published_ticks, doorbell_ticks);
        if hello.features & feature::HOST_CLOCK != 0 {
            let taken_ticks = (taken_ticks & neap_abi::ledger::TICKS_MASK) as u32;
            self.enter(Span::PublishedToTaken, published_ticks, taken_ticks);
        }
    }

    fn enter(&mut self, span: Span, from: u32, to: u32) {
        let Some(ticks) = ticks_between(from, to) else { return };
        let ns = u64::from(ticks) * 1_000_000_000 / u64::from(self.counter_hz);
        let histogram = self.spans_ns[span as usize].get_or_insert_with(histogram);
        histogram.saturating_record(ns);
    }

    /// Adds another enclave's.
    pub fn add(&mut self, other: &Self) {
        self.counter_hz = self.counter_hz.max(other.counter_hz);
        for (all, more) in self.spans_ns.iter_mut().zip(&other.spans_ns) {
            if let Some(more) = more {
                // All have the same bounds.
                let _ = all.get_or_insert_with(histogram).add(more);
            }
        }
    }

    /// How fast the agents' counter runs; 0 where no ledger was kept.
    #[must_use]
    pub fn counter_hz(&self) -> u32 {
        self.counter_hz
    }

    /// What each step took, by its name.
    #[must_use]
    pub fn quantiles(&self) -> BTreeMap<String, Quantiles> {
        let of = |histogram: &Histogram<u64>| Quantiles {
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
        };
        let spans = Span::ALL.iter().zip(&self.spans_ns);
        spans.map(|(span, ns)| (span.name().to_owned(), ns.as_ref().map(of).unwrap_or_default())).collect()
    }
}

fn histogram() -> Histogram<u64> {
    // 24 bits of the slowest counter that is taken, 1 MHz, are 17 s.
    Histogram::new_with_bounds(1, 20_000_000_000, 3).expect("these bounds make a histogram")
}

#[cfg(test)]
mod tests {
    use neap_abi::Layout;
    use neap_abi::hello::Link;

    use super::*;

    fn hello(features: u64, counter_hz: u32) -> Hello {
        let mut hello = Layout::usual(16 << 20, 2).hello(1, features, Link::Coherent).unwrap();
        hello.counter_hz = counter_hz;
        hello
    }

    fn counts(account: &Account) -> [u64; 4] {
        Span::ALL.map(|span| account.quantiles()[span.name()].count)
    }

    const LEDGER: Ledger =
        Ledger { seen_ticks: 0xff_fff0, decided_ticks: 2, published_ticks: 5, doorbell_ticks: 9 };

    #[test]
    fn each_step_is_told_in_ns_though_the_counter_comes_round() {
        let mut account = Account::default();
        account.note(&hello(feature::HOST_CLOCK, 62_500_000), &Txn::run(0, 1, 1), &LEDGER, (7 << 24) + 105);
        let told = Span::ALL.map(|span| account.quantiles()[span.name()]);
        assert_eq!(told.map(|span| (span.count, span.max_ns)), [(1, 288), (1, 48), (1, 64), (1, 1600)]);
        assert_eq!(told.map(|span| span.p50_ns), [288, 48, 64, 1600]);
        assert_eq!(account.counter_hz(), 62_500_000);
    }

    #[test]
    fn what_was_not_kept_is_not_told() {
        let (txn, all) = (Txn::run(0, 1, 1), hello(feature::HOST_CLOCK, 1_000_000));
        let mut account = Account::default();
        account.note(&hello(feature::HOST_CLOCK, 0), &txn, &LEDGER, 20);
        assert_eq!((counts(&account), account.counter_hz()), ([0; 4], 0));
        account.note(&all, &txn, &Ledger::default(), 20);
        assert_eq!(counts(&account), [0; 4]);
        // Its clock is another than ours.
        account.note(&hello(0, 1_000_000), &txn, &LEDGER, 20);
        assert_eq!(counts(&account), [1, 1, 1, 0]);
        // It waits for its turn, and nobody is rung for it.
        account.note(&all, &Txn { flags: TxnFlags::PRESTAGED, ..txn }, &LEDGER, 20);
        assert_eq!(counts(&account), [2, 2, 1, 0]);
        // The doorbell is not entered yet.
        account.note(&all, &txn, &Ledger { doorbell_ticks: 0, ..LEDGER }, 20);
        assert_eq!(counts(&account), [3, 3, 1, 1]);
    }

    #[test]
    fn accounts_add_up() {
        let mut account = Account::default();
        account.note(&hello(0, 1_000_000), &Txn::run(0, 1, 1), &LEDGER, 0);
        let mut all = Account::default();
        all.add(&account);
        all.add(&account);
        assert_eq!((counts(&all), all.counter_hz()), ([2, 2, 2, 0], 1_000_000));
    }

    #[test]
    fn the_hosts_counter_goes_on() {
        let before = host_ticks();
        assert!(host_ticks() >= before && before > 0);
    }
}
