//! Models of Hugging Face's `transformers`: folders in ([`import`]) and out ([`export`]), of GPT-2 and of
//! the Llama family (Llama, Mistral, Qwen2, Qwen3); of nanochat in alone.
//!
//! ```text
//! config.json                     architecture and sizes                  (config)
//! generation_config.json          what ends its texts, if it is more than one token
//! model.safetensors               the weights, or                         (weights, names)
//! model.safetensors.index.json    which of several .safetensors files has which tensor
//! tokenizer.json                  the tokenizer, or                       (merges)
//! vocab.json, merges.txt          its older form
//! ```
//!
//! Weights are mapped and go tensor by tensor into or out of the one arena of `f32`; every name, shape
//! and size is checked before anything is written. What this program cannot compute is refused,
//! never dropped: an unknown architecture, an option it lacks, a tensor too many.

mod config;
mod export;
mod import;
mod merges;
mod names;
mod nanochat;
pub(crate) mod weights;

pub use export::export;
pub use import::import;

use std::path::Path;

use cllm_core::ModelConfig;

use crate::error::Result;
use crate::inspect::Tensor;
use weights::Mapped;

/// Tensors of a `.safetensors` file, or of all that a folder has: name, shape and type.
///
/// # Errors
/// Names the file that is missing or damaged.
pub fn list(path: &Path) -> Result<Vec<Tensor>> {
    let mapped = if path.is_dir() { Mapped::open(path) } else { Mapped::file(path) }?;
    let tensors = mapped.tensors()?;
    let list = tensors.list().map(|(name, shape, kind)| Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind: format!("{kind:?}"),
        stats: None,
    });
    Ok(list.collect())
}

/// The model that a folder describes.
///
/// # Errors
/// As [`import`], of its config alone.
pub fn model(dir: &Path) -> Result<ModelConfig> {
    config::read(dir)
}

/// File that describes the model.
pub(crate) const CONFIG: &str = "config.json";
/// File of the weights.
const WEIGHTS: &str = "model.safetensors";
/// File that says which of several files of weights has which tensor.
const INDEX: &str = "model.safetensors.index.json";
