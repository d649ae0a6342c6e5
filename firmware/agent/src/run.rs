//! An agent's loop.

use core::sync::atomic::{Ordering, fence};

use neap_abi::{AgentState, Clock};
use neap_queue::Line;

use crate::agent::Passed;
use crate::{Agent, AgentError, Bindings, Doorbell, Idle, Policy};

/// Messages after which an agent that is never idle reports its credits and looks whether it is revoked.
const BUSY_MESSAGES: u32 = 256;

/// Why an agent's loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The supervisor asked for the core.
    Revoked,
}

/// Runs the policy that `make` makes of a number of CPUs and of private memory, over `messages` (a fresh ring), until the
/// supervisor wants the core back.
///
/// # Errors
/// Bindings that make no agent, or memory of another size than the policy's; nothing has been decided then.
pub fn start<'m, D: Doorbell, I: Idle, T, P: Policy, const N: usize>(
    bindings: Bindings<'_, D>,
    messages: &[Line],
    memory: &'m mut [T],
    idle: &mut I,
    make: impl FnOnce(u16, &'m mut [T; N]) -> P,
) -> Result<Exit, AgentError> {
    let entries = memory.len();
    let memory: &mut [T; N] = memory.try_into().map_err(|_| AgentError::Memory { entries, wanted: N })?;
    let mut agent = Agent::new(bindings, ())?;
    agent.create_queue(messages)?;
    let mut policy = make(agent.cpus(), memory);
    Ok(decision_loop(&mut agent, &mut policy, idle))
}

/// The loop, under a name of its own: what it can reach is checked to hold no panic and no allocation.
#[inline(never)]
fn decision_loop<D: Doorbell, I: Idle, P: Policy>(
    agent: &mut Agent<'_, D>,
    policy: &mut P,
    idle: &mut I,
) -> Exit {
    run(agent, policy, idle)
}

/// Polls, decides, and when nothing comes is idle, until the supervisor wants the core back.
///
/// What comes before the first resync was meant for an agent before this one, or for nobody, and is passed over: every
/// agent learns the state in one way.
#[inline(always)]
pub fn run<D: Doorbell, X, P: Policy>(
    agent: &mut Agent<'_, D, X>,
    policy: &mut P,
    idle: &mut impl Idle,
) -> Exit {
    agent.report(AgentState::Running, false);
    if let Some(exit) = await_state(agent, idle) {
        return exit;
    }
    let mut empty_polls = 0u32;
    let mut busy = 0u32;
    let own_clock = P::TIMED && agent.clock() == Clock::Own;
    let messages_clock = P::TIMED && agent.clock() == Clock::Messages;
    let mut latest_ns = 0;
    let mut waits = false;
    loop {
        match agent.poll_message() {
            Ok(Some(message)) => {
                if messages_clock {
                    // Host CPUs report in any order: what was later stays so.
                    latest_ns = message.time_ns.max(latest_ns);
                    policy.time(latest_ns, agent);
                }
                policy.message(&message, agent);
                if own_clock {
                    let now_ns = idle.now_ns();
                    agent.see_time();
                    waits = policy.time(now_ns, agent);
                }
                agent.enter_doorbell();
                empty_polls = 0;
                busy += 1;
                if busy < BUSY_MESSAGES {
                    continue;
                }
                agent.report(AgentState::Running, false);
            }
            // Counted by the libOS, and the host asked for a resync.
            Err(_) => {}
            Ok(None) => {
                if busy > 0 {
                    agent.report(AgentState::Running, false);
                }
                empty_polls = empty_polls.saturating_add(1);
                rest(agent, idle, empty_polls, waits);
                if own_clock {
                    let now_ns = idle.now_ns();
                    agent.see_time();
                    waits = policy.time(now_ns, agent);
                    agent.enter_doorbell();
                }
            }
        }
        busy = 0;
        if agent.revoked() {
            agent.report(AgentState::Stopped, false);
            return Exit::Revoked;
        }
    }
}

/// Waits for the first resync to begin; what to do instead if the core is wanted back before.
#[cold]
fn await_state<D: Doorbell, X>(agent: &mut Agent<'_, D, X>, idle: &mut impl Idle) -> Option<Exit> {
    let mut empty_polls = 0u32;
    loop {
        match agent.pass_over() {
            Passed::Resync => return None,
            Passed::Line if !agent.taken().is_multiple_of(BUSY_MESSAGES) => {
                empty_polls = 0;
                continue;
            }
            // So that a host whose ring is full learns of its room.
            Passed::Line => agent.report(AgentState::Running, false),
            Passed::Nothing => {
                if empty_polls == 0 {
                    agent.report(AgentState::Running, false);
                }
                empty_polls = empty_polls.saturating_add(1);
                rest(agent, idle, empty_polls, false);
            }
        }
        if agent.revoked() {
            agent.report(AgentState::Stopped, false);
            return Some(Exit::Revoked);
        }
    }
}

