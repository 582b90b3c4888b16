//! The `config.json` of nanochat: `NanoChatConfig`.
//!
//! Its embedding is normed, and its norms have no gains: [`super::super::nanochat`] makes one model of
//! both. Its dropout is of attention alone, and counts in training only.

use cllm_core::{Activation, Architecture, ModelConfig, Positions};
use serde_json::Value;

use super::fields::Fields;
use super::{rope, unsupported};

/// The activation that the class is made with.
const RELU2: &str = "relu2";

/// The model.
pub(super) fn read(json: &Value) -> Result<ModelConfig, String> {
    let fields = Fields::new(json);
    let activation: String = fields.or("hidden_act", RELU2.to_owned())?;
    if activation != RELU2 {
        return Err(unsupported("hidden_act", &format!("{activation:?}"), &"\"relu2\""));
    }
    // A tied table would be normed on the one side, and not on the other.
    for field in ["attention_bias", "tie_word_embeddings"] {
        if fields.or(field, false)? {
            return Err(unsupported(field, &true, &false));
        }
    }
    let d_model: usize = fields.or("hidden_size", 768)?;
    let n_head: usize = fields.or("num_attention_heads", 6)?;
    let kv_heads: Option<usize> = fields.optional("num_key_value_heads", None)?;
    let head_size: Option<usize> = fields.optional("head_dim", None)?;
    let block_size = fields.or("max_position_embeddings", 2_048)?;
    let cap: Option<f32> = fields.optional("final_logit_softcapping", Some(15.0))?;
    Ok(ModelConfig {
        vocab_size: fields.or("vocab_size", 50_304)?,
        block_size,
        n_layer: fields.or("num_hidden_layers", 12)?,
        n_head,
        d_model,
        d_ff: fields.or("intermediate_size", 8_192)?,
        bias: false,
        tied: false,
        dropout: 0.0,
        norm_eps: fields.or("rms_norm_eps", 1e-6)?,
        arch: Architecture {
            positions: Positions::Rotary(rope::read(fields, block_size)?),
            activation: Activation::Relu2,
            n_kv_head: kv_heads.filter(|heads| *heads != n_head),
            head_size: head_size.filter(|size| size.checked_mul(n_head) != Some(d_model)),
            qk_norm: true,
            logit_softcap: cap,
            ..Architecture::LLAMA
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use serde_json::json;

    #[test]
    fn absent_fields_have_transformers_defaults() {
        let config = model(json!({ "model_type": "nanochat" })).unwrap();
        assert_eq!((config.n_layer, config.n_head, config.d_ff), (12, 6, 8_192));
        assert_eq!((config.bias, config.tied, config.arch.qk_norm), (false, false, true));
        assert_eq!(config.arch.logit_softcap, Some(15.0));
        let none = json!({ "model_type": "nanochat", "final_logit_softcapping": null });
        assert_eq!(model(none).unwrap().arch.logit_softcap, None);
    }

    #[test]
    fn what_cannot_be_computed_is_named() {
        for (field, value, words) in [
            ("hidden_act", json!("silu"), "hidden_act \"silu\" is not supported"),
            ("attention_bias", json!(true), "attention_bias true is not supported"),
            ("tie_word_embeddings", json!(true), "tie_word_embeddings true is not supported"),
            ("final_logit_softcapping", json!(-1.0), "final_logit_softcapping is -1"),
            ("num_attention_heads", json!(7), "hidden_size 768 is not a multiple of"),
        ] {
            let mut json = json!({ "model_type": "nanochat" });
            json[field] = value;
            let error = model(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
