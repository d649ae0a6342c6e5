//! `bench queue`: the message ring against its peers.
//!
//! 1. One run, rounds interleaved: each round measures every queue, and its ratio is the ring's rate over that of the
//!    round's best peer. The median of the ratios is the result.
//! 2. All queues get the same capacity, loops, back-off and verification, and pass items one by one, as messages
//!    come; chunk interfaces stay unused.
//! 3. The budget holds for **stream**: one thread writes as fast as there is room, the other reads. **Turns**, where
//!    each item is answered before the next is sent, are printed beside it without a budget.
//! 4. How far apart the two CPUs are decides much: on two threads of one core no cache line moves at all, and what
//!    is measured is instructions. A virtual machine does not say which it has; the rates tell.

use anyhow::{Result, bail};
use comfy_table::Table;
use crossbeam_queue::ArrayQueue;
use ringbuf::traits::Split as _;
use serde_json::{Map, Value, json};

use crate::budget::Budget;
use contest::{Contestant, Pair, Workload};
use contestants::{Item, Ring};

mod contest;
mod contestants;

/// Items that each queue holds at a time. heapless keeps one place empty, and is fastest with a power of two.
const CAPACITY: usize = 1024;
const ROUNDS: usize = 61;
const TURNS: Workload = Workload::Turns { in_flight: 1 };
const TURNS_PER_ROUND: u64 = 4_000;
const STREAM_PER_ROUND: u64 = 100_000;
/// The ring's place among the contestants; the rest are peers.
const RING: usize = 0;
const NAMES: [&str; 5] = ["neap", "rtrb", "heapless", "crossbeam", "ringbuf"];

/// What the rounds of one workload came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    items_per_s: [f64; NAMES.len()],
    best_peer: usize,
    ratio: f64,
    disturbed: u32,
}

/// Measures the ring and checks its ratio against `queue_ratio_min`.
pub fn run(json: bool) -> Result<()> {
    let ratio_min = Budget::load()?.queue_ratio_min;
    let cpus = contest::cpus();
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
    let stream = compete(&mut contestants, Workload::Stream, STREAM_PER_ROUND)?;
    let turns = compete(&mut contestants, TURNS, TURNS_PER_ROUND)?;
    let threads_on = cpus.iter().flatten().count().max(1);
    if json {
        println!("{}", report(&stream, &turns, threads_on, ratio_min));
    } else {
        print(&stream, &turns, threads_on, ratio_min);
    }
    if stream.ratio.is_nan() || stream.ratio < ratio_min {
        bail!(
            "the ring makes {:.2} of {}'s rate; budget.toml asks for {ratio_min}",
            stream.ratio,
            NAMES[stream.best_peer]
        );
    }
    Ok(())
}

/// Runs the rounds; each starts with another queue.
fn compete(
    contestants: &mut [Box<dyn Contestant + '_>; NAMES.len()],
    workload: Workload,
    items: u64,
) -> Result<Outcome> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    let mut disturbed = 0;
    for round in 0..ROUNDS {
        let mut rates = [0.0; NAMES.len()];
        for turn in 0..NAMES.len() {
            let who = (round + turn) % NAMES.len();
            let measure = contestants[who].measure(workload, items)?;
            rates[who] = measure.items_per_s;
            disturbed += measure.disturbed;
        }
        rounds.push(rates);
    }
    Ok(Outcome { disturbed, ..outcome(&rounds) })
}

