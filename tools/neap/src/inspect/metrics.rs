//! `neap metrics`: what there is to see, as OpenMetrics: once, or over HTTP for Prometheus.
//!
//! Each scrape is one look, as `neap status` takes it, and disturbs nobody. A figure that nobody has told is left out.

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use neap_abi::supervisor::Books;
use neap_abi::{AgentControl, AgentState};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use signal_hook::consts::{SIGINT, SIGTERM};
use tiny_http::{Header, Method, Request, Response, Server};
use xtask::progress::say;

use super::scene::{Place, Scene};
use super::status;
use crate::measured::EnclaveMeasured;

/// Where metrics are served where no other place is named. Whoever is to reach them from elsewhere has to be told.
pub const LOOPBACK: &str = "127.0.0.1:9464";
/// What a scraper is told the text is.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Where it is.
const PATH: &str = "/metrics";
/// How often it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(100);

/// Prints metrics once, or serves them until Ctrl-C.
pub fn metrics(listen: Option<SocketAddr>, device: Option<&Path>) -> Result<()> {
    let Some(address) = listen else {
        return crate::print(text(&Scene::look(device)?)?.trim_end());
    };
    let over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&over)).context("catching signals")?;
    }
    serve(address, device, &over)
}

fn serve(address: SocketAddr, device: Option<&Path>, over: &AtomicBool) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("{address} can't be listened on: somebody else may; name another with --listen ADDRESS:PORT")
    })?;
    let server =
        Server::from_listener(listener, None).map_err(|error| anyhow!("serving metrics: {error}"))?;
    // The port may have been left to the system.
    let address = server.server_addr();
    say(&format!("neap: metrics on http://{address}{PATH}, until Ctrl-C"));
    while !over.load(Ordering::Relaxed) {
        if let Some(request) = server.recv_timeout(LOOK).context("waiting for scrapers")? {
            // One that has gone away needs no answer.
            drop(answer(request, device));
        }
    }
    Ok(())
}

fn answer(request: Request, device: Option<&Path>) -> std::io::Result<()> {
    let plain = |text: String, status: u16| Response::from_string(text).with_status_code(status);
    let response = match (request.method(), request.url()) {
        (Method::Get, PATH) => match Scene::look(device).and_then(|scene| text(&scene)) {
            Ok(text) => match Header::from_bytes("Content-Type", CONTENT_TYPE) {
                Ok(header) => Response::from_string(text).with_header(header),
                Err(()) => plain("a header that is none\n".to_owned(), 500),
            },
            Err(error) => plain(format!("{error:#}\n"), 503),
        },
        (Method::Get, _) => plain(format!("metrics are at {PATH}\n"), 404),
        _ => plain("only GET\n".to_owned(), 405),
    };
    request.respond(response)
}

/// Whose a figure is: names and values.
type Labels = Vec<(&'static str, String)>;

/// What is told, name by name.
#[derive(Debug, Default)]
struct Sheet {
    registry: Registry,
}

impl Sheet {
    fn family<M: Clone + Default + Metric>(
        &mut self,
        name: &str,
        help: &str,
        tell: impl FnOnce(&Family<Labels, M>),
    ) where
        Family<Labels, M>: Metric,
    {
        let family = Family::<Labels, M>::default();
        tell(&family);
        self.registry.register(name, help, family);
    }

    /// A count that never falls. Its name gets `_total` where it is written.
    fn counter(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        self.family::<Counter>(name, help, |family| {
            for (labels, value) in values {
                family.get_or_create(&labels).inc_by(value);
            }
        });
    }

    fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, i64)>) {
        self.family::<Gauge>(name, help, |family| {
            for (labels, value) in values {
                family.get_or_create(&labels).set(value);
            }
        });
    }
}

/// A name, what it means, and where it stands.
type Of<T, V = u64> = (&'static str, &'static str, fn(&T) -> V);

