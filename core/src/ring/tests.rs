//! One thread, two threads, and what becomes of items that are left.

extern crate std;

use super::{Ring, Slot};
use core::cell::Cell;
use std::boxed::Box;
use std::collections::VecDeque;
use std::{thread, vec::Vec};

fn slots<T>(capacity: usize) -> Vec<Slot<T>> {
    (0..capacity).map(|_| Slot::new()).collect()
}

#[test]
fn it_agrees_with_a_queue_at_every_fill_and_position() {
    for capacity in [1, 2, 3, 4, 7] {
        let mut slots = slots(capacity);
        let mut ring = Ring::new(&mut slots);
        let (mut producer, mut consumer) = ring.split();
        assert_eq!((producer.capacity(), consumer.capacity()), (capacity, capacity));
        let mut queue = VecDeque::new();
        let mut state = 1_u32;
        for n in 0..5000_u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Runs of pushes and of pops, so that both limits are reached.
            if (state >> 16) % 8 < if n / 100 % 2 == 0 { 6 } else { 2 } {
                let pushed = if queue.len() < capacity { Ok(()) } else { Err(n) };
                assert_eq!(producer.push(n), pushed);
                if pushed.is_ok() {
                    queue.push_back(n);
                }
            } else {
                assert_eq!(consumer.pop(), queue.pop_front());
            }
            assert_eq!((producer.len(), consumer.len()), (queue.len(), queue.len()));
            assert_eq!(producer.is_empty(), queue.is_empty());
            assert_eq!(consumer.is_empty(), queue.is_empty());
        }
    }
}

#[test]
fn a_ring_without_slots_is_full_and_empty() {
    let mut ring = Ring::new(&mut []);
    let (mut producer, mut consumer) = ring.split();
    assert_eq!(producer.push(1), Err(1));
    assert_eq!(consumer.pop(), None);
    assert_eq!((producer.len(), producer.capacity()), (0, 0));
}

#[test]
fn items_without_size_are_counted() {
    let mut slots = slots(3);
    let mut ring = Ring::new(&mut slots);
    let (mut producer, mut consumer) = ring.split();
    for _ in 0..10 {
        assert_eq!(producer.push(()), Ok(()));
        assert_eq!(producer.push(()), Ok(()));
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(()), Some(()), None));
    }
}

#[test]
fn items_left_are_dropped_once_and_in_order() {
    struct Noted<'c>(u32, &'c Cell<u32>);
    impl Drop for Noted<'_> {
        fn drop(&mut self) {
            // As digits: 345 is three, four, five.
            self.1.set(self.1.get() * 10 + self.0);
        }
    }
    let dropped = Cell::new(0);
    let mut slots = slots(3);
    let mut ring = Ring::new(&mut slots);
    let (mut producer, mut consumer) = ring.split();
    for n in 1..=5 {
        assert!(producer.push(Noted(n, &dropped)).is_ok());
        if n <= 2 {
            assert_eq!(consumer.pop().map(|item| item.0), Some(n));
        }
    }
    assert_eq!(dropped.get(), 12);
    drop(producer.push(Noted(6, &dropped)));
    assert_eq!(dropped.get(), 126, "a refused item is the caller's to drop");
    drop(ring);
    assert_eq!(dropped.get(), 126_345);
}

#[test]
fn a_ring_split_again_goes_on() {
    let mut slots = slots(2);
    let mut ring = Ring::new(&mut slots);
    for round in 0..5 {
        let (mut producer, mut consumer) = ring.split();
        assert_eq!(consumer.pop(), (round > 0).then(|| round - 1));
        assert_eq!(producer.push(round), Ok(()));
    }
}

#[test]
fn two_threads_pass_on_every_item_in_order() {
    for capacity in [1, 3, 64] {
        let count = 50_000;
        let mut slots = slots(capacity);
        let mut ring = Ring::new(&mut slots);
        let (mut producer, mut consumer) = ring.split();
        thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..count {
                    let mut item = Box::new(n);
                    while let Err(back) = producer.push(item) {
                        item = back;
                        thread::yield_now();
                    }
                }
            });
            for n in 0..count {
                let item = loop {
                    match consumer.pop() {
                        Some(item) => break item,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(*item, n);
            }
            assert!(consumer.is_empty());
        });
    }
}
