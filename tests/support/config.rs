//! Models that several tests train.

use cllm_core::{Activation, Architecture, ModelConfig};

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
    arch: Architecture::GPT2,
};

/// Of sizes that are whole in nothing: tensors of more than a tile of the update, of blocks and a half of 8-bit
/// moments, and of less than one.
pub(crate) const ODD: ModelConfig = ModelConfig {
    vocab_size: 61,
    block_size: 40,
    n_layer: 2,
    n_head: 3,
    d_model: 24,
    d_ff: 50,
    bias: true,
    tied: false,
    dropout: 0.1,
    norm_eps: 1e-5,
    arch: Architecture::GPT2,
};

/// [`SMALL`] with squared ReLU, a head of its own, and logits that are capped where they are.
pub(crate) const CAPPED: ModelConfig = ModelConfig {
    tied: false,
    arch: Architecture {
        activation: Activation::Relu2,
        logit_softcap: Some(0.5),
        ..Architecture::GPT2
    },
    ..SMALL
};

/// The same with embeddings of previous tokens, of which there are none in a batch of sequences of one, and all of them
/// multiplied.
pub(crate) const SHIFTED: ModelConfig = ModelConfig {
    arch: Architecture { previous_tokens: 3, embedding_scale: 3.0, ..CAPPED.arch },
    ..CAPPED
};

/// [`SMALL`] of the Llama family: heads that share keys and values, together wider than the model,
/// with norms of their own, and biases of queries, keys and values alone.
pub(crate) const LLAMA: ModelConfig = ModelConfig {
    n_layer: 2,
    n_head: 6,
    d_ff: 96,
    bias: false,
    arch: Architecture {
        n_kv_head: Some(2),
        head_size: Some(14),
        qkv_bias: true,
        qk_norm: true,
        window: Some(19),
        ..Architecture::LLAMA
    },
    ..SMALL
};
