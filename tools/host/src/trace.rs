//! Traces: the messages that an agent was told, and what it decided after each.
//!
//! A trace is replayed by the messages' clock (`docs/wire.md`, Time) and one message at a time: the next is sent only when the
//! agent has dealt with the last and looks for more. So its decisions rest on the messages alone, and are the same wherever it
//! runs, bit for bit, but for its incarnation, which its home gives it, and its ledger, which says how long its home took: both
//! are left out where decisions are read ([`Watch::look`]), and so of what is recorded and of what is compared.
//!
//! A file is a JSON object to a line: first what the trace is of, then each message with the decisions after it, both as the
//! eight words of their payload. The last lines of what is superseded within one message are not among the decisions, but their
//! numbers are.

use std::io::{self, BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_abi::control::policy_id;
use neap_abi::hello::feature;
use neap_abi::line::PAYLOAD_MASK;
use neap_abi::{Clock, Message, MessageKind, Payload, RegionKind, Txn, VERSION};
use neap_agent::{AgentError, Bindings, Doorbell, Idle};
use neap_policies::{TASKS, Task};
use neap_queue::{Line, SlotReader};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::link::Link;
use crate::policies;
use crate::window::HostWindowError;
use crate::wire::Wire;

/// The format's number.
const FORMAT: u32 = 1;
/// Lines in the ring of an agent in this thread.
const RING_LINES: usize = 8;

/// A message and what was decided after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The message.
    pub message: Message,
    /// The decisions, in the order in which they were made, with no incarnation.
    pub decisions: Vec<Txn>,
}

/// What an agent was told, and what it decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its policy.
    pub policy: String,
    /// Host CPUs of its enclave.
    pub cpus: u16,
    /// Where it was recorded, for people.
    pub source: String,
    /// Message by message.
    pub steps: Vec<Step>,
}

/// A file's first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    neap_trace: u32,
    policy: String,
    cpus: u16,
    source: String,
}

/// Its other lines.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    message: Payload,
    decisions: Vec<Payload>,
}

/// Why a file is no trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// It can't be read.
    #[error("the trace can't be read: {0}")]
    Io(#[from] io::Error),
    /// It has no first line.
    #[error("the trace is empty; record one with `neap trace record`")]
    Empty,
    /// A line is not what it should be.
    #[error("line {line} of the trace: {why}")]
    Line {
        /// Which, from 1 on.
        line: usize,
        /// Why.
        why: String,
    },
    /// Another release's.
    #[error("the trace's format is {format}, and this release knows {FORMAT}: record it anew")]
    Format {
        /// Its format.
        format: u32,
    },
    /// A policy that is not shipped.
    #[error("the trace is of policy {policy}, and there are {}", policies::POLICIES.join(", "))]
    Policy {
        /// Its policy.
        policy: String,
    },
}

