//! Where attacks are made: three enclaves on one IPU, of which two work while the third is attacked from within.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_abi::layout::{DMA_PAGE_OFFSET, TASKS_USUAL};
use neap_abi::supervisor::{Binding, BindingKind, Books, Identity};
use neap_abi::{EpitaphRecord, RegionKind, VERSION};
use neap_attacks::Told;
use neap_attacks::told::GO_WORD;
use neap_hal::soc::dma::Access;
use neap_host::event::Level;
use neap_host::manager::{Agents, Manager};
use neap_host::ownership::Owner;
use neap_host::report::Report;
use neap_host::window::HostWindow;
use neap_host::worker::{Enclave, EnclaveConfig, Host, HostConfig, Step, Work};
use neap_vipu::dma::{ChannelGrant, Engine, HostRange, IpuRange};
use neap_vipu::{Peer, Window};
use object::Endianness;
use object::elf::{PF_W, PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};

use crate::ipu::{Ipu, VECTORS};

/// Enclaves that work and should notice nothing.
pub(super) const NEIGHBOURS: usize = 2;
/// The enclave that is attacked from within.
pub(super) const ATTACKED: usize = NEIGHBOURS;
/// The first of its cores.
pub(super) const CORE: u8 = ATTACKED as u8 + 1;
/// Its cores. Most agents use the first only.
const ITS_CORES: u8 = 2;
/// Cores of the IPU.
pub(super) const CORES: u32 = CORE as u32 + ITS_CORES as u32;
/// Host CPUs of each enclave.
const CPUS: u16 = 2;
/// Tasks of one round of an enclave's work.
const ROUND_TASKS: u64 = 24;
/// Rounds that each neighbour has to finish while an attack is on.
pub(super) const ROUNDS: u64 = 5;
/// How long anything may take, on a machine that others use too.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// After this, who runs is no longer about to change by itself.
const SETTLED: Duration = Duration::from_secs(2);
/// The request whose task is not to end before all else has.
const PINNED: u64 = u64::MAX;
/// The interrupt controller of QEMU's `virt`.
const INTERRUPT_CONTROLLER: u64 = 0x0800_0000;
/// IOVA and bytes of the memory of the host that DMA may reach.
const DMA_MEMORY: (u64, u64) = (0x8000_0000, 64 << 10);

/// The host's settings.
pub(super) const HOST: HostConfig = HostConfig { cpus: CPUS * (NEIGHBOURS as u16 + 1), tasks: TASKS_USUAL };

/// Short tasks, of which some yield and some block; and one that ends last.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    over: AtomicBool,
}

impl Work for Tasks {
    fn step(&self, request: u64, step: u32) -> Step {
        match (request, request % 10, step) {
            (PINNED, ..) if !self.over.load(Ordering::Relaxed) => Step::Block { for_us: 50_000 },
            (_, 3, 0) => Step::Yield,
            (_, 7, 0) => Step::Block { for_us: 300 },
            _ => Step::Done,
        }
    }
}

/// Waits until something is there.
pub(super) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > PATIENCE {
            bail!("{what}: not in {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_micros(500));
    }
}

/// An enclave that works, round after round.
struct Neighbour {
    enclave: Arc<Enclave>,
    rounds: AtomicU64,
    /// What went wrong first.
    trouble: Mutex<Option<String>>,
}

impl Neighbour {
    /// Works until it is over. In every round each task is decided on by the IPU's first agent, or there is trouble.
    fn work(&self, over: &AtomicBool) {
        let mut next = 0;
        while !over.load(Ordering::Relaxed) {
            if let Err(error) = self.round(&mut next) {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                trouble.get_or_insert(format!("{error:#}"));
                return;
            }
            self.rounds.fetch_add(1, Ordering::Release);
        }
    }

    fn round(&self, next: &mut u64) -> Result<()> {
        let before = self.enclave.snapshot();
        run_tasks(&self.enclave, next)?;
        let after = self.enclave.snapshot();
        let decisions = after.decisions - before.decisions;
        ensure!(
            (after.level, after.incarnation) == (Level::Ipu, before.incarnation) && decisions >= ROUND_TASKS,
            "{decisions} decisions for {ROUND_TASKS} tasks, by agent {} at level {}",
            after.incarnation,
            after.level.name()
        );
        Ok(())
    }
}

/// Has an enclave run a round of tasks to their end; `next` counts its requests.
pub(super) fn run_tasks(enclave: &Enclave, next: &mut u64) -> Result<()> {
    let wanted = enclave.snapshot().tasks_finished + submit(enclave, next)?;
    wait_for("a round of tasks", || Ok((enclave.snapshot().tasks_finished >= wanted).then_some(())))
        .with_context(|| format!("{:?}", enclave.snapshot()))
}

