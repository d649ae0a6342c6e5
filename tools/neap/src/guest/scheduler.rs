//! The loader as a child: the scheduler is attached as long as it lives.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::children::{Guarded, in_words};
use crate::scx::{ATTACHED, ENDED};

/// How long the loader may take: the verifier of an emulated machine is slow.
const ATTACH: Duration = Duration::from_secs(60);
/// How long it may take to detach.
const DETACH: Duration = Duration::from_secs(10);

/// The loader.
pub struct Scheduler {
    loader: Guarded,
    attached: Receiver<()>,
    /// Why schedulers ended that have ended, in order.
    ends: Arc<Mutex<Vec<String>>>,
    remarks: Arc<Mutex<Vec<String>>>,
}

impl Scheduler {
    /// Starts the loader on the object in `file`, and waits until the scheduler is attached.
    pub fn attach(file: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args(["scx", "attach", "--object"]).arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut loader = Guarded::start(command)?;
        let said = loader.child().stdout.take().context("the loader has no stdout")?;
        let remarked = loader.child().stderr.take().context("the loader has no stderr")?;
        let (ends, remarks) = (Arc::default(), Arc::default());
        let (sender, attached) = mpsc::channel();
        let kept = Arc::clone(&ends);
        thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if line == ATTACHED {
                    let _ = sender.send(());
                } else if let Some(why) = line.strip_prefix(ENDED) {
                    push(&kept, why.to_owned());
                }
            }
        });
        let kept = Arc::clone(&remarks);
        thread::spawn(move || {
            for line in BufReader::new(remarked).lines().map_while(Result::ok) {
                push(&kept, line);
            }
        });
        let mut scheduler = Self { loader, attached, ends, remarks };
        scheduler.await_attached()?;
        Ok(scheduler)
    }

    fn await_attached(&mut self) -> Result<()> {
        if self.attached.recv_timeout(ATTACH).is_ok() {
            return Ok(());
        }
        match self.loader.wait(Duration::from_millis(500)) {
            Some(status) => {
                bail!("the scheduler was not attached: its loader {}{}", in_words(status), self.last_words())
            }
            None => bail!("the scheduler was not attached in {} s{}", ATTACH.as_secs(), self.last_words()),
        }
    }

    /// The loader's pid.
    pub fn pid(&self) -> u32 {
        self.loader.id()
    }

    /// How the loader ended, which it must not: nothing attaches the scheduler any more.
    pub fn trouble(&mut self) -> Option<String> {
        let status = self.loader.ended()?;
        Some(format!("the scheduler's loader {}{}", in_words(status), self.last_words()))
    }

    /// Why schedulers ended that have ended.
    pub fn ends(&self) -> Vec<String> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the scheduler out of the kernel.
    pub fn detach(mut self) {
        self.loader.stop(DETACH);
    }

    fn last_words(&self) -> String {
        let remarks = self.remarks.lock().unwrap_or_else(PoisonError::into_inner);
        remarks.iter().map(|line| format!("\n  {line}")).collect()
    }
}

fn push(to: &Mutex<Vec<String>>, line: String) {
    to.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}
