//! llama.cpp's keys of a model's sizes and parts.

use cllm_core::{Activation, Architecture, ConfigError, ModelConfig, Positions, Rotary, Scaling};

use super::names::{HEAD, TABLE, biases};
use super::read::File;
use super::rope;
use super::value::Value;
use crate::exchange::Family;

/// The key of a model's architecture.
pub(super) const ARCHITECTURE: &str = "general.architecture";

/// Names of the sizes among the keys.
const SIZES: [&str; 5] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
];
const EPSILON: &str = "attention.layer_norm_epsilon";

/// Those of the Llama family.
const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";
const KV_HEADS: &str = "attention.head_count_kv";
const HEAD_SIZE: &str = "attention.key_length";
const VALUE_SIZE: &str = "attention.value_length";
const WINDOW: &str = "attention.sliding_window";
const TURNED: &str = "rope.dimension_count";
const THETA: &str = "rope.freq_base";
const EXPERTS: &str = "expert_count";
/// The base that is meant where a file has none.
const DEFAULT_THETA: f32 = 10_000.0;

/// The architecture of a family, with which the names of its keys begin.
pub(super) fn architecture(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "gpt2",
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    }
}

/// A family's name, for messages.
pub(super) fn people_say(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "GPT-2",
        Family::Llama => "Llama",
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
    }
}

/// The family that llama.cpp runs a model as.
///
/// # Errors
/// None, in words.
pub(super) fn family(config: &ModelConfig) -> Result<Family, String> {
    let has_factors =
        config.arch.rotary().is_some_and(|rotary| matches!(rotary.scaling, Scaling::Llama3 { .. }));
    Ok(match Family::of(config)? {
        Family::Gpt2 if config.arch.activation == Activation::Relu2 => {
            return Err(
                "llama.cpp has no model with --activation relu2 of GPT-2's other parts: its gpt2 \
                        has GELU alone; --format safetensors has both"
                    .to_owned(),
            );
        }
        // Its `llama` has such biases too, and what its `qwen2` lacks: factors of angles, and heads
        // that are not an equal share of the width.
        Family::Qwen2 if has_factors || config.query_width() != config.d_model => Family::Llama,
        // No other has its norms.
        Family::Qwen3 if has_factors => {
            return Err("llama.cpp has no model with --qk-norm and Llama 3's scaling of rotary \
                        positions: its qwen3 has no factors of angles"
                .to_owned());
        }
        family => family,
    })
}

/// The keys of a model of a family, but that of its architecture.
pub(super) fn keys(family: Family, config: &ModelConfig) -> Vec<(String, Value)> {
    let c = config;
    // No dimension of a model exceeds 32 bits.
    let size = |size: usize| Value::U32(size as u32);
    // llama.cpp knows no window of these families, and within one all attention is full.
    let context = c.arch.window.map_or(c.block_size, |window| window.min(c.block_size));
    let sizes = [context, c.d_model, c.n_layer, c.d_ff, c.n_head].map(size);
    let mut keys: Vec<_> = SIZES.into_iter().zip(sizes).collect();
    match c.arch.rotary() {
        Some(rotary) if family != Family::Gpt2 => {
            keys.extend([
                (RMS_EPSILON, Value::F32(c.norm_eps)),
                (KV_HEADS, size(c.kv_heads())),
                (HEAD_SIZE, size(c.head_size())),
                (VALUE_SIZE, size(c.head_size())),
                (TURNED, size(c.head_size())),
                (THETA, Value::F32(rotary.theta)),
            ]);
            keys.extend(rope::keys(rotary.scaling));
        }
        _ => keys.push((EPSILON, Value::F32(c.norm_eps))),
    }
    let own = architecture(family);
    keys.into_iter().map(|(name, value)| (format!("{own}.{name}"), value)).collect()
}

/// The keys of a file that begin with its architecture.
pub(super) struct Keys<'f> {
    file: &'f File,
    architecture: &'static str,
}

impl<'f> Keys<'f> {
    /// The whole name.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn get<T>(
        &self,
        name: &str,
        what: &str,
        read: impl Fn(&'f Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let name = self.name(name);
        let value = self.file.keys.get(&name);
        let read = |value| read(value).ok_or_else(|| format!("{name} is no {what}"));
        value.map(read).transpose()
    }

    /// A size, if it is there.
    pub(super) fn size(&self, name: &str) -> Result<Option<usize>, String> {
        self.get(name, "size", Value::count)
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f32>, String> {
        self.get(name, "number", |value| value.number().map(|x| x as f32))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'f str>, String> {
        self.get(name, "text", Value::text)
    }

    /// That a key is there.
    fn needed<T>(&self, name: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("no key {}", self.name(name)))
    }
}

