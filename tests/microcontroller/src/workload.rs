//! What the microcontroller trains, and what the hosted test trains beside it: a model of characters, from scratch,
//! and the hash of its weights after [`STEPS`] steps. All memory that the training touches, but for the stack, is
//! [`Memory`] and [`Lists`], to the byte what the plan asks for.
#![allow(dead_code, reason = "the program that trains adapters uses a part of this module")]

#[path = "../../bare_metal/src/common.rs"]
pub(crate) mod common;
#[path = "memory.rs"]
pub(crate) mod memory;
#[path = "run.rs"]
pub(crate) mod run;
#[path = "text.rs"]
pub(crate) mod text;

use cllm_core::{
    Activation, Architecture, BatchShape, Blocking, Decay, Engine, KernelSet, Kernels, Mode,
    ModelConfig, Optimizer, OptimizerKind, Packing, Plan, Pool, Schedule, Tiling, Trainer,
};
use common::{Failure, weights_sha256};
use core::fmt::Write;
use run::Run;

const CONFIG: ModelConfig = ModelConfig {
    vocab_size: text::CHARACTERS.len(),
    block_size: 32,
    n_layer: 1,
    n_head: 2,
    d_model: 32,
    d_ff: 80,
    bias: false,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture { activation: Activation::Relu2, ..Architecture::LLAMA },
};

/// A micro-batch: what there are activations for.
const SHAPE: BatchShape = BatchShape { sequences: 1, tokens: CONFIG.block_size };
/// Micro-batches of a step.
const MICRO: usize = 4;
/// Steps of the run that ends with a hash.
pub(crate) const STEPS: u64 = 200;
/// Steps of the run that goes on from there.
pub(crate) const ALL_STEPS: u64 = 4000;
/// The learning rate of each: that of the short run is the beginning of the long one's.
const SCHEDULE: Schedule = Schedule {
    peak: 1e-2,
    min: 0.0,
    warmup_steps: 50,
    max_steps: ALL_STEPS,
    decay: Decay::WarmupStableDecay { decay_steps: ALL_STEPS / 2 },
};

/// The plan: weights are packed on the way, and tiles are small, for each packed copy would take RAM; moments have
/// 8 bits.
pub(crate) const PLAN: Plan = {
    let tiling = small(Packing::Fresh);
    let set = KernelSet::SCALAR;
    match Plan::of_set(&CONFIG, None, SHAPE, 1, &tiling, Mode::Train, set) {
        Ok(plan) => plan.with_optimizer(OptimizerKind::AdamW8),
        Err(error) => error.stop(),
    }
};
// Not all of it is for these: there are a stack and other statics.
const _: () = PLAN.assert_fits(256 << 10);

/// What the plan asks for, exactly.
pub(crate) type Memory = memory::Memory<
    { PLAN.lines(Pool::Parameters) },
    { PLAN.lines(Pool::Gradients) },
    { PLAN.lines(Pool::Moments) },
    { PLAN.lines(Pool::Activations) },
    { PLAN.lines(Pool::Scratch) },
    { SHAPE.tokens },
>;
pub(crate) type Lists = memory::Lists<{ PLAN.ops() }, { PLAN.slots() }, { PLAN.words() }>;

/// Tiles of little scratch.
pub(crate) const fn small(packing: Packing) -> Tiling {
    let blocking = Blocking {
        row_block: 32,
        weight_rows: 32,
        weight_cols: 32,
        update_floats: 1024,
        ..Blocking::DEFAULT
    };
    Tiling { packing: Some(packing), blocking, ..Tiling::DEFAULT }
}

/// Trains from scratch on a text, tells losses, and gives the SHA-256 of the weights after [`STEPS`] steps, as the
/// runner's `weights_sha256` has it. `then` gets the run as it is.
///
/// # Errors
/// What went wrong, in the core's words.
pub(crate) fn train(
    kernels: &'static Kernels,
    (memory, lists): (&mut Memory, &mut Lists),
    text: &[u8],
    tell: &mut dyn Write,
    then: impl FnOnce(&mut Run<'_, '_>) -> Result<(), Failure>,
) -> Result<[u8; 32], Failure> {
    let (pools, batch) = memory.parts();
    let engine = Engine::new(&PLAN, lists.queue())?;
    let mut trainer = Trainer::new(&PLAN, kernels, pools, &engine, 42)?;
    trainer.initialise();
    let optimizer = Optimizer { kind: PLAN.optimizer(), ..Optimizer::default() };
    let mut run = Run { trainer, batch, text, micro: MICRO, schedule: SCHEDULE, optimizer };
    run.steps(0..STEPS, 40, tell)?;
    let hash = weights_sha256(PLAN.table(), run.trainer.parameters());
    then(&mut run)?;
    Ok(hash)
}
