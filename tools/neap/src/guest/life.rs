//! A guest's life: the driver, the scheduler, the load, the report, the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_host::device;
use rustix::system::{RebootCommand, reboot, uname};

use super::channel::Channel;
use super::command;
use super::kmsg::Log;
use super::module::Module;
use super::order::Order;
use super::scheduler::Scheduler;
use super::service;
use super::tally::Tally;
use crate::driver::Device;
use crate::manage::{Answer, GuestAsked};
use crate::measured::Measured;
use crate::worker::gets::Gets;
use crate::worker::store::Store;
use crate::worker::{Line, STOP};

/// How often all is looked at.
pub const NAP: Duration = Duration::from_millis(20);
/// How often figures are told: a serial port has its price.
pub const TELL: Duration = Duration::from_millis(500);
/// How long the driver may take to find the IPU and have an agent.
const ATTACH: Duration = Duration::from_secs(60);
/// How long the IPU's supervisor may take over a request.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the parts of a guest share.
pub struct Guest {
    /// What is to be done.
    pub order: Order,
    /// Where to tell it.
    pub channel: Arc<Channel>,
    /// Set when the run is to end before its time.
    pub stop: Arc<AtomicBool>,
}

/// Does what the order in `file` says, tells the run, and switches the machine off.
pub fn run(file: &Path) -> Result<()> {
    ensure!(
        process::id() == 1,
        "`neap guest` is what a run's guest does in its init's place, and switches the machine off; use `cargo neap run \
         --host linux`"
    );
    if let Err(error) = tell_all(file) {
        // The console is all that is left to say it to.
        eprintln!("neap guest: {error:#}");
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("switching the machine off")
}

fn tell_all(file: &Path) -> Result<()> {
    let order = fs::read(file).with_context(|| format!("the order {} can't be read", file.display()))?;
    let order: Order = serde_json::from_slice(&order)
        .with_context(|| format!("the order {} is of another release", file.display()))?;
    let channel = Arc::new(Channel::open(&order.channel)?);
    let mut log = Log::open();
    let stop = Arc::new(AtomicBool::new(false));
    let guest = Guest { order, channel: Arc::clone(&channel), stop };
    channel.tell(&Line::Booted { kernel: uname().release().to_string_lossy().into_owned() });
    let program = guest.order.parameters.command.first().map(|name| command::find(name)).transpose();
    let last = match program.map(|program| session(&guest, program, &mut log)) {
        Ok(Ok(measured)) => Line::Done(Box::new(measured)),
        Ok(Err(error)) => Line::Failed(format!("{error:#}{}", log.last_words())),
        Err(error) => Line::Refused(format!("{error:#}")),
    };
    channel.tell(&last);
    channel.drain();
    Ok(())
}

/// What is to be done under the scheduler.
enum Work {
    Store(Box<Gets>),
    Command(PathBuf),
}

fn session(guest: &Guest, program: Option<PathBuf>, log: &mut Log) -> Result<Measured> {
    let Guest { order, channel, .. } = guest;
    let asked = &order.parameters;
    // A device, once there is one to ask.
    let device = Arc::new(OnceLock::new());
    listen(guest, Arc::clone(&device))?;
    let work = match program {
        Some(program) => Work::Command(program),
        None => {
            let loading = |keys| channel.tell(&Line::Loading { keys, of: asked.keys });
            Work::Store(Box::new(Gets::new(Store::load(asked.keys, asked.seed, loading)?, asked)))
        }
    };
    let said_before = log.lines().len();
    channel.tell(&Line::Attaching);
    let module = order.module.as_deref().map(|file| Module::load(file, asked)).transpose()?;
    let found = await_agent(&order.debugfs, ATTACH, &guest.stop)?;
    let _ = device.set(found.clone());
    let mut scheduler = Scheduler::attach(&order.object)?;
    let mut tally = Tally::begin(found)?;
    let done = match work {
        Work::Store(gets) => service::run(guest, *gets, &mut tally),
        Work::Command(program) => command::run(guest, &program, scheduler.pid(), &mut tally),
    };
    let mut measured = done?;
    measured.troubles.extend(scheduler.trouble());
    let ends = scheduler.ends().into_iter().map(|why| format!("the kernel ended the scheduler: {why}"));
    measured.remarks.extend(ends);
    scheduler.detach();
    if let Some(module) = module
        && let Err(error) = module.unload()
    {
        measured.troubles.push(format!("{error:#}"));
    }
    let complaints = log.complaints(said_before).into_iter();
    measured.troubles.extend(complaints.map(|line| format!("the guest's kernel complained: {line}")));
    Ok(measured)
}

/// Waits until a device's agent runs.
fn await_agent(debugfs: &Path, patience: Duration, stop: &AtomicBool) -> Result<Device> {
    let asked = Instant::now();
    loop {
        let devices = Device::all(debugfs);
        let seen = devices.first().map(|device| (device, device.state()));
        if let Some((device, Ok(state))) = &seen
            && state.agent_runs()
        {
            return Ok((*device).clone());
        }
        ensure!(!stop.load(Ordering::Relaxed), "the run was ended before the driver had found an agent");
        if asked.elapsed() >= patience {
            let waited_s = patience.as_secs();
            match seen {
                None => bail!(
                    "the driver shows no device in {} after {waited_s} s: is there a PCI function 1af4:1110?",
                    debugfs.display()
                ),
                Some((_, Err(error))) => return Err(error),
                Some((device, Ok(state))) => bail!(
                    "device {} has no agent after {waited_s} s: its link is {}, its agent {}; look at the IPU's log \
                     (`neap log`)",
                    device.number,
                    state.link,
                    state.agent_state
                ),
            }
        }
        thread::sleep(NAP);
    }
}

/// Listens to the run: the word that ends it, and what is asked about agents.
fn listen(guest: &Guest, device: Arc<OnceLock<Device>>) -> Result<()> {
    let (channel, stop) = (Arc::clone(&guest.channel), Arc::clone(&guest.stop));
    let policy = guest.order.parameters.policy.clone();
    let hear = move |line: Option<&str>| match line {
        None | Some(STOP) => stop.store(true, Ordering::Relaxed),
        Some(line) => {
            if let Ok(asked) = serde_json::from_str::<GuestAsked>(line) {
                channel.tell(&Line::Answer(answer(&asked, device.get(), &policy)));
            }
        }
    };
    guest.channel.listen(hear).context("listening to the run")
}

fn answer(asked: &GuestAsked, device: Option<&Device>, policy: &str) -> Answer {
    let Some(device) = device else {
        return Answer::Failed("the guest's driver has found no agent yet; ask again".to_owned());
    };
    let asked = || {
        let node = device::Device::open(&device.node())?;
        match *asked {
            GuestAsked::Load { image_bytes } => node.load_laid(image_bytes, policy, PATIENCE),
            GuestAsked::Replace { trial_ms } => {
                node.replace(policy, Duration::from_millis(trial_ms), PATIENCE)
            }
            GuestAsked::Kill { grace_us } => node.kill(Duration::from_micros(grace_us), PATIENCE),
            GuestAsked::ReadDisk { sector, bytes } => node.read_laid(sector, bytes),
            GuestAsked::WriteDisk { sector, bytes } => node.write_laid(sector, bytes),
        }
    };
    match asked() {
        Ok(reply) => {
            let (enclave, incarnation) = (device.number, reply.incarnation);
            Answer::Done(
                serde_json::json!({ "enclave": enclave, "incarnation": incarnation, "detail": reply.detail }),
            )
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::Debugfs;

    #[test]
    fn a_driver_without_an_agent_is_told_from_none_at_all() {
        let debugfs = Debugfs::new();
        let stop = AtomicBool::new(false);
        let error = || await_agent(debugfs.path(), Duration::ZERO, &stop).unwrap_err().to_string();
        assert!(error().contains("1af4:1110"), "{}", error());
        debugfs.says("0", "state", "level host\nagent_state waiting\nlink down\nfault link_down\n");
        assert!(error().contains("its link is down, its agent waiting"), "{}", error());
        debugfs.says("0", "state", "level ipu\nagent_state running\nlink up\nfault none\n");
        assert_eq!(await_agent(debugfs.path(), Duration::ZERO, &stop).unwrap().number, 0);
    }

    #[test]
    fn who_is_not_init_switches_nothing_off() {
        let error = run(Path::new("/order.json")).unwrap_err().to_string();
        assert!(error.contains("--host linux"), "{error}");
    }

    #[test]
    fn nobody_is_managed_before_there_is_one() {
        let early = answer(&GuestAsked::Kill { grace_us: 1 }, None, "fifo");
        assert!(matches!(early, Answer::Failed(words) if words.contains("ask again")));
    }
}
