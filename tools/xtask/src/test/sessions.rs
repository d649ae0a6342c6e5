//! Stage `sessions`: the release firmware on QEMU, and hosts in this process that do what hosts do: work, die, come back,
//! ask for what is not there, and write nonsense.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::{AgentControl, AgentState, Clock, Message, MessageKind, RegionKind, Tag, VERSION, Version};
use neap_host::link::{AttachError, Attachment, Link};
use neap_host::manager::Manager;
use neap_host::report::Report;
use neap_host::window::{HostWindow, Origin};
use neap_host::worker::{self, Config, Step as WorkStep, Work, WorkerError};
use neap_queue::Producer;
use neap_vipu::Peer;

use super::Verdict;
use crate::agent_image;
use crate::firmware::{self, Kind};
use crate::ipu::{self, VECTORS};
use crate::progress::Step;
use crate::setup;

/// How long the firmware may take to anything, in a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a host does to a running IPU.
type Trial = fn(&mut Ipu) -> Result<()>;

/// What is tried, in this order.
const TRIALS: [(&str, Trial); 7] = [
    ("a host's tasks each run once, in order", works),
    ("a host that died comes back", comes_back),
    ("a policy that is not there is refused by name", asks_for_another_policy),
    ("a message of unknown kind is counted and answered with a call for resync", says_the_unknown),
    ("a flood of messages is taken to the last", floods),
    ("a ring of random bytes ends in the next session's good work", scribbles),
    ("an agent built for the ABI before takes over and works", takes_over_from_before),
];

pub(super) fn run() -> Result<Verdict> {
    let qemu = setup::qemu()?;
    let image = firmware::build(&Kind::Runtime)?;
    let mut verdict = Verdict::default();
    for cores in [2, 8, 16] {
        let mut ipu = Ipu::boot(&qemu, &image.elf, cores)?;
        // The whole list once; on more cores, that it works at all.
        let trials = if cores == 2 { &TRIALS[..] } else { &TRIALS[..1] };
        for (what, trial) in trials {
            let step = Step::start(format!("{cores} cores: {what}"));
            if let Err(error) = trial(&mut ipu) {
                verdict
                    .fail(format!("{cores} cores: {what}: {error:#}\nits console said:\n{}", ipu.console()));
                return Ok(verdict);
            }
            step.done();
            verdict.pass();
        }
    }
    Ok(verdict)
}

/// A running IPU of one enclave, and the sessions that it has had.
pub(super) struct Ipu {
    ipu: ipu::Ipu,
    session: u32,
}

impl Ipu {
    fn boot(qemu: &Path, elf: &Path, cores: u32) -> Result<Self> {
        Ok(Self::of(ipu::Ipu::boot(qemu, elf, cores, 1)?))
    }

    /// One that has had no session yet.
    pub(super) fn of(ipu: ipu::Ipu) -> Self {
        Self { ipu, session: 0 }
    }

    fn socket(&self) -> PathBuf {
        self.ipu.socket(0)
    }

    pub(super) fn console(&mut self) -> String {
        self.ipu.console()
    }

    /// What its loader said that it booted, and what it refused.
    pub(super) fn origin(&self) -> Result<Option<Origin>> {
        Ok(HostWindow::new(self.ipu.window(0).map()?).origin())
    }

    /// A host's settings for the next session.
    fn attachment(&mut self) -> Attachment {
        self.session += 1;
        Attachment {
            cpus: 4,
            session: self.session,
            policy: "fifo".to_owned(),
            clock: Clock::Own,
            version: VERSION,
            timeout: PATIENCE,
        }
    }

