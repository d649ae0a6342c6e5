//! The runtime's image: it calls the library from where the boot code calls us. Built for another machine it is empty.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod entry {
    use neap_runtime::{agents, supervisor};

    #[unsafe(no_mangle)]
    extern "C" fn neap_primary(device_tree: usize, _boot_level: u64) -> ! {
        supervisor::start(device_tree as u64)
    }

    #[unsafe(no_mangle)]
    extern "C" fn neap_secondary(core: usize) -> ! {
        agents::own(core)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
