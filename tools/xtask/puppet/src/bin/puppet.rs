//! The puppet: the first and only program of a guest, and each of its workers.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_puppet::{Answer, Class, Order, Said, Told, WORKERS_MAX, Word, Worker};

/// Where the test is.
const LINE: &str = "/dev/ttyS1";
/// What puppet and workers share.
const SHARED: &str = "/dev/shm/puppet";
/// `SCHED_EXT` in `linux/sched.h`.
const SCHED_EXT: i32 = 7;
/// How long a daemon may take to end when it is told to.
const END: Duration = Duration::from_secs(20);
/// What is mounted where.
const MOUNTS: [(&CStr, &CStr); 10] = [
    (c"proc", c"/proc"),
    (c"sysfs", c"/sys"),
    (c"devtmpfs", c"/dev"),
    (c"tmpfs", c"/dev/shm"),
    (c"tmpfs", c"/tmp"),
    (c"tmpfs", c"/run"),
    (c"debugfs", c"/sys/kernel/debug"),
    (c"tracefs", c"/sys/kernel/tracing"),
    (c"cgroup2", c"/sys/fs/cgroup"),
    (c"bpf", c"/sys/fs/bpf"),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match (words.next().as_deref(), words.next().and_then(|number| number.parse().ok())) {
        (Some("worker"), Some(number)) => work(number),
        _ => serve(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The console is all that is left to say it to.
            eprintln!("puppet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A worker's place in the shared memory.
#[repr(C, align(64))]
struct Place {
    word: AtomicU32,
    class: AtomicU32,
    rounds: AtomicU64,
    /// Bit i: it may use CPU i.
    cpus: AtomicU64,
}

fn last<T>(result: libc::c_int, done: T) -> std::io::Result<T> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(done) }
}

/// The shared memory.
fn shared() -> Result<&'static [Place]> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(SHARED)?;
    let bytes = size_of::<Place>() * WORKERS_MAX;
    file.set_len(bytes as u64)?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: a new mapping at a place of the system's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
    ensure!(at != libc::MAP_FAILED, "{SHARED} can't be mapped: {}", std::io::Error::last_os_error());
    // SAFETY: the mapping is that long, page-aligned, never unmapped, and only reached through atomics, which hold any bits.
    Ok(unsafe { std::slice::from_raw_parts(at.cast::<Place>(), WORKERS_MAX) })
}

/// Waits while `word` holds `value`.
fn wait_while(word: &AtomicU32, value: u32) {
    let (at, nothing) = (word.as_ptr(), std::ptr::null::<libc::timespec>());
    // SAFETY: the word is mapped as long as we are; the kernel looks at it, and comes back at once if it is another.
    unsafe { libc::syscall(libc::SYS_futex, at, libc::FUTEX_WAIT, value, nothing) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Changes the CPUs of process `pid`, 0 being ourselves; all if none is named.
fn allow(pid: i32, cpus: u64) -> std::io::Result<()> {
    let mut mask = [if cpus == 0 { u64::MAX } else { cpus }; 16];
    if cpus != 0 {
        mask[1..].fill(0);
    }
    // SAFETY: the mask is as long as is said, and lives.
    let result = unsafe { libc::sched_setaffinity(pid, size_of_val(&mask), mask.as_ptr().cast()) };
    last(result, ())
}

fn bits(cpus: &[u16]) -> u64 {
    cpus.iter().fold(0, |bits, &cpu| bits | 1 << cpu)
}

fn enter(pid: i32, class: Class) -> std::io::Result<()> {
    let (policy, priority) = match class {
        Class::Fair => (libc::SCHED_OTHER, 0),
        Class::Fifo => (libc::SCHED_FIFO, 1),
        Class::Ext => (SCHED_EXT, 0),
    };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is to a live local.
    last(unsafe { libc::sched_setscheduler(pid, policy, &raw const parameters) }, ())
}

const CLASSES: [Class; 3] = [Class::Fair, Class::Fifo, Class::Ext];

/// A worker's life.
fn work(number: usize) -> Result<()> {
    let place = shared()?.get(number).context("no such worker")?;
    allow(0, place.cpus.load(Ordering::Acquire))?;
    let class = CLASSES.get(place.class.load(Ordering::Acquire) as usize).context("no such class")?;
    enter(0, *class).context("entering the class")?;
    loop {
        let word = place.word.load(Ordering::Acquire);
        match word {
            0 => {
                wait_while(&place.word, word);
                continue;
            }
            2 => return Ok(()),
            6 => measure(),
            _ => (0..2000).for_each(|_| std::hint::spin_loop()),
        }
        place.rounds.fetch_add(1, Ordering::Relaxed);
        match word {
            3 => thread::yield_now(),
            4 => thread::sleep(Duration::from_millis(1)),
            5 => drop(place.word.compare_exchange(5, 0, Ordering::AcqRel, Ordering::Relaxed)),
            _ => {}
        }
    }
}

/// `struct neap_measure` and its number.
#[repr(C)]
struct Measure {
    size: u32,
    what: u32,
    count: u32,
    taken: u32,
    samples: u64,
}
const MEASURE: u64 = 0xc018_4e43;

/// Measures from a doorbell to its interrupt, on one CPU.
const END_TO_END: u32 = 7;

/// The device is open no longer than that: who has it open keeps the module.
fn measure() {
    let Ok(device) = File::open("/dev/neap0") else { return };
    let mut samples = [0u64; 64];
    let samples_at = samples.as_mut_ptr() as u64;
    let mut asked = Measure {
        size: size_of::<Measure>() as u32,
        what: END_TO_END,
        count: 64,
        taken: 0,
        samples: samples_at,
    };
    // SAFETY: the structure is as the driver knows it, and has room for as many samples as are asked for.
    unsafe { libc::ioctl(device.as_raw_fd(), MEASURE, &raw mut asked) };
}

/// The puppet's end of the line.
#[derive(Clone)]
struct Out(Arc<Mutex<File>>);

impl Out {
    fn say(&self, said: &Said) {
        if let Ok(mut text) = serde_json::to_string(said) {
            text.push('\n');
            // When nobody is left to hear it, the machine ends soon.
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
        }
    }
}

/// Opens the line, and has it pass bytes as they are.
fn line() -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(LINE)?;
    // SAFETY: all zero is a value of the structure, which the call fills in.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to a live local.
    unsafe {
        libc::tcgetattr(file.as_raw_fd(), &raw mut settings);
        libc::cfmakeraw(&raw mut settings);
        libc::cfsetspeed(&raw mut settings, libc::B115200);
        last(libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &raw const settings), ())?;
    }
    Ok(file)
}

fn serve() -> Result<()> {
    for (kind, at) in MOUNTS {
        let path = at.to_str()?;
        fs::create_dir_all(path).with_context(|| format!("{path} can't be made"))?;
        // SAFETY: strings that end, and no data.
        let mounted = unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
        last(mounted, ()).with_context(|| format!("{path} can't be mounted"))?;
    }
    // The other CPUs are for what is tested. All that we start stays here too, unless it is told otherwise.
    allow(0, 1)?;
    let file = line()?;
    let out = Out(Arc::new(Mutex::new(file.try_clone()?)));
    let mut puppet = Puppet { out, places: shared()?, workers: BTreeMap::new(), daemons: BTreeMap::new() };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    // SAFETY: no precondition.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) } as u16;
    puppet.out.say(&Said::Ready { release, cpus });
    for line in BufReader::new(file).lines() {
        let told: Told = serde_json::from_str(&line?).context("an order that is none")?;
        let done = puppet.follow(told.order).map_err(|error| format!("{error:#}"));
        puppet.out.say(&Said::Done(told.number, done));
    }
    Ok(())
}

struct Puppet {
    out: Out,
    places: &'static [Place],
    workers: BTreeMap<usize, (Child, Option<i32>)>,
    daemons: BTreeMap<String, Child>,
}

impl Puppet {
    fn follow(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Shell(line) => return shell(&line),
            Order::Read(path) => {
                let mut text = String::new();
                File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).context(path)?;
                return Ok(Answer::Text(text));
            }
            Order::Write(path, text) => {
                let mut file = OpenOptions::new().write(true).open(&path).context(path.clone())?;
                file.write_all(text.as_bytes()).context(path)?;
            }
            Order::Start { worker, class, cpus, word } => return self.start(worker, class, &cpus, word),
            Order::Tell(worker, word) => {
                let place = self.place(worker)?;
                place.word.store(word as u32, Ordering::Release);
                wake(&place.word);
            }
            Order::Signal(worker, signal) => kill(self.pid(worker)?, signal)?,
            Order::Allow(worker, cpus) => allow(self.pid(worker)?, bits(&cpus))?,
            Order::Class(worker, class) => enter(self.pid(worker)?, class)?,
            Order::Look => return self.look(),
            Order::Daemon(name, class, words) => self.daemon(name, class, &words)?,
            Order::Ended(name) => {
                let child =
                    self.daemons.get_mut(&name).with_context(|| format!("there is no daemon {name}"))?;
                return Ok(Answer::Ended(child.try_wait()?.map(code)));
            }
            Order::Stop(name, signal) => self.stop(&name, signal)?,
            Order::Settings { device, watchdog_ms, kernel_after_ms, attach_anew } => {
                settings(&device, watchdog_ms, kernel_after_ms, attach_anew)?;
            }
            Order::Off => {
                // SAFETY: nothing of ours is lost with the machine.
                unsafe { libc::reboot(libc::RB_POWER_OFF) };
            }
        }
        Ok(Answer::Done)
    }

    fn place(&self, worker: usize) -> Result<&'static Place> {
        self.places.get(worker).with_context(|| format!("there is no place for a worker {worker}"))
    }

    fn pid(&self, worker: usize) -> Result<i32> {
        let (child, _) = self.workers.get(&worker).with_context(|| format!("there is no worker {worker}"))?;
        Ok(i32::try_from(child.id())?)
    }

    fn start(&mut self, worker: usize, class: Class, cpus: &[u16], word: Word) -> Result<Answer> {
        if let Some((child, None)) = self.workers.get_mut(&worker) {
            ensure!(child.try_wait()?.is_some(), "worker {worker} is there already");
        }
        let place = self.place(worker)?;
        place.word.store(word as u32, Ordering::Release);
        place.class.store(class as u32, Ordering::Release);
        place.rounds.store(0, Ordering::Release);
        place.cpus.store(bits(cpus), Ordering::Release);
        let mut command = Command::new("/proc/self/exe");
        let child = command.arg("worker").arg(worker.to_string()).stdin(Stdio::null()).spawn()?;
        let pid = i32::try_from(child.id())?;
        self.workers.insert(worker, (child, None));
        Ok(Answer::Started { pid })
    }

    fn look(&mut self) -> Result<Answer> {
        let mut all = Vec::new();
        for (&worker, (child, ended)) in &mut self.workers {
            if ended.is_none() {
                let status = child.try_wait()?;
                *ended = status.map(code);
            }
            let rounds = self.places[worker].rounds.load(Ordering::Acquire);
            all.push(Worker { worker, pid: i32::try_from(child.id())?, rounds, ended: *ended });
        }
        Ok(Answer::Workers(all))
    }

    fn daemon(&mut self, name: String, class: Class, words: &[String]) -> Result<()> {
        let (program, rest) = words.split_first().context("no program is named")?;
        let mut command = Command::new(program);
        command.args(rest).env("PATH", "/bin").env("HOME", "/tmp").current_dir("/tmp");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What is to be scheduled may run everywhere; all else stays beside us.
        let cpus = if class == Class::Ext { 0 } else { 1 };
        // SAFETY: between fork and exec only system calls are made, which neither allocate nor lock.
        unsafe { command.pre_exec(move || allow(0, cpus).and_then(|()| enter(0, class))) };
        let mut child = command.spawn().with_context(|| format!("{program} can't be started"))?;
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let (out, name) = (self.out.clone(), name.clone());
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    out.say(&Said::Heard(name.clone(), line));
                }
            });
        }
        self.daemons.insert(name, child);
        Ok(())
    }

    fn stop(&mut self, name: &str, signal: i32) -> Result<()> {
        let child = self.daemons.get_mut(name).with_context(|| format!("there is no daemon {name}"))?;
        // One that has ended by itself needs no signal.
        if child.try_wait()?.is_none() {
            kill(i32::try_from(child.id())?, signal)?;
        }
        let since = Instant::now();
        while child.try_wait()?.is_none() {
            if since.elapsed() > END {
                bail!("{name} has not ended {} s after signal {signal}", END.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.daemons.remove(name);
        Ok(())
    }
}

/// How a program ended, as a shell has it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(128 + status.signal().unwrap_or(0))
}

fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no precondition.
    Ok(last(unsafe { libc::kill(pid, signal) }, ())?)
}