/// Creates a round of tasks; how many are not yet done, these and those before.
pub(super) fn submit(enclave: &Enclave, next: &mut u64) -> Result<u64> {
    for request in *next..*next + ROUND_TASKS {
        enclave.submit(request)?;
    }
    *next += ROUND_TASKS;
    Ok(ROUND_TASKS)
}

/// The DMA engine of the attacked enclave's domain; its channel reaches the window's buffer and some memory of the host.
fn dma_engine(ipu: &Ipu) -> Result<(Engine, Window)> {
    // The neighbours have attached: the firmware has laid all windows out.
    let hello = HostWindow::new(ipu.window(ATTACKED).map()?).hello(VERSION)?;
    let buffer = hello.region(RegionKind::Buffer, 0).context("the window has no buffer")?;
    let name = ipu.directory().file_name().context("a temporary directory has a name")?;
    let memory = Window::create(&format!("{}.dma", name.to_string_lossy()), DMA_MEMORY.1)?;
    let host = HostRange {
        iova: DMA_MEMORY.0,
        memory: Arc::new(memory.map()?),
        offset: 0,
        bytes: DMA_MEMORY.1,
        access: Access::ReadWrite,
    };
    let own = IpuRange { offset: buffer.offset, bytes: buffer.bytes, access: Access::ReadWrite };
    let channel = ChannelGrant { page_offset: DMA_PAGE_OFFSET, host: vec![host], ipu: vec![own] };
    let peer = Peer::connect(&ipu.socket(ATTACKED), VECTORS, PATIENCE)?;
    Ok((Engine::start(peer, vec![channel])?, memory))
}

/// The battleground.
pub(super) struct Ground<'a> {
    host: &'a Host<'a, Tasks>,
    ipu: &'a Ipu,
    neighbours: Vec<Neighbour>,
    /// Peers to whom nobody has anything to say, one in each domain.
    listeners: Vec<Peer>,
    /// What every attack is told.
    told: Told,
    _engine: (Engine, Window),
    session: Cell<u32>,
}

impl<'a> Ground<'a> {
    /// Attaches the neighbours, and finds out what attacks are to know.
    pub fn new(host: &'a Host<'a, Tasks>, ipu: &'a Ipu, firmware: &Path) -> Result<Self> {
        let mut neighbours = Vec::new();
        let mut listeners = Vec::new();
        for index in 0..=ATTACKED {
            listeners.push(Peer::connect(&ipu.socket(index), VECTORS, PATIENCE)?);
        }
        for index in 0..NEIGHBOURS {
            let enclave = host.create_enclave(EnclaveConfig {
                // Whoever is hasty here would blame the agent for a busy machine.
                watchdog: Duration::from_secs(10),
                ..EnclaveConfig::usual(&ipu.socket(index), VECTORS, 1, cpus(index))
            })?;
            neighbours.push(Neighbour { enclave, rounds: AtomicU64::new(0), trouble: Mutex::default() });
        }
        let first = &neighbours[0].enclave;
        first.submit(PINNED)?;
        let owners = host.owners();
        let pinned = (0..owners.tasks()).find(|&task| owners.task(task) == Owner::Enclave(first.id()));
        let [text, data] = parts(firmware)?;
        let bindings = first.link().manager().map(|manager| manager.list().bindings).unwrap_or_default();
        let told = Told {
            variant: 0,
            runtime_text: text,
            runtime_data: data,
            neighbour_window: bound(&bindings, BindingKind::Dma)?.physical - DMA_PAGE_OFFSET,
            neighbour_doorbell: bound(&bindings, BindingKind::Doorbell)?.physical,
            own_manager: 0,
            own_tables: 0,
            interrupt_controller: INTERRUPT_CONTROLLER,
            own_cpu: cpus(ATTACKED).start,
            neighbour_cpu: cpus(0).start,
            neighbour_task: pinned.context("a neighbour's task is nobody's")?,
        };
        let _engine = dma_engine(ipu)?;
        Ok(Self { host, ipu, neighbours, listeners, told, _engine, session: Cell::new(0) })
    }

