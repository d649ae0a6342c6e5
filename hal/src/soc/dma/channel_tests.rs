//! The driver against an engine that says anything.

use super::*;
use crate::soc::dma::fake::Engine;
use crate::soc::dma::registers::{Access, CONTROL_ABORT, Direction, Space};

const GRANT: Grant = Grant { base: 0x1000, bytes: 0x2000, space: Space::Ipu, access: Access::ReadWrite };
const PULL: Descriptor = Descriptor {
    source: 0x10_0000,
    destination: 0x1000,
    bytes: 64,
    direction: Direction::HostToIpu,
    notify: Some((3, 9)),
};

/// Counts what it was asked to wait.
struct Clock {
    waited_ns: u64,
}

impl DelayNs for Clock {
    fn delay_ns(&mut self, ns: u32) {
        self.waited_ns += u64::from(ns);
    }
}

fn engine() -> Engine {
    Engine::new(5, 2, 4096, &[GRANT])
}

#[test]
fn the_page_says_whom_to_ring() {
    let engine = engine();
    let channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    assert_eq!(channel.identity(), Identity { engine_peer: 5, channel: 2, grants: 1, bytes_max: 4096 });
    assert_eq!(channel.grants().collect::<Vec<_>>(), [GRANT]);
}

#[test]
fn a_transfer_goes_its_way() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    assert_eq!(channel.poll(), Err(DmaError::Idle));
    assert_eq!(channel.abort(), Err(DmaError::Idle));
    for moved_bytes in [64, 32] {
        channel.start(&PULL).unwrap();
        assert_eq!(engine.take_rings(), 1);
        assert_eq!(engine.descriptor(), Ok(PULL));
        assert_eq!(channel.poll(), Ok(None), "the last transfer's end is not this one's");
        assert_eq!(channel.start(&PULL), Err(DmaError::Busy));
        engine.answer(State::Busy, 0);
        assert_eq!(channel.poll(), Ok(None));
        engine.answer(State::Done, moved_bytes);
        assert_eq!(channel.poll(), Ok(Some(Completion { moved_bytes })));
        assert_eq!(channel.poll(), Err(DmaError::Idle), "an end is told once");
    }
}

#[test]
fn every_fault_reaches_the_caller() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    for fault in Fault::ALL {
        channel.start(&PULL).unwrap();
        engine.answer(State::Failed(fault), 8);
        let error = channel.poll().unwrap_err();
        assert_eq!(error, DmaError::Fault { fault, moved_bytes: 8 });
        let aborted = fault == Fault::Aborted;
        assert_eq!(error.kind(), if aborted { ErrorKind::Aborted } else { ErrorKind::Refused });
    }
    channel.start(&PULL).expect("a fault does not end the channel");
}

#[test]
fn an_abort_is_asked_and_forgotten() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    channel.start(&PULL).unwrap();
    channel.abort().unwrap();
    assert_eq!(engine.take_rings(), 2);
    assert!(engine.registers().abort_asked());
    assert_eq!(engine.registers().control.load(Relaxed) & CONTROL_ABORT, CONTROL_ABORT);
    engine.answer(State::Failed(Fault::Aborted), 0);
    assert_eq!(channel.poll().unwrap_err().kind(), ErrorKind::Aborted);
    channel.start(&PULL).unwrap();
    assert!(!engine.registers().abort_asked(), "the next transfer is not aborted with the last");
}

#[test]
fn what_can_never_be_is_not_rung() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    for (descriptor, fault) in [
        (Descriptor { source: 4, ..PULL }, Fault::Alignment),
        (Descriptor { destination: 0x1001, ..PULL }, Fault::Alignment),
        (Descriptor { bytes: 0, ..PULL }, Fault::Size),
        (Descriptor { bytes: 12, ..PULL }, Fault::Size),
        (Descriptor { bytes: 4104, ..PULL }, Fault::Size),
        (Descriptor { bytes: u64::MAX - 7, ..PULL }, Fault::Size),
    ] {
        assert_eq!(channel.start(&descriptor), Err(DmaError::Refused(fault)), "{descriptor:?}");
        assert_eq!(engine.take_rings(), 0);
    }
    channel.start(&Descriptor { bytes: 4096, ..PULL }).unwrap();
}

