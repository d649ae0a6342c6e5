//! Sets of host CPUs.

use neap_abi::CPUS_MAX;

const WORDS: usize = CPUS_MAX as usize / 64;

/// A set of host CPUs, 0 to [`CPUS_MAX`] − 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuSet([u64; WORDS]);

impl CpuSet {
    /// The set of `count` CPUs from `first` on, as far as there are such.
    #[must_use]
    pub fn range(first: u16, count: u16) -> Self {
        let mut set = Self::default();
        for cpu in first..first.saturating_add(count).min(CPUS_MAX) {
            set.insert(cpu);
        }
        set
    }

    /// The CPUs that are in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        for (a, b) in both.0.iter_mut().zip(&other.0) {
            *a &= b;
        }
        both
    }

    /// The lowest CPU in the set.
    #[must_use]
    #[inline(always)]
    pub fn first(&self) -> Option<u16> {
        self.first_of(self)
    }

    /// Puts a CPU in; one out of bounds is passed over.
    #[inline(always)]
    pub fn insert(&mut self, cpu: u16) {
        if let Some(word) = self.0.get_mut(usize::from(cpu / 64)) {
            *word |= 1 << (cpu % 64);
        }
    }

    /// Takes a CPU out.
    #[inline(always)]
    pub fn remove(&mut self, cpu: u16) {
        if let Some(word) = self.0.get_mut(usize::from(cpu / 64)) {
            *word &= !(1 << (cpu % 64));
        }
    }

    /// Puts a CPU in or takes it out.
    #[inline(always)]
    pub fn set(&mut self, cpu: u16, is_in: bool) {
        if let Some(word) = self.0.get_mut(usize::from(cpu / 64)) {
            let bit = 1 << (cpu % 64);
            *word = (*word & !bit) | if is_in { bit } else { 0 };
        }
    }

    /// Whether a CPU is in.
    #[must_use]
    #[inline(always)]
    pub fn has(&self, cpu: u16) -> bool {
        self.0.get(usize::from(cpu / 64)).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// Whether none is in.
    #[must_use]
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The lowest CPU that is in both sets.
    #[must_use]
    #[inline(always)]
    pub fn first_of(&self, other: &Self) -> Option<u16> {
        for (i, (a, b)) in self.0.iter().zip(&other.0).enumerate() {
            let both = a & b;
            if both != 0 {
                return Some(i as u16 * 64 + both.trailing_zeros() as u16);
            }
        }
        None
    }

    /// The lowest CPU in the set that is not below `from`; if there is none, the lowest.
    #[must_use]
    #[inline(always)]
    pub fn first_from(&self, from: u16) -> Option<u16> {
        for (i, word) in self.0.iter().enumerate() {
            let base = i as u16 * 64;
            let below = from.saturating_sub(base).min(64);
            let above = word & u64::MAX.checked_shl(below.into()).unwrap_or(0);
            if above != 0 {
                return Some(base + above.trailing_zeros() as u16);
            }
        }
        self.first()
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.0 = [0; WORDS];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_both() {
        let (mut a, mut b) = (CpuSet::default(), CpuSet::range(0, CPUS_MAX));
        assert_eq!(a.first_of(&b), None);
        for cpu in [255, 64, 63] {
            a.insert(cpu);
            assert_eq!(a.first_of(&b), Some(cpu));
        }
        b.remove(63);
        assert_eq!(a.first_of(&b), Some(64));
        assert!(a.has(63) && !b.has(63));
        a.insert(256);
        a.remove(999);
        assert!(!a.has(256));
        for (from, first) in [(0, 64), (64, 64), (65, 255), (255, 255), (256, 64), (999, 64)] {
            let some = CpuSet::range(64, 1).0;
            let mut some = CpuSet(some);
            some.insert(255);
            assert_eq!(some.first_from(from), Some(first), "from {from}");
        }
        assert_eq!(CpuSet::default().first_from(3), None);
        assert!(CpuSet::default().is_empty() && !a.is_empty());
        assert_eq!(CpuSet::range(63, 2).and(&a).first(), Some(63));
        assert_eq!(CpuSet::range(250, u16::MAX).first(), Some(250));
    }
}
