//! What the freestanding program trains, and what the hosted test trains beside it.

#[path = "small.rs"]
mod small;

use cllm_core::{Batch, Engine, Kernels, Optimizer, Plan, PlanError, Sizes, StepError, Trainer};
pub(crate) use small::{CONFIG, SHAPE};

const SIZES: Sizes = small::sizes(1);
/// All memory that the training touches, besides the stack.
pub(crate) type Memory =
    cllm_core::Memory<{ SIZES.lines }, { SIZES.ops }, { SIZES.slots }, { SIZES.words }>;

const STEPS: usize = 60;
/// Text that repeats enough to be learnt in a minute of nothing.
const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog, and the lazy dog sleeps on. \
    the quick brown fox comes back, and the lazy dog wakes up. what does the fox say? \
    the fox says nothing; the dog says woof, and the quick brown fox jumps over the lazy dog.";

/// Why there is no final loss.
#[derive(Debug)]
pub(crate) enum Failure {
    Plan(#[allow(dead_code, reason = "shown by Debug where there is a std")] PlanError),
    Step(#[allow(dead_code, reason = "shown by Debug where there is a std")] StepError),
}

/// Trains from scratch by a plan for one worker, and returns the first and the last step's mean loss.
pub(crate) fn train(
    plan: &Plan,
    kernels: &'static Kernels,
    memory: &mut Memory,
) -> Result<(f64, f64), Failure> {
    let (pools, queue) = memory.parts(plan).map_err(Failure::Plan)?;
    let engine = Engine::new(plan, queue).map_err(Failure::Plan)?;
    let mut trainer = Trainer::new(plan, kernels, pools, &engine, 42).map_err(Failure::Plan)?;
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
