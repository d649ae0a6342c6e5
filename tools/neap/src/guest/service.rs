//! The key-value store as a real service: threads in SCHED_EXT, one woken for each request.
//!
//! Who makes the load and who counts it are in the normal class and never wait for a lock that a serving thread could
//! hold: when the agent fails, the load goes on.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use crossbeam_queue::SegQueue;
use hdrhistogram::Histogram;
use neap_host::report::Latency;
use neap_host::worker::{Step, Work};

use super::life::{Guest, NAP, TELL};
use super::tally::{Tally, Tasks};
use crate::driver::class;
use crate::measured::{Distribution, Measured};
use crate::worker::arrivals::Arrivals;
use crate::worker::gets::Gets;
use crate::worker::{DRAIN, Line, drive, merged};

/// Threads that serve: more than are ever at work at a modest load, so that a request always finds one to wake.
const SERVERS: usize = 32;
/// How long they may take to be scheduled for the first time.
const BEGIN: Duration = Duration::from_secs(30);
/// How long they may take to end.
const END: Duration = Duration::from_secs(10);

/// A request that has arrived.
#[derive(Debug)]
struct Request {
    number: u64,
    arrived: Instant,
}

/// A request that was served.
#[derive(Debug)]
struct Served {
    number: u64,
    took: Duration,
}

/// What generator and servers share.
struct Shared {
    gets: Gets,
    waiting: SegQueue<Request>,
    /// Servers that sleep, by number, each at most once.
    idle: SegQueue<usize>,
    listed: Vec<AtomicBool>,
    threads: Vec<OnceLock<Thread>>,
    created: AtomicU64,
    started: AtomicU64,
    closed: AtomicBool,
}

