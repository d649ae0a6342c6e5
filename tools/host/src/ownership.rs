//! Who owns what: each host CPU and each task number belongs to one enclave at most.
//!
//! CPU and task numbers are the host's own, on the wire too, so that a txn can name what is another enclave's and be
//! refused for it. Only whoever holds the lock of an enclave gives something to it or takes it away; anybody may look.

use std::sync::atomic::{AtomicU16, Ordering};

/// Whose a CPU or a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There is no such thing.
    Absent,
    /// It is no enclave's.
    Nobody,
    /// It is the enclave's of this number.
    Enclave(u16),
}

/// The host's table of owners.
#[derive(Debug)]
pub struct Owners {
    cpus: Vec<AtomicU16>,
    tasks: Vec<AtomicU16>,
}

/// As the table has it: an enclave's number plus one, or 0 for nobody.
const fn entry(enclave: Option<u16>) -> u16 {
    match enclave {
        Some(enclave) => enclave.saturating_add(1),
        None => 0,
    }
}

fn owner(table: &[AtomicU16], at: usize) -> Owner {
    match table.get(at).map(|entry| entry.load(Ordering::Acquire)) {
        None => Owner::Absent,
        Some(0) => Owner::Nobody,
        Some(enclave) => Owner::Enclave(enclave - 1),
    }
}

fn give(table: &[AtomicU16], at: usize, from: Option<u16>, to: Option<u16>) -> bool {
    table.get(at).is_some_and(|owner| {
        owner.compare_exchange(entry(from), entry(to), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}

impl Owners {
    /// A table of `cpus` host CPUs and `tasks` task numbers that are nobody's.
    #[must_use]
    pub fn new(cpus: u16, tasks: u32) -> Self {
        let nobody = |_| AtomicU16::new(0);
        Self { cpus: (0..cpus).map(nobody).collect(), tasks: (0..tasks).map(|_| AtomicU16::new(0)).collect() }
    }

    /// Host CPUs.
    #[must_use]
    pub fn cpus(&self) -> u16 {
        self.cpus.len() as u16
    }

    /// Task numbers.
    #[must_use]
    pub fn tasks(&self) -> u32 {
        self.tasks.len() as u32
    }

    /// Whose a CPU is.
    #[must_use]
    pub fn cpu(&self, cpu: u16) -> Owner {
        owner(&self.cpus, usize::from(cpu))
    }

    /// Whose a task is.
    #[must_use]
    pub fn task(&self, task: u32) -> Owner {
        owner(&self.tasks, task as usize)
    }

    /// Hands a CPU from one to another. False if it is not `from`'s to give.
    pub fn give_cpu(&self, cpu: u16, from: Option<u16>, to: Option<u16>) -> bool {
        give(&self.cpus, usize::from(cpu), from, to)
    }

    /// Hands a task from one to another. False if it is not `from`'s to give.
    pub fn give_task(&self, task: u32, from: Option<u16>, to: Option<u16>) -> bool {
        give(&self.tasks, task as usize, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_gives() {
        let owners = Owners::new(2, 3);
        assert_eq!((owners.cpu(1), owners.cpu(2)), (Owner::Nobody, Owner::Absent));
        assert!(owners.give_cpu(1, None, Some(7)));
        assert!(!owners.give_cpu(1, None, Some(8)), "it is taken");
        assert!(!owners.give_cpu(1, Some(8), None), "it is another's");
        assert!(!owners.give_cpu(2, None, Some(7)), "there is none");
        assert_eq!(owners.cpu(1), Owner::Enclave(7));
        assert!(owners.give_task(2, None, Some(0)) && !owners.give_task(2, None, Some(0)));
        assert_eq!((owners.task(2), owners.task(3)), (Owner::Enclave(0), Owner::Absent));
        assert!(owners.give_task(2, Some(0), None));
        assert_eq!(owners.task(2), Owner::Nobody);
    }
}
