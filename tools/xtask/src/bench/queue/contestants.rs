//! The queues that are compared, each behind the same two traits, one item at a time.
//!
//! Every queue is used as its documentation says is fastest for single items, and gets its items on 64-byte
//! boundaries, so that none has to touch two cache lines for one payload.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use neap_queue::{Consumer, Line, Producer};
use ringbuf::traits::{Consumer as _, Producer as _};

use super::CAPACITY;

/// What passes through a queue: eight words, of which the ring's lines carry 56 bits each.
pub type Words = [u64; 8];

/// The peers' item.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Item(Words);

/// The writing end of a queue.
pub trait Sender: Send {
    /// Whether there was room for `words`.
    fn push(&mut self, words: Words) -> bool;
}

/// The reading end of a queue.
pub trait Receiver: Send {
    /// The next item, if there is one.
    fn pop(&mut self) -> Option<Words>;
}

/// Lines that the ring's reader takes before it returns their credits.
const CREDIT_BATCH: u32 = CAPACITY as u32 / 4;

/// The way back of the ring's credits, on a cache line of its own (x86 fetches them in pairs).
#[derive(Default)]
#[repr(align(128))]
pub struct Credits(AtomicU32);

/// The ring's lines and credits.
pub struct Ring {
    lines: Vec<Line>,
    credits: Credits,
}

impl Ring {
    /// A fresh ring of [`CAPACITY`] lines.
    pub fn new() -> Self {
        Self { lines: (0..CAPACITY).map(|_| Line::default()).collect(), credits: Credits::default() }
    }

    /// Its two ends.
    pub fn split(&self) -> Result<(RingSender<'_>, RingReceiver<'_>)> {
        Ok((
            RingSender { producer: Producer::new(&self.lines)?, credits: &self.credits.0 },
            RingReceiver { consumer: Consumer::new(&self.lines)?, credits: &self.credits.0 },
        ))
    }
}

/// The ring's writer, which looks for credits only when it knows of no room.
pub struct RingSender<'a> {
    producer: Producer<'a>,
    credits: &'a AtomicU32,
}

impl RingSender<'_> {
    /// Kept apart from the path of every line.
    #[cold]
    #[inline(never)]
    fn fetch_credits(&mut self) {
        let taken = self.credits.load(Ordering::Acquire);
        self.producer.credit(taken).expect("the ring's own reader takes what was written, in order");
    }
}

impl Sender for RingSender<'_> {
    #[inline(always)]
    fn push(&mut self, words: Words) -> bool {
        if self.producer.push(&words).is_ok() {
            return true;
        }
        self.fetch_credits();
        self.producer.push(&words).is_ok()
    }
}

/// The ring's reader, which returns credits by batches.
pub struct RingReceiver<'a> {
    consumer: Consumer<'a>,
    credits: &'a AtomicU32,
}

impl Receiver for RingReceiver<'_> {
    #[inline(always)]
    fn pop(&mut self) -> Option<Words> {
        let words = self.consumer.poll()?;
        let taken = self.consumer.taken();
        if taken.is_multiple_of(CREDIT_BATCH) {
            self.credits.store(taken, Ordering::Release);
        }
        Some(words)
    }
}

impl Sender for rtrb::Producer<Item> {
    #[inline(always)]
    fn push(&mut self, words: Words) -> bool {
        rtrb::Producer::push(self, Item(words)).is_ok()
    }
}

impl Receiver for rtrb::Consumer<Item> {
    #[inline(always)]
    fn pop(&mut self) -> Option<Words> {
        rtrb::Consumer::pop(self).ok().map(|item| item.0)
    }
}

impl Sender for heapless::spsc::Producer<'_, Item> {
    #[inline(always)]
    fn push(&mut self, words: Words) -> bool {
        self.enqueue(Item(words)).is_ok()
    }
}

impl Receiver for heapless::spsc::Consumer<'_, Item> {
    #[inline(always)]
    fn pop(&mut self) -> Option<Words> {
        self.dequeue().map(|item| item.0)
    }
}

/// `ArrayQueue` has no ends of its own; both threads share it.
impl Sender for &crossbeam_queue::ArrayQueue<Item> {
    #[inline(always)]
    fn push(&mut self, words: Words) -> bool {
        crossbeam_queue::ArrayQueue::push(self, Item(words)).is_ok()
    }
}

impl Receiver for &crossbeam_queue::ArrayQueue<Item> {
    #[inline(always)]
    fn pop(&mut self) -> Option<Words> {
        crossbeam_queue::ArrayQueue::pop(self).map(|item| item.0)
    }
}

impl Sender for ringbuf::HeapProd<Item> {
    #[inline(always)]
    fn push(&mut self, words: Words) -> bool {
        self.try_push(Item(words)).is_ok()
    }
}

impl Receiver for ringbuf::HeapCons<Item> {
    #[inline(always)]
    fn pop(&mut self) -> Option<Words> {
        self.try_pop().map(|item| item.0)
    }
}
