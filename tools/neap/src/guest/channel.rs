//! The guest's line to the run that started it: a serial port that carries JSON lines out and orders in.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use rustix::termios::{ControlModes, OptionalActions, tcdrain, tcgetattr, tcsetattr};

use crate::worker::Line;

/// The fastest that a serial port of this kind goes by its books; an emulated one goes as fast as it can.
const BAUD: u32 = 115_200;

/// The line.
#[derive(Debug)]
pub struct Channel {
    out: Mutex<File>,
}

impl Channel {
    /// Opens the port and has it pass bytes as they are.
    pub fn open(port: &Path) -> Result<Self> {
        // Not to become our terminal: a hang-up would be our end.
        let flags = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(port);
        let file = file.with_context(|| format!("the channel {} can't be opened", port.display()))?;
        if let Ok(mut settings) = tcgetattr(&file) {
            settings.make_raw();
            settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
            let _ = settings.set_speed(BAUD);
            tcsetattr(&file, OptionalActions::Now, &settings)
                .with_context(|| format!("setting up the channel {}", port.display()))?;
        }
        Ok(Self { out: Mutex::new(file) })
    }

    /// Tells the run something. When nobody is left to hear it, our machine ends soon.
    pub fn tell(&self, line: &Line) {
        if let Ok(mut text) = serde_json::to_string(line) {
            text.push('\n');
            let _ = self.lock().write_all(text.as_bytes());
        }
    }

    /// Waits until all has been sent.
    pub fn drain(&self) {
        let _ = tcdrain(&*self.lock());
    }

    /// Hands what the run says to `hear`, line by line, until nobody is left who could say something.
    pub fn listen(self: &Arc<Self>, hear: impl Fn(Option<&str>) + Send + 'static) -> io::Result<()> {
        let from = self.lock().try_clone()?;
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                hear(Some(line.trim()));
            }
            hear(None);
        });
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, File> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_a_line_each() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let channel = Channel::open(file.path()).unwrap();
        channel.tell(&Line::Attaching);
        channel.tell(&Line::Failed("two\nlines".into()));
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(&lines[..], [Line::Attaching, Line::Failed(words)] if words == "two\nlines"));
    }

    #[test]
    fn a_port_that_is_not_there_is_named() {
        let error = Channel::open(Path::new("/dev/no-such-port")).unwrap_err().to_string();
        assert!(error.contains("/dev/no-such-port"), "{error}");
    }
}