impl Trace {
    /// Writes it down.
    ///
    /// # Errors
    /// As `to` has them.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let Self { policy, cpus, source, steps } = self;
        let (policy, source) = (policy.clone(), source.clone());
        let head = Head { neap_trace: FORMAT, policy, cpus: *cpus, source };
        writeln!(to, "{}", serde_json::to_string(&head)?)?;
        for Step { message, decisions } in steps {
            let decisions = decisions.iter().map(Txn::to_payload).collect();
            writeln!(to, "{}", serde_json::to_string(&Entry { message: message.to_payload(), decisions })?)?;
        }
        to.flush()
    }

    /// Reads what [`Trace::write`] has written, or somebody else.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn read(from: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = (1..).zip(from.lines());
        let wrong = |line, why: &dyn ToString| TraceError::Line { line, why: why.to_string() };
        let (_, head) = lines.next().ok_or(TraceError::Empty)?;
        let head: Head = serde_json::from_str(&head?).map_err(|error| wrong(1, &error))?;
        let Head { neap_trace: format, policy, cpus, source } = head;
        if format != FORMAT {
            return Err(TraceError::Format { format });
        }
        if !policies::POLICIES.contains(&policy.as_str()) {
            return Err(TraceError::Policy { policy });
        }
        if cpus == 0 || cpus > neap_abi::CPUS_MAX {
            let why = format!("{cpus} CPUs; an enclave has 1 to {}", neap_abi::CPUS_MAX);
            return Err(TraceError::Line { line: 1, why });
        }
        let mut steps = Vec::new();
        for (line, text) in lines {
            let entry: Entry = serde_json::from_str(&text?).map_err(|error| wrong(line, &error))?;
            let all = entry.decisions.iter().chain([&entry.message]).flatten();
            if let Some(word) = all.into_iter().find(|&&word| word & !PAYLOAD_MASK != 0) {
                return Err(wrong(
                    line,
                    &format!("{word} is no word of a payload: it has more than 56 bits"),
                ));
            }
            let message = Message::from_payload(&entry.message).map_err(|unknown| {
                let (kind, outcome) = (unknown.kind, unknown.outcome);
                wrong(line, &format!("no message has kind {kind} and outcome {outcome}"))
            })?;
            if message.cpu >= cpus {
                return Err(wrong(line, &format!("CPU {}, of {cpus}", message.cpu)));
            }
            if steps.is_empty() && message.kind != MessageKind::ResyncBegin {
                return Err(wrong(line, &"a trace begins with RESYNC_BEGIN: an agent heeds nothing before"));
            }
            let decisions = entry.decisions.iter().map(Txn::from_payload).collect();
            steps.push(Step { message, decisions });
        }
        Ok(Self { policy, cpus, source, steps })
    }

    /// How many decisions there are.
    #[must_use]
    pub fn decisions(&self) -> usize {
        self.steps.iter().map(|step| step.decisions.len()).sum()
    }

    /// The first step after which `decided` is something else than here, from 0 on.
    #[must_use]
    pub fn differs_at(&self, decided: &[Vec<Txn>]) -> Option<usize> {
        let lasts = self.steps.len().min(decided.len());
        let differs = self.steps.iter().zip(decided).position(|(step, decided)| step.decisions != *decided);
        differs.or((self.steps.len() != decided.len()).then_some(lasts))
    }
}

/// Sees what is new in decision slots.
#[derive(Clone, Debug)]
pub struct Watch(Vec<SlotReader>);

impl Watch {
    /// One that has seen what lies in `slots` now.
    #[must_use]
    pub fn over(slots: &[Line]) -> Self {
        let mut watch = Self(vec![SlotReader::default(); slots.len()]);
        watch.look(slots);
        watch
    }

    /// What has come since it last looked, in the order of the decisions, without their agent's incarnation and without their
    /// ledgers.
    pub fn look(&mut self, slots: &[Line]) -> Vec<Txn> {
        let new = self.0.iter_mut().zip(slots).filter_map(|(reader, line)| reader.take(line));
        let mut new: Vec<_> =
            new.map(|taken| Txn { incarnation: 0, ..Txn::from_payload(&taken.payload) }).collect();
        new.sort_by_key(|txn| txn.order);
        new
    }
}

/// Why a trace was not replayed to its end.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The agent did not start.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The window.
    #[error(transparent)]
    Window(#[from] HostWindowError),
    /// The ring was full, though the agent had taken all.
    #[error("message {step}: the ring is full, though the agent has taken all that was in it")]
    Full {
        /// Which message, from 0 on.
        step: usize,
    },
    /// The agent did not take a message.
    #[error(
        "message {step}: the agent has not dealt with it in {waited_ms} ms; look at its log and its epitaphs"
    )]
    Silent {
        /// Which message, from 0 on.
        step: usize,
        /// How long we waited.
        waited_ms: u128,
    },
}

/// Nobody is rung: who replays looks by itself.
struct Nobody;

impl Doorbell for Nobody {
    fn ring(&self, _: u16) {}
}

/// Tells an agent the next message whenever it has nothing to do.
struct Teller<'a> {
    wire: Wire<'a>,
    slots: &'a [Line],
    watch: Watch,
    revoke: &'a AtomicU64,
    messages: &'a mut dyn Iterator<Item = Message>,
    /// A message has been told whose decisions have not been looked at.
    told: bool,
    full: bool,
    decided: Vec<Vec<Txn>>,
}

impl Idle for Teller<'_> {
    fn idle(&mut self, _: u32, _: &mut dyn FnMut() -> bool) {
        if std::mem::take(&mut self.told) {
            self.decided.push(self.watch.look(self.slots));
        }
        match self.messages.next() {
            Some(message) if self.wire.send(message).is_ok() => self.told = true,
            next => {
                self.full = next.is_some();
                self.revoke.store(1, Ordering::Relaxed);
            }
        }
    }

    fn now_ns(&mut self) -> u64 {
        0
    }
}

