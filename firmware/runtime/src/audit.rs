//! Whether the runtime's memory is what it was at boot: its text, its constants, its translation tables. The MMU keeps
//! agents away from all of it; this is how that is checked and not only believed.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use neap_hal::cpu::{boot, mmu};

/// The parts, in the order of their numbers in the books.
fn parts() -> [Range<u64>; 3] {
    let image = boot::image();
    [image.text, image.rodata, mmu::tables()]
}

static AT_BOOT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// A fingerprint of `range`, which is whole words of mapped memory: multiplicative, so that a changed word always changes
/// it (the factor is odd). It is no defence against somebody who may choose what to write; nobody may write there.
fn fingerprint(range: &Range<u64>) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = 0u64;
    for address in range.clone().step_by(8) {
        let word = core::ptr::with_exposed_provenance::<u64>(address as usize);
        // SAFETY: mapped memory of the image, whole words; volatile, because what is looked for is a change that the
        // compiler knows nothing of.
        sum = sum.wrapping_mul(FACTOR).wrapping_add(unsafe { word.read_volatile() });
    }
    sum
}

/// Notes how the memory is now. Once, when the map is final.
pub fn note() {
    for (part, place) in parts().iter().zip(&AT_BOOT) {
        place.store(fingerprint(part), Ordering::Relaxed);
    }
}

/// The number of the first part that has changed.
pub fn damaged() -> Option<u64> {
    let changed =
        |(part, place): (&Range<u64>, &AtomicU64)| fingerprint(part) != place.load(Ordering::Relaxed);
    parts().iter().zip(&AT_BOOT).position(changed).map(|number| number as u64)
}
