//! Timelines of runs, read by what knows nothing of their writer: a description of Perfetto's public schema, and a reader that
//! follows it at run time.

#[path = "common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::Place;
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};

/// A timeline that `cargo xtask test` made with a run on the virtual IPU, and how many decisions that run reported.
const MADE: [&str; 2] = ["NEAP_TIMELINE", "NEAP_TIMELINE_DECISIONS"];

/// What a timeline came to.
#[derive(Debug, Default)]
struct Read {
    decisions: u64,
    txns: u64,
    messages: u64,
    slices: u64,
    arrows: u64,
    processes: Vec<String>,
    tracks: Vec<String>,
}

fn read(file: &Path) -> Read {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let pool = protox::compile(["perfetto.proto"], [schema]).unwrap().encode_to_vec();
    let pool = DescriptorPool::decode(pool.as_slice()).unwrap();
    let trace = pool.get_message_by_name("perfetto.protos.Trace").unwrap();
    let trace = DynamicMessage::decode(trace, fs::read(file).unwrap().as_slice()).unwrap();
    nothing_unknown(&trace);
    let mut read = Read::default();
    // By track: its name, when something was last on it, and slices that are open.
    let mut tracks: HashMap<u64, (String, u64, Vec<String>)> = HashMap::new();
    let mut begun = std::collections::HashSet::new();
    for packet in list(&trace, "packet") {
        assert_ne!(number(packet, "trusted_packet_sequence_id"), 0);
        if packet.has_field_by_name("track_descriptor") {
            let track = packet.get_field_by_name("track_descriptor").unwrap();
            let track = track.as_message().unwrap();
            if track.has_field_by_name("process") {
                let process = track.get_field_by_name("process").unwrap();
                read.processes.push(text(process.as_message().unwrap(), "process_name"));
            } else {
                assert!(tracks.contains_key(&number(track, "parent_uuid")), "{track:?}");
                read.tracks.push(text(track, "name"));
            }
            let before = tracks.insert(number(track, "uuid"), (text(track, "name"), 0, Vec::new()));
            assert!(before.is_none(), "{track:?} is there twice");
            continue;
        }
        let event = packet.get_field_by_name("track_event").unwrap();
        let (event, at_ns) = (event.as_message().unwrap(), number(packet, "timestamp"));
        let (track, last_ns, open) = tracks.get_mut(&number(event, "track_uuid")).expect("a described track");
        assert!(at_ns >= *last_ns, "{track}: {at_ns} after {last_ns}");
        *last_ns = at_ns;
        let name = text(event, "name");
        match event.get_field_by_name("type").unwrap().as_enum_number() {
            Some(1) => open.push(name),
            Some(2) => {
                assert!(open.pop().is_some(), "{track}: an end without a beginning");
                read.slices += 1;
            }
            Some(3) => assert!(!name.is_empty(), "{track}"),
            other => panic!("{track}: an event of type {other:?}"),
        }
        assert!(open.len() <= 1, "{track}: {open:?} lie within each other");
        let categories = event.get_field_by_name("categories").unwrap();
        let has = |of: &str| categories.as_list().unwrap().iter().any(|has| has.as_str() == Some(of));
        read.decisions += u64::from(has("decision"));
        read.txns += u64::from(has("txn"));
        read.messages += u64::from(has("message"));
        begun.extend(flows(event, "flow_ids"));
        read.arrows +=
            flows(event, "terminating_flow_ids").filter(|flow| begun.contains(flow)).count() as u64;
    }
    for (track, _, open) in tracks.values() {
        assert!(open.is_empty(), "{track}: {open:?} without an end");
    }
    read
}

/// Every byte is something that the schema knows, with the type that it has there.
fn nothing_unknown(message: &DynamicMessage) {
    let name = message.descriptor().name().to_owned();
    assert_eq!(message.unknown_fields().count(), 0, "{name} has fields that are not in the schema");
    for (_, value) in message.fields() {
        match value {
            Value::Message(inner) => nothing_unknown(inner),
            Value::List(list) => list.iter().filter_map(Value::as_message).for_each(nothing_unknown),
            _ => {}
        }
    }
}

