//! Running other programs: captured, watched and bounded in time.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

/// How long a program may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a line of output, or a change of what [`Watch::life`] reports.
    pub silence: Duration,
    /// Altogether.
    pub total: Duration,
}

impl Limits {
    /// Only the whole is bounded.
    pub const fn total(seconds: u64) -> Self {
        Self { silence: Duration::from_secs(seconds), total: Duration::from_secs(seconds) }
    }
}

/// Who looks on while a program runs.
pub trait Watch {
    /// A line that the program wrote, on either stream.
    fn line(&mut self, _stream: Stream, _line: &str) {}
    /// A figure that moves while the program gets on without writing (bytes downloaded, say).
    fn life(&mut self) -> u64 {
        0
    }
    /// Called about ten times a second.
    fn tick(&mut self) {}
}

/// Nobody.
impl Watch for () {}

impl<W: Watch> Watch for Option<W> {
    fn line(&mut self, stream: Stream, line: &str) {
        if let Some(watch) = self {
            watch.line(stream, line);
        }
    }

    fn life(&mut self) -> u64 {
        self.as_mut().map_or(0, W::life)
    }

    fn tick(&mut self) {
        if let Some(watch) = self {
            watch.tick();
        }
    }
}

impl Watch for crate::progress::Step {
    fn line(&mut self, _stream: Stream, line: &str) {
        self.note(line);
    }
}

/// Which of a program's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its results.
    Out,
    /// Its remarks.
    Err,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Ended by us: no sign of life for that long.
    Silent(Duration),
    /// Ended by us: still at work after that long.
    TooLong(Duration),
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What it wrote to stdout.
    pub out: String,
    /// Both streams, in the order in which their lines came.
    pub all: String,
}

impl Finished {
    /// Whether it ended by itself with status 0.
    pub fn ok(&self) -> bool {
        matches!(self.end, End::Exited(status) if status.success())
    }

    /// How it ended, in words.
    pub fn verdict(&self) -> String {
        match self.end {
            End::Exited(status) => status.to_string(),
            End::Silent(after) => format!("stopped after {} s without a sign of life", after.as_secs()),
            End::TooLong(after) => format!("stopped after {} s", after.as_secs()),
        }
    }

    /// The last lines of its output, for an error.
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.all.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Starts `command` so that the kernel ends it when we are gone, and so that a Ctrl-C on the terminal reaches us and
/// not it: we end it when our report is safe.
///
/// To be called from the main thread: the kernel watches the thread that forks.
pub fn start(command: &mut Command) -> Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    let parent = getpid();
    command.process_group(0);
    // SAFETY: between fork and exec only two system calls are made, which neither allocate nor lock.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Had the parent died before that call, nobody would tell us.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command.spawn().with_context(|| format!("{name} can't be started"))
}

/// Runs `command` with stdin closed and both streams captured, until it ends or `limits` are over.
///
/// The child stays in our process group: Ctrl-C on the terminal reaches it as it reaches us.
/// Fails only where the program can't be started.
pub fn run(command: &mut Command, limits: Limits, watch: &mut dyn Watch) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} can't be started"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        forward(out, Stream::Out, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        forward(err, Stream::Err, sender);
    }

    let started = Instant::now();
    let (mut alive, mut life) = (Instant::now(), watch.life());
    let (mut out, mut all) = (String::new(), String::new());
    // A grandchild may hold the pipes open after the child's end; its lines are then not ours to wait for.
    let mut exited: Option<(ExitStatus, Instant)> = None;
    let end = loop {
        watch.tick();
        let mut closed = false;
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok((stream, line)) => {
                alive = Instant::now();
                watch.line(stream, line.trim_end());
                if stream == Stream::Out {
                    out.push_str(&line);
                }
                all.push_str(&line);
                if started.elapsed() <= limits.total {
                    continue;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                closed = true;
                thread::sleep(Duration::from_millis(5));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if exited.is_none() {
            exited = child.try_wait().context("waiting for a child")?.map(|status| (status, Instant::now()));
        }
        if let Some((status, at)) = exited
            && (closed || at.elapsed() > Duration::from_secs(1))
        {
            break End::Exited(status);
        }
        let now = watch.life();
        if now != life {
            (alive, life) = (Instant::now(), now);
        }
        if started.elapsed() > limits.total {
            stop(&mut child)?;
            break End::TooLong(limits.total);
        }
        if alive.elapsed() > limits.silence {
            stop(&mut child)?;
            break End::Silent(limits.silence);
        }
    };
    Ok(Finished { end, out, all })
}

/// Runs `command` and returns its stdout; a status other than 0 is an error that shows its last words.
pub fn output(command: &mut Command, limits: Limits) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let finished = run(command, limits, &mut ())?;
    if !finished.ok() {
        bail!("{shown}: {}\n{}", finished.verdict(), finished.tail(20));
    }
    Ok(finished.out)
}

/// Ends a child: asks first, so that it can clean up, and 5 s later no longer asks.
pub fn stop(child: &mut Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in this very moment: then there is nothing to ask.
        let _ = kill_process(pid, Signal::TERM);
    }
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(5) {
        if child.try_wait().context("waiting for a child")?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("ending a child")?;
    child.wait().context("waiting for a child")?;
    Ok(())
}

fn forward(stream: impl Read + Send + 'static, which: Stream, to: mpsc::Sender<(Stream, String)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            if to.send((which, String::from_utf8_lossy(&bytes).into_owned())).is_err() {
                break;
            }
            bytes.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_and_the_status_are_kept() {
        let done = run(&mut shell("echo one; echo two >&2; exit 3"), Limits::total(60), &mut ()).unwrap();
        assert!(matches!(done.end, End::Exited(status) if status.code() == Some(3)));
        assert_eq!(done.out, "one\n");
        assert!(done.all.contains("two\n"));
        assert!(!done.ok());
    }

    #[test]
    fn silence_ends_a_program() {
        let limits = Limits { silence: Duration::from_millis(300), total: Duration::from_secs(60) };
        let done = run(&mut shell("echo begun; exec sleep 600"), limits, &mut ()).unwrap();
        assert_eq!(done.end, End::Silent(limits.silence));
        assert_eq!(done.out, "begun\n");
    }

    #[test]
    fn an_endless_talker_is_bounded_too() {
        let limits = Limits { silence: Duration::from_secs(60), total: Duration::from_millis(500) };
        let done = run(&mut shell("while :; do echo y; sleep 0.2; done"), limits, &mut ()).unwrap();
        assert_eq!(done.end, End::TooLong(limits.total));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("neap-no-such-program"), Limits::total(1), &mut ()).unwrap_err();
        assert!(error.to_string().contains("neap-no-such-program"), "{error}");
    }
}
