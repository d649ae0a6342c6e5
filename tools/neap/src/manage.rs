//! `neap agent`: what is asked of the running instance's host, or of this machine's driver, which alone write to their
//! managers' lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use neap_abi::{ImageHeader, VERSION};
use neap_host::device::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xtask::firmware;

use crate::args::{AgentCommand, AgentOptions};
use crate::driver::agents;
use crate::inspect::snapshot::Snapshot;
use crate::print;

/// The socket in a run's directory on which its host listens.
pub const MANAGE: &str = "manage.sock";
/// How long the host may take to answer.
const PATIENCE: Duration = Duration::from_secs(150);

/// What is asked: one JSON line each, with one [`Answer`] each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Asked {
    /// Which agents there are; of all enclaves, or of one.
    List(Option<u16>),
    /// Lay an agent out.
    Load {
        /// In which enclave.
        enclave: u16,
        /// Its image.
        image: PathBuf,
    },
    /// Have an agent take over.
    Replace {
        /// In which enclave.
        enclave: u16,
        /// Its image; without, what is laid out, else the bundle's.
        image: Option<PathBuf>,
        /// How long its trial may last.
        trial_ms: u64,
    },
    /// End the agent.
    Kill {
        /// In which enclave.
        enclave: u16,
        /// How long it may take to give its core back.
        grace_us: u64,
    },
    /// Read whole sectors of the card's disk; how many it has.
    ReadDisk {
        /// By whose window.
        enclave: u16,
        /// The first.
        sector: u32,
        /// Bytes of all.
        bytes: usize,
        /// Where to put them.
        file: PathBuf,
    },
    /// Write whole sectors of it; none makes durable what was written.
    WriteDisk {
        /// By whose window.
        enclave: u16,
        /// The first.
        sector: u32,
        /// What is written.
        file: PathBuf,
    },
    /// Keep what is seen from now on.
    Watch {
        /// For how long.
        seconds: f64,
    },
    /// Write what was seen since, when that time is over.
    Seen {
        /// Where to.
        file: PathBuf,
    },
}

/// What a guest is asked about the only enclave's agent: one JSON line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestAsked {
    /// Lay out the image that is in the window.
    Load {
        /// Its bytes.
        image_bytes: u32,
    },
    /// Have what is laid out take over, else the bundle's.
    Replace {
        /// How long its trial may last.
        trial_ms: u64,
    },
    /// End the agent.
    Kill {
        /// How long it may take to give its core back.
        grace_us: u64,
    },
    /// Have sectors of the card's disk laid into the window.
    ReadDisk {
        /// The first.
        sector: u32,
        /// Bytes of all.
        bytes: u32,
    },
    /// Have what is in the window written to them.
    WriteDisk {
        /// The first.
        sector: u32,
        /// Bytes of all.
        bytes: u32,
    },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done; what it came to.
    Done(Value),
    /// It was not, and why.
    Failed(String),
}

/// Whose agents are managed.
pub enum Host {
    /// A run's, in this directory: its host is asked.
    Run(PathBuf),
    /// This machine's own: its driver is asked.
    Machine(Vec<Device>),
}

impl Host {
    /// Whose are meant.
    pub fn meant(device: Option<&Path>) -> Result<Self> {
        let devices = agents::meant(device)?;
        if !devices.is_empty() {
            return Ok(Self::Machine(devices));
        }
        let running = Snapshot::running();
        running.map(|snapshot| Self::Run(snapshot.dir)).context(
            "nothing runs whose agents could be managed, and no driver has found an IPU here; start a run with \
             `cargo neap run`",
        )
    }

    fn ask(&self, asked: &Asked) -> Result<Value> {
        match self {
            Self::Machine(devices) => agents::carry_out(devices, asked),
            Self::Run(dir) => match ask(dir, asked)? {
                Answer::Done(value) => Ok(value),
                Answer::Failed(words) => bail!("{words}"),
            },
        }
    }
}