/// What the host counts.
const HOST: [Of<EnclaveMeasured>; 12] = [
    ("neap_decisions", "Decisions committed, whoever made them", |m| m.decisions),
    ("neap_decisions_on_host", "Of those: of the same policy on the host, in the agent's place", |m| {
        m.decisions_on_host
    }),
    ("neap_decisions_by_host", "Of those: of the host itself, in the place of both", |m| m.decisions_by_host),
    ("neap_messages", "Messages sent to whoever decided", |m| m.messages),
    ("neap_messages_dropped", "Messages that did not fit the ring; a resync makes them good", |m| {
        m.messages_dropped
    }),
    ("neap_prestage_hits", "Decisions that lay in their slot when a CPU came to need one", |m| {
        m.prestage_hits
    }),
    ("neap_prestage_misses", "Times that a CPU came to need a decision and found none", |m| {
        m.prestage_misses
    }),
    ("neap_resyncs", "Times that whoever decides pulled the whole state", |m| m.resyncs),
    ("neap_tasks_created", "Tasks created", |m| m.tasks_created),
    ("neap_tasks_finished", "Tasks that ran to their end", |m| m.tasks_finished),
    ("neap_fallbacks", "Times that others took over from the IPU's agent", |m| m.fallbacks.len() as u64),
    ("neap_comebacks", "Times that the IPU took over again", |m| m.comebacks),
];

/// What the agent that runs says of itself: it begins at 0 with each.
const AGENT: [Of<AgentControl>; 5] = [
    ("neap_agent_txns", "Txns that this agent published", |agent| agent.decisions),
    ("neap_agent_doorbells", "Doorbells that this agent rang", |agent| agent.doorbells),
    ("neap_agent_messages", "Messages that this agent took, modulo 2^32", |agent| agent.credits.into()),
    ("neap_agent_resyncs", "Resyncs that this agent asked for", |agent| agent.resyncs.into()),
    ("neap_agent_messages_unknown", "Messages whose kind this agent did not know", |agent| {
        agent.unknown.into()
    }),
];

/// The supervisor's books that only grow.
const BOOKS: [Of<Books>; 11] = [
    ("neap_supervisor_started", "Agents started", |books| books.started.into()),
    ("neap_supervisor_faults", "Agents that ended by a fault or the host's verdict", |books| {
        books.faults.into()
    }),
    ("neap_supervisor_restarts", "Agents started again after an end", |books| books.restarts.into()),
    ("neap_supervisor_given_up", "Sessions in which no more restart was tried", |books| {
        books.given_up.into()
    }),
    ("neap_supervisor_revocations", "Cores asked for", |books| books.revocations.into()),
    ("neap_supervisor_aborts", "Cores taken back by an interrupt", |books| books.aborts.into()),
    ("neap_supervisor_replacements", "Newcomers that took over and stayed", |books| {
        books.replacements.into()
    }),
    ("neap_supervisor_rollbacks", "Newcomers that failed their trial", |books| books.rollbacks.into()),
    ("neap_supervisor_images_refused", "Images refused", |books| books.images_refused.into()),
    ("neap_supervisor_commands_refused", "Commands refused", |books| books.commands_refused.into()),
    ("neap_supervisor_epitaphs", "Epitaphs written", |books| books.epitaphs.into()),
];

/// And those that rise and fall.
const STANDING: [Of<Books, u32>; 7] = [
    ("neap_supervisor_pages", "Pages that agents can have", |books| books.pages),
    ("neap_supervisor_pages_free", "Pages that no agent has", |books| books.pages_free),
    ("neap_supervisor_pages_held", "Pages that this enclave's agents have", |books| books.pages_held),
    ("neap_supervisor_cores", "Cores that agents can have", |books| books.cores.into()),
    ("neap_supervisor_cores_free", "Cores on which no agent runs", |books| books.cores_free.into()),
    ("neap_supervisor_cores_lost", "Cores that came to no good", |books| books.cores_lost.into()),
    ("neap_supervisor_restart_in_ms", "Time until the next restart, 0 if none is due", |books| {
        books.restart_in_ms
    }),
];

/// Who may decide.
const LEVELS: [&str; 4] = ["ipu", "on_host", "host", "kernel"];

