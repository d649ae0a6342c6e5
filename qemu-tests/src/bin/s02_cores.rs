//! Every core starts once, on its own stack, sees what others wrote, adds up with them, and wakes when it is called. One
//! that turns itself off while its timer interrupts starts again, and nothing of its first life interrupts the second.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use neap_hal::board::Conduit;
    use neap_hal::board::gic::{Gic, Target};
    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::timer::Timer;
    use neap_hal::cpu::{CORES_MAX, boot, irq, power, psci};
    use neap_hal::say;
    use neap_qemu_tests::{on_secondary, pass, test_program};
    use spin::Once;
    use spin::mutex::SpinMutex;

    const ADDITIONS: u64 = 10_000;

    static GIC: Once<Gic> = Once::new();
    static CONDUIT: Once<Conduit> = Once::new();
    static REBORN: AtomicU32 = AtomicU32::new(0);
    static ARRIVED: AtomicU32 = AtomicU32::new(0);
    static SUM: AtomicU64 = AtomicU64::new(0);
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    static TARGETS: SpinMutex<[Option<Target>; CORES_MAX]> = SpinMutex::new([None; CORES_MAX]);

    test_program!(test);

    fn test(_level: u64, machine: Machine) -> ! {
        let Machine { board, map, gic, .. } = machine;
        CONDUIT.call_once(|| board.conduit);
        let gic = GIC.call_once(|| gic);
        on_secondary(start);
        let cores = board.cores.len();
        for (core, &mpidr) in board.cores.iter().enumerate().skip(1) {
            psci::start_core(board.conduit, core, mpidr, map).unwrap();
        }
        let all_others = (1u32 << cores) - 2;
        wait_for(&ARRIVED, all_others);
        assert_eq!(SUM.load(Ordering::Relaxed), ADDITIONS * (cores as u64 - 1), "additions were lost");
        assert!(psci::start_core(board.conduit, 1, board.cores[1], map).is_err(), "a core started twice");
        assert!(
            psci::start_core(board.conduit, CORES_MAX, 0, map).is_err(),
            "a core without a stack started"
        );
        for core in 1..cores {
            assert_eq!(WOKEN.load(Ordering::Acquire) >> core & 1, 0, "core {core} woke before it was called");
            let target = TARGETS.lock()[core].unwrap();
            gic.wake(target);
            wait_for(&WOKEN, (2u32 << core) - 2);
        }
        while !psci::is_off(board.conduit, board.cores[1]) {
            core::hint::spin_loop();
        }
        psci::start_core(board.conduit, 1, board.cores[1], map).unwrap();
        wait_for(&REBORN, 1);
        say!("{cores} cores");
        pass()
    }

    fn wait_for(mask: &AtomicU32, wanted: u32) {
        while mask.load(Ordering::Acquire) != wanted {
            core::hint::spin_loop();
        }
    }

    fn live_again() -> ! {
        let _timer = Timer::new().unwrap();
        let mut interface = GIC.get().unwrap().join().unwrap();
        assert_eq!(interface.take(), None, "an interrupt of the first life");
        REBORN.store(1, Ordering::Release);
        power::park()
    }

    fn start(core: usize) -> ! {
        if WOKEN.load(Ordering::Acquire) >> core & 1 == 1 {
            live_again();
        }
        let local = 0u8;
        let [_, stack] = boot::image().stacks_of(core);
        assert!(stack.contains(&(&raw const local as u64)), "core {core} runs on its own stack");
        assert_eq!(power::core(), core);
        assert!(irq::masked());
        for _ in 0..ADDITIONS {
            SUM.fetch_add(1, Ordering::Relaxed);
        }
        let mut interface = GIC.get().unwrap().join().unwrap();
        TARGETS.lock()[core] = Some(interface.target());
        ARRIVED.fetch_or(1 << core, Ordering::Release);
        while interface.take() != Some(Gic::WAKE) {
            irq::wait_for_interrupt();
        }
        if core == 1 {
            let timer = Timer::new().unwrap();
            timer.arm(1);
            while !timer.fired() {
                irq::wait_for_interrupt();
            }
            WOKEN.fetch_or(1 << core, Ordering::Release);
            psci::core_off(*CONDUIT.get().unwrap());
            panic!("a core could not be turned off");
        }
        WOKEN.fetch_or(1 << core, Ordering::Release);
        power::park()
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
