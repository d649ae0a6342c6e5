//! Child processes that end with us, however we end.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use xtask::process;

/// A child that is ended when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Guarded {
    /// Starts `command` as [`process::start`] does.
    pub fn start(mut command: Command) -> Result<Self> {
        Ok(Self { child: process::start(&mut command)?, ended: None })
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end; none when it is still at work after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            let ended = self.ended();
            if ended.is_some() || started.elapsed() >= patience {
                return ended;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it: asks, and when `patience` is over asks no longer.
    pub fn stop(&mut self, patience: Duration) {
        if self.ended().is_some() {
            return;
        }
        if let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            // It is not yet waited for, so the pid is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
        if self.wait(patience).is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(2));
    }
}

/// How a process ended, as the end of a sentence that starts with its name.
pub fn in_words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(0)) => "ended by itself".to_owned(),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let guarded = Guarded::start(sleeper()).unwrap();
        let pid = Pid::from_raw(guarded.id() as i32).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(guarded);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn ends_are_told_apart() {
        let mut killed = Guarded::start(sleeper()).unwrap();
        killed.child().kill().unwrap();
        assert_eq!(in_words(killed.wait(Duration::from_secs(60)).unwrap()), "was killed by signal 9");
        let mut shell = Command::new("sh");
        shell.args(["-c", "exit 3"]);
        let mut failed = Guarded::start(shell).unwrap();
        assert_eq!(in_words(failed.wait(Duration::from_secs(60)).unwrap()), "ended with status 3");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Guarded::start(Command::new("neap-no-such-program")).unwrap_err();
        assert!(error.to_string().contains("neap-no-such-program"), "{error}");
    }
}
