//! `config.json`: the architecture and its sizes, in `transformers`' words.
//!
//! Fields that change what a model computes are all read, with `transformers`' defaults where they are
//! absent; a value that this program does not compute is an error that names it. Fields about
//! generation or training on other machines are left alone.

mod fields;
mod gpt2;
mod llama;
mod nanochat;
mod rope;

use core::fmt::Display;
use std::path::Path;

use cllm_core::ModelConfig;
use serde_json::Value;

use super::CONFIG;
use crate::error::{Error, Result};
use crate::exchange::Family;
use crate::files;
use llama::Kind;

/// The model that the `config.json` of `dir` describes.
///
/// # Errors
/// Names the file and the field: missing, of another architecture, or asking for what this
/// program does not compute.
pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join(CONFIG);
    let bad = |what: &dyn Display| Error::failure(format!("{}: {what}", path.display()));
    let text = files::read(&path).map_err(|e| Error::io("read", &path, &e))?;
    let json: Value = crate::json::from_slice(&text).map_err(|e| bad(&e))?;
    model(json).map_err(|e| bad(&e))
}

/// The model that a config describes.
fn model(json: Value) -> core::result::Result<ModelConfig, String> {
    let Some(model_type) = json["model_type"].as_str() else {
        return Err("no model_type: not the config of a language model".to_owned());
    };
    let (config, words) = match Kind::of(model_type) {
        Some(kind) => (llama::read(kind, &json)?, &llama::WORDS[..]),
        None if model_type == "gpt2" => (gpt2::read(json)?, &gpt2::WORDS[..]),
        None if model_type == "nanochat" => (nanochat::read(&json)?, &llama::WORDS[..]),
        None => {
            return Err(format!(
                "model_type {model_type:?} is not an architecture that can be imported; gpt2, llama, \
                 mistral, nanochat, qwen2 and qwen3 are"
            ));
        }
    };
    config.validate().map_err(|e| in_words_of_file(&e.to_string(), words))?;
    Ok(config)
}

/// A message with the file's names of fields.
fn in_words_of_file(text: &str, words: &[(&str, &str)]) -> String {
    words.iter().fold(text.to_owned(), |text, (ours, theirs)| text.replace(ours, theirs))
}

/// Says of a field that its value cannot be computed.
fn unsupported(field: &str, value: &dyn Display, instead: &dyn Display) -> String {
    format!("{field} {value} is not supported; only {instead} is")
}

/// As few digits as tell an `f32`.
fn digits(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x.into())
}

/// The tokens around a model's texts.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) begin: Option<u32>,
    /// Those that end a text: none, one, or more.
    pub(super) ends: Vec<u32>,
    /// What fills short texts of a batch up.
    pub(super) pad: Option<u32>,
}

/// One id as it is, several as a list, none as null: so `transformers` has it.
pub(super) fn ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

/// The `config.json` of a model of the family, whose texts have these tokens around them, with weights
/// of `dtype`.
///
/// # Errors
/// `transformers` has no class for it, in words.
pub(super) fn text(
    config: &ModelConfig,
    family: Family,
    around: &Around,
    dtype: &str,
) -> core::result::Result<String, String> {
    let mut json = match family {
        Family::Gpt2 => gpt2::json(config),
        Family::Llama | Family::Qwen2 | Family::Qwen3 => llama::json(config, family)?,
    };
    json["bos_token_id"] = around.begin.into();
    json["eos_token_id"] = ids(&around.ends);
    if let Some(pad) = around.pad {
        json["pad_token_id"] = pad.into();
    }
    json["torch_dtype"] = dtype.into();
    let text = serde_json::to_string_pretty(&json);
    Ok(text.map_err(|e| format!("cannot write {CONFIG}: {e}"))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use cllm_core::{Activation, Architecture};

    /// The tokens around texts that end with one.
    pub(super) fn around() -> Around {
        Around { begin: None, ends: vec![7], pad: None }
    }

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
        let text = text(&config, Family::Gpt2, &around(), "float32").unwrap();
        assert_eq!(read_text(&text).unwrap(), config);
        let squared = Architecture { activation: Activation::Relu2, ..Architecture::GPT2 };
        let squared = ModelConfig { arch: squared, ..config };
        let other = super::text(&squared, Family::Gpt2, &Around::default(), "float32").unwrap();
        assert!(other.contains("\"activation_function\": \"relu2\""), "{other}");
        assert_eq!(read_text(&other).unwrap(), squared);
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
            (r#"{"model_type": "gemma"}"#, "model_type \"gemma\" is not an architecture"),
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
