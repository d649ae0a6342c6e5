//! `neap status`: each enclave's hello page, agents, bindings, books and epitaphs.

use std::path::Path;

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use neap_abi::image::rights;
use neap_abi::supervisor::{Binding, Books, Identity};
use neap_abi::{AgentControl, EpitaphRecord, Hello, Version};
use neap_host::manager::Agents;
use neap_host::report::EpitaphReport;
use neap_host::window::Origin;
use serde_json::{Value, json};

use super::scene::{Place, Scene, Seen};
use crate::driver::agents;
use crate::enclaves::EnclaveAsked;
use crate::{print, report};

impl Seen {
    fn json(&self) -> Value {
        let Agents { running, standby, books, bindings } = &self.agents;
        json!({
            "hello": self.hello.as_ref().ok().map(of_hello),
            "hello_error": self.hello.as_ref().err().map(|error| format!("{error:#}")),
            "boot": self.origin.as_ref().map(of_origin),
            "agent": self.agent.as_ref().map(of_agent),
            "running": running.as_ref().map(of_identity),
            "standby": standby.as_ref().map(of_identity),
            "books": books.as_ref().map(of_books),
            "bindings": bindings.iter().map(of_binding).collect::<Vec<_>>(),
            "epitaphs": self.epitaphs.iter().map(of_epitaph).collect::<Vec<_>>(),
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![match &self.hello {
            Ok(hello) => rows("hello page", &of_hello(hello)),
            Err(error) => format!("{error:#}"),
        }];
        lines.extend(self.origin.as_ref().map(|origin| rows("booted", &of_origin(origin))));
        lines.push(match &self.agent {
            Some(agent) => rows("agent", &of_agent(agent)),
            None => "no agent has written its control line".to_owned(),
        });
        let Agents { running, standby, books, bindings } = &self.agents;
        for (title, identity) in [("running", running), ("standby", standby)] {
            lines.extend(identity.as_ref().map(|identity| rows(title, &of_identity(identity))));
        }
        lines.extend(books.as_ref().map(|books| rows("books", &of_books(books))));
        if !bindings.is_empty() {
            lines.push(binding_table(bindings));
        }
        lines.extend(self.epitaphs.iter().map(|epitaph| format!("epitaph: {}", in_words(epitaph))));
        if self.epitaphs.is_empty() {
            lines.push("no epitaphs".to_owned());
        }
        lines
    }
}

/// Prints where an instance stands, or a device, as a table or as one JSON object.
pub fn status(as_json: bool, device: Option<&Path>) -> Result<()> {
    let scene = Scene::look(device)?;
    if as_json {
        return print(&format!("{:#}", json(&scene)));
    }
    let mut lines = Vec::new();
    if let Some(notes) = &scene.notes {
        lines.push(format!("{}, on {}, pid {}", scene.what, scene.ran_on(), notes.pid));
    }
    for place in &scene.places {
        lines.push(match &place.driver {
            Some((path, info)) => rows(&format!("{}", path.display()), &agents::of_info(info)),
            None => format!("enclave {}: CPUs {}, policy {}", place.number, place.cpus, place.policy),
        });
        lines.extend(place.seen.lines());
        lines.extend(place.host.as_ref().map(|figures| rows("host", &report::enclave(figures))));
    }
    print(&lines.join("\n"))
}

/// The scene as one object.
fn json(scene: &Scene) -> Value {
    let of = |place: &Place| {
        let mut enclave = place.seen.json();
        match &place.driver {
            Some((path, info)) => {
                enclave["device"] = path.to_string_lossy().into();
                enclave["driver"] = agents::of_info(info);
            }
            None => {
                enclave["cpus"] = place.asked.iter().flat_map(EnclaveAsked::cpus).collect::<Vec<_>>().into();
                enclave["policy"] = place.policy.clone().into();
            }
        }
        enclave["host"] = place.host.as_ref().map_or(Value::Null, report::enclave);
        enclave
    };
    let enclaves: Vec<Value> = scene.places.iter().map(of).collect();
    let mut object = json!({ "running": scene.running, "ran_on": scene.ran_on() });
    if let Some(notes) = &scene.notes {
        object["pid"] = notes.pid.into();
        object["parameters"] = json!(notes.parameters);
        // Of the only enclave there is most of the time, also where they stood before there could be more.
        for key in ["hello", "hello_error", "agent", "epitaphs"] {
            object[key] = enclaves.first().map_or(Value::Null, |first| first[key].clone());
        }
    }
    object["enclaves"] = enclaves.into();
    object
}

fn binding_table(bindings: &[Binding]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED.with_rounded_corners());
    table.set_header(["bound to", "rights", "address", "physical", "bytes", "memory"]);
    for binding in bindings {
        let memory = if binding.device { "device" } else { "normal" };
        table.add_row([
            binding.kind.name().to_owned(),
            letters(binding.rights),
            format!("{:#x}", binding.address),
            format!("{:#x}", binding.physical),
            binding.bytes.to_string(),
            memory.to_owned(),
        ]);
    }
    table.to_string()
}

/// Rights as letters, as `ls` has them.
fn letters(bits: u8) -> String {
    let letter = |right: u32, letter| if u32::from(bits) & right != 0 { letter } else { '-' };
    [(rights::READ, 'r'), (rights::WRITE, 'w'), (rights::EXECUTE, 'x')]
        .map(|(r, l)| letter(r, l))
        .iter()
        .collect()
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

fn of_origin(origin: &Origin) -> Value {
    let Origin { slot, refused } = origin;
    json!({ "slot": slot, "refused": refused })
}

fn of_agent(agent: &AgentControl) -> Value {
    json!({
        "state": state(agent),
        "core": agent.core,
        "asleep": agent.asleep,
        "session": agent.session,
        "incarnation": agent.incarnation,
        "credits": agent.credits,
        "decisions": agent.decisions,
        "doorbells": agent.doorbells,
        "resyncs": agent.resyncs,
        "unknown_messages": agent.unknown,
    })
}

/// An agent's state on every output.
pub fn state(agent: &AgentControl) -> String {
    format!("{:?}", agent.state).to_lowercase()
}

/// An agent's identity.
pub fn of_identity(identity: &Identity) -> Value {
    let version = Version::from_bits(identity.version);
    json!({
        "name": identity.name(),
        "incarnation": identity.incarnation,
        "image": format!("{:#010x}", identity.image_crc),
        "version": version.to_string(),
        "on_trial": identity.on_trial,
    })
}

/// The supervisor's books.
pub fn of_books(books: &Books) -> Value {
    json!({
        "pages": books.pages,
        "pages_free": books.pages_free,
        "pages_held": books.pages_held,
        "cores": books.cores,
        "cores_free": books.cores_free,
        "cores_lost": books.cores_lost,
        "started": books.started,
        "faults": books.faults,
        "restarts": books.restarts,
        "restart_in_ms": books.restart_in_ms,
        "given_up": books.given_up,
        "revocations": books.revocations,
        "aborts": books.aborts,
        "replacements": books.replacements,
        "rollbacks": books.rollbacks,
        "images_refused": books.images_refused,
        "commands_refused": books.commands_refused,
        "epitaphs": books.epitaphs,
    })
}

fn of_binding(binding: &Binding) -> Value {
    json!({
        "kind": binding.kind.name(),
        "rights": letters(binding.rights),
        "device": binding.device,
        "address": binding.address,
        "physical": binding.physical,
        "bytes": binding.bytes,
    })
}

fn of_epitaph(record: &EpitaphRecord) -> Value {
    let epitaph = &record.epitaph;
    json!({
        "name": record.name(),
        "incarnation": record.incarnation,
        "number": record.number,
        "cause": epitaph.cause.name(),
        "core": epitaph.core,
        "session": epitaph.session,
        "time_ns": epitaph.time_ns,
        "messages": epitaph.messages,
        "last_message": EpitaphReport::of(record).last_message,
        "esr": epitaph.esr,
        "elr": epitaph.elr,
        "far": epitaph.far,
        "file": epitaph.file(),
        "line": epitaph.line,
        "text": epitaph.text(),
    })
}

/// An epitaph as a sentence.
fn in_words(record: &EpitaphRecord) -> String {
    let at_s = record.epitaph.time_ns as f64 / 1e9;
    format!("{}, {at_s:.3} s after boot", EpitaphReport::of(record).in_words())
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_abi::{Cause, Epitaph, Message, MessageKind};

    #[test]
    fn an_epitaph_reads_as_a_sentence() {
        let mut epitaph = Epitaph::new(Cause::Panic, 1);
        epitaph.time_ns = 1_500_000_000;
        epitaph.messages = 12;
        epitaph.set_source("firmware/runtime/src/main.rs", 42, "index out of bounds");
        let mut record = EpitaphRecord {
            epitaph,
            incarnation: 0,
            image_crc: 0,
            number: 1,
            name: [0; 32],
            last_message: None,
        };
        assert_eq!(
            in_words(&record),
            "core 1 ended by panic at firmware/runtime/src/main.rs:42 after 12 messages: index out of bounds, 1.500 s \
             after boot"
        );
        record.epitaph = Epitaph::new(Cause::Synchronous, 2);
        (record.epitaph.esr, record.epitaph.elr, record.epitaph.far) =
            (0x9600_0045, 0x4020_1234, 0xdead_0000);
        record.incarnation = 3;
        record.name[..4].copy_from_slice(b"wild");
        record.last_message = Some(Message { task: 7, ..Message::new(MessageKind::TaskNew, 1) }.to_payload());
        let words = in_words(&record);
        assert!(
            words.starts_with("agent wild (incarnation 3, core 2) ended by synchronous_exception"),
            "{words}"
        );
        assert!(words.contains("pc 0x40201234, address 0xdead0000, syndrome 0x96000045"), "{words}");
        assert!(words.contains("the last task_new of CPU 1, task 7"), "{words}");
    }

    #[test]
    fn what_booted_and_what_was_refused_is_told_where_a_loader_has_said_it() {
        let scene = crate::inspect::scene::tests::example();
        let json = json(&scene);
        assert_eq!(json["enclaves"][0]["boot"], Value::Null);
        assert_eq!(json["enclaves"][1]["boot"]["slot"], "A");
        let lines = scene.places[1].seen.lines().join("\n");
        assert!(lines.contains("B: it was tried once and was not confirmed"), "{lines}");
    }

    #[test]
    fn rights_are_letters() {
        assert_eq!([letters(1), letters(3), letters(5), letters(0)], ["r--", "rw-", "r-x", "---"]);
    }
}
