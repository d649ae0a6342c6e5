//! `bench queue`: the message ring against its peers.
//!
//! 1. One run, rounds interleaved: each round measures every queue, and its ratio is the ring's rate over that of the
//!    round's best peer. The median of the ratios is the result.
//! 2. All queues get the same capacity, loops, back-off and verification, and pass items one by one, as messages
//!    come; chunk interfaces stay unused.
//! 3. The budget holds for **turns**: each item is answered before the next is sent, so that a rate is the time of two
//!    hand-overs, and a hand-over is what a decision waits for. **Stream**, one thread writing as fast as there is
//!    room and the other reading, stands beside it without a budget: the ring is slower there than the best.
//! 4. Only rounds on two cores count. On two hardware threads of one core no line moves between caches, and what is
//!    measured is instructions; those rounds are reported apart. Which it was, the hand-over of a bare word tells
//!    ([`distance`]), before and after every measure, whatever the queues' rates.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::Table;
use crossbeam_queue::ArrayQueue;
use ringbuf::traits::Split as _;
use serde_json::{Map, Value, json};

use crate::budget::Budget;
use crate::progress::Step;
use contest::{Contestant, Measure, Pair, Workload};
use contestants::{Item, Ring};
use distance::Probe;
use tally::{ROUNDS, Round, Tally};

mod contest;
mod contestants;
mod distance;
mod tally;

/// Items that each queue holds at a time. heapless keeps one place empty, and is fastest with a power of two.
const CAPACITY: usize = 1024;
const TURNS: Workload = Workload::Turns { in_flight: 1 };
const TURNS_PER_ROUND: u64 = 4_000;
const STREAM_PER_ROUND: u64 = 100_000;
/// How long the rounds of each workload may take; seconds, unless the CPUs share a core.
const TURNS_TIME_MAX: Duration = Duration::from_secs(70);
const STREAM_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the threads rest after a round that does not count: CPUs at rest are those that a machine moves.
const REST: Duration = Duration::from_millis(20);
/// The ring's place among the contestants; the rest are peers.
const RING: usize = 0;
const NAMES: [&str; 5] = ["neap", "rtrb", "heapless", "crossbeam", "ringbuf"];
/// Why the ring is no match for its best peers on a stream.
const WHY_STREAM: &str = "stream has no budget: on a deep queue the peers look at each other's indices once in many \
                          items and move items 16 bytes at a time, where the ring proves each 8-byte word by its tag";

/// Measures the ring and checks its ratio against `queue_ratio_min`.
pub fn run(json: bool) -> Result<()> {
    let ratio_min = Budget::load()?.queue_ratio_min;
    let cpus = contest::cpus()?;
    let rings = [Ring::new(), Ring::new()];
    let mut heapless = Box::new([const { heapless::spsc::Queue::<Item, CAPACITY>::new() }; 2]);
    let [heapless_there, heapless_back] = heapless.as_mut();
    let array = [ArrayQueue::new(CAPACITY), ArrayQueue::new(CAPACITY)];
    let ringbuf = || ringbuf::HeapRb::<Item>::new(CAPACITY).split();
    let mut contestants: [Box<dyn Contestant + '_>; NAMES.len()] = [
        Box::new(Pair::new(rings[0].split()?, rings[1].split()?, cpus)),
        Box::new(Pair::new(rtrb::RingBuffer::new(CAPACITY), rtrb::RingBuffer::new(CAPACITY), cpus)),
        Box::new(Pair::new(heapless_there.split(), heapless_back.split(), cpus)),
        Box::new(Pair::new((&array[0], &array[0]), (&array[1], &array[1]), cpus)),
        Box::new(Pair::new(ringbuf(), ringbuf(), cpus)),
    ];
    let alone_ns = Probe::alone_ns();
    let start = Instant::now();
    let turns = compete(&mut contestants, TURNS, TURNS_PER_ROUND, alone_ns, TURNS_TIME_MAX)?;
    let took = start.elapsed();
    let stream = compete(&mut contestants, Workload::Stream, STREAM_PER_ROUND, alone_ns, STREAM_TIME_MAX)?;
    if json {
        println!("{}", report(&turns, &stream, cpus.len(), alone_ns, ratio_min));
    } else {
        print(&turns, &stream, cpus.len(), alone_ns, ratio_min);
    }
    turns.check(ratio_min, took)
}

