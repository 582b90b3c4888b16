//! Threads of the standard library as workers, with the core alone: no runner, no pool.
//!
//! All that a thread does to be a worker is to call `Worker::run`, which returns when the
//! engine is closed. `Spin` needs nothing from a system: it is for cores with nothing else
//! to do. With more threads than cores take an `Idle` that yields or sleeps.
//!
//! Run: `cargo run --release --example plain_threads`

mod common;

use cllm_core::{Engine, Spin, Worker};
use common::{Memory, Yield};

const STEPS: u32 = 20;

pub(crate) fn main() {
    // A core is left for this thread, which waits; without two there is one worker.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let workers = (cores - 1).clamp(1, 3);
    let plan = common::plan(workers);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");

    let hash = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| Worker::run(&engine, &Spin).expect("there is a seat for each"));
        }
        // Not needed: a step does not wait for workers to come, and this thread would
        // begin alone.
        while engine.workers() < workers {
            std::thread::yield_now();
        }
        let hash = common::train(&plan, pools, &engine, &Yield, STEPS, |_| {});
        // Otherwise the workers would wait for more, and the scope for them.
        engine.close(&Spin);
        hash
    });

    println!("{workers} workers: weights {hash:016x}");
    assert_eq!(hash, common::train_alone(STEPS), "the same bits for any number of workers");
}
