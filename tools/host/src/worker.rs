//! The worker host: a host made of threads. Each host CPU is a thread that runs the task its last txn names, reports
//! every change of state with its stamp, and waits for its next decision.
//!
//! A [`Host`] has CPUs and tasks, and shares them out among [`Enclave`]s that come and go. What an enclave's agent fails
//! to do, others do in its place: first the same policy on the host, then the host itself. Work never stops.

mod cpu;
mod enclave;
mod host;
mod pressure;
mod telling;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use neap_abi::layout::TASKS_USUAL;
use neap_abi::{Clock, VERSION, Version};
use neap_vipu::PeerError;
use thiserror::Error;

use crate::link::{AttachError, Attachment};
use crate::report::Report;
use crate::spare::Spare;
use crate::window::HostWindowError;

pub use enclave::Enclave;
pub use host::{Host, HostConfig, MoveError, with_host};

/// What a task does when a CPU runs it.
pub trait Work: Sync {
    /// Does step `step` (from 0) of request `request`.
    fn step(&self, request: u64, step: u32) -> Step;

    /// What the task of a request is to be told to be. For most, nothing in particular.
    fn nature(&self, request: u64) -> Nature {
        let _ = request;
        Nature::default()
    }
}

/// What the agent is told of a task beside what happens to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// Its service class; 0 for none.
    pub class: u8,
    /// Its group; 0 for none.
    pub group: u32,
    /// Whether it is one of the long ones: latencies of the others are reported apart too.
    pub is_long: bool,
}

/// How a step of a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The task is done.
    Done,
    /// The task goes on, unless it is preempted here: in a process nobody can take a thread's CPU but itself.
    Going,
    /// The task gives up its CPU, and could go on.
    Yield,
    /// The task waits for something that takes so long.
    Block {
        /// How long, in µs.
        for_us: u64,
    },
}

/// Settings of a worker host of one enclave.
#[derive(Clone, Debug)]
pub struct Config {
    /// How it presents itself.
    pub attachment: Attachment,
    /// Vectors of each peer on the link.
    pub vectors: u16,
    /// How long to wait for running and waiting tasks at the end.
    pub drain: Duration,
}

/// How long an agent may owe a decision, unless another time is asked for.
pub const WATCHDOG: Duration = Duration::from_millis(20);
/// How long it may where nobody is to be ended for a busy machine's sake.
const WATCHDOG_PATIENT: Duration = Duration::from_secs(2);

/// Settings of an enclave.
#[derive(Clone, Debug)]
pub struct EnclaveConfig {
    /// The enclave's socket.
    pub socket: PathBuf,
    /// Its host CPUs, by number.
    pub cpus: Vec<u16>,
    /// Its policy.
    pub policy: String,
    /// The policy to attach for: `policy` itself, unless the IPU has no agent for that before one is loaded.
    pub first_policy: String,
    /// Whose time the policy is told.
    pub clock: Clock,
    /// Whether the messages of its first attachment are kept, for a trace.
    pub keeps_messages: bool,
    /// Sights that are kept from its beginning on, at most; 0 for none.
    pub sights_max: usize,
    /// Vectors of each peer on its link.
    pub vectors: u16,
    /// Number of its first attachment; later ones count on from it.
    pub session: u32,
    /// The ABI version to speak; [`VERSION`] but in tests.
    pub version: Version,
    /// How long to wait for the IPU at each step.
    pub timeout: Duration,
    /// How long its agent may owe a decision.
    pub watchdog: Duration,
    /// Tasks that it may have at one time.
    pub tasks_max: u32,
    /// What takes over when its agent fails.
    pub spare: Spare,
}

impl EnclaveConfig {
    /// The usual: FIFO, a watchdog of 20 ms, and as many tasks as there are numbers.
    #[must_use]
    pub fn usual(socket: &Path, vectors: u16, session: u32, cpus: impl IntoIterator<Item = u16>) -> Self {
        Self {
            socket: socket.to_owned(),
            cpus: cpus.into_iter().collect(),
            policy: "fifo".to_owned(),
            first_policy: "fifo".to_owned(),
            clock: Clock::Own,
            keeps_messages: false,
            sights_max: 0,
            vectors,
            session,
            version: VERSION,
            timeout: Duration::from_secs(60),
            watchdog: WATCHDOG,
            tasks_max: TASKS_USUAL,
            spare: Spare::Policy,
        }
    }
}

/// Why an enclave could not be made.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// No attachment.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No link.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// No window.
    #[error(transparent)]
    Window(#[from] HostWindowError),
    /// An enclave without a CPU.
    #[error("an enclave of no CPU can run nothing; give it one")]
    NoCpus,
    /// A CPU that the host does not have.
    #[error("CPU {cpu} was asked for, and this host has {cpus}: use 0 to {}", cpus.saturating_sub(1))]
    NoSuchCpu {
        /// The CPU.
        cpu: u16,
        /// How many there are.
        cpus: u16,
    },
    /// A CPU that another enclave has.
    #[error("CPU {cpu} is another enclave's; move it away first, or use another")]
    CpuTaken {
        /// The CPU.
        cpu: u16,
    },
    /// The IPU has too small a table.
    #[error(
        "the IPU's agents hold {theirs} tasks, and this host numbers {ours}; use an image with a larger table"
    )]
    Tasks {
        /// What the IPU holds.
        theirs: u32,
        /// What the host numbers.
        ours: u32,
    },
}

/// The request was not taken: no task number is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("all {tasks} tasks that this enclave may have are there")]
pub struct Refused {
    /// How many it may have.
    pub tasks: u32,
}

/// Attaches to the IPU on `socket` and is its host, of one enclave with all CPUs, until `drive` returns, which creates the
/// tasks; then waits for what is left, and reports. Its watchdog is patient.
///
/// # Errors
/// Whatever kept it from attaching. A run that went wrong later is a report that says so.
pub fn host<W: Work>(
    socket: &Path,
    config: &Config,
    work: &W,
    drive: impl FnOnce(&Enclave),
) -> Result<Report, WorkerError> {
    let Attachment { cpus, session, policy, clock, version, timeout } = &config.attachment;
    let enclave = EnclaveConfig {
        policy: policy.clone(),
        first_policy: policy.clone(),
        clock: *clock,
        version: *version,
        timeout: *timeout,
        watchdog: WATCHDOG_PATIENT,
        ..EnclaveConfig::usual(socket, config.vectors, *session, 0..*cpus)
    };
    let only = HostConfig { cpus: *cpus, tasks: TASKS_USUAL };
    with_host(&only, work, |host| {
        let enclave = host.create_enclave(enclave)?;
        drive(&enclave);
        host.drain(config.drain);
        // Made above and destroyed by nobody else: its report is there.
        Ok(host.destroy_enclave(enclave.id()).unwrap_or_default())
    })
    .0
}
