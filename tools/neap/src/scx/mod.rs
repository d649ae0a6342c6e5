//! `neap scx`: puts the scheduler that asks the IPU into the kernel, keeps it there, and takes it out again.
//!
//! 1. One line on stdout for each thing that happens: `attached`, and why it ended.
//! 2. What the kernel lacks is told before libbpf is asked, which would tell it in its own way.
//! 3. Nothing is held while no scheduler is attached, so that the driver can be unloaded and loaded anew.

mod cgroup;
mod exit;
mod kernel;
mod object;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::driver::{DEBUGFS, Device};
use crate::print;
use cgroup::{Cgroups, Here};
use kernel::Kernel;
use object::Attached;

/// Where the object lies on a machine that has the driver.
pub const OBJECT: &str = "/lib/neap/neap.bpf.o";
/// What is printed when the scheduler is in its place.
pub const ATTACHED: &str = "attached";
/// How a line begins that says why it is there no more.
pub const ENDED: &str = "ended: ";

/// How often it is looked whether the scheduler is still there, or an agent again.
const LOOK: Duration = Duration::from_millis(50);
/// The shortest and the longest pause before the scheduler is attached anew. It doubles with every end that comes within
/// the longest of them: a scheduler that fails at once shall not keep the machine busy.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What to do with the scheduler.
#[derive(Clone, Debug, Subcommand)]
pub enum ScxCommand {
    /// Attach the scheduler, and keep it attached until SIGTERM or SIGINT
    ///
    /// Prints `attached` when tasks of the class SCHED_EXT are scheduled by the IPU. When the kernel ends the scheduler,
    /// prints why, waits until an agent runs again, and attaches it anew.
    Attach(AttachOptions),
}

/// How to attach it.
#[derive(Clone, Debug, Args)]
pub struct AttachOptions {
    /// The scheduler's BPF object
    #[arg(long, default_value = OBJECT, value_name = "FILE")]
    pub object: PathBuf,
    /// Keep all threads of a cgroup, and of those below it, in the class SCHED_EXT; can be given more than once
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
    /// End with the scheduler, in place of attaching it anew
    #[arg(long)]
    pub once: bool,
}

/// Does it.
pub fn scx(command: &ScxCommand) -> Result<()> {
    match command {
        ScxCommand::Attach(options) => attach(options),
    }
}

fn attach(options: &AttachOptions) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&over)).context("catching signals")?;
    }
    let over = || over.load(Ordering::Relaxed);
    let kernel = Kernel::here();
    let mut pause = PAUSE.0;
    let mut cgroups = Cgroups::new(&options.cgroups, Here)?;
    let mut refused = false;
    let mut turn = || {
        // Once is enough: it will be so at each look.
        if let Err(error) = cgroups.look()
            && !std::mem::replace(&mut refused, true)
        {
            eprintln!("neap: {error:#}");
        }
        thread::sleep(LOOK);
    };
    loop {
        kernel.check()?;
        let attached = Attached::new(&options.object)?;
        print(ATTACHED)?;
        let since = Instant::now();
        while !over() && !attached.has_ended(&kernel) {
            turn();
        }
        if over() {
            attached.detach();
            return Ok(());
        }
        print(&format!("{ENDED}{}", attached.why()))?;
        attached.detach();
        if options.once {
            return Ok(());
        }
        pause = if since.elapsed() > PAUSE.1 { PAUSE.0 } else { (2 * pause).min(PAUSE.1) };
        if !await_agent(Path::new(DEBUGFS), pause, &over, &mut turn) {
            return Ok(());
        }
    }
}

/// Waits for `pause`, and then until an agent runs, in turns; false if all is `over` before.
fn await_agent(debugfs: &Path, pause: Duration, over: &dyn Fn() -> bool, turn: &mut dyn FnMut()) -> bool {
    let since = Instant::now();
    let runs = || {
        let states = Device::all(debugfs).into_iter().filter_map(|device| device.state().ok());
        states.into_iter().any(|state| state.agent_runs())
    };
    while !over() {
        if since.elapsed() >= pause && runs() {
            return true;
        }
        turn();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::tests::Debugfs;

    #[test]
    fn it_comes_back_when_an_agent_does_and_not_before() {
        let debugfs = Debugfs::new();
        let state = |agent: &str| format!("level kernel\nagent_state {agent}\nlink up\nfault agent_dead\n");
        let looks = std::cell::Cell::new(0);
        let agent_after = |count| {
            looks.set(0);
            let over = || {
                looks.set(looks.get() + 1);
                let agent = if looks.get() > count { "running" } else { "dead" };
                debugfs.says("0", "state", &state(agent));
                looks.get() > 5
            };
            await_agent(debugfs.path(), Duration::ZERO, &over, &mut || {})
        };
        assert!(agent_after(2));
        assert_eq!(looks.get(), 3);
        assert!(!agent_after(10));
    }
}
