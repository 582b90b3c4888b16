//! Names of tensors in the files, and where in the tensors here their values lie.

use core::ops::Range;

use cllm_core::{BlockParam, ModelConfig, Param, ParamSpec};

use crate::exchange::{Family, Part, parts};

/// The output projection of every family.
pub(super) const HEAD: &str = "lm_head.weight";

/// A tensor of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) place: Place,
}

/// Where its values lie in a tensor here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// One behind another, as in the file.
    Values(Range<usize>),
    /// In these columns, each of which is a row in the file.
    Columns(Range<usize>),
}

/// What the whole model puts before all names but that of its head; the model without its head does not.
pub(super) fn prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::Llama | Family::Qwen2 | Family::Qwen3 => "model.",
    }
}

/// Whether a tensor holds nothing that was learnt: old versions of `transformers` saved their causal
/// masks and their angles too.
pub(super) fn is_constant(family: Family, name: &str) -> bool {
    match family {
        Family::Gpt2 => name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
        Family::Llama | Family::Qwen2 | Family::Qwen3 => name.ends_with(".rotary_emb.inv_freq"),
    }
}

/// The tensors that the files have for one here.
pub(super) fn of(
    family: Family,
    config: &ModelConfig,
    spec: &ParamSpec,
    prefix: &str,
) -> Vec<Named> {
    let prefix = if spec.param == Param::Head { "" } else { prefix };
    if family == Family::Gpt2 {
        let shape = if spec.is_vector() { vec![spec.cols] } else { vec![spec.rows, spec.cols] };
        let name = format!("{prefix}{}", spec.name());
        return vec![Named { name, shape, place: Place::Values(0..spec.len()) }];
    }
    let gated = config.arch.is_gated();
    let is_table = matches!(spec.param, Param::TokenTable | Param::Head);
    let named = parts(config, spec).into_iter().map(|(part, columns)| {
        let (shape, place) = if spec.is_vector() {
            (vec![columns.len()], Place::Values(columns))
        } else if is_table {
            (vec![spec.rows, spec.cols], Place::Values(0..spec.len()))
        } else {
            (vec![columns.len(), spec.rows], Place::Columns(columns))
        };
        Named { name: format!("{prefix}{}", llama(spec, part, gated)), shape, place }
    });
    named.collect()
}

/// The name of a part in the Llama family.
fn llama(spec: &ParamSpec, part: Part, gated: bool) -> String {
    use BlockParam::{AttnOut, AttnOutBias, Fc, FcBias, MlpOut, MlpOutBias, Norm1Gain, Norm2Gain};
    use BlockParam::{KeyNormGain, Norm1Bias, Norm2Bias, Qkv, QkvBias, QueryNormGain};
    let (block, param) = match spec.param {
        Param::TokenTable => return "embed_tokens.weight".to_owned(),
        Param::FinalGain => return "norm.weight".to_owned(),
        Param::Head => return HEAD.to_owned(),
        Param::Block(block, param) => (block, param),
        // The family has none.
        Param::PositionTable | Param::Previous | Param::FinalBias => {
            return spec.name().to_string();
        }
    };
    let name = match (param, part) {
        (Norm1Gain, _) => "input_layernorm",
        (Qkv | QkvBias, Part::Keys) => "self_attn.k_proj",
        (Qkv | QkvBias, Part::Values) => "self_attn.v_proj",
        (Qkv | QkvBias, _) => "self_attn.q_proj",
        (QueryNormGain, _) => "self_attn.q_norm",
        (KeyNormGain, _) => "self_attn.k_norm",
        (AttnOut | AttnOutBias, _) => "self_attn.o_proj",
        (Norm2Gain, _) => "post_attention_layernorm",
        (Fc | FcBias, Part::Gate) => "mlp.gate_proj",
        (Fc | FcBias, Part::Up) => "mlp.up_proj",
        // nanochat's, which has no gate.
        (Fc | FcBias, _) => "mlp.fc1",
        (MlpOut | MlpOutBias, _) if gated => "mlp.down_proj",
        (MlpOut | MlpOutBias, _) => "mlp.fc2",
        // The family has none.
        (Norm1Bias | Norm2Bias, _) => return spec.name().to_string(),
    };
    let is_bias = matches!(param, QkvBias | AttnOutBias | FcBias | MlpOutBias);
    let kind = if is_bias { "bias" } else { "weight" };
    format!("layers.{block}.{name}.{kind}")
}
