//! The generic timer: the virtual counter, which EL0 can read too, and its one-shot deadline.
//!
//! Reading the counter costs no ISB here: a stamp may be some instructions early or late, and who must order
//! it says so with [`barrier`](crate::cpu::barrier).

/// Turns counter ticks into nanoseconds and back with one multiplication each; the division is done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Nanoseconds in a tick, 32 fraction bits.
    ns_per_tick: u64,
    /// Ticks in a nanosecond, 32 fraction bits, rounded up.
    ticks_per_ns: u64,
}

/// A counter frequency with which time can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "counter frequency {0} Hz is not between 1 MHz and 1 GHz: the platform's firmware must set CNTFRQ_EL0"
)]
pub struct BadFrequency(pub u64);

impl Scale {
    /// The scale of a counter that runs at `frequency_hz`.
    ///
    /// # Errors
    /// [`BadFrequency`] outside 1 MHz to 1 GHz: CNTFRQ_EL0 is a note that firmware leaves, not a measurement.
    pub const fn new(frequency_hz: u64) -> Result<Self, BadFrequency> {
        const SECOND_NS: u64 = 1_000_000_000;
        if frequency_hz < 1_000_000 || frequency_hz > SECOND_NS {
            return Err(BadFrequency(frequency_hz));
        }
        Ok(Self {
            ns_per_tick: (SECOND_NS << 32) / frequency_hz,
            ticks_per_ns: (frequency_hz << 32).div_ceil(SECOND_NS),
        })
    }

    /// Nanoseconds in `ticks`, rounded down.
    pub const fn ns(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.ns_per_tick as u128) >> 32) as u64
    }

    /// Ticks that `ns` nanoseconds take, rounded up, so that a wait is never shorter than asked.
    pub const fn ticks(self, ns: u64) -> u64 {
        ((ns as u128 * self.ticks_per_ns as u128 + u32::MAX as u128) >> 32) as u64
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub use clock::Timer;

/// The virtual counter, in ticks since some moment before boot.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
#[inline(always)]
pub fn ticks() -> u64 {
    let ticks;
    // SAFETY: reads a register that the runtime opens to EL0. Volatile: another read is another time.
    unsafe {
        core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
    }
    ticks
}

/// Ticks of the virtual counter in a second, as the platform's firmware has noted them.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub fn frequency_hz() -> u64 {
    let frequency_hz;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency_hz, options(nomem, nostack, preserves_flags));
    }
    frequency_hz
}

/// The virtual counter alone, which EL0 can read.
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    scale: Scale,
}

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
impl Counter {
    /// The counter.
    ///
    /// # Errors
    /// [`BadFrequency`] when firmware left a counter frequency that can't be.
    pub fn new() -> Result<Self, BadFrequency> {
        Ok(Self { scale: Scale::new(frequency_hz())? })
    }

    /// The counter, in nanoseconds since some moment before boot.
    #[inline(always)]
    pub fn now_ns(&self) -> u64 {
        self.scale.ns(ticks())
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
mod clock {
    use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, Readable, Writeable};
    use embedded_hal::delay::DelayNs;

    use super::{BadFrequency, Scale};

    /// The running core's timer. Its interrupt is [`Timer::PPI`]; who sleeps until it fires need not take
    /// it, but has to have it enabled at the interrupt controller.
    #[derive(Debug, Clone, Copy)]
    pub struct Timer {
        scale: Scale,
    }

    impl Timer {
        /// The virtual timer's private interrupt (BSA): PPI 11, interrupt 27.
        pub const PPI: u32 = 11;

        /// The running core's timer, disarmed.
        ///
        /// # Errors
        /// [`BadFrequency`] when firmware left a counter frequency that can't be.
        pub fn new() -> Result<Self, BadFrequency> {
            let scale = Scale::new(CNTFRQ_EL0.get())?;
            // A core that was turned off while its deadline had passed comes back with the timer off and, on QEMU, its
            // interrupt's line still up: only a change of the enable bit moves it.
            CNTV_CVAL_EL0.set(u64::MAX);
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
            Ok(Self { scale })
        }

        /// The counter, in ticks since some moment before boot; the same on all cores.
        #[inline]
        pub fn ticks(&self) -> u64 {
            CNTVCT_EL0.get()
        }

        /// The counter, in nanoseconds since some moment before boot.
        #[inline]
        pub fn now_ns(&self) -> u64 {
            self.scale.ns(self.ticks())
        }

        /// The scale between ticks and nanoseconds.
        pub fn scale(&self) -> Scale {
            self.scale
        }

        /// Arms the interrupt for `ns` nanoseconds from now; a second deadline replaces the first.
        pub fn arm(&self, ns: u64) {
            CNTV_CVAL_EL0.set(self.ticks().saturating_add(self.scale.ticks(ns)));
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
            aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
        }

        /// Takes the deadline back; the interrupt, which is level-triggered, goes with it.
        pub fn disarm(&self) {
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::CLEAR);
            aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
        }

        /// Whether the deadline is armed and has passed.
        pub fn fired(&self) -> bool {
            CNTV_CTL_EL0.matches_all(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::ISTATUS::SET)
        }
    }

    impl DelayNs for Timer {
        fn delay_ns(&mut self, ns: u32) {
            let (start, wait) = (self.ticks(), self.scale.ticks(u64::from(ns)));
            while self.ticks().wrapping_sub(start) < wait {
                core::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_that_divide_a_second_are_exact() {
        for (frequency, tick_ns) in [(62_500_000, 16), (1_000_000_000, 1), (25_000_000, 40)] {
            let scale = Scale::new(frequency).unwrap();
            for ticks in [0, 1, 999, 1 << 40, (1 << 58) - 1] {
                assert_eq!(scale.ns(ticks), ticks * tick_ns, "{frequency} Hz");
            }
        }
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked_nor_a_tick_too_long() {
        for frequency in [1_000_000, 24_000_000, 62_500_000, 121_875_000, 1_000_000_000] {
            let scale = Scale::new(frequency).unwrap();
            for ns in [1, 7, 15, 16, 17, 1_000, 999_999, 20_000_000] {
                let ticks = scale.ticks(ns);
                let exact = (u128::from(ns) * u128::from(frequency)).div_ceil(1_000_000_000);
                assert!(
                    (exact..=exact + 1).contains(&u128::from(ticks)),
                    "{ns} ns at {frequency} Hz gave {ticks} ticks, exact {exact}"
                );
            }
        }
    }

    #[test]
    fn a_year_drifts_less_than_a_millisecond() {
        let frequency = 24_000_000u64;
        let year_s = 365 * 86_400u64;
        let ns = Scale::new(frequency).unwrap().ns(frequency * year_s);
        let exact = year_s * 1_000_000_000;
        assert!(exact - ns < 1_000_000, "{} ns off", exact - ns);
    }

    #[test]
    fn impossible_frequencies_are_refused() {
        for frequency in [0, 999_999, 1_000_000_001, u64::MAX] {
            assert_eq!(Scale::new(frequency), Err(BadFrequency(frequency)));
        }
    }
}
