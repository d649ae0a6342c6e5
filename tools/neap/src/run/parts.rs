//! What a run is made of: the virtual IPU in this process, the agent and the host as children.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use neap_abi::{AgentControl, AgentState};
use neap_vipu::{Domain, Server};
use xtask::linux::Kit;
use xtask::machine::{Machine, Uefi, WINDOW_BYTES};

use super::SERIAL;
use super::linux::{self, Ear};
use super::rundir::RunDir;
use crate::children::Guarded;
use crate::inspect::snapshot::Snapshot;
use crate::manage::MANAGE;
use crate::report::{HostKind, Parameters};
use crate::worker::{AgentOrder, Line, Order, STOP};

/// What the agent's process writes to stderr, in a run's directory.
const AGENT_REMARKS: &str = "agent.err";
/// What the host writes there.
const HOST_REMARKS: &str = "host.err";

/// What a run is started with.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The QEMU that is the card, and what it boots; none for an agent on the host.
    pub card: Option<(PathBuf, Booted)>,
    /// The guest; none for a worker host.
    pub guest: Option<Kit>,
    /// The image of each enclave's agent, where it is not to be the bundle's.
    pub agents: Vec<Option<PathBuf>>,
    /// Where to write the first enclave's trace, if it is wanted.
    pub trace: Option<PathBuf>,
    /// Where to write the timeline, if it is wanted.
    pub timeline: Option<PathBuf>,
}

/// What a card boots.
#[derive(Clone, Debug)]
pub enum Booted {
    /// This firmware.
    Firmware(PathBuf),
    /// A disk of its own, by UEFI.
    Disk {
        /// The disk.
        disk: PathBuf,
        /// What UEFI keeps.
        variables: PathBuf,
        /// UEFI's code.
        code: PathBuf,
    },
}

/// Everything that runs. Fields are dropped in order: the host, then the agent, then what joined them.
pub struct Parts {
    ear: Option<Ear>,
    /// The worker host, or the guest's QEMU.
    pub host: Guarded,
    /// How to call it.
    pub host_name: &'static str,
    /// What it tells; closed when it has ended.
    pub lines: Receiver<Line>,
    /// QEMU, or the on-host agent.
    pub agent: Guarded,
    /// How to call the agent's process.
    pub agent_name: &'static str,
    words: Option<Words>,
    dir: PathBuf,
    _server: Server,
}

impl Parts {
    /// Starts all.
    pub fn start(dir: &RunDir, asked: &Parameters, programs: &Programs) -> Result<Self> {
        let vectors = asked.vectors();
        let (mut sockets, mut domains, mut windows) = (Vec::new(), Vec::new(), Vec::new());
        for (enclave, window) in dir.windows().iter().enumerate() {
            let socket = dir.path().join(format!("vipu{enclave}.sock"));
            let descriptor = window.descriptor().context("a window's descriptor")?;
            domains.push(Domain::new(&socket, descriptor, vectors));
            windows.push((window.path().to_owned(), WINDOW_BYTES));
            sockets.push(socket);
        }
        let server = Server::start(domains)?;
        let agent_name = match (&programs.card, asked.host) {
            (None, _) => "the on-host agent",
            (Some(_), HostKind::Worker) => "QEMU",
            (Some(_), HostKind::Linux) => "the IPU's QEMU",
        };
        let mut agent = match &programs.card {
            Some((program, booted)) => {
                let (first, bytes) = windows.first().context("a run has an enclave")?;
                let mut machine = Machine::new(u32::from(asked.cores), first, *bytes);
                machine.windows = windows;
                machine.doorbells = sockets.iter().map(|socket| (socket.clone(), vectors)).collect();
                // A supervisor that panics ends the machine, and so is seen at once.
                let cores: Vec<_> = asked.enclaves.iter().map(|enclave| enclave.cores.to_string()).collect();
                machine.bootargs = vec!["neap.exit=1".to_owned(), format!("neap.cores={}", cores.join(","))];
                match booted {
                    Booted::Firmware(elf) => machine.command(program, elf)?,
                    Booted::Disk { disk, variables, code } => {
                        machine.command_of_disk(program, &Uefi { code, variables, disk, by_acpi: false })?
                    }
                }
            }
            None => {
                let order = AgentOrder { sockets: sockets.clone(), vectors };
                ourselves("on-host-agent", &serde_json::to_string(&order)?)?
            }
        };
        agent
            .stdin(Stdio::null())
            .stdout(remarks(dir.path(), SERIAL)?)
            .stderr(remarks(dir.path(), AGENT_REMARKS)?);
        let agent = Guarded::start(agent)?;
        let with = |host: Host| Self {
            ear: host.ear,
            host: host.process,
            host_name: host.name,
            lines: host.lines,
            agent,
            agent_name,
            words: host.words,
            dir: dir.path().to_owned(),
            _server: server,
        };
        Ok(with(match &programs.guest {
            Some(kit) => guest(dir.path(), asked, kit, &sockets)?,
            None => worker_host(dir.path(), asked, programs, sockets)?,
        }))
    }