/// Does what `neap agent` is asked.
pub fn agent(command: &AgentCommand) -> Result<()> {
    let (AgentCommand::List { device, .. }
    | AgentCommand::Load { to: AgentOptions { device, .. }, .. }
    | AgentCommand::Replace { to: AgentOptions { device, .. }, .. }
    | AgentCommand::Kill { to: AgentOptions { device, .. }, .. }) = command;
    // First of all, because an agent may have to be built.
    let host = Host::meant(device.as_deref())?;
    let (asked, as_json, done) = match command {
        AgentCommand::List { enclave, json, .. } => (Asked::List(*enclave), *json, None),
        AgentCommand::Load { agent, to: AgentOptions { enclave, json, .. } } => {
            let asked = Asked::Load { enclave: *enclave, image: image(agent)? };
            (asked, *json, Some(format!("{agent} is laid out in enclave {enclave}")))
        }
        AgentCommand::Replace { agent, trial_ms, to: AgentOptions { enclave, json, .. } } => {
            let image = agent.as_deref().map(image).transpose()?;
            let asked = Asked::Replace { enclave: *enclave, image, trial_ms: *trial_ms };
            (asked, *json, Some(format!("enclave {enclave} has another agent")))
        }
        AgentCommand::Kill { grace_us, to: AgentOptions { enclave, json, .. } } => {
            let asked = Asked::Kill { enclave: *enclave, grace_us: *grace_us };
            (asked, *json, Some(format!("the agent of enclave {enclave} was ended")))
        }
    };
    let value = host.ask(&asked)?;
    match done {
        _ if as_json => print(&format!("{value:#}")),
        Some(words) => print(&format!("{words}: incarnation {}", value["incarnation"])),
        None => print(&table(&value)),
    }
}

/// Asks the host of the run in `dir`.
pub fn ask(dir: &Path, asked: &Asked) -> Result<Answer> {
    Line::open(dir)?.ask(asked)
}

/// A line to the host of a run: one question after the other.
#[derive(Debug)]
pub struct Line(BufReader<UnixStream>);

impl Line {
    /// To that of the run in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let socket = dir.join(MANAGE);
        let stream = UnixStream::connect(&socket).with_context(|| {
            format!("the host does not listen on {}; it may be starting or ending", socket.display())
        })?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a bound to the wait")?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, asked: &Asked) -> Result<Answer> {
        writeln!(self.0.get_mut(), "{}", serde_json::to_string(asked)?).context("asking the host")?;
        let mut line = String::new();
        self.0.read_line(&mut line).context("waiting for the host's answer")?;
        serde_json::from_str(&line).map_err(|_| anyhow!("the host ended before it answered"))
    }
}

/// How long a client may take over its line.
const CLIENT: Duration = Duration::from_secs(5);

/// Answers one client of a run's host, line by line.
pub fn serve(mut stream: &UnixStream, carry_out: impl Fn(&Asked) -> Result<Answer>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT))?;
    for line in BufReader::new(stream).lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(asked) => carry_out(&asked).unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))),
            Err(_) => Answer::Failed("this run is of another release of neap; use that".to_owned()),
        };
        writeln!(stream, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

/// The image of the agent that is called `agent`: a file, or one that is built from the checkout.
pub fn image(agent: &str) -> Result<PathBuf> {
    let file = Path::new(agent);
    let path = if file.is_file() {
        file.canonicalize().with_context(|| format!("the agent image {agent}"))?
    } else if file.extension().is_some() || agent.contains('/') {
        bail!("there is no agent image {agent}; name a file, or an agent that is built from the checkout");
    } else {
        firmware::agent_image(agent)?
    };
    let bytes = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
    // Here all can be said that is wrong with it; the supervisor looks again.
    ImageHeader::check(&bytes, VERSION).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The list as a table.
fn table(list: &Value) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED.with_rounded_corners());
    table.set_header(["enclave", "decides", "agent", "incarnation", "image", "version", "state"]);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for enclave in list.as_array().into_iter().flatten() {
        for standing in ["running", "standby"] {
            let agent = &enclave[standing];
            if agent.is_null() {
                continue;
            }
            let on_trial = agent["on_trial"] == true;
            table.add_row([
                text(&enclave["enclave"]),
                text(&enclave["level"]),
                text(&agent["name"]),
                text(&agent["incarnation"]),
                text(&agent["image"]),
                text(&agent["version"]),
                if on_trial { format!("{standing}, on trial") } else { standing.to_owned() },
            ]);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_agent_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = image("no/such/agent.img").unwrap_err().to_string();
        assert!(missing.contains("no/such/agent.img") && missing.contains("name a file"), "{missing}");
        let junk = dir.path().join("junk.img");
        fs::write(&junk, [7; 300]).unwrap();
        let error = format!("{:#}", image(junk.to_str().unwrap()).unwrap_err());
        assert!(error.contains("junk.img: agent image: it is no agent's image"), "{error}");
    }

    #[test]
    fn a_list_reads_well() {
        let fifo = json!({ "name": "fifo", "incarnation": 3, "image": "0x01020304", "version": "1.2", "on_trial": true });
        let list = json!([{ "enclave": 1, "level": "ipu", "running": fifo, "standby": null }]);
        let text = table(&list);
        assert!(text.contains("0x01020304") && text.contains("running, on trial"), "{text}");
        assert_eq!(text.matches("fifo").count(), 1);
    }
}
