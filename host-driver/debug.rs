// SPDX-License-Identifier: GPL-2.0
//! State and counters for people and scripts: `/sys/kernel/debug/neap/N/{state,counters}`, a key and its value to a line.

use core::sync::atomic::Ordering;

use kernel::{debugfs, fmt, prelude::*, sync::Arc};
use neap_abi::Outcome;
use neap_mechanism::Count;

use crate::beat::Fault;
use crate::function::Function;
use crate::host::host;

kernel::sync::global_lock! {
    // SAFETY: Initialised by `Root::new`, before any function is bound.
    unsafe(uninit) static ROOT: Mutex<Option<debugfs::Dir>> = None;
}

/// The directory of all functions, while this lives.
pub(crate) struct Root;

impl Root {
    /// Makes the directory.
    pub(crate) fn new() -> Self {
        // SAFETY: This is its one call, before anybody uses it.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(debugfs::Dir::new(c"neap"));
        Self
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        *ROOT.lock() = None;
    }
}

/// A function's files.
pub(crate) struct Files {
    _state: Pin<KBox<debugfs::File<State>>>,
    _counters: Pin<KBox<debugfs::File<Counted>>>,
    _dir: debugfs::Dir,
}

const DIGITS: [&CStr; neap_mechanism::ENCLAVES_MAX] = [c"0", c"1", c"2", c"3", c"4", c"5", c"6", c"7"];

impl Files {
    /// Makes the files.
    pub(crate) fn new(function: &Arc<Function>) -> Result<Self> {
        let name = DIGITS.get(usize::from(function.number)).copied().ok_or(ENOSPC)?;
        let dir = ROOT.lock().as_ref().map(|root| root.subdir(name)).ok_or(ENODEV)?;
        let state = KBox::pin_init(
            dir.read_callback_file(c"state", State(function.clone()), &write_state),
            GFP_KERNEL,
        )?;
        let counters = KBox::pin_init(
            dir.read_callback_file(c"counters", Counted(function.clone()), &write_counters),
            GFP_KERNEL,
        )?;
        Ok(Self { _state: state, _counters: counters, _dir: dir })
    }
}

struct State(Arc<Function>);
struct Counted(Arc<Function>);

fn write_state(state: &State, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let function = &state.0;
    let Some(host) = host() else { return Ok(()) };
    let Some(enclave) = host.mechanism.enclave(function.number) else { return Ok(()) };
    let watch = function.watch.lock();
    // The watch is held: the session stays.
    let session = host.session(function.number);
    let agent = session.and_then(|session| session.agent());
    f.write_fmt(fmt!("function {}\n", &*function.address))?;
    writeln!(f, "level {}", enclave.level().name())?;
    match agent {
        Some(agent) => writeln!(f, "agent_state {:?}", agent.state)?,
        None => writeln!(f, "agent_state none")?,
    }
    writeln!(f, "incarnation {}", watch.incarnation)?;
    writeln!(f, "session {}", session.map_or(0, |session| session.number))?;
    let cpus = host.mechanism.cpus().iter().filter(|cpu| cpu.owner() == Some(function.number)).count();
    writeln!(f, "cpus {}", cpus)?;
    writeln!(f, "tasks {}", host.mechanism.tasks().len())?;
    writeln!(f, "runnable {}", enclave.runnable())?;
    match session {
        Some(session) => writeln!(f, "version {}", session.version)?,
        None => writeln!(f, "version none")?,
    }
    writeln!(f, "link {}", if watch.is_attached() { "up" } else { "down" })?;
    writeln!(f, "scheduler {}", if host.attached.load(Ordering::Acquire) { "attached" } else { "detached" })?;
    writeln!(f, "fault {}", watch.fault.map_or("none", Fault::name))
}

fn write_counters(counted: &Counted, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let function = &counted.0;
    let Some(host) = host() else { return Ok(()) };
    let own = || host.mechanism.cpus().iter().filter(|cpu| cpu.owner() == Some(function.number));
    for (count, name) in Count::ALL {
        let sum: u64 = own().map(|cpu| cpu.counters.get(count)).sum();
        writeln!(f, "{} {}", name, sum)?;
    }
    for outcome in Outcome::ALL.into_iter().skip(1) {
        let sum: u64 = own().map(|cpu| cpu.counters.of_outcome(outcome)).sum();
        writeln!(f, "outcome_{} {}", outcome.name(), sum)?;
    }
    let watch = function.watch.lock();
    writeln!(f, "resyncs {}", watch.resyncs)?;
    writeln!(f, "fallbacks {}", watch.fallbacks)?;
    writeln!(f, "comebacks {}", watch.comebacks)?;
    for (fault, count) in Fault::ALL.into_iter().zip(watch.faults) {
        writeln!(f, "fault_{} {}", fault.name(), count)?;
    }
    Ok(())
}
