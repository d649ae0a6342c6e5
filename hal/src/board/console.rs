//! The board's serial port, for what is said before the window is up and when all else failed.

use core::fmt::{self, Write};
use core::ptr::NonNull;

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart};
use safe_mmio::UniqueMmioPointer;
use spin::mutex::SpinMutex;

/// The line's speed, in bauds, and the reference clock of QEMU's PL011, in hertz.
const BAUD: u32 = 115_200;
const CLOCK_HZ: u32 = 24_000_000;

static CONSOLE: SpinMutex<Option<Uart<'static>>> = SpinMutex::new(None);

/// Takes the PL011 at `registers` for the console. Until then what is printed is dropped.
///
/// # Safety
/// A PL011 must be there, mapped as registers for as long as the image runs, and nobody else's.
pub unsafe fn open(registers: NonNull<PL011Registers>) {
    // SAFETY: the caller's promise.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    // The only error is a divisor out of range, which these two constants are not.
    if uart.enable(line, BAUD, CLOCK_HZ).is_ok() {
        *CONSOLE.lock() = Some(uart);
    }
}

/// Prints, whole lines at a time where the caller does so. Cores take turns.
pub fn print(args: fmt::Arguments<'_>) {
    if let Some(uart) = CONSOLE.lock().as_mut() {
        // A UART's write never fails.
        let _ = uart.write_fmt(args);
    }
}

/// Prints for a core that is about to end and may have been interrupted while it held the console: it waits a bounded
/// time for its turn, and then takes it.
pub fn print_last_words(args: fmt::Arguments<'_>) {
    const TRIES: u32 = 1_000_000;
    for _ in 0..TRIES {
        if let Some(mut console) = CONSOLE.try_lock() {
            if let Some(uart) = console.as_mut() {
                let _ = uart.write_fmt(args);
            }
            return;
        }
        core::hint::spin_loop();
    }
    // SAFETY: the holder did not let go in what is milliseconds at least: it is this core, below the exception, and will
    // not go on, or it is one that hangs. The worst that interleaving does is a garbled line.
    unsafe {
        CONSOLE.force_unlock();
    }
    print(args);
}

/// Prints a line on the console.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {
        $crate::board::console::print(format_args!("{}\n", format_args!($($arg)*)))
    };
}
