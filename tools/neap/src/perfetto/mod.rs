//! What a worker host saw, as a timeline for Perfetto: a process for each enclave, with tracks for its agent, who decides, its
//! messages, and of each CPU what runs there and the txns that say so.
//!
//! A txn is an arrow's end: the arrow begins at the message that told the stamp on which the decision rests.

mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Instant;

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, Operation, TaskFlags, TxnFlags};
use neap_host::event::{EventKind, Level};
use neap_host::sights::{Judged, Seen, Sight, Sights};
use prost::Message as _;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use schema::{
    Data, DebugAnnotation, EXPLICIT, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED, Trace, TracePacket,
    TrackDescriptor, TrackEvent, Type, Value,
};

/// The category of txns that are the run's decisions.
const DECISION: &str = "decision";

/// One enclave's part of a timeline.
#[derive(Debug)]
pub struct Part<'a> {
    /// The enclave.
    pub enclave: u16,
    /// Its policy.
    pub policy: &'a str,
    /// What was seen.
    pub sights: &'a Sights,
}

/// What a timeline holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Decisions.
    pub decisions: u64,
    /// Messages.
    pub messages: u64,
    /// What had no more room.
    pub lost: u64,
    /// How long it is.
    pub seconds: f64,
}

impl Held {
    /// For people.
    pub fn in_words(&self) -> String {
        let Self { decisions, messages, lost, seconds } = self;
        let lost = if *lost == 0 {
            String::new()
        } else {
            format!("; {lost} sights more had no room: make the time shorter")
        };
        format!(
            "{decisions} decisions and {messages} messages in {seconds:.1} s{lost}; load it at ui.perfetto.dev"
        )
    }
}

/// Writes a timeline.
pub fn write(parts: &[Part<'_>], to: &mut impl Write) -> io::Result<Held> {
    let mut held = Held::default();
    for part in parts {
        Drawn::new(part, to).draw()?;
        let sights = part.sights;
        held.decisions += sights.decisions();
        held.messages += sights.messages();
        held.lost += sights.lost;
        held.seconds = held.seconds.max(sights.until_ns.saturating_sub(sights.from_ns) as f64 / 1e9);
    }
    to.flush()?;
    Ok(held)
}

/// The tracks of an enclave that are not a CPU's, by their rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Track {
    Agent,
    Decides,
    Messages,
    /// What runs on a CPU.
    Runs(u16),
    /// Its txns and doorbells.
    Txns(u16),
}

impl Track {
    /// Its rank among its siblings, from 1 on.
    fn rank(self) -> u32 {
        match self {
            Self::Agent => 1,
            Self::Decides => 2,
            Self::Messages => 3,
            Self::Runs(cpu) => 4 + 2 * u32::from(cpu),
            Self::Txns(cpu) => 5 + 2 * u32::from(cpu),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Agent => "agent".to_owned(),
            Self::Decides => "who decides".to_owned(),
            Self::Messages => "messages".to_owned(),
            Self::Runs(cpu) => format!("CPU {cpu}"),
            Self::Txns(cpu) => format!("CPU {cpu} txns"),
        }
    }
}

/// An enclave's part while it is drawn.
struct Drawn<'a, W> {
    part: &'a Part<'a>,
    to: &'a mut W,
    /// From the host's clock to `CLOCK_BOOTTIME`.
    boot_ns: u64,
    /// Tracks that are described, and whether a slice is open on each.
    open: BTreeMap<Track, bool>,
    began: bool,
}

impl<'a, W: Write> Drawn<'a, W> {
    fn new(part: &'a Part<'a>, to: &'a mut W) -> Self {
        Self { part, to, boot_ns: boot_ns(part.sights.start()), open: BTreeMap::new(), began: false }
    }

    fn draw(mut self) -> io::Result<()> {
        let Sights { from_ns, until_ns, standing, lost, .. } = self.part.sights;
        let (from_ns, until_ns) = (*from_ns, *until_ns);
        self.describe()?;
        if let Some(incarnation) = standing.incarnation {
            self.begin(from_ns, Track::Agent, format!("incarnation {incarnation}"), Vec::new())?;
        }
        self.begin(from_ns, Track::Decides, standing.level.name().to_owned(), Vec::new())?;
        for (cpu, runs) in &standing.cpus {
            self.track(Track::Runs(*cpu))?;
            self.track(Track::Txns(*cpu))?;
            if let Some(task) = runs {
                self.begin(from_ns, Track::Runs(*cpu), format!("task {task}"), Vec::new())?;
            }
        }
        for seen in self.part.sights.iter() {
            self.sight(seen)?;
        }
        if *lost > 0 {
            let words = format!("{lost} sights more had no room");
            self.instant(until_ns, Track::Decides, words, Vec::new())?;
        }
        let open: Vec<Track> = self.open.iter().filter(|(_, open)| **open).map(|(track, _)| *track).collect();
        for track in open {
            self.end(until_ns, track, Vec::new())?;
        }
        Ok(())
    }

