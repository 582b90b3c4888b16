//! A model of bytes, and memory for training it on any instruction set: what programs without std have in common.

use cllm_core::{Architecture, BatchShape, Line, ModelConfig, Op, Pools, Queue, Slot};
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
pub(crate) const SHAPE: BatchShape = BatchShape { sequences: 4, tokens: 32 };

/// Lines of each pool: at least what the plan asks for on any instruction set, for two workers.
const PARAMETERS: usize = 2048;
const MOMENTS: usize = 2 * PARAMETERS;
const PACKED: usize = 4096;
const ACTIVATIONS: usize = 16384;
const SCRATCH: usize = 16384;
const OPS: usize = 160;
const SLOTS: usize = 32;
const WORDS: usize = 128;

/// All memory that the training touches, besides the stack.
pub(crate) struct Memory {
    pub(crate) parameters: [Line; PARAMETERS],
    gradients: [Line; PARAMETERS],
    moments: [Line; MOMENTS],
    pub(crate) packed: [Line; PACKED],
    pub(crate) activations: [Line; ACTIVATIONS],
    scratch: [Line; SCRATCH],
    ops: [Op; OPS],
    slots: [Slot; SLOTS],
    words: [AtomicU64; WORDS],
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

    /// The memory of a trainer and of its engine.
    pub(crate) fn parts(&mut self) -> (Pools<'_>, Queue<'_>) {
        let pools = Pools {
            parameters: &mut self.parameters,
            gradients: &mut self.gradients,
            moments: &mut self.moments,
            packed: &mut self.packed,
            activations: &mut self.activations,
            scratch: &mut self.scratch,
        };
        (pools, Queue { ops: &mut self.ops, slots: &mut self.slots, words: &mut self.words })
    }
}
