//! What a long step shows: a spinner with its time on a terminal, plain lines elsewhere.
//!
//! All of it goes to stderr: stdout belongs to results.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a log without a terminal says that a step is still alive.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// One step that takes long enough to be watched.
///
/// Dropped without [`Step::done`], it ends as failed: an error on its way up needs no care of it.
pub struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
    said: Instant,
    detail: String,
    ended: bool,
}

impl Step {
    /// Starts a step; `what` reads as a task ("building the firmware").
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {prefix} {elapsed} {wide_msg:.dim}"));
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            say(&format!("neap: {what} ..."));
        }
        Self { what, started: Instant::now(), bar, said: Instant::now(), detail: String::new(), ended: false }
    }

    /// Says what the step is at; often is fine.
    pub fn note(&mut self, detail: &str) {
        detail.trim().clone_into(&mut self.detail);
        if let Some(bar) = &self.bar {
            bar.set_message(self.detail.clone());
        }
        self.tick();
    }

    /// Says that the step is still alive, where no terminal shows it by itself.
    pub fn tick(&mut self) {
        if self.bar.is_none() && self.said.elapsed() >= PLAIN_EVERY {
            self.said = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            say(format!("neap: {} ... {seconds} s {}", self.what, self.detail).trim_end());
        }
    }

    /// Ends the step well.
    pub fn done(mut self) {
        self.end("done");
    }

    fn end(&mut self, verdict: &str) {
        self.ended = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        say(&format!("neap: {} ... {verdict} ({:.1} s)", self.what, self.started.elapsed().as_secs_f64()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end("failed");
        }
    }
}

/// One line on stderr. A closed stderr is no reason to stop the work.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
