//! A host without hardware.

use std::cell::{Cell, RefCell};

use neap_abi::{Message, Outcome, Txn, VERSION, Version};
use neap_queue::Line;

use crate::enclave::Standing;
use crate::events::Wires;
use crate::{Cpu, Enclave, Level, Mechanism, Platform, Task, Wire};

/// What a mechanism and its wires stand on.
#[derive(Debug)]
pub struct Memory {
    tasks: Vec<Task>,
    cpus: Vec<Cpu>,
    enclaves: Vec<Enclave>,
    windows: Vec<Window>,
}

/// The lines of one enclave.
#[derive(Debug)]
pub struct Window {
    /// The message ring.
    pub messages: Vec<Line>,
    /// The decision slots.
    pub slots: Vec<Line>,
    /// The agent's control line.
    pub agent: Line,
}

fn made<T: Default>(count: usize) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

impl Memory {
    /// For so many CPUs, tasks, enclaves and lines of a ring.
    #[must_use]
    pub fn new(cpus: u16, tasks: u32, enclaves: u8, lines: usize) -> Self {
        let window = || Window { messages: made(lines), slots: made(cpus.into()), agent: Line::default() };
        Self {
            tasks: made(tasks as usize),
            cpus: made(cpus.into()),
            enclaves: made(enclaves.into()),
            windows: (0..enclaves).map(|_| window()).collect(),
        }
    }

    /// The mechanism over it, every CPU online.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism<'_> {
        let mechanism = Mechanism::new(&self.tasks, &self.cpus, &self.enclaves);
        for cpu in 0..self.cpus.len() {
            mechanism.set_online(cpu as u16, true);
        }
        mechanism
    }

    /// The lines of an enclave.
    #[must_use]
    pub fn window(&self, enclave: u8) -> &Window {
        &self.windows[usize::from(enclave)]
    }
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The CPU whose slot held the txn.
    pub cpu: u16,
    /// The txn.
    pub txn: Txn,
    /// What it came to.
    pub outcome: Outcome,
}

/// What the hardware would have done.
#[derive(Debug, Default)]
pub struct Hardware {
    clock: Cell<u64>,
    /// Verdicts, and lines written, since they were last looked at.
    pub judged: RefCell<Vec<Judged>>,
    /// Lines written.
    pub sent: RefCell<Vec<Message>>,
    /// Doorbells rung.
    pub rung: Cell<u64>,
    /// Lines dropped from the caches.
    pub flushed: Cell<u64>,
    /// Write-combining buffers drained.
    pub drained: Cell<u64>,
}

impl Platform for Hardware {
    fn now_ns(&self) -> u64 {
        self.clock.get()
    }

    fn drain(&self) {
        self.drained.set(self.drained.get() + 1);
    }

    fn flush(&self, _line: &Line) {
        self.flushed.set(self.flushed.get() + 1);
    }

    fn prefetch(&self, _line: &Line) {}

    fn ring(&self, _peer: u16, _vector: u16) {
        self.rung.set(self.rung.get() + 1);
    }

    fn sent(&self, message: &Message) {
        self.sent.borrow_mut().push(*message);
    }

    fn judged(&self, cpu: u16, txn: &Txn, outcome: Outcome) {
        self.judged.borrow_mut().push(Judged { cpu, txn: *txn, outcome });
    }
}

/// The wires of a host.
#[derive(Debug)]
pub struct Host<'m> {
    wires: Vec<Option<Wire<'m, Hardware>>>,
    clock: Cell<u64>,
}

impl<'m> Host<'m> {
    /// A host whose enclaves all have a wire, and whose agents may sleep or not.
    ///
    /// # Panics
    /// A ring of the wrong size.
    #[must_use]
    pub fn new(memory: &'m Memory, sleeps: bool) -> Self {
        let wire = |window: &'m Window| {
            Wire::new(&window.messages, &window.slots, &window.agent, sleeps, Hardware::default())
                .expect("a ring's size is a power of two")
        };
        Self { wires: memory.windows.iter().map(|window| Some(wire(window))).collect(), clock: Cell::new(1) }
    }

    /// The wire of an enclave that has one.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn of(&self, enclave: u8) -> &Wire<'m, Hardware> {
        self.wires[usize::from(enclave)].as_ref().expect("the enclave has a wire")
    }

    /// Time goes on.
    pub fn pass(&self, ns: u64) {
        self.clock.set(self.clock.get() + ns);
    }

    /// The verdicts since this was last asked.
    pub fn judged(&self, enclave: u8) -> Vec<Judged> {
        self.of(enclave).platform.judged.take()
    }

    /// The lines written since this was last asked.
    pub fn sent(&self, enclave: u8) -> Vec<Message> {
        self.of(enclave).platform.sent.take()
    }

    /// Has agent `incarnation` of an enclave decide, which speaks `version`; it is due a resync if `resync` says so.
    pub fn attach(
        &self,
        mechanism: &Mechanism<'_>,
        enclave: u8,
        incarnation: Option<u32>,
        version: Version,
        resync: bool,
    ) {
        let Some(entry) = mechanism.enclave(enclave) else { return };
        if resync {
            entry.ask_for_resync();
        }
        entry.set_agent(incarnation, version);
        mechanism.forget_groups(self, enclave);
        self.of(enclave).forgive();
        entry.set_standing(Standing::Good);
        entry.set_level(Level::Ipu);
    }

    /// A host of one enclave that has every CPU, and whose agent 1 decides and knows that nothing is there.
    pub fn attached(memory: &'m Memory, mechanism: &Mechanism<'m>) -> Self {
        let host = Self::new(memory, false);
        for cpu in 0..mechanism.cpus().len() {
            mechanism.give_cpu(cpu as u16, 0);
        }
        host.attach(mechanism, 0, Some(1), VERSION, false);
        host
    }
}

impl<'m> Wires for Host<'m> {
    type Hardware = Hardware;

    fn wire(&self, enclave: u8) -> Option<&Wire<'_, Hardware>> {
        self.wires.get(usize::from(enclave))?.as_ref()
    }

    fn now_ns(&self) -> u64 {
        self.pass(1);
        self.clock.get()
    }
}