    /// Has the neighbours work while `attack` is made, and ends their work.
    pub fn while_neighbours_work<T>(&self, tasks: &Tasks, attack: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for neighbour in &self.neighbours {
                scope.spawn(|| neighbour.work(&over));
            }
            let _over = Over([&over, &tasks.over]);
            attack()
        })
    }

    /// Rings of each vector that the one who listens in an enclave's domain has heard since this was asked last.
    pub fn listen(&self, enclave: usize) -> Result<Vec<u64>> {
        let listener = &self.listeners[enclave];
        // Who comes and goes is nothing to it, but who does not listen to that is no peer for long.
        listener.poll_changes()?;
        (0..VECTORS).map(|vector| Ok(listener.wait(vector, Some(Duration::ZERO))?)).collect()
    }

    /// Rounds that each neighbour has finished.
    pub fn rounds(&self) -> Vec<u64> {
        self.neighbours.iter().map(|neighbour| neighbour.rounds.load(Ordering::Acquire)).collect()
    }

    /// Waits until each neighbour has finished [`ROUNDS`] more than `since`.
    pub fn watch_neighbours(&self, since: &[u64]) -> Result<()> {
        wait_for("the neighbours' work", || {
            for (number, neighbour) in self.neighbours.iter().enumerate() {
                let trouble = neighbour.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(trouble) = &*trouble {
                    bail!("neighbour {number}: {trouble}");
                }
            }
            let enough = self.rounds().iter().zip(since).all(|(now, since)| now - since >= ROUNDS);
            Ok(enough.then_some(()))
        })
    }

    /// A session of the attacked enclave, whose agent has shown that it works. `with` does what it likes with it; then
    /// it has to work again, and nothing may be missing.
    pub fn session<T>(
        &self,
        watchdog: Duration,
        with: impl FnOnce(&mut Session<'_>) -> Result<T>,
    ) -> Result<(T, Report)> {
        self.session.set(self.session.get() + 1);
        let usual =
            EnclaveConfig::usual(&self.ipu.socket(ATTACKED), VECTORS, self.session.get(), cpus(ATTACKED));
        let enclave = self.host.create_enclave(EnclaveConfig { watchdog, ..usual })?;
        let mut session = Session { ground: self, next: 0, enclave: Arc::clone(&enclave) };
        let done = session.hold(with);
        let report = self.host.destroy_enclave(enclave.id()).context("the enclave is gone")?;
        let done = done?;
        ensure!(
            report.complete && report.tasks_lost + report.tasks_doubled + report.fifo_violations == 0,
            "the enclave's own work: {} tasks, {} lost, {} doubled, {} out of order",
            report.tasks_created,
            report.tasks_lost,
            report.tasks_doubled,
            report.fifo_violations
        );
        Ok((done, report))
    }

    /// Sees that the neighbours' work was sound from the beginning to the end.
    pub fn judge_neighbours(&self) -> Result<u64> {
        let mut tasks = 0;
        for (number, neighbour) in self.neighbours.iter().enumerate() {
            let report = self.host.destroy_enclave(neighbour.enclave.id());
            let report = report.with_context(|| format!("neighbour {number} is gone"))?;
            let sound = report.complete
                && report.tasks_lost + report.tasks_doubled + report.fifo_violations + report.crashes == 0
                && report.faults.is_empty()
                && report.fallbacks.is_empty()
                && report.incarnations == 1;
            ensure!(sound, "neighbour {number} noticed: {report:?}");
            tasks += report.tasks_finished;
        }
        Ok(tasks)
    }
}

struct Over<'a>([&'a AtomicBool; 2]);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|over| over.store(true, Ordering::Relaxed));
    }
}

/// The host CPUs of an enclave.
fn cpus(enclave: usize) -> std::ops::Range<u16> {
    let first = CPUS * enclave as u16;
    first..first + CPUS
}

/// A binding of a kind.
pub(super) fn bound(bindings: &[Binding], kind: BindingKind) -> Result<&Binding> {
    let found = bindings.iter().find(|binding| binding.kind == kind);
    found.with_context(|| format!("the agent has no binding to its {}", kind.name()))
}

/// Where the runtime's text and its data lie.
fn parts(firmware: &Path) -> Result<[u64; 2]> {
    let bytes = std::fs::read(firmware).with_context(|| format!("{} can't be read", firmware.display()))?;
    let elf = ElfFile64::<Endianness>::parse(&*bytes).context("the firmware is no 64-bit ELF")?;
    let endian = elf.endian();
    let part = |flag| {
        let mut headers = elf.elf_program_headers().iter();
        let header =
            headers.find(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian).0 & flag != 0);
        header.map(|header| header.p_vaddr(endian)).context("the firmware has no such part")
    };
    Ok([part(PF_X.0)?, part(PF_W.0)?])
}

/// A session of the attacked enclave.
pub(super) struct Session<'g> {
    pub ground: &'g Ground<'g>,
    pub enclave: Arc<Enclave>,
    next: u64,
}

