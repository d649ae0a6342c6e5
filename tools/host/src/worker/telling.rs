//! What the host tells whoever decides: every event as a line, and the whole state where lines were lost.

use std::time::Instant;

use neap_abi::message::TASK_NONE;
use neap_abi::{Message, MessageKind, TaskFlags};
use neap_queue::Full;

use super::enclave::{Enclave, State};
use crate::event::Level;
use crate::sights::Sight;

impl Enclave {
    /// A task can run: the check and the agent are told.
    pub(super) fn arrive(&self, state: &mut State, kind: MessageKind, cpu: u16, task: u32, flags: TaskFlags) {
        note_arrival(state, task);
        let message = state.mechanism.message(kind, cpu, task, flags);
        self.emit(state, message);
        self.kick_idle(state);
    }

    /// While the host itself decides: wakes an idle CPU if a task waits that it may run.
    pub(super) fn kick_idle(&self, state: &State) {
        if state.level != Level::Host {
            return;
        }
        let idle = state.mechanism.own_cpus().find(|&(cpu, entry)| {
            entry.task == TASK_NONE && state.mechanism.first_runnable_on(cpu).is_some()
        });
        if let Some((cpu, _)) = idle {
            self.kick(cpu);
        }
    }

    /// Sends a line, or counts it where a resync will make it good.
    pub(super) fn emit(&self, state: &mut State, mut message: Message) {
        if state.level == Level::Host {
            return;
        }
        message.time_ns = self.start.elapsed().as_nanos() as u64;
        if state.resync_due {
            state.dropped_since += 1;
            state.report.messages_dropped += 1;
            return;
        }
        if state.outbox.is_empty() {
            if send(state, message).is_ok() {
                state.see(Sight::Message(message));
            } else {
                state.resync_due = true;
                state.dropped_since += 1;
                state.report.messages_dropped += 1;
            }
            return;
        }
        if let Some((txn, outcome)) = state.wire().and_then(|wire| wire.take_txn_outcome(message.cpu)) {
            (message.txn, message.outcome) = (txn, outcome);
        }
        state.outbox.push_back(message);
        self.pump(state);
    }

    /// Goes on with a resync as far as the ring has room.
    pub(super) fn pump(&self, state: &mut State) {
        let Some(wire) = state.wire() else { return };
        if state.resync_due {
            wire.refresh_credits();
            if wire.room() < wire.lines() / 2 {
                return;
            }
            state.resync_due = false;
            state.told = None;
            state.report.resyncs += 1;
            state.outbox = state.mechanism.resync().into();
            state.fifo.resynced();
            if let Some(first) = state.outbox.front_mut()
                && state.dropped_since > 0
            {
                first.flags = TaskFlags::OVERFLOW;
                first.dropped = std::mem::take(&mut state.dropped_since);
            }
        }
        while let Some(&message) = state.outbox.front() {
            let Ok(number) = send(state, message) else { break };
            state.see(Sight::Message(message));
            if message.kind == MessageKind::ResyncEnd {
                state.told = Some(number.wrapping_add(1));
            }
            state.outbox.pop_front();
        }
        if state.outbox.len() > 4 * self.owners.tasks() as usize {
            // The backlog has outgrown the state: start over.
            state.outbox.clear();
            state.resync_due = true;
        }
    }

    /// The agent is to forget what it holds: what it is told until it has been told all is void.
    pub(super) fn tell_anew(&self, state: &mut State) {
        state.outbox.clear();
        state.dropped_since = 0;
        state.told = None;
        state.resync_due = state.level != Level::Host;
        let now = Instant::now();
        for cpu in 0..self.owners.cpus() {
            if state.mechanism.owns_cpu(cpu) {
                state.idle_since[usize::from(cpu)] = now;
            }
        }
        self.pump(state);
    }
}

/// The check is told of a task that can run.
pub(super) fn note_arrival(state: &mut State, task: u32) {
    let Some(arrival) = state.mechanism.task(task).map(|task| task.arrival) else { return };
    if state.has_heard_all() {
        state.fifo.arrived(arrival);
    } else {
        state.fifo.arrived_unsettled(arrival);
    }
}

/// Hands a line to whoever decides.
fn send(state: &State, message: Message) -> Result<u32, Full> {
    match (state.level, &state.spare) {
        (Level::Ipu, _) => state.link.link().send_message(message),
        (Level::OnHost, Some(spare)) => spare.send(message),
        _ => Ok(0),
    }
}
