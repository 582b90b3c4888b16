//! What the microcontroller trains beside a model that is larger than its RAM: adapters. The model lies in flash
//! memory, as the panels that products read, and learns a text in capitals.

use super::workload::common::Failure;
use super::workload::run::Run;
use super::workload::{memory, small, text};
use cllm_core::{
    AdapterSite, AdapterSites, Adapters, Architecture, BatchShape, Decay, Engine, KernelSet,
    Kernels, Line, Mode, ModelConfig, Optimizer, Packing, Plan, Pool, Schedule, Trainer,
};
use core::fmt::Write;
use sha2::{Digest as _, Sha256};

/// Of 103,296 parameters: 403 KiB of floats, and twice as much as panels both ways round.
pub(crate) const CONFIG: ModelConfig = ModelConfig {
    vocab_size: text::CHARACTERS.len(),
    block_size: 16,
    n_layer: 2,
    n_head: 4,
    d_model: 64,
    d_ff: 256,
    bias: false,
    tied: true,
    dropout: 0.0,
    norm_eps: 1e-5,
    arch: Architecture { activation: cllm_core::Activation::Relu2, ..Architecture::LLAMA },
};

/// A micro-batch.
const SHAPE: BatchShape = BatchShape { sequences: 1, tokens: CONFIG.block_size };
const MICRO: usize = 4;
const STEPS: u64 = 100;
const SCHEDULE: Schedule =
    Schedule { peak: 1e-2, min: 0.0, warmup_steps: 10, max_steps: STEPS, decay: Decay::Linear };

/// The plan: matrices are kept as panels, which nothing writes, and a block's activations are made again.
pub(crate) const PLAN: Plan = {
    let sites = AdapterSites::of(&[AdapterSite::Queries, AdapterSite::Values]);
    let adapters = Adapters { rank: 4, scale: 2.0, sites };
    let tiling = small(Packing::Kept);
    let (mode, set) = (Mode::Recompute, KernelSet::SCALAR);
    match Plan::of_set(&CONFIG, Some(&adapters), SHAPE, 1, &tiling, mode, set) {
        Ok(plan) => plan,
        Err(error) => error.stop(),
    }
};

/// What the plan asks for, exactly, but for panels, which lie in flash memory.
pub(crate) type Memory = memory::Memory<
    { PLAN.lines(Pool::Parameters) },
    { PLAN.lines(Pool::Gradients) },
    { PLAN.lines(Pool::Moments) },
    { PLAN.lines(Pool::Activations) },
    { PLAN.lines(Pool::Scratch) },
    { SHAPE.tokens },
>;
pub(crate) type Lists = memory::Lists<{ PLAN.ops() }, { PLAN.slots() }, { PLAN.words() }>;

/// The model in flash memory.
#[derive(Clone, Copy)]
pub(crate) struct Base<'a> {
    /// Its matrices, for these kernels: [`Trainer::panels`].
    pub(crate) panels: &'a [Line],
    /// Its other tensors: the arena of [`Plan::resident`].
    pub(crate) resident: &'a [f32],
    /// The token table, as `f32` with the lowest byte first.
    pub(crate) table: &'a [u8],
}

/// Trains adapters on a text, tells losses, and gives the SHA-256 of their values.
///
/// # Errors
/// What went wrong, in the core's words.
pub(crate) fn train(
    kernels: &'static Kernels,
    (memory, lists): (&mut Memory, &mut Lists),
    base: Base<'_>,
    text: &[u8],
    tell: &mut dyn Write,
) -> Result<[u8; 32], Failure> {
    let (pools, batch) = memory.parts();
    let engine = Engine::new(&PLAN, lists.queue())?;
    let trainer = Trainer::over_panels(&PLAN, kernels, pools, base.panels, &engine, 42)?;
    let mut trainer = trainer.look_up_in(base.table)?;
    trainer.initialise();
    trainer.parameters_mut()[..base.resident.len()].copy_from_slice(base.resident);
    let optimizer = Optimizer::default();
    let mut run = Run { trainer, batch, text, micro: MICRO, schedule: SCHEDULE, optimizer };
    run.steps(0..STEPS, 20, tell)?;
    let mut hash = Sha256::new();
    for value in run.trainer.adapters() {
        hash.update(value.to_le_bytes());
    }
    Ok(hash.finalize().into())
}