    fn sight(&mut self, seen: &Seen) -> io::Result<()> {
        let at_ns = seen.at_ns;
        match seen.sight {
            Sight::Message(message) => self.message(at_ns, &message),
            Sight::Txn(judged) => self.txn(at_ns, &judged),
            Sight::Left { cpu, how, .. } => {
                self.end(at_ns, Track::Runs(cpu), vec![text("ended_by", how.name())])
            }
            Sight::Doorbell { cpu, rings } => {
                let rings = vec![uint("rings", rings)];
                self.instant(at_ns, Track::Txns(cpu), "doorbell".to_owned(), rings)
            }
            Sight::Event(kind) => self.event(at_ns, kind),
        }
    }

    fn message(&mut self, at_ns: u64, message: &Message) -> io::Result<()> {
        let Message { kind, cpu, task, stamp, cpu_stamp, flags, .. } = *message;
        let mut notes = vec![uint("cpu", cpu), uint("cpu_stamp", cpu_stamp)];
        if task != TASK_NONE {
            notes.extend([uint("task", task), uint("stamp", stamp)]);
        }
        let names = [
            (TaskFlags::CPU_IDLE, "cpu_idle"),
            (TaskFlags::RUNNABLE, "runnable"),
            (TaskFlags::ON_CPU, "on_cpu"),
            (TaskFlags::WAS_ON_CPU, "was_on_cpu"),
            (TaskFlags::OVERFLOW, "overflow"),
        ];
        notes.extend(names.into_iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| yes(name)));
        // A verdict is nothing to decide upon: its stamp was told before.
        let begins = task != TASK_NONE && kind != MessageKind::TxnOutcome;
        self.put(at_ns, Track::Messages, |enclave| TrackEvent {
            name: Some(kind.name().to_owned()),
            categories: vec!["message".to_owned()],
            flow_ids: begins.then(|| flow(enclave, task, stamp)).into_iter().collect(),
            debug_annotations: notes,
            ..instant()
        })
    }

    fn txn(&mut self, at_ns: u64, judged: &Judged) -> io::Result<()> {
        let Judged { txn, outcome, level, is_decision, prestaged } = *judged;
        let mut categories = vec!["txn".to_owned()];
        categories.extend(is_decision.then(|| DECISION.to_owned()));
        let mut notes = vec![
            uint("txn", txn.id),
            uint("order", txn.order),
            text("operation", operation(txn.operation)),
            text("decided_by", level.name()),
            uint("credits", txn.credits),
        ];
        if level == Level::Ipu {
            notes.push(uint("incarnation", txn.incarnation));
        }
        if txn.task != TASK_NONE {
            notes.extend([uint("task", txn.task), uint("stamp", txn.stamp)]);
        }
        if txn.flags.has(TxnFlags::CHECK_CPU) {
            notes.push(uint("cpu_stamp", txn.cpu_stamp));
        }
        if txn.slice_ns != 0 {
            notes.push(uint("slice_ns", txn.slice_ns));
        }
        notes.extend(prestaged.then(|| yes("prestaged")));
        notes.extend(txn.flags.has(TxnFlags::PREEMPT).then(|| yes("preempts")));
        let ends = txn.task != TASK_NONE;
        self.put(at_ns, Track::Txns(txn.cpu), |enclave| TrackEvent {
            name: Some(outcome.name().to_owned()),
            categories,
            terminating_flow_ids: ends.then(|| flow(enclave, txn.task, txn.stamp)).into_iter().collect(),
            debug_annotations: notes,
            ..instant()
        })?;
        if is_decision {
            let runs = vec![uint("txn", txn.id), text("decided_by", level.name())];
            self.begin(at_ns, Track::Runs(txn.cpu), format!("task {}", txn.task), runs)?;
        }
        Ok(())
    }

    fn event(&mut self, at_ns: u64, kind: EventKind) -> io::Result<()> {
        match kind {
            EventKind::Attached { incarnation } | EventKind::AgentSeen { incarnation } => {
                self.begin(at_ns, Track::Agent, format!("incarnation {incarnation}"), Vec::new())
            }
            EventKind::AgentEnded { .. } => self.end(at_ns, Track::Agent, Vec::new()),
            EventKind::FirstDecision { .. } => {
                self.instant(at_ns, Track::Agent, "first decision".to_owned(), Vec::new())
            }
            EventKind::Fault { incarnation, fault } => {
                let of = vec![uint("incarnation", incarnation)];
                self.instant(at_ns, Track::Decides, fault.name().to_owned(), of)
            }
            EventKind::Fallback { to, fault, .. } => {
                self.begin(at_ns, Track::Decides, to.name().to_owned(), vec![text("because", fault.name())])
            }
            EventKind::Comeback { incarnation, .. } => {
                let by = vec![uint("incarnation", incarnation)];
                self.begin(at_ns, Track::Decides, Level::Ipu.name().to_owned(), by)
            }
            EventKind::CpuJoined { cpu } => {
                self.instant(at_ns, Track::Txns(cpu), "joined".to_owned(), Vec::new())
            }
            EventKind::CpuLeft { cpu } => {
                self.instant(at_ns, Track::Txns(cpu), "left".to_owned(), Vec::new())
            }
        }
    }

    /// Begins a slice. What lay on the track is over: none of ours lies within another.
    fn begin(
        &mut self,
        at_ns: u64,
        track: Track,
        name: String,
        debug_annotations: Vec<DebugAnnotation>,
    ) -> io::Result<()> {
        self.end(at_ns, track, Vec::new())?;
        let r#type = Some(Type::SliceBegin.into());
        self.put(at_ns, track, |_| TrackEvent {
            name: Some(name),
            debug_annotations,
            r#type,
            ..TrackEvent::default()
        })?;
        self.open.insert(track, true);
        Ok(())
    }

    /// Ends what lies on the track, if anything does.
    fn end(&mut self, at_ns: u64, track: Track, debug_annotations: Vec<DebugAnnotation>) -> io::Result<()> {
        if self.open.get(&track) != Some(&true) {
            return Ok(());
        }
        let r#type = Some(Type::SliceEnd.into());
        self.put(at_ns, track, |_| TrackEvent { debug_annotations, r#type, ..TrackEvent::default() })?;
        self.open.insert(track, false);
        Ok(())
    }

    fn instant(
        &mut self,
        at_ns: u64,
        track: Track,
        name: String,
        debug_annotations: Vec<DebugAnnotation>,
    ) -> io::Result<()> {
        self.put(at_ns, track, |_| TrackEvent { name: Some(name), debug_annotations, ..instant() })
    }

    /// Puts an event on its track; `event` is told of which enclave.
    fn put(&mut self, at_ns: u64, track: Track, event: impl FnOnce(u16) -> TrackEvent) -> io::Result<()> {
        self.track(track)?;
        let event = TrackEvent { track_uuid: Some(self.uuid(track.rank())), ..event(self.part.enclave) };
        self.packet(Some(self.boot_ns.saturating_add(at_ns)), Data::TrackEvent(event))
    }

    /// Describes the enclave.
    fn describe(&mut self) -> io::Result<()> {
        let Part { enclave, policy, .. } = *self.part;
        let process = ProcessDescriptor {
            // A process is what the viewer groups by. Enclaves are counted on from 1: 0 is the kernel's.
            pid: Some(i32::from(enclave) + 1),
            process_name: Some(format!("enclave {enclave} ({policy})")),
        };
        let (uuid, child_ordering) = (Some(self.uuid(0)), Some(EXPLICIT));
        let track =
            TrackDescriptor { uuid, child_ordering, process: Some(process), ..TrackDescriptor::default() };
        self.packet(None, Data::TrackDescriptor(track))
    }

    /// Describes a track, once.
    fn track(&mut self, track: Track) -> io::Result<()> {
        if self.open.contains_key(&track) {
            return Ok(());
        }
        self.open.insert(track, false);
        let descriptor = TrackDescriptor {
            uuid: Some(self.uuid(track.rank())),
            parent_uuid: Some(self.uuid(0)),
            name: Some(track.name()),
            sibling_order_rank: Some(track.rank() as i32),
            ..TrackDescriptor::default()
        };
        self.packet(None, Data::TrackDescriptor(descriptor))
    }

    /// Tracks are named in a space of their enclave's, of which 0 is no track's.
    fn uuid(&self, rank: u32) -> u64 {
        u64::from(self.part.enclave + 1) << 32 | u64::from(rank)
    }

    fn packet(&mut self, timestamp: Option<u64>, data: Data) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.began, true);
        let packet = TracePacket {
            timestamp,
            trusted_packet_sequence_id: Some(u32::from(self.part.enclave) + 1),
            sequence_flags: first.then_some(SEQ_INCREMENTAL_STATE_CLEARED),
            data: Some(data),
        };
        self.to.write_all(&Trace { packet: vec![packet] }.encode_to_vec())
    }
}

