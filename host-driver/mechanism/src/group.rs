//! Groups of txns, which succeed or fail together. Each CPU that takes a member keeps it in its stash; the CPU that takes the
//! last one carries all of them out. No lock: a group's number says which of its enclave's places counts its members, and
//! whoever swaps a CPU's group word to zero owns what was in its stash.
//!
//! | bits of a place | | bits of a CPU's word | |
//! | --- | --- | --- | --- |
//! | 0..25 | group's number + 1 | 0..25 | group's number + 1 |
//! | 32..40 | members in all | 28..32 | enclave |
//! | 40..48 | members that have come | 32..64 | groups that the CPU has joined: no two words are the same |

use neap_abi::{Outcome, Txn};

use crate::Platform;
use crate::cpu::{Cpu, MEMBERS_MAX};
use crate::enclave::{Enclave, GROUPS};
use crate::events::{Mechanism, Wires};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::Offer;

/// Attempts at a group's place, each of which fails only because another CPU got further.
const ATTEMPTS: usize = 16;

const fn name_of(word: u64) -> u32 {
    word as u32 & 0x1ff_ffff
}

const fn size_of(word: u64) -> u8 {
    (word >> 32) as u8
}

const fn come_of(word: u64) -> u8 {
    (word >> 40) as u8
}

const fn counted(name: u32, size: u8, come: u8) -> u64 {
    name as u64 | (size as u64) << 32 | (come as u64) << 40
}

/// A group's number + 1 under its enclave.
const fn key(enclave: u8, group: u32) -> u32 {
    (group & 0xff_ffff).wrapping_add(1) | (enclave as u32) << 28
}

const fn enclave_of(key: u32) -> u8 {
    (key >> 28) as u8
}

const fn group_of(key: u32) -> u32 {
    (key & 0x1ff_ffff).wrapping_sub(1)
}

/// What became of a member that a CPU took.
pub(crate) enum Joined {
    /// It waits for the others, or one of them has had it refused meanwhile.
    Waits,
    /// It was the last: the batch of this CPU holds so many.
    Complete(u32),
    /// It was refused.
    Refused(Outcome),
}

/// Takes a member out of a CPU's stash, if it waits for `key` there: its txn's payload goes to `to`.
fn take_member(cpu: &Cpu, key: u32, mut to: impl FnMut(&neap_abi::line::Payload)) -> bool {
    let word = cpu.group.load(Ordering::Acquire);
    if word as u32 != key {
        return false;
    }
    // Its CPU puts nothing there while the word stands.
    let payload = cpu.stash.get();
    let taken = cpu.group.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if taken {
        to(&payload);
    }
    taken
}