/// A look as OpenMetrics.
fn text(scene: &Scene) -> Result<String> {
    let mut sheet = Sheet::default();
    let places = &scene.places;
    let running = i64::from(scene.running);
    sheet.gauge(
        "neap_up",
        "Whether something runs; else all this is of the last run",
        [(Vec::new(), running)],
    );
    sheet.gauge("neap_enclaves", "Enclaves", [(Vec::new(), places.len() as i64)]);
    let info = places.iter().map(|place| {
        let name = place.seen.agents.running.as_ref().map_or("", |identity| identity.name()).to_owned();
        let more = [("policy", place.policy.clone()), ("agent", name), ("cpus", place.cpus.clone())];
        (labels(place, more), 1)
    });
    sheet.gauge("neap_enclave_info", "What an enclave has", info);

    let agents = || places.iter().filter_map(|place| Some((place, place.seen.agent.as_ref()?)));
    let state = agents().flat_map(|(place, agent)| {
        let is = |state: AgentState| {
            let named = status::state(&AgentControl { state, ..AgentControl::NOTHING });
            (labels(place, [("state", named)]), i64::from(agent.state == state))
        };
        AgentState::ALL.map(is)
    });
    sheet.gauge("neap_agent_state", "1 for the state in which the agent is", state);
    let incarnation = agents().map(|(place, agent)| (labels(place, []), i64::from(agent.incarnation)));
    sheet.gauge(
        "neap_agent_incarnation",
        "Which agent of its enclave it is, counted since boot",
        incarnation,
    );
    let asleep = agents().map(|(place, agent)| (labels(place, []), i64::from(agent.asleep)));
    sheet.gauge("neap_agent_asleep", "Whether it sleeps until it is rung", asleep);
    for (name, help, of) in AGENT {
        sheet.counter(name, help, agents().map(|(place, agent)| (labels(place, []), of(agent))));
    }

    let hosts = || places.iter().filter_map(|place| Some((place, place.host.as_ref()?)));
    for (name, help, of) in HOST {
        sheet.counter(name, help, hosts().map(|(place, figures)| (labels(place, []), of(figures))));
    }
    let outcomes = hosts().flat_map(|(place, figures)| named(place, "outcome", &figures.outcomes));
    sheet.counter("neap_txns", "Txns that the host took, by its verdict", outcomes);
    let faults = hosts().flat_map(|(place, figures)| named(place, "fault", &figures.faults));
    sheet.counter("neap_watchdog_faults", "What the host's watch found wrong", faults);
    let waiting = hosts().map(|(place, figures)| (labels(place, []), figures.queue_depth as i64));
    sheet.gauge("neap_tasks_waiting", "Tasks that may run and wait", waiting);
    sheet.family::<Gauge<f64, AtomicU64>>(
        "neap_latency_seconds",
        "From message to commit where nothing was prestaged, and from a request's arrival to its end",
        |family| {
            for (place, figures) in hosts() {
                for (latency, of) in [("decision", &figures.round_trip), ("request", &figures.request)] {
                    for (quantile, us) in [("0.5", of.p50), ("0.99", of.p99)] {
                        let more = [("latency", latency.to_owned()), ("quantile", quantile.to_owned())];
                        family.get_or_create(&labels(place, more)).set(us / 1e6);
                    }
                }
            }
        },
    );
    let level = places.iter().filter_map(|place| Some((place, place.level()?))).flat_map(|(place, level)| {
        LEVELS.map(|name| (labels(place, [("level", name.to_owned())]), i64::from(level == name)))
    });
    sheet.gauge("neap_decides", "1 for who decides", level);

    let books = || places.iter().filter_map(|place| Some((place, place.seen.agents.books.as_ref()?)));
    for (name, help, of) in BOOKS {
        sheet.counter(name, help, books().map(|(place, books)| (labels(place, []), of(books))));
    }
    for (name, help, of) in STANDING {
        sheet.gauge(name, help, books().map(|(place, books)| (labels(place, []), i64::from(of(books)))));
    }
    let mut causes = std::collections::BTreeMap::new();
    for (place, record) in
        places.iter().flat_map(|place| place.seen.epitaphs.iter().map(move |of| (place, of)))
    {
        *causes.entry((place.number, record.epitaph.cause.name())).or_insert(0) += 1;
    }
    let causes = causes.into_iter().map(|((enclave, cause), count)| {
        (vec![("enclave", enclave.to_string()), ("cause", cause.to_owned())], count)
    });
    sheet.gauge("neap_epitaphs", "Epitaphs that can be read, by what ended whom they are of", causes);

    let mut text = String::new();
    encode(&mut text, &sheet.registry).context("encoding metrics")?;
    Ok(text)
}

fn labels(place: &Place, more: impl IntoIterator<Item = (&'static str, String)>) -> Labels {
    [("enclave", place.number.to_string())].into_iter().chain(more).collect()
}

/// Counts that have names.
fn named<'a, K>(
    place: &'a Place,
    label: &'static str,
    counts: impl IntoIterator<Item = (&'a K, &'a u64)> + 'a,
) -> impl Iterator<Item = (Labels, u64)> + 'a
where
    K: Display + 'a,
{
    counts.into_iter().map(move |(name, count)| (labels(place, [(label, name.to_string())]), *count))
}

