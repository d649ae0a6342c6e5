// SPDX-License-Identifier: GPL-2.0
//! What there is one of: the mechanism with its memory, and the functions that are there.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use kernel::{prelude::*, sync::Arc};
use neap_mechanism::events::Wires;
use neap_mechanism::{Cpu, Enclave, Mechanism, Task, Wire, ENCLAVES_MAX};

use crate::function::Function;
use crate::session::Session;
use crate::window::Hardware;

/// What the module stands on.
pub(crate) struct Host {
    /// The mechanism. Its memory is below, and ends after it.
    pub(crate) mechanism: Mechanism<'static>,
    /// Attached sessions, by enclave. Read within a read-side section of RCU; see [`Host::publish`].
    sessions: [AtomicPtr<Session>; ENCLAVES_MAX],
    /// Why the class is to be left, as `enum neap_fault`; 0 while it is not.
    pub(crate) cause: AtomicU32,
    /// Whether the sched_ext program is attached.
    pub(crate) attached: AtomicBool,
    _tasks: KVVec<Task>,
    _cpus: KVVec<Cpu>,
    _enclaves: KVVec<Enclave>,
}

static HOST: AtomicPtr<Host> = AtomicPtr::new(core::ptr::null_mut());

kernel::sync::global_lock! {
    // SAFETY: Initialised by `Owner::new`, before anything else of the module runs.
    pub(crate) unsafe(uninit) static FUNCTIONS: Mutex<[Option<Arc<Function>>; ENCLAVES_MAX]> =
        [const { None }; ENCLAVES_MAX];
}

/// Keeps the host: there is one while this lives.
pub(crate) struct Owner;

fn filled<T: Default>(count: usize) -> Result<KVVec<T>> {
    let mut all = KVVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        all.push(T::default(), GFP_KERNEL)?;
    }
    Ok(all)
}

/// A vector's elements, for as long as the vector is kept.
///
/// # Safety
/// The vector outlives the slice, and is not changed.
unsafe fn kept<T>(vector: &KVVec<T>) -> &'static [T] {
    // SAFETY: By this function's own requirement.
    unsafe { core::slice::from_raw_parts(vector.as_ptr(), vector.len()) }
}

impl Owner {
    /// Makes the host, for `tasks` tasks.
    pub(crate) fn new(tasks: u32) -> Result<Self> {
        if !tasks.is_power_of_two() || !(64..=32768).contains(&tasks) {
            pr_err!("tasks={} is no power of two from 64 to 32768\n", tasks);
            return Err(EINVAL);
        }
        // SAFETY: Nothing of the module runs yet, and this is its one call.
        unsafe { FUNCTIONS.init() };
        let count = tasks as usize;
        let cpus = kernel::cpu::nr_cpu_ids().min(u32::from(neap_abi::CPUS_MAX)) as usize;
        let (tasks, cpus) = (filled::<Task>(count)?, filled::<Cpu>(cpus)?);
        let enclaves = filled::<Enclave>(ENCLAVES_MAX)?;
        // SAFETY: The vectors move into the host beside the mechanism, are never changed there, and are freed with it.
        let mechanism = unsafe { Mechanism::new(kept(&tasks), kept(&cpus), kept(&enclaves)) };
        let host = KBox::new(
            Host {
                mechanism,
                sessions: [const { AtomicPtr::new(core::ptr::null_mut()) }; ENCLAVES_MAX],
                cause: AtomicU32::new(0),
                attached: AtomicBool::new(false),
                _tasks: tasks,
                _cpus: cpus,
                _enclaves: enclaves,
            },
            GFP_KERNEL,
        )?;
        let turn_ms = u64::from(crate::module_parameters::turn_ms.value().max(1));
        host.mechanism.set_turn_ns(turn_ms * 1_000_000);
        for cpu in 0..host.mechanism.cpus().len() {
            // SAFETY: The number is below `nr_cpu_ids`.
            host.mechanism.set_online(cpu as u16, unsafe { neap_cpu_online(cpu as u32) });
        }
        HOST.store(KBox::into_raw(host), Ordering::Release);
        Ok(Self)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let host = HOST.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if !host.is_null() {
            // SAFETY: It came from `KBox::into_raw`. The BPF programs that call kfuncs hold a reference to the module, and the
            // beat and the functions have ended, so that nobody uses it any more.
            drop(unsafe { KBox::from_raw(host) });
        }
    }
}

