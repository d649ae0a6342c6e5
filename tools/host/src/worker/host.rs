//! A host: its CPUs, its task numbers, and the enclaves that share them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::cpu::LOOK_UP;
use super::enclave::Enclave;
use super::pressure::Pressure;
use super::watch::BEAT;
use super::{EnclaveConfig, Work, WorkerError};
use crate::ownership::{Owner, Owners};
use crate::report::Report;

/// A CPU that is wanted elsewhere may take so long to end its task's step.
const MOVE: Duration = Duration::from_secs(30);

/// What a host has.
#[derive(Clone, Copy, Debug)]
pub struct HostConfig {
    /// CPUs.
    pub cpus: u16,
    /// Task numbers, over all enclaves.
    pub tasks: u32,
}

/// Why a CPU was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MoveError {
    /// The host has no such CPU.
    #[error("CPU {cpu} was to be moved, and this host has {cpus}: use 0 to {}", cpus.saturating_sub(1))]
    NoSuchCpu {
        /// The CPU.
        cpu: u16,
        /// How many there are.
        cpus: u16,
    },
    /// There is no such enclave.
    #[error("CPU {cpu} was to be moved to enclave {enclave}, which is not there (any more)")]
    NoSuchEnclave {
        /// The CPU.
        cpu: u16,
        /// The enclave.
        enclave: u16,
    },
    /// The CPU did not come.
    #[error("CPU {cpu} has not ended its task's step in {waited_ms} ms; it moves when it has")]
    Busy {
        /// The CPU.
        cpu: u16,
        /// How long we waited.
        waited_ms: u128,
    },
}

/// Task numbers that are free.
#[derive(Debug)]
pub(super) struct TaskNumbers(Mutex<VecDeque<u32>>);

impl TaskNumbers {
    fn new(tasks: u32) -> Self {
        Self(Mutex::new((0..tasks).collect()))
    }

    /// One of them.
    pub(super) fn take(&self) -> Option<u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// One is free again.
    pub(super) fn give_back(&self, task: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(task);
    }
}

/// Where a CPU is to be, and where it is.
#[derive(Clone, Copy, Debug, Default)]
struct Posting {
    wanted: Option<u16>,
    serves: Option<u16>,
}