/// Runs rounds until enough of them count, for `time_max` at most; each starts with another queue.
fn compete(
    contestants: &mut [Box<dyn Contestant + '_>; NAMES.len()],
    workload: Workload,
    items: u64,
    alone_ns: f64,
    time_max: Duration,
) -> Result<Tally> {
    let mut step = Step::start(format!("measuring the queues, {}", workload.name()));
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut round = 0;
    while tally.cores.len() < ROUNDS && start.elapsed() < time_max {
        let mut measures = [Measure::default(); NAMES.len()];
        for turn in 0..NAMES.len() {
            let who = (round + turn) % NAMES.len();
            measures[who] = contestants[who].measure(workload, items)?;
            tally.disturbed += measures[who].disturbed;
        }
        round += 1;
        if !tally.add(Round::new(measures), alone_ns) {
            thread::sleep(REST);
        }
        step.note(&format!("{} of {ROUNDS} rounds on two cores", tally.cores.len()));
    }
    step.done();
    Ok(tally)
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The JSON object; its keys stay. What no round counted for is null.
fn report(turns: &Tally, stream: &Tally, cpus: usize, alone_ns: f64, ratio_min: f64) -> Value {
    let of = |workload: Workload, tally: &Tally, items: u64| {
        let medians = tally.medians();
        let medians = medians.as_ref();
        let queues: Map<String, Value> = NAMES
            .iter()
            .enumerate()
            .map(|(who, &name)| {
                (
                    name.to_owned(),
                    json!({ "items_per_s_median": medians.map(|m| m.items_per_s[who].round()) }),
                )
            })
            .collect();
        json!({
            "workload": workload.name(),
            "items_per_round": items,
            "rounds": tally.cores.len(),
            "queues": queues,
            "best_peer": medians.map(|m| NAMES[m.best_peer]),
            "ratio_to_best_median": medians.map(|m| rounded(m.ratio)),
            "hand_over_ns_median": medians.map(|m| rounded(m.hand_over_ns)),
            "shared_core": {
                "rounds": tally.shared_core.len(),
                "ratio_to_best_median": tally.shared_core_ratio().map(rounded),
            },
            "moved_and_discarded": tally.moved,
            "disturbed_and_retaken": tally.disturbed,
        })
    };
    let mut stream = of(Workload::Stream, stream, STREAM_PER_ROUND);
    stream["note"] = json!(WHY_STREAM);
    let mut whole = json!({
        "bench": "queue",
        "item_bytes": 64,
        "neap_payload_bits_per_word": neap_abi::line::PAYLOAD_BITS,
        "one_by_one": true,
        "capacity": CAPACITY,
        "cpus": cpus,
        "ratio_min": ratio_min,
        "shared_core_below_ns": rounded(alone_ns * distance::CORES_FROM),
        // A wrong item ends the run.
        "verified": true,
        "stream": stream,
    });
    if let (Value::Object(whole), Value::Object(turns)) = (&mut whole, of(TURNS, turns, TURNS_PER_ROUND)) {
        whole.extend(turns);
    }
    whole
}

fn print(turns: &Tally, stream: &Tally, cpus: usize, alone_ns: f64, ratio_min: f64) {
    println!(
        "64-byte items (of which neap's lines carry 56 bits per word, beside the tag), {CAPACITY} places, two threads \
         on {cpus} CPUs, one by one, each verified; medians of interleaved rounds on two cores"
    );
    let tallies = [turns, stream];
    let medians = tallies.map(Tally::medians);
    let mut table = Table::new();
    table.set_header(["", "turns (round trips/s)", "stream (items/s)"]);
    let mut row = |what: &str, cells: [Option<String>; 2]| {
        let [turns, stream] = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
        table.add_row([what, &turns, &stream]);
    };
    let each =
        |of: &dyn Fn(&tally::Medians) -> String| [medians[0].as_ref().map(of), medians[1].as_ref().map(of)];
    for (who, name) in NAMES.iter().enumerate() {
        row(name, each(&|m| format!("{:.0}", m.items_per_s[who])));
    }
    row("ratio to the best peer", each(&|m| format!("{:.2}", m.ratio)));
    row("hand-over of a bare word", each(&|m| format!("{:.0} ns", m.hand_over_ns)));
    row("rounds", tallies.map(|tally| Some(tally.cores.len().to_string())));
    row(
        "rounds on one core's two threads, their ratio",
        tallies.map(|tally| {
            let ratio = tally.shared_core_ratio().map(|ratio| format!(", {ratio:.2}")).unwrap_or_default();
            Some(format!("{}{ratio}", tally.shared_core.len()))
        }),
    );
    row("rounds in which the CPUs moved", tallies.map(|tally| Some(tally.moved.to_string())));
    row("measures disturbed and retaken", tallies.map(|tally| Some(tally.disturbed.to_string())));
    println!("{table}");
    println!("turns are held to a ratio of {ratio_min}; {WHY_STREAM}");
    println!(
        "one core's two threads hand a bare word over in less than {:.0} ns here; those rounds do not count",
        alone_ns * distance::CORES_FROM
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tally::tests::tally;

    #[test]
    fn the_report_s_keys_stay() {
        let report = report(&tally(61, 5, 3), &tally(7, 0, 0), 2, 3.2, 1.2);
        let all = ["item_bytes", "capacity", "cpus", "ratio_min", "neap_payload_bits_per_word", "one_by_one"];
        let of_each =
            ["workload", "items_per_round", "rounds", "queues", "disturbed_and_retaken", "shared_core"];
        for (object, keys) in [(&report, &all[..]), (&report, &of_each), (&report["stream"], &of_each)] {
            for &key in keys {
                assert!(object[key] != Value::Null, "{key}");
            }
        }
        assert_eq!((&report["bench"], &report["verified"]), (&json!("queue"), &json!(true)));
        assert_eq!((&report["workload"], &report["stream"]["workload"]), (&json!("turns"), &json!("stream")));
        assert_eq!((&report["rounds"], &report["stream"]["rounds"]), (&json!(61), &json!(7)));
        assert_eq!((&report["best_peer"], &report["ratio_to_best_median"]), (&json!("rtrb"), &json!(1.5)));
        assert_eq!(report["queues"]["neap"]["items_per_s_median"], json!(150.0));
        assert_eq!(report["shared_core"], json!({ "rounds": 5, "ratio_to_best_median": 0.9 }));
        assert_eq!(report["moved_and_discarded"], json!(3));
    }

    #[test]
    fn a_report_without_rounds_has_its_keys_still() {
        let report = report(&tally(0, 5, 0), &tally(0, 0, 0), 2, 3.2, 1.2);
        assert_eq!((&report["rounds"], &report["ratio_to_best_median"]), (&json!(0), &Value::Null));
        assert!(report.as_object().is_some_and(|report| report.contains_key("best_peer")));
        assert_eq!(report["shared_core"]["rounds"], json!(5));
    }
}
