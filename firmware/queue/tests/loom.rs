//! Every interleaving of small rings and slots, by loom. Lines are shortened: what is explored is the order of words
//! and of credits, and two words have that as eight do.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use neap_queue::{Consumer, Line, Producer, SharedProducer, SlotReader, SlotWriter};

fn ring<const W: usize, const N: usize>() -> Arc<[Line<W>; N]> {
    Arc::new(core::array::from_fn(|_| Line::default()))
}

/// Polls at most `tries` times, as loom needs an end.
fn poll<const W: usize>(consumer: &mut Consumer<'_, W>, tries: usize) -> Option<[u64; W]> {
    (0..tries).find_map(|_| {
        let found = consumer.poll();
        if found.is_none() {
            thread::yield_now();
        }
        found
    })
}

#[test]
fn lines_arrive_whole_and_in_order() {
    loom::model(|| {
        let lines = ring::<2, 2>();
        let theirs = lines.clone();
        let writer = thread::spawn(move || {
            let mut producer = Producer::new(&theirs[..]).unwrap();
            producer.push(&[1, 101]).unwrap();
            producer.push(&[2, 102]).unwrap();
        });
        let mut consumer = Consumer::new(&lines[..]).unwrap();
        let mut next = 1;
        for _ in 0..3 {
            if let Some(payload) = consumer.poll() {
                assert_eq!(payload, [next, next + 100]);
                next += 1;
            }
        }
        writer.join().unwrap();
        while let Some(payload) = consumer.poll() {
            assert_eq!(payload, [next, next + 100]);
            next += 1;
        }
        assert_eq!(next, 3);
    });
}

#[test]
fn a_credited_line_is_free_to_write() {
    loom::model(|| {
        let lines = ring::<2, 2>();
        let credit = Arc::new(AtomicU32::new(0));
        let (theirs, their_credit) = (lines.clone(), credit.clone());
        let writer = thread::spawn(move || {
            let mut producer = Producer::new(&theirs[..]).unwrap();
            let mut written = 0;
            for of in 1..=3 {
                if producer.push(&[of, of + 100]).is_err() {
                    producer.credit(their_credit.load(Ordering::Acquire)).unwrap();
                    if producer.push(&[of, of + 100]).is_err() {
                        break;
                    }
                }
                written = of;
            }
            written
        });
        let mut consumer = Consumer::new(&lines[..]).unwrap();
        let mut next = 1;
        if let Some(payload) = poll(&mut consumer, 2) {
            assert_eq!(payload, [next, next + 100]);
            next += 1;
            credit.store(consumer.taken(), Ordering::Release);
        }
        let written = writer.join().unwrap();
        while let Some(payload) = consumer.poll() {
            assert_eq!(payload, [next, next + 100]);
            next += 1;
        }
        assert_eq!(next, written + 1, "nothing written is lost, nothing taken twice");
    });
}

#[test]
fn two_writers_never_share_a_line() {
    loom::model(|| {
        let lines = ring::<2, 2>();
        let theirs: &'static [Line<2>] = Box::leak(Box::new([Line::default(), Line::default()]));
        drop(lines);
        let producer = Arc::new(SharedProducer::new(theirs).unwrap());
        let other = producer.clone();
        let writer = thread::spawn(move || other.push(&[1, 101]).unwrap());
        producer.push(&[2, 102]).unwrap();
        writer.join().unwrap();
        let mut consumer = Consumer::new(theirs).unwrap();
        let mut seen = [0, 0];
        for place in &mut seen {
            let [a, b] = consumer.poll().unwrap();
            assert_eq!(b, a + 100);
            *place = a;
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    });
}

#[test]
fn a_slot_is_never_torn_and_carries_what_came_before() {
    loom::model(|| {
        let line = Arc::new(Line::<3>::default());
        let before = Arc::new(AtomicU32::new(0));
        let (theirs, their_before) = (line.clone(), before.clone());
        let writer = thread::spawn(move || {
            let mut slot = SlotWriter::default();
            for of in 1..=2u32 {
                their_before.store(of, Ordering::Relaxed);
                slot.write(&theirs, &[u64::from(of), 7, u64::from(of) + 100], 1);
            }
        });
        let mut reader = SlotReader::default();
        let mut last = 0;
        for _ in 0..2 {
            if let Some(taken) = reader.take(&line) {
                let [a, _, b] = taken.payload;
                assert_eq!(b, a + 100);
                assert!(a > last);
                last = a;
                assert!(
                    u64::from(before.load(Ordering::Relaxed)) >= a,
                    "what came before the line is visible"
                );
            }
        }
        writer.join().unwrap();
    });
}
