//! Workers that join late and leave early, between two steps, with no word to the trainer.
//!
//! A service that trains in its spare time takes threads away when requests come and gives
//! them back when it is quiet. A thread joins by calling `Worker::run` at any time. It leaves
//! when its `Idle::stays` says so, which it is asked while it has nothing to do; a step
//! that is under way goes on with those who stay, and with the caller alone if nobody does.
//!
//! Run: `cargo run --release --example come_and_go`

mod common;

use cllm_core::{Engine, Idle, Worker};
use common::{Memory, Yield};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const STEPS: u32 = 30;

/// Waits like [`Yield`], until it is wanted elsewhere.
struct Borrowed<'a> {
    wanted_elsewhere: &'a AtomicBool,
}

impl Idle for Borrowed<'_> {
    fn pause(&self, round: u32) -> bool {
        Yield.pause(round)
    }

    fn park(&self, word: &AtomicU32, seen: u32) {
        // A worker that sleeps must be woken to leave; this one never does.
        Yield.park(word, seen);
    }

    fn wake(&self, word: &AtomicU32) {
        Yield.wake(word);
    }

    fn stays(&self) -> bool {
        !self.wanted_elsewhere.load(Ordering::Relaxed)
    }
}

pub(crate) fn main() {
    let plan = common::plan(2);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");
    let wanted_elsewhere = AtomicBool::new(false);
    let until = |workers: usize| {
        while engine.workers() != workers {
            std::thread::yield_now();
        }
    };

    let hash = std::thread::scope(|scope| {
        let join = || {
            scope.spawn(|| {
                let idle = Borrowed { wanted_elsewhere: &wanted_elsewhere };
                Worker::run(&engine, &idle).expect("there is a seat");
                // Here the thread would go and serve a request.
            });
        };
        let hash = common::train(&plan, pools, &engine, &Yield, STEPS, |step| match step {
            // The first steps are this thread's own. Then one worker joins, then another.
            5 => {
                join();
                until(1);
            }
            10 => {
                join();
                until(2);
            }
            // Requests have come: both leave, and this thread goes on alone.
            15 => {
                wanted_elsewhere.store(true, Ordering::Relaxed);
                until(0);
            }
            // Quiet again. Nobody waits for this one: it joins when it is there.
            20 => {
                wanted_elsewhere.store(false, Ordering::Relaxed);
                join();
            }
            _ => {}
        });
        engine.close(&Yield);
        hash
    });

    println!("workers came and went: weights {hash:016x}");
    assert_eq!(hash, common::train_alone(STEPS), "the same bits for any number of workers");
}
