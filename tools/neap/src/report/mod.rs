//! What a run tells in the end: one record, shown as a table, as JSON or as a page.

pub mod html;
pub mod plot;
mod table;

use clap::ValueEnum;
use neap_host::ledger::{Quantiles, Span};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use html::page;
pub use table::table;

use crate::enclaves::EnclaveAsked;
use crate::measured::{Distribution, EnclaveMeasured, Measured};

/// A run: what was asked, on what it ran, how it ended and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked.
    pub parameters: Parameters,
    /// On what it ran, for people: "QEMU 7.2.22, TCG".
    pub ran_on: String,
    /// How it ended.
    pub end: End,
    /// What was measured until then.
    pub measured: Measured,
}

/// What a run's host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum HostKind {
    /// The worker host: each CPU a thread of a process.
    #[default]
    Worker,
    /// A Linux guest with the driver in its kernel.
    Linux,
}

impl HostKind {
    /// Its name on every output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Linux => "linux",
        }
    }
}

/// What the store's requests are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LoadKind {
    /// GETs, of which some block or yield between two.
    #[default]
    Gets,
    /// The paper's dispersive load (section 7.2): 99.5 % short GETs, 0.5 % long RANGE queries.
    Dispersive,
}

impl LoadKind {
    /// Its name on every output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gets => "gets",
            Self::Dispersive => "dispersive",
        }
    }
}

/// What a run was asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// What the host is.
    #[serde(default)]
    pub host: HostKind,
    /// The policies, by name.
    pub policy: String,
    /// Host CPUs in all enclaves.
    pub cpus: u16,
    /// The enclaves.
    pub enclaves: Vec<EnclaveAsked>,
    /// How long an agent may owe a decision, in ms.
    pub watchdog_ms: u64,
    /// Cores of the IPU.
    pub cores: u16,
    /// Where all that is random comes from.
    pub seed: u64,
    /// How long the load lasts; of a command, how long it may take, 0 for as long as it takes.
    pub seconds: f64,
    /// Mean arrivals per second.
    pub rate: f64,
    /// Keys in the store.
    pub keys: u64,
    /// Share of requests that block between two GETs, in percent.
    pub blocking_percent: f64,
    /// Share of requests that yield between two GETs, in percent.
    pub yielding_percent: f64,
    /// What the requests are.
    #[serde(default)]
    pub load: LoadKind,
    /// Whether the agent is a process on the host.
    pub on_host: bool,
    /// How old the load is when the agent is ended, in seconds, if it is to be.
    #[serde(default)]
    pub kill_agent_after_s: Option<f64>,
    /// The command that is the load, with its arguments; empty where the load is the store's.
    #[serde(default)]
    pub command: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// After its time, with every task finished or accounted for.
    Complete,
    /// By a signal to `neap`, of that number.
    Interrupted(i32),
    /// By the death of one of its parts, in words.
    Broken(String),
}

impl Parameters {
    /// One more than the highest CPU's number.
    pub fn host_cpus(&self) -> u16 {
        self.enclaves.iter().map(|enclave| enclave.last_cpu + 1).max().unwrap_or(0)
    }

    /// Vectors of each peer: one a CPU, and one a core.
    pub fn vectors(&self) -> u16 {
        self.host_cpus().max(self.cores)
    }

    /// Whether the host checks the order of decisions: a kernel has none to hold them against.
    pub fn checks_order(&self) -> bool {
        self.host == HostKind::Worker
    }

    /// Where the agent ran, as JSON says it.
    pub fn place(&self) -> &'static str {
        if self.on_host { "on-host" } else { "qemu" }
    }
}

impl Record {
    /// Whether times are an emulator's, and so tell nothing of the hardware.
    pub fn emulated(&self) -> bool {
        !self.parameters.on_host
    }

    /// Decisions per second of load.
    pub fn decisions_per_s(&self) -> f64 {
        per_second(self.measured.decisions, self.measured.elapsed_s)
    }

    /// Share of CPU looks that found their next decision prestaged, 0 to 1.
    pub fn prestage_share(&self) -> f64 {
        let looks = self.measured.prestage_hits + self.measured.prestage_misses;
        if looks == 0 { 0.0 } else { self.measured.prestage_hits as f64 / looks as f64 }
    }

