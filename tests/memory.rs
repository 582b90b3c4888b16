//! The memory plan is exact, and a step allocates nothing.
#![expect(unsafe_code, reason = "a global allocator that counts has an unsafe interface")]

mod support;

use cllm_core::{
    Batch, BatchShape, Evaluator, Isa, Kernels, LANES, Line, Mode, ModelConfig, Op, Optimizer,
    Plan, PlanError, Pool, Pools, Trainer,
};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;
use support::memory::Memory;

/// The system's allocator, with a count of each thread's calls.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on from the caller.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SHAPE: BatchShape = BatchShape { sequences: 4, tokens: 64 };

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 256,
        block_size: 64,
        n_layer: 2,
        n_head: 2,
        d_model: 64,
        d_ff: 256,
        bias: true,
        tied: false,
        dropout: 0.1,
        norm_eps: 1e-5,
    }
}

/// One whole step and a validation.
fn step(trainer: &mut Trainer<'_>, tokens: &[u32], targets: &[u32]) {
    let batch = Batch { tokens, targets };
    for _ in 0..2 {
        trainer.accumulate(&batch, 2 * targets.len()).unwrap();
    }
    trainer.update(&Optimizer::default(), 1e-3).unwrap();
    trainer.evaluate(&batch).unwrap();
}

/// Token ids that reach the whole vocabulary.
fn ids(plan: &Plan) -> (Vec<u32>, Vec<u32>) {
    let n = plan.tokens() as u32;
    let v = plan.config().vocab_size as u32;
    ((0..n).map(|i| i * 7 % v).collect(), (0..n).map(|i| i * 11 % v).collect())
}

#[test]
fn a_step_allocates_nothing() {
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
        let (tokens, targets) = ids(&plan);
        let mut memory = Memory::new(&plan);
        let mut trainer = Trainer::new(&plan, kernels, memory.pools(), 1).unwrap();
        trainer.initialise();
        for window in 0..3 {
            let before = CALLS.get();
            step(&mut trainer, &tokens, &targets);
            assert_eq!(CALLS.get() - before, 0, "{isa}: allocations in step {window}");
        }
    }
}

#[test]
fn every_planned_line_is_used_and_no_other() {
    let poison = Line([f32::from_bits(0x7fc0_dead); LANES]);
    for isa in Isa::ALL {
        let Some(kernels) = Kernels::for_isa(isa) else { continue };
        let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
        let (tokens, targets) = ids(&plan);
        let pools = [
            Pool::Parameters,
            Pool::Gradients,
            Pool::Moments,
            Pool::Packed,
            Pool::Activations,
            Pool::Scratch,
        ];
        // A guard line behind each pool: larger pools are allowed, the rest is not touched.
        let mut lines = pools.map(|pool| vec![poison; plan.lines(pool) + 1]);
        let mut queue = vec![Op::EMPTY; plan.ops() + 1];
        {
            let [parameters, gradients, moments, packed, activations, scratch] = &mut lines;
            let queue = &mut queue;
            let pools =
                Pools { parameters, gradients, moments, packed, activations, scratch, queue };
            let mut trainer = Trainer::new(&plan, kernels, pools, 1).unwrap();
            trainer.initialise();
            step(&mut trainer, &tokens, &targets);
        }
        // Weights, gradients and moments start as zeros: a line that a step uses has more.
        for (pool, lines) in pools.iter().zip(&lines).take(3) {
            let zeros = lines.iter().filter(|line| line.0 == [0.0; LANES]).count();
            assert_eq!(zeros, 0, "{isa}: lines of {} stayed zero", pool.name());
        }
        let untouched = |line: &Line| line.0.map(f32::to_bits) == poison.0.map(f32::to_bits);
        for (pool, lines) in pools.iter().zip(&lines) {
            let (guard, planned) = lines.split_last().unwrap();
            assert!(untouched(guard), "{isa}: {} wrote past the plan", pool.name());
            let idle = planned.iter().filter(|line| untouched(line)).count();
            assert_eq!(idle, 0, "{isa}: {} of {} lines of {}", idle, planned.len(), pool.name());
        }
        assert_eq!(queue[plan.ops()], Op::EMPTY);
        assert!(queue[..plan.ops()].iter().all(|op| *op != Op::EMPTY));
    }
}

