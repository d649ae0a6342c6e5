//! Stage `qemu`: boots the programs of `qemu-tests` on the machines that `cases.toml` names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use neap_vipu::{Domain, Peer, Server, Window};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::cases::{self, Case};
use super::{Verdict, stages};
use crate::firmware::{self, FirmwareImage};
use crate::machine::{Machine, WINDOW_BYTES};
use crate::process::{self, End, Limits};
use crate::progress::Step;
use crate::setup;

pub(super) fn run() -> Result<Verdict> {
    let cases = cases::load()?;
    let qemu = setup::qemu()?;
    let images = firmware::build_tests()?;
    let mut verdict = Verdict::default();
    for (number, case) in cases.iter().enumerate() {
        let Some(image) = images.get(&case.bin) else {
            let names: Vec<&str> = images.keys().map(String::as_str).collect();
            bail!("cases.toml names {}; the programs of qemu-tests are {}", case.bin, names.join(", "));
        };
        let what = format!("boot {}/{}: {}", number + 1, cases.len(), case.name());
        match boot(case, number, &qemu, image, &what) {
            Ok(()) => verdict.pass(),
            Err(error) => {
                verdict.fail(format!("{what}: {error:#}"));
                break;
            }
        }
    }
    for name in images.keys().filter(|name| !cases.iter().any(|case| case.bin == **name)) {
        verdict.fail(format!("{name} has no case in cases.toml, so nothing boots it"));
    }
    Ok(verdict)
}

fn boot(case: &Case, number: usize, qemu: &std::path::Path, image: &FirmwareImage, what: &str) -> Result<()> {
    let name = format!("neap-{}-case{number}", std::process::id());
    let window = Window::create(&name, WINDOW_BYTES)?;
    let mut machine = Machine::new(case.smp, window.path(), window.bytes());
    machine.gic = case.gic;
    machine.virtualization = case.virtualization;
    machine.bootargs = case.args.0.clone();
    // Dropped in this order, after QEMU's end: the host, its server, its directory.
    let (dir, server, host);
    if case.ivshmem_vectors > 0 {
        dir =
            tempfile::Builder::new().prefix("neap-qemu-").tempdir().context("a directory for the socket")?;
        let socket = dir.path().join("enclave");
        server = Server::start(vec![Domain::new(&socket, window.descriptor()?, case.ivshmem_vectors)])?;
        host =
            Host::join(server.sockets().next().context("the server has no socket")?, case.ivshmem_vectors)?;
        machine.bootargs.push(format!("neap.host_peer={}", host.peer.id()));
        machine.doorbells.push((socket, case.ivshmem_vectors));
        return host.during(|| power_on(case, &machine, qemu, image, what));
    }
    power_on(case, &machine, qemu, image, what)
}

fn power_on(
    case: &Case,
    machine: &Machine,
    qemu: &std::path::Path,
    image: &FirmwareImage,
    what: &str,
) -> Result<()> {
    let mut step = Step::start(what);
    let mut command = machine.command(qemu, &image.elf)?;
    let finished = process::run(&mut command, Limits::total(case.timeout_s), &mut step)?;
    let judged = match finished.end {
        End::Exited(_) => case.judge(stages::exit_code(&finished), &finished.all),
        End::Silent(_) | End::TooLong(_) => Err(anyhow::anyhow!("{}", finished.verdict())),
    };
    judged.with_context(|| format!("its console said:\n{}", finished.tail(100)))?;
    step.done();
    Ok(())
}

/// The host end of a doorbell function: answers each doorbell by the same vector of all other peers.
struct Host {
    peer: Peer,
}

impl Host {
    fn join(socket: &std::path::Path, vectors: u16) -> Result<Self> {
        Ok(Self { peer: Peer::connect(socket, vectors, Duration::from_secs(10))? })
    }

    /// Answers while `work` runs.
    fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let answering = scope.spawn(|| self.answer(&over));
            let result = work();
            over.store(true, Ordering::Release);
            let answered =
                answering.join().map_err(|_| anyhow::anyhow!("the host end of the doorbells panicked"))?;
            let result = result?;
            answered?;
            Ok(result)
        })
    }

    fn answer(&self, over: &AtomicBool) -> Result<()> {
        let bells = (0..self.peer.vectors()).map(|vector| self.peer.vector_descriptor(vector));
        let bells = bells.collect::<Result<Vec<_>, _>>()?;
        let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while !over.load(Ordering::Acquire) {
            let mut ready: Vec<PollFd<'_>> =
                bells.iter().map(|bell| PollFd::new(bell, PollFlags::IN)).collect();
            poll(&mut ready, Some(&timeout)).context("waiting for doorbells")?;
            // Who came and went is known before the answer goes out.
            self.peer.poll_changes()?;
            for (vector, _) in (0u16..).zip(&ready).filter(|(_, bell)| bell.revents().contains(PollFlags::IN))
            {
                self.peer.wait(vector, Some(Duration::ZERO))?;
                for other in self.peer.peers() {
                    self.peer.ring(other, vector)?;
                }
            }
        }
        Ok(())
    }
}
