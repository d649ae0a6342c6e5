//! Looks whether anything of anybody's is left in its registers and its memory, and tells what it has found.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use neap_abi::grant::space;
    use neap_attacks::{STACK_BYTES, traces, wait_for_leave};
    use neap_hal::cpu::forbidden::Found;

    neap_hal::entry_that_looks!(look);

    static OWN: traces::Own<{ 64 << 10 >> 3 }> = traces::Own::new();

    extern "C" fn look(found: &Found) -> ! {
        let stack = traces::find(space::STACK_END - STACK_BYTES..space::STACK_END - traces::STACK_USED);
        let memory = traces::find(OWN.range());
        // Its host has a look at where it lies meanwhile.
        let _ = wait_for_leave();
        for (number, value) in (0..).zip(found.general.iter().chain(&found.others)) {
            assert!(*value == 0, "register {number} is {value:#x}");
        }
        for (number, value) in (0..).zip(&found.vectors) {
            assert!(*value == 0, "v{number} is {value:#x}");
        }
        if let Some(address) = stack.or(memory) {
            panic!("something is left at {address:#x}");
        }
        panic!("nothing is left");
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
