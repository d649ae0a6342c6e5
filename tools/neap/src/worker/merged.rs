//! The figures of a run from the reports of its enclaves.

use std::collections::BTreeMap;

use neap_host::ledger::Account;
use neap_host::report::{FallbackReport, Latency, Report, Snapshot};

use crate::enclaves::EnclaveAsked;
use crate::measured::{Distribution, EnclaveMeasured, FallbackMeasured, LedgerMeasured, Measured};

/// All enclaves together, and each of them.
pub fn measured(reports: &[Report], asked: &[EnclaveAsked], offered: &[u64]) -> Measured {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for (name, times) in reports.iter().flat_map(|report| &report.outcomes) {
        *outcomes.entry(name.clone()).or_default() += times;
    }
    let enclaves: Vec<EnclaveMeasured> = reports
        .iter()
        .zip(asked)
        .zip(offered)
        .map(|((report, asked), &offered)| of_enclave(report, asked, offered))
        .collect();
    let epitaphs = reports.iter().zip(&enclaves).flat_map(|(report, enclave)| {
        enclave.epitaphs.iter().map(|words| within(reports, report.enclave, words))
    });
    let remarks = enclaves.iter().flat_map(|enclave| {
        enclave.remarks().into_iter().map(|words| within(reports, enclave.enclave, &words))
    });
    let ended = reports
        .iter()
        .filter_map(|report| report.agent_ended.as_ref().map(|why| within(reports, report.enclave, why)));
    let ended: Vec<String> = ended.collect();
    Measured {
        elapsed_s: reports.iter().map(|report| report.seconds).fold(0.0, f64::max),
        requests_offered: offered.iter().sum(),
        requests_refused: sum(|report| report.tasks_rejected),
        values_wrong: 0,
        decisions: sum(|report| report.decisions),
        outcomes,
        prestage_hits: sum(|report| report.prestage_hits),
        prestage_misses: sum(|report| report.prestage_misses),
        round_trip: distribution(reports, |report| (&report.round_trip, report.round_trip_ns.as_ref())),
        request: distribution(reports, |report| (&report.request, report.request_ns.as_ref())),
        request_short: distribution(reports, |report| {
            (&report.request_short, report.request_short_ns.as_ref())
        }),
        preemptions: sum(|report| report.preemptions),
        ledger: ledger(reports),
        tasks_created: sum(|report| report.tasks_created),
        tasks_finished: sum(|report| report.tasks_finished),
        tasks_lost: sum(|report| report.tasks_lost),
        tasks_doubled: sum(|report| report.tasks_doubled),
        fifo_violations: sum(|report| report.fifo_violations),
        resyncs: sum(|report| report.resyncs),
        messages: sum(|report| report.messages),
        messages_dropped: sum(|report| report.messages_dropped),
        messages_unknown: sum(|report| report.messages_unknown),
        doorbells: sum(|report| report.doorbells),
        agent_wakeups: sum(|report| report.agent_wakeups),
        queue_depth: depth(reports),
        agent_ended: (!ended.is_empty()).then(|| ended.join("; ")),
        fallbacks: sum(|report| report.fallbacks.len() as u64),
        crashes: sum(|report| report.crashes),
        command_status: None,
        troubles: Vec::new(),
        epitaphs: epitaphs.collect(),
        remarks: remarks.collect(),
        enclaves,
    }
}

/// What is said of one enclave, where there are several.
fn within(reports: &[Report], enclave: u16, words: &str) -> String {
    if reports.len() > 1 { format!("enclave {enclave}: {words}") } else { words.to_owned() }
}

fn of_enclave(report: &Report, asked: &EnclaveAsked, offered: u64) -> EnclaveMeasured {
    EnclaveMeasured {
        enclave: report.enclave,
        cpus: asked.cpus().collect(),
        policy: report.policy.clone(),
        agent: report.agent.clone(),
        requests_offered: offered,
        requests_refused: report.tasks_rejected,
        decisions: report.decisions,
        decisions_on_host: report.decisions_by_level[1],
        decisions_by_host: report.decisions_by_level[2],
        outcomes: report.outcomes.clone(),
        prestage_hits: report.prestage_hits,
        prestage_misses: report.prestage_misses,
        messages: report.messages,
        messages_dropped: report.messages_dropped,
        doorbells: report.doorbells,
        queue_depth: 0,
        tasks_created: report.tasks_created,
        tasks_finished: report.tasks_finished,
        tasks_lost: report.tasks_lost,
        tasks_doubled: report.tasks_doubled,
        fifo_violations: report.fifo_violations,
        resyncs: report.resyncs,
        complete: report.complete,
        level: report.level.name().to_owned(),
        incarnations: report.incarnations,
        crashes: report.crashes,
        faults: report.faults.clone(),
        fallbacks: fallbacks(&report.fallbacks),
        comebacks: report.comebacks,
        request: summary(&report.request),
        round_trip: summary(&report.round_trip),
        ledger: ledger(std::slice::from_ref(report)),
        epitaphs: report.epitaphs.iter().map(|epitaph| epitaph.in_words()).collect(),
    }
}

