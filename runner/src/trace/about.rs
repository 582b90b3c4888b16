//! What a trace says of itself: enough to plan its steps again, and what they cost.

use crate::train::event::Model;
use crate::tune::Sizes;
use cllm_core::{BatchShape, Dtype, KernelSet, Kernels, Mode, OptimizerKind};
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// The `otherData` of a trace file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// [`VERSION`].
    pub cllm_trace: u32,
    /// Version of the program that recorded.
    pub program: String,
    /// The model.
    pub model: Model,
    /// Sequences of a micro-batch.
    pub batch_size: usize,
    /// Tokens of a sequence; by default as many as the model can have, as runs without a base do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Instruction set of the kernels.
    pub isa: String,
    /// What the operands of products were rounded to.
    #[serde(default = "f32_name")]
    pub dtype: String,
    /// Whether the CPU multiplied those by instructions of its own.
    #[serde(default = "yes")]
    pub native: bool,
    /// Ranks of the run, of which the first recorded.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Workers that recorded.
    pub workers: usize,
    /// Workers that the step was cut into tiles for.
    pub tiles_for: usize,
    /// Sizes of blocks that it was cut by; by default those from before there was a choice.
    #[serde(default)]
    pub blocking: Sizes,
    /// Whether the backward pass made activations again.
    #[serde(default)]
    pub recompute: bool,
    /// The optimizer; by default that from before there was a choice.
    #[serde(default = "adamw_name")]
    pub optimizer: String,
    /// CPUs that the process could use.
    pub cpus: usize,
    /// Steps that the run had done before the first one recorded.
    pub steps_before: u64,
    /// Steps recorded.
    pub steps: u64,
    /// Operations of tiles that found no room in the buffers.
    pub lost: u64,
    /// What was measured.
    pub costs: Costs,
}

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// A step from its beginning to its end, the median.
    pub step_ns: f64,
    /// From the end of a tile to the begin of the next of the worker's own.
    pub dispatch_ns: f64,
    /// The same for a tile that is another worker's.
    pub steal_ns: f64,
    /// From the tile that makes another ready to the begin of that on a worker that waits.
    pub wake_ns: f64,
    /// From the call of the engine to a worker's first tile.
    pub start_ns: f64,
    /// From the last tile of a run to the return of the call.
    pub end_ns: f64,
    /// What the training thread does in a step outside those calls.
    pub main_ns: f64,
    /// What it waits for batches in a step.
    pub data_ns: f64,
    /// Bytes a nanosecond that `cpus` threads read and write in memory together.
    pub memory_gb_per_s: f64,
}

impl About {
    /// The shape of a micro-batch.
    #[must_use]
    pub fn batch(&self) -> BatchShape {
        BatchShape {
            sequences: self.batch_size,
            tokens: self.block_size.unwrap_or(self.model.block_size),
        }
    }

    /// Tokens of a step.
    #[must_use]
    pub fn tokens(&self) -> f64 {
        let BatchShape { sequences, tokens } = self.batch();
        sequences as f64 * tokens as f64 * self.gradient_accumulation_steps as f64
    }

    /// What the steps were planned for.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.recompute { Mode::Recompute } else { Mode::Train }
    }

    /// The kernels, if this program knows them and the CPU has them.
    #[must_use]
    pub fn kernels(&self) -> Option<&'static Kernels> {
        let dtype = self.dtype.parse().ok()?;
        let kernels = Kernels::for_isa(self.isa.parse().ok()?)?;
        let kernels = if self.native { kernels.with_dtype(dtype) } else { kernels.converting() };
        (kernels.is_native() == self.native).then_some(kernels)
    }

    /// What kernels recorded, in words.
    #[must_use]
    pub fn kernel_names(&self) -> String {
        match (self.isa.parse(), self.dtype.parse()) {
            (Ok(isa), Ok(dtype)) => KernelSet { isa, dtype, is_native: self.native }.to_string(),
            _ => format!("{}, {}", self.isa, self.dtype),
        }
    }
}

/// For traces from before there was a choice.
const fn yes() -> bool {
    true
}

/// As [`yes`].
const fn one() -> usize {
    1
}

/// As [`yes`].
fn adamw_name() -> String {
    OptimizerKind::AdamW.name().to_owned()
}

/// As [`yes`].
fn f32_name() -> String {
    Dtype::F32.name().to_owned()
}
