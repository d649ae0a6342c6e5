//! `neap status`: the hello page, the agent's control line and the epitaphs.

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use neap_abi::{AgentControl, Epitaph, Hello};
use serde_json::{Value, json};

use super::snapshot::Snapshot;
use crate::print;

/// Prints where an instance stands, as a table or as one JSON object.
pub fn status(as_json: bool) -> Result<()> {
    let snapshot = Snapshot::find()?;
    let hello = snapshot.hello();
    let (agent, epitaphs) = match &hello {
        Ok(hello) => (snapshot.agent(hello)?, snapshot.epitaphs(hello)?),
        Err(_) => (None, Vec::new()),
    };
    let text = if as_json {
        let hello_error = hello.as_ref().err().map(|error| format!("{error:#}"));
        let object = json!({
            "running": snapshot.running,
            "pid": snapshot.notes.pid,
            "ran_on": snapshot.notes.ran_on,
            "parameters": snapshot.notes.parameters,
            "hello": hello.as_ref().ok().map(of_hello),
            "hello_error": hello_error,
            "agent": agent.as_ref().map(of_agent),
            "epitaphs": epitaphs.iter().map(of_epitaph).collect::<Vec<_>>(),
        });
        format!("{object:#}")
    } else {
        let mut lines =
            vec![format!("{}, on {}, pid {}", snapshot.what(), snapshot.notes.ran_on, snapshot.notes.pid)];
        lines.push(match &hello {
            Ok(hello) => rows("hello page", &of_hello(hello)),
            Err(error) => format!("{error:#}"),
        });
        lines.push(match &agent {
            Some(agent) => rows("agent", &of_agent(agent)),
            None => "no agent has written its control line".to_owned(),
        });
        lines.extend(epitaphs.iter().map(|epitaph| format!("epitaph: {}", in_words(epitaph))));
        if epitaphs.is_empty() {
            lines.push("no epitaphs".to_owned());
        }
        lines.join("\n")
    };
    print(&text)
}

/// An object as a table of two columns.
fn rows(title: &str, object: &Value) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED.with_rounded_corners()).set_header([title, ""]);
    for (name, value) in object.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.add_row([name.replace('_', " "), value]);
    }
    table.to_string()
}

fn of_hello(hello: &Hello) -> Value {
    json!({
        "version": format!("{}.{}", hello.version.major, hello.version.minor),
        "boot": hello.boot,
        "features": format!("{:#x}", hello.features),
        "link": format!("{:?}", hello.link).to_lowercase(),
        "window_bytes": hello.window_bytes,
        "cpus": hello.cpus,
        "cores": hello.cores,
        "tasks": hello.tasks,
        "regions": hello.regions().count(),
    })
}

fn of_agent(agent: &AgentControl) -> Value {
    json!({
        "state": format!("{:?}", agent.state).to_lowercase(),
        "core": agent.core,
        "asleep": agent.asleep,
        "session": agent.session,
        "credits": agent.credits,
        "decisions": agent.decisions,
        "doorbells": agent.doorbells,
        "resyncs": agent.resyncs,
        "unknown_messages": agent.unknown,
    })
}

fn of_epitaph(epitaph: &Epitaph) -> Value {
    json!({
        "cause": epitaph.cause.name(),
        "core": epitaph.core,
        "session": epitaph.session,
        "time_ns": epitaph.time_ns,
        "messages": epitaph.messages,
        "esr": epitaph.esr,
        "elr": epitaph.elr,
        "far": epitaph.far,
        "file": epitaph.file(),
        "line": epitaph.line,
        "text": epitaph.text(),
    })
}

/// An epitaph as a sentence.
fn in_words(epitaph: &Epitaph) -> String {
    let at_s = epitaph.time_ns as f64 / 1e9;
    let mut words = format!("core {} ended by {} {at_s:.3} s after boot", epitaph.core, epitaph.cause.name());
    if !epitaph.file().is_empty() {
        words.push_str(&format!(" at {}:{}", epitaph.file(), epitaph.line));
    }
    if !epitaph.text().is_empty() {
        words.push_str(&format!(": {}", epitaph.text()));
    }
    if epitaph.esr != 0 {
        words.push_str(&format!(" (ESR {:#x}, ELR {:#x}, FAR {:#x})", epitaph.esr, epitaph.elr, epitaph.far));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::Cause;

    #[test]
    fn an_epitaph_reads_as_a_sentence() {
        let mut epitaph = Epitaph::new(Cause::Panic, 1);
        epitaph.time_ns = 1_500_000_000;
        epitaph.set_source("firmware/runtime/src/main.rs", 42, "index out of bounds");
        assert_eq!(
            in_words(&epitaph),
            "core 1 ended by panic 1.500 s after boot at firmware/runtime/src/main.rs:42: index out of bounds"
        );
        let mut fault = Epitaph::new(Cause::Synchronous, 2);
        (fault.esr, fault.elr, fault.far) = (0x9600_0045, 0x4020_1234, 0xdead_0000);
        assert!(in_words(&fault).ends_with("(ESR 0x96000045, ELR 0x40201234, FAR 0xdead0000)"));
    }
}
