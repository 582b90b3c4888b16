//! A model of bytes, and memory for training it on any instruction set: what programs without std have in common.

use cllm_core::{Architecture, BatchShape, Mode, ModelConfig, Sizes};

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

/// Lengths of what such training wants on the most demanding instruction set, with up to so many workers: which
/// instruction set there is, the program finds out when it runs.
pub(crate) const fn sizes(workers: usize) -> Sizes {
    let sizes = Sizes::on_any(&CONFIG, SHAPE, workers, Mode::Train);
    // Two MiB for the image's static memory: a model that takes more is not compiled.
    sizes.assert_fits(2 << 20);
    sizes
}