/// One empty poll's worth of idleness; no sleep where a moment is waited for.
fn rest<D: Doorbell, X>(agent: &mut Agent<'_, D, X>, idle: &mut impl Idle, empty_polls: u32, waits: bool) {
    let mut drowsed = false;
    idle.idle(empty_polls, &mut || {
        if waits {
            return false;
        }
        drowsed = true;
        agent.report(AgentState::Running, true);
        // Either the host sees that we sleep, or we see its message: it publishes, fences, and looks, as we do.
        fence(Ordering::SeqCst);
        !agent.has_message() && !agent.revoked()
    });
    if drowsed {
        agent.report(AgentState::Running, false);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::AtomicU64;

    use neap_abi::{Ledger, Message, MessageKind, Txn, TxnFlags, VERSION};
    use neap_queue::SharedProducer;

    use super::*;
    use crate::Decide;

    struct Silent;

    impl Doorbell for Silent {
        fn ring(&self, _: u16) {}
    }

    /// What a policy is told.
    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Time(u64),
        Message(MessageKind),
    }

    /// Waits for a moment until it has come.
    struct Waits<const TIMED: bool> {
        told: Vec<Told>,
        until_ns: u64,
    }

    impl<const TIMED: bool> Policy for Waits<TIMED> {
        const TIMED: bool = TIMED;

        fn message(&mut self, message: &Message, _: &mut impl Decide) {
            self.told.push(Told::Message(message.kind));
        }

        fn time(&mut self, now_ns: u64, _: &mut impl Decide) -> bool {
            self.told.push(Told::Time(now_ns));
            now_ns < self.until_ns
        }
    }

    /// A clock that moves by ten with each look, and nobody who has anything more to say.
    struct Quiet<'a> {
        now_ns: u64,
        revoke: &'a AtomicU64,
        slept: u32,
    }

    impl Idle for Quiet<'_> {
        fn idle(&mut self, _: u32, drowse: &mut dyn FnMut() -> bool) {
            if drowse() {
                self.slept += 1;
                self.revoke.store(1, Ordering::Relaxed);
            }
        }

        fn now_ns(&mut self) -> u64 {
            self.now_ns += 10;
            self.now_ns
        }
    }

    /// What a policy is told of messages with these times, and how often the agent slept.
    fn told<const TIMED: bool>(clock: Clock, until_ns: u64, times_ns: &[u64]) -> (Vec<Told>, u32) {
        let lines: Vec<Line> = (0..16).map(|_| Line::default()).collect();
        let (slots, control, revoke) = (Line::default(), Line::default(), AtomicU64::new(0));
        let producer = SharedProducer::new(&lines).unwrap();
        for (place, &time_ns) in times_ns.iter().enumerate() {
            let kind = if place == 0 { MessageKind::ResyncBegin } else { MessageKind::Nop };
            producer.push(&Message { time_ns, ..Message::new(kind, 0) }.to_payload()).unwrap();
        }
        let bindings = Bindings {
            slots: core::slice::from_ref(&slots),
            control: &control,
            revoke: &revoke,
            doorbell: Silent,
            core: 1,
            wake: (0, 0),
            session: 1,
            version: VERSION,
            incarnation: 1,
            taken: 0,
            resyncs: 0,
            clock,
        };
        let mut agent = Agent::new(bindings, ()).unwrap();
        agent.create_queue(&lines).unwrap();
        let mut policy = Waits::<TIMED> { told: Vec::new(), until_ns };
        let mut idle = Quiet { now_ns: 0, revoke: &revoke, slept: 0 };
        assert_eq!(run(&mut agent, &mut policy, &mut idle), Exit::Revoked);
        (policy.told, idle.slept)
    }

    use MessageKind::{Nop, ResyncBegin};
    use Told::{Message as M, Time as T};

    #[test]
    fn by_its_own_clock_a_policy_is_told_the_time_after_each_turn_and_does_not_sleep_over_a_moment() {
        let (told, slept) = told::<true>(Clock::Own, 45, &[7, 8]);
        let expected = [M(ResyncBegin), T(10), M(Nop), T(20), T(30), T(40), T(50), T(60)];
        assert_eq!((told.as_slice(), slept), (&expected[..], 1));
    }

    #[test]
    fn by_the_messages_clock_it_is_told_their_time_before_each_and_never_an_earlier_one() {
        let (told, slept) = told::<true>(Clock::Messages, 100, &[7, 9, 8, 12]);
        let expected = [T(7), M(ResyncBegin), T(9), M(Nop), T(9), M(Nop), T(12), M(Nop)];
        assert_eq!((told.as_slice(), slept), (&expected[..], 1));
    }

    #[test]
    fn one_that_keeps_no_time_is_told_none() {
        for clock in [Clock::Own, Clock::Messages] {
            let (told, _) = told::<false>(clock, 100, &[7, 9]);
            assert_eq!(told, [M(ResyncBegin), M(Nop)]);
        }
    }

    /// A counter that moves by one with each look.
    struct Ticking(Cell<u64>);

    impl Doorbell for Ticking {
        fn ring(&self, _: u16) {}

        fn ticks(&self) -> u64 {
            self.0.set(self.0.get() + 1);
            self.0.get()
        }
    }

    /// Commits what a message's stamp says; by the time one txn, if that is due.
    struct Commits<const TIMED: bool>(bool);

    impl<const TIMED: bool> Policy for Commits<TIMED> {
        const TIMED: bool = TIMED;

        fn message(&mut self, message: &Message, decide: &mut impl Decide) {
            let run = |cpu| decide.txn_create(cpu, 1, 1);
            let ahead = Txn { flags: TxnFlags::PRESTAGED, ..run(0) };
            let (alone, two) = ([run(0)], [run(0), run(1)]);
            let commits: &[&[Txn]] = match message.stamp {
                1 => &[&alone],
                2 => &[&two],
                3 => &[&alone, &[ahead]],
                4 => &[&[ahead]],
                _ => &[],
            };
            commits.iter().for_each(|txns| _ = decide.txns_commit(txns).unwrap());
        }

        fn time(&mut self, _: u64, decide: &mut impl Decide) -> bool {
            if std::mem::take(&mut self.0) {
                let txn = decide.txn_create(0, 1, 1);
                decide.txns_commit(&[txn]).unwrap();
            }
            false
        }
    }

    /// What the ledgers of two CPUs' slots say after a message with this stamp, the second look at the counter.
    fn ledgers<const TIMED: bool>(stamp: u32) -> [[u32; 4]; 2] {
        let [messages, slots]: [Vec<Line>; 2] =
            [4, 2].map(|count| (0..count).map(|_| Line::default()).collect());
        let (control, revoke) = (Line::default(), AtomicU64::new(0));
        let producer = SharedProducer::new(&messages).unwrap();
        for (kind, stamp) in [(ResyncBegin, 0), (Nop, stamp)] {
            producer.push(&Message { stamp, ..Message::new(kind, 0) }.to_payload()).unwrap();
        }
        let bindings = Bindings {
            slots: &slots,
            control: &control,
            revoke: &revoke,
            doorbell: Ticking(Cell::new(0)),
            core: 1,
            wake: (0, 0),
            session: 1,
            version: VERSION,
            incarnation: 1,
            taken: 0,
            resyncs: 0,
            clock: Clock::Own,
        };
        let mut agent = Agent::new(bindings, ()).unwrap();
        agent.create_queue(&messages).unwrap();
        let mut idle = Quiet { now_ns: 0, revoke: &revoke, slept: 0 };
        run(&mut agent, &mut Commits::<TIMED>(TIMED), &mut idle);
        [0, 1].map(|cpu: usize| {
            let ledger = slots[cpu].read_any().map(|(payload, _)| Ledger::from_payload(&payload));
            let ledger = ledger.unwrap_or_default();
            [ledger.seen_ticks, ledger.decided_ticks, ledger.published_ticks, ledger.doorbell_ticks]
        })
    }

    #[test]
    fn a_ledger_says_when_its_txn_was_seen_decided_published_and_rung_for() {
        const NONE: [u32; 4] = [0; 4];
        assert_eq!(ledgers::<false>(0), [NONE; 2]);
        assert_eq!(ledgers::<false>(1), [[2, 3, 3, 4], NONE]);
        assert_eq!(ledgers::<false>(2), [[2, 3, 3, 0], [2, 3, 4, 5]], "the last one has the doorbell");
        assert_eq!(ledgers::<false>(3), [[2, 5, 5, 0], NONE], "what was rung for has been superseded");
        assert_eq!(ledgers::<false>(4), [[2, 3, 3, 0], NONE], "nobody is rung for what lies ready");
        // Led to by the time after the first message.
        assert_eq!(ledgers::<true>(0), [[2, 3, 3, 4], NONE]);
    }
}
