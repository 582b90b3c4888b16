//! An allocator that counts the calls of each thread, for tests that nothing allocates.
//!
//! A test program that wants it says so: `#[global_allocator] static A: Counting = Counting;`.
#![expect(unsafe_code, reason = "a global allocator has an unsafe interface")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::alloc::System;

/// The system's allocator, with a count of each thread's calls.
pub(crate) struct Counting;

/// Most threads that a test program starts in its life.
const THREADS: usize = 256;

static CALLS: [AtomicUsize; THREADS] = [const { AtomicUsize::new(0) }; THREADS];
static THREADS_SEEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The thread's place in `CALLS`.
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The place of the calling thread. The program's first thread, which waits for the tests,
/// has the first.
pub(crate) fn place() -> usize {
    PLACE.get().unwrap_or_else(|| {
        let place = THREADS_SEEN.fetch_add(1, Relaxed);
        PLACE.set(Some(place));
        place
    })
}

/// Calls of the calling thread so far.
pub(crate) fn own_calls() -> usize {
    CALLS[place()].load(Relaxed)
}

/// Calls of every thread so far.
pub(crate) fn calls() -> [usize; THREADS] {
    core::array::from_fn(|place| CALLS[place].load(Relaxed))
}

fn count() {
    CALLS[place()].fetch_add(1, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on from the caller.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on from the caller.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
