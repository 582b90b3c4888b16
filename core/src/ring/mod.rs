//! A bounded queue between one thread that pushes and one that pops, in the caller's slots.
//!
//! ```
//! use cllm_core::ring::{Ring, Slot};
//!
//! let mut slots = [const { Slot::new() }; 3];
//! let mut ring = Ring::new(&mut slots);
//! let (mut producer, mut consumer) = ring.split();
//! assert_eq!(producer.push("batch"), Ok(()));
//! assert_eq!(consumer.pop(), Some("batch"));
//! assert_eq!(consumer.pop(), None);
//! ```
//!
//! # How it works
//!
//! Two positions go round the slots: `tail`, where the next item will be written, and
//! `head`, where the next one will be read. Only the producer stores `tail` and only the
//! consumer stores `head`. The items lie in the slots from `head` up to `tail`.
//!
//! ```text
//! push(item):                                 pop():
//!   if tail is a whole round past seen_head     if head = seen_tail
//!       seen_head = load head   (acquire)           seen_tail = load tail   (acquire)
//!       if still: give the item back                if still: nothing there
//!   write the slot at tail                      read the slot at head
//!   store tail + 1              (release)       store head + 1              (release)
//! ```
//!
//! # What ordering protects what
//!
//! - **The item on its way there.** The slot is written before `tail` is stored with
//!   release, and read after that value of `tail` was loaded with acquire. So the read sees
//!   the write, and everything else that the producer did before it pushed: memory that the
//!   item refers to travels with it.
//! - **The slot on its way back.** The slot is read before `head` is stored with release, and
//!   written again only after that value of `head` was loaded with acquire. So the next
//!   item cannot overwrite the one that is still being read. In the same way a buffer that
//!   comes back over a second ring is done with.
//! - **Remembered positions.** Each side keeps the other's position as it saw it last and
//!   looks again only if that says full or empty. An old value is safe, for the other
//!   side only moves away from the limit that it stands for: it never makes a slot less
//!   free, or an item less there. A thread's own position needs no load at all.
//!
//! `protocol` takes the four orderings from a type, so that tests can weaken each of
//! them and see the model checker refuse it.
//!
//! # Wrap-around
//!
//! Positions count from 0 to twice the capacity and then start over. Of two rounds, the one
//! that a position is in tells a full ring (a whole round apart) from an empty one (the same
//! position) without giving up a slot, for any capacity, a power of two or not, and
//! without division. Nothing grows with the age of the ring, so nothing overflows. That a
//! position comes again is no danger: it is compared by one thread with another that
//! is never more than one round away.
//!
//! # Progress
//!
//! Both sides are wait-free: a push or a pop is at most one load, one store and one move of an
//! item, with no loop, no lock and no retry, whatever the other side does, and also if it
//! has stopped for good. Waiting for an item or for room is the caller's business.
//!
//! Head and tail lie in cache lines of their own, so that a side that only looks at what it
//! remembers does not disturb the other.

mod protocol;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

pub use protocol::Slot;
use protocol::{RawConsumer, RawProducer, RawRing, Sound};

/// A bounded queue in slots that the caller supplies; dropping it drops what is left inside.
#[derive(Debug)]
pub struct Ring<'a, T>(RawRing<'a, T, Sound>);

impl<'a, T> Ring<'a, T> {
    /// An empty ring that holds as many items as there are slots. Without a slot it is
    /// always full.
    #[must_use]
    pub fn new(slots: &'a mut [Slot<T>]) -> Self {
        Self(RawRing::new(slots))
    }

    /// The two ends, each for one thread. When both are gone the ring can be split again;
    /// it keeps its items.
    pub fn split(&mut self) -> (Producer<'_, T>, Consumer<'_, T>) {
        let (producer, consumer) = self.0.split();
        (Producer(producer), Consumer(consumer))
    }
}

/// The end of a [`Ring`] where items go in.
#[derive(Debug)]
pub struct Producer<'r, T>(RawProducer<'r, T, Sound>);

impl<T> Producer<'_, T> {
    /// Adds an item, or gives it back if the ring is full. Wait-free.
    ///
    /// # Errors
    /// There was no room a moment ago; the item comes back.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.0.push(item)
    }

    /// Items inside; the consumer may be taking one, so there are not more than this.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all that was pushed has been taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

/// The end of a [`Ring`] where items come out, first in, first out.
#[derive(Debug)]
pub struct Consumer<'r, T>(RawConsumer<'r, T, Sound>);

impl<T> Consumer<'_, T> {
    /// Takes the oldest item; `None` if there was none a moment ago. Wait-free.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Items inside; the producer may be adding one, so there are not fewer than this.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there was nothing to take a moment ago.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}
