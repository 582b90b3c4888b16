//! What passes work between threads, under Criterion.
//!
//! `ring/push_and_pop` is one thread's push and pop through a ring with room: the cost of
//! the protocol itself. `ring/there_and_back` sends an item to another thread and waits for
//! it to return: what two cores need for two messages.

use cllm_core::ring::{Ring, Slot};
use core::hint::{black_box, spin_loop};
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use std::thread;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("ring");
    push_and_pop(&mut group);
    there_and_back(&mut group);
    group.finish();
    criterion.final_summary();
}

fn push_and_pop(group: &mut BenchmarkGroup<'_, WallTime>) {
    let mut slots = [const { Slot::new() }; 5];
    let mut ring = Ring::new(&mut slots);
    let (mut producer, mut consumer) = ring.split();
    group.bench_function("push_and_pop", |b| {
        b.iter(|| {
            let pushed = producer.push(black_box(7_u64));
            (pushed, consumer.pop())
        });
    });
}

/// What ends the other thread.
const END: u64 = u64::MAX;

fn there_and_back(group: &mut BenchmarkGroup<'_, WallTime>) {
    if thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return;
    }
    let mut slots = [const { Slot::new() }; 4];
    let mut back_slots = [const { Slot::new() }; 4];
    let (mut there, mut back) = (Ring::new(&mut slots), Ring::new(&mut back_slots));
    let ((mut send, mut inbox), (mut reply, mut receive)) = (there.split(), back.split());
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                match inbox.pop() {
                    Some(END) => break,
                    Some(item) => reply.push(item).expect("one item is under way"),
                    None => spin_loop(),
                }
            }
        });
        group.bench_function("there_and_back", |b| {
            b.iter(|| {
                send.push(black_box(7)).expect("one item is under way");
                loop {
                    match receive.pop() {
                        Some(item) => break item,
                        None => spin_loop(),
                    }
                }
            });
        });
        send.push(END).expect("nothing is under way");
    });
}
