//! Agents' cores: how a core is owned, and how an agent is entered.

use core::num::NonZeroU32;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use neap_abi::Version;
use neap_agent::{AgentError, Bindings, Doorbell, Exit};
use neap_hal::cpu::timer::Timer;
use neap_hal::soc::msix::Doorbells;
use neap_policies::Task;
use neap_queue::Line;

use crate::cores;
use crate::idle::CoreIdle;
use crate::session::CoreState;

/// All that an agent may touch: its secure binding.
pub struct Grant {
    /// The message ring, fresh.
    pub messages: &'static [Line],
    /// The decision slots, fresh, one for each host CPU of the enclave.
    pub slots: &'static [Line],
    /// Its control line.
    pub control: &'static Line,
    /// The doorbells of those CPUs.
    pub doorbell: Bell,
    /// Memory of its own.
    pub memory: PrivateMemory,
    /// Our own peer number in the enclave's domain, for the host to wake the agent by.
    pub peer: u16,
    /// The host's session.
    pub session: u32,
    /// The version that host and IPU speak.
    pub version: Version,
}

/// The right to ring the enclave's host CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Bell(pub Doorbells<'static>);

impl Doorbell for Bell {
    #[inline(always)]
    fn ring(&self, cpu: u16) {
        // The libOS rings no CPU outside the enclave; the handle would not either.
        self.0.ring(cpu);
    }
}

/// One agent's own memory: the supervisor's to give out, to one agent at a time.
#[derive(Debug)]
pub struct PrivateMemory {
    tasks: NonNull<Task>,
    count: usize,
}

// SAFETY: the memory belongs to nobody but who holds this.
unsafe impl Send for PrivateMemory {}

impl PrivateMemory {
    /// Memory for one agent.
    pub fn new(tasks: &'static mut [Task]) -> Self {
        Self { count: tasks.len(), tasks: NonNull::from(tasks).cast() }
    }

    /// The same memory again, for the next agent.
    ///
    /// # Safety
    /// The agent that was given it has ended.
    pub unsafe fn again(&self) -> Self {
        Self { tasks: self.tasks, count: self.count }
    }

    fn into_tasks(self) -> &'static mut [Task] {
        // SAFETY: `new` took a slice of this length for good, and this is its only holder.
        unsafe { core::slice::from_raw_parts_mut(self.tasks.as_ptr(), self.count) }
    }
}

/// Runs an agent on this core until it gives the core back. This is where an agent meets its bindings, and the only place
/// that knows at which exception level it runs.
fn enter(core: u8, grant: Grant, idle: &mut CoreIdle) -> Result<Exit, AgentError> {
    let bindings = Bindings {
        slots: grant.slots,
        control: grant.control,
        revoke: &cores::core(core.into()).revoke,
        doorbell: grant.doorbell,
        core,
        wake: (grant.peer, core.into()),
        session: grant.session,
        version: grant.version,
    };
    neap_agent_fifo::start(bindings, grant.messages, grant.memory.into_tasks(), idle)
}

/// A started core's life: it sleeps until it is given an agent, runs it, and sleeps again.
///
/// # Panics
/// When the machine does not let it join; its epitaph then says why.
pub fn own(number: usize) -> ! {
    let core = cores::core(number);
    let Some(shared) = cores::shared() else { panic!("core {number} started before the machine was up") };
    let timer = Timer::new().unwrap_or_else(|error| panic!("{error}"));
    let interface = shared.gic.join().unwrap_or_else(|error| panic!("{error}"));
    core.set_target(interface.target());
    if let Some(frame) = shared.message_frame {
        // A core beyond the frame's last interrupt is woken by timer only.
        if (number as u32) < frame.count
            && let Err(error) = shared.gic.route(frame.first + number as u32, &interface)
        {
            panic!("{error}");
        }
    }
    let mut idle = CoreIdle::new(shared.args.idle, timer, interface, shared.message_frame.is_some());
    core.set_state(CoreState::Ready);
    defmt::debug!("core {=usize} is ready", number);
    loop {
        let Some(grant) = core.take() else {
            idle.sleep(None);
            continue;
        };
        core.session.store(grant.session, Ordering::Relaxed);
        defmt::info!("session {=u32}: agent starts on core {=usize}", grant.session, number);
        match enter(number as u8, grant, &mut idle) {
            Ok(Exit::Revoked) => defmt::info!("agent on core {=usize} has stopped", number),
            Err(error) => panic!("the agent can't start: {error}"),
        }
        core.set_state(CoreState::Ready);
        cores::core(0).wake();
    }
}

/// Nanoseconds that a drowsy agent sleeps at most: a host's vector wakes it earlier. Where no vector can (GICv3) the
/// timer is all there is, so the sleep is short.
pub(crate) const SLEEP_NS: NonZeroU32 = NonZeroU32::new(2_000_000).unwrap();
/// As [`SLEEP_NS`], where only the timer wakes.
pub(crate) const NAP_NS: NonZeroU32 = NonZeroU32::new(100_000).unwrap();