    /// Attaches as a host by hand and does `with`; then is not heard of again, as a host that died.
    fn attached(&mut self, with: impl FnOnce(&Link<'_>) -> Result<()>) -> Result<()> {
        self.attached_and_managed(|link, _| with(link))
    }

    /// As [`Ipu::attached`], for one that also manages.
    pub(super) fn managed(&mut self, with: impl FnOnce(&Manager<'_>) -> Result<()>) -> Result<()> {
        self.attached_and_managed(|_, manager| with(manager))
    }

    fn attached_and_managed(
        &mut self,
        with: impl FnOnce(&Link<'_>, &Manager<'_>) -> Result<()>,
    ) -> Result<()> {
        let peer = Peer::connect(&self.socket(), VECTORS, PATIENCE)?;
        let window = HostWindow::new(self.ipu.window(0).map()?);
        let attachment = self.attachment();
        let link = Link::attach(&window, &peer, &attachment)?;
        with(&link, &Manager::new(&window, &peer, link.hello())?)
    }
}

/// Some tasks yield, some block. Each takes a while, so that others come to wait and are decided ahead of time.
struct Tasks;

impl Work for Tasks {
    fn step(&self, request: u64, step: u32) -> WorkStep {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
        match (request % 10, step) {
            (3, 0) => WorkStep::Yield,
            (7, 0) => WorkStep::Block { for_us: 300 },
            _ => WorkStep::Done,
        }
    }
}

/// Tasks of one host's work.
const REQUESTS: u64 = 1000;

/// A host's tasks each run once, in order.
pub(super) fn works(ipu: &mut Ipu) -> Result<()> {
    let attachment = ipu.attachment();
    sound(&worked(ipu, attachment)?)
}

/// A host's tasks, by whatever policy it asks for.
fn worked(ipu: &Ipu, attachment: Attachment) -> Result<Report> {
    let config = Config { attachment, vectors: VECTORS, drain: PATIENCE };
    Ok(worker::host(&ipu.socket(), &config, &Tasks, |host| {
        for request in 0..REQUESTS {
            while host.submit(request).is_err() {
                thread::yield_now();
            }
        }
    })?)
}

/// As [`works`], by another policy, whose agent comes with the firmware.
pub(super) fn works_by(ipu: &mut Ipu, policy: &str) -> Result<()> {
    let attachment = Attachment { policy: policy.to_owned(), ..ipu.attachment() };
    let report = worked(ipu, attachment)?;
    let by_ipu = report.decisions_by_level[0];
    ensure!(
        report.tasks_finished == REQUESTS
            && report.tasks_lost + report.tasks_doubled == 0
            && by_ipu >= REQUESTS
            && report.agent_ended.is_none(),
        "{REQUESTS} tasks by {policy}, but {report:?}"
    );
    Ok(())
}

/// Whether a host's work went as it must.
fn sound(report: &Report) -> Result<()> {
    let sound = report.tasks_finished == REQUESTS
        && report.tasks_lost + report.tasks_doubled + report.fifo_violations == 0
        && report.prestage_hits > 0
        && report.agent_ended.is_none();
    ensure!(sound, "{REQUESTS} tasks, but {report:?}");
    Ok(())
}

fn comes_back(ipu: &mut Ipu) -> Result<()> {
    for _ in 0..3 {
        ipu.attached(|link| {
            for _ in 0..100 {
                // It dies in the middle: whether all fit is not the question.
                let _ = link.send_message(Message::new(MessageKind::TaskNew, 1));
            }
            Ok(())
        })?;
        works(ipu)?;
    }
    Ok(())
}

fn asks_for_another_policy(ipu: &mut Ipu) -> Result<()> {
    let mut attachment = ipu.attachment();
    attachment.policy = "lifo".to_owned();
    let config = Config { attachment, vectors: VECTORS, drain: PATIENCE };
    match worker::host(&ipu.socket(), &config, &Tasks, |_| {}) {
        Err(WorkerError::Attach(AttachError::Refused { state: AgentState::RefusedPolicy, .. })) => works(ipu),
        other => bail!("expected a refusal of the policy, found {other:?}"),
    }
}

/// Waits until what the agent says of itself is as wanted.
fn agent(link: &Link<'_>, wanted: impl Fn(&AgentControl) -> bool) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if link.agent().is_some_and(|agent| wanted(&agent)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("the agent stays at {:?}", link.agent());
}

fn says_the_unknown(ipu: &mut Ipu) -> Result<()> {
    ipu.attached(|link| {
        let messages = link.window().lines(link.hello(), RegionKind::Messages)?;
        let mut raw = Producer::new(messages)?;
        let mut unknown = Message::new(MessageKind::Nop, 0).to_payload();
        unknown[0] |= 0xee;
        let outside = Message::new(MessageKind::TaskNew, 200).to_payload();
        // An agent listens from the first resync on.
        let begin = Message::new(MessageKind::ResyncBegin, 0).to_payload();
        for line in [begin, unknown, outside] {
            ensure!(raw.push(&line).is_ok(), "a fresh ring is full");
        }
        agent(link, |agent| agent.unknown == 2 && agent.resyncs == 2 && agent.credits == 3)
    })?;
    works(ipu)
}

fn floods(ipu: &mut Ipu) -> Result<()> {
    ipu.attached(|link| {
        let mut full = 0u32;
        let start = Instant::now();
        while link.messages() < 20_000 || full == 0 {
            full += u32::from(link.send_message(Message::new(MessageKind::CpuTick, 3)).is_err());
            ensure!(
                start.elapsed() < PATIENCE,
                "{} messages in a minute, {full} times full",
                link.messages()
            );
        }
        let sent = link.messages();
        agent(link, |agent| agent.credits == sent && agent.unknown == 0)
    })?;
    works(ipu)
}

fn scribbles(ipu: &mut Ipu) -> Result<()> {
    const SEED: u64 = 0x6e65_6170;
    let mut state = SEED;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    ipu.attached(|link| {
        let lines = link.window().lines(link.hello(), RegionKind::Messages)?;
        // In the order in which the agent reads, so that it believes a good part of it.
        for lap in 0..4 {
            for line in lines {
                line.publish(&core::array::from_fn(|_| random()), Tag::of_lap(lap));
            }
            thread::sleep(Duration::from_millis(20));
        }
        agent(link, |agent| agent.unknown > 0)
    })
    .with_context(|| format!("seed {SEED:#x}"))?;
    works(ipu)
}

/// The agent of today's sources, alleged to be built for the minor version before: it is spoken to as such.
fn takes_over_from_before(ipu: &mut Ipu) -> Result<()> {
    let before = Version { minor: VERSION.minor - 1, ..VERSION };
    let elf = std::fs::read(firmware::agent("fifo")?.elf)?;
    let image = agent_image::pack_as(&elf, "fifo", before)?;
    let config = Config { attachment: ipu.attachment(), vectors: VECTORS, drain: PATIENCE };
    let mut spoken = Ok(None);
    let report = worker::host(&ipu.socket(), &config, &Tasks, |enclave| {
        spoken = (|| {
            let link = enclave.link();
            let manager = link.manager().context("this IPU's agents can't be managed")?;
            manager.load(Some(&image), "", PATIENCE)?;
            manager.replace("", PATIENCE, PATIENCE)?;
            anyhow::Ok(link.link().agent().map(|agent| agent.version))
        })();
        for request in 0..REQUESTS {
            while enclave.submit(request).is_err() {
                thread::yield_now();
            }
        }
    })?;
    ensure!(spoken? == Some(before), "the newcomer speaks another version");
    sound(&report)?;
    works(ipu)
}
