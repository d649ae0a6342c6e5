//! Any command in the guest, under SCHED_EXT with all that it starts.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};

use super::channel::Channel;
use super::life::{Guest, NAP, TELL};
use super::processes::{self, Process};
use super::tally::{Tally, Tasks};
use crate::driver::class;
use crate::measured::Measured;
use crate::worker::{Line, Stream};

/// Where commands are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a command may take to end that was asked to, and how long one that was not asked but told.
const END: Duration = Duration::from_secs(5);
const KILLED: Duration = Duration::from_secs(10);
/// How long what a command wrote may take to come out of the pipes when it has ended.
const PIPES: Duration = Duration::from_secs(2);
/// How long the driver may take to take note of the last task's end.
const SETTLE: Duration = Duration::from_secs(2);
/// What is told at once of what a command writes.
const CHUNK_BYTES: usize = 4096;

/// The program that `name` names; if there is none, an error that says which there are.
pub fn find(name: &str) -> Result<PathBuf> {
    find_in(name, PATH)
}

fn find_in(name: &str, path: &str) -> Result<PathBuf> {
    let is_program = |file: &Path| {
        fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        if is_program(Path::new(name)) {
            return Ok(PathBuf::from(name));
        }
    } else if let Some(found) = path.split(':').map(|dir| Path::new(dir).join(name)).find(|at| is_program(at))
    {
        return Ok(found);
    }
    let entries = path.split(':').flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let names = entries.filter(|entry| is_program(&entry.path()));
    let names: BTreeSet<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    bail!("the guest has no command {name}; it has {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// Runs the command to its end, whatever ends it, and all that it started.
pub fn run(guest: &Guest, program: &Path, loader: u32, tally: &mut Tally) -> Result<Measured> {
    let asked = &guest.order.parameters;
    let mut command = Command::new(program);
    command.args(&asked.command[1..]).env("PATH", PATH).env("HOME", "/tmp").current_dir("/tmp");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec only a system call is made, which neither allocates nor locks.
    unsafe { command.pre_exec(class::enter) };
    let mut child = command.spawn().with_context(|| format!("{} can't be started", program.display()))?;
    let pipes = [
        pipe(&guest.channel, Stream::Out, child.stdout.take()),
        pipe(&guest.channel, Stream::Err, child.stderr.take()),
    ];
    let limit = (asked.seconds > 0.0).then(|| Duration::from_secs_f64(asked.seconds));
    let mut work = Measured::default();
    let kept = [child.id(), loader];
    let status = follow(guest, &mut child, &kept, limit, tally, &mut work)?;
    work.command_status = status.map(code);
    let elapsed_s = tally.elapsed_s();
    let since = Instant::now();
    while since.elapsed() < PIPES && !pipes.iter().flatten().all(JoinHandle::is_finished) {
        thread::sleep(NAP);
    }
    // What it left behind ends with it.
    let stuck = end_all(&[loader]);
    settle(tally);
    let count = |key| tally.counters().of(key);
    let tasks = Tasks {
        created: count("tasks_enabled")?,
        finished: count("tasks_disabled")?,
        lost: stuck,
        doubled: 0,
    };
    let measured = tally.measured(asked, &tasks, work)?;
    Ok(Measured { elapsed_s, ..measured })
}

/// Waits for the command's end; asks for it when the run is to end, or its time is over. None for one that can't be ended.
fn follow(
    guest: &Guest,
    child: &mut Child,
    kept: &[u32],
    limit: Option<Duration>,
    tally: &mut Tally,
    work: &mut Measured,
) -> Result<Option<ExitStatus>> {
    let began = Instant::now();
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child has a pid")?;
    let mut told: Option<Instant> = None;
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the command")? {
            return Ok(Some(status));
        }
        reap(kept);
        tally.look();
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            told = Some(Instant::now());
            guest.channel.tell(&Line::Running(Box::new(tally.figures()?)));
        }
        let late = limit.is_some_and(|limit| began.elapsed() >= limit);
        match asked {
            None if late || guest.stop.load(Ordering::Relaxed) => {
                if late {
                    let limit_s = limit.unwrap_or_default().as_secs_f64();
                    work.troubles
                        .push(format!("the command was still at work after {limit_s} s, and was ended"));
                }
                let _ = kill_process_group(group, Signal::TERM);
                asked = Some(Instant::now());
            }
            Some(since) if since.elapsed() >= END + KILLED => {
                let s = KILLED.as_secs();
                work.troubles.push(format!("the command did not end in {s} s after it was killed"));
                return Ok(None);
            }
            Some(since) if since.elapsed() >= END => {
                let _ = kill_process_group(group, Signal::KILL);
            }
            _ => {}
        }
        thread::sleep(NAP);
    }
}

