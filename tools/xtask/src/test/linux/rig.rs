//! What cases stand on: a guest with its puppet, and scripted IPUs, all moved on by whoever waits for something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::{MessageKind, Outcome, Txn, TxnFlags};
use neap_puppet::{Answer, Class, Order, Said, Told, WORKERS_MAX, Word, Worker as Looked};
use neap_vipu::{Domain, Server, Window};
use tempfile::TempDir;

use super::ipu::{Ipu, Make};
use super::outcomes::signal;
use super::view::Stand;
use crate::linux::{Boot, File, Guest, Kit};
use crate::machine::WINDOW_BYTES;

/// How long anything may take that takes no time by itself, in a machine that others use too.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest may take to boot.
const BOOT: Duration = Duration::from_secs(240);
/// The device of the first function.
pub(super) const DEVICE: &str = "/dev/neap0";
/// The loader's name among the puppet's daemons.
pub(super) const LOADER: &str = "loader";
/// The cgroup whose threads the loader keeps in the class.
pub(super) const CGROUP: &str = "/sys/fs/cgroup/fast";
/// How long the guest may take to tell how it is, when something has gone wrong.
const SOON: Duration = Duration::from_secs(5);
/// Lines of the kernel's log in an error.
const LOG_LINES: usize = 25;

/// How a machine is booted.
pub(super) struct Machine<'a> {
    pub cpus: u32,
    /// Vectors of each function's domain.
    pub functions: &'a [u16],
    /// More words for the kernel.
    pub words: &'a [&'a str],
}

/// The machine.
pub(super) struct Rig {
    // In the order of their ends: the guest before what it is connected to.
    pub guest: Guest,
    pub ipus: Vec<Ipu>,
    _server: Server,
    _directory: TempDir,
    orders: u32,
    answers: BTreeMap<u32, Result<Answer, String>>,
    /// What daemons have said.
    pub heard: Vec<(String, String)>,
    ready: Option<u16>,
    /// Workers that there are, with their tasks' numbers if they have one.
    workers: BTreeMap<usize, Option<u32>>,
}

/// A worker of the extensible class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    pub number: usize,
    pub pid: i32,
    /// Its number in the driver's table.
    pub task: u32,
}

/// The driver's counters at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads `key value` lines; those whose value is no number are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// One by its name.
    pub(super) fn of(&self, key: &str) -> Result<u64> {
        self.0.get(key).copied().with_context(|| format!("the driver counts no {key}"))
    }

    pub(super) fn of_outcome(&self, outcome: Outcome) -> Result<u64> {
        self.of(&format!("outcome_{}", outcome.name()))
    }

    /// How much more each is than before.
    pub(super) fn since(&self, before: &Self) -> Self {
        let more = |(key, value): (&String, &u64)| {
            (key.clone(), value.wrapping_sub(before.0.get(key).copied().unwrap_or(0)))
        };
        Self(self.0.iter().map(more).collect())
    }
}