impl Mechanism<'_> {
    fn place_of(enclave: &Enclave, group: u32) -> Option<&AtomicU64> {
        enclave.groups.get(group as usize % GROUPS)
    }

    /// Puts what the slot of `slot` offers with the others of its group.
    pub(crate) fn join<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        slot: u16,
        offer: &Offer,
    ) -> Joined {
        let txn = &offer.txn;
        let (Some(cpu), Some(place)) = (self.cpu(slot), Self::place_of(enclave, txn.group)) else {
            return Joined::Refused(Outcome::InvalidCpu);
        };
        let size = usize::from(txn.group_size);
        // It takes that many CPUs. To count them all would be with a check for their overflow.
        let last = size.checked_sub(1).and_then(|before| self.cpus_of(number).nth(before));
        if txn.cpu != slot || size > MEMBERS_MAX || last.is_none() {
            let foreign = self.cpu(txn.cpu).is_some_and(|named| named.owner() != Some(number));
            self.break_group(wires, number, enclave, txn.group);
            return Joined::Refused(if foreign { Outcome::NotPermitted } else { Outcome::InvalidGroup });
        }
        let key = key(number, txn.group);
        cpu.stash.put(&offer.payload);
        cpu.joined_ns.store(wires.now_ns(), Ordering::Relaxed);
        cpu.set_group(key);
        let name = name_of(key.into());
        for _ in 0..ATTEMPTS {
            let found = place.load(Ordering::Acquire);
            if found != 0 && name_of(found) != name {
                // An older one that is still incomplete: there is room for few.
                self.break_group(wires, number, enclave, name_of(found).wrapping_sub(1));
                continue;
            }
            if found != 0 && size_of(found) != txn.group_size {
                let ours = take_member(cpu, key, |_| {});
                self.break_group(wires, number, enclave, txn.group);
                return if ours { Joined::Refused(Outcome::InvalidGroup) } else { Joined::Waits };
            }
            let come = if found == 0 { 1 } else { come_of(found).saturating_add(1) };
            let whole = come >= txn.group_size;
            let next = if whole { 0 } else { counted(name, txn.group_size, come) };
            if place.compare_exchange(found, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return if whole { self.complete(cpu, key, size) } else { Joined::Waits };
            }
        }
        if take_member(cpu, key, |_| {}) { Joined::Refused(Outcome::GroupFailed) } else { Joined::Waits }
    }

    /// Takes all members out of their stashes into the batch of `cpu`. Fewer than the group's size mean that one has left it.
    fn complete(&self, cpu: &Cpu, key: u32, size: usize) -> Joined {
        let mut members = 0;
        let mut places = cpu.batch.iter().zip(1..=MEMBERS_MAX as u32);
        let mut free = places.next();
        for (number, member) in self.numbered() {
            let Some((place, nth)) = free else { break };
            let taken = take_member(member, key, |payload| {
                place.txn.put(payload);
                place.number.store(number.into(), Ordering::Relaxed);
            });
            if taken {
                members = nth;
                free = places.next();
            }
        }
        if members == 0 {
            // Somebody has broken the group, and refused all of it.
            return Joined::Waits;
        }
        // What is missing is judged with the rest.
        self.begin_batch(cpu, members, members as usize != size);
        Joined::Complete(members)
    }

    /// A CPU speaks for one txn at a time: what it had given to an incomplete group is void, and the group with it.
    pub(crate) fn leave_group<W: Wires>(&self, wires: &W, slot: u16) {
        let key = self.cpu(slot).map_or(0, |cpu| cpu.group.load(Ordering::Acquire)) as u32;
        if key != 0 {
            let number = enclave_of(key);
            if let Some(enclave) = self.enclave(number) {
                self.break_group(wires, number, enclave, group_of(key));
            }
        }
    }

    /// Refuses every member of a group that waits.
    pub(crate) fn break_group<W: Wires>(&self, wires: &W, number: u8, enclave: &Enclave, group: u32) {
        let key = key(number, group);
        if let Some(place) = Self::place_of(enclave, group) {
            let found = place.load(Ordering::Acquire);
            if found != 0 && name_of(found) == name_of(key.into()) {
                let _ = place.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        for (member, cpu) in self.numbered() {
            take_member(cpu, key, |payload| {
                let txn = Txn::from_payload(payload);
                self.conclude(wires, number, enclave, member, &txn, Outcome::GroupFailed);
            });
        }
    }

    /// Refuses groups of which a member has waited for the others since before `since_ns`: the others may never come, and nobody
    /// else would tell the agent. With interrupts off.
    pub fn break_old_groups<W: Wires>(&self, wires: &W, number: u8, since_ns: u64) {
        let Some(enclave) = self.enclave(number) else { return };
        for (_, cpu) in self.cpus_of(number) {
            let key = cpu.group.load(Ordering::Acquire) as u32;
            if key != 0 && enclave_of(key) == number && cpu.joined_ns.load(Ordering::Relaxed) < since_ns {
                self.break_group(wires, number, enclave, group_of(key));
            }
        }
    }

    /// Voids all that waits for its group, e.g. because the agent has ended. Nobody is told.
    pub fn forget_groups<W: Wires>(&self, wires: &W, number: u8) {
        let Some(enclave) = self.enclave(number) else { return };
        for place in &enclave.groups {
            place.store(0, Ordering::Release);
        }
        for (member, cpu) in self.numbered() {
            let key = cpu.group.load(Ordering::Acquire) as u32;
            if key != 0 && enclave_of(key) == number {
                take_member(cpu, key, |payload| {
                    cpu.counters.outcome(Outcome::GroupFailed);
                    if let Some(wire) = wires.wire(number) {
                        wire.platform.judged(member, &Txn::from_payload(payload), Outcome::GroupFailed);
                    }
                });
            }
        }
    }
}
