//! What a run of the worker host comes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram;
use neap_abi::{EpitaphRecord, Message};
use serde::{Deserialize, Serialize};

use crate::event::{Event, Fault, Level};
use crate::ledger::{Account, Quantiles};
use crate::sights::Sights;

/// A latency distribution, in µs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p99_9_us: f64,
    /// Greatest.
    pub max_us: f64,
    /// The distribution: values in µs, each with the share of samples at or below it. At most some hundred points.
    pub cdf: Vec<(f64, f64)>,
}

impl Latency {
    /// From a histogram of ns.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        let cdf = histogram.iter_quantiles(50).map(|step| (us(step.value_iterated_to()), step.quantile()));
        Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            max_us: us(histogram.max()),
            cdf: if histogram.is_empty() { Vec::new() } else { cdf.collect() },
        }
    }
}

/// Counters at a moment, for a live view.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since the host attached, in ms.
    pub elapsed_ms: u64,
    /// Txns committed that run a task.
    pub decisions: u64,
    /// Tasks created.
    pub tasks_created: u64,
    /// Tasks that ran to their end.
    pub tasks_finished: u64,
    /// Tasks that may run and wait.
    pub queue_depth: u64,
    /// Request latency so far, in µs.
    pub request_p50_us: f64,
    /// As above, 99th percentile.
    pub request_p99_us: f64,
    /// Who decides.
    pub level: Level,
    /// The IPU's agent.
    pub incarnation: u32,
    /// The CPUs, by number.
    pub cpus: Vec<u16>,
    /// As `decisions`, by who decided: the IPU's agent, the one on the host, the host itself.
    pub decisions_by_level: [u64; 3],
    /// Verdicts, by the outcome's name.
    pub outcomes: BTreeMap<String, u64>,
    /// Decisions that lay in the slot when a CPU came to need one.
    pub prestage_hits: u64,
    /// Times that a CPU came to need a decision and found none.
    pub prestage_misses: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages that did not fit the ring.
    pub messages_dropped: u64,
    /// Doorbells that the IPU's agents rang, as of the last look.
    pub doorbells: u64,
    /// Resyncs.
    pub resyncs: u64,
    /// Agents of the IPU that there were.
    pub incarnations: u64,
    /// What the watch found wrong, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Times that somebody else took over, in order.
    pub fallbacks: Vec<FallbackReport>,
    /// Times that the IPU took over again.
    pub comebacks: u64,
    /// Decision latency so far, as [`Report::round_trip`], in µs.
    pub round_trip_p50_us: f64,
    /// As above, 99th percentile.
    pub round_trip_p99_us: f64,
    /// How long each step of a decision took so far, by [`crate::ledger::Span::name`].
    pub ledger: BTreeMap<String, Quantiles>,
}

/// The end of an agent or a core of the IPU, as its epitaph tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpitaphReport {
    /// The core.
    pub core: u8,
    /// The agent's name; empty for the runtime itself, and before 1.2.
    pub name: String,
    /// Which agent of its enclave; 0 as above.
    pub incarnation: u32,
    /// Why: [`neap_abi::Cause::name`].
    pub cause: String,
    /// The message.
    pub text: String,
    /// Source file and line of a panic, else the address at fault.
    pub place: String,
    /// Messages that its agent had consumed.
    pub messages: u64,
    /// The last message that it had taken, if that is known, in words.
    pub last_message: Option<String>,
}

impl EpitaphReport {
    /// From a record in the window.
    #[must_use]
    pub fn of(record: &EpitaphRecord) -> Self {
        let epitaph = &record.epitaph;
        let place = if epitaph.line > 0 {
            format!("{}:{}", epitaph.file(), epitaph.line)
        } else {
            format!("pc {:#x}, address {:#x}, syndrome {:#x}", epitaph.elr, epitaph.far, epitaph.esr)
        };
        let last_message = record.last_message.map(|payload| match Message::from_payload(&payload) {
            Ok(message) if message.task == neap_abi::message::TASK_NONE => {
                format!("{} of CPU {}", message.kind.name(), message.cpu)
            }
            Ok(message) => format!("{} of CPU {}, task {}", message.kind.name(), message.cpu, message.task),
            Err(unknown) => format!("one of unknown kind {}", unknown.kind),
        });
        Self {
            core: epitaph.core,
            name: record.name().to_owned(),
            incarnation: record.incarnation,
            cause: epitaph.cause.name().to_owned(),
            text: epitaph.text().to_owned(),
            place,
            messages: epitaph.messages,
            last_message,
        }
    }

    /// As a sentence without its point.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self { core, name, incarnation, cause, text, place, messages, last_message } = self;
        let who = match name.as_str() {
            "" => format!("core {core}"),
            name => format!("agent {name} (incarnation {incarnation}, core {core})"),
        };
        let mut words = format!("{who} ended by {cause} at {place} after {messages} messages");
        if let Some(last) = last_message {
            words.push_str(&format!(", the last {last}"));
        }
        if !text.is_empty() {
            words.push_str(&format!(": {text}"));
        }
        words
    }
}

