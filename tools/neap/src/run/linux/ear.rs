//! The ear for `neap agent` of a run whose host is a guest: requests go to the guest, whose driver alone writes to the
//! manager's line; what can be read from the window is answered here.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use neap_abi::RegionKind;
use serde_json::{Value, json};

use crate::inspect::snapshot::{Snapshot, window_name};
use crate::inspect::{of_books, of_identity};
use crate::manage::{Answer, Asked, GuestAsked, MANAGE, serve};
use crate::report::Parameters;
use crate::run::parts::Words;
use crate::worker::Line;

/// How long the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(20);

/// The ear; it is closed when this is dropped.
#[derive(Debug)]
pub struct Ear {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ear {
    /// Listens in a run's directory. Of what the guest says (`lines`) it takes the answers, and passes on the rest.
    pub fn open(
        dir: &Path,
        asked: &Parameters,
        lines: Receiver<Line>,
        guest: Words,
    ) -> Result<(Self, Receiver<Line>)> {
        let socket = dir.join(MANAGE);
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        listener.set_nonblocking(true).context("listening for managers")?;
        let (passed, rest) = mpsc::channel();
        let (answered, answers) = mpsc::channel();
        let level = Arc::new(Mutex::new("ipu".to_owned()));
        let kept = Arc::clone(&level);
        thread::spawn(move || {
            for line in lines {
                let gone = match line {
                    Line::Answer(answer) => answered.send(answer).is_err(),
                    line => {
                        if let Line::Running(figures) = &line
                            && let Some(enclave) = figures.enclaves.first()
                        {
                            kept.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&enclave.level);
                        }
                        passed.send(line).is_err()
                    }
                };
                if gone {
                    break;
                }
            }
        });
        let over = Arc::new(AtomicBool::new(false));
        let desk = Desk {
            dir: dir.to_owned(),
            policy: asked.policy.clone(),
            cpus: asked.cpus,
            level,
            guest,
            answers,
        };
        let ends = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    // One who goes away in the middle has its reasons.
                    Ok((stream, _)) => drop(serve(&stream, |asked| desk.carry_out(asked))),
                    Err(_) => thread::sleep(LOOK),
                }
            }
        });
        Ok((Self { over, thread: Some(thread) }, rest))
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // One request may be under way, whose answer will not come: the thread ends with the process then.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

/// Who serves: one request at a time.
struct Desk {
    dir: PathBuf,
    policy: String,
    cpus: u16,
    level: Arc<Mutex<String>>,
    guest: Words,
    answers: Receiver<Answer>,
}

impl Desk {
    fn carry_out(&self, asked: &Asked) -> Result<Answer> {
        let (enclave, image, asked) = match asked {
            Asked::List(enclave) => {
                only(enclave.unwrap_or(0))?;
                return Ok(Answer::Done(vec![self.list()?].into()));
            }
            Asked::Load { enclave, image } => (*enclave, Some(image), None),
            Asked::Replace { enclave, image, trial_ms } => {
                (*enclave, image.as_ref(), Some(GuestAsked::Replace { trial_ms: *trial_ms }))
            }
            Asked::ReadDisk { enclave, sector, bytes, file } => {
                only(*enclave)?;
                return self.read_disk(*sector, *bytes, file);
            }
            Asked::WriteDisk { enclave, sector, file } => {
                only(*enclave)?;
                let bytes = self.lay_down(file)?;
                return self.ask(GuestAsked::WriteDisk { sector: *sector, bytes });
            }
            Asked::Watch { .. } | Asked::Seen { .. } => {
                bail!("a timeline is of the worker host: start a run without --host linux")
            }
            Asked::Kill { enclave, grace_us } => {
                (*enclave, None, Some(GuestAsked::Kill { grace_us: *grace_us }))
            }
        };
        only(enclave)?;
        if let Some(image) = image {
            let image_bytes = self.lay_down(image)?;
            let answer = self.ask(GuestAsked::Load { image_bytes })?;
            if asked.is_none() || matches!(answer, Answer::Failed(_)) {
                return Ok(answer);
            }
        }
        asked.map_or_else(|| bail!("nothing was asked"), |asked| self.ask(asked))
    }

