// SPDX-License-Identifier: GPL-2.0
//! The host driver: the mechanisms of a host whose policies run on an IPU.
//!
//! 1. One PCI function of the IPU is one enclave. What a task or a CPU does comes from the sched_ext program in `bpf/`, through
//!    the kfuncs in `shim.c`, to [`kfuncs`]: under a runqueue's lock, so nothing there locks, allocates or panics.
//! 2. What a txn does is `neap-mechanism`'s, which cargo tests; this crate is what only a kernel can do.
//! 3. What the IPU can write is an allegation. It can make the driver refuse and report.
//! 4. Work never stops: whatever becomes of an agent, of the link or of this module, tasks go on.

mod beat;
mod debug;
mod device;
mod function;
mod host;
mod kfuncs;
mod manager;
mod measure;
mod session;
mod window;

use kernel::{driver, pci, prelude::*, InPlaceModule};

use function::NeapDriver;

module! {
    type: NeapModule,
    name: "neap",
    authors: ["The Neap authors"],
    description: "Scheduling by the agents of an IPU",
    license: "GPL",
    params: {
        tasks: u32 {
            default: 4096,
            description: "Tasks that agents can schedule at one time, a power of two from 64 to 32768 (default: 4096)",
        },
        watchdog_ms: u32 {
            default: 20,
            description: "How long an agent may owe a decision before it is ended, in ms (default: 20)",
        },
        turn_ms: u32 {
            default: 100,
            description: "How long a task runs at a time whose decision sets no slice, unless it asks for no tick, in ms (default: 100)",
        },
        kernel_after_ms: u32 {
            default: 1000,
            description: "How long the host's own rule decides in an ended agent's place before tasks go back to the kernel's class, in ms (default: 1000)",
        },
    },
}

// In the order of their ends: functions go before the beat that looks after them, and what both stand on last.
#[pin_data]
struct NeapModule {
    #[pin]
    driver: driver::Registration<pci::Adapter<NeapDriver>>,
    _shim: Shim,
    _debug: debug::Root,
    _host: host::Owner,
}

impl InPlaceModule for NeapModule {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _host: host::Owner::new(module_parameters::tasks.value())?,
            _debug: debug::Root::new(),
            _shim: Shim::new()?,
            driver <- driver::Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
        })
    }
}

extern "C" {
    fn neap_shim_init() -> i32;
    fn neap_shim_exit();
}

/// The C part: kfuncs and the beat.
struct Shim;

impl Shim {
    fn new() -> Result<Self> {
        // SAFETY: What the kfuncs and the beat stand on, the host, is there.
        kernel::error::to_result(unsafe { neap_shim_init() })?;
        Ok(Self)
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // SAFETY: `neap_shim_init` has succeeded.
        unsafe { neap_shim_exit() };
    }
}