fn shell(line: &str) -> Result<Answer> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).env("PATH", "/bin:/usr/bin").env("HOME", "/tmp").stdin(Stdio::null());
    let output = command.output().context("no shell")?;
    let text = [output.stdout, output.stderr].concat();
    let status = code(output.status);
    Ok(Answer::Shell { status, output: String::from_utf8_lossy(&text).into_owned() })
}

/// `struct neap_settings` and its number.
#[repr(C)]
struct Settings {
    size: u32,
    watchdog_ms: u32,
    policy: u32,
    attach_anew: u32,
    kernel_after_ms: u32,
    reserved: u32,
}
const SETTINGS: u64 = 0xc018_4e42;

fn settings(device: &str, watchdog_ms: u32, kernel_after_ms: u32, attach_anew: bool) -> Result<()> {
    let path = CString::new(device)?;
    let file = File::open(device).with_context(|| format!("{} can't be opened", path.to_string_lossy()))?;
    let mut settings = Settings {
        size: size_of::<Settings>() as u32,
        watchdog_ms,
        policy: 0,
        attach_anew: attach_anew.into(),
        kernel_after_ms,
        reserved: 0,
    };
    // SAFETY: the structure is as the driver knows it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), SETTINGS, &raw mut settings) };
    last(result, ()).context("the driver takes no such settings")
}
