//! Runs of the real program, each in a place of its own, so that what it leaves can be counted.

// No test needs all of it.
#![allow(dead_code)]

pub mod terminal;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A temporary directory and a cache for runs of one test.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("neap-test").tempdir().unwrap() }
    }

    /// `neap` with these arguments, in this place.
    pub fn neap(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neap"));
        command
            .args(arguments)
            .env("TMPDIR", self.tmp())
            .env("NEAP_CACHE", self.dir.path().join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Where the runs' directories are made.
    pub fn tmp(&self) -> PathBuf {
        let tmp = self.dir.path().join("tmp");
        fs::create_dir_all(&tmp).unwrap();
        tmp
    }

    /// A file beside what runs leave.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A small run on the host, with `more` arguments.
    pub fn start(&self, more: &[&str]) -> Running {
        self.start_with_keys("2000", more)
    }

    /// The same with so many keys.
    pub fn start_with_keys(&self, keys: &str, more: &[&str]) -> Running {
        let small = ["run", "--on-host", "--keys", keys, "--rate", "500", "--json"];
        Running { child: Some(self.neap(&[&small, more].concat()).spawn().unwrap()) }
    }

    /// What lies where runs have their directories.
    pub fn left_over(&self) -> Vec<PathBuf> {
        fs::read_dir(self.tmp()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// The instance's directory, as soon as its load is on: the agent and the worker host are up.
    pub fn wait_running(&self, running: &mut Running) -> PathBuf {
        self.wait_decisions(running, 1)
    }

    /// The same, as soon as the agent has said that it made so many decisions.
    pub fn wait_decisions(&self, running: &mut Running, least: u64) -> PathBuf {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "the load has not begun");
            assert!(!running.has_ended(), "ended before its load: {}", running.end().words());
            let found = self.left_over().into_iter().find(|dir| self.decisions(dir) >= least);
            if let Some(dir) = found {
                return dir;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Decisions of the running instance, by `neap status`.
    fn decisions(&self, dir: &Path) -> u64 {
        if !dir.join("run.json").exists() {
            return 0;
        }
        let status = self.neap(&["status", "--json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["agent"]["decisions"].as_u64().unwrap_or(0)
    }
}

/// A run under way; killed when a test gives up on it.
pub struct Running {
    child: Option<Child>,
}

/// How a run ended.
pub struct End {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl End {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.words()))
    }

    pub fn words(&self) -> String {
        format!("status {:?}\nstdout: {}\nstderr: {}", self.code, self.out, self.err)
    }
}

impl From<Output> for End {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// The child of the run that was started with the subcommand `name`.
    pub fn part(&self, name: &str) -> u32 {
        let parent = self.id().to_string();
        let of = |pid: u32| -> Option<(String, String)> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let after = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
            Some((after, fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?))
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid| {
                of(*pid).is_some_and(|(of, line)| of == parent && line.split('\0').nth(1) == Some(name))
            })
            .unwrap_or_else(|| panic!("no part {name} of {parent}"))
    }

    /// Waits for the end by itself.
    pub fn end(&mut self) -> End {
        let mut child = self.child.take().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |stream: &mut dyn Read| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
        };
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("still at work after {} s", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let status = child.wait().unwrap();
        Output { status, stdout: read(&mut out), stderr: read(&mut err) }.into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process of ours.
pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Waits until a process is gone; its parent may be gone too, so it is not ours to wait for.
pub fn wait_gone(pid: u32) {
    let started = Instant::now();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie that nobody collects has ended too.
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
    };
    while !gone() {
        assert!(started.elapsed() < PATIENCE, "process {pid} lives on");
        thread::sleep(Duration::from_millis(20));
    }
}
