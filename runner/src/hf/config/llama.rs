//! The `config.json` of Llama, Mistral, Qwen2 and Qwen3: `LlamaConfig`, `MistralConfig`, `Qwen2Config`
//! and `Qwen3Config`.
//!
//! Their dropout is of attention alone, and counts in training only: a model that is imported has none,
//! and one that is exported has its own there. A sliding window of some layers alone makes the model's
//! sequences as short, for within a window all attention is full.

use cllm_core::{Architecture, ModelConfig, Positions};
use serde_json::{Value, json};

use super::fields::Fields;
use super::{digits, rope, unsupported};
use crate::exchange::Family;

/// The activation of the gate, which has two names.
const SILU: [&str; 2] = ["silu", "swish"];

/// Whose config it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// What each of them has where the file has nothing.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    /// Columns of a head; `None`: its share of the width.
    head_dim: Option<usize>,
}

/// This program's names of what may be wrong with a model, and the file's.
pub(super) const WORDS: [(&str, &str); 12] = [
    ("d_model", "hidden_size"),
    ("window is", "sliding_window is"),
    ("logit_softcap is", "final_logit_softcapping is"),
    ("block_size", "max_position_embeddings"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_kv_head", "num_key_value_heads"),
    ("head_size", "head_dim"),
    ("d_ff", "intermediate_size"),
    ("norm_eps", "rms_norm_eps"),
    ("the theta of rotary positions", "rope_theta"),
    ("the factor of rotary scaling", "the factor of rope_scaling"),
];

impl Kind {
    /// The kind of a `model_type`.
    pub(super) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(Self::Llama),
            "mistral" => Some(Self::Mistral),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    fn defaults(self) -> Defaults {
        match self {
            Self::Llama => Defaults {
                vocab_size: 32_000,
                intermediate_size: 11_008,
                num_key_value_heads: None,
                max_position_embeddings: 2_048,
                head_dim: None,
            },
            Self::Mistral => Defaults {
                vocab_size: 32_000,
                intermediate_size: 14_336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 4_096 * 32,
                head_dim: None,
            },
            Self::Qwen2 | Self::Qwen3 => Defaults {
                vocab_size: 151_936,
                intermediate_size: 22_016,
                num_key_value_heads: Some(32),
                max_position_embeddings: 32_768,
                head_dim: (self == Self::Qwen3).then_some(128),
            },
        }
    }

    /// Whether there are biases in every matrix; Qwen2's are of queries, keys and values alone.
    fn has_biases(self, fields: Fields<'_>) -> Result<bool, String> {
        let attention = || fields.or("attention_bias", false);
        match self {
            Self::Mistral | Self::Qwen2 => Ok(false),
            Self::Qwen3 if attention()? => Err(unsupported("attention_bias", &true, &false)),
            Self::Qwen3 => Ok(false),
            Self::Llama => {
                let (attention, mlp) = (attention()?, fields.or("mlp_bias", false)?);
                if attention == mlp {
                    return Ok(attention);
                }
                Err(format!(
                    "attention_bias {attention} with mlp_bias {mlp} is not supported; both true is, \
                     and both false"
                ))
            }
        }
    }

    /// Tokens that a query sees, if not all of its sequence, and whether that is so in all layers.
    fn window(self, fields: Fields<'_>, layers: usize) -> Result<Option<(usize, bool)>, String> {
        let in_layers = match self {
            Self::Llama => 0,
            Self::Mistral => layers,
            _ if !fields.or("use_sliding_window", false)? => 0,
            Self::Qwen2 | Self::Qwen3 => match fields.optional("layer_types", None)? {
                Some::<Vec<String>>(kinds) => {
                    kinds.iter().filter(|kind| *kind == "sliding_attention").count()
                }
                None => layers.saturating_sub(fields.or("max_window_layers", 28)?),
            },
        };
        if in_layers == 0 {
            return Ok(None);
        }
        let window = fields.optional("sliding_window", Some(4_096))?;
        Ok(window.map(|window| (window, in_layers == layers)))
    }
}

/// The model.
pub(super) fn read(kind: Kind, json: &Value) -> Result<ModelConfig, String> {
    let (fields, defaults) = (Fields::new(json), kind.defaults());
    let activation: String = fields.or("hidden_act", SILU[0].to_owned())?;
    if !SILU.contains(&activation.as_str()) {
        return Err(unsupported("hidden_act", &format!("{activation:?}"), &"\"silu\""));
    }
    if kind == Kind::Llama {
        let slices = fields.optional("pretraining_tp", None)?.unwrap_or(1_u64);
        if slices != 1 {
            return Err(unsupported("pretraining_tp", &slices, &1));
        }
    }
    let d_model: usize = fields.or("hidden_size", 4_096)?;
    let n_layer = fields.or("num_hidden_layers", 32)?;
    let n_head: usize = fields.or("num_attention_heads", 32)?;
    let kv_heads = fields.optional("num_key_value_heads", defaults.num_key_value_heads)?;
    let head_size: Option<usize> = match defaults.head_dim {
        // Qwen3's may not be null.
        Some(size) => Some(fields.or("head_dim", size)?),
        None => fields.optional("head_dim", None)?,
    };
    let is_share = |size: &usize| size.checked_mul(n_head) == Some(d_model);
    let length = fields.or("max_position_embeddings", defaults.max_position_embeddings)?;
    let (bound, window) = match kind.window(fields, n_layer)? {
        Some((window, true)) => (length, (window < length).then_some(window)),
        Some((window, false)) => (window.min(length), None),
        None => (length, None),
    };
    Ok(ModelConfig {
        vocab_size: fields.or("vocab_size", defaults.vocab_size)?,
        block_size: bound,
        n_layer,
        n_head,
        d_model,
        d_ff: fields.or("intermediate_size", defaults.intermediate_size)?,
        bias: kind.has_biases(fields)?,
        tied: fields.or("tie_word_embeddings", false)?,
        dropout: 0.0,
        norm_eps: fields.or("rms_norm_eps", 1e-6)?,
        arch: Architecture {
            positions: Positions::Rotary(rope::read(fields, length)?),
            n_kv_head: kv_heads.filter(|heads| *heads != n_head),
            head_size: head_size.filter(|size| !is_share(size)),
            qkv_bias: kind == Kind::Qwen2,
            qk_norm: kind == Kind::Qwen3,
            window,
            ..Architecture::LLAMA
        },
    })
}

/// What is written for a model of the family, which is not GPT-2's.
///
/// # Errors
/// `transformers` has no class for it.
pub(super) fn json(config: &ModelConfig, family: Family) -> Result<Value, String> {
    let shares = config.d_model.is_multiple_of(config.n_head);
    let (class, kind) = match family {
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        _ if shares && config.arch.window.is_none() => ("LlamaForCausalLM", "llama"),
        // Llama's class has no window, and wants a width that the heads divide even where they do not
        // share it.
        _ if !config.bias => ("MistralForCausalLM", "mistral"),
        _ => {
            let other = match config.arch.window {
                Some(window) => format!("and a window of {window} tokens"),
                None => {
                    let (width, heads) = (config.d_model, config.n_head);
                    format!("of width {width} and {heads} heads, which do not divide it")
                }
            };
            return Err(format!("transformers has no model with biases {other}"));
        }
    };
    let mut json = json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_size(),
        "hidden_act": SILU[0],
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": digits(config.norm_eps),
        "tie_word_embeddings": config.tied,
        "attention_dropout": digits(config.dropout),
    });
    match kind {
        "llama" => {
            json["attention_bias"] = config.bias.into();
            json["mlp_bias"] = config.bias.into();
        }
        "mistral" => json["sliding_window"] = config.arch.window.into(),
        _ => {
            json["use_sliding_window"] = config.arch.window.is_some().into();
            if let Some(window) = config.arch.window {
                json["sliding_window"] = window.into();
                // In all layers from this one on.
                json["max_window_layers"] = 0.into();
            }
        }
    }
    if family == Family::Qwen3 {
        json["attention_bias"] = false.into();
    }
    if let Some(rotary) = config.arch.rotary() {
        json["rope_theta"] = digits(rotary.theta).into();
        json["rope_scaling"] = rope::scaling(rotary.scaling);
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::super::tests::around;
    use super::super::{Around, model, text};
    use super::*;
    use cllm_core::{Rotary, Scaling};

    /// The model of a `model_type` with these fields.
    fn of(model_type: &str, fields: Value) -> Result<ModelConfig, String> {
        let mut json = fields;
        json["model_type"] = model_type.into();
        model(json)
    }

    fn rotary(model_type: &str, fields: Value) -> Rotary {
        of(model_type, fields).unwrap().arch.rotary().unwrap()
    }

    #[test]
    fn absent_fields_have_transformers_defaults() {
        let llama = ModelConfig {
            vocab_size: 32_000,
            block_size: 2_048,
            n_layer: 32,
            n_head: 32,
            d_model: 4_096,
            d_ff: 11_008,
            bias: false,
            tied: false,
            dropout: 0.0,
            norm_eps: 1e-6,
            arch: Architecture::LLAMA,
        };
        assert_eq!(of("llama", json!({})).unwrap(), llama);
        let arch = Architecture { n_kv_head: Some(8), window: Some(4_096), ..Architecture::LLAMA };
        let mistral = ModelConfig { block_size: 4_096 * 32, d_ff: 14_336, arch, ..llama };
        assert_eq!(of("mistral", json!({})).unwrap(), mistral);
        let arch = Architecture { qkv_bias: true, ..Architecture::LLAMA };
        let sizes = (151_936, 32_768, 22_016);
        let (vocab_size, block_size, d_ff) = sizes;
        let qwen2 = ModelConfig { vocab_size, block_size, d_ff, arch, ..llama };
        assert_eq!(of("qwen2", json!({})).unwrap(), qwen2);
        // Heads of 128 in any width.
        let arch = Architecture { qk_norm: true, ..Architecture::LLAMA };
        let qwen3 = ModelConfig { arch, ..qwen2 };
        assert_eq!(of("qwen3", json!({})).unwrap(), qwen3);
        let arch = Architecture { head_size: Some(128), ..arch };
        let narrow = ModelConfig { d_model: 1_024, arch, ..qwen3 };
        assert_eq!(of("qwen3", json!({ "hidden_size": 1_024 })).unwrap(), narrow);
    }

    #[test]
    fn windows_of_all_layers_are_the_models_and_others_bound_its_length() {
        let read = |kind, fields| {
            let config = of(kind, fields).unwrap();
            (config.block_size, config.arch.window)
        };
        const LONG: usize = 4_096 * 32;
        assert_eq!(read("mistral", json!({ "sliding_window": null })), (LONG, None));
        assert_eq!(read("mistral", json!({ "sliding_window": 1 << 20 })), (LONG, None));
        assert_eq!(read("mistral", json!({ "sliding_window": 100 })), (LONG, Some(100)));
        assert_eq!(read("llama", json!({ "sliding_window": 100 })), (2_048, None));
        assert_eq!(read("qwen2", json!({ "sliding_window": 100 })), (32_768, None));
        let used = json!({ "sliding_window": 100, "use_sliding_window": true });
        // In the last 4 of 32 layers.
        assert_eq!(read("qwen2", used.clone()), (100, None));
        assert_eq!(read("qwen3", used.clone()), (100, None));
        assert_eq!(read("qwen3", json!({ "sliding_window": 100 })), (32_768, None));
        let with = |field: &str, value: Value| {
            let mut json = used.clone();
            json[field] = value;
            json
        };
        assert_eq!(read("qwen2", with("max_window_layers", json!(0))), (32_768, Some(100)));
        assert_eq!(read("qwen2", with("max_window_layers", json!(32))), (32_768, None));
        let layers = |kind: &str| json!(vec![kind; 32]);
        assert_eq!(read("qwen2", with("layer_types", layers("full_attention"))), (32_768, None));
        let sliding = with("layer_types", layers("sliding_attention"));
        assert_eq!(read("qwen3", sliding), (32_768, Some(100)));
        assert_eq!(read("qwen2", with("layer_types", json!(["sliding_attention"]))), (100, None));
        assert_eq!(read("qwen2", with("sliding_window", json!(null))), (32_768, None));
    }

    #[test]
    fn heads_are_as_many_and_as_wide_as_said() {
        let heads = |fields| {
            let arch = of("llama", fields).unwrap().arch;
            (arch.n_kv_head, arch.head_size)
        };
        assert_eq!(heads(json!({ "num_key_value_heads": null, "head_dim": null })), (None, None));
        assert_eq!(heads(json!({ "num_key_value_heads": 32, "head_dim": 128 })), (None, None));
        assert_eq!(heads(json!({ "num_key_value_heads": 4, "head_dim": 64 })), (Some(4), Some(64)));
        assert_eq!(heads(json!({ "hidden_size": 48, "head_dim": 2 })), (None, Some(2)));
    }

    #[test]
    fn angles_are_read_in_both_spellings() {
        let plain = |theta| Rotary { theta, scaling: Scaling::None };
        assert_eq!(rotary("qwen2", json!({ "rope_theta": 1e6, "rope_scaling": null })), plain(1e6));
        let fields = json!({ "rope_theta": 7, "rope_parameters": { "rope_theta": 500000.0 } });
        assert_eq!(rotary("llama", fields), plain(5e5));
        let fields = json!({ "rope_scaling": {}, "rope_parameters": { "rope_type": "default" } });
        assert_eq!(rotary("llama", fields), plain(1e4));
        let linear = Scaling::Linear { factor: 2.5 };
        let fields = json!({ "rope_scaling": { "type": "linear", "factor": 2.5 } });
        assert_eq!(rotary("llama", fields), Rotary { theta: 1e4, scaling: linear });
        let mut llama3 = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
        let scaled = |original| Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original };
        let scaling = |fields| rotary("mistral", fields).scaling;
        assert_eq!(scaling(json!({ "rope_parameters": llama3 })), scaled(8_192));
        let fields = json!({ "rope_scaling": llama3, "original_max_position_embeddings": 99 });
        assert_eq!(scaling(fields), scaled(99));
        // Absent, it is the length: not that of the window.
        llama3.as_object_mut().unwrap().remove("original_max_position_embeddings");
        assert_eq!(scaling(json!({ "rope_scaling": llama3 })), scaled(4_096 * 32));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let scaling = Scaling::Llama3 { factor: 8.1, low: 1.1, high: 4.3, original: 12 };
        let positions = Positions::Rotary(Rotary { theta: 123.4, scaling });
        let arch = Architecture {
            positions,
            n_kv_head: Some(2),
            head_size: Some(6),
            ..Architecture::LLAMA
        };
        let config = ModelConfig {
            vocab_size: 61,
            block_size: 20,
            n_layer: 2,
            n_head: 4,
            d_model: 16,
            d_ff: 40,
            bias: false,
            tied: false,
            dropout: 0.0,
            norm_eps: 1e-6,
            arch,
        };
        let linear = Scaling::Linear { factor: 3.3 };
        let linear = Positions::Rotary(Rotary { theta: 1e6, scaling: linear });
        let plain = Architecture { positions: linear, head_size: None, n_kv_head: None, ..arch };
        let normed = Architecture { qk_norm: true, ..arch };
        for (config, model_type) in [
            (config, "llama"),
            (ModelConfig { bias: true, tied: true, arch: plain, ..config }, "llama"),
            (ModelConfig { d_model: 18, ..config }, "mistral"),
            (ModelConfig { arch: Architecture { window: Some(5), ..arch }, ..config }, "mistral"),
            (ModelConfig { arch: Architecture { window: Some(5), ..normed }, ..config }, "qwen3"),
            (ModelConfig { arch: Architecture { qkv_bias: true, ..arch }, ..config }, "qwen2"),
            (ModelConfig { d_model: 18, arch: normed, ..config }, "qwen3"),
            (ModelConfig { arch: Architecture { head_size: None, ..normed }, ..config }, "qwen3"),
        ] {
            let family = Family::of(&config).unwrap();
            let text = text(&config, family, &around(), "float32").unwrap();
            let json: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["model_type"], model_type);
            assert_eq!(json["head_dim"], config.head_size());
            assert_eq!(
                (&json["eos_token_id"], &json["torch_dtype"]),
                (&7.into(), &"float32".into())
            );
            assert_eq!(model(json).unwrap(), config, "{text}");
        }
        let odd = ModelConfig { d_model: 18, bias: true, ..config };
        assert!(
            text(&odd, Family::Llama, &Around::default(), "float32")
                .unwrap_err()
                .contains("width 18")
        );
        let arch = Architecture { window: Some(5), ..arch };
        let windowed = ModelConfig { bias: true, arch, ..config };
        let refused = text(&windowed, Family::Llama, &Around::default(), "float32").unwrap_err();
        assert!(refused.contains("biases and a window of 5 tokens"), "{refused}");
        // Of its own dropout attention has one there.
        let json = json(&ModelConfig { dropout: 0.25, ..config }, Family::Llama).unwrap();
        assert_eq!(json["attention_dropout"], 0.25);
        assert_eq!(model(json).unwrap(), config);
    }

    #[test]
    fn what_cannot_be_computed_is_named() {
        let scaled = |kind: &str| json!({ "rope_scaling": { "rope_type": kind, "factor": 2.0 } });
        for (model_type, fields, words) in [
            (
                "llama",
                json!({ "hidden_act": "gelu" }),
                "hidden_act \"gelu\" is not supported; only",
            ),
            (
                "llama",
                json!({ "pretraining_tp": 2 }),
                "pretraining_tp 2 is not supported; only 1 is",
            ),
            ("llama", json!({ "attention_bias": true }), "attention_bias true with mlp_bias false"),
            ("llama", json!({ "mlp_bias": true }), "attention_bias false with mlp_bias true"),
            ("llama", json!({ "hidden_size": "4" }), "hidden_size: invalid type"),
            ("llama", json!({ "hidden_size": null }), "hidden_size: invalid type"),
            ("llama", json!({ "num_attention_heads": -1 }), "num_attention_heads: invalid value"),
            ("llama", json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
            ("llama", json!({ "num_key_value_heads": 0 }), "num_key_value_heads is 0"),
            ("llama", json!({ "head_dim": 0 }), "head_dim is 0"),
            ("llama", json!({ "head_dim": 7 }), "heads have 7 columns"),
            (
                "llama",
                json!({ "num_attention_heads": 48 }),
                "hidden_size 4096 is not a multiple of num_attention_heads 48",
            ),
            (
                "mistral",
                json!({ "num_key_value_heads": 5 }),
                "num_attention_heads 32 is not a multiple of num_key_value_heads 5",
            ),
            ("mistral", json!({ "sliding_window": 0 }), "sliding_window is 0"),
            ("mistral", json!({ "sliding_window": -1 }), "sliding_window: invalid value"),
            ("qwen2", json!({ "rms_norm_eps": 0 }), "rms_norm_eps is 0: it must be positive"),
            ("qwen2", json!({ "rope_theta": 0.5 }), "rope_theta is 0.5: it must be above 1"),
            ("qwen2", json!({ "rope_theta": 1e300 }), "rope_theta is inf"),
            ("qwen2", json!({ "hidden_size": 1e3 }), "hidden_size: invalid type"),
            (
                "qwen3",
                json!({ "attention_bias": true }),
                "attention_bias true is not supported; only false is",
            ),
            ("qwen3", json!({ "head_dim": null }), "head_dim: invalid type"),
            ("qwen3", scaled("yarn"), "rope_scaling of rope_type \"yarn\" is not supported;"),
            ("qwen2", json!({ "hidden_size": 1_u64 << 40 }), "hidden_size is 1099511627776"),
            ("llama", scaled("yarn"), "rope_scaling of rope_type \"yarn\" is not supported;"),
            ("llama", scaled("dynamic"), "\"default\", \"linear\" and \"llama3\" are"),
            ("llama", scaled("longrope"), "\"longrope\""),
            ("llama", scaled("llama3"), "no rope_scaling.low_freq_factor"),
            ("llama", json!({ "rope_scaling": { "type": "linear" } }), "no rope_scaling.factor"),
            (
                "llama",
                json!({ "rope_scaling": { "type": "linear", "factor": 0.5 } }),
                "the factor of rope_scaling is 0.5",
            ),
            (
                "llama",
                json!({ "rope_parameters": { "rope_type": 3 } }),
                "rope_parameters.rope_type: invalid type",
            ),
            (
                "llama",
                json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
                "rope_parameters.full_attention {\"rope_type\":\"default\"} is not supported",
            ),
            (
                "llama",
                json!({ "rope_scaling": "linear" }),
                "rope_scaling \"linear\": not an object",
            ),
            (
                "llama",
                json!({ "partial_rotary_factor": 0.5 }),
                "partial_rotary_factor 0.5 is not supported; only 1 is",
            ),
            (
                "llama",
                json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
                "partial_rotary_factor 0.5 is not supported; only 1 is",
            ),
        ] {
            let error = of(model_type, fields.clone()).unwrap_err();
            assert!(error.contains(words), "{model_type} {fields}: {error}");
        }
    }
}