#[derive(Debug, Default)]
struct Post {
    posting: Mutex<Posting>,
    changed: Condvar,
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, Posting> {
        self.posting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, posting: MutexGuard<'a, Posting>, time: Duration) -> MutexGuard<'a, Posting> {
        self.changed.wait_timeout(posting, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A host at work.
#[derive(Debug)]
pub struct Host<'w, W> {
    work: &'w W,
    owners: Arc<Owners>,
    numbers: Arc<TaskNumbers>,
    posts: Vec<Post>,
    enclaves: Mutex<BTreeMap<u16, Arc<Enclave>>>,
    /// Held while an enclave is made, destroyed or resized: one at a time. The next one's number.
    changing: Mutex<u16>,
    ended: Mutex<Vec<Report>>,
    start: Instant,
    stop: AtomicBool,
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Is a host whose tasks do `work`, until `drive` returns, which makes enclaves and creates their tasks. Returns what it
/// returns, and the reports of all enclaves by number.
pub fn with_host<W: Work, R>(
    config: &HostConfig,
    work: &W,
    drive: impl FnOnce(&Host<'_, W>) -> R,
) -> (R, Vec<Report>) {
    let host = Host {
        work,
        owners: Arc::new(Owners::new(config.cpus, config.tasks)),
        numbers: Arc::new(TaskNumbers::new(config.tasks)),
        posts: (0..config.cpus).map(|_| Post::default()).collect(),
        enclaves: Mutex::default(),
        changing: Mutex::new(0),
        ended: Mutex::default(),
        start: Instant::now(),
        stop: AtomicBool::new(false),
    };
    let driven = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&host.stop);
        for cpu in 0..config.cpus {
            let host = &host;
            scope.spawn(move || host.cpu(cpu));
        }
        scope.spawn(|| host.housekeeping());
        let driven = drive(&host);
        for enclave in host.enclaves() {
            host.destroy_enclave(enclave.id());
        }
        driven
    });
    let mut reports = host.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by_key(|report| report.enclave);
    (driven, reports)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Work> Host<'_, W> {
    /// Makes an enclave: attaches to its IPU function, gives it its CPUs, and tells its agent of them.
    ///
    /// # Errors
    /// CPUs that are not there or another enclave's; whatever kept it from attaching. Nothing has changed then.
    pub fn create_enclave(&self, config: EnclaveConfig) -> Result<Arc<Enclave>, WorkerError> {
        let mut next = locked(&self.changing);
        if config.cpus.is_empty() {
            return Err(WorkerError::NoCpus);
        }
        for &cpu in &config.cpus {
            match self.owners.cpu(cpu) {
                Owner::Nobody => {}
                Owner::Absent => return Err(WorkerError::NoSuchCpu { cpu, cpus: self.owners.cpus() }),
                Owner::Enclave(_) => return Err(WorkerError::CpuTaken { cpu }),
            }
        }
        let (owners, numbers) = (Arc::clone(&self.owners), Arc::clone(&self.numbers));
        let enclave = Arc::new(Enclave::attach(*next, config, owners, numbers, self.start)?);
        *next += 1;
        locked(&self.enclaves).insert(enclave.id(), Arc::clone(&enclave));
        for &cpu in &enclave.config().cpus {
            // An idle CPU comes at once. It waits for nothing but a lock that nobody holds for long.
            let _ = self.post(cpu, Some(enclave.id()));
        }
        Ok(enclave)
    }

    /// Ends an enclave, whatever state it or its agent is in: its CPUs are nobody's, its task numbers free, its agent
    /// detached. Its report; none where there is no such enclave (any more).
    pub fn destroy_enclave(&self, enclave: u16) -> Option<Report> {
        let _one = locked(&self.changing);
        let enclave = locked(&self.enclaves).get(&enclave).map(Arc::clone)?;
        enclave.begin_close();
        for cpu in enclave.cpus() {
            // A CPU that is stuck in a task stays until that ends; the others have left.
            let _ = self.post(cpu, None);
        }
        let report = enclave.close();
        locked(&self.enclaves).remove(&enclave.id());
        locked(&self.ended).push(report.clone());
        Some(report)
    }

    /// Moves a CPU to another enclave, or to none. What it is about to run goes back to the enclave that it leaves; what it
    /// runs, it runs to the end of its step.
    ///
    /// # Errors
    /// A CPU or an enclave that is not there; a step that does not end.
    pub fn move_cpu(&self, cpu: u16, to: Option<u16>) -> Result<(), MoveError> {
        let _one = locked(&self.changing);
        if usize::from(cpu) >= self.posts.len() {
            return Err(MoveError::NoSuchCpu { cpu, cpus: self.owners.cpus() });
        }
        if let Some(enclave) = to
            && !locked(&self.enclaves).contains_key(&enclave)
        {
            return Err(MoveError::NoSuchEnclave { cpu, enclave });
        }
        self.post(cpu, to)
    }

    fn post(&self, cpu: u16, to: Option<u16>) -> Result<(), MoveError> {
        let Some(post) = self.posts.get(usize::from(cpu)) else { return Ok(()) };
        let mut posting = post.lock();
        posting.wanted = to;
        post.changed.notify_all();
        let serves = posting.serves;
        drop(posting);
        if let Some(enclave) = serves.and_then(|enclave| self.enclave(enclave)) {
            enclave.kick(cpu);
        }
        let asked = Instant::now();
        let mut posting = post.lock();
        while posting.serves != to {
            if asked.elapsed() >= MOVE {
                return Err(MoveError::Busy { cpu, waited_ms: asked.elapsed().as_millis() });
            }
            posting = post.wait(posting, LOOK_UP);
        }
        Ok(())
    }

    /// The enclaves, by number.
    #[must_use]
    pub fn enclaves(&self) -> Vec<Arc<Enclave>> {
        locked(&self.enclaves).values().cloned().collect()
    }

    /// An enclave by its number.
    #[must_use]
    pub fn enclave(&self, enclave: u16) -> Option<Arc<Enclave>> {
        locked(&self.enclaves).get(&enclave).cloned()
    }

    /// Who owns what.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Since the host began: the clock of its events.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until no task is left in any enclave, or `limit` is over.
    pub fn drain(&self, limit: Duration) {
        let start = Instant::now();
        while start.elapsed() < limit && !self.enclaves().iter().all(|enclave| enclave.is_drained()) {
            std::thread::sleep(BEAT);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A CPU's life, in one enclave after another.
    fn cpu(&self, cpu: u16) {
        let post = &self.posts[usize::from(cpu)];
        let mut serves: Option<Arc<Enclave>> = None;
        while !self.stopped() {
            let posting = post.lock();
            if posting.wanted != posting.serves {
                let wanted = posting.wanted;
                drop(posting);
                if let Some(enclave) = serves.take() {
                    enclave.leave(cpu);
                }
                serves = wanted.and_then(|enclave| self.enclave(enclave));
                if let Some(enclave) = &serves {
                    enclave.join(cpu);
                }
                post.lock().serves = wanted;
                post.changed.notify_all();
                continue;
            }
            let Some(enclave) = &serves else {
                drop(post.wait(posting, LOOK_UP));
                continue;
            };
            drop(posting);
            let leave = || {
                let posting = post.lock();
                posting.wanted != posting.serves || self.stopped()
            };
            enclave.turn(cpu, self.work, &leave);
        }
    }

    fn housekeeping(&self) {
        let mut last = Instant::now();
        let mut pressure = Pressure::new();
        while !self.stopped() {
            let gap = last.elapsed();
            last = Instant::now();
            let stalled = pressure.stalled();
            for enclave in self.enclaves() {
                enclave.beat(gap, stalled);
            }
            std::thread::sleep(BEAT);
        }
    }
}
