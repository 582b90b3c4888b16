//! Models of Hugging Face's `transformers`: folders in ([`import`]) and out ([`export`]).
//!
//! ```text
//! config.json                     architecture and sizes                  (config)
//! model.safetensors               the weights, or                         (weights)
//! model.safetensors.index.json    which of several .safetensors files has which tensor
//! tokenizer.json                  the tokenizer
//! ```
//!
//! Weights are mapped and go tensor by tensor into or out of the one arena of `f32`; every name, shape
//! and size is checked before anything is written. What this program cannot compute is refused,
//! never dropped: an unknown architecture, an option it lacks, a tensor too many.

mod config;
mod export;
mod import;
mod weights;

pub use export::{ExportSettings, export};
pub use import::import;
pub use weights::Element;

/// File that describes the model.
pub(crate) const CONFIG: &str = "config.json";
/// File of the weights.
const WEIGHTS: &str = "model.safetensors";
/// File that says which of several files of weights has which tensor.
const INDEX: &str = "model.safetensors.index.json";
