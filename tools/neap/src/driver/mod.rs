//! The kernel driver: what it says of itself, for each device a directory in debugfs with `key value` lines; the agents behind
//! its devices; and the class that it schedules.

pub mod agents;
pub mod class;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where debugfs shows the driver's devices.
pub const DEBUGFS: &str = "/sys/kernel/debug/neap";

/// One device: one PCI function, one enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number, as in `/dev/neap0`.
    pub number: u32,
    dir: PathBuf,
}

/// How it stands with a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Who decides: `ipu`, `host` (the driver itself, in the order of arrival) or `kernel`.
    pub level: String,
    /// What the agent's control line says.
    pub agent_state: String,
    /// `up` or `down`.
    pub link: String,
    /// The last fault's name; none if there was none.
    pub fault: Option<String>,
    /// The function's address on the bus, if the driver says.
    pub function: Option<String>,
}

impl State {
    /// Whether the IPU's agent decides, or would as soon as there is something to decide.
    pub fn agent_runs(&self) -> bool {
        self.link == "up" && self.agent_state.eq_ignore_ascii_case("running")
    }
}

impl Device {
    /// The devices that there are, by number; none where no driver is loaded.
    pub fn all(debugfs: &Path) -> Vec<Self> {
        let entries = fs::read_dir(debugfs).into_iter().flatten().flatten();
        let mut found: Vec<Self> = entries
            .filter_map(|entry| {
                Some(Self { number: entry.file_name().to_str()?.parse().ok()?, dir: entry.path() })
            })
            .collect();
        found.sort_by_key(|device| device.number);
        found
    }

    /// The device of that number.
    pub fn of(debugfs: &Path, number: u32) -> Self {
        Self { number, dir: debugfs.join(number.to_string()) }
    }

    /// Its file.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/neap{}", self.number))
    }

    /// How it stands with it.
    pub fn state(&self) -> Result<State> {
        let said = self.read("state")?;
        let word = |key: &str| said.get(key).cloned().with_context(|| self.lacks("state", key));
        Ok(State {
            level: word("level")?,
            agent_state: word("agent_state")?,
            link: word("link")?,
            fault: Some(word("fault")?).filter(|fault| fault != "none"),
            function: said.get("function").cloned(),
        })
    }

    /// What it has counted since it was bound.
    pub fn counters(&self) -> Result<Counters> {
        let said = self.read("counters")?;
        let number = |(key, value): (String, String)| {
            let value = value.parse().with_context(|| format!("{key} is {value}, which is no count"))?;
            Ok((key, value))
        };
        Ok(Counters(said.into_iter().map(number).collect::<Result<_>>()?))
    }

    fn read(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let path = self.dir.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
        pairs(&text).with_context(|| path.display().to_string())
    }

    fn lacks(&self, name: &str, key: &str) -> String {
        format!(
            "{} has no `{key}`: the driver is of another release than this program",
            self.dir.join(name).display()
        )
    }
}

fn pairs(text: &str) -> Result<BTreeMap<String, String>> {
    let pair = |line: &str| match line.split_once(' ') {
        Some((key, value)) => Ok((key.to_owned(), value.trim().to_owned())),
        None => bail!("`{line}` is no key and value"),
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(pair).collect()
}

/// What a driver has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One of them.
    pub fn of(&self, key: &str) -> Result<u64> {
        let value = self.0.get(key).copied();
        value.with_context(|| {
            format!("the driver counts no `{key}`: it is of another release than this program")
        })
    }

    /// Those whose names begin with `prefix`, without it; zeros are left out.
    pub fn group(&self, prefix: &str) -> BTreeMap<String, u64> {
        let of = |(key, &value): (&String, &u64)| Some((key.strip_prefix(prefix)?.to_owned(), value));
        self.0.iter().filter_map(of).filter(|(_, value)| *value != 0).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A driver that never was: its debugfs as a directory.
    pub struct Debugfs(tempfile::TempDir);

    impl Debugfs {
        pub fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub fn path(&self) -> &Path {
            self.0.path()
        }

        pub fn says(&self, device: &str, name: &str, text: &str) {
            let dir = self.path().join(device);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn devices_are_found_by_number_and_nothing_else_is() {
        let debugfs = Debugfs::new();
        assert!(Device::all(&debugfs.path().join("none")).is_empty());
        for name in ["10", "2", "version"] {
            debugfs.says(name, "state", "");
        }
        let numbers: Vec<u32> = Device::all(debugfs.path()).iter().map(|device| device.number).collect();
        assert_eq!(numbers, [2, 10]);
    }

    #[test]
    fn state_and_counters_are_read_and_what_lacks_is_named() {
        let debugfs = Debugfs::new();
        debugfs.says("0", "state", "level ipu\nagent_state Running\nlink up\nfault none\ntasks 1024\n");
        debugfs.says(
            "0",
            "counters",
            "decisions 7\noutcome_committed 6\noutcome_task_gone 0\nfault_agent_dead 1\n",
        );
        let device = &Device::all(debugfs.path())[0];
        let state = device.state().unwrap();
        assert!(state.agent_runs() && state.fault.is_none() && state.level == "ipu");
        let counters = device.counters().unwrap();
        assert_eq!(counters.of("decisions").unwrap(), 7);
        assert_eq!(counters.group("outcome_"), [("committed".to_owned(), 6)].into());
        assert_eq!(counters.group("fault_")["agent_dead"], 1);
        let error = counters.of("messages").unwrap_err().to_string();
        assert!(error.contains("`messages`") && error.contains("another release"), "{error}");
        debugfs.says("0", "state", "level ipu\nlink up\nfault agent_dead\n");
        let error = device.state().unwrap_err().to_string();
        assert!(error.contains("`agent_state`") && error.contains("0/state"), "{error}");
        debugfs.says("0", "counters", "decisions many\n");
        assert!(format!("{:#}", device.counters().unwrap_err()).contains("decisions is many"));
    }
}
