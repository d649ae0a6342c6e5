//! What the programs share: the boot code's calls, and how they end.

use core::panic::PanicInfo;

use neap_hal::board::console;
use neap_hal::board::qemu_virt::{Machine, bring_up};
use neap_hal::cpu::exception::Frame;
use neap_hal::cpu::power::{self, exit_simulator};
use neap_hal::say;
use spin::Once;

use crate::{FAIL, NO_MACHINE, PASS, UNEXPECTED_EXCEPTION};

type Handler = fn(&mut Frame);

static HANDLER: Once<Handler> = Once::new();
static SECONDARY: Once<fn(usize) -> !> = Once::new();

/// Brings the machine up, or ends the test.
pub fn machine(device_tree: u64) -> Machine {
    // SAFETY: called once, by the program's `neap_primary`, with what that was given.
    match unsafe { bring_up(device_tree) } {
        Ok(machine) => machine,
        Err(error) => {
            say!("no machine: {error}");
            exit_simulator(NO_MACHINE)
        }
    }
}

/// Sets the handler of exceptions that the test asks for; the others end it.
pub fn on_exception(handler: Handler) {
    HANDLER.call_once(|| handler);
}

/// Sets what the other cores do.
pub fn on_secondary(start: fn(usize) -> !) {
    SECONDARY.call_once(|| start);
}

/// Ends the test: all held.
pub fn pass() -> ! {
    say!("pass");
    exit_simulator(PASS)
}

#[unsafe(no_mangle)]
extern "C" fn neap_secondary(core: usize) -> ! {
    match SECONDARY.get() {
        Some(start) => start(core),
        None => power::park(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn neap_exception(frame: &mut Frame) {
    match HANDLER.get() {
        Some(handler) => handler(frame),
        None => {
            console::print_last_words(format_args!(
                "core {}: {} at {:#x}, address {:#x}, ESR {:#x}\n",
                power::core(),
                frame.syndrome().name(),
                frame.elr,
                frame.far,
                frame.esr
            ));
            exit_simulator(UNEXPECTED_EXCEPTION)
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::print_last_words(format_args!("core {}: {info}\n", power::core()));
    exit_simulator(FAIL)
}
