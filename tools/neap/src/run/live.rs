//! The live line: one line on a terminal, a word at each phase elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use xtask::progress::say;

use crate::measured::Measured;
use crate::report::{count, per_second, time};
use crate::worker::Stream;

/// Shows where a run is. Gone from the terminal when dropped.
pub struct Live {
    bar: Option<ProgressBar>,
    phase: &'static str,
    last: Option<(f64, u64, u64)>,
    rates: (f64, f64),
    /// Where a command's results go: stdout is a report's, if that is for machines.
    results: Stream,
}

impl Live {
    /// Starts with nothing to show; a command's results are to go to `results`.
    pub fn new(results: Stream) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, phase: "", last: None, rates: (0.0, 0.0), results }
    }

    /// Passes on what a command wrote.
    pub fn said(&self, stream: Stream, text: &str) {
        let write = || match (stream, self.results) {
            (Stream::Out, Stream::Out) => {
                io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush())
            }
            _ => io::stderr().write_all(text.as_bytes()),
        };
        // Who has seen enough and gone is no reason to end a run.
        let _ = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
    }

    /// Says which phase the run is in, and how far.
    pub fn phase(&mut self, phase: &'static str, detail: &str) {
        if let Some(bar) = &self.bar {
            if self.phase != phase {
                bar.reset_elapsed();
            }
            bar.set_message(format!("{phase} {detail}"));
        } else if self.phase != phase {
            say(&format!("neap: {phase} ..."));
        }
        self.phase = phase;
    }

    /// Shows the figures so far.
    pub fn figures(&mut self, m: &Measured) {
        let now = (m.elapsed_s, m.requests_offered, m.decisions);
        let (then_s, requests, decisions) = self.last.unwrap_or_default();
        // Rates of the last half second or so: those of the whole run would hide what happens now.
        if now.0 - then_s >= 0.5 {
            self.rates = (
                per_second(now.1.saturating_sub(requests), now.0 - then_s),
                per_second(now.2.saturating_sub(decisions), now.0 - then_s),
            );
            self.last = Some(now);
        }
        let line = if m.requests_offered > 0 { line(m, self.rates) } else { command_line(m, self.rates.1) };
        self.phase("running", &line);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The figures in one line.
fn line(m: &Measured, (requests_per_s, decisions_per_s): (f64, f64)) -> String {
    format!(
        "{} requests/s · {} decisions/s · {} waiting · p50 {} · p99 {}",
        count(requests_per_s.round() as u64),
        count(decisions_per_s.round() as u64),
        count(m.queue_depth_now()),
        time(m.request.p50),
        time(m.request.p99),
    )
}

/// Those of a run whose load is a command.
fn command_line(m: &Measured, decisions_per_s: f64) -> String {
    let decides = m.enclaves.first().map_or("", |enclave| enclave.level.as_str());
    format!(
        "{} decisions · {} decisions/s · decides: {decides}",
        count(m.decisions),
        count(decisions_per_s.round() as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn the_line_says_it_all() {
        assert_eq!(
            line(&example().measured, (2999.6, 3301.0)),
            "3,000 requests/s · 3,301 decisions/s · 20 waiting · p50 180 µs · p99 1.20 ms"
        );
    }
}
