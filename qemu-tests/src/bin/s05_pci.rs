//! The doorbell function is found and set up; a doorbell that we ring at ourselves comes back as the interrupt of its
//! vector, on the core that it is routed to; unless that vector is closed.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod card {
    use neap_hal::board::qemu_virt::Machine;
    use neap_hal::cpu::irq;
    use neap_hal::say;
    use neap_qemu_tests::{pass, test_program};

    /// A vector that is not wanted.
    const CLOSED: u16 = 1;

    test_program!(test);

    fn test(_level: u64, mut machine: Machine) -> ! {
        let function = machine.functions[0];
        assert_eq!(function.doorbell_page % 4096, 0);
        assert_eq!(function.msix_table % function.msix_table_size, 0);
        assert!(
            !(function.msix_table..function.msix_table + function.msix_table_size)
                .contains(&function.doorbell_page)
        );
        let page = machine.take_doorbells(0).unwrap();
        assert!(machine.take_doorbells(0).is_none(), "the doorbells were given out twice");
        let ourselves = page.position().unwrap();
        let received = machine.receive_vectors(0, |vector| vector != CLOSED).unwrap();
        say!(
            "{} is peer {ourselves} with {} vectors, {received} received",
            function.address,
            function.vectors
        );
        let Some(frame) = machine.message_frame else {
            assert_eq!(received, 0);
            pass()
        };
        assert_eq!(received, function.vectors - 1);
        let bells = page.doorbells(ourselves, 0, function.vectors).unwrap();
        for vector in 0..function.vectors {
            let interrupt = frame.first + u32::from(vector);
            machine.gic.route(interrupt, &machine.interface).unwrap();
            // The closed one, if it came, would be what came instead.
            assert_eq!(machine.interface.take(), None, "vector {vector} came before it was rung");
            assert!(bells.ring(vector));
            if vector == CLOSED {
                continue;
            }
            let taken = loop {
                irq::wait_for_interrupt();
                if let Some(taken) = machine.interface.take() {
                    break taken;
                }
            };
            assert_eq!(taken, interrupt);
        }
        assert!(!bells.ring(function.vectors), "a vector beyond ours was rung");
        assert_eq!(machine.interface.take(), None);
        pass()
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