/// Replays a trace through the agent in this thread, without a link: what it decided after each message.
///
/// # Errors
/// None in practice: an agent that does not start, or a ring that is full.
pub fn replay_here(trace: &Trace) -> Result<Vec<Vec<Txn>>, ReplayError> {
    let fresh = |count: usize| (0..count).map(|_| Line::default()).collect::<Vec<_>>();
    let (messages, slots, control) = (fresh(RING_LINES), fresh(trace.cpus.into()), Line::default());
    let revoke = AtomicU64::new(0);
    let wire = Wire::new(&messages, &slots, &control).map_err(AgentError::Ring)?;
    let mut steps = trace.steps.iter().map(|step| step.message);
    let mut teller = Teller {
        wire,
        slots: &slots,
        watch: Watch::over(&slots),
        revoke: &revoke,
        messages: &mut steps,
        told: false,
        full: false,
        decided: Vec::with_capacity(trace.steps.len()),
    };
    let bindings = Bindings {
        slots: &slots,
        control: &control,
        revoke: &revoke,
        doorbell: Nobody,
        core: 1,
        wake: (0, 0),
        session: 1,
        version: VERSION,
        incarnation: 1,
        taken: 0,
        resyncs: 0,
        clock: Clock::Messages,
    };
    let mut memory = vec![Task::default(); TASKS];
    policies::start(policy_id(&trace.policy), bindings, &messages, &mut memory, &mut teller)?;
    match teller.full {
        true => Err(ReplayError::Full { step: teller.decided.len() }),
        false => Ok(teller.decided),
    }
}

