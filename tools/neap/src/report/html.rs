//! The page: self-contained, light and dark, no script.

use std::fmt::Write;

use super::plot::{self, Series};
use super::{HostKind, Record, count, percent, time};
use crate::enclaves::EnclaveAsked;
use crate::measured::{Distribution, EnclaveMeasured};

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub fn page(record: &Record) -> String {
    let m = &record.measured;
    let asked = &record.parameters;
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>neap run: {policy}, seed {seed}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><h1>neap run</h1><p>{policy} on {ran_on} · {cpus} host CPUs · seed {seed}</p></header>\n",
        policy = escaped(&asked.policy),
        seed = asked.seed,
        ran_on = escaped(&record.ran_on),
        cpus = asked.cpus,
    );
    banner(&mut out, record);
    out.push_str("<section class=\"tiles\">\n");
    for (value, name, remark) in [
        (
            count(m.decisions),
            "decisions",
            format!("{} per second", count(record.decisions_per_s().round() as u64)),
        ),
        (
            percent(record.prestage_share()),
            "prestage hits",
            format!("{} of the CPUs' looks", count(m.prestage_hits)),
        ),
        (median(&m.round_trip), "round trip, median", tail(&m.round_trip)),
        (median(&m.request), "request, median", tail(&m.request)),
    ] {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{value}</b><span>{name}</span><small>{remark}</small></div>"
        );
    }
    out.push_str("</section>\n");
    let curves = [
        Series { name: "round trip: message to decision", class: "a", points: &m.round_trip.curve },
        Series { name: "request: arrival to end", class: "b", points: &m.request.curve },
    ];
    let emulated = if record.emulated() { " <em>emulated time</em>" } else { "" };
    figure(&mut out, &format!("Latency{emulated}"), &plot::distributions(&curves));
    figure(&mut out, "Queue depth", &plot::timeline(&m.queue_depth, asked.seconds.max(m.elapsed_s)));
    out.push_str("<section class=\"columns\">\n");
    latencies(&mut out, &[("round trip", &m.round_trip), ("request", &m.request)]);
    let outcomes: Vec<(String, String)> =
        m.outcomes.iter().map(|(name, &times)| (name.clone(), count(times))).collect();
    pairs(&mut out, "Outcomes", &outcomes);
    let counts = [
        ("requests offered", m.requests_offered),
        ("requests refused", m.requests_refused),
        ("tasks created", m.tasks_created),
        ("tasks finished", m.tasks_finished),
        ("tasks lost", m.tasks_lost),
        ("tasks doubled", m.tasks_doubled),
        ("FIFO violations", m.fifo_violations),
        ("wrong values", m.values_wrong),
        ("resyncs", m.resyncs),
        ("messages", m.messages),
        ("doorbells", m.doorbells),
    ];
    pairs(&mut out, "Counts", &counts.map(|(name, value)| (name.to_owned(), count(value))));
    let enclaves: Vec<(String, String)> = m.enclaves.iter().map(enclave).collect();
    if enclaves.len() > 1 {
        pairs(&mut out, "Enclaves", &enclaves);
    }
    let parameters = [
        ("policy", asked.policy.clone()),
        ("host", asked.host.name().to_owned()),
        ("where", asked.place().to_owned()),
        ("host CPUs", asked.cpus.to_string()),
        ("IPU cores", asked.cores.to_string()),
        ("seconds", asked.seconds.to_string()),
        ("rate", format!("{} /s", asked.rate)),
        ("keys", count(asked.keys)),
        ("blocking / yielding", format!("{} % / {} %", asked.blocking_percent, asked.yielding_percent)),
        ("seed", asked.seed.to_string()),
    ];
    pairs(&mut out, "Parameters", &parameters.map(|(name, value)| (name.to_owned(), value)));
    out.push_str("</section>\n");
    let _ = writeln!(
        out,
        "<footer>Again: <code><span>{}</span></code></footer>\n</main>\n</body>\n</html>",
        again(record).split(" --").map(escaped).collect::<Vec<_>>().join("</span> <span>--")
    );
    out
}

/// What a reader must know before the figures.
fn banner(out: &mut String, record: &Record) {
    let complaints = record.complaints();
    for words in &complaints {
        let _ = writeln!(out, "<p class=\"note bad\">{}</p>", escaped(words));
    }
    if complaints.is_empty() {
        let order =
            if record.parameters.checks_order() { ", and every decision kept FIFO order" } else { "" };
        let _ = writeln!(out, "<p class=\"note good\">No task was lost or ran twice{order}.</p>");
    }
    if record.emulated() {
        out.push_str(
            "<p class=\"note\">The IPU was emulated (TCG): this page shows function, not time. \
             Its latencies are the emulator's, not a card's.</p>\n",
        );
    }
    for remark in record.measured.remarks.iter().chain(&record.measured.epitaphs) {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escaped(remark));
    }
}