#[test]
fn bytes_are_those_of_the_shapes() {
    let plan = Plan::new(&config(), SHAPE, 3, Mode::Train, Kernels::scalar()).unwrap();
    let arena = plan.table().arena_len() * 4;
    assert_eq!(plan.bytes(Pool::Parameters), arena);
    assert_eq!(plan.bytes(Pool::Gradients), arena);
    assert_eq!(plan.bytes(Pool::Moments), 2 * arena);
    assert_eq!(plan.bytes(Pool::Batch), 2 * 4 * 256);
    assert_eq!(plan.bytes(Pool::Queue), plan.ops() * size_of::<Op>());
    // Scalar panels are 4 wide and these widths are multiples of 16: no padding.
    let matrices = 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256) + 64 * 256;
    assert_eq!(plan.bytes(Pool::Packed), 2 * 4 * matrices);
    let one = Plan::new(&config(), SHAPE, 1, Mode::Train, Kernels::scalar()).unwrap();
    assert_eq!(plan.bytes(Pool::Scratch), 3 * one.bytes(Pool::Scratch));
    let sum: usize = Pool::ALL.iter().map(|pool| plan.bytes(*pool)).sum();
    assert_eq!(plan.total_bytes(), Some(sum));
    // Per token and block: x, att, mid, two norms and qkv are 8 widths of 64, the
    // feed-forward layer 2 of 256, norms 4 values, lse one a head.
    let block = 256 * (8 * 64 + 2 * 256 + 4 + 2);
    let shared = 256 * (64 + 64 + 3) + 256 * 256;
    let grads = 256 * (4 * 64 + 3 * 64 + 256 + 2 * 64) + 2 * 3 * 128 + 16;
    assert_eq!(plan.bytes(Pool::Activations), 4 * (2 * block + shared + grads));
}

#[test]
fn a_pool_one_line_short_is_named() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
    for pool in Pool::ALL {
        if pool == Pool::Batch {
            continue;
        }
        let mut memory = Memory::new(&plan);
        memory.shorten(pool);
        let error = Trainer::new(&plan, kernels, memory.pools(), 1).unwrap_err();
        let need = plan.bytes(pool);
        let unit = if pool == Pool::Queue { size_of::<Op>() } else { size_of::<Line>() };
        assert_eq!(error, PlanError::TooSmall { pool, need, got: need - unit });
    }
}

#[test]
fn evaluation_needs_less_and_gives_the_same_loss() {
    let kernels = Kernels::detect();
    let plan = Plan::new(&config(), SHAPE, 1, Mode::Train, kernels).unwrap();
    let small = Plan::new(&config(), SHAPE, 1, Mode::Evaluate, kernels).unwrap();
    assert_eq!(small.bytes(Pool::Gradients), 0);
    assert!(small.total_bytes().unwrap() * 2 < plan.total_bytes().unwrap());
    let (tokens, targets) = ids(&plan);
    let batch = Batch { tokens: &tokens, targets: &targets };
    let (mut a, mut b) = (Memory::new(&plan), Memory::new(&small));
    let mut trainer = Trainer::new(&plan, kernels, a.pools(), 1).unwrap();
    trainer.initialise();
    let mut evaluator = Evaluator::new(&small, kernels, b.pools()).unwrap();
    evaluator.parameters_mut().copy_from_slice(trainer.parameters());
    assert_eq!(evaluator.evaluate(&batch).unwrap(), trainer.evaluate(&batch).unwrap());
    assert!(matches!(
        Trainer::new(&small, kernels, Memory::new(&small).pools(), 1),
        Err(PlanError::WrongMode)
    ));
}