fn list<'a>(message: &'a DynamicMessage, field: &str) -> Vec<&'a DynamicMessage> {
    let descriptor = message.descriptor().get_field_by_name(field).unwrap();
    match message.fields().find(|(of, _)| *of == descriptor) {
        Some((_, Value::List(list))) => list.iter().map(|value| value.as_message().unwrap()).collect(),
        other => panic!("{field} is {other:?}"),
    }
}

fn number(message: &DynamicMessage, field: &str) -> u64 {
    let value = message.get_field_by_name(field).unwrap();
    value.as_u64().or(value.as_u32().map(u64::from)).unwrap()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).unwrap().as_str().unwrap().to_owned()
}

fn flows(message: &DynamicMessage, field: &str) -> impl Iterator<Item = u64> {
    let flows = message.get_field_by_name(field).unwrap().into_owned();
    let Value::List(flows) = flows else { panic!("{field} is {flows:?}") };
    flows.into_iter().map(|flow| flow.as_u64().unwrap())
}

/// What holds of each timeline of a whole run with `decisions`.
fn whole(read: &Read, decisions: u64) {
    assert_eq!(read.decisions, decisions, "{read:?}");
    assert!(read.txns >= read.decisions && read.messages > 0 && read.slices > 0, "{read:?}");
    // What the IPU decides rests on what it was told, but for stamps that are foretold.
    assert!(read.arrows * 2 > read.decisions, "{read:?}");
    for track in ["agent", "who decides", "messages", "CPU 0", "CPU 0 txns"] {
        assert!(read.tracks.iter().any(|name| name == track), "no track {track}: {read:?}");
    }
}

#[test]
fn a_run_s_timeline_holds_every_decision() {
    let [made, decisions] = MADE.map(|name| std::env::var(name).ok());
    if let (Some(made), Some(decisions)) = (made, decisions) {
        return whole(&read(Path::new(&made)), decisions.parse().unwrap());
    }
    let place = Place::new();
    let file = place.file("run.pftrace");
    let enclaves = ["--enclave", "cpus=0-1", "--enclave", "cpus=2,policy=shinjuku"];
    let options = ["--seconds", "1", "--perfetto", file.to_str().unwrap()];
    let end = place.start(&[&enclaves[..], &options].concat()).end();
    assert_eq!(end.code, Some(0), "{}", end.words());
    let read = read(&file);
    whole(&read, end.json()["decisions"].as_u64().unwrap());
    assert_eq!(read.processes, ["enclave 0 (fifo)", "enclave 1 (shinjuku)"]);
    let outcomes =
        end.json()["outcomes"].as_object().unwrap().values().filter_map(|n| n.as_u64()).sum::<u64>();
    assert_eq!((read.txns, read.messages), (outcomes, end.json()["messages"].as_u64().unwrap()));
}

#[test]
fn a_running_instance_is_watched_for_a_while() {
    let place = Place::new();
    let file = place.file("watched.pftrace");
    let words = ["trace", "--seconds", "0.5", "--perfetto", file.to_str().unwrap()];
    let nothing = place.neap(&words).output().unwrap();
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && said.contains("nothing runs that could be watched"), "{said}");
    let mut run = place.start(&["--seconds", "60"]);
    place.wait_running(&mut run);
    let watch = || place.neap(&words).output().unwrap();
    // Once more: the first has left nothing behind.
    for _ in 0..2 {
        let done = watch();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{out}{err}");
        let read = read(&file);
        assert!(
            out.contains(&format!("{} decisions and {} messages", read.decisions, read.messages)),
            "{out}"
        );
        assert!(read.decisions > 0 && read.slices > 0, "{read:?}");
    }
    common::signal(run.id(), rustix::process::Signal::INT);
    assert_eq!(run.end().code, Some(130));
}