    /// All that did not go as it must, in words; empty after a good run.
    pub fn complaints(&self) -> Vec<String> {
        let end = match &self.end {
            End::Complete => None,
            End::Interrupted(_) => Some(format!(
                "interrupted after {:.1} s; the report is of that time",
                self.measured.elapsed_s
            )),
            End::Broken(words) => Some(words.clone()),
        };
        let command = self.parameters.command.first().zip(self.measured.command_status);
        let command = command.filter(|(_, status)| *status != 0);
        let command = command.map(|(name, status)| format!("{name} ended with status {status}"));
        end.into_iter().chain(command).chain(self.measured.broken_promises()).collect()
    }

    /// The status to exit with: 0 only when all went as it must.
    pub fn exit_code(&self) -> u8 {
        match self.end {
            End::Interrupted(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX)),
            End::Broken(_) => 1,
            End::Complete if !self.measured.broken_promises().is_empty() => 1,
            End::Complete => self.measured.command_status.unwrap_or(0),
        }
    }

    /// What the ledger's times are, in words: they stand beside them wherever they are shown.
    pub fn ledger_label(&self) -> &'static str {
        if self.parameters.host == HostKind::Linux {
            "not known here: the kernel passes it over"
        } else if self.measured.ledger.counter_hz == 0 {
            "not kept"
        } else if self.emulated() {
            "the emulator's counter: no silicon time"
        } else {
            "the host's clock: no silicon time of the IPU's"
        }
    }

    /// The ledger's figures, in ns.
    fn ledger(&self) -> Value {
        let ledger = &self.measured.ledger;
        let mut object = Map::new();
        object.insert("counter_hz".to_owned(), ledger.counter_hz.into());
        object.insert("label".to_owned(), self.ledger_label().into());
        for span in Span::ALL {
            let Quantiles { count, p50_ns, p99_ns, max_ns } = ledger.step(span);
            let figures = json!({ "count": count, "p50": p50_ns, "p99": p99_ns, "max": max_ns });
            object.insert(span.name().to_owned(), figures);
        }
        Value::Object(object)
    }

    /// One JSON object; its keys are the same wherever and however the run ended.
    pub fn json(&self) -> Value {
        let Self { parameters: asked, measured: m, .. } = self;
        let (end, remark) = match &self.end {
            End::Complete => ("complete", None),
            End::Interrupted(_) => ("interrupted", None),
            End::Broken(words) => ("broken", Some(words)),
        };
        let remarks: Vec<&String> = remark.into_iter().chain(&m.remarks).collect();
        let mut object = json!({
            "policy": asked.policy,
            "cpus": asked.cpus,
            "seed": asked.seed,
            "seconds": asked.seconds,
            "where": asked.place(),
            "ran_on": self.ran_on,
            "emulated": self.emulated(),
            "ipu_cores": asked.cores,
            "rate": asked.rate,
            "keys": asked.keys,
            "blocking_percent": asked.blocking_percent,
            "yielding_percent": asked.yielding_percent,
            "end": end,
            "elapsed_s": m.elapsed_s,
            "decisions": m.decisions,
            "decisions_per_s": self.decisions_per_s(),
            "outcomes": m.outcomes,
            "prestage_hits": m.prestage_hits,
            "prestage_misses": m.prestage_misses,
            "round_trip_us": quantiles(&m.round_trip),
            "request_us": quantiles(&m.request),
            "requests_offered": m.requests_offered,
            "requests_refused": m.requests_refused,
            "values_wrong": m.values_wrong,
            "tasks_created": m.tasks_created,
            "tasks_finished": m.tasks_finished,
            "tasks_unfinished": m.tasks_unfinished(),
            "tasks_lost": m.tasks_lost,
            "tasks_doubled": m.tasks_doubled,
            "fifo_violations": m.fifo_violations,
            "resyncs": m.resyncs,
            "messages": m.messages,
            "messages_dropped": m.messages_dropped,
            "messages_unknown": m.messages_unknown,
            "doorbells": m.doorbells,
            "agent_wakeups": m.agent_wakeups,
            "queue_depth_max": m.queue_depth_max(),
            "agent_ended": m.agent_ended,
            "epitaphs": m.epitaphs,
            "remarks": remarks,
        });
        // More than the macro takes at once.
        object["host"] = asked.host.name().into();
        object["load"] = asked.load.name().into();
        object["preemptions"] = m.preemptions.into();
        object["request_short_us"] = quantiles(&m.request_short);
        object["ledger_ns"] = self.ledger();
        object["watchdog_ms"] = asked.watchdog_ms.into();
        object["kill_agent_after_s"] = asked.kill_agent_after_s.into();
        object["command"] = asked.command.clone().into();
        object["command_status"] = m.command_status.into();
        object["fallbacks"] = m.fallbacks.into();
        object["crashes"] = m.crashes.into();
        object["enclaves"] = m.enclaves.iter().map(enclave).collect();
        object
    }
}