    /// Puts a file into the window, where the supervisor looks for what it is handed.
    fn lay_down(&self, file: &Path) -> Result<u32> {
        let bytes = fs::read(file).with_context(|| format!("{} can't be read", file.display()))?;
        let region = self.staging(bytes.len())?;
        let window = File::options().write(true).open(self.dir.join(window_name(0))).context("the window")?;
        window.write_all_at(&bytes, region).context("writing into the window")?;
        Ok(u32::try_from(bytes.len())?)
    }

    /// Where in the window images are laid, if that has room for so many bytes.
    fn staging(&self, bytes: usize) -> Result<u64> {
        let hello = self.window()?.hello()?;
        let region = hello.region(RegionKind::Image, 0).context("this IPU's agents can't be managed")?;
        ensure!(
            bytes as u64 <= region.bytes,
            "the agent image has {bytes} bytes, and the IPU takes {} at most; strip it",
            region.bytes
        );
        Ok(region.offset)
    }

    /// Sectors of the card's disk, which the driver has laid into the window.
    fn read_disk(&self, sector: u32, bytes: usize, file: &Path) -> Result<Answer> {
        let region = self.staging(bytes)?;
        let answer = self.ask(GuestAsked::ReadDisk { sector, bytes: u32::try_from(bytes)? })?;
        let Answer::Done(done) = &answer else { return Ok(answer) };
        let mut read = vec![0; bytes];
        let window = File::open(self.dir.join(window_name(0))).context("the window")?;
        window.read_exact_at(&mut read, region).context("reading what was laid into the window")?;
        fs::write(file, read).with_context(|| format!("{} can't be written", file.display()))?;
        Ok(Answer::Done(done["detail"].clone()))
    }

    fn ask(&self, asked: GuestAsked) -> Result<Answer> {
        // An answer that came too late for whoever asked is not this one's.
        while self.answers.try_recv().is_ok() {}
        self.guest.say(&serde_json::to_string(&asked)?).context("asking the guest")?;
        let answer = self.answers.recv_timeout(PATIENCE);
        answer.map_err(|_| anyhow!("the guest did not answer in {} s", PATIENCE.as_secs()))
    }

    fn window(&self) -> Result<crate::inspect::snapshot::View> {
        let mut views = Snapshot::open(&self.dir, true)?.views;
        ensure!(!views.is_empty(), "this run has no window");
        Ok(views.remove(0))
    }

    fn list(&self) -> Result<Value> {
        let view = self.window()?;
        let agents = view.agents(&view.hello()?)?;
        Ok(json!({
            "enclave": 0,
            "cpus": (0..self.cpus).collect::<Vec<_>>(),
            "policy": self.policy,
            "level": *self.level.lock().unwrap_or_else(PoisonError::into_inner),
            "running": agents.running.as_ref().map(of_identity),
            "standby": agents.standby.as_ref().map(of_identity),
            "books": agents.books.as_ref().map(of_books),
        }))
    }
}

fn only(enclave: u16) -> Result<()> {
    ensure!(enclave == 0, "there is no enclave {enclave}; this run has 0");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::manage::ask;
    use crate::report::tests::example;

    #[test]
    fn what_is_asked_goes_to_the_guest_and_its_answer_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (lines, said) = mpsc::channel();
        let (_ear, rest) = Ear::open(dir.path(), &example().parameters, said, Words::new(ours)).unwrap();
        let guest = thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(&theirs).read_line(&mut line).unwrap();
            lines.send(Line::Attaching).unwrap();
            lines.send(Line::Answer(Answer::Done(json!({ "incarnation": 2 })))).unwrap();
            line
        });
        let answer = ask(dir.path(), &Asked::Kill { enclave: 0, grace_us: 1000 }).unwrap();
        assert_eq!(answer, Answer::Done(json!({ "incarnation": 2 })));
        let heard: GuestAsked = serde_json::from_str(&guest.join().unwrap()).unwrap();
        assert_eq!(heard, GuestAsked::Kill { grace_us: 1000 });
        assert!(matches!(rest.recv().unwrap(), Line::Attaching));
        let other = ask(dir.path(), &Asked::Kill { enclave: 1, grace_us: 1000 }).unwrap();
        assert_eq!(other, Answer::Failed("there is no enclave 1; this run has 0".into()));
    }
}
