//! Rings: one thread's push and pop through a ring with room, which is the cost of the
//! protocol itself, and an item sent to another thread and back, which is two messages between
//! two cores.

use super::{Case, await_other};
use cllm_core::ring::{Ring, Slot};
use core::hint::black_box;
use core::time::Duration;
use std::thread;
use std::time::Instant;

/// Nanoseconds that a push and a pop may take.
const PUSH_AND_POP: f64 = 15.0;
/// What ends the other thread.
const END: u64 = u64::MAX;

pub(super) fn visit(pairs: bool, see: &mut dyn FnMut(Case<'_>)) {
    let mut slots = [const { Slot::new() }; 5];
    let mut ring = Ring::new(&mut slots);
    let (mut producer, mut consumer) = ring.split();
    let mut run = |times| {
        let start = Instant::now();
        for _ in 0..times {
            let pushed = producer.push(black_box(7_u64));
            let _ = black_box((pushed, consumer.pop()));
        }
        start.elapsed()
    };
    let name = "ring/push and pop";
    see(Case { name, target: Some(PUSH_AND_POP), tiles: None, singly: false, run: &mut run });
    if pairs {
        there_and_back(see);
    }
}

fn there_and_back(see: &mut dyn FnMut(Case<'_>)) {
    let mut slots = [const { Slot::new() }; 4];
    let mut back_slots = [const { Slot::new() }; 4];
    let (mut there, mut back) = (Ring::new(&mut slots), Ring::new(&mut back_slots));
    let ((mut send, mut inbox), (mut reply, mut receive)) = (there.split(), back.split());
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                let mut item = None;
                await_other(|| {
                    item = inbox.pop();
                    item.is_some()
                });
                match item {
                    None | Some(END) => break,
                    // One item is under way, so there is room.
                    Some(item) => drop(reply.push(item)),
                }
            }
        });
        let mut run = |times| -> Duration {
            let start = Instant::now();
            for _ in 0..times {
                let _ = send.push(black_box(7));
                await_other(|| receive.pop().is_some());
            }
            start.elapsed()
        };
        see(Case {
            name: "ring/there and back",
            target: None,
            tiles: None,
            singly: false,
            run: &mut run,
        });
        let _ = send.push(END);
    });
}