/// One enclave's part.
pub fn enclave(m: &EnclaveMeasured) -> Value {
    let mut object = json!({
        "enclave": m.enclave,
        "cpus": m.cpus,
        "policy": m.policy,
        "agent": m.agent,
        "requests_offered": m.requests_offered,
        "requests_refused": m.requests_refused,
        "decisions": m.decisions,
        "decisions_on_host": m.decisions_on_host,
        "decisions_by_host": m.decisions_by_host,
        "outcomes": m.outcomes,
        "tasks_created": m.tasks_created,
        "tasks_finished": m.tasks_finished,
        "tasks_lost": m.tasks_lost,
        "tasks_doubled": m.tasks_doubled,
        "fifo_violations": m.fifo_violations,
        "resyncs": m.resyncs,
        "complete": m.complete,
        "level": m.level,
        "incarnations": m.incarnations,
        "crashes": m.crashes,
        "faults": m.faults,
        "fallbacks": m.fallbacks,
        "comebacks": m.comebacks,
        "round_trip_us": quantiles(&m.round_trip),
        "request_us": quantiles(&m.request),
        "epitaphs": m.epitaphs,
    });
    // As above.
    object["prestage_hits"] = m.prestage_hits.into();
    object["prestage_misses"] = m.prestage_misses.into();
    object["messages"] = m.messages.into();
    object["messages_dropped"] = m.messages_dropped.into();
    object["doorbells"] = m.doorbells.into();
    object
}

/// `count` per second, 0 for no time.
pub fn per_second(count: u64, elapsed_s: f64) -> f64 {
    if elapsed_s > 0.0 { count as f64 / elapsed_s } else { 0.0 }
}

/// A distribution's figures without its curve.
fn quantiles(distribution: &Distribution) -> Value {
    let d = distribution;
    let figures =
        [("mean", d.mean), ("p50", d.p50), ("p90", d.p90), ("p99", d.p99), ("p999", d.p999), ("max", d.max)];
    let mut object = Map::new();
    object.insert("count".to_owned(), d.count.into());
    object.extend(figures.map(|(name, value)| (name.to_owned(), value.into())));
    Value::Object(object)
}

/// A duration in µs, with the unit that suits it.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us if us >= 100.0 => format!("{us:.0} µs"),
        us => format!("{us:.1} µs"),
    }
}