/// The status to exit with for a command that ended so, as a shell has it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Tells what comes out of a pipe until it is closed.
fn pipe(
    channel: &Arc<Channel>,
    stream: Stream,
    from: Option<impl Read + Send + 'static>,
) -> Option<JoinHandle<()>> {
    let (channel, mut from) = (Arc::clone(channel), from?);
    Some(thread::spawn(move || {
        let mut bytes = vec![0; CHUNK_BYTES];
        // The head of a character whose rest is yet to come.
        let mut begun = Vec::new();
        loop {
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => begun.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            let text = whole(&mut begun);
            if !text.is_empty() {
                channel.tell(&Line::Said { stream, text });
            }
        }
        if !begun.is_empty() {
            channel.tell(&Line::Said { stream, text: String::from_utf8_lossy(&begun).into_owned() });
        }
    }))
}

/// Takes the whole characters from `bytes`, and leaves a last one that is only begun.
fn whole(bytes: &mut Vec<u8>) -> String {
    let keep = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    };
    let rest = bytes.split_off(bytes.len() - keep);
    String::from_utf8_lossy(&std::mem::replace(bytes, rest)).into_owned()
}

/// All processes but ourselves, those in `kept` and the kernel's threads: what a command has started.
fn started(kept: &[u32]) -> Vec<Process> {
    let is_kept =
        |pid: i32| u32::try_from(pid).is_ok_and(|pid| pid == std::process::id() || kept.contains(&pid));
    let mut found = processes::all(Path::new("/proc"));
    found.retain(|process| !process.of_kernel && !is_kept(process.pid));
    found
}

/// Ends what a command left behind, but not what is in `kept`; how many processes do not end.
fn end_all(kept: &[u32]) -> u64 {
    let since = Instant::now();
    loop {
        reap(kept);
        let left: Vec<Process> = started(kept).into_iter().filter(|process| !process.is_zombie()).collect();
        if left.is_empty() || since.elapsed() >= KILLED {
            return left.len() as u64;
        }
        for pid in left.iter().filter_map(|process| Pid::from_raw(process.pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(NAP);
    }
}

/// We are init: orphans that have ended are ours to look after. Those in `kept` are looked after by others.
fn reap(kept: &[u32]) {
    for process in started(kept) {
        if process.is_zombie()
            && process.parent == 1
            && let Some(pid) = Pid::from_raw(process.pid)
        {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Waits until the driver has taken note of every task's end.
fn settle(tally: &mut Tally) {
    let since = Instant::now();
    loop {
        tally.look();
        let count = |key| tally.counters().of(key).unwrap_or(0);
        if count("tasks_enabled") == count("tasks_disabled") || since.elapsed() >= SETTLE {
            return;
        }
        thread::sleep(NAP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_or_those_that_are_there_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("stress-ng", 0o755), ("readme", 0o644)] {
            let file = dir.path().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("/no/such:{}", dir.path().display());
        assert_eq!(find_in("stress-ng", &path).unwrap(), dir.path().join("stress-ng"));
        let error = find_in("stres-ng", &path).unwrap_err().to_string();
        assert_eq!(error, "the guest has no command stres-ng; it has stress-ng");
        assert!(find_in("/bin/sh", &path).is_ok());
        assert!(find_in("./stress-ng", &path).is_err());
    }

    #[test]
    fn a_character_that_is_cut_waits_for_its_rest() {
        let mut bytes = "µs".as_bytes()[..1].to_vec();
        assert_eq!(whole(&mut bytes), "");
        bytes.extend_from_slice(&"µs".as_bytes()[1..]);
        assert_eq!(whole(&mut bytes), "µs");
        bytes.extend_from_slice(b"a\xffb");
        assert_eq!((whole(&mut bytes).as_str(), bytes.len()), ("a\u{fffd}b", 0));
    }

    #[test]
    fn statuses_are_as_a_shell_has_them() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
