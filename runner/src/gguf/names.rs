//! llama.cpp's names and shapes of GPT-2's tensors and keys.

use cllm_core::{Architecture, BlockParam, ModelConfig, Param, ParamSpec};

use super::read::File;
use super::value::Value;

/// The architecture, and the beginning of its keys.
pub(super) const ARCHITECTURE: &str = "gpt2";

/// The tables of both ends.
const TABLE: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";

/// How a tensor lies in files.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) name: String,
    /// Elements of each dimension, that of adjacent ones first.
    pub(super) dims: Vec<usize>,
    /// A row for each of the core's columns.
    pub(super) transposed: bool,
    /// A large matrix that only products read: of the type that was asked for.
    pub(super) small_type: bool,
}

/// The layout of a tensor.
pub(super) fn layout(spec: &ParamSpec) -> Layout {
    let (name, transposed, small_type) = match spec.param {
        Param::TokenTable => (TABLE.to_owned(), false, true),
        Param::PositionTable => ("position_embd.weight".to_owned(), false, false),
        Param::FinalGain => ("output_norm.weight".to_owned(), false, false),
        Param::FinalBias => ("output_norm.bias".to_owned(), false, false),
        Param::Head => (HEAD.to_owned(), false, true),
        Param::Block(block, param) => {
            let (part, matrix) = of_block(param);
            (format!("blk.{block}.{part}"), matrix, matrix)
        }
    };
    let dims = match (spec.is_vector(), transposed) {
        (true, _) => vec![spec.cols],
        (false, true) => vec![spec.rows, spec.cols],
        (false, false) => vec![spec.cols, spec.rows],
    };
    Layout { name, dims, transposed, small_type }
}

/// A tensor of a block, and whether it is a matrix.
fn of_block(param: BlockParam) -> (&'static str, bool) {
    match param {
        BlockParam::Norm1Gain => ("attn_norm.weight", false),
        BlockParam::Norm1Bias => ("attn_norm.bias", false),
        BlockParam::Qkv => ("attn_qkv.weight", true),
        BlockParam::QkvBias => ("attn_qkv.bias", false),
        BlockParam::QueryNormGain => ("attn_q_norm.weight", false),
        BlockParam::KeyNormGain => ("attn_k_norm.weight", false),
        BlockParam::AttnOut => ("attn_output.weight", true),
        BlockParam::AttnOutBias => ("attn_output.bias", false),
        BlockParam::Norm2Gain => ("ffn_norm.weight", false),
        BlockParam::Norm2Bias => ("ffn_norm.bias", false),
        BlockParam::Fc => ("ffn_up.weight", true),
        BlockParam::FcBias => ("ffn_up.bias", false),
        BlockParam::MlpOut => ("ffn_down.weight", true),
        BlockParam::MlpOutBias => ("ffn_down.bias", false),
    }
}

/// Names of the sizes among the keys.
const SIZES: [&str; 5] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
];
const EPSILON: &str = "attention.layer_norm_epsilon";

fn key(name: &str) -> String {
    format!("{ARCHITECTURE}.{name}")
}

/// The keys of a model.
pub(super) fn keys(config: &ModelConfig) -> Vec<(String, Value)> {
    let c = config;
    let sizes = [c.block_size, c.d_model, c.n_layer, c.d_ff, c.n_head];
    // No dimension of a model exceeds 32 bits.
    let sizes = sizes.map(|size| Value::U32(size as u32));
    let mut keys: Vec<_> = SIZES.iter().map(|name| key(name)).zip(sizes).collect();
    keys.push((key(EPSILON), Value::F32(c.norm_eps)));
    keys
}

/// The model that a file describes.
///
/// # Errors
/// What is missing or not supported, in words.
pub(super) fn config(file: &File, bytes: &[u8]) -> Result<ModelConfig, String> {
    match file.keys.get("general.architecture").and_then(Value::text) {
        Some(ARCHITECTURE) => {}
        Some(other) => {
            return Err(format!("architecture {other:?} cannot be imported; {ARCHITECTURE} can"));
        }
        None => return Err("no general.architecture: not a model".to_owned()),
    }
    let mut sizes = [0; SIZES.len()];
    for (size, name) in sizes.iter_mut().zip(SIZES) {
        let name = key(name);
        let value = file.keys.get(&name).ok_or_else(|| format!("no key {name}"))?;
        *size = value.count().ok_or_else(|| format!("{name} is no size"))?;
    }
    let [block_size, d_model, n_layer, d_ff, n_head] = sizes;
    let name = key(EPSILON);
    let epsilon = file.keys.get(&name).and_then(Value::number);
    let norm_eps = epsilon.ok_or_else(|| format!("no number {name}"))? as f32;
    let table = file.tensors.get(TABLE).ok_or_else(|| format!("no tensor {TABLE}"))?;
    let vocab_size = table.dims.get(1).copied().unwrap_or(0);
    let config = ModelConfig {
        vocab_size,
        block_size,
        n_layer,
        n_head,
        d_model,
        d_ff,
        bias: true,
        // Some files have the one table twice.
        tied: file.tensors.get(HEAD).is_none_or(|head| head.is_copy_of(table, bytes)),
        dropout: 0.0,
        norm_eps,
        arch: Architecture::GPT2,
    };
    config.validate().map_err(|e| {
        // In the file's words.
        let names = [("d_model", SIZES[1]), ("block_size", SIZES[0]), ("n_layer", SIZES[2])];
        let names = names.into_iter().chain([("d_ff", SIZES[3]), ("n_head", SIZES[4])]);
        names.fold(e.to_string(), |text, (ours, theirs)| text.replace(ours, &key(theirs)))
    })?;
    Ok(config)
}
