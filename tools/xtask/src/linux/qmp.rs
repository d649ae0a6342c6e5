//! QEMU's control socket, as far as unplugging needs it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to make its socket, and to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection that takes commands.
pub(super) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > ANSWER => {
                    return Err(error).with_context(|| format!("no QEMU listens at {}", socket.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Self(BufReader::new(stream));
        qmp.next("QMP", ANSWER)?;
        qmp.command(&json!({"execute": "qmp_capabilities"}))?;
        Ok(qmp)
    }

    /// Unplugs `device`, and waits until the guest has let it go.
    pub(super) fn unplug(&mut self, device: &str, timeout: Duration) -> Result<()> {
        self.command(&json!({"execute": "device_del", "arguments": {"id": device}}))?;
        let started = Instant::now();
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            let event = self.next("event", left).context("the guest does not let it go")?;
            if event["event"] == "DEVICE_DELETED" && event["data"]["device"] == device {
                return Ok(());
            }
        }
    }

    fn command(&mut self, command: &Value) -> Result<()> {
        let stream = self.0.get_mut();
        stream.write_all(format!("{command}\n").as_bytes()).context("QEMU takes no command")?;
        self.next("return", ANSWER)?;
        Ok(())
    }

    /// The next message that has the key `what`; others are passed over, but for errors.
    fn next(&mut self, what: &str, timeout: Duration) -> Result<Value> {
        let started = Instant::now();
        let mut line = String::new();
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                bail!("QEMU has not said `{what}` within {} s", timeout.as_secs());
            }
            self.0.get_ref().set_read_timeout(Some(left)).context("QEMU's control socket")?;
            match self.0.read_line(&mut line) {
                Ok(0) => bail!("QEMU has ended"),
                Ok(_) => {}
                // What has come of a line stays; the time is up, which is seen above.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error).context("QEMU's control socket"),
            }
            let message: Value =
                serde_json::from_str(&line).with_context(|| format!("QEMU says {line:?}"))?;
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses: {}", error["desc"].as_str().unwrap_or("without a reason"));
            }
            if message.get(what).is_some() {
                return Ok(message);
            }
            line.clear();
        }
    }
}