impl Session<'_> {
    fn hold<T>(&mut self, with: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.work().context("before the attack")?;
        self.meet()?;
        let before = self.books()?;
        ensure!(before.cores_free == ITS_CORES - 1, "{} cores are free", before.cores_free);
        let done = with(self)?;
        self.restore().context("the agent before it does not come back")?;
        self.work().context("after the attack")?;
        self.with_manager(|manager| Ok(manager.audit(PATIENCE)?)).context("the runtime's memory")?;
        // An agent that has just been forgotten may not be in the books yet.
        wait_for("what the attack had is not given back", || {
            let now = self.books()?;
            let kept = |books: &Books| (books.pages, books.pages_free, books.cores_free, books.cores_lost);
            Ok((kept(&now) == kept(&before) && now.cores_lost == 0).then_some(()))
        })
        .with_context(|| format!("{before:?} before, {:?} after", self.books()))?;
        Ok(done)
    }

    /// Has the enclave run a round of tasks, all decided on by its agent on the IPU.
    fn work(&mut self) -> Result<()> {
        wait_for("the IPU decides again", || {
            Ok((self.enclave.snapshot().level == Level::Ipu && self.enclave.is_drained()).then_some(()))
        })?;
        let before = self.enclave.snapshot();
        run_tasks(&self.enclave, &mut self.next)?;
        let after = self.enclave.snapshot();
        ensure!(
            after.level == Level::Ipu && after.decisions - before.decisions >= ROUND_TASKS,
            "{} decisions, the last by the {}",
            after.decisions - before.decisions,
            after.level.name()
        );
        Ok(())
    }

    /// Waits until host and supervisor agree on which agent runs; it is in the books then.
    pub fn meet(&self) -> Result<()> {
        wait_for("the host hears of who runs", || {
            Ok((self.enclave.snapshot().incarnation == self.running()?.incarnation).then_some(()))
        })
    }

    /// How things stand, for an error.
    pub fn standing(&self) -> String {
        let agent = self.enclave.link().link().agent();
        format!("{:?}; {:?}; its agent says {agent:?}", self.agents(), self.enclave.snapshot())
    }

    /// Creates a round of tasks, and does not wait for them.
    pub fn submit(&mut self) -> Result<()> {
        submit(&self.enclave, &mut self.next).map(|_| ())
    }

    /// Sees that FIFO runs again, by its own doing or by ours.
    fn restore(&self) -> Result<()> {
        // Who was rolled back to may not be in the books yet.
        let begun = Instant::now();
        while self.running()?.name() != "fifo" {
            if begun.elapsed() > SETTLED {
                self.with_manager(|manager| Ok(manager.replace("fifo", PATIENCE, PATIENCE)?))?;
            }
            thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// Does something with the manager of the enclave's agents.
    pub fn with_manager<T>(&self, with: impl FnOnce(&Manager<'_>) -> Result<T>) -> Result<T> {
        let link = self.enclave.link();
        with(link.manager().context("this IPU's agents can't be managed")?)
    }

    /// The agents, as the supervisor tells.
    pub fn agents(&self) -> Result<Agents> {
        self.with_manager(|manager| Ok(manager.list()))
    }

    /// The supervisor's books. It may be about to write them.
    pub fn books(&self) -> Result<Books> {
        wait_for("the supervisor's books", || Ok(self.agents()?.books))
    }

    /// The agent that runs, or ran last.
    pub fn running(&self) -> Result<Identity> {
        wait_for("the supervisor's word on who runs", || Ok(self.agents()?.running))
    }

    /// The last epitaph of the agent of that name.
    pub fn epitaph(&self, name: &str) -> Result<EpitaphRecord> {
        let link = self.enclave.link();
        let mut all = link.window().epitaphs(link.link().hello()).into_iter();
        let found = all
            .find(|record| (CORE..CORE + ITS_CORES).contains(&record.epitaph.core) && record.name() == name);
        found.filter(|record| record.epitaph.session == link.link().session()).context("there is no epitaph")
    }

    /// Tells an attack what it is to know, and whether it may go on.
    pub fn tell(&self, told: &Told, go: bool) -> Result<()> {
        let link = self.enclave.link();
        let mut words = told.to_words();
        let mut write = |go| {
            words[GO_WORD] = u64::from(go);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            link.window().set_region_bytes(link.link().hello(), RegionKind::Buffer, 0, &bytes)
        };
        // First all else, then the leave to go on.
        write(false)?;
        if go {
            write(true)?;
        }
        Ok(())
    }

    /// What an attack of this enclave is told.
    pub fn told(&self, variant: u64) -> Result<Told> {
        let link = self.enclave.link();
        let manager = link.link().hello().region(RegionKind::Manager, 0).context("no manager's line")?;
        let own = bound(&self.agents()?.bindings, BindingKind::Dma)?.physical - DMA_PAGE_OFFSET;
        Ok(Told { variant, own_manager: own + manager.offset, ..self.ground.told })
    }
}

/// The words that give each enclave its cores.
pub(super) fn bootargs() -> Vec<String> {
    vec![format!("neap.cores={}{ITS_CORES}", "1,".repeat(NEIGHBOURS))]
}