/// The host, once it is there.
pub(crate) fn host() -> Option<&'static Host> {
    // SAFETY: The pointer is null or a host that lives as long as the module's code can run; see `Owner::drop`.
    unsafe { HOST.load(Ordering::Acquire).as_ref() }
}

impl Host {
    /// Has a session's wire be used from now on, or none. The one before may be in use until it has left.
    pub(crate) fn publish(&self, enclave: u8, session: Option<KBox<Session>>) -> Option<Leaving> {
        let place = self.sessions.get(usize::from(enclave))?;
        let next = session.map_or(core::ptr::null_mut(), KBox::into_raw);
        let before = place.swap(next, Ordering::AcqRel);
        if before.is_null() {
            return None;
        }
        // SAFETY: No precondition.
        let grace = unsafe { kernel::bindings::start_poll_synchronize_rcu() };
        Some(Leaving { session: before, grace })
    }

    /// An enclave's session.
    ///
    /// Whoever calls is in a read-side section of RCU, or holds the function's watch, whose holder alone publishes.
    pub(crate) fn session(&self, enclave: u8) -> Option<&Session> {
        let place = self.sessions.get(usize::from(enclave))?;
        // SAFETY: A session is freed only after a grace period (`Leaving`), once the holder of the function's watch has taken it
        // from its place.
        unsafe { place.load(Ordering::Acquire).as_ref() }
    }
}

/// A session that somebody may still be using, who found it before another was published.
///
/// Its grace period is not waited for by the thread that looks after all functions: it lasts for as long as tasks take that are
/// in a read-side section of RCU, and those may wait for another function's agent, which only that thread can end.
pub(crate) struct Leaving {
    session: *mut Session,
    grace: usize,
}

// SAFETY: It owns the session, which threads may share.
unsafe impl Send for Leaving {}

impl Leaving {
    /// Whether nobody uses it any more.
    pub(crate) fn is_over(&self) -> bool {
        // SAFETY: The cookie came from `start_poll_synchronize_rcu`.
        unsafe { kernel::bindings::poll_state_synchronize_rcu(self.grace) }
    }
}

impl Drop for Leaving {
    /// Frees the session. Sleeps until nobody uses it any more, if need be.
    fn drop(&mut self) {
        if !self.is_over() {
            // SAFETY: No precondition but that the caller may sleep.
            unsafe { kernel::bindings::synchronize_rcu() };
        }
        // SAFETY: It came from `KBox::into_raw` in `Host::publish`, nobody can find it any more, and whoever had found it is done.
        drop(unsafe { KBox::from_raw(self.session) });
    }
}

impl Wires for Host {
    type Hardware = Hardware;

    fn wire(&self, enclave: u8) -> Option<&Wire<'_, Hardware>> {
        Some(&self.session(enclave)?.wire)
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

/// Waits until everybody who looks under a runqueue's lock, or with interrupts off, has seen what was said before. May sleep.
///
/// Not a grace period of RCU's: that waits for tasks too that were preempted in a read-side section, and those may be the very
/// ones that wait for a decision.
pub(crate) fn runqueues_pass() {
    // SAFETY: No precondition but that the caller may sleep.
    unsafe { kernel::bindings::kick_all_cpus_sync() };
}

/// Monotonic time, in ns; from any context.
pub(crate) fn now_ns() -> u64 {
    // SAFETY: No precondition; it may even be called from an NMI.
    unsafe { kernel::bindings::ktime_get_mono_fast_ns() }
}

extern "C" {
    fn neap_cpu_online(cpu: u32) -> bool;
    fn neap_kick_hook(cpu: i32, preempt: u32);
}

/// Makes a CPU look at its slot; `preempt`s what runs there.
pub(crate) fn kick(cpu: u16, preempt: bool) {
    let _off = kernel::interrupt::local_interrupt_disable();
    // SAFETY: The hook has no precondition but that interrupts are off.
    unsafe { neap_kick_hook(i32::from(cpu), u32::from(preempt)) };
}
