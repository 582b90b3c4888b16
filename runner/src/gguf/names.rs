//! llama.cpp's names and shapes of tensors.

use core::ops::Range;

use cllm_core::{BlockParam, ModelConfig, Param, ParamSpec};

use crate::exchange::{Family, Part, parts};

/// The tables of both ends.
pub(super) const TABLE: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";

/// How a tensor lies in files: one of the core's, or what lies there side by side with others.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) name: String,
    /// Elements of each dimension, that of adjacent ones first.
    pub(super) dims: Vec<usize>,
    /// The core's columns of it.
    pub(super) columns: Range<usize>,
    /// A row for each of the core's columns.
    pub(super) transposed: bool,
    /// A large matrix that only products read: of the type that was asked for.
    pub(super) small_type: bool,
    /// Columns of a head, of which the two that turn together are neighbours in the file.
    paired: Option<usize>,
}

impl Layout {
    /// Which of its columns the file's row `row` is, or its element of a vector.
    pub(super) fn place(&self, row: usize) -> usize {
        self.paired.map_or(row, |head| paired(row, head))
    }

    /// The name without its block's number, of a tensor of a block.
    pub(super) fn of_block(&self) -> Option<&str> {
        self.name.strip_prefix("blk.")?.split_once('.').map(|(_, rest)| rest)
    }
}

/// The column here of llama.cpp's row of queries or keys, in heads of so many. Rotary positions turn
/// columns `i` and `i + head / 2` of a head here and in `transformers`, neighbours in llama.cpp.
fn paired(row: usize, head: usize) -> usize {
    let within = row % head;
    row - within + within % 2 * (head / 2) + within / 2
}

/// The layouts of what files of a family have of a tensor.
pub(super) fn layouts(family: Family, config: &ModelConfig, spec: &ParamSpec) -> Vec<Layout> {
    let parts = match family {
        Family::Gpt2 => vec![(Part::Whole, 0..spec.cols)],
        Family::Llama | Family::Qwen2 | Family::Qwen3 => parts(config, spec),
    };
    let layout = |(part, columns): (Part, Range<usize>)| {
        let is_matrix = !spec.is_vector();
        let (name, transposed, small_type) = match spec.param {
            Param::TokenTable => (TABLE.to_owned(), false, true),
            Param::PositionTable => ("position_embd.weight".to_owned(), false, false),
            // Models with it are refused.
            Param::Previous => (spec.name().to_string(), false, false),
            Param::FinalGain => ("output_norm.weight".to_owned(), false, false),
            Param::FinalBias => ("output_norm.bias".to_owned(), false, false),
            Param::Head => (HEAD.to_owned(), false, true),
            Param::Block(block, param) => {
                let name = format!("blk.{block}.{}.{}", of_block(param, part), ending(param));
                (name, is_matrix, is_matrix)
            }
        };
        let dims = match (spec.is_vector(), transposed) {
            (true, _) => vec![columns.len()],
            (false, true) => vec![spec.rows, columns.len()],
            (false, false) => vec![columns.len(), spec.rows],
        };
        // `qwen2` and `qwen3` have them as they are here.
        let turns = family == Family::Llama && matches!(part, Part::Queries | Part::Keys);
        let paired = turns.then(|| config.head_size());
        Layout { name, dims, columns, transposed, small_type, paired }
    };
    parts.into_iter().map(layout).collect()
}

/// The name of a part of a tensor of a block, without its ending.
fn of_block(param: BlockParam, part: Part) -> &'static str {
    use BlockParam::*;
    match part {
        Part::Queries => "attn_q",
        Part::Keys => "attn_k",
        Part::Values => "attn_v",
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::Whole => match param {
            Norm1Gain | Norm1Bias => "attn_norm",
            Qkv | QkvBias => "attn_qkv",
            QueryNormGain => "attn_q_norm",
            KeyNormGain => "attn_k_norm",
            AttnOut | AttnOutBias => "attn_output",
            Norm2Gain | Norm2Bias => "ffn_norm",
            Fc | FcBias => "ffn_up",
            MlpOut | MlpOutBias => "ffn_down",
        },
    }
}

/// What a name ends with.
fn ending(param: BlockParam) -> &'static str {
    use BlockParam::*;
    match param {
        Norm1Bias | QkvBias | AttnOutBias | Norm2Bias | FcBias | MlpOutBias => BIAS,
        Norm1Gain | Qkv | QueryNormGain | KeyNormGain | AttnOut | Norm2Gain | Fc | MlpOut => {
            "weight"
        }
    }
}

/// The ending of biases.
const BIAS: &str = "bias";

/// Biases that a file has, of those of a model of the Llama family: any but those of queries, keys and
/// values, and any of these.
pub(super) fn biases(has: impl Fn(&str) -> bool) -> (bool, bool) {
    let any = |names: &[&str]| names.iter().any(|name| has(&format!("blk.0.{name}.{BIAS}")));
    (any(&["attn_output", "ffn_gate", "ffn_up", "ffn_down"]), any(&["attn_q", "attn_k", "attn_v"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `weights.reshape(heads, 2, head / 2, columns).swapaxes(1, 2)`, as llama.cpp's script for files of
    /// `transformers` has it: `[head][half][pair]` becomes `[head][pair][half]`.
    #[test]
    fn rows_of_llama_are_pairs() {
        let rows: Vec<_> = (0..12).map(|row| paired(row, 6)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        for head in [2, 6, 64] {
            let mut scripts = Vec::new();
            for first in (0..3 * head).step_by(head) {
                for pair in 0..head / 2 {
                    scripts.extend((0..2).map(|half| first + half * (head / 2) + pair));
                }
            }
            let ours: Vec<_> = (0..3 * head).map(|row| paired(row, head)).collect();
            assert_eq!(ours, scripts, "heads of {head}");
        }
    }
}
