//! The counter runs, a deadline ends a sleep with interrupts masked, and reaches the handler with them unmasked.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use core::sync::atomic::{AtomicU32, Ordering};

    use embedded_hal::delay::DelayNs;
    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::exception::{Frame, Kind, Source};
    use neap_hal::cpu::irq;
    use neap_hal::cpu::timer::Timer;
    use neap_hal::say;
    use neap_qemu_tests::{on_exception, pass, test_program};

    /// Interrupt 16 is the first private peripheral's.
    const TIMER_INTERRUPT: u32 = 16 + Timer::PPI;

    static TAKEN: AtomicU32 = AtomicU32::new(0);

    test_program!(test);

    fn test(_level: u64, machine: Machine) -> ! {
        let Machine { mut timer, mut interface, .. } = machine;
        assert_eq!(interface.take(), None, "something is pending at boot");

        let start = timer.now_ns();
        timer.delay_us(200);
        assert!(timer.now_ns() - start >= 200_000, "the delay was too short");

        let deadline = timer.ticks() + timer.scale().ticks(1_000_000);
        timer.arm(1_000_000);
        while !timer.fired() {
            irq::wait_for_interrupt();
        }
        assert!(timer.ticks() >= deadline, "the sleep was too short");
        assert_eq!(interface.take(), Some(TIMER_INTERRUPT));
        timer.disarm();
        assert_eq!(interface.take(), None, "a disarmed timer interrupts");

        on_exception(handle);
        timer.arm(100_000);
        // Masked from the look to the sleep: an interrupt in between would be waited for in vain.
        while TAKEN.load(Ordering::Acquire) == 0 {
            irq::wait_for_interrupt();
            irq::unmask();
            irq::mask();
        }
        assert_eq!(TAKEN.load(Ordering::Acquire), 1);
        assert_eq!(interface.take(), None);
        say!("timer at {} ticks for a millisecond", timer.scale().ticks(1_000_000));
        pass()
    }

    /// Takes the interrupt's cause away; it was never acknowledged, so nothing is left to end.
    fn handle(frame: &mut Frame) {
        assert_eq!((frame.kind(), frame.source()), (Kind::Irq, Source::Runtime));
        if let Ok(timer) = Timer::new() {
            timer.disarm();
        }
        TAKEN.fetch_add(1, Ordering::Release);
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
