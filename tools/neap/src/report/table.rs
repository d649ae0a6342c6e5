//! The table on the terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use neap_host::ledger::Span;

use super::{Record, count, percent, time};
use crate::measured::{Distribution, EnclaveMeasured};

/// The run's figures, to be read by people.
pub fn table(record: &Record) -> String {
    let m = &record.measured;
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED.with_rounded_corners())
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut row = |name: &str, value: String, remark: String| {
        table.add_row([
            Cell::new(name),
            Cell::new(value).set_alignment(CellAlignment::Right),
            Cell::new(remark),
        ]);
    };
    row("decisions", count(m.decisions), format!("{} /s", count(record.decisions_per_s().round() as u64)));
    for (name, &times) in &m.outcomes {
        row(&format!("  {name}"), count(times), String::new());
    }
    row("prestage hits", count(m.prestage_hits), percent(record.prestage_share()));
    row("prestage misses", count(m.prestage_misses), String::new());
    let label = if record.emulated() { "emulated" } else { "" };
    for (name, distribution) in
        [("round trip", &m.round_trip), ("request", &m.request), ("short request", &m.request_short)]
    {
        // Where all are short, they are told of once.
        let told = name == "short request" && distribution.count == m.request.count;
        if distribution.count == 0 || told {
            continue;
        }
        row(&format!("{name} p50"), time(distribution.p50), label.to_owned());
        row("  p90 / p99", format!("{} / {}", time(distribution.p90), time(distribution.p99)), String::new());
        row(
            "  p99.9 / max",
            format!("{} / {}", time(distribution.p999), longest(distribution)),
            String::new(),
        );
    }
    for span in Span::ALL {
        let step = m.ledger.step(span);
        if step.count > 0 {
            let ns = |ns: u64| time(ns as f64 / 1e3);
            row(
                &format!("{} p50 / p99", span.name().replace('_', " ")),
                format!("{} / {}", ns(step.p50_ns), ns(step.p99_ns)),
                record.ledger_label().to_owned(),
            );
        }
    }
    if m.preemptions > 0 {
        row("preemptions", count(m.preemptions), String::new());
    }
    row("requests offered", count(m.requests_offered), format!("{} refused", count(m.requests_refused)));
    row("tasks created", count(m.tasks_created), String::new());
    row("tasks finished", count(m.tasks_finished), format!("{} unfinished", count(m.tasks_unfinished())));
    row("tasks lost", count(m.tasks_lost), verdict(m.tasks_lost));
    row("tasks doubled", count(m.tasks_doubled), verdict(m.tasks_doubled));
    if record.parameters.checks_order() {
        row("FIFO violations", count(m.fifo_violations), verdict(m.fifo_violations));
    }
    row("resyncs", count(m.resyncs), String::new());
    row("messages", count(m.messages), format!("{} doorbells", count(m.doorbells)));
    let mut lines = vec![table.to_string()];
    if m.enclaves.len() > 1 {
        lines.push(enclaves(&m.enclaves));
    }
    lines.extend(notes(record));
    lines.join("\n")
}

/// A row for each enclave.
fn enclaves(enclaves: &[EnclaveMeasured]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED.with_rounded_corners());
    table.set_header([
        "enclave",
        "CPUs",
        "policy",
        "agent",
        "decisions",
        "tasks",
        "finished",
        "lost",
        "crashes",
        "fallbacks",
        "decides",
    ]);
    for m in enclaves {
        table.add_row([
            m.enclave.to_string(),
            m.range(),
            m.policy.clone(),
            m.agent.clone(),
            count(m.decisions),
            count(m.tasks_created),
            if m.complete { "all".to_owned() } else { count(m.tasks_finished) },
            count(m.tasks_lost),
            count(m.crashes),
            count(m.fallbacks.len() as u64),
            m.level.clone(),
        ]);
    }
    table.to_string()
}

/// What stands below the table: on what it ran, and what went wrong.
fn notes(record: &Record) -> Vec<String> {
    let asked = &record.parameters;
    let ran_on = if record.emulated() {
        format!("ran on {}: it shows function, not time; latencies are the emulator's", record.ran_on)
    } else {
        format!("ran on {}: the same agent as a process, with no PCIe between", record.ran_on)
    };
    let mut lines =
        vec![ran_on, format!("policy {}, {} host CPUs, {}", asked.policy, asked.cpus, load(record))];
    lines.extend(record.measured.remarks.iter().cloned());
    lines.extend(record.measured.epitaphs.iter().map(|epitaph| format!("epitaph: {epitaph}")));
    lines
}

/// What the load was, and what a command came to.
fn load(record: &Record) -> String {
    let asked = &record.parameters;
    if !asked.command.is_empty() {
        let status = record.measured.command_status;
        let status = status.map_or_else(|| "did not end".to_owned(), |status| format!("status {status}"));
        return format!("{}: {status}", asked.command.join(" "));
    }
    let (rate, seconds, keys) = (asked.rate, asked.seconds, count(asked.keys));
    format!("{rate} requests/s for {seconds} s on {keys} keys, seed {}", asked.seed)
}

fn longest(distribution: &Distribution) -> String {
    time(distribution.max)
}

fn verdict(count: u64) -> String {
    if count == 0 { "as it must".to_owned() } else { "MUST BE 0".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::HostKind;
    use super::super::tests::example;
    use super::*;

    #[test]
    fn all_figures_are_there() {
        let text = table(&example());
        for words in [
            "33,020",
            "3,299 /s",
            "committed",
            "task_stale",
            "63.6 %",
            "emulated",
            "seen to decided p50 / p99",
            "0.8 µs / 1.6 µs",
            "no silicon time",
            "QEMU 7.2.22, TCG",
            "seed 77",
        ] {
            assert!(text.contains(words), "{words} is missing:\n{text}");
        }
        assert!(!text.contains("MUST BE 0"));
    }

    #[test]
    fn each_of_several_enclaves_has_a_row_and_each_crash_its_name() {
        let mut record = example();
        assert!(!table(&record).contains("decides"), "an enclave that is alone is the run");
        let mut second = record.measured.enclaves[0].clone();
        (second.enclave, second.crashes, second.agent) = (1, 8, "wild_store".into());
        record.measured.enclaves.push(second);
        record.measured.epitaphs.push("enclave 1: agent wild_store ended by synchronous_exception".into());
        let text = table(&record);
        assert!(text.contains("decides") && text.contains("wild_store"), "{text}");
        assert!(text.contains("epitaph: enclave 1: agent wild_store ended by"), "{text}");
    }

    #[test]
    fn what_was_not_looked_at_has_no_row() {
        let mut record = example();
        assert!(table(&record).contains("round trip") && table(&record).contains("FIFO violations"));
        record.parameters.host = HostKind::Linux;
        record.measured.round_trip = Distribution::default();
        assert!(!table(&record).contains("published to doorbell"));
        assert!(!table(&record).contains("round trip") && !table(&record).contains("FIFO violations"));
    }

    #[test]
    fn a_command_is_named_with_its_status() {
        let mut record = example();
        record.parameters.command = ["stress-ng", "--cpu", "4"].map(str::to_owned).into();
        record.measured.command_status = Some(0);
        let text = table(&record);
        assert!(text.contains("stress-ng --cpu 4: status 0") && !text.contains("requests/s"), "{text}");
    }

    #[test]
    fn a_lost_task_is_cried_out() {
        let mut record = example();
        record.measured.tasks_lost = 2;
        assert!(table(&record).contains("MUST BE 0"));
    }
}
