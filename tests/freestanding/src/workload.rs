//! What the freestanding program trains, and what the hosted test trains beside it.

use cllm_core::{
    Batch, BatchShape, Kernels, Line, Mode, ModelConfig, Op, Optimizer, Plan, PlanError, Pools,
    StepError, Trainer,
};

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

/// All memory that the training touches, besides the stack.
pub(crate) struct Memory {
    pub(crate) parameters: [Line; PARAMETERS],
    pub(crate) gradients: [Line; PARAMETERS],
    pub(crate) moments: [Line; MOMENTS],
    pub(crate) packed: [Line; PACKED],
    pub(crate) activations: [Line; ACTIVATIONS],
    pub(crate) scratch: [Line; SCRATCH],
    pub(crate) queue: [Op; OPS],
}

impl Memory {
    pub(crate) const EMPTY: Self = Self {
        parameters: [Line::ZERO; PARAMETERS],
        gradients: [Line::ZERO; PARAMETERS],
        moments: [Line::ZERO; MOMENTS],
        packed: [Line::ZERO; PACKED],
        activations: [Line::ZERO; ACTIVATIONS],
        scratch: [Line::ZERO; SCRATCH],
        queue: [Op::EMPTY; OPS],
    };
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
        queue: &mut memory.queue,
    };
    let mut trainer = Trainer::new(&plan, kernels, pools, 42).map_err(Failure::Plan)?;
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
        let batch = Batch { tokens: &tokens, targets: &targets };
        let loss = trainer.accumulate(&batch, tokens.len()).map_err(Failure::Step)?;
        trainer.update(&Optimizer::default(), 1e-2).map_err(Failure::Step)?;
        last = loss.mean();
        if step == 0 {
            first = last;
        }
    }
    Ok((first, last))
}