/// Replays a trace over a link at whose other end an agent of its policy runs by the messages' clock, and has been told nothing:
/// what it decided after each message. The agent may take `patience` for each; `progress` is told how many are done.
///
/// # Errors
/// An agent that falls silent.
pub fn replay_over(
    link: &Link<'_>,
    trace: &Trace,
    patience: Duration,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Txn>>, ReplayError> {
    let slots = link.window().lines(link.hello(), RegionKind::Slots)?;
    let slots = &slots[..usize::from(trace.cpus).min(slots.len())];
    let sleeps = link.hello().features & feature::SLEEPS != 0;
    let mut watch = Watch::over(slots);
    let mut decided = Vec::with_capacity(trace.steps.len());
    for (at, step) in trace.steps.iter().enumerate() {
        let number = link.send_message(step.message).map_err(|_| ReplayError::Full { step: at })?;
        let since = Instant::now();
        // Its credits may go out amid its decisions; when it sleeps, it has made them all.
        let is_done = || {
            let agent = link.agent();
            agent.is_some_and(|agent| agent.credits == number.wrapping_add(1) && (agent.asleep || !sleeps))
        };
        while !is_done() {
            let waited = since.elapsed();
            if waited >= patience {
                return Err(ReplayError::Silent { step: at, waited_ms: waited.as_millis() });
            }
            if waited < Duration::from_micros(200) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        decided.push(watch.look(slots));
        progress(at + 1);
    }
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use neap_abi::ledger::DOORBELL_WORD;
    use neap_abi::txn::CREDIT_WORD;
    use neap_abi::{Ledger, TaskFlags};
    use neap_queue::SlotWriter;

    use super::*;

    /// Three tasks for one CPU.
    fn messages() -> Vec<Message> {
        let of = |kind, task: u32, flags: TaskFlags, time_ns| Message {
            task,
            flags,
            time_ns,
            stamp: 1,
            ..Message::new(kind, 0)
        };
        use MessageKind::{ResyncBegin, ResyncCpu, ResyncEnd, ResyncTask, TaskNew};
        let none = neap_abi::message::TASK_NONE;
        vec![
            of(ResyncBegin, none, TaskFlags(0), 5),
            of(ResyncTask, 7, TaskFlags::RUNNABLE, 5),
            of(ResyncCpu, none, TaskFlags::CPU_IDLE, 5),
            of(ResyncEnd, none, TaskFlags(0), 6),
            of(TaskNew, 8, TaskFlags::RUNNABLE, 7),
            of(TaskNew, 9, TaskFlags::RUNNABLE, 9),
        ]
    }

    fn trace(policy: &str) -> Trace {
        let steps = messages().into_iter().map(|message| Step { message, decisions: Vec::new() });
        let mut trace =
            Trace { policy: policy.to_owned(), cpus: 1, source: "a test".to_owned(), steps: steps.collect() };
        let decided = replay_here(&trace).unwrap();
        for (step, decided) in trace.steps.iter_mut().zip(decided) {
            step.decisions = decided;
        }
        trace
    }

    #[test]
    fn what_was_decided_is_decided_again() {
        for policy in policies::POLICIES {
            let trace = trace(policy);
            assert_eq!(trace.differs_at(&replay_here(&trace).unwrap()), None, "{policy}");
            let first = &trace.steps[3].decisions;
            assert_eq!((first.len(), first[0].task, first[0].incarnation), (1, 7, 0), "{policy}");
            assert_eq!(first[0].credits, 4, "{policy}");
        }
    }

    #[test]
    fn when_it_was_decided_is_no_part_of_what_was_decided() {
        let (early, late) = (Line::default(), Line::default());
        let txn = Txn { id: 1, order: 1, credits: 4, ..Txn::run(0, 7, 1) };
        for (line, ticks, incarnation) in [(&early, 0, 0), (&late, 0x12_3456, 3)] {
            let mut payload = Txn { incarnation, ..txn }.to_payload();
            Ledger::enter(&mut payload, ticks, ticks + 1, ticks + 2);
            SlotWriter::default().write(line, &payload, CREDIT_WORD);
            SlotWriter::resume(1).amend(line, DOORBELL_WORD, Ledger::rung(1, ticks + 3));
        }
        let look = |line: &Line| Watch(vec![SlotReader::default()]).look(std::slice::from_ref(line));
        assert_eq!((look(&early), look(&late)), (vec![txn], vec![txn]));
    }

    #[test]
    fn a_difference_is_found_and_named() {
        let trace = trace("fifo");
        let mut decided = replay_here(&trace).unwrap();
        decided[3][0].stamp ^= 1;
        assert_eq!(trace.differs_at(&decided), Some(3));
        decided.truncate(2);
        assert_eq!(trace.differs_at(&decided), Some(2));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let trace = trace("vm");
        let mut file = Vec::new();
        trace.write(&mut file).unwrap();
        assert_eq!(Trace::read(file.as_slice()).unwrap(), trace);
    }

    #[test]
    fn a_bad_file_is_named_by_its_line() {
        let mut file = Vec::new();
        trace("fifo").write(&mut file).unwrap();
        let text = String::from_utf8(file).unwrap();
        let with = |line: usize, new: &str| {
            let mut lines: Vec<&str> = text.lines().collect();
            lines[line] = new;
            Trace::read(lines.join("\n").as_bytes()).unwrap_err().to_string()
        };
        let lines: Vec<&str> = text.lines().collect();
        assert!(Trace::read(&b""[..]).unwrap_err().to_string().contains("empty"));
        assert!(with(0, "tide").starts_with("line 1 of the trace: "));
        assert!(with(0, &lines[0].replace("fifo", "lifo")).contains("policy lifo, and there are fifo,"));
        assert!(with(0, &lines[0].replace("\"neap_trace\":1", "\"neap_trace\":2")).contains("format is 2"));
        assert!(with(0, &lines[0].replace("\"cpus\":1", "\"cpus\":0")).contains("0 CPUs"));
        assert!(with(1, lines[2]).contains("begins with RESYNC_BEGIN"));
        let words = |words: &str| format!("{{\"message\":[{words}],\"decisions\":[]}}");
        assert!(with(3, &words("255,0,0,0,0,0,0,0")).starts_with("line 4 of the trace: no message has kind"));
        assert!(with(3, &words("0,0,0,0,72057594037927936,0,0,0")).contains("more than 56 bits"));
        assert!(with(3, &words("256,0,0,0,0,0,0,0")).contains("CPU 1, of 1"));
        assert!(with(3, &words("0,0,0")).starts_with("line 4 of the trace: "));
        assert!(with(3, &lines[3][..20]).starts_with("line 4 of the trace: "));
    }
}