    /// Asks the host to end the load and report; one that has ended hears nothing, which its end tells.
    pub fn ask_for_report(&mut self) {
        if let Some(words) = &self.words {
            let _ = words.say(STOP);
        }
    }

    /// Ends what still runs: the host first, so that its leaving is seen. One that has reported (`orderly`) has
    /// told the agent that it goes, and the agent gets a moment to end well and to say so in its log.
    pub fn stop(&mut self, orderly: bool) {
        if orderly {
            // A guest switches itself off.
            self.host.wait(Duration::from_secs(if self.ear.is_some() { 10 } else { 2 }));
            self.await_agent(Duration::from_secs(2));
        }
        self.words = None;
        self.host.stop(Duration::from_secs(5));
        self.agent.stop(Duration::from_secs(2));
    }

    /// Waits until the agents say that they have stopped, or have no more to say.
    fn await_agent(&mut self, patience: Duration) {
        let Ok(snapshot) = Snapshot::open(&self.dir, true) else { return };
        let asked = Instant::now();
        for view in &snapshot.views {
            let Ok(hello) = view.hello() else { continue };
            while asked.elapsed() < patience
                && self.agent.ended().is_none()
                && matches!(view.agent(&hello), Ok(Some(AgentControl { state: AgentState::Running, .. })))
            {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The last lines that agent and host wrote, for an error.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for (name, file) in [
            ("console", self.dir.join(SERIAL)),
            (self.agent_name, self.dir.join(AGENT_REMARKS)),
            ("the guest's console", linux::console(&self.dir)),
            (self.host_name, self.dir.join(HOST_REMARKS)),
        ] {
            let said = fs::read(file).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            if !lines.is_empty() {
                let last = lines[lines.len().saturating_sub(12)..].join("\n  ");
                text.push_str(&format!("\n{name}:\n  {last}"));
            }
        }
        text
    }
}

/// What a host hears: a line each, from whoever has something to say.
#[derive(Clone)]
pub struct Words(Arc<Mutex<dyn Write + Send>>);

impl Words {
    /// Those that go into `to`.
    pub fn new(to: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(to)))
    }

    /// Says a line.
    pub fn say(&self, line: &str) -> io::Result<()> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(to, "{line}").and_then(|()| to.flush())
    }
}

/// A host that was started.
struct Host {
    process: Guarded,
    name: &'static str,
    lines: Receiver<Line>,
    words: Option<Words>,
    ear: Option<Ear>,
}

/// Starts the worker host, which loads the programs' agents.
fn worker_host(dir: &Path, asked: &Parameters, programs: &Programs, sockets: Vec<PathBuf>) -> Result<Host> {
    let (vectors, manage) = (asked.vectors(), dir.join(MANAGE));
    let Programs { agents, trace, timeline, .. } = programs.clone();
    let order = Order { sockets, vectors, parameters: asked.clone(), agents, trace, timeline, manage };
    let mut worker = ourselves("worker", &serde_json::to_string(&order)?)?;
    worker.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(remarks(dir, HOST_REMARKS)?);
    let mut process = Guarded::start(worker)?;
    let words = process.child().stdin.take().map(Words::new);
    let said = process.child().stdout.take().context("the worker host has no stdout")?;
    Ok(Host { process, name: "the worker host", lines: lines_of(said), words, ear: None })
}

/// Starts the guest.
fn guest(dir: &Path, asked: &Parameters, kit: &Kit, sockets: &[PathBuf]) -> Result<Host> {
    let socket = sockets.first().context("a run has an enclave")?;
    let mut command = linux::command(dir, asked, kit, socket.clone())?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(remarks(dir, HOST_REMARKS)?);
    let mut process = Guarded::start(command)?;
    let words = process.child().stdin.take().map(Words::new).context("the guest has no stdin")?;
    let said = process.child().stdout.take().context("the guest has no stdout")?;
    let (ear, lines) = Ear::open(dir, asked, lines_of(said), words.clone())?;
    Ok(Host { process, name: "the guest's QEMU", lines, words: Some(words), ear: Some(ear) })
}

/// The lines that come out of `said`. What is no line of ours is somebody's stray print: not worth a run.
fn lines_of(said: impl Read + Send + 'static) -> Receiver<Line> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if let Ok(line) = serde_json::from_str(&line)
                && sender.send(line).is_err()
            {
                break;
            }
        }
    });
    lines
}

/// This same program, as a child.
fn ourselves(command: &str, order: &str) -> Result<Command> {
    let mut child = Command::new(std::env::current_exe().context("finding this program")?);
    child.args([command, order]).stdin(Stdio::null());
    Ok(child)
}

/// A file of the run's directory for what a child writes.
fn remarks(dir: &Path, name: &str) -> Result<File> {
    File::create(dir.join(name)).with_context(|| format!("making the file {name} for a child's remarks"))
}
