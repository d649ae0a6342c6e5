//! The supervisor's heap. An agent's core has none: there, an allocation is the core's end, by name.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use neap_hal::cpu::power;
use spin::mutex::SpinMutex;

use crate::end;

/// What the supervisor takes of the memory above the image.
pub const HEAP_BYTES: u64 = 8 << 20;

struct SupervisorHeap(SpinMutex<Heap>);

#[global_allocator]
static HEAP: SupervisorHeap = SupervisorHeap(SpinMutex::new(Heap::empty()));

/// Gives the heap its memory.
///
/// # Safety
/// `base` is [`HEAP_BYTES`] bytes of memory that are mapped, nobody's, and the heap's from now on. Once.
pub unsafe fn init(base: u64) {
    let base = core::ptr::with_exposed_provenance_mut(base as usize);
    // SAFETY: the caller's promise.
    unsafe { HEAP.0.lock().init(base, HEAP_BYTES as usize) };
}

// SAFETY: the heap under the lock keeps its promises; what this adds is to end the core instead of returning.
unsafe impl GlobalAlloc for SupervisorHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if power::core() != 0 {
            end::by_allocation(layout, "an agent's core may not allocate");
        }
        match self.0.lock().allocate_first_fit(layout) {
            Ok(memory) => memory.as_ptr(),
            Err(()) => end::by_allocation(layout, "the supervisor's heap is empty"),
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller's promise: it came from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(memory, layout) };
        }
    }
}
