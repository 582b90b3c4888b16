//! `config.json`: the architecture and its sizes, in `transformers`' words.
//!
//! Fields that change what a model computes are all read, with `transformers`' defaults where they are
//! absent; a value that this program does not compute is an error that names it. Fields about
//! generation or training on other machines are left alone.

use core::fmt::Display;
use std::fs;
use std::path::Path;

use cllm_core::{Architecture, ModelConfig};
use serde::Deserialize;
use serde_json::{Value, json};

use super::CONFIG;
use crate::error::{Error, Result};

/// The activation that the core computes: GELU by tanh, which has two names.
const GELU: [&str; 2] = ["gelu_new", "gelu_pytorch_tanh"];

/// What of GPT-2's `config.json` (`GPT2Config` of `transformers`) decides what is computed.
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

/// The model that the `config.json` of `dir` describes.
///
/// Its dropout is that of the residual branches: a model has one here.
///
/// # Errors
/// Names the file and the field: missing, of another architecture, or asking for what this
/// program does not compute.
pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join(CONFIG);
    let bad = |what: &dyn Display| Error::failure(format!("{}: {what}", path.display()));
    let text = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
    match json["model_type"].as_str() {
        Some("gpt2") => {}
        Some(other) => {
            return Err(bad(&format_args!(
                "model_type {other:?} is not an architecture that can be imported; gpt2 is"
            )));
        }
        None => return Err(bad(&"no model_type: not the config of a language model")),
    }
    let gpt2: Gpt2 = serde_json::from_value(json).map_err(|e| bad(&e))?;
    let config = gpt2.model().map_err(|e| bad(&e))?;
    config.validate().map_err(|e| bad(&in_words_of_file(&e.to_string())))?;
    Ok(config)
}

/// A message with the file's names of fields.
fn in_words_of_file(text: &str) -> String {
    let names = [("d_model", "n_embd"), ("block_size", "n_positions"), ("d_ff", "n_inner")];
    let names =
        names.into_iter().chain([("norm_eps", "layer_norm_epsilon"), ("dropout", "resid_pdrop")]);
    names.fold(text.to_owned(), |text, (ours, theirs)| text.replace(ours, theirs))
}

/// The `config.json` of a model whose texts end with `end_of_text`, with weights of `dtype`.
pub(super) fn text(config: &ModelConfig, end_of_text: Option<u32>, dtype: &str) -> Result<String> {
    // As few digits as tell an `f32`.
    let digits = |x: f32| x.to_string().parse::<f64>().unwrap_or(x.into());
    let json = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.d_ff,
        "activation_function": GELU[0],
        "layer_norm_epsilon": digits(config.norm_eps),
        "tie_word_embeddings": config.tied,
        "resid_pdrop": digits(config.dropout),
        "embd_pdrop": digits(config.dropout),
        "attn_pdrop": digits(config.dropout),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
    });
    let text = serde_json::to_string_pretty(&json);
    Ok(text.map_err(|e| Error::failure(format!("cannot write {CONFIG}: {e}")))? + "\n")
}

impl Gpt2 {
    fn model(&self) -> core::result::Result<ModelConfig, String> {
        let unsupported = |field: &str, value: &dyn Display, instead: &str| {
            Err(format!("{field} {value} is not supported; only {instead} is"))
        };
        if !GELU.contains(&self.activation_function.as_str()) {
            let value = format!("{:?}", self.activation_function);
            return unsupported("activation_function", &value, "\"gelu_new\"");
        }
        for (field, value, supported) in [
            ("scale_attn_weights", self.scale_attn_weights, true),
            ("scale_attn_by_inverse_layer_idx", self.scale_attn_by_inverse_layer_idx, false),
            ("add_cross_attention", self.add_cross_attention, false),
        ] {
            if value != supported {
                return unsupported(field, &value, &supported.to_string());
            }
        }
        Ok(ModelConfig {
            vocab_size: self.vocab_size,
            block_size: self.n_positions,
            n_layer: self.n_layer,
            n_head: self.n_head,
            d_model: self.n_embd,
            d_ff: self.n_inner.unwrap_or(self.n_embd.saturating_mul(4)),
            bias: true,
            tied: self.tie_word_embeddings,
            dropout: self.resid_pdrop.unwrap_or(0.0),
            norm_eps: self.layer_norm_epsilon,
            arch: Architecture::GPT2,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<ModelConfig> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), text).unwrap();
        read(dir.path())
    }

    #[test]
    fn absent_fields_have_transformers_defaults() {
        let config = read_text(r#"{"model_type": "gpt2", "n_layer": 3}"#).unwrap();
        assert_eq!((config.vocab_size, config.block_size), (50_257, 1_024));
        assert_eq!((config.n_layer, config.n_head, config.d_ff), (3, 12, 3_072));
        assert!(config.tied && config.bias);
        assert_eq!((config.dropout, config.norm_eps), (0.1, 1e-5));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = ModelConfig {
            vocab_size: 61,
            block_size: 20,
            n_layer: 2,
            n_head: 3,
            d_model: 12,
            d_ff: 40,
            bias: true,
            tied: false,
            dropout: 0.25,
            norm_eps: 1e-6,
            arch: Architecture::GPT2,
        };
        let text = text(&config, Some(7), "float32").unwrap();
        assert_eq!(read_text(&text).unwrap(), config);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["eos_token_id"], &json["n_inner"]), (&7.into(), &40.into()));
    }

    #[test]
    fn fields_that_compute_nothing_may_be_anything() {
        let text = r#"{"model_type": "gpt2", "architectures": null, "eos_token_id": [5, 6],
                       "attn_pdrop": null, "resid_pdrop": null, "summary_type": 3}"#;
        assert_eq!(read_text(text).unwrap().dropout, 0.0);
    }

    #[test]
    fn what_cannot_be_computed_is_named() {
        for (text, words) in [
            (r#"{"model_type": "llama"}"#, "model_type \"llama\" is not an architecture"),
            (r#"{"n_layer": 3}"#, "no model_type"),
            (r#"{"model_type": "gpt2", "#, "EOF while parsing"),
            (r#"{"model_type": "gpt2", "n_layer": -1}"#, "invalid value"),
            (r#"{"model_type": "gpt2", "n_head": 7}"#, "n_embd 768 is not a multiple of n_head 7"),
            (
                r#"{"model_type": "gpt2", "activation_function": "relu"}"#,
                "\"relu\" is not supported",
            ),
            (r#"{"model_type": "gpt2", "scale_attn_weights": false}"#, "only true is"),
            (r#"{"model_type": "gpt2", "add_cross_attention": true}"#, "only false is"),
        ] {
            let error = read_text(text).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(CONFIG), "{text}: {error}");
        }
    }
}
