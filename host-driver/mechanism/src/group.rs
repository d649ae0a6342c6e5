//! Groups of txns, which succeed or fail together. Each CPU that takes a member keeps it in its stash; the CPU that takes the
//! last one carries all of them out. No lock: whoever swaps a CPU's group word to zero owns its stash, and whoever swaps the
//! group's own word to zero completes or breaks it.

use core::sync::atomic::Ordering;

use neap_abi::{Outcome, Txn};

use crate::cpu::MEMBERS_MAX;
use crate::enclave::Enclave;
use crate::events::{Mechanism, Wires};

/// Attempts at a group's word, each of which fails only because another CPU got further.
const ATTEMPTS: usize = 64;

const fn number_of(word: u64) -> u32 {
    word as u32
}

const fn size_of(word: u64) -> u8 {
    (word >> 32) as u8
}

const fn joined_of(word: u64) -> u8 {
    (word >> 40) as u8
}

const fn word(number: u32, size: u8, joined: u8) -> u64 {
    number as u64 | (size as u64) << 32 | (joined as u64) << 40
}

/// What became of a member that a CPU took.
pub(crate) enum Joined {
    /// It waits for the others.
    Waits,
    /// It was the last: the batch of this CPU holds all.
    Complete,
    /// It was refused.
    Refused(Outcome),
}

impl Mechanism<'_> {
    /// A group's key on a CPU: its number + 1 under its enclave.
    const fn key(enclave: u8, group: u32) -> u64 {
        (enclave as u64) << 32 | (group as u64 + 1)
    }

    /// Puts the txn in the stash of `slot` with the others of its group.
    pub(crate) fn join<W: Wires>(
        &self,
        wires: &W,
        number: u8,
        enclave: &Enclave,
        slot: u16,
        txn: &Txn,
    ) -> Joined {
        let (Some(cpu), key) = (self.cpu(slot), Self::key(number, txn.group)) else {
            return Joined::Refused(Outcome::InvalidCpu);
        };
        let own = self.cpus_of(number);
        let size = usize::from(txn.group_size);
        if txn.cpu != slot || size == 0 || size > MEMBERS_MAX || size > own {
            let foreign = self.cpu(txn.cpu).is_some_and(|named| named.owner() != Some(number));
            self.break_group(wires, number, enclave, txn.group);
            return Joined::Refused(if foreign { Outcome::NotPermitted } else { Outcome::InvalidGroup });
        }
        cpu.group.store(key, Ordering::Release);
        let name = txn.group.wrapping_add(1);
        for _ in 0..ATTEMPTS {
            let there = enclave.groups.iter().find(|place| number_of(place.load(Ordering::Acquire)) == name);
            let Some(place) = there else {
                // The first of its group. Two first ones at once find each other at the next attempt.
                let begun = word(name, txn.group_size, 1);
                let free = enclave.groups.iter().find(|place| {
                    place.compare_exchange(0, begun, Ordering::AcqRel, Ordering::Relaxed).is_ok()
                });
                let Some(free) = free else {
                    let _ = cpu.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed);
                    return Joined::Refused(Outcome::InvalidGroup);
                };
                if txn.group_size == 1 {
                    free.store(0, Ordering::Release);
                    return self.complete(slot, key, 1);
                }
                return Joined::Waits;
            };
            let found = place.load(Ordering::Acquire);
            if number_of(found) != name {
                continue;
            }
            if size_of(found) != txn.group_size {
                let _ = cpu.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed);
                self.break_group(wires, number, enclave, txn.group);
                return Joined::Refused(Outcome::InvalidGroup);
            }
            let joined = joined_of(found) + 1;
            let whole = joined >= txn.group_size;
            let next = if whole { 0 } else { word(name, txn.group_size, joined) };
            if place.compare_exchange(found, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return if whole { self.complete(slot, key, size) } else { Joined::Waits };
            }
        }
        let _ = cpu.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed);
        Joined::Refused(Outcome::GroupFailed)
    }

    /// Takes over the stashes of all members for the batch of `slot`. Fewer than the group's size mean that one has left it.
    fn complete(&self, slot: u16, key: u64, size: usize) -> Joined {
        let Some(cpu) = self.cpu(slot) else { return Joined::Refused(Outcome::InvalidCpu) };
        let mut batched = 0;
        let members = (0..).zip(self.cpus()).filter(|(_, member)| {
            member.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        for ((member, _), place) in members.zip(&cpu.batch) {
            let member: u16 = member;
            place.store(u32::from(member), Ordering::Relaxed);
            batched += 1;
        }
        cpu.batched.store(batched, Ordering::Relaxed);
        // Whether a member is missing is judged with the rest.
        cpu.barred.store(if batched as usize == size { 0 } else { u32::MAX }, Ordering::Relaxed);
        Joined::Complete
    }

    /// A CPU speaks for one txn at a time: what it had given to an incomplete group is void, and the group with it.
    pub(crate) fn leave_group<W: Wires>(&self, wires: &W, slot: u16) {
        let Some(cpu) = self.cpu(slot) else { return };
        let key = cpu.group.load(Ordering::Acquire);
        if key != 0 {
            let number = (key >> 32) as u8;
            if let Some(enclave) = self.enclave(number) {
                self.break_group(wires, number, enclave, (key as u32).wrapping_sub(1));
            }
        }
    }

    /// Refuses every member of a group that waits.
    pub(crate) fn break_group<W: Wires>(&self, wires: &W, number: u8, enclave: &Enclave, group: u32) {
        let key = Self::key(number, group);
        let name = group.wrapping_add(1);
        for place in &enclave.groups {
            let found = place.load(Ordering::Acquire);
            if found != 0 && number_of(found) == name {
                let _ = place.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        for (member, cpu) in (0..).zip(self.cpus()) {
            if cpu.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                let txn = Txn::from_payload(&cpu.stash.get());
                self.refuse(wires, number, enclave, member, &txn, Outcome::GroupFailed);
            }
        }
    }

    /// Voids all that waits for its group, e.g. because the agent has ended. Nobody is told.
    pub fn forget_groups(&self, number: u8) {
        let Some(enclave) = self.enclave(number) else { return };
        for place in &enclave.groups {
            place.store(0, Ordering::Release);
        }
        for cpu in self.cpus() {
            let key = cpu.group.load(Ordering::Acquire);
            if key != 0
                && (key >> 32) as u8 == number
                && cpu.group.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                cpu.counters.outcome(Outcome::GroupFailed);
            }
        }
    }

    fn cpus_of(&self, number: u8) -> usize {
        self.cpus().iter().filter(|cpu| cpu.owner() == Some(number)).count()
    }
}
