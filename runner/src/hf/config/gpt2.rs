//! GPT-2's `config.json`: `GPT2Config` of `transformers`.

use core::fmt::Display;

use cllm_core::{Activation, Architecture, ModelConfig};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{digits, unsupported};

/// GELU by tanh, which has two names.
const GELU: [&str; 2] = ["gelu_new", "gelu_pytorch_tanh"];
/// The square of what is positive.
const RELU2: &str = "relu2";

/// What of it decides what is computed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
struct Gpt2 {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f32,
    tie_word_embeddings: bool,
    resid_pdrop: Option<f32>,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    add_cross_attention: bool,
}

impl Default for Gpt2 {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1_024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: GELU[0].to_owned(),
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            resid_pdrop: Some(0.1),
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            add_cross_attention: false,
        }
    }
}

/// This program's names of what may be wrong with a model, and the file's.
pub(super) const WORDS: [(&str, &str); 5] = [
    ("d_model", "n_embd"),
    ("block_size", "n_positions"),
    ("d_ff", "n_inner"),
    ("norm_eps", "layer_norm_epsilon"),
    ("dropout", "resid_pdrop"),
];

/// The model. Its dropout is that of the residual branches: a model has one here.
pub(super) fn read(json: Value) -> Result<ModelConfig, String> {
    let gpt2: Gpt2 = serde_json::from_value(json).map_err(|e| e.to_string())?;
    let activation = match gpt2.activation_function.as_str() {
        RELU2 => Activation::Relu2,
        name if GELU.contains(&name) => Activation::Gelu,
        name => {
            return Err(format!(
                "activation_function {name:?} is not supported; only \"gelu_new\" and \"relu2\" are"
            ));
        }
    };
    for (field, value, supported) in [
        ("scale_attn_weights", gpt2.scale_attn_weights, true),
        ("scale_attn_by_inverse_layer_idx", gpt2.scale_attn_by_inverse_layer_idx, false),
        ("add_cross_attention", gpt2.add_cross_attention, false),
    ] {
        if value != supported {
            return Err(unsupported(field, &value, &supported as &dyn Display));
        }
    }
    Ok(ModelConfig {
        vocab_size: gpt2.vocab_size,
        block_size: gpt2.n_positions,
        n_layer: gpt2.n_layer,
        n_head: gpt2.n_head,
        d_model: gpt2.n_embd,
        d_ff: gpt2.n_inner.unwrap_or(gpt2.n_embd.saturating_mul(4)),
        bias: true,
        tied: gpt2.tie_word_embeddings,
        dropout: gpt2.resid_pdrop.unwrap_or(0.0),
        norm_eps: gpt2.layer_norm_epsilon,
        arch: Architecture { activation, ..Architecture::GPT2 },
    })
}

/// What is written.
pub(super) fn json(config: &ModelConfig) -> Value {
    let activation = if config.arch.activation == Activation::Relu2 { RELU2 } else { GELU[0] };
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.d_ff,
        "activation_function": activation,
        "layer_norm_epsilon": digits(config.norm_eps),
        "tie_word_embeddings": config.tied,
        "resid_pdrop": digits(config.dropout),
        "embd_pdrop": digits(config.dropout),
        "attn_pdrop": digits(config.dropout),
    })
}
