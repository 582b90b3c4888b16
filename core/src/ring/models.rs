//! Every order of two threads on a small ring, under a model checker.
//!
//! Slots and buffers are plain memory to the checker: an access that is not ordered after
//! another by the protocol is reported as a race, even if it would have read the right
//! bytes. Each model has a copy in which one ordering is relaxed, and which must fail.

extern crate std;

use super::Slot;
use super::protocol::{Orderings, RawConsumer, RawProducer, RawRing, Sound};
use crate::primitive::{Ordering, UnsafeCell};
use loom::thread;
use std::boxed::Box;
use std::vec::Vec;

/// The sound orderings but for one.
macro_rules! broken {
    ($name:ident, $publish:ident $accept:ident $give_back:ident $reclaim:ident) => {
        enum $name {}
        impl Orderings for $name {
            const PUBLISH: Ordering = Ordering::$publish;
            const ACCEPT: Ordering = Ordering::$accept;
            const GIVE_BACK: Ordering = Ordering::$give_back;
            const RECLAIM: Ordering = Ordering::$reclaim;
        }
    };
}

broken!(RelaxedPublish, Relaxed Acquire Release Acquire);
broken!(RelaxedAccept, Release Relaxed Release Acquire);
broken!(RelaxedGiveBack, Release Acquire Relaxed Acquire);
broken!(RelaxedReclaim, Release Acquire Release Relaxed);

/// The two ends of a ring that lives as long as the threads of a model: for ever.
fn ring<T, O: Orderings>(
    capacity: usize,
) -> (RawProducer<'static, T, O>, RawConsumer<'static, T, O>) {
    let slots: Vec<Slot<T>> = (0..capacity).map(|_| Slot::new()).collect();
    Box::leak(Box::new(RawRing::new(Box::leak(slots.into_boxed_slice())))).split()
}

fn push<T, O: Orderings>(end: &mut RawProducer<'_, T, O>, mut item: T) {
    while let Err(back) = end.push(item) {
        item = back;
        thread::yield_now();
    }
}

fn pop<T, O: Orderings>(end: &mut RawConsumer<'_, T, O>) -> T {
    loop {
        match end.pop() {
            Some(item) => return item,
            None => thread::yield_now(),
        }
    }
}

/// `count` items through a ring of `capacity` through which `before` have gone already:
/// more than there are slots, so that slots are used again and positions start over.
fn wrap_around<O: Orderings + 'static>(capacity: usize, before: u32, count: u32) {
    loom::model(move || {
        let (mut producer, mut consumer) = ring::<u32, O>(capacity);
        for n in 0..before {
            assert_eq!(producer.push(n), Ok(()));
            assert_eq!(consumer.pop(), Some(n));
        }
        let thread = thread::spawn(move || {
            for n in 0..count {
                push(&mut producer, n);
            }
        });
        for n in 0..count {
            assert!(consumer.len() <= capacity);
            assert_eq!(pop(&mut consumer), n);
        }
        assert_eq!(consumer.pop(), None);
        thread.join().unwrap();
    });
}

/// Buffers go round between two threads, as those of the batch loader do: filled ones one
/// way, free ones the other. Nothing but the rings orders the accesses to a buffer.
fn recycling<Full: Orderings + 'static, Free: Orderings + 'static>(buffers: usize, count: u32) {
    struct Buffer(UnsafeCell<u32>);
    #[expect(unsafe_code, reason = "the buffers are what the rings are to protect")]
    // SAFETY: whether this holds is what the model checks.
    unsafe impl Sync for Buffer {}
    #[expect(unsafe_code, reason = "the buffers are what the rings are to protect")]
    fn read(buffer: &Buffer) -> u32 {
        // SAFETY: the model's two threads pass a buffer back and forth; the checker ends
        // the test before a second access happens at the same time.
        buffer.0.with(|value| unsafe { *value })
    }
    #[expect(unsafe_code, reason = "the buffers are what the rings are to protect")]
    fn write(buffer: &Buffer, value: u32) {
        // SAFETY: as in `read`.
        buffer.0.with_mut(|place| unsafe { *place = value });
    }

    loom::model(move || {
        let pool: Vec<Buffer> = (0..buffers).map(|_| Buffer(UnsafeCell::new(0))).collect();
        let pool: &'static [Buffer] = Box::leak(pool.into_boxed_slice());
        let (mut full_in, mut full_out) = ring::<&Buffer, Full>(buffers);
        let (mut free_in, mut free_out) = ring::<&Buffer, Free>(buffers);
        for buffer in pool {
            assert!(free_in.push(buffer).is_ok());
        }
        let loader = thread::spawn(move || {
            for n in 0..count {
                let buffer = pop(&mut free_out);
                write(buffer, n);
                assert!(full_in.push(buffer).is_ok(), "there is room for every buffer");
            }
        });
        for n in 0..count {
            let buffer = pop(&mut full_out);
            assert_eq!(read(buffer), n);
            assert!(free_in.push(buffer).is_ok(), "there is room for every buffer");
        }
        loader.join().unwrap();
    });
}

#[test]
fn one_slot_is_used_again_and_again() {
    wrap_around::<Sound>(1, 0, 4);
}

#[test]
fn two_slots_are_used_again_and_again() {
    wrap_around::<Sound>(2, 2, 4);
}

#[test]
fn one_buffer_goes_round() {
    recycling::<Sound, Sound>(1, 3);
}

#[test]
fn two_buffers_go_round() {
    recycling::<Sound, Sound>(2, 3);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_item_needs_a_releasing_push() {
    wrap_around::<RelaxedPublish>(1, 0, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_item_needs_an_acquiring_pop() {
    wrap_around::<RelaxedAccept>(1, 0, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_slot_used_again_needs_a_releasing_pop() {
    wrap_around::<RelaxedGiveBack>(1, 0, 2);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_slot_used_again_needs_an_acquiring_push() {
    wrap_around::<RelaxedReclaim>(2, 0, 3);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_filled_buffer_needs_the_full_rings_orderings() {
    recycling::<RelaxedPublish, Sound>(1, 1);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_buffer_filled_again_needs_the_free_rings_orderings() {
    recycling::<Sound, RelaxedAccept>(1, 2);
}
