//! How a thread waits: the engine does not know how to sleep, the caller's threads do.
//!
//! [`Event`] is a count that only grows. Who waits has read the count *before* it looked
//! for work, found none, and waits until the count has moved on:
//!
//! ```text
//! waiting thread                      notifying thread
//! seen = count                        make work visible
//! look for work: none                 count += 1
//! pause a few rounds while            if sleepers > 0: wake(count)
//!     count == seen
//! sleepers += 1; fence                (behind count += 1: a fence)
//! if count == seen: park(count, seen)
//! sleepers -= 1
//! ```
//! **No wake-up is lost.** Work made visible before `seen` was read is found by the look.
//! Work made visible later moves the count behind `seen`, so the pause ends. For the
//! parked: `sleepers += 1; fence; read count` on one side and `count += 1; fence; read
//! sleepers` on the other: with sequentially consistent fences one of the two sees the
//! other's addition: either the sleeper finds the count moved, or the notifier finds a sleeper and wakes it. Between
//! the sleeper's last look and its sleep lies [`Idle::park`], which like a futex
//! compares the word again and sleeps in one step.

use super::fault::{Access, fence};
use crate::primitive::{AtomicU32, Ordering, spin_loop};

/// What a thread does while there is nothing to do.
///
/// All threads of an engine that park must use parkers that know each other: a thread
/// that parks is woken by [`Idle::wake`] of any other, with the address of the same word.
pub trait Idle {
    /// One round of waiting awake: a processor hint, a bounded number of them, or a
    /// yield to the system. `round` counts from 0 since the thread last had work.
    /// Returns whether to go on like this; `false` asks to be parked.
    fn pause(&self, round: u32) -> bool;

    /// Sleeps while `*word == seen`, until woken. Comparing and falling asleep are one step
    /// with regard to [`Idle::wake`] of the same word. May return for no reason.
    fn park(&self, word: &AtomicU32, seen: u32);

    /// Wakes every thread that is parked on `word`.
    fn wake(&self, word: &AtomicU32);

    /// Whether the thread goes on serving; asked between runs, when it has nothing to
    /// do. `false` makes [`crate::Worker::run`] return.
    fn stays(&self) -> bool {
        true
    }
}

/// Waits awake, for cores that have nothing else to do: bare metal, or one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin;

impl Idle for Spin {
    fn pause(&self, _round: u32) -> bool {
        spin_loop();
        true
    }

    fn park(&self, _word: &AtomicU32, _seen: u32) {
        spin_loop();
    }

    fn wake(&self, _word: &AtomicU32) {}
}

/// Something that threads wait for: see the module's documentation.
#[derive(Debug)]
pub(super) struct Event {
    count: AtomicU32,
    sleepers: AtomicU32,
}

impl Event {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self { count: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self { count: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
    }

    /// To be read before looking for work.
    pub(super) fn seen(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Says that there may be something to do.
    pub(super) fn notify(&self, idle: &(impl Idle + ?Sized)) {
        self.count.fetch_add(1, Ordering::Release);
        fence(Access::Notify);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            idle.wake(&self.count);
        }
    }

    /// Waits for a notification since `seen` was read, or until `idle` no longer stays.
    pub(super) fn wait(&self, seen: u32, idle: &(impl Idle + ?Sized)) {
        let mut round = 0_u32;
        while self.count.load(Ordering::Acquire) == seen && idle.stays() {
            if idle.pause(round) {
                round = round.saturating_add(1);
                continue;
            }
            self.sleepers.fetch_add(1, Ordering::Relaxed);
            fence(Access::Sleep);
            if self.count.load(Ordering::Relaxed) == seen {
                idle.park(&self.count, seen);
            }
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
    }
}
