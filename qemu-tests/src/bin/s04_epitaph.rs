//! A core that faults, panics, allocates or overflows its stack leaves an epitaph that says so, ends alone, and can be
//! started again. Last of all the supervisor faults, which ends the simulator.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use core::hint::black_box;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use neap_abi::{Cause, Epitaph, EpitaphRecord};
    use neap_hal::board::qemu_virt::{Machine, bring_up};
    use neap_hal::cpu::{CORES_MAX, boot, psci};
    use neap_hal::say;
    use neap_runtime::cores::{self, Shared};
    use neap_runtime::enclave::CoreState;
    use neap_runtime::end::{self, Summary};
    use neap_runtime::window::{self, Wanted};

    extern crate alloc;

    /// Nobody's memory: between the registers and the RAM of every `virt`.
    const UNMAPPED: u64 = 0x3f00_0000;

    struct Crime {
        name: &'static str,
        commit: fn(),
        proves: fn(&Epitaph) -> bool,
    }

    const CRIMES: [Crime; 6] = [
        Crime {
            name: "a store to nobody's memory",
            // SAFETY: none: it faults, which is the point.
            commit: || unsafe { (UNMAPPED as *mut u64).write_volatile(1) },
            proves: |e| {
                e.cause == Cause::Synchronous
                    && e.far == UNMAPPED
                    && e.esr >> 26 == 0x25
                    && e.esr >> 6 & 1 == 1
                    && boot::image().text.contains(&e.elr)
                    && e.text() == "data abort: not mapped"
            },
        },
        Crime {
            name: "a store to the text",
            // SAFETY: none: it faults, which is the point.
            commit: || unsafe { (boot::image().text.start as *mut u32).write_volatile(0) },
            proves: |e| {
                e.cause == Cause::Synchronous
                    && e.far == boot::image().text.start
                    && e.text() == "data abort: not permitted"
            },
        },
        Crime {
            name: "a jump into data",
            commit: || {
                // SAFETY: none: it faults, which is the point.
                let data: extern "C" fn() = unsafe { core::mem::transmute(boot::image().data.start) };
                black_box(data)();
            },
            proves: |e| {
                e.cause == Cause::Synchronous
                    && e.elr == boot::image().data.start
                    && e.text() == "instruction abort"
            },
        },
        Crime {
            name: "a stack without end",
            commit: || {
                black_box(recurse(black_box(1)));
            },
            proves: |e| {
                let [_, stack] = boot::image().stacks_of(1);
                e.cause == Cause::Synchronous && e.far < stack.start && e.far >= stack.start - 4096
            },
        },
        Crime {
            name: "a panic",
            commit: || panic!("deliberate, number {}", black_box(7)),
            proves: |e| {
                e.cause == Cause::Panic
                    && e.text() == "deliberate, number 7"
                    && e.file().ends_with("s04_epitaph.rs")
                    && e.line > 0
            },
        },
        Crime {
            name: "an allocation",
            commit: || drop(black_box(alloc::boxed::Box::new(black_box([0u8; 48])))),
            proves: |e| {
                e.cause == Cause::Allocation && e.text() == "48 bytes: an agent's core may not allocate"
            },
        },
    ];

    #[expect(unconditional_recursion, reason = "the stack's guard page ends it")]
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        recurse(frame[3] + 1) + black_box(frame)[5]
    }

    static NEXT: AtomicUsize = AtomicUsize::new(0);

    #[unsafe(no_mangle)]
    extern "C" fn neap_secondary(_core: usize) -> ! {
        (CRIMES[NEXT.load(Ordering::Acquire)].commit)();
        panic!("went unpunished");
    }

    #[unsafe(no_mangle)]
    extern "C" fn neap_primary(device_tree: usize, _boot_level: u64) -> ! {
        // SAFETY: called once, with what the boot code gave.
        let machine = unsafe { bring_up(device_tree as u64) }.unwrap_or_else(|error| panic!("{error}"));
        let Machine { board, map, gic, message_frame, timer, .. } = machine;
        let wanted = Wanted { cores: 2, logged: 0b11, cpus: 1, features: 0, counter_hz: 0, origin: "" };
        // SAFETY: the board's window, which nobody else here reaches.
        let laid_out = unsafe { window::lay_out(&board.windows[0], 0, wanted) }
            .unwrap_or_else(|error| panic!("{error}"));
        let mut epitaphs = [None; CORES_MAX];
        for (core, region) in &laid_out.epitaphs {
            epitaphs[*core] = Some(*region);
        }
        let core = cores::core(1);
        let shared = cores::share(Shared {
            gic,
            message_frame,
            conduit: board.conduit,
            map,
            affinities: board.cores,
            args: board.args,
            timer,
            epitaphs,
        });
        for (number, crime) in CRIMES.iter().enumerate() {
            NEXT.store(number, Ordering::Release);
            core.set_state(CoreState::Down);
            core.session.store(number as u32, Ordering::Relaxed);
            end::reset(1);
            psci::start_core(shared.conduit, 1, shared.affinities[1], shared.map).unwrap();
            while core.state() != CoreState::Dead || !psci::is_off(shared.conduit, shared.affinities[1]) {
                core::hint::spin_loop();
            }
            let record = shared.epitaphs[1].as_ref().and_then(window::read_epitaph);
            let Some(EpitaphRecord { epitaph, .. }) = record else { panic!("{}: no epitaph", crime.name) };
            say!("{}: {}", crime.name, Summary(&epitaph));
            assert!((crime.proves)(&epitaph), "{}: {epitaph:?}", crime.name);
            assert_eq!((epitaph.core, epitaph.session), (1, number as u32));
        }
        say!("now the supervisor");
        // SAFETY: none: it faults, which is the point.
        unsafe { (UNMAPPED as *mut u64).read_volatile() };
        panic!("went unpunished")
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
