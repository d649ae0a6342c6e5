//! What an enclave's host saw over a stretch of time, in order: messages, txns with their outcomes, what ran where, who decided.
//!
//! Nothing is kept unless it was asked for. What is kept has a bound, and what came after that is counted: a view on one
//! timeline may be cut short, and says so.

use std::time::{Duration, Instant};

use neap_abi::{Message, MessageKind, Outcome, Txn};

use crate::event::{EventKind, Level};

/// Sights kept of one enclave, unless fewer are asked for: some 100 MB, and more than half a minute of `neap run`.
pub const SIGHTS_MAX: usize = 1 << 20;

/// Sights that are made room for at once. Nobody waits for a long list to be moved.
const CHUNK: usize = 4096;

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A message went out.
    Message(Message),
    /// A txn was taken and has its verdict.
    Txn(Judged),
    /// A task left its CPU.
    Left {
        /// The CPU.
        cpu: u16,
        /// The task.
        task: u32,
        /// How, as its message says it.
        how: MessageKind,
    },
    /// A CPU heard its doorbell.
    Doorbell {
        /// The CPU.
        cpu: u16,
        /// How often since it last listened.
        rings: u32,
    },
    /// Something was noticed.
    Event(EventKind),
}

/// A txn with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The txn. Of a group's member that another CPU completed only its CPU, its number and its task are told.
    pub txn: Txn,
    /// The verdict.
    pub outcome: Outcome,
    /// Who had decided.
    pub level: Level,
    /// Whether it is one of the run's decisions: it was committed, and runs its task.
    pub is_decision: bool,
    /// Whether it lay in its slot when the CPU came to need it.
    pub prestaged: bool,
}

/// A sight, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Since the host began, in ns.
    pub at_ns: u64,
    /// What.
    pub sight: Sight,
}

/// How things stood when a stretch began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The IPU's agent, if it was alive.
    pub incarnation: Option<u32>,
    /// Who decided.
    pub level: Level,
    /// The CPUs, and what each ran.
    pub cpus: Vec<(u16, Option<u32>)>,
}

/// A stretch of time, while it lasts and after.
#[derive(Clone, Debug)]
pub struct Sights {
    start: Instant,
    /// When the stretch began, since the host did, in ns.
    pub from_ns: u64,
    /// When it was over.
    pub until_ns: u64,
    /// How things stood when it began.
    pub standing: Standing,
    /// What came after the bound and was not kept.
    pub lost: u64,
    room: usize,
    ends: Option<Instant>,
    chunks: Vec<Vec<Seen>>,
}

impl Sights {
    /// A stretch that begins now, of a host that began at `start`: `most` sights at most, and none after `lasts`.
    #[must_use]
    pub fn begin(start: Instant, standing: Standing, most: usize, lasts: Option<Duration>) -> Self {
        let from_ns = start.elapsed().as_nanos() as u64;
        let ends = lasts.and_then(|lasts| Instant::now().checked_add(lasts));
        Self { start, from_ns, until_ns: from_ns, standing, lost: 0, room: most, ends, chunks: Vec::new() }
    }

    /// Takes note of something.
    pub fn note(&mut self, sight: Sight) {
        let now = Instant::now();
        if self.ends.is_some_and(|ends| now >= ends) {
            return;
        }
        self.until_ns = now.duration_since(self.start).as_nanos() as u64;
        if self.room == 0 {
            self.lost += 1;
            return;
        }
        self.room -= 1;
        let seen = Seen { at_ns: self.until_ns, sight };
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(seen),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(seen);
                self.chunks.push(chunk);
            }
        }
    }

    /// Whether nothing more is kept, because its time is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| Instant::now() >= ends)
    }

    /// When the host began.
    #[must_use]
    pub fn start(&self) -> Instant {
        self.start
    }

    /// What was kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.chunks.iter().flatten()
    }

    /// How many of the run's decisions are among it.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.iter().filter(|seen| matches!(seen.sight, Sight::Txn(Judged { is_decision: true, .. }))).count()
            as u64
    }

    /// How many messages are.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.iter().filter(|seen| matches!(seen.sight, Sight::Message(_))).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(cpu: u16) -> Sight {
        Sight::Message(Message::new(MessageKind::CpuTick, cpu))
    }

    #[test]
    fn sights_are_kept_in_order_up_to_their_bound_and_the_rest_is_counted() {
        let most = CHUNK + 3;
        let mut sights = Sights::begin(Instant::now(), Standing::default(), most, None);
        for cpu in 0..most as u16 + 2 {
            sights.note(tick(cpu));
        }
        assert_eq!((sights.iter().count(), sights.lost, sights.messages()), (most, 2, most as u64));
        assert!(sights.iter().map(|seen| seen.at_ns).is_sorted());
        let cpus = sights.iter().map(|seen| match seen.sight {
            Sight::Message(message) => message.cpu,
            other => panic!("{other:?}"),
        });
        assert!(cpus.eq(0..most as u16));
        assert!(sights.from_ns <= sights.until_ns);
    }

    #[test]
    fn nothing_is_kept_after_the_end() {
        let mut sights = Sights::begin(Instant::now(), Standing::default(), 9, Some(Duration::ZERO));
        sights.note(tick(0));
        assert_eq!((sights.iter().count(), sights.lost, sights.is_over()), (0, 0, true));
    }

    #[test]
    fn decisions_are_the_txns_that_run_a_task() {
        let mut sights = Sights::begin(Instant::now(), Standing::default(), 9, None);
        let judged = |is_decision| {
            Sight::Txn(Judged {
                txn: Txn::run(0, 1, 2),
                outcome: Outcome::Committed,
                level: Level::Ipu,
                is_decision,
                prestaged: false,
            })
        };
        [judged(true), judged(false), judged(true), tick(0)].into_iter().for_each(|sight| sights.note(sight));
        assert_eq!(sights.decisions(), 2);
    }
}
