//! Stage `qemu`: boots the programs of `qemu-tests` on the machines that `cases.toml` names.

use std::path::Path;

use anyhow::{Context, Result, bail};
use neap_vipu::{Domain, Server, Window};

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

fn boot(case: &Case, number: usize, qemu: &Path, image: &FirmwareImage, what: &str) -> Result<()> {
    let name = format!("neap-{}-case{number}", std::process::id());
    let window = Window::create(&name, WINDOW_BYTES)?;
    let mut machine = Machine::new(case.smp, window.path(), window.bytes());
    machine.gic = case.gic;
    machine.virtualization = case.virtualization;
    machine.bootargs = case.args.0.clone();
    // Both outlive QEMU: without its server, the doorbell function does not come up.
    let (dir, _server);
    if case.ivshmem_vectors > 0 {
        dir =
            tempfile::Builder::new().prefix("neap-qemu-").tempdir().context("a directory for the socket")?;
        let socket = dir.path().join("enclave");
        _server = Server::start(vec![Domain::new(&socket, window.descriptor()?, case.ivshmem_vectors)])?;
        machine.doorbells.push((socket, case.ivshmem_vectors));
    }
    power_on(case, &machine, qemu, image, what)
}

fn power_on(case: &Case, machine: &Machine, qemu: &Path, image: &FirmwareImage, what: &str) -> Result<()> {
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