/// When an instant was by `CLOCK_BOOTTIME`, in ns: other traces of the machine lie on the same timeline then.
fn boot_ns(at: Instant) -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let now_ns =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    now_ns.saturating_sub(at.elapsed().as_nanos() as u64)
}

/// The arrow from what told a task's stamp to what rests on it. A task's number has 24 bits in every host.
fn flow(enclave: u16, task: u32, stamp: u32) -> u64 {
    u64::from(enclave & 0xff) << 56 | u64::from(task & 0xff_ffff) << 32 | u64::from(stamp)
}

fn operation(bits: u8) -> &'static str {
    match Operation::from_bits(bits) {
        Some(Operation::Withdraw) => "withdraw",
        Some(Operation::Run) => "run",
        Some(Operation::Idle) => "idle",
        None => "unknown",
    }
}

fn instant() -> TrackEvent {
    TrackEvent { r#type: Some(Type::Instant.into()), ..TrackEvent::default() }
}

fn annotation(name: &str, value: Value) -> DebugAnnotation {
    DebugAnnotation { name: Some(name.to_owned()), value: Some(value) }
}

fn uint(name: &str, value: impl Into<u64>) -> DebugAnnotation {
    annotation(name, Value::Uint(value.into()))
}

fn text(name: &str, value: &str) -> DebugAnnotation {
    annotation(name, Value::Text(value.to_owned()))
}

fn yes(name: &str) -> DebugAnnotation {
    annotation(name, Value::Bool(true))
}