/// A count with thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share in percent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::measured::LedgerMeasured;

    /// A run such as QEMU gives.
    pub fn example() -> Record {
        let curve = |scale: f64| -> Vec<(f64, f64)> {
            (0..=200).map(|i| (scale * (1.0 + f64::from(i) / 40.0).exp(), f64::from(i) / 200.0)).collect()
        };
        let distribution = |scale: f64| Distribution {
            count: 31_207,
            mean: scale * 4.0,
            p50: scale * 3.0,
            p90: scale * 8.0,
            p99: scale * 20.0,
            p999: scale * 90.0,
            max: scale * 400.0,
            curve: curve(scale),
        };
        Record {
            parameters: Parameters {
                policy: "fifo".into(),
                cpus: 4,
                enclaves: vec![EnclaveAsked::only(4, "fifo")],
                watchdog_ms: 20,
                cores: 2,
                seed: 77,
                seconds: 10.0,
                rate: 3000.0,
                keys: 100_000,
                blocking_percent: 5.0,
                yielding_percent: 5.0,
                load: LoadKind::Gets,
                on_host: false,
                kill_agent_after_s: None,
                command: Vec::new(),
                host: HostKind::Worker,
            },
            ran_on: "QEMU 7.2.22, TCG".into(),
            end: End::Complete,
            measured: Measured {
                elapsed_s: 10.01,
                requests_offered: 30_011,
                decisions: 33_020,
                outcomes: [("committed".into(), 33_012), ("task_stale".into(), 8)].into(),
                prestage_hits: 21_000,
                prestage_misses: 12_012,
                round_trip: distribution(30.0),
                request: distribution(60.0),
                ledger: LedgerMeasured {
                    counter_hz: 62_500_000,
                    steps: [Span::SeenToDecided, Span::DecidedToPublished]
                        .map(|span| {
                            let step = Quantiles { count: 9, p50_ns: 800, p99_ns: 1600, max_ns: 3200 };
                            (span.name().to_owned(), step)
                        })
                        .into(),
                },
                tasks_created: 30_011,
                tasks_finished: 30_011,
                messages: 99_000,
                doorbells: 12_400,
                queue_depth: (0..500).map(|i| (i * 20, (i * 7919) % 23)).collect(),
                enclaves: vec![EnclaveMeasured {
                    cpus: (0..4).collect(),
                    policy: "fifo".into(),
                    agent: "fifo".into(),
                    decisions: 33_020,
                    tasks_created: 30_011,
                    tasks_finished: 30_011,
                    complete: true,
                    level: "ipu".into(),
                    incarnations: 1,
                    ..EnclaveMeasured::default()
                }],
                ..Measured::default()
            },
        }
    }

    #[test]
    fn json_has_the_same_keys_wherever_and_however_a_run_ends() {
        let keys =
            |record: &Record| -> Vec<String> { record.json().as_object().unwrap().keys().cloned().collect() };
        let good = example();
        let mut bare = example();
        bare.parameters.on_host = true;
        bare.end = End::Broken("QEMU was killed".into());
        bare.measured = Measured::default();
        assert_eq!(keys(&good), keys(&bare));
        let json = good.json();
        assert_eq!(json["where"], "qemu");
        assert_eq!(json["emulated"], true);
        assert_eq!(json["outcomes"]["committed"], 33_012);
        assert_eq!(json["round_trip_us"]["p999"], 2700.0);
        assert_eq!(
            json["ledger_ns"]["seen_to_decided"],
            json!({"count": 9, "p50": 800, "p99": 1600, "max": 3200})
        );
        assert!(json["ledger_ns"]["label"].as_str().unwrap().contains("no silicon time"));
        assert_eq!(bare.json()["ledger_ns"]["label"], "not kept");
        assert!(json["decisions_per_s"].as_f64().unwrap() > 3000.0);
        assert_eq!(bare.json()["where"], "on-host");
        assert_eq!(bare.json()["remarks"][0], "QEMU was killed");
    }

    #[test]
    fn a_crash_that_was_made_good_is_a_remark_and_no_failure() {
        let mut record = example();
        record.measured.crashes = 3;
        record.measured.fallbacks = 1;
        record.measured.agent_ended = Some("the agent ended".into());
        record
            .measured
            .epitaphs
            .push("agent wild (incarnation 2, core 1) ended by synchronous_exception".into());
        record.measured.enclaves[0].crashes = 3;
        assert_eq!((record.exit_code(), record.complaints().len()), (0, 0));
        assert_eq!(record.json()["crashes"], 3);
        assert_eq!(record.json()["enclaves"][0]["crashes"], 3);
        assert_eq!(record.json()["enclaves"][0]["complete"], true);
    }

    #[test]
    fn every_broken_promise_fails_the_run() {
        type Break = fn(&mut Measured);
        let breaks: [(Break, &str); 5] = [
            (|m| m.troubles.push("the kernel said BUG".into()), "BUG"),
            (|m| m.tasks_lost = 1, "lost"),
            (|m| m.tasks_doubled = 1, "twice"),
            (|m| m.fifo_violations = 1, "FIFO"),
            (|m| m.values_wrong = 1, "wrong value"),
        ];
        assert_eq!((example().exit_code(), example().complaints().len()), (0, 0));
        for (break_it, word) in breaks {
            let mut record = example();
            break_it(&mut record.measured);
            assert_eq!(record.exit_code(), 1, "{word}");
            assert!(record.complaints()[0].contains(word), "{:?}", record.complaints());
        }
    }

    #[test]
    fn ends_have_their_status() {
        let with = |end| Record { end, ..example() }.exit_code();
        assert_eq!(with(End::Interrupted(2)), 130);
        assert_eq!(with(End::Interrupted(15)), 143);
        assert_eq!(with(End::Broken(String::new())), 1);
    }

    #[test]
    fn a_command_s_status_is_the_run_s_if_nothing_worse_happened() {
        let mut record = example();
        record.parameters.command = vec!["stress-ng".into()];
        record.measured.command_status = Some(0);
        assert_eq!((record.exit_code(), record.complaints().len()), (0, 0));
        record.measured.command_status = Some(3);
        assert_eq!(
            (record.exit_code(), record.complaints()),
            (3, vec!["stress-ng ended with status 3".into()])
        );
        assert_eq!(record.json()["command_status"], 3);
        record.measured.tasks_lost = 1;
        assert_eq!(record.exit_code(), 1);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [time(0.25), time(99.96), time(420.4), time(1500.0), time(2.5e6)],
            ["0.2 µs", "100.0 µs", "420 µs", "1.50 ms", "2.50 s"]
        );
        assert_eq!(per_second(5, 0.0), 0.0);
    }
}