fn fallbacks(steps: &[FallbackReport]) -> Vec<FallbackMeasured> {
    let of = |step: &FallbackReport| FallbackMeasured {
        at_us: step.at_us,
        from: step.from.name().to_owned(),
        to: step.to.name().to_owned(),
        fault: step.fault.name().to_owned(),
        words: step.fault.in_words().to_owned(),
    };
    steps.iter().map(of).collect()
}

/// The figures so far: sums, of latencies the worst enclave's, and each enclave's own.
pub fn so_far(now: &[Snapshot], asked: &[EnclaveAsked]) -> Measured {
    let sum = |of: fn(&Snapshot) -> u64| now.iter().map(of).sum::<u64>();
    let worst = |of: fn(&Snapshot) -> f64| now.iter().map(of).fold(0.0, f64::max);
    let elapsed_ms = now.iter().map(|now| now.elapsed_ms).max().unwrap_or(0);
    let enclaves = now.iter().zip(asked).zip(0..).map(|((now, asked), number)| so_far_of(number, now, asked));
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for (name, times) in now.iter().flat_map(|now| &now.outcomes) {
        *outcomes.entry(name.clone()).or_default() += times;
    }
    Measured {
        elapsed_s: elapsed_ms as f64 / 1e3,
        requests_offered: sum(|now| now.tasks_created),
        decisions: sum(|now| now.decisions),
        outcomes,
        prestage_hits: sum(|now| now.prestage_hits),
        prestage_misses: sum(|now| now.prestage_misses),
        messages: sum(|now| now.messages),
        messages_dropped: sum(|now| now.messages_dropped),
        doorbells: sum(|now| now.doorbells),
        resyncs: sum(|now| now.resyncs),
        fallbacks: sum(|now| now.fallbacks.len() as u64),
        tasks_created: sum(|now| now.tasks_created),
        tasks_finished: sum(|now| now.tasks_finished),
        queue_depth: vec![(elapsed_ms, sum(|now| now.queue_depth))],
        request: Distribution {
            count: sum(|now| now.tasks_finished),
            p50: worst(|now| now.request_p50_us),
            p99: worst(|now| now.request_p99_us),
            ..Distribution::default()
        },
        enclaves: enclaves.collect(),
        ..Measured::default()
    }
}

fn so_far_of(enclave: u16, now: &Snapshot, asked: &EnclaveAsked) -> EnclaveMeasured {
    let of = |p50, p99| Distribution { p50, p99, ..Distribution::default() };
    EnclaveMeasured {
        enclave,
        cpus: now.cpus.clone(),
        policy: asked.policy.clone(),
        requests_offered: now.tasks_created,
        decisions: now.decisions,
        decisions_on_host: now.decisions_by_level[1],
        decisions_by_host: now.decisions_by_level[2],
        outcomes: now.outcomes.clone(),
        prestage_hits: now.prestage_hits,
        prestage_misses: now.prestage_misses,
        messages: now.messages,
        messages_dropped: now.messages_dropped,
        doorbells: now.doorbells,
        queue_depth: now.queue_depth,
        tasks_created: now.tasks_created,
        tasks_finished: now.tasks_finished,
        resyncs: now.resyncs,
        level: now.level.name().to_owned(),
        incarnations: now.incarnations,
        faults: now.faults.clone(),
        fallbacks: fallbacks(&now.fallbacks),
        comebacks: now.comebacks,
        request: of(now.request_p50_us, now.request_p99_us),
        round_trip: of(now.round_trip_p50_us, now.round_trip_p99_us),
        ledger: LedgerMeasured { steps: now.ledger.clone(), ..LedgerMeasured::default() },
        ..EnclaveMeasured::default()
    }
}

/// One distribution of all enclaves' samples.
fn distribution(
    reports: &[Report],
    of: impl Fn(&Report) -> (&Latency, Option<&hdrhistogram::Histogram<u64>>),
) -> Distribution {
    let mut samples = reports.iter().filter_map(|report| of(report).1);
    let Some(mut all) = samples.next().cloned() else { return Distribution::default() };
    for more in samples {
        // All have the same bounds.
        let _ = all.add(more);
    }
    whole(&Latency::of(&all))
}