#[test]
fn waiting_is_bounded() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    let mut clock = Clock { waited_ns: 0 };
    channel.start(&PULL).unwrap();
    assert_eq!(channel.wait(&mut clock, 100, 7), Err(DmaError::Timeout { polls: 7 }));
    assert_eq!(clock.waited_ns, 700);
    engine.answer(State::Done, 64);
    assert_eq!(channel.wait(&mut clock, 100, 7), Ok(Completion { moved_bytes: 64 }));
    assert_eq!(clock.waited_ns, 700, "no waiting for what is there");
}

#[test]
fn a_page_that_lies_is_named() {
    let engine = Engine::absent();
    let open = |engine: &Engine| Channel::open(engine.registers(), engine.ring()).map(|_| ()).unwrap_err();
    assert_eq!(open(&engine), DmaError::Absent { magic: 0 });
    engine.registers().publish(5, 2, 4096, &[GRANT]);
    engine.registers().version.store(2, Relaxed);
    assert_eq!(open(&engine), DmaError::Version { version: 2 });
    engine.registers().publish(5, 2, 4096, &[GRANT]);
    engine.registers().engine_peer.store(0x1_0000, Relaxed);
    assert_eq!(open(&engine), DmaError::Identity { register: "ENGINE_PEER", value: 0x1_0000 });
    engine.registers().publish(5, 2, 4096, &[GRANT]);
    engine.registers().channel.store(u32::MAX, Relaxed);
    assert_eq!(open(&engine), DmaError::Identity { register: "CHANNEL", value: u32::MAX.into() });
    engine.registers().publish(5, 2, 4096, &[GRANT]);
    engine.registers().grants.store(65, Relaxed);
    assert_eq!(open(&engine), DmaError::Identity { register: "GRANTS", value: 65 });
    engine.registers().publish(5, 2, 4096, &[GRANT]);
    engine.registers().status.store(u64::MAX, Relaxed);
    assert_eq!(open(&engine), DmaError::Status { status: u64::MAX });
}

#[test]
fn a_status_that_means_nothing_is_an_error_and_not_an_end() {
    let engine = engine();
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    channel.start(&PULL).unwrap();
    engine.registers().status.store(9 << 32, Relaxed);
    let error = channel.poll().unwrap_err();
    assert_eq!((error, error.kind()), (DmaError::Status { status: 9 << 32 }, ErrorKind::Other));
    engine.answer(State::Done, 64);
    assert_eq!(channel.poll(), Ok(Some(Completion { moved_bytes: 64 })));
}

#[test]
fn a_successor_takes_over_what_runs() {
    let engine = engine();
    let mut first = Channel::open(engine.registers(), engine.ring()).unwrap();
    first.start(&PULL).unwrap();
    engine.answer(State::Busy, 0);
    drop(first);
    let mut second = Channel::open(engine.registers(), engine.ring()).unwrap();
    assert_eq!(second.start(&PULL), Err(DmaError::Busy));
    second.abort().unwrap();
    engine.answer(State::Failed(Fault::Aborted), 16);
    assert_eq!(second.poll(), Err(DmaError::Fault { fault: Fault::Aborted, moved_bytes: 16 }));
    second.start(&PULL).unwrap();
    engine.answer(State::Done, 64);
    assert_eq!(second.poll(), Ok(Some(Completion { moved_bytes: 64 })));
}

#[test]
fn tickets_come_round() {
    let engine = engine();
    engine.registers().report(u32::MAX, State::Done, 0);
    let mut channel = Channel::open(engine.registers(), engine.ring()).unwrap();
    channel.start(&PULL).unwrap();
    assert_eq!(channel.poll(), Ok(None));
    engine.answer(State::Done, 64);
    assert_eq!(channel.poll(), Ok(Some(Completion { moved_bytes: 64 })));
}
