//! Timelines of what never happened. Those of runs are read in `tests/timeline.rs`, by a reader of its own.

use neap_abi::{Outcome, Txn};
use neap_host::event::Fault;
use neap_host::sights::Standing;

use super::*;

fn judged(txn: Txn, outcome: Outcome, is_decision: bool) -> Sight {
    Sight::Txn(Judged { txn, outcome, level: Level::Ipu, is_decision, prestaged: false })
}

/// One enclave's timeline, read again.
fn drawn(standing: Standing, sights: &[Sight], most: usize) -> (Held, Vec<TracePacket>) {
    let mut seen = Sights::begin(Instant::now(), standing, most, None);
    sights.iter().for_each(|sight| seen.note(*sight));
    let part = Part { enclave: 2, policy: "fifo", sights: &seen };
    let mut bytes = Vec::new();
    let held = write(&[part], &mut bytes).unwrap();
    (held, Trace::decode(bytes.as_slice()).unwrap().packet)
}

/// What lies on the track of that name: how, its name, and its packet's time.
fn on(packets: &[TracePacket], track: &str) -> Vec<(Type, String, u64)> {
    let uuid = packets.iter().find_map(|packet| match &packet.data {
        Some(Data::TrackDescriptor(of)) if of.name.as_deref() == Some(track) => of.uuid,
        _ => None,
    });
    let event = |packet: &TracePacket| match &packet.data {
        Some(Data::TrackEvent(event)) if event.track_uuid == uuid => {
            Some((event.r#type(), event.name().to_owned(), packet.timestamp()))
        }
        _ => None,
    };
    packets.iter().filter_map(event).collect()
}

fn events(packets: &[TracePacket]) -> impl Iterator<Item = &TrackEvent> {
    packets.iter().filter_map(|packet| match &packet.data {
        Some(Data::TrackEvent(event)) => Some(event),
        _ => None,
    })
}

fn words(on: &[(Type, String, u64)]) -> Vec<(Type, &str)> {
    on.iter().map(|(how, name, _)| (*how, name.as_str())).collect()
}

#[test]
fn a_task_runs_from_its_decision_until_it_leaves_or_another_takes_its_place() {
    let left = Sight::Left { cpu: 1, task: 4, how: MessageKind::TaskYield };
    let standing = Standing { cpus: vec![(0, Some(9)), (1, None)], ..Standing::default() };
    let run = |task| judged(Txn::run(1, task, 0), Outcome::Committed, true);
    let refused = judged(Txn::run(1, 6, 0), Outcome::TaskStale, false);
    let (held, packets) = drawn(standing, &[run(4), refused, left, left, run(5), run(7)], 99);
    assert_eq!((held.decisions, held.lost), (3, 0));
    use Type::{SliceBegin, SliceEnd};
    // What runs at the end is cut there, and what ran at the beginning begins there.
    assert_eq!(words(&on(&packets, "CPU 0")), [(SliceBegin, "task 9"), (SliceEnd, "")]);
    let slices = [
        (SliceBegin, "task 4"),
        (SliceEnd, ""),
        (SliceBegin, "task 5"),
        (SliceEnd, ""),
        (SliceBegin, "task 7"),
        (SliceEnd, ""),
    ];
    assert_eq!(words(&on(&packets, "CPU 1")), slices);
    let txns = on(&packets, "CPU 1 txns");
    let names: Vec<&str> = txns.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["committed", "task_stale", "committed", "committed"]);
    assert!(txns.iter().map(|(.., at)| at).is_sorted());
    let decisions = events(&packets).filter(|event| event.categories.iter().any(|of| of == DECISION));
    assert_eq!(decisions.count(), 3);
}

#[test]
fn an_arrow_goes_from_the_stamp_that_was_told_to_what_rests_on_it() {
    let told = Message { task: 4, stamp: 7, ..Message::new(MessageKind::TaskNew, 0) };
    let verdict = Message { task: 4, stamp: 7, ..Message::new(MessageKind::TxnOutcome, 0) };
    let nobody = Message::new(MessageKind::CpuAvailable, 0);
    let txn = judged(Txn::run(0, 4, 7), Outcome::Committed, true);
    let other = judged(Txn::run(0, 4, 8), Outcome::TaskStale, false);
    let sights = [Sight::Message(told), Sight::Message(verdict), Sight::Message(nobody), txn, other];
    let (_, packets) = drawn(Standing::default(), &sights, 99);
    let begins: Vec<u64> = events(&packets).flat_map(|event| event.flow_ids.clone()).collect();
    let ends: Vec<u64> = events(&packets).flat_map(|event| event.terminating_flow_ids.clone()).collect();
    assert_eq!((begins.len(), ends.len()), (1, 2));
    assert_eq!((begins[0] == ends[0], begins[0] == ends[1]), (true, false));
}

#[test]
fn agents_and_who_decides_are_slices() {
    let standing = Standing { incarnation: Some(1), ..Standing::default() };
    let (from, fault) = (Level::Ipu, Fault::AgentLate);
    let kinds = [
        EventKind::Fault { incarnation: 1, fault },
        EventKind::Fallback { from, to: Level::OnHost, fault },
        EventKind::AgentEnded { incarnation: 1 },
        EventKind::AgentSeen { incarnation: 2 },
        EventKind::Comeback { from: Level::OnHost, incarnation: 2 },
    ];
    let (_, packets) = drawn(standing, &kinds.map(Sight::Event), 99);
    use Type::{Instant, SliceBegin, SliceEnd};
    let agents =
        [(SliceBegin, "incarnation 1"), (SliceEnd, ""), (SliceBegin, "incarnation 2"), (SliceEnd, "")];
    assert_eq!(words(&on(&packets, "agent")), agents);
    let decides = [
        (SliceBegin, "ipu"),
        (Instant, "agent_late"),
        (SliceEnd, ""),
        (SliceBegin, "on_host"),
        (SliceEnd, ""),
        (SliceBegin, "ipu"),
        (SliceEnd, ""),
    ];
    assert_eq!(words(&on(&packets, "who decides")), decides);
}

#[test]
fn what_had_no_room_is_told() {
    let tick = Sight::Message(Message::new(MessageKind::CpuTick, 0));
    let (held, packets) = drawn(Standing::default(), &[tick; 5], 3);
    assert_eq!((held.messages, held.lost), (3, 2));
    assert!(held.in_words().contains("2 sights more had no room: make the time shorter"));
    assert!(on(&packets, "who decides").iter().any(|(_, name, _)| name == "2 sights more had no room"));
}

#[test]
fn every_event_is_on_a_track_that_was_described_before() {
    let (_, packets) = drawn(
        Standing { cpus: vec![(300, None)], ..Standing::default() },
        &[Sight::Doorbell { cpu: 300, rings: 2 }, judged(Txn::run(7, 1, 1), Outcome::Committed, true)],
        99,
    );
    let mut described = Vec::new();
    for packet in &packets {
        match packet.data.as_ref().unwrap() {
            Data::TrackDescriptor(track) => {
                assert!(track.parent_uuid.is_none_or(|parent| described.contains(&parent)));
                described.push(track.uuid());
            }
            Data::TrackEvent(event) => assert!(described.contains(&event.track_uuid())),
        }
    }
    assert_eq!(packets[0].sequence_flags, Some(SEQ_INCREMENTAL_STATE_CLEARED));
    assert_eq!(described.len(), 1 + 1 + 2 + 2);
}
