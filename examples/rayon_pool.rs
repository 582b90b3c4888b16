//! A rayon pool lends its threads to the engine and has them back afterwards.
//!
//! A program that has a thread pool does not want a second one beside it. Here each thread
//! of the pool takes a seat at the engine for the length of a `scope`; when the engine is
//! closed, `Worker::run` returns and the threads are rayon's again. Any pool will do that
//! can run as many tasks at once as there are to be workers.
//!
//! Run: `cargo run --release --example rayon_pool`

mod common;

use cllm_core::{Engine, Worker};
use common::{Memory, Yield};
use rayon::prelude::*;

const STEPS: u32 = 20;

pub(crate) fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
    // The program's own use of its pool, before and after.
    let squares = || pool.install(|| (0..1000_u64).into_par_iter().map(|x| x * x).sum::<u64>());
    let before = squares();

    let plan = common::plan(pool.current_num_threads());
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");

    // `in_place_scope` keeps this thread out of the pool: it asks for the steps, while each
    // thread of the pool is busy with one task, `Worker::run`.
    let hash = pool.in_place_scope(|scope| {
        for _ in 0..pool.current_num_threads() {
            scope.spawn(|_| Worker::run(&engine, &Yield).expect("there is a seat for each"));
        }
        while engine.workers() < pool.current_num_threads() {
            std::thread::yield_now();
        }
        let hash = common::train(&plan, pools, &engine, &Yield, STEPS, |_| {});
        // Sends the threads back to rayon; the scope ends when they are there.
        engine.close(&Yield);
        hash
    });

    assert_eq!(engine.workers(), 0);
    assert_eq!(squares(), before, "the pool works as before");
    println!("three of rayon's threads: weights {hash:016x}");
    assert_eq!(hash, common::train_alone(STEPS), "the same bits for any number of workers");
}