#[cfg(test)]
mod tests {
    use openmetrics_parser::openmetrics::parse_openmetrics;
    use openmetrics_parser::{MetricNumber, OpenMetricsValue};

    use super::super::scene::tests::example;
    use super::*;

    /// The value of a sample, by a parser that follows the standard.
    fn value(text: &str, family: &str, of: &[(&str, &str)]) -> Option<f64> {
        let exposition = parse_openmetrics(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let family = exposition.families.get(family)?;
        let number = |value: &MetricNumber| value.as_f64();
        family.iter_samples().find_map(|sample| {
            let labels = sample.get_labelset().unwrap();
            let fits = of.iter().all(|(name, value)| labels.get_label_value(name) == Some(*value));
            fits.then(|| match &sample.value {
                OpenMetricsValue::Counter(counter) => number(&counter.value),
                OpenMetricsValue::Gauge(gauge) => number(gauge),
                other => panic!("{other:?}"),
            })
        })
    }

    #[test]
    fn a_parser_finds_what_there_is_to_see() {
        let text = text(&example()).unwrap();
        for (family, labels, wanted) in [
            ("neap_up", &[][..], 1.0),
            ("neap_enclaves", &[], 2.0),
            ("neap_enclave_info", &[("enclave", "1"), ("policy", "shinjuku"), ("agent", "shinjuku")], 1.0),
            ("neap_agent_state", &[("enclave", "0"), ("state", "running")], 1.0),
            ("neap_agent_state", &[("enclave", "0"), ("state", "dead")], 0.0),
            ("neap_agent_state", &[("enclave", "1"), ("state", "dead")], 1.0),
            ("neap_agent_incarnation", &[("enclave", "1")], 2.0),
            ("neap_agent_doorbells", &[("enclave", "0")], 12_400.0),
            ("neap_decisions", &[("enclave", "0")], 33_020.0),
            ("neap_decisions_on_host", &[("enclave", "1")], 40.0),
            ("neap_txns", &[("enclave", "0"), ("outcome", "task_stale")], 8.0),
            ("neap_prestage_hits", &[("enclave", "1")], 3.0),
            ("neap_watchdog_faults", &[("enclave", "1"), ("fault", "agent_late")], 1.0),
            ("neap_decides", &[("enclave", "1"), ("level", "on_host")], 1.0),
            ("neap_decides", &[("enclave", "1"), ("level", "ipu")], 0.0),
            ("neap_supervisor_restarts", &[("enclave", "1")], 1.0),
            ("neap_supervisor_cores", &[("enclave", "0")], 3.0),
            ("neap_epitaphs", &[("enclave", "1"), ("cause", "late")], 1.0),
        ] {
            assert_eq!(value(&text, family, labels), Some(wanted), "{family} {labels:?} in {text}");
        }
        assert_eq!(value(&text, "neap_watchdog_faults", &[("enclave", "0")]), None);
        // The latency of messages to commits, in the unit that the standard wants.
        let p99 = [("enclave", "0"), ("latency", "decision"), ("quantile", "0.99")];
        let p99 = value(&text, "neap_latency_seconds", &p99).unwrap();
        assert!((p99 - 300e-6).abs() < 1e-9, "{p99}");
    }

    #[test]
    fn a_figure_that_nobody_has_told_is_left_out() {
        let mut scene = example();
        for place in &mut scene.places {
            (place.host, place.seen.agent, place.seen.agents.books) = (None, None, None);
        }
        let text = text(&scene).unwrap();
        assert_eq!(value(&text, "neap_enclaves", &[]), Some(2.0));
        for family in ["neap_decisions", "neap_agent_state", "neap_supervisor_cores", "neap_txns"] {
            assert_eq!(value(&text, family, &[]), None, "{family}");
        }
    }

    #[test]
    fn no_name_is_there_twice() {
        let host = HOST.map(|(name, ..)| name);
        let books = BOOKS.map(|(name, ..)| name);
        let mut names: Vec<&str> =
            host.into_iter().chain(AGENT.map(|(name, ..)| name)).chain(books).collect();
        names.extend(STANDING.map(|(name, ..)| name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
