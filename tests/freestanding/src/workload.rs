//! What the freestanding program trains, and what the hosted test trains beside it.

use cllm_core::{
    Architecture, Batch, BatchShape, Engine, Kernels, Line, Mode, ModelConfig, Op, Optimizer, Plan,
    PlanError, Pools, Queue, Slot, StepError, Trainer,
};
use core::sync::atomic::AtomicU64;

/// A byte model of a few hundred lines of memory.
pub(crate) const CONFIG: ModelConfig = ModelConfig {
    vocab_size: 256,
    block_size: 32,
    n_layer: 2,
    n_head: 2,
    d_model: 32,
    d_ff: 64,
    bias: true,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};
const SHAPE: BatchShape = BatchShape { sequences: 4, tokens: 32 };
const STEPS: usize = 60;
/// Text that repeats enough to be learnt in a minute of nothing.
const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. \
    the quick brown fox comes back, and the lazy dog wakes up. what does the fox say? \
    the fox says nothing; the dog says woof, and the quick brown fox jumps over the lazy dog.";

/// Lines of each pool: at least what the plan asks for on any instruction set.
pub(crate) const PARAMETERS: usize = 2048;
pub(crate) const MOMENTS: usize = 2 * PARAMETERS;
pub(crate) const PACKED: usize = 4096;
pub(crate) const ACTIVATIONS: usize = 16384;
pub(crate) const SCRATCH: usize = 8192;
pub(crate) const OPS: usize = 160;
pub(crate) const SLOTS: usize = 32;
pub(crate) const WORDS: usize = 64;

/// All memory that the training touches, besides the stack.
pub(crate) struct Memory {
    pub(crate) parameters: [Line; PARAMETERS],
    pub(crate) gradients: [Line; PARAMETERS],
    pub(crate) moments: [Line; MOMENTS],
    pub(crate) packed: [Line; PACKED],
    pub(crate) activations: [Line; ACTIVATIONS],
    pub(crate) scratch: [Line; SCRATCH],
    pub(crate) ops: [Op; OPS],
    pub(crate) slots: [Slot; SLOTS],
    pub(crate) words: [AtomicU64; WORDS],
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self {
            parameters: [Line::ZERO; PARAMETERS],
            gradients: [Line::ZERO; PARAMETERS],
            moments: [Line::ZERO; MOMENTS],
            packed: [Line::ZERO; PACKED],
            activations: [Line::ZERO; ACTIVATIONS],
            scratch: [Line::ZERO; SCRATCH],
            ops: [Op::EMPTY; OPS],
            slots: [const { Slot::new() }; SLOTS],
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }
}

/// Why there is no final loss.
#[derive(Debug)]
pub(crate) enum Failure {
    Plan(#[allow(dead_code, reason = "shown by Debug where there is a std")] PlanError),
    Step(#[allow(dead_code, reason = "shown by Debug where there is a std")] StepError),
}

/// Trains from scratch and returns the first and the last step's mean loss.
pub(crate) fn train(kernels: &'static Kernels, memory: &mut Memory) -> Result<(f64, f64), Failure> {
    let plan = Plan::new(&CONFIG, SHAPE, 1, Mode::Train, kernels).map_err(Failure::Plan)?;
    let pools = Pools {
        parameters: &mut memory.parameters,
        gradients: &mut memory.gradients,
        moments: &mut memory.moments,
        packed: &mut memory.packed,
        activations: &mut memory.activations,
        scratch: &mut memory.scratch,
    };
    let queue = Queue { ops: &mut memory.ops, slots: &mut memory.slots, words: &mut memory.words };
    let engine = Engine::new(&plan, queue).map_err(Failure::Plan)?;
    let mut trainer = Trainer::new(&plan, kernels, pools, &engine, 42).map_err(Failure::Plan)?;
    trainer.initialise();
    let (mut first, mut last) = (f64::NAN, f64::NAN);
    for step in 0..STEPS {
        let (mut tokens, mut targets) = ([0; 128], [0; 128]);
        for sequence in 0..SHAPE.sequences {
            for t in 0..SHAPE.tokens {
                let at = (step * 61 + sequence * 53 + t) % (TEXT.len() - 1);
                tokens[sequence * SHAPE.tokens + t] = u32::from(TEXT[at]);
                targets[sequence * SHAPE.tokens + t] = u32::from(TEXT[at + 1]);
            }
        }
        let batch = Batch::new(&tokens, &targets);
        let loss = trainer.accumulate(&batch, tokens.len()).map_err(Failure::Step)?;
        trainer.update(&Optimizer::default(), 1e-2).map_err(Failure::Step)?;
        last = loss.mean();
        if step == 0 {
            first = last;
        }
    }
    Ok((first, last))
}
