//! One thread and nothing else: an engine without workers.
//!
//! Where nobody serves the engine, the thread that asks for a step does it. This is all that
//! a program needs on a machine with one core, or before its threads are there.
//!
//! Run: `cargo run --release --example one_thread`

mod common;

use cllm_core::{Engine, Spin};
use common::Memory;

pub(crate) fn main() {
    // How much memory; then the memory; then an engine over its part of it.
    let plan = common::plan(1);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");

    // `Spin` is how this thread would wait for workers. There are none to wait for.
    assert_eq!(engine.workers(), 0);
    let hash = common::train(&plan, pools, &engine, &Spin, 20, |_| {});
    println!("weights {hash:016x}");
}