/// All enclaves' ledgers together.
fn ledger(reports: &[Report]) -> LedgerMeasured {
    let mut all = Account::default();
    reports.iter().for_each(|report| all.add(&report.ledger));
    LedgerMeasured { counter_hz: all.counter_hz(), steps: all.quantiles() }
}

/// A distribution with its curve.
pub fn whole(latency: &Latency) -> Distribution {
    Distribution { curve: latency.cdf.clone(), ..summary(latency) }
}

/// A distribution's figures without its curve.
fn summary(latency: &Latency) -> Distribution {
    Distribution {
        count: latency.count,
        mean: latency.mean_us,
        p50: latency.p50_us,
        p90: latency.p90_us,
        p99: latency.p99_us,
        p999: latency.p99_9_us,
        max: latency.max_us,
        curve: Vec::new(),
    }
}

/// The enclaves' queues together. All are sampled in the same beats, or nearly.
fn depth(reports: &[Report]) -> Vec<(u64, u64)> {
    let Some((first, others)) = reports.split_first() else { return Vec::new() };
    let mut all = first.queue_depth.clone();
    for other in others {
        let mut next = other.queue_depth.iter().peekable();
        let mut last = 0;
        for (at_ms, depth) in &mut all {
            while let Some(&&(when_ms, there)) = next.peek()
                && when_ms <= *at_ms
            {
                last = there;
                next.next();
            }
            *depth += last;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_host::event::{Fault, Level};

    #[test]
    fn figures_so_far_are_each_enclave_s_and_their_sums() {
        let now = |n: u64| Snapshot {
            elapsed_ms: 1000 * n,
            decisions: n,
            outcomes: [("committed".to_owned(), n), (format!("only{n}"), 1)].into(),
            prestage_hits: 10 * n,
            queue_depth: n,
            round_trip_p99_us: n as f64,
            decisions_by_level: [n - 1, 1, 0],
            cpus: vec![n as u16],
            ..Snapshot::default()
        };
        let asked = ["cpus=0-1".parse().unwrap(), "cpus=4,policy=vm".parse().unwrap()];
        let m = so_far(&[now(1), now(2)], &asked);
        assert_eq!((m.elapsed_s, m.decisions, m.prestage_hits), (2.0, 3, 30));
        assert_eq!((m.outcomes["committed"], m.outcomes["only1"], m.outcomes["only2"]), (3, 1, 1));
        assert_eq!(m.queue_depth, [(2000, 3)]);
        let second = &m.enclaves[1];
        assert_eq!((second.enclave, second.policy.as_str(), &second.cpus[..]), (1, "vm", &[2][..]));
        assert_eq!((second.decisions, second.decisions_on_host, second.queue_depth), (2, 1, 2));
        assert_eq!((second.outcomes["only2"], second.round_trip.p99), (1, 2.0));
    }

    #[test]
    fn two_enclaves_come_to_one_run() {
        let mut samples = hdrhistogram::Histogram::new(3).unwrap();
        samples.record(1_000_000).unwrap();
        let report = |enclave: u16| Report {
            enclave,
            decisions: 10 + u64::from(enclave),
            outcomes: [("committed".to_owned(), 10), (format!("only{enclave}"), 1)].into(),
            queue_depth: vec![(0, 1), (20, 2), (40, 3)],
            request_ns: Some(samples.clone()),
            complete: true,
            crashes: u64::from(enclave),
            ..Report::default()
        };
        let fault = Fault::AgentLate;
        let step = FallbackReport { at_us: 1_500_000, from: Level::Ipu, to: Level::OnHost, fault };
        let second = Report { fallbacks: vec![step], comebacks: 1, ..report(1) };
        let asked = ["cpus=0-1".parse().unwrap(), "cpus=4".parse().unwrap()];
        let m = measured(&[report(0), second], &asked, &[5, 6]);
        assert_eq!((m.decisions, m.requests_offered, m.crashes, m.fallbacks), (21, 11, 1, 1));
        assert_eq!(m.outcomes["committed"], 20);
        assert_eq!((m.outcomes["only0"], m.outcomes["only1"]), (1, 1));
        assert_eq!(m.queue_depth, [(0, 2), (20, 4), (40, 6)]);
        assert_eq!(m.request.count, 2);
        assert_eq!(m.enclaves[1].cpus, [4]);
        assert_eq!(m.agent_ended, None);
        assert!(
            m.remarks[0].starts_with("enclave 1: after 1.5 s the agent owed a decision"),
            "{:?}",
            m.remarks
        );
    }
}