/// A fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackReport {
    /// Since the host began, in µs.
    pub at_us: u64,
    /// Who decided until then.
    pub from: Level,
    /// Who did from then on.
    pub to: Level,
    /// Why.
    pub fault: Fault,
}

/// What a run comes to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The enclave's number.
    pub enclave: u16,
    /// From attachment to the end of the drain, in s.
    pub seconds: f64,
    /// Host CPUs that it began with.
    pub cpus: u16,
    /// Its policy.
    pub policy: String,
    /// Its agent's name, as the supervisor has it; empty before 1.2.
    pub agent: String,
    /// Whether every task ran to its end.
    pub complete: bool,
    /// Messages sent.
    pub messages: u64,
    /// Messages that did not fit the ring; each loss is made good by a resync.
    pub messages_dropped: u64,
    /// Txns committed that run a task.
    pub decisions: u64,
    /// As above, by who decided: the IPU's agent, the one on the host, the host itself.
    pub decisions_by_level: [u64; 3],
    /// Verdicts, by the outcome's name.
    pub outcomes: BTreeMap<String, u64>,
    /// Decisions that lay in the slot when a CPU came to need one.
    pub prestage_hits: u64,
    /// Times that a CPU came to need a decision and found none.
    pub prestage_misses: u64,
    /// Doorbells that the agent rang.
    pub doorbells: u64,
    /// Times that the agent was woken from sleep.
    pub agent_wakeups: u64,
    /// From when a task could run and a CPU was free, as told to the agent, until the host committed the decision;
    /// without prestaged decisions.
    pub round_trip: Latency,
    /// From a request's creation to its end.
    pub request: Latency,
    /// As above, of the requests that are not long.
    pub request_short: Latency,
    /// Times that an agent had a task give up its CPU.
    pub preemptions: u64,
    /// The samples behind `round_trip`, in ns, to be merged with others; only in the process that took them.
    #[serde(skip)]
    pub round_trip_ns: Option<Histogram<u64>>,
    /// As above, of `request`.
    #[serde(skip)]
    pub request_ns: Option<Histogram<u64>>,
    /// As above, of `request_short`.
    #[serde(skip)]
    pub request_short_ns: Option<Histogram<u64>>,
    /// What the ledgers of the IPU's agents came to; as above.
    #[serde(skip)]
    pub ledger: Account,
    /// What its host saw, if that was asked for; only in the process that saw it.
    #[serde(skip)]
    pub sights: Option<Arc<Sights>>,
    /// Tasks created.
    pub tasks_created: u64,
    /// Tasks that ran to their end.
    pub tasks_finished: u64,
    /// Tasks that are nowhere, or that nobody let finish in time.
    pub tasks_lost: u64,
    /// Tasks that ran to their end twice.
    pub tasks_doubled: u64,
    /// Tasks refused because the table was full.
    pub tasks_rejected: u64,
    /// Tasks started or decided out of the order of their arrival; 0 where the policy is another than FIFO.
    pub fifo_violations: u64,
    /// Resyncs, the first one included.
    pub resyncs: u64,
    /// Messages that the agent did not know.
    pub messages_unknown: u64,
    /// Number of waiting tasks over time: ms since the start, depth.
    pub queue_depth: Vec<(u64, u64)>,
    /// Who decided in the end.
    pub level: Level,
    /// Agents of the IPU that there were.
    pub incarnations: u64,
    /// Those that ended by a fault or the host's verdict, as the supervisor counts them.
    pub crashes: u64,
    /// What the watch found wrong, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Times that somebody else took over, in order.
    pub fallbacks: Vec<FallbackReport>,
    /// Times that the IPU took over again.
    pub comebacks: u64,
    /// Why the IPU's agent does not decide in the end, if it does not.
    pub agent_ended: Option<String>,
    /// Epitaphs of the session's agents and of the runtime, by core, the newest first.
    pub epitaphs: Vec<EpitaphReport>,
    /// What was noticed, in order.
    pub events: Vec<Event>,
    /// Events that were not kept.
    pub events_dropped: u64,
    /// The ABI version spoken.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_in_microseconds() {
        let mut histogram = Histogram::new(3).unwrap();
        for us in 1..=1000u64 {
            histogram.record(us * 1000).unwrap();
        }
        let latency = Latency::of(&histogram);
        assert_eq!(latency.count, 1000);
        assert!((latency.p50_us - 500.0).abs() < 2.0 && (latency.p99_us - 990.0).abs() < 2.0);
        assert!(latency.cdf.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1) && latency.cdf.len() > 10);
        assert!(Latency::of(&Histogram::new(3).unwrap()).cdf.is_empty());
    }
}
