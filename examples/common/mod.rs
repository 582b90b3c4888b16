//! What the examples share: a small model, memory for it, and a few steps that end with a
//! hash of the weights, which is the same whoever did the work.

#![allow(dead_code, reason = "each example uses its part")]

use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Idle, Kernels, Line, Mode, ModelConfig, Op, Optimizer,
    Plan, Pool, Pools, Queue, Slot, Trainer,
};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// A plan for at most `workers` workers: how much memory of which kind.
pub(crate) fn plan(workers: usize) -> Plan {
    let config = ModelConfig {
        vocab_size: 64,
        block_size: 48,
        n_layer: 2,
        n_head: 2,
        d_model: 32,
        d_ff: 128,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };
    let batch = BatchShape { sequences: 12, tokens: 48 };
    Plan::new(&config, batch, workers, Mode::Train, Kernels::detect()).expect("the plan is sound")
}

/// The memory of a plan. The core does not care where it comes from: here it is the heap,
/// elsewhere a static or a mapping.
pub(crate) struct Memory {
    lines: [Vec<Line>; 6],
    ops: Vec<Op>,
    slots: Vec<Slot>,
    words: Vec<AtomicU64>,
}

impl Memory {
    pub(crate) fn new(plan: &Plan) -> Self {
        let pools = [
            Pool::Parameters,
            Pool::Gradients,
            Pool::Moments,
            Pool::Packed,
            Pool::Activations,
            Pool::Scratch,
        ];
        Self {
            lines: pools.map(|pool| vec![Line::ZERO; plan.lines(pool)]),
            ops: vec![Op::EMPTY; plan.ops()],
            slots: (0..plan.slots()).map(|_| Slot::new()).collect(),
            words: (0..plan.words()).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// What a trainer works in, and what its engine does.
    pub(crate) fn parts(&mut self) -> (Pools<'_>, Queue<'_>) {
        let [parameters, gradients, moments, packed, activations, scratch] = &mut self.lines;
        let queue = Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words };
        (Pools { parameters, gradients, moments, packed, activations, scratch }, queue)
    }
}

/// A trainer with its first weights. `idle` is how this thread waits while workers do the work.
pub(crate) fn trainer<'a>(
    plan: &Plan,
    pools: Pools<'a>,
    engine: &'a Engine<'a>,
    idle: &'a (dyn Idle + Sync),
) -> Trainer<'a> {
    let trainer = Trainer::new(plan, Kernels::detect(), pools, engine, 7);
    let mut trainer = trainer.expect("memory and engine are of this plan").wait_with(idle);
    trainer.initialise();
    trainer
}

/// Tokens and targets of a step.
pub(crate) fn inputs(plan: &Plan, step: u32) -> [Vec<u32>; 2] {
    [step % 3, step % 3 + 1].map(|of| {
        let ids = (0..plan.tokens() as u32).map(|i| (i * i + 5 * i + of) % 64);
        ids.collect()
    })
}

/// How far an update goes.
pub(crate) const RATE: f32 = 3e-3;

/// Trains for `steps` steps, calling `before` with the number of each before it, and returns
/// a hash of the weights. `idle` is how this thread waits while workers do the work.
pub(crate) fn train(
    plan: &Plan,
    pools: Pools<'_>,
    engine: &Engine<'_>,
    idle: &(dyn Idle + Sync),
    steps: u32,
    mut before: impl FnMut(u32),
) -> u64 {
    let mut trainer = trainer(plan, pools, engine, idle);
    let mut losses = Vec::new();
    for step in 0..steps {
        before(step);
        let [tokens, targets] = inputs(plan, step);
        let batch = Batch::new(&tokens, &targets);
        let loss = trainer.accumulate(&batch, batch.counted()).expect("the step works");
        losses.push(loss.mean());
        trainer.update(&Optimizer::default(), RATE).expect("the gradient is finite");
    }
    println!("loss {:.4} -> {:.4}", losses[0], losses[steps as usize - 1]);
    hash(trainer.parameters())
}

/// A hash of weights.
pub(crate) fn hash(weights: &[f32]) -> u64 {
    weights.iter().fold(0xcbf2_9ce4_8422_2325, |hash, x| {
        (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3)
    })
}

/// The hash after `steps` steps of the calling thread alone.
pub(crate) fn train_alone(steps: u32) -> u64 {
    let plan = plan(1);
    let mut memory = Memory::new(&plan);
    let (pools, queue) = memory.parts();
    let engine = Engine::new(&plan, queue).expect("the memory is the plan's");
    train(&plan, pools, &engine, &cllm_core::Spin, steps, |_| {})
}

/// Looks awake for a moment, then lets others have the core: for threads of a system that
/// has other work too. (The runner's `Parking` also sleeps.)
pub(crate) struct Yield;

impl Idle for Yield {
    fn pause(&self, round: u32) -> bool {
        if round < 100 {
            core::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
        // Always awake: `park` is never called.
        true
    }

    fn park(&self, _: &AtomicU32, _: u32) {}

    fn wake(&self, _: &AtomicU32) {}
}
