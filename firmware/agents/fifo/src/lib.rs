//! The FIFO agent: policy and libOS put together.
//!
//! It is handed everything that it may touch, so where it runs (on a core of the IPU, as a process on the host, in a
//! test) is its caller's business.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use neap_policies::{Fifo, TASKS, Task};

neap_agent::agent_of!("fifo", Task, Fifo::<TASKS>::new);

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use core::sync::atomic::{AtomicU64, Ordering};
    use neap_abi::{
        AgentControl, AgentState, Clock, Ledger, Message, MessageKind, Outcome, Payload, TaskFlags, Txn,
        TxnFlags, VERSION,
    };
    use neap_agent::{AgentError, Bindings, Doorbell, Exit, Idle};
    use neap_queue::{Line, SharedProducer, SlotReader};

    /// Keeps what is rung, and has a counter that moves by two with each look.
    struct Rung<'a>(&'a RefCell<Vec<u16>>, Cell<u64>);

    impl Doorbell for Rung<'_> {
        fn ring(&self, cpu: u16) {
            self.0.borrow_mut().push(cpu);
        }

        fn ticks(&self) -> u64 {
            self.1.set(self.1.get() + 2);
            // Its low 24 bits come round after the seventh look.
            self.1.get() + 0xff_fff1
        }
    }

    /// A host that acts whenever the agent has nothing to do.
    struct Script<F>(F);

    impl<F: FnMut() -> bool> Idle for Script<F> {
        fn idle(&mut self, _: u32, drowse: &mut dyn FnMut() -> bool) {
            if drowse() {
                (self.0)();
            }
        }

        fn now_ns(&mut self) -> u64 {
            unreachable!("FIFO is told no time")
        }
    }

    fn lines(count: usize) -> Vec<Line> {
        (0..count).map(|_| Line::default()).collect()
    }

    /// Runs the agent over four CPUs and eight ring lines; `host` acts on each idle and ends with false.
    fn run(mut host: impl FnMut(&SharedProducer<'_>, &[Line], &[u16], &Line) -> bool) {
        let (messages, slots, control) = (lines(8), lines(4), Line::default());
        let rung = RefCell::new(Vec::new());
        let revoke = AtomicU64::new(0);
        let producer = SharedProducer::new(&messages).unwrap();
        let bindings = Bindings {
            slots: &slots,
            control: &control,
            revoke: &revoke,
            doorbell: Rung(&rung, Cell::new(0)),
            core: 1,
            wake: (3, 4),
            session: 9,
            version: VERSION,
            incarnation: 5,
            taken: 0,
            resyncs: 0,
            clock: Clock::Own,
        };
        let mut memory = vec![Task::default(); TASKS];
        let mut idle = Script(|| {
            let going = host(&producer, &slots, &rung.borrow(), &control);
            rung.borrow_mut().clear();
            if !going {
                revoke.store(1, Ordering::Relaxed);
            }
            going
        });
        assert_eq!(start(bindings, &messages, &mut memory, &mut idle), Ok(Exit::Revoked));
    }

    fn push(producer: &SharedProducer<'_>, message: Message) {
        producer.push(&message.to_payload()).unwrap();
    }

    #[test]
    fn from_message_to_doorbell_through_lines() {
        let step = Cell::new(0);
        run(|host, slots, rung, control| {
            let mut reader = SlotReader::default();
            let state = SlotReader::default().take(control).unwrap().payload;
            let state = AgentControl::from_payload(&state).unwrap();
            host.credit(state.credits).unwrap();
            assert_eq!((state.state, state.session, state.asleep), (AgentState::Running, 9, true));
            assert_eq!((state.core, state.peer, state.vector), (1, 3, 4));
            match step.replace(step.get() + 1) {
                0 => {
                    push(host, Message::new(MessageKind::ResyncBegin, 0));
                    for cpu in 0..4 {
                        let idle = TaskFlags::CPU_IDLE;
                        push(host, Message { flags: idle, ..Message::new(MessageKind::ResyncCpu, cpu) });
                    }
                    push(host, Message::new(MessageKind::ResyncEnd, 0));
                    true
                }
                1 => {
                    let flags = TaskFlags::RUNNABLE;
                    push(host, Message { task: 5, stamp: 3, flags, ..Message::new(MessageKind::TaskNew, 2) });
                    true
                }
                _ => {
                    assert_eq!(rung, [2]);
                    let line = reader.take(&slots[2]).unwrap().payload;
                    let txn = Txn::from_payload(&line);
                    assert_eq!((txn.task, txn.stamp, txn.cpu, txn.id), (5, 3, 2, 1));
                    assert_eq!((txn.flags, txn.order, txn.credits, txn.incarnation), (TxnFlags(0), 1, 7, 5));
                    // Six messages led to nothing: the seventh was seen at the seventh look.
                    let (seen_ticks, decided_ticks) = (0xff_ffff, 1);
                    let kept = Ledger { seen_ticks, decided_ticks, published_ticks: 1, doorbell_ticks: 3 };
                    assert_eq!(Ledger::from_payload(&line), kept);
                    false
                }
            }
        });
    }

    #[test]
    fn an_unknown_message_is_counted_and_answered_with_a_call_for_resync() {
        let step = Cell::new(0);
        run(|host, _, _, control| {
            let state =
                AgentControl::from_payload(&SlotReader::default().take(control).unwrap().payload).unwrap();
            match step.replace(step.get() + 1) {
                0 => {
                    push(host, Message::new(MessageKind::TaskNew, 0));
                    push(host, Message::new(MessageKind::ResyncBegin, 0));
                    push(host, Message::new(MessageKind::ResyncEnd, 0));
                    let mut unknown: Payload = Message::new(MessageKind::Nop, 0).to_payload();
                    unknown[0] |= 200;
                    host.push(&unknown).unwrap();
                    push(host, Message::new(MessageKind::Nop, 77));
                    push(host, Message { outcome: Outcome::Committed, ..Message::new(MessageKind::Nop, 1) });
                    true
                }
                _ => {
                    assert_eq!((state.unknown, state.resyncs, state.credits), (2, 2, 6));
                    false
                }
            }
        });
    }

    /// An agent that takes over decides nothing on what was meant for the one before it.
    #[test]
    fn what_comes_before_the_first_resync_is_passed_over() {
        let step = Cell::new(0);
        run(|host, _, rung, control| {
            let state =
                AgentControl::from_payload(&SlotReader::default().take(control).unwrap().payload).unwrap();
            assert!(rung.is_empty() && state.decisions == 0);
            match step.replace(step.get() + 1) {
                0 => {
                    let idle = TaskFlags::CPU_IDLE;
                    push(host, Message { flags: idle, ..Message::new(MessageKind::TxnOutcome, 1) });
                    let flags = TaskFlags::RUNNABLE;
                    push(host, Message { task: 5, stamp: 3, flags, ..Message::new(MessageKind::TaskNew, 2) });
                    true
                }
                1 => {
                    assert_eq!(state.credits, 2);
                    push(host, Message::new(MessageKind::ResyncBegin, 0));
                    push(host, Message::new(MessageKind::ResyncEnd, 0));
                    true
                }
                _ => {
                    assert_eq!(state.credits, 4);
                    false
                }
            }
        });
    }

    #[test]
    fn bindings_that_make_no_agent_are_refused() {
        let (messages, slots, control) = (lines(3), lines(257), Line::default());
        let (rung, revoke) = (RefCell::new(Vec::new()), AtomicU64::new(1));
        let with = |slots| Bindings {
            slots,
            control: &control,
            revoke: &revoke,
            doorbell: Rung(&rung, Cell::new(0)),
            core: 1,
            wake: (3, 4),
            session: 1,
            version: VERSION,
            incarnation: 5,
            taken: 0,
            resyncs: 0,
            clock: Clock::Own,
        };
        let mut idle = Script(|| true);
        let none = start(with(&slots[..1]), &messages, &mut [], &mut idle);
        assert_eq!(none, Err(AgentError::Memory { entries: 0, wanted: TASKS }));
        let mut memory = vec![Task::default(); TASKS];
        let none = start(with(&slots), &messages, &mut memory, &mut idle);
        assert_eq!(none, Err(AgentError::TooManyCpus { cpus: 257 }));
        let none = start(with(&slots[..1]), &messages, &mut memory, &mut idle);
        assert!(matches!(none, Err(AgentError::Ring(_))));
    }
}
