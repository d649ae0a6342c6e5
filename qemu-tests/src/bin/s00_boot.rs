//! The image boots, at EL1 and at EL2, finds its machine, and runs at EL1 on its own stack with the caches on.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::{boot, power};
    use neap_hal::say;
    use neap_qemu_tests::{pass, test_program};

    /// In data, so that it proves that data was loaded; `ZEROED` proves that what follows was zeroed.
    static LOADED: [u64; 2] = [0x6e65_6170, 42];
    static mut ZEROED: [u64; 512] = [0; 512];

    test_program!(test);

    fn test(level: u64, machine: Machine) -> ! {
        let local = 0u8;
        let [_, stack] = boot::image().stacks_of(0);
        assert!(stack.contains(&(&raw const local as u64)), "the stack is the first core's");
        assert_eq!(LOADED, [0x6e65_6170, 42]);
        // SAFETY: one core runs, and nothing else names this static.
        assert!(unsafe { (&raw const ZEROED).read_volatile() }.iter().all(|&word| word == 0));
        assert_eq!(power::core(), 0);
        say!("booted at EL{level}");
        say!("memory {:x?} window {:x?}", machine.board.memory, machine.board.windows[0]);
        say!("cores {:?} conduit {:?}", machine.board.cores, machine.board.conduit);
        pass()
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