impl Shared {
    fn new(gets: Gets, servers: usize) -> Self {
        Self {
            gets,
            waiting: SegQueue::new(),
            idle: SegQueue::new(),
            listed: (0..servers).map(|_| AtomicBool::new(false)).collect(),
            threads: (0..servers).map(|_| OnceLock::new()).collect(),
            created: AtomicU64::new(0),
            started: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// A request arrives: a server that sleeps is woken for it, or the first that is done takes it.
    fn submit(&self, number: u64) {
        self.created.fetch_add(1, Ordering::Relaxed);
        self.waiting.push(Request { number, arrived: Instant::now() });
        // Either a server that lies down sees the request, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if let Some(server) = self.idle.pop() {
            self.listed[server].store(false, Ordering::SeqCst);
            self.wake(server);
        }
    }

    fn wake(&self, server: usize) {
        if let Some(thread) = self.threads[server].get() {
            thread.unpark();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        (0..self.threads.len()).for_each(|server| self.wake(server));
    }

    /// A server's life.
    fn serve(&self, server: usize, served: &Sender<Served>) {
        loop {
            if let Some(request) = self.waiting.pop() {
                self.started.fetch_add(1, Ordering::Relaxed);
                self.carry_out(&request);
                let took = request.arrived.elapsed();
                let _ = served.send(Served { number: request.number, took });
                continue;
            }
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            if !self.listed[server].swap(true, Ordering::SeqCst) {
                self.idle.push(server);
            }
            fence(Ordering::SeqCst);
            if self.waiting.is_empty() && !self.closed.load(Ordering::SeqCst) {
                thread::park();
            }
        }
    }

    fn carry_out(&self, request: &Request) {
        for step in 0.. {
            match self.gets.step(request.number, step) {
                Step::Done => return,
                // The kernel preempts it wherever it is.
                Step::Going => {}
                Step::Yield => thread::yield_now(),
                Step::Block { for_us } => thread::sleep(Duration::from_micros(for_us)),
            }
        }
    }

    /// Requests that wait for their server to run.
    fn depth(&self) -> u64 {
        self.created.load(Ordering::Relaxed).saturating_sub(self.started.load(Ordering::Relaxed))
    }
}

/// The service, its threads in their class.
pub struct Service {
    shared: Arc<Shared>,
    served: Receiver<Served>,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts the threads with `enter`, which puts a thread into its class, and waits until each has run.
    pub fn start(gets: Gets, servers: usize, enter: fn() -> std::io::Result<()>) -> Result<Self> {
        let shared = Arc::new(Shared::new(gets, servers));
        let (sender, served) = mpsc::channel();
        let (ready, all_ready) = mpsc::channel();
        let mut threads = Vec::new();
        for server in 0..servers {
            let (shared, sender, ready) = (Arc::clone(&shared), sender.clone(), ready.clone());
            let life = move || {
                let _ = shared.threads[server].set(thread::current());
                let entered = enter();
                let failed = entered.is_err();
                let _ = ready.send(entered);
                if !failed {
                    shared.serve(server, &sender);
                }
            };
            let thread = thread::Builder::new().name(format!("server-{server}")).spawn(life);
            threads.push(thread.context("starting a thread that serves")?);
        }
        let since = Instant::now();
        for at in 0..servers {
            match all_ready.recv_timeout(BEGIN.saturating_sub(since.elapsed())) {
                Ok(entered) => entered.context("putting a thread into SCHED_EXT")?,
                Err(_) => bail!(
                    "{} of {servers} threads were not scheduled in {} s after they had come into SCHED_EXT",
                    servers - at,
                    BEGIN.as_secs()
                ),
            }
        }
        Ok(Self { shared, served, threads })
    }

    /// Ends the threads. Those that don't end are as many as is returned.
    fn end(self) -> usize {
        self.shared.close();
        let since = Instant::now();
        while since.elapsed() < END && !self.threads.iter().all(JoinHandle::is_finished) {
            thread::sleep(NAP);
        }
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }
}

/// What was counted of requests that were served.
struct Counted {
    took: Histogram<u64>,
    numbers: HashSet<u64>,
    finished: u64,
    doubled: u64,
}

impl Counted {
    fn new() -> Result<Self> {
        // As the worker host's: 1 ns to 10 minutes.
        let took = Histogram::new_with_bounds(1, 600_000_000_000, 3).context("making a histogram")?;
        Ok(Self { took, numbers: HashSet::new(), finished: 0, doubled: 0 })
    }

    fn take(&mut self, served: &Receiver<Served>) {
        for Served { number, took } in served.try_iter() {
            if self.numbers.insert(number) {
                self.finished += 1;
            } else {
                self.doubled += 1;
            }
            self.took.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// Puts the load on the store until its time is over, waits for what is left, and measures.
pub fn run(guest: &Guest, gets: Gets, tally: &mut Tally) -> Result<Measured> {
    let asked = &guest.order.parameters;
    let service = Service::start(gets, SERVERS, class::enter)?;
    let shared = Arc::clone(&service.shared);
    let arrivals = Arrivals::new(asked.rate, asked.seed)?;
    let (load, offered) = (Duration::from_secs_f64(asked.seconds), Arc::new(AtomicU64::new(0)));
    let generator = {
        let (shared, stop, offered) = (Arc::clone(&shared), Arc::clone(&guest.stop), Arc::clone(&offered));
        thread::spawn(move || drive(|number| shared.submit(number), 0, arrivals, load, &stop, &offered))
    };
    let began = Instant::now();
    let mut counted = Counted::new()?;
    let mut depth = Vec::new();
    let mut told: Option<Instant> = None;
    let mut draining: Option<Instant> = None;
    loop {
        counted.take(&service.served);
        tally.look();
        let now_ms = began.elapsed().as_millis() as u64;
        depth.push((now_ms, shared.depth()));
        if draining.is_none() && told.is_none_or(|told| told.elapsed() >= TELL) {
            told = Some(Instant::now());
            let at = |quantile| counted.took.value_at_quantile(quantile) as f64 / 1e3;
            let figures = tally.figures()?;
            guest.channel.tell(&Line::Running(Box::new(Measured {
                elapsed_s: began.elapsed().as_secs_f64(),
                requests_offered: offered.load(Ordering::Relaxed),
                tasks_created: shared.created.load(Ordering::Relaxed),
                tasks_finished: counted.finished,
                queue_depth: depth.last().copied().into_iter().collect(),
                request: Distribution {
                    count: counted.finished,
                    p50: at(0.5),
                    p99: at(0.99),
                    ..Distribution::default()
                },
                ..figures
            })));
        }
        match draining {
            None if generator.is_finished() => {
                guest.channel.tell(&Line::Draining);
                draining = Some(Instant::now());
            }
            Some(since) => {
                let all = counted.finished >= shared.created.load(Ordering::Relaxed);
                if all || since.elapsed() >= DRAIN {
                    break;
                }
            }
            None => {}
        }
        thread::sleep(NAP);
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    generator.join().map_err(|_| anyhow!("the load panicked"))?;
    // The threads' way out of the class is scheduled too; the last that they did is told before it.
    let stuck = service.end();
    tally.look();
    let created = shared.created.load(Ordering::Relaxed);
    let tasks = Tasks {
        created,
        finished: counted.finished,
        lost: created.saturating_sub(counted.finished),
        doubled: counted.doubled,
    };
    let latency = Latency::of(&counted.took);
    let mut work = Measured {
        requests_offered: offered.load(Ordering::Relaxed),
        values_wrong: shared.gets.wrong(),
        request: merged::whole(&latency),
        queue_depth: depth,
        remarks: shared.gets.first_wrong().into_iter().collect(),
        ..Measured::default()
    };
    if stuck > 0 {
        work.troubles.push(format!("{stuck} threads in SCHED_EXT did not end in {} s", END.as_secs()));
    }
    let measured = tally.measured(asked, &tasks, work)?;
    Ok(Measured { elapsed_s, ..measured })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Parameters;
    use crate::report::tests::example;
    use crate::worker::store::Store;

    fn service(servers: usize, keys: u64, blocking_percent: f64, yielding_percent: f64) -> Service {
        let asked = Parameters { blocking_percent, yielding_percent, keys, ..example().parameters };
        let gets = Gets::new(Store::load(keys, asked.seed, |_| {}).unwrap(), &asked);
        Service::start(gets, servers, || Ok(())).unwrap()
    }

    #[test]
    fn every_request_is_served_once_whoever_sleeps() {
        for servers in [1, 4] {
            let service = service(servers, 100, 10.0, 20.0);
            let mut counted = Counted::new().unwrap();
            for number in 0..3000 {
                service.shared.submit(number);
                // Now and then all have time to lie down.
                if number % 500 == 0 {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            let since = Instant::now();
            while counted.finished < 3000 {
                counted.take(&service.served);
                assert!(
                    since.elapsed() < Duration::from_secs(60),
                    "{} of 3000 were served",
                    counted.finished
                );
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!((counted.doubled, service.shared.depth(), counted.took.len()), (0, 0, 3000));
            assert_eq!(service.shared.gets.wrong(), 0);
            assert_eq!(service.end(), 0);
        }
    }

    #[test]
    fn a_request_that_is_served_twice_is_counted() {
        let mut counted = Counted::new().unwrap();
        let (sender, served) = mpsc::channel();
        for number in [1, 2, 1] {
            sender.send(Served { number, took: Duration::from_micros(5) }).unwrap();
        }
        counted.take(&served);
        assert_eq!((counted.finished, counted.doubled), (2, 1));
    }

    #[test]
    fn a_thread_that_is_refused_its_class_is_told() {
        let asked = example().parameters;
        let gets = Gets::new(Store::load(1, asked.seed, |_| {}).unwrap(), &asked);
        let refuse = || Err(std::io::ErrorKind::PermissionDenied.into());
        let error = Service::start(gets, 2, refuse).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("SCHED_EXT"), "{error:#}");
    }
}
