//! What a worker host measured, as it tells its parent and as every report shows it.

use std::collections::BTreeMap;

use neap_host::ledger::{Quantiles, Span};
use serde::{Deserialize, Serialize};

/// A run's figures, so far or in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How long the load was on, in seconds.
    pub elapsed_s: f64,
    /// Arrivals that the load produced.
    pub requests_offered: u64,
    /// Those for which the task table had no room.
    pub requests_refused: u64,
    /// GETs whose value was not what the key must hold.
    pub values_wrong: u64,
    /// Txns that the host took.
    pub decisions: u64,
    /// How many of each outcome, by its name.
    pub outcomes: BTreeMap<String, u64>,
    /// Times a CPU found its next decision in its slot when it looked.
    pub prestage_hits: u64,
    /// Times it had to wait for one.
    pub prestage_misses: u64,
    /// From the message to its decision.
    pub round_trip: Distribution,
    /// From a request's arrival to its end.
    pub request: Distribution,
    /// As above, of the requests that are not long.
    #[serde(default)]
    pub request_short: Distribution,
    /// Times that the agent had a task give up its CPU.
    #[serde(default)]
    pub preemptions: u64,
    /// What the ledgers of the IPU's agents came to.
    #[serde(default)]
    pub ledger: LedgerMeasured,
    /// Tasks that were made.
    pub tasks_created: u64,
    /// Tasks that ran to their end.
    pub tasks_finished: u64,
    /// Tasks that the agent never came back to.
    pub tasks_lost: u64,
    /// Tasks that ran more often than they were runnable.
    pub tasks_doubled: u64,
    /// Decisions out of the order of arrival.
    pub fifo_violations: u64,
    /// Times that the agent pulled the whole state again.
    pub resyncs: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages that did not fit the ring; a resync makes them good.
    pub messages_dropped: u64,
    /// Messages that the agent did not know.
    pub messages_unknown: u64,
    /// Doorbells that the agent rang.
    pub doorbells: u64,
    /// Times that the host woke the agent from its sleep.
    pub agent_wakeups: u64,
    /// Runnable tasks that wait: (ms since the start, tasks).
    pub queue_depth: Vec<(u64, u64)>,
    /// Why the IPU's agent does not decide in the end, if it does not.
    pub agent_ended: Option<String>,
    /// Times that others decided in an agent's place.
    pub fallbacks: u64,
    /// Agents that ended by a fault or the host's verdict.
    pub crashes: u64,
    /// What agents and cores that ended left behind.
    pub epitaphs: Vec<String>,
    /// What else the host remarked.
    pub remarks: Vec<String>,
    /// The status of the command that was the load; none where there was none, or it did not end.
    #[serde(default)]
    pub command_status: Option<u8>,
    /// What else went wrong that must not, in words.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The figures of each enclave.
    pub enclaves: Vec<EnclaveMeasured>,
}

/// What one enclave's part of a run comes to. Names are as those of [`Measured`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnclaveMeasured {
    /// Its number.
    pub enclave: u16,
    /// Its host CPUs.
    pub cpus: Vec<u16>,
    /// Its policy.
    pub policy: String,
    /// Its agent's name, as the IPU has it.
    pub agent: String,
    /// Arrivals that its load produced.
    pub requests_offered: u64,
    /// Those that it had no room for.
    pub requests_refused: u64,
    /// Txns that the host took.
    pub decisions: u64,
    /// Those of the same policy on the host, in the agent's place.
    pub decisions_on_host: u64,
    /// Those of the host itself, in the place of both.
    pub decisions_by_host: u64,
    /// How many of each outcome, by its name.
    pub outcomes: BTreeMap<String, u64>,
    /// Times a CPU found its next decision in its slot when it looked.
    #[serde(default)]
    pub prestage_hits: u64,
    /// Times it had to wait for one.
    #[serde(default)]
    pub prestage_misses: u64,
    /// Messages sent.
    #[serde(default)]
    pub messages: u64,
    /// Messages that did not fit the ring.
    #[serde(default)]
    pub messages_dropped: u64,
    /// Doorbells that the IPU's agents rang.
    #[serde(default)]
    pub doorbells: u64,
    /// Tasks that wait; 0 when all is over.
    #[serde(default)]
    pub queue_depth: u64,
    /// Tasks that were made.
    pub tasks_created: u64,
    /// Tasks that ran to their end.
    pub tasks_finished: u64,
    /// Tasks that nobody came back to.
    pub tasks_lost: u64,
    /// Tasks that ran more often than they were runnable.
    pub tasks_doubled: u64,
    /// Decisions out of the order of arrival.
    pub fifo_violations: u64,
    /// Times that whoever decided pulled the whole state again.
    pub resyncs: u64,
    /// Whether every task ran to its end.
    pub complete: bool,
    /// Who decided in the end: `ipu`, `on_host`, `host`, or under Linux also `kernel`.
    pub level: String,
    /// Agents of the IPU that there were.
    pub incarnations: u64,
    /// Those that ended by a fault or the host's verdict.
    pub crashes: u64,
    /// What the host's watch found wrong, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Times that others took over, in order.
    pub fallbacks: Vec<FallbackMeasured>,
    /// Times that the IPU took over again.
    pub comebacks: u64,
    /// From a request's arrival to its end.
    pub request: Distribution,
    /// From the message to its decision.
    pub round_trip: Distribution,
    /// How long each step of a decision took.
    #[serde(default)]
    pub ledger: LedgerMeasured,
    /// What its agents and their core left behind, the newest first.
    pub epitaphs: Vec<String>,
}

