//! What a run is made of: the virtual IPU in this process, the agent and the worker host as children.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use neap_abi::{AgentControl, AgentState};
use neap_vipu::{Domain, Server};
use xtask::machine::{Machine, WINDOW_BYTES};

use super::SERIAL;
use super::rundir::RunDir;
use crate::children::Guarded;
use crate::inspect::snapshot::Snapshot;
use crate::manage::MANAGE;
use crate::report::Parameters;
use crate::worker::{AgentOrder, Line, Order, STOP};

/// What the agent's process writes to stderr, in a run's directory.
const AGENT_REMARKS: &str = "agent.err";
/// What the worker host writes there.
const WORKER_REMARKS: &str = "worker.err";

/// Everything that runs. Fields are dropped in order: the worker host, then the agent, then what joined them.
pub struct Parts {
    /// The worker host.
    pub worker: Guarded,
    /// What it tells; closed when it has ended.
    pub lines: Receiver<Line>,
    /// QEMU, or the on-host agent.
    pub agent: Guarded,
    /// How to call the agent's process.
    pub agent_name: &'static str,
    words: Option<ChildStdin>,
    dir: PathBuf,
    _server: Server,
}

impl Parts {
    /// Starts all, with the firmware in QEMU (`card`: the program and the ELF) or the agent on the host.
    /// The host loads `agents`, by enclave.
    pub fn start(
        dir: &RunDir,
        asked: &Parameters,
        card: Option<&(PathBuf, PathBuf)>,
        agents: Vec<Option<PathBuf>>,
    ) -> Result<Self> {
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
        let agent_name = if card.is_some() { "QEMU" } else { "the on-host agent" };
        let mut agent = match card {
            Some((program, elf)) => {
                let (first, bytes) = windows.first().context("a run has an enclave")?;
                let mut machine = Machine::new(u32::from(asked.cores), first, *bytes);
                machine.windows = windows;
                machine.doorbells = sockets.iter().map(|socket| (socket.clone(), vectors)).collect();
                // A supervisor that panics ends the machine, and so is seen at once.
                let cores: Vec<_> = asked.enclaves.iter().map(|enclave| enclave.cores.to_string()).collect();
                machine.bootargs = vec!["neap.exit=1".to_owned(), format!("neap.cores={}", cores.join(","))];
                machine.command(program, elf)?
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

        let manage = dir.path().join(MANAGE);
        let order = Order { sockets, vectors, parameters: asked.clone(), agents, manage };
        let mut worker = ourselves("worker", &serde_json::to_string(&order)?)?;
        worker.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(remarks(dir.path(), WORKER_REMARKS)?);
        let mut worker = Guarded::start(worker)?;
        let words = worker.child().stdin.take();
        let said = worker.child().stdout.take().context("the worker host has no stdout")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                // What is no line of ours is somebody's stray print: not worth a run.
                if let Ok(line) = serde_json::from_str(&line)
                    && sender.send(line).is_err()
                {
                    break;
                }
            }
        });
        Ok(Self { worker, lines, agent, agent_name, words, dir: dir.path().to_owned(), _server: server })
    }

    /// Asks the worker host to end the load and report; one that has ended hears nothing, which its end tells.
    pub fn ask_for_report(&mut self) {
        if let Some(words) = &mut self.words {
            let _ = writeln!(words, "{STOP}").and_then(|()| words.flush());
        }
    }

    /// Ends what still runs: the worker host first, so that its leaving is seen. One that has reported (`orderly`) has
    /// told the agent that it goes, and the agent gets a moment to end well and to say so in its log.
    pub fn stop(&mut self, orderly: bool) {
        if orderly {
            self.worker.wait(Duration::from_secs(2));
            self.await_agent(Duration::from_secs(2));
        }
        self.words = None;
        self.worker.stop(Duration::from_secs(5));
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

    /// The last lines that agent and worker host wrote, for an error.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for (name, file) in
            [("console", SERIAL), (self.agent_name, AGENT_REMARKS), ("worker host", WORKER_REMARKS)]
        {
            let said = fs::read(self.dir.join(file)).unwrap_or_default();
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