/// The model that a file describes, and its family. A model whose attention sees a window of less than
/// its context becomes one of sequences of that length, for which there is no difference.
///
/// # Errors
/// What is missing or not supported, in words.
pub(super) fn config(file: &File, bytes: &[u8]) -> Result<(Family, ModelConfig), String> {
    let named = file.keys.get(ARCHITECTURE).and_then(Value::text);
    let named = named.ok_or_else(|| format!("no {ARCHITECTURE}: not a model"))?;
    let families = [Family::Gpt2, Family::Llama, Family::Qwen2, Family::Qwen3];
    let known = families.into_iter().find(|family| architecture(*family) == named);
    let family = known.ok_or_else(|| {
        let known = families.map(architecture).join(", ");
        format!("architecture {named:?} cannot be imported; {known} can")
    })?;
    let keys = Keys { file, architecture: architecture(family) };
    let mut sizes = [0; SIZES.len()];
    for (size, name) in sizes.iter_mut().zip(SIZES) {
        *size = keys.needed(name, keys.size(name)?)?;
    }
    let [context, d_model, n_layer, d_ff, n_head] = sizes;
    let is_gpt2 = family == Family::Gpt2;
    let epsilon = if is_gpt2 { EPSILON } else { RMS_EPSILON };
    let norm_eps = keys.needed(epsilon, keys.number(epsilon)?)?;
    // Of a Qwen3 they are refused with all tensors that it has not.
    let has_norms = family == Family::Qwen3;
    let (others, of_qkv) = biases(|name| !has_norms && file.tensors.contains_key(name));
    let bias = is_gpt2 || others;
    let (arch, window) = if is_gpt2 {
        (Architecture::GPT2, None)
    } else {
        let arch = parts(&keys, (file, bytes), d_model, n_head)?;
        let window = keys.size(WINDOW)?.filter(|window| *window > 0);
        (Architecture { qkv_bias: of_qkv && !bias, qk_norm: has_norms, ..arch }, window)
    };
    let table = file.tensors.get(TABLE).ok_or_else(|| format!("no tensor {TABLE}"))?;
    let config = ModelConfig {
        vocab_size: table.dims.get(1).copied().unwrap_or(0),
        block_size: window.map_or(context, |window| window.min(context)),
        n_layer,
        n_head,
        d_model,
        d_ff,
        bias,
        // Some files have the one table twice.
        tied: file.tensors.get(HEAD).is_none_or(|head| head.is_copy_of(table, bytes)),
        dropout: 0.0,
        norm_eps,
        arch,
    };
    config.validate().map_err(|e| in_its_words(&keys, &e))?;
    Ok((family, config))
}

/// What blocks of the Llama family are made of, but for biases.
fn parts(
    keys: &Keys<'_>,
    file: (&File, &[u8]),
    d_model: usize,
    n_head: usize,
) -> Result<Architecture, String> {
    if keys.size(EXPERTS)?.is_some_and(|experts| experts > 0) {
        let name = keys.name(EXPERTS);
        return Err(format!("{name}: a mixture of experts cannot be imported"));
    }
    // Heads that do not divide the width are found with all that is wrong with sizes.
    let share = d_model.checked_div(n_head).unwrap_or(0);
    let given = keys.size(HEAD_SIZE)?;
    let head = given.unwrap_or(share);
    for (name, why) in [
        (VALUE_SIZE, "values must have as many columns as keys"),
        (TURNED, "only heads that turn with their positions as a whole can be imported"),
    ] {
        let size = keys.size(name)?.unwrap_or(if name == VALUE_SIZE { share } else { head });
        if size != head {
            return Err(format!(
                "{} is {size}, but heads have {head} columns: {why}",
                keys.name(name)
            ));
        }
    }
    let kv_heads = keys.size(KV_HEADS)?.unwrap_or(n_head);
    let theta = keys.number(THETA)?.unwrap_or(DEFAULT_THETA);
    let scaling = rope::scaling(keys, file, theta, head)?;
    let is_share = head == share && (given.is_none() || share.checked_mul(n_head) == Some(d_model));
    Ok(Architecture {
        positions: Positions::Rotary(Rotary { theta, scaling }),
        n_kv_head: (kv_heads != n_head).then_some(kv_heads),
        head_size: (!is_share).then_some(head),
        ..Architecture::LLAMA
    })
}

/// What is wrong with a model, by the names of the file's keys.
fn in_its_words(keys: &Keys<'_>, error: &ConfigError) -> String {
    let [context, width, blocks, inner, heads] = SIZES;
    let names = [
        ("block_size", context),
        ("d_model", width),
        ("n_layer", blocks),
        ("d_ff", inner),
        ("n_head", heads),
        ("n_kv_head", KV_HEADS),
        ("head_size", HEAD_SIZE),
    ];
    let text = error.to_string();
    names.into_iter().fold(text, |text, (ours, theirs)| text.replace(ours, &keys.name(theirs)))
}