/// A fallback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FallbackMeasured {
    /// Since the host began, in µs.
    pub at_us: u64,
    /// Who decided until then.
    pub from: String,
    /// Who did from then on.
    pub to: String,
    /// Why, by its name.
    pub fault: String,
    /// Why, as a clause.
    pub words: String,
}

impl EnclaveMeasured {
    /// Its CPUs as a range.
    pub fn range(&self) -> String {
        match (self.cpus.first(), self.cpus.last()) {
            (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
            (Some(only), _) => only.to_string(),
            _ => "none".to_owned(),
        }
    }

    /// What was made good without a loss, and should be known all the same.
    pub fn remarks(&self) -> Vec<String> {
        /// Fallbacks told one by one; how many more there were is told too.
        const TOLD: usize = 3;
        let step = |step: &FallbackMeasured| {
            let at_s = step.at_us as f64 / 1e6;
            let who = match step.to.as_str() {
                "on_host" => "the same policy on the host decided",
                "kernel" => "the kernel's own scheduler decided",
                _ => "the host itself decided",
            };
            format!("after {at_s:.1} s {}: {who} from then on", step.words)
        };
        let mut remarks: Vec<String> = self.fallbacks.iter().take(TOLD).map(step).collect();
        if self.fallbacks.len() > TOLD {
            remarks.push(format!("{} fallbacks more", self.fallbacks.len() - TOLD));
        }
        if self.comebacks > 0 {
            remarks.push(format!("the IPU took over again {} times", self.comebacks));
        }
        if self.crashes > 0 {
            remarks.push(format!("{} agents of {} crashed", self.crashes, self.incarnations));
        }
        remarks
    }
}

impl Measured {
    /// Tasks made and not finished.
    pub fn tasks_unfinished(&self) -> u64 {
        self.tasks_created.saturating_sub(self.tasks_finished)
    }

    /// Tasks that wait now, by the timeline's last point.
    pub fn queue_depth_now(&self) -> u64 {
        self.queue_depth.last().map_or(0, |&(_, depth)| depth)
    }

    /// Most tasks that waited at one time.
    pub fn queue_depth_max(&self) -> u64 {
        self.queue_depth.iter().map(|&(_, depth)| depth).max().unwrap_or(0)
    }

    /// What was promised and not kept, in words; empty when all was.
    pub fn broken_promises(&self) -> Vec<String> {
        let promises = [
            (self.tasks_lost, "tasks were lost"),
            (self.tasks_doubled, "tasks ran twice"),
            (self.fifo_violations, "decisions broke FIFO order"),
            (self.values_wrong, "GETs returned a wrong value"),
        ];
        let broken = promises.iter().filter(|(count, _)| *count != 0);
        broken.map(|(count, what)| format!("{count} {what}")).chain(self.troubles.iter().cloned()).collect()
    }
}

/// How long each step of a decision took, by the agent's counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerMeasured {
    /// How fast that runs, in ticks a second; 0 where no ledger was kept.
    pub counter_hz: u32,
    /// By the step's name: [`neap_host::ledger::Span::name`].
    pub steps: BTreeMap<String, Quantiles>,
}

impl LedgerMeasured {
    /// What a step took; nothing where that is not known.
    pub fn step(&self, span: Span) -> Quantiles {
        self.steps.get(span.name()).copied().unwrap_or_default()
    }
}

/// A latency distribution, in µs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Samples.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 are at most this.
    pub p90: f64,
    /// 99 of 100 are.
    pub p99: f64,
    /// 999 of 1000 are.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// The cumulative distribution: (µs, share of the samples that are at most this), both rising.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<(f64, f64)>,
}
