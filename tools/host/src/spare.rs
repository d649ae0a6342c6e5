//! The spare: an enclave's policy as an agent on a thread of this process, over lines in its own memory, for when the IPU's
//! agent fails. It is the same policy over the same libOS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use neap_abi::control::policy_id;
use neap_abi::{AgentState, Clock, Message, Version};
use neap_agent::{Bindings, Doorbell, Idle};
use neap_policies::{TASKS, Task};
use neap_queue::{Full, Line, RingError};
use neap_vipu::Peer;

use crate::policies;
use crate::wire::Wire;

/// Lines in its ring.
const MESSAGE_LINES: usize = 4096;
/// Empty polls before it sleeps.
const POLLS_MAX: u32 = 50;
/// A sleep's longest time.
const SLEEP: Duration = Duration::from_millis(1);
/// How long its thread may take to end before it is left to itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// Its number: it is the only agent that these lines ever see.
const INCARNATION: u32 = 1;

/// What a spare is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spare {
    /// It runs the enclave's policy.
    #[default]
    Policy,
    /// It ends as soon as it is started: for tests of what comes then.
    Ends,
    /// It never decides: as above.
    Silent,
}

/// What agent and host share.
#[derive(Debug)]
struct Lines {
    messages: Vec<Line>,
    slots: Vec<Line>,
    control: Line,
    revoke: AtomicU64,
    ended: AtomicBool,
}

struct Bell(Arc<Peer>);

impl Doorbell for Bell {
    fn ring(&self, cpu: u16) {
        // Our own vectors are there as long as we are.
        let _ = self.0.ring(self.0.id(), cpu);
    }
}

struct Nap {
    began: Instant,
}

impl Idle for Nap {
    fn idle(&mut self, empty_polls: u32, drowse: &mut dyn FnMut() -> bool) {
        if empty_polls.is_multiple_of(POLLS_MAX) && drowse() {
            thread::park_timeout(SLEEP);
        } else {
            std::hint::spin_loop();
        }
    }

    fn now_ns(&mut self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

/// A spare at work; ended when dropped.
#[derive(Debug)]
pub struct SpareAgent {
    // In the order of their ends: what borrows before what is borrowed.
    wire: Wire<'static>,
    lines: Arc<Lines>,
    thread: Option<JoinHandle<()>>,
}

impl SpareAgent {
    /// Whether there is one for `policy`.
    #[must_use]
    pub fn knows(policy: &str) -> bool {
        policies::NUMBERS.contains(&policy_id(policy))
    }

    /// Starts one of `policy` for an enclave of which no CPU's number is `cpus` or higher; it rings the vectors of `peer` itself.
    ///
    /// # Errors
    /// None in practice: the ring is of a size that rings have.
    pub fn start(
        kind: Spare,
        policy: &str,
        cpus: u16,
        version: Version,
        peer: &Arc<Peer>,
    ) -> Result<Self, RingError> {
        let fresh = |count: usize| (0..count).map(|_| Line::default()).collect::<Vec<_>>();
        let lines = Arc::new(Lines {
            messages: fresh(MESSAGE_LINES),
            slots: fresh(usize::from(cpus)),
            control: Line::default(),
            revoke: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        // SAFETY: `Self` keeps the lines beside what borrows them, behind an `Arc` that is never given away or replaced,
        // and drops them after it. No borrow leaves with this lifetime: the accessor shortens it to that of `self`.
        let kept: &'static Lines = unsafe { &*Arc::as_ptr(&lines) };
        let wire = Wire::new(&kept.messages, &kept.slots, &kept.control)?;
        let theirs = Arc::clone(&lines);
        let bell = Bell(Arc::clone(peer));
        let policy = policy_id(policy);
        let body = move || {
            match kind {
                Spare::Policy => live(&theirs, bell, policy, version),
                Spare::Ends => {}
                Spare::Silent => {
                    while theirs.revoke.load(Ordering::Relaxed) == 0 {
                        thread::park_timeout(SLEEP);
                    }
                }
            }
            theirs.ended.store(true, Ordering::Release);
        };
        let thread = thread::Builder::new().name("neap-spare".to_owned()).spawn(body).ok();
        if thread.is_none() {
            lines.ended.store(true, Ordering::Release);
        }
        Ok(Self { wire, lines, thread })
    }

    /// The host's end of its lines.
    #[must_use]
    pub fn wire<'a>(&'a self) -> &'a Wire<'a> {
        &self.wire
    }

    /// Sends it a message, and wakes it.
    ///
    /// # Errors
    /// [`Full`], as on any wire.
    pub fn send(&self, message: Message) -> Result<u32, Full> {
        let number = self.wire.send(message)?;
        if let Some(thread) = &self.thread {
            // Waking one that is awake costs a store: whether it sleeps need not be asked.
            thread.thread().unpark();
        }
        Ok(number)
    }

    /// Whether it has ended, which it should not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // Its thread's end covers a panic too.
        self.lines.ended.load(Ordering::Acquire)
            || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
            || self.wire.agent().is_some_and(|agent| agent.state == AgentState::Dead)
    }
}

impl Drop for SpareAgent {
    fn drop(&mut self) {
        self.lines.revoke.store(1, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        let asked = Instant::now();
        while !thread.is_finished() {
            if asked.elapsed() > PATIENCE {
                // It holds its lines itself: nothing is taken from under it.
                return;
            }
            thread.thread().unpark();
            thread::sleep(Duration::from_micros(100));
        }
        // A panic in it is an end like any other.
        let _ = thread.join();
    }
}

fn live(lines: &Lines, bell: Bell, policy: u32, version: Version) {
    let mut memory = vec![Task::default(); TASKS];
    let bindings = Bindings {
        slots: &lines.slots,
        control: &lines.control,
        revoke: &lines.revoke,
        doorbell: bell,
        core: 0,
        wake: (0, 0),
        session: 0,
        version,
        incarnation: INCARNATION,
        taken: 0,
        resyncs: 0,
        clock: Clock::Own,
    };
    // An error is an end, and seen as one.
    let _ =
        policies::start(policy, bindings, &lines.messages, &mut memory, &mut Nap { began: Instant::now() });
}