fn median(distribution: &Distribution) -> String {
    if distribution.count == 0 { "–".to_owned() } else { time(distribution.p50) }
}

fn tail(distribution: &Distribution) -> String {
    if distribution.count == 0 {
        "not measured".to_owned()
    } else {
        format!("p99 {}", time(distribution.p99))
    }
}

fn figure(out: &mut String, title: &str, svg: &str) {
    let _ = writeln!(out, "<figure>\n<figcaption>{title}</figcaption>\n{svg}\n</figure>");
}

fn latencies(out: &mut String, rows: &[(&str, &Distribution)]) {
    out.push_str("<table class=\"wide\"><caption>Latency percentiles</caption>\n<tr><th></th>");
    for head in ["samples", "mean", "p50", "p90", "p99", "p99.9", "max"] {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr>\n");
    for (name, d) in rows {
        let _ = write!(out, "<tr><td>{name}</td><td>{}</td>", count(d.count));
        for value in [d.mean, d.p50, d.p90, d.p99, d.p999, d.max] {
            let _ = write!(out, "<td>{}</td>", time(value));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn pairs(out: &mut String, caption: &str, rows: &[(String, String)]) {
    let _ = writeln!(out, "<table><caption>{caption}</caption>");
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escaped(name), escaped(value));
    }
    out.push_str("</table>\n");
}

/// One enclave in a row.
fn enclave(m: &EnclaveMeasured) -> (String, String) {
    let finished =
        if m.complete { "all tasks finished".to_owned() } else { format!("{} tasks lost", m.tasks_lost) };
    (
        format!("{}: CPUs {}, {}", m.enclave, m.range(), m.agent),
        format!(
            "{} decisions, {finished}, {} crashes, {} fallbacks",
            count(m.decisions),
            m.crashes,
            m.fallbacks.len()
        ),
    )
}

/// The command that does the same run again.
fn again(record: &Record) -> String {
    let p = &record.parameters;
    let mut words = "cargo neap run".to_owned();
    if p.host == HostKind::Linux {
        words.push_str(" --host linux");
    }
    if p.enclaves == [EnclaveAsked::only(p.cpus, &p.policy)] {
        words.push_str(&format!(" --policy {} --cpus {}", p.policy, p.cpus));
    } else {
        words.extend(p.enclaves.iter().map(|enclave| format!(" --enclave {}", enclave.spec())));
    }
    if p.watchdog_ms != 20 {
        words.push_str(&format!(" --watchdog-ms {}", p.watchdog_ms));
    }
    if let Some(after_s) = p.kill_agent_after_s {
        words.push_str(&format!(" --kill-agent-after {after_s}"));
    }
    if p.command.is_empty() {
        words.push_str(&format!(
            " --rate {} --seconds {} --keys {} --blocking {} --yielding {} --seed {}",
            p.rate, p.seconds, p.keys, p.blocking_percent, p.yielding_percent, p.seed
        ));
    } else if p.seconds > 0.0 {
        words.push_str(&format!(" --seconds {}", p.seconds));
    }
    words.push_str(&if p.on_host { " --on-host".to_owned() } else { format!(" --cores {}", p.cores) });
    if !p.command.is_empty() {
        words.push_str(&format!(" -- {}", p.command.join(" ")));
    }
    words
}

/// Text for between two tags.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::{End, tests::example};
    use super::*;

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let page = page(&example());
        for words in [
            "<!DOCTYPE html>",
            "Queue depth",
            "committed",
            "seed 77",
            "prefers-color-scheme: dark",
            "</html>",
        ] {
            assert!(page.contains(words), "{words} is missing");
        }
        assert_eq!(page.matches("<svg").count(), 2);
        for remote in ["http:", "https:", "<script", "<link", "url("] {
            assert!(!page.contains(remote), "{remote} makes it depend on something");
        }
        for tag in ["main", "section", "figure", "table", "svg", "header", "footer"] {
            let (open, close) =
                (page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count());
            assert_eq!(open, close, "<{tag}>");
        }
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let mut record = example();
        record.end = End::Broken("<b>&".into());
        record.measured.epitaphs.push("<script>".into());
        let page = page(&record);
        assert!(page.contains("&lt;b&gt;&amp;") && !page.contains("<script>"));
        assert!(!page.contains("No task was lost"));
    }
}
