//! `--kill-agent-after`: the agent's end at a time, asked for as `neap agent kill` does.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::manage::{self, Answer, Asked};

/// How long the agent may take to give its core back by itself, in µs: what `neap agent kill` gives it.
const GRACE_US: u64 = 1000;

/// An agent's end, planned or done.
#[derive(Debug)]
pub struct Kill {
    dir: PathBuf,
    after: Duration,
    done: Option<JoinHandle<Result<()>>>,
}

impl Kill {
    /// One of the run in `dir`, when its load is `after_s` old.
    pub fn planned(dir: &Path, after_s: f64) -> Self {
        Self { dir: dir.to_owned(), after: Duration::from_secs_f64(after_s), done: None }
    }

    /// Does it, if the load is old enough. The run goes on meanwhile.
    pub fn look(&mut self, age: Duration) {
        if self.done.is_none() && age >= self.after {
            let dir = self.dir.clone();
            self.done = Some(thread::spawn(move || kill(&dir)));
        }
    }

    /// What became of it, for the report.
    pub fn in_words(self) -> String {
        let after_s = self.after.as_secs_f64();
        let Some(done) = self.done else {
            return format!("the load was over before the agent was to be killed, after {after_s} s");
        };
        match done.join() {
            Ok(Ok(())) => format!("the agent was killed after {after_s} s, as asked"),
            Ok(Err(error)) => format!("the agent was to be killed after {after_s} s, but {error:#}"),
            Err(_) => format!("killing the agent after {after_s} s panicked"),
        }
    }
}

fn kill(dir: &Path) -> Result<()> {
    match manage::ask(dir, &Asked::Kill { enclave: 0, grace_us: GRACE_US })? {
        Answer::Done(_) => Ok(()),
        Answer::Failed(words) => bail!("{words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_killed_when_it_is_time_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut kill = Kill::planned(dir.path(), 2.0);
        kill.look(Duration::from_secs(1));
        assert!(kill.done.is_none());
        kill.look(Duration::from_secs(2));
        assert!(kill.done.is_some());
        kill.look(Duration::from_secs(3));
        let words = kill.in_words();
        assert!(words.contains("after 2 s, but the host does not listen"), "{words}");
        assert!(Kill::planned(dir.path(), 9.0).in_words().contains("was over before"));
    }
}
