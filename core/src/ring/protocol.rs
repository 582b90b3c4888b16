//! The ring itself: slots, positions and who may touch what when. The prose is in the
//! parent module.
#![expect(unsafe_code, reason = "two threads share slots; the positions say whose each is")]

use crate::primitive::{AtomicUsize, Ordering, UnsafeCell};
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use crossbeam_utils::CachePadded;

/// Room for one item of a [`Ring`](super::Ring).
///
/// A slot does not drop what is in it; the ring does.
pub struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: a shared slot gives no access by itself. `RawProducer` and `RawConsumer`, of which
// a ring has one each, hand its item from one thread to the other, which needs `T: Send`;
// never do both hold it.
unsafe impl<T: Send> Sync for Slot<T> {}

/// `const` where the cells are the machine's.
macro_rules! new {
    ($($constness:tt)?) => {
        /// An empty slot.
        #[must_use]
        pub $($constness)? fn new() -> Self {
            Self(UnsafeCell::new(MaybeUninit::uninit()))
        }
    };
}

impl<T> Slot<T> {
    #[cfg(not(loom))]
    new!(const);
    #[cfg(loom)]
    new!();
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// How the two positions are stored and loaded.
pub(super) trait Orderings {
    /// The producer stores `tail`: what it wrote into the slot is to be seen.
    const PUBLISH: Ordering;
    /// The consumer loads `tail`.
    const ACCEPT: Ordering;
    /// The consumer stores `head`: it has done with the slot.
    const GIVE_BACK: Ordering;
    /// The producer loads `head`.
    const RECLAIM: Ordering;
}

/// The orderings that the protocol needs.
#[derive(Debug)]
pub(super) enum Sound {}

impl Orderings for Sound {
    const PUBLISH: Ordering = Ordering::Release;
    const ACCEPT: Ordering = Ordering::Acquire;
    const GIVE_BACK: Ordering = Ordering::Release;
    const RECLAIM: Ordering = Ordering::Acquire;
}

/// [`Ring`](super::Ring) for any orderings.
#[derive(Debug)]
pub(super) struct RawRing<'a, T, O: Orderings> {
    slots: &'a [Slot<T>],
    /// Stored by the producer alone. Slots before it, from `head` on, hold items.
    tail: CachePadded<AtomicUsize>,
    /// Stored by the consumer alone. Slots before it, from a round before `tail` on, are free.
    head: CachePadded<AtomicUsize>,
    orderings: PhantomData<fn() -> O>,
}

impl<'a, T, O: Orderings> RawRing<'a, T, O> {
    pub(super) fn new(slots: &'a mut [Slot<T>]) -> Self {
        // More slots than that can only be of size zero; two rounds of them must be countable.
        let capacity = slots.len().min(usize::MAX / 2);
        Self {
            slots: &slots[..capacity],
            tail: CachePadded::new(AtomicUsize::new(0)),
            head: CachePadded::new(AtomicUsize::new(0)),
            orderings: PhantomData,
        }
    }

    pub(super) fn split(&mut self) -> (RawProducer<'_, T, O>, RawConsumer<'_, T, O>) {
        // Former ends are gone, and `&mut self` came after them: any ordering will do.
        let tail = self.tail.load(Ordering::Relaxed);
        let head = self.head.load(Ordering::Relaxed);
        let ring = &*self;
        (RawProducer { ring, tail, seen_head: head }, RawConsumer { ring, head, seen_tail: tail })
    }

    fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a position.
    fn slot(&self, position: usize) -> &'a Slot<T> {
        let capacity = self.capacity();
        &self.slots[if position < capacity { position } else { position - capacity }]
    }

    fn next(&self, position: usize) -> usize {
        if position + 1 == 2 * self.capacity() { 0 } else { position + 1 }
    }

    /// Items between two positions.
    fn between(&self, head: usize, tail: usize) -> usize {
        if tail >= head { tail - head } else { tail + 2 * self.capacity() - head }
    }
}

impl<T, O: Orderings> Drop for RawRing<'_, T, O> {
    fn drop(&mut self) {
        let (_, mut consumer) = self.split();
        while let Some(item) = consumer.pop() {
            drop(item);
        }
    }
}

/// [`Producer`](super::Producer) for any orderings.
#[derive(Debug)]
pub(super) struct RawProducer<'r, T, O: Orderings> {
    ring: &'r RawRing<'r, T, O>,
    /// What `ring.tail` is.
    tail: usize,
    /// What `ring.head` was, or is.
    seen_head: usize,
}

impl<T, O: Orderings> RawProducer<'_, T, O> {
    #[inline]
    pub(super) fn push(&mut self, item: T) -> Result<(), T> {
        let ring = self.ring;
        if ring.between(self.seen_head, self.tail) == ring.capacity() {
            self.seen_head = ring.head.load(O::RECLAIM);
            if ring.between(self.seen_head, self.tail) == ring.capacity() {
                return Err(item);
            }
        }
        ring.slot(self.tail).0.with_mut(|slot| {
            // SAFETY: the only other one who touches slots is the ring's one consumer. It
            // reads those from `head` up to `tail`. This one is not among them: the check
            // above says that the consumer had moved past it, and the acquiring load of
            // `head` that its read is over; and it will not read it again before the
            // store of `tail` below. `RawRing::split` sees to it that there is one
            // producer, and `&mut self` that it pushes once at a time.
            unsafe { (*slot).write(item) };
        });
        self.tail = ring.next(self.tail);
        ring.tail.store(self.tail, O::PUBLISH);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ring.between(self.ring.head.load(Ordering::Relaxed), self.tail)
    }

    pub(super) fn capacity(&self) -> usize {
        self.ring.capacity()
    }
}

/// [`Consumer`](super::Consumer) for any orderings.
#[derive(Debug)]
pub(super) struct RawConsumer<'r, T, O: Orderings> {
    ring: &'r RawRing<'r, T, O>,
    /// What `ring.head` is.
    head: usize,
    /// What `ring.tail` was, or is.
    seen_tail: usize,
}

impl<T, O: Orderings> RawConsumer<'_, T, O> {
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        let ring = self.ring;
        if self.head == self.seen_tail {
            self.seen_tail = ring.tail.load(O::ACCEPT);
            if self.head == self.seen_tail {
                return None;
            }
        }
        let item = ring.slot(self.head).0.with(|slot| {
            // SAFETY: `tail` has passed this slot, so the producer has written an item into
            // it, and the acquiring load of `tail` says that the write is over. The
            // producer does not write it again before the store of `head` below, after
            // which nobody takes this item for one: it is moved out exactly once.
            // `RawRing::split` sees to it that there is one consumer, and `&mut self`
            // that it pops once at a time.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = ring.next(self.head);
        ring.head.store(self.head, O::GIVE_BACK);
        Some(item)
    }

    pub(super) fn len(&self) -> usize {
        self.ring.between(self.head, self.ring.tail.load(Ordering::Relaxed))
    }

    pub(super) fn capacity(&self) -> usize {
        self.ring.capacity()
    }
}