/// The medians of `rounds`, each the rates of all queues.
fn outcome(rounds: &[[f64; NAMES.len()]]) -> Outcome {
    let items_per_s = std::array::from_fn(|who| median(rounds.iter().map(|rates| rates[who])));
    let best = |rates: &[f64; NAMES.len()]| {
        (0..NAMES.len())
            .filter(|&who| who != RING)
            .max_by(|&a, &b| rates[a].total_cmp(&rates[b]))
            .unwrap_or(RING)
    };
    let ratio = median(rounds.iter().map(|rates| rates[RING] / rates[best(rates)]));
    Outcome { best_peer: best(&items_per_s), items_per_s, ratio, disturbed: 0 }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The JSON object; its keys stay.
fn report(stream: &Outcome, turns: &Outcome, cpus: usize, ratio_min: f64) -> Value {
    let of = |outcome: &Outcome, items: u64| {
        let queues: Map<String, Value> = NAMES
            .iter()
            .zip(outcome.items_per_s)
            .map(|(&name, rate)| (name.to_owned(), json!({ "items_per_s_median": rate.round() })))
            .collect();
        json!({
            "items_per_round": items,
            "queues": queues,
            "best_peer": NAMES[outcome.best_peer],
            "ratio_to_best_median": (outcome.ratio * 1000.0).round() / 1000.0,
            "disturbed_and_retaken": outcome.disturbed,
        })
    };
    let mut whole = json!({
        "bench": "queue",
        "workload": "stream",
        "item_bytes": 64,
        "neap_payload_bits_per_word": neap_abi::line::PAYLOAD_BITS,
        "one_by_one": true,
        "capacity": CAPACITY,
        "rounds": ROUNDS,
        "cpus": cpus,
        "ratio_min": ratio_min,
        // A wrong item ends the run.
        "verified": true,
        "turns": of(turns, TURNS_PER_ROUND),
    });
    if let (Value::Object(whole), Value::Object(stream)) = (&mut whole, of(stream, STREAM_PER_ROUND)) {
        whole.extend(stream);
    }
    whole
}

fn print(stream: &Outcome, turns: &Outcome, cpus: usize, ratio_min: f64) {
    println!(
        "64-byte items (of which neap's lines carry 56 bits per word, beside the tag), {CAPACITY} places, two threads \
         on {cpus} CPU(s), one by one, each verified; medians of {ROUNDS} interleaved rounds"
    );
    let mut table = Table::new();
    table.set_header(["", "stream (items/s)", "turns (round trips/s)"]);
    for (who, name) in NAMES.iter().enumerate() {
        table.add_row([
            (*name).to_owned(),
            format!("{:.0}", stream.items_per_s[who]),
            format!("{:.0}", turns.items_per_s[who]),
        ]);
    }
    table.add_row([
        "ratio to the best peer".to_owned(),
        format!("{:.2}", stream.ratio),
        format!("{:.2}", turns.ratio),
    ]);
    table.add_row([
        "disturbed and retaken".to_owned(),
        stream.disturbed.to_string(),
        turns.disturbed.to_string(),
    ]);
    println!("{table}");
    println!("stream is held to a ratio of {ratio_min}; turns have no budget");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_counts_against_its_own_best_peer() {
        let rounds = [
            [150.0, 100.0, 10.0, 10.0, 50.0],
            [300.0, 100.0, 10.0, 10.0, 200.0],
            [20.0, 10.0, 1.0, 1.0, 5.0],
        ];
        let outcome = outcome(&rounds);
        assert_eq!((outcome.ratio, NAMES[outcome.best_peer]), (1.5, "rtrb"));
        assert_eq!(outcome.items_per_s, [150.0, 100.0, 10.0, 10.0, 50.0]);
    }

    #[test]
    fn the_report_s_keys_stay() {
        let outcome = || outcome(&[[3.0, 1.0, 1.0, 1.0, 2.0]]);
        let report = report(&outcome(), &outcome(), 2, 1.2);
        for key in ["item_bytes", "capacity", "rounds", "items_per_round", "cpus", "ratio_min", "turns"] {
            assert!(report[key] != Value::Null, "{key}");
        }
        assert_eq!((&report["bench"], &report["verified"]), (&json!("queue"), &json!(true)));
        assert_eq!((&report["best_peer"], &report["ratio_to_best_median"]), (&json!("ringbuf"), &json!(1.5)));
        assert_eq!(report["queues"]["neap"]["items_per_s_median"], json!(3.0));
    }
}