impl Rig {
    /// Boots a guest of `kit` with the puppet in `puppet`.
    pub(super) fn boot(kit: &Kit, machine: &Machine<'_>, puppet: &Path) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix(&format!("neap-linux-{}-", std::process::id())).tempdir()?;
        let name = directory.path().file_name().context("a temporary directory has a name")?;
        let name = name.to_string_lossy().into_owned();
        let (mut domains, mut windows, mut functions) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &vectors) in machine.functions.iter().enumerate() {
            let window = Window::create(&format!("{name}.{index}"), WINDOW_BYTES)?;
            let socket: PathBuf = directory.path().join(format!("function{index}"));
            domains.push(Domain::new(socket.clone(), window.descriptor()?, vectors));
            functions.push((socket.clone(), vectors));
            windows.push((window, socket, vectors));
        }
        let server = Server::start(domains)?;
        let ipus = windows.into_iter().map(|(window, socket, vectors)| Ipu::new(window, socket, vectors));
        let ipus = ipus.collect::<Result<Vec<_>>>()?;
        let mut boot = Boot::new(machine.cpus);
        boot.functions = functions;
        // All that the kernel says is wanted, and on the console it survives the guest.
        boot.words = ["rdinit=/puppet", "loglevel=7"]
            .iter()
            .chain(machine.words)
            .map(|&word| word.to_owned())
            .collect();
        let bytes = std::fs::read(puppet).with_context(|| format!("{} can't be read", puppet.display()))?;
        boot.files = vec![File::program("puppet", bytes)];
        let guest = kit.boot(&boot)?;
        let mut rig = Self {
            guest,
            ipus,
            _server: server,
            _directory: directory,
            orders: 0,
            answers: BTreeMap::new(),
            heard: Vec::new(),
            ready: None,
            workers: BTreeMap::new(),
        };
        let booted = rig.until("the guest boots", BOOT, |rig| rig.ready.is_some());
        booted.with_context(|| rig.guest.tail())?;
        Ok(rig)
    }

    /// One turn of everything.
    pub(super) fn turn(&mut self) -> Result<()> {
        while let Some(line) = self.guest.heard()? {
            match serde_json::from_str(&line) {
                Ok(Said::Ready { cpus, .. }) => self.ready = Some(cpus),
                Ok(Said::Done(number, answer)) => drop(self.answers.insert(number, answer)),
                Ok(Said::Heard(from, line)) => self.heard.push((from, line)),
                Err(_) => bail!("the puppet says {line:?}"),
            }
        }
        for ipu in &mut self.ipus {
            ipu.turn()?;
        }
        if self.ipus.iter().all(|ipu| ipu.hello().is_err()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until `found` finds something.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut found: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T> {
        let since = Instant::now();
        loop {
            self.turn()?;
            if let Some(found) = found(self) {
                return Ok(found);
            }
            if since.elapsed() > patience {
                bail!("expected: {what}; it has not come in {} s", patience.as_secs());
            }
        }
    }

    /// Waits until `holds`.
    pub(super) fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Result<()> {
        self.wait(what, patience, |rig| holds(rig).then_some(()))
    }

    /// Lets everything go on for a time.
    pub(super) fn go_on(&mut self, time: Duration) -> Result<()> {
        let since = Instant::now();
        while since.elapsed() < time {
            self.turn()?;
        }
        Ok(())
    }

    /// Gives an order; its number.
    pub(super) fn give(&mut self, order: Order) -> Result<u32> {
        self.orders += 1;
        let told = Told { number: self.orders, order };
        self.guest.say(&serde_json::to_string(&told)?)?;
        Ok(self.orders)
    }

    /// Whether an order that was given has been answered by now.
    pub(super) fn answered(&mut self, number: u32) -> bool {
        self.answers.remove(&number).is_some()
    }

    /// Unplugs a function, while everything else goes on.
    pub(super) fn unplug(&mut self, function: usize) -> Result<()> {
        let unplug = self.guest.unplugger(function);
        let unplugged = std::thread::spawn(unplug);
        self.until("the guest lets a function go", 4 * PATIENCE, |_| unplugged.is_finished())?;
        unplugged.join().unwrap_or_else(|_| bail!("unplugging panicked"))
    }

    /// Gives an order and waits for its answer, up to `patience`.
    pub(super) fn order_in(&mut self, order: Order, patience: Duration) -> Result<Answer> {
        let what = format!("{order:?}");
        let number = self.give(order)?;
        let answer =
            self.wait(&format!("an answer to {what}"), patience, |rig| rig.answers.remove(&number))?;
        answer.map_err(|error| anyhow::anyhow!("{what}: {error}"))
    }

    /// Gives an order and waits for its answer.
    pub(super) fn order(&mut self, order: Order) -> Result<Answer> {
        self.order_in(order, PATIENCE)
    }

    /// Runs a line of the shell that must succeed: what it wrote.
    pub(super) fn shell(&mut self, line: &str) -> Result<String> {
        match self.order_in(Order::Shell(line.to_owned()), 4 * PATIENCE)? {
            Answer::Shell { status: 0, output } => Ok(output),
            other => bail!("`{line}` in the guest came to {other:?}"),
        }
    }

    pub(super) fn read(&mut self, path: &str) -> Result<String> {
        match self.order(Order::Read(path.to_owned()))? {
            Answer::Text(text) => Ok(text),
            other => bail!("{path} reads as {other:?}"),
        }
    }

    pub(super) fn write(&mut self, path: &str, text: &str) -> Result<()> {
        self.order(Order::Write(path.to_owned(), text.to_owned()))?;
        Ok(())
    }

    /// The driver's counters of a function.
    pub(super) fn counters(&mut self, function: usize) -> Result<Counters> {
        Ok(Counters::parse(&self.read(&format!("/sys/kernel/debug/neap/{function}/counters"))?))
    }

    /// Waits until `found` finds something in the driver's counters.
    pub(super) fn wait_counters<T>(
        &mut self,
        function: usize,
        found: impl Fn(&Counters) -> Result<Option<T>>,
    ) -> Result<T> {
        let since = Instant::now();
        loop {
            let counters = self.counters(function)?;
            if let Some(found) = found(&counters)? {
                return Ok(found);
            }
            ensure!(since.elapsed() < PATIENCE, "expected: the driver counts on; it stays at {counters:?}");
            self.go_on(Duration::from_millis(10))?;
        }
    }

    /// What the driver says of a function, by key.
    pub(super) fn state(&mut self, function: usize, key: &str) -> Result<String> {
        let text = self.read(&format!("/sys/kernel/debug/neap/{function}/state"))?;
        let value =
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned));
        value.with_context(|| format!("the driver says nothing of {key}: {text}"))
    }

    /// Waits until the driver says `value` of `key`.
    pub(super) fn until_state(&mut self, function: usize, key: &str, value: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            let found = self.state(function, key)?;
            if found == value {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "expected: {key} {value}; the driver says {found}");
            self.go_on(Duration::from_millis(5))?;
        }
    }

    /// Keeps the kernel's threads where the puppet is, as far as they let themselves be: they would move to whatever CPU is free,
    /// and take it from the agent for a moment.
    pub(super) fn gather_threads(&mut self) -> Result<()> {
        // Children of kthreadd's.
        self.shell(
            "echo 1 > /sys/devices/virtual/workqueue/cpumask
             for thread in /proc/[0-9]*; do
                 read -r pid name state parent rest < $thread/stat && [ $parent = 2 ] && taskset -p 1 $pid
             done > /dev/null 2>&1
             true",
        )?;
        Ok(())
    }

    /// Loads the module, and keeps its thread with the others.
    pub(super) fn load(&mut self, parameters: &str) -> Result<()> {
        self.shell(&format!("insmod /lib/neap/neap.ko {parameters}"))?;
        self.shell("taskset -p 1 $(grep -lx neap /proc/[0-9]*/comm | head -n 1 | cut -d / -f 3)")?;
        Ok(())
    }

    /// Ends the loader, and unloads the module.
    pub(super) fn unload(&mut self) -> Result<()> {
        self.order(Order::Stop(LOADER.to_owned(), signal::TERM))?;
        let since = Instant::now();
        // The kernel frees the scheduler's programs, which hold the module, in its own time.
        while let Answer::Shell { status: 1.., output } = self.order(Order::Shell("rmmod neap".to_owned()))? {
            ensure!(since.elapsed() < PATIENCE, "expected: the module is unloaded; {output}");
            self.go_on(Duration::from_millis(50))?;
        }
        // A module that is loaded anew counts stamps from the first.
        self.ipus.iter_mut().for_each(|ipu| ipu.view.forget_stamps());
        Ok(())
    }

    /// Starts the loader, and waits until the scheduler is in its place.
    pub(super) fn attach(&mut self) -> Result<()> {
        let before = self.attached();
        self.shell(&format!("mkdir -p {CGROUP}"))?;
        let words = ["/bin/neap", "scx", "attach", "--cgroup", CGROUP].map(str::to_owned).to_vec();
        self.order(Order::Daemon(LOADER.to_owned(), Class::Fair, words))?;
        self.until_attached(before, 4 * PATIENCE)
    }

    /// Waits until the loader has attached again since it had `before` times.
    pub(super) fn until_attached(&mut self, before: usize, patience: Duration) -> Result<()> {
        self.until("the scheduler is attached", patience, |rig| rig.attached() > before)
    }

    /// Waits until a program that was started so has ended: how.
    pub(super) fn until_over(&mut self, name: &str, patience: Duration) -> Result<i32> {
        let since = Instant::now();
        loop {
            match self.order(Order::Ended(name.to_owned()))? {
                Answer::Ended(Some(status)) => return Ok(status),
                _ => ensure!(since.elapsed() < patience, "expected: {name} ends; it works on"),
            }
            self.go_on(Duration::from_millis(20))?;
        }
    }

    /// How often the loader has attached.
    pub(super) fn attached(&self) -> usize {
        self.heard.iter().filter(|(from, line)| from == LOADER && line == "attached").count()
    }

    /// Waits until an IPU's agent knows the state and decides.
    pub(super) fn until_decides(&mut self, ipu: usize) -> Result<()> {
        self.until("an agent is told the state", PATIENCE, |rig| rig.ipus[ipu].decides())
    }

    /// Lines of the kernel's log with `words` in them.
    pub(super) fn logged(&self, words: &str) -> usize {
        self.guest.console().lines().filter(|line| line.contains(words)).count()
    }

    /// Waits until there is one more such line than `before`; two are too many.
    pub(super) fn until_logged(&mut self, words: &str, before: usize) -> Result<()> {
        let what = format!("the kernel's log says `{words}`");
        self.until(&what, PATIENCE, |rig| rig.logged(words) > before)?;
        let lines = self.logged(words) - before;
        ensure!(lines == 1, "expected: one line with `{words}` in the kernel's log; there are {lines}");
        Ok(())
    }

    /// Waits until so many more decisions were carried out.
    pub(super) fn until_decided(&mut self, function: usize, more: u64) -> Result<()> {
        let before = self.counters(function)?.of("decisions")?;
        let since = Instant::now();
        loop {
            let now = self.counters(function)?.of("decisions")?;
            if now >= before + more {
                return Ok(());
            }
            ensure!(
                since.elapsed() < PATIENCE,
                "expected: {more} more decisions are committed; there were {} in {} s",
                now - before,
                PATIENCE.as_secs()
            );
            self.go_on(Duration::from_millis(10))?;
        }
    }

    /// Boots an IPU, and waits until the driver has attached to it.
    pub(super) fn boot_ipu(&mut self, ipu: usize, make: Make) -> Result<()> {
        let sessions = self.ipus[ipu].sessions;
        self.ipus[ipu].boot(make)?;
        self.until("the driver attaches", PATIENCE, |rig| rig.ipus[ipu].sessions > sessions)?;
        self.until_decides(ipu)
    }

    // Workers.

    fn free_number(&self) -> Result<usize> {
        (0..WORKERS_MAX).find(|number| !self.workers.contains_key(number)).context("too many workers")
    }

    /// Starts a worker outside the class.
    pub(super) fn outsider(&mut self, class: Class, cpus: &[u16], word: Word) -> Result<usize> {
        let number = self.free_number()?;
        self.order(Order::Start { worker: number, class, cpus: cpus.to_vec(), word })?;
        self.workers.insert(number, None);
        Ok(number)
    }

    /// Starts a worker in the class, of the enclave of `ipu`. It enters the class while it runs, and is told of when it first
    /// needs a decision: so it may not rest at once.
    pub(super) fn start(&mut self, ipu: usize, cpus: &[u16], word: Word) -> Result<Worker> {
        let number = self.free_number()?;
        self.ipus[ipu].view.newcomers.clear();
        let order = Order::Start { worker: number, class: Class::Ext, cpus: cpus.to_vec(), word };
        let Answer::Started { pid } = self.order(order)? else { bail!("a worker that is not started") };
        self.workers.insert(number, None);
        let task =
            self.wait("a new task is told of", PATIENCE, |rig| rig.ipus[ipu].view.newcomers.pop_front())?;
        self.workers.insert(number, Some(task));
        Ok(Worker { number, pid, task })
    }

    /// Starts a worker that can run and waits, held: only the test decides for it.
    pub(super) fn parked(&mut self, ipu: usize, cpus: &[u16], word: Word) -> Result<Worker> {
        self.ipus[ipu].view.hold_new = true;
        let started = self.start(ipu, cpus, word);
        self.ipus[ipu].view.hold_new = false;
        started
    }

    /// Gives a resting worker something to do.
    pub(super) fn rouse(&mut self, ipu: usize, worker: Worker, word: Word) -> Result<()> {
        self.tell(worker, word)?;
        self.until_stands(ipu, worker, Stand::Runnable)
    }

    /// Starts a worker that runs on `cpu`, held.
    pub(super) fn runner(&mut self, ipu: usize, cpu: u16) -> Result<Worker> {
        let worker = self.parked(ipu, &[], Word::Work)?;
        self.place(ipu, worker, cpu)?;
        Ok(worker)
    }

    pub(super) fn hold(&mut self, ipu: usize, worker: Worker, held: bool) {
        if let Some(task) = self.ipus[ipu].view.tasks.get_mut(&worker.task) {
            task.held = held;
        }
    }

    pub(super) fn tell(&mut self, worker: Worker, word: Word) -> Result<()> {
        self.order(Order::Tell(worker.number, word))?;
        Ok(())
    }

    /// Has a worker that runs rest, and waits until that is told. If something else takes its CPU before it does, it is decided
    /// for as for any other meanwhile.
    pub(super) fn rest(&mut self, ipu: usize, worker: Worker) -> Result<()> {
        let held = self.ipus[ipu].view.tasks.get(&worker.task).is_some_and(|task| task.held);
        self.hold(ipu, worker, false);
        self.tell(worker, Word::Rest)?;
        self.until_stands(ipu, worker, Stand::Blocked)?;
        self.hold(ipu, worker, held);
        Ok(())
    }

    /// A task's stamp, as last told.
    pub(super) fn stamp(&self, ipu: usize, worker: Worker) -> Result<u32> {
        let task = self.ipus[ipu].view.tasks.get(&worker.task);
        Ok(task.with_context(|| format!("{worker:?} is not told of"))?.stamp)
    }

    pub(super) fn stands(&self, ipu: usize, worker: Worker) -> Option<Stand> {
        self.ipus[ipu].view.tasks.get(&worker.task).map(|task| task.stand)
    }

    pub(super) fn until_stands(&mut self, ipu: usize, worker: Worker, stand: Stand) -> Result<()> {
        let what = format!("{worker:?} stands as {stand:?}");
        self.until(&what, PATIENCE, |rig| rig.stands(ipu, worker) == Some(stand))
    }

    /// Waits until a task has left the agent's view.
    pub(super) fn until_gone(&mut self, ipu: usize, worker: Worker) -> Result<()> {
        let what = format!("{worker:?} leaves");
        self.until(&what, PATIENCE, |rig| rig.stands(ipu, worker).is_none())
    }

    /// Puts `txn` into its CPU's slot and rings it; its id.
    pub(super) fn send(&mut self, ipu: usize, txn: Txn) -> Result<u32> {
        let id = self.ipus[ipu].stage(txn.cpu, txn)?;
        self.ipus[ipu].ring(txn.cpu)?;
        Ok(id)
    }

    /// Puts `txn` into its CPU's slot for the next time that it looks; its id.
    pub(super) fn prestage(&mut self, ipu: usize, txn: Txn) -> Result<u32> {
        let txn = Txn { flags: txn.flags.with(TxnFlags::PRESTAGED), ..txn };
        self.ipus[ipu].stage(txn.cpu, txn)
    }

    /// The txn that runs a worker's task, as it is known now.
    pub(super) fn run_txn(&self, ipu: usize, worker: Worker, cpu: u16) -> Result<Txn> {
        Ok(Txn::run(cpu, worker.task, self.stamp(ipu, worker)?))
    }

    /// Waits for the verdict on a txn. A CPU that is idle and does not look is rung again.
    pub(super) fn verdict(&mut self, ipu: usize, cpu: u16, id: u32) -> Result<Outcome> {
        self.wait(&format!("a verdict on txn {id} of CPU {cpu}"), PATIENCE, |rig| {
            rig.ipus[ipu].view.verdict_on(cpu, id)
        })
    }

    /// Has a parked worker run on `cpu`. Where something else holds the CPU for a while, it is tried again.
    pub(super) fn place(&mut self, ipu: usize, worker: Worker, cpu: u16) -> Result<()> {
        let since = Instant::now();
        loop {
            let what = format!("CPU {cpu} is there");
            self.until(&what, PATIENCE, |rig| rig.ipus[ipu].view.cpus[usize::from(cpu)].open)?;
            let txn = self.run_txn(ipu, worker, cpu)?;
            let id = self.send(ipu, txn)?;
            match self.verdict(ipu, cpu, id)? {
                Outcome::Committed => return Ok(()),
                Outcome::CpuUnavailable if since.elapsed() < PATIENCE => {}
                outcome => bail!("expected: {worker:?} is run on CPU {cpu}; the txn came to {outcome:?}"),
            }
        }
    }

    /// How the workers are.
    pub(super) fn look(&mut self) -> Result<Vec<Looked>> {
        match self.order(Order::Look)? {
            Answer::Workers(workers) => Ok(workers),
            other => bail!("the workers are {other:?}"),
        }
    }

    pub(super) fn looked(&mut self, number: usize) -> Result<Looked> {
        let found = self.look()?.into_iter().find(|looked| looked.worker == number);
        found.with_context(|| format!("there is no worker {number}"))
    }

    /// Waits until each of the workers has worked `more` rounds more than now.
    pub(super) fn until_work(&mut self, workers: &[usize], more: u64) -> Result<()> {
        let before = self.look()?;
        let since = Instant::now();
        loop {
            let now = self.look()?;
            let rounds =
                |of: &[Looked], number| of.iter().find(|of| of.worker == number).map_or(0, |of| of.rounds);
            let idle = workers.iter().find(|&&number| rounds(&now, number) < rounds(&before, number) + more);
            let Some(idle) = idle else { return Ok(()) };
            ensure!(
                since.elapsed() < PATIENCE,
                "expected: worker {idle} works {more} rounds more; it worked {} in {} s",
                rounds(&now, *idle) - rounds(&before, *idle),
                PATIENCE.as_secs()
            );
            self.go_on(Duration::from_millis(10))?;
        }
    }

    /// Waits until a worker has ended: how.
    pub(super) fn until_ended(&mut self, number: usize) -> Result<i32> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.looked(number)?.ended {
                self.workers.remove(&number);
                return Ok(status);
            }
            ensure!(since.elapsed() < PATIENCE, "expected: worker {number} ends; it is there still");
            self.go_on(Duration::from_millis(5))?;
        }
    }

    /// Has all workers end: none may be lost.
    pub(super) fn end_workers(&mut self) -> Result<()> {
        for ipu in &mut self.ipus {
            ipu.view.hold_new = false;
            ipu.view.tasks.values_mut().for_each(|task| task.held = false);
        }
        let workers: Vec<usize> = self.workers.keys().copied().collect();
        for &number in &workers {
            self.order(Order::Tell(number, Word::End))?;
        }
        for number in workers {
            let status = self.until_ended(number)?;
            ensure!(matches!(status, 0 | 137 | 143), "worker {number} ended with status {status}");
        }
        Ok(())
    }

    /// How often a kind of message was told of a worker's task.
    pub(super) fn messages(&self, ipu: usize, worker: Worker, kind: MessageKind) -> usize {
        let messages = &self.ipus[ipu].view.messages;
        messages.iter().filter(|message| (message.task, message.kind) == (worker.task, kind)).count()
    }

    /// What an error should show beside its words.
    pub(super) fn in_words(&mut self) -> String {
        // As it is now: everything goes on while the guest is asked.
        let views: String = self.ipus.iter().map(|ipu| ipu.view.in_words() + "\n").collect();
        let asked = [
            Order::Read("/sys/kernel/debug/neap/0/state".to_owned()),
            Order::Read("/sys/kernel/debug/neap/0/counters".to_owned()),
            Order::Look,
            Order::Shell("ps -o pid,stat,args | grep -v '\\['; cat /sys/kernel/sched_ext/state".to_owned()),
        ];
        let mut said = Vec::new();
        for order in asked {
            match self.order_in(order, SOON) {
                Ok(Answer::Text(text) | Answer::Shell { output: text, .. }) => {
                    said.push(text.trim().replace('\n', ", "))
                }
                Ok(answer) => said.push(format!("{answer:?}")),
                // One that does not answer once is not asked again.
                Err(_) => break,
            }
        }
        let console = self.guest.console();
        let lines: Vec<&str> = console.lines().collect();
        let words = said.join("\n") + "\n" + &views + "the kernel's log ends:\n  ";
        words + &lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ")
    }
}
