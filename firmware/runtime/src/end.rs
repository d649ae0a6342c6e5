//! How the runtime ends on a core: with an epitaph in the window, alone, and with its last words on the console if it was the
//! supervisor.

use core::alloc::Layout;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use neap_abi::epitaph::Cut;
use neap_abi::image::NAME_BYTES;
use neap_abi::{Cause, Epitaph, EpitaphRecord};
use neap_hal::board::console;
use neap_hal::cpu::exception::{Frame, Kind, Source};
use neap_hal::cpu::{CORES_MAX, power, psci};

use crate::enclave::CoreState;
use crate::{agents, cores, window};

/// Exit statuses of a simulator that ends with its supervisor (`neap.exit=1`).
pub mod status {
    /// A panic.
    pub const PANIC: u8 = 101;
    /// An exception.
    pub const EXCEPTION: u8 = 102;
    /// An allocation that could not be.
    pub const ALLOCATION: u8 = 103;
    /// The machine could not be brought up.
    pub const NO_MACHINE: u8 = 104;
}

static ENDING: [AtomicBool; CORES_MAX] = [const { AtomicBool::new(false) }; CORES_MAX];

/// A core that is started again may end again.
pub fn reset(core: usize) {
    if let Some(ending) = ENDING.get(core) {
        ending.store(false, Ordering::Relaxed);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("", 0), |location| (location.file(), location.line()));
    let mut epitaph = Epitaph::new(Cause::Panic, power::core() as u8);
    epitaph.set_source(file, line, Cut::new(format_args!("{}", info.message())).text());
    end(epitaph, status::PANIC)
}

#[unsafe(no_mangle)]
extern "C" fn neap_exception(frame: &mut Frame) {
    if frame.source() == Source::Agent {
        return agents::on_exception(frame);
    }
    let (cause, what) = match frame.kind() {
        Kind::Synchronous => (Cause::Synchronous, frame.syndrome().name()),
        Kind::SError => (Cause::SystemError, "SError"),
        Kind::Irq | Kind::Fiq => (Cause::Interrupt, "interrupts are masked, and yet one came"),
    };
    let mut epitaph = agents::epitaph(frame, cause);
    epitaph.set_text(what);
    end(epitaph, status::EXCEPTION)
}

/// Ends a core that asked for memory in vain.
pub fn by_allocation(layout: Layout, why: &str) -> ! {
    let mut epitaph = Epitaph::new(Cause::Allocation, power::core() as u8);
    let text = Cut::new(format_args!("{} bytes: {why}", layout.size()));
    epitaph.set_source("", 0, text.text());
    end(epitaph, status::ALLOCATION)
}

/// Ends this core, on which the runtime itself has come to no good. An agent's is turned off, so that the supervisor can
/// start it again; the supervisor's parks or, where the command line says so, ends the simulator.
fn end(mut epitaph: Epitaph, status: u8) -> ! {
    let number = power::core();
    // An end within an end leaves the first one's epitaph (and one whose simulator does not end is no simulator).
    let again = ENDING.get(number).is_none_or(|ending| ending.swap(true, Ordering::Relaxed));
    if again {
        power::park();
    }
    let shared = cores::shared();
    if let Some(shared) = shared {
        epitaph.session = cores::core(number).session.load(Ordering::Relaxed);
        epitaph.time_ns = shared.timer.now_ns();
        if let Some(region) = shared.epitaphs.get(number).and_then(Option::as_ref) {
            let before = window::read_epitaph(region).map_or(0, |record| record.number);
            let record = EpitaphRecord {
                epitaph,
                incarnation: 0,
                image_crc: 0,
                number: before.wrapping_add(1),
                name: [0; NAME_BYTES],
                last_message: None,
            };
            window::bury(region, &record);
        }
        fence(Ordering::Release);
    }
    if number == 0 {
        console::print_last_words(format_args!("neap: the supervisor ended: {}\n", Summary(&epitaph)));
        if shared.is_none_or(|shared| shared.args.exit) {
            power::exit_simulator(status);
        }
        power::park();
    }
    cores::core(number).set_state(CoreState::Dead);
    if let Some(shared) = shared {
        psci::core_off(shared.conduit);
    }
    power::park()
}

/// An epitaph on one line.
pub struct Summary<'a>(pub &'a Epitaph);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epitaph = self.0;
        write!(f, "core {}: {}: {}", epitaph.core, epitaph.cause.name(), epitaph.text())?;
        match epitaph.cause {
            Cause::Panic => write!(f, " ({}:{})", epitaph.file(), epitaph.line),
            Cause::Allocation | Cause::Exit => Ok(()),
            Cause::Call => write!(f, " ({}, x30 {:#x})", epitaph.line, epitaph.registers[30]),
            _ => write!(
                f,
                " (ELR {:#x}, FAR {:#x}, ESR {:#x}, x30 {:#x}, sp {:#x})",
                epitaph.elr, epitaph.far, epitaph.esr, epitaph.registers[30], epitaph.registers[31]
            ),
        }
    }
}
