//! The cycle counter counts and, where there is one (on QEMU: under `-icount`), the instruction counter counts exactly.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use core::hint::black_box;

    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::pmu;
    use neap_hal::say;
    use neap_qemu_tests::{pass, test_program};

    test_program!(test);

    fn test(_level: u64, _machine: Machine) -> ! {
        pmu::start();
        let [once, twice] = [1_000, 2_000].map(|turns| {
            let before = pmu::read();
            work(turns);
            pmu::read().since(before)
        });
        assert!(once.cycles > 0 && twice.cycles > 0, "no cycles were counted");
        if pmu::counts_instructions() {
            let again = {
                let before = pmu::read();
                work(1_000);
                pmu::read().since(before)
            };
            assert_eq!(once.instructions, again.instructions, "the same work, another count");
            assert!(twice.instructions > once.instructions + 1_000, "{once:?} {twice:?}");
            say!("instructions: {} and {}", once.instructions, twice.instructions);
        } else {
            say!("this machine counts no instructions");
        }
        pass()
    }

    #[inline(never)]
    fn work(turns: u32) {
        for turn in 0..turns {
            black_box(turn);
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
