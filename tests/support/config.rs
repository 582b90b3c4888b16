//! Models that several tests train.

use cllm_core::ModelConfig;

/// Three layers and dropout, small enough to be trained many times over.
pub(crate) const SMALL: ModelConfig = ModelConfig {
    vocab_size: 300,
    block_size: 40,
    n_layer: 3,
    n_head: 4,
    d_model: 64,
    d_ff: 160,
    bias: true,
    tied: true,
    dropout: 0.1,
    norm_eps: 1e-5,
};
