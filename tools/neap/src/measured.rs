//! What a worker host measured, as it tells its parent and as every report shows it.

use std::collections::BTreeMap;

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
    /// Why the agent ended before the run did, if it did.
    pub agent_ended: Option<String>,
    /// What cores that ended left behind.
    pub epitaphs: Vec<String>,
    /// What else the host remarked.
    pub remarks: Vec<String>,
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
        promises
            .iter()
            .filter(|(count, _)| *count != 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect()
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
