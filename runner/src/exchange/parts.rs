//! What of this program's tensors others have as tensors of their own.
//!
//! Queries, keys and values lie side by side in one matrix here, and so do a gate and what it lets
//! through; files of the Llama family have each by itself, a row for each output. GPT-2's files have
//! the first as one too, and no gate.

use core::ops::Range;

use cllm_core::{Activation, Architecture, BlockParam, ModelConfig, NormKind, Param, ParamSpec};

/// Which of the matrices that lie side by side in a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of a tensor that others have as it is.
    Whole,
    Queries,
    Keys,
    Values,
    Gate,
    /// What the gate lets through.
    Up,
}

/// The families of models that other programs have names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// With GELU, or in `transformers` with squared ReLU.
    Gpt2,
    /// Llama, Mistral and what is made as they are; biases nowhere or in every matrix.
    Llama,
    /// Llama with biases of queries, keys and values alone.
    Qwen2,
    /// Llama with norms of heads of queries and keys, and no biases.
    Qwen3,
}

impl Family {
    /// The family that computes what the model does.
    ///
    /// # Errors
    /// None does: says which part stands alone.
    pub(crate) fn of(config: &ModelConfig) -> Result<Self, String> {
        let arch = &config.arch;
        let known =
            Architecture { logit_softcap: None, previous_tokens: 0, embedding_scale: 1.0, ..*arch };
        let squared = Architecture { activation: Activation::Relu2, ..Architecture::GPT2 };
        let is_gpt2 = known == Architecture::GPT2 || known == squared;
        let obstacles = obstacles(config, is_gpt2);
        match obstacles.as_slice() {
            [] if is_gpt2 => Ok(Self::Gpt2),
            [_, ..] => Err(format!(
                "other programs have no model {}: a model that is to leave this program wants none of it",
                obstacles.join(", nor ")
            )),
            [] if arch.qk_norm && (arch.qkv_bias || config.bias) => Err(
                "other programs know no model with --qk-norm and biases: Qwen3 has none, as with \
                 --no-bias and no --qkv-bias"
                    .to_owned(),
            ),
            [] if arch.qk_norm => Ok(Self::Qwen3),
            [] if arch.qkv_bias && !config.bias => Ok(Self::Qwen2),
            [] => Ok(Self::Llama),
        }
    }
}

/// All parts for which no family has a name, of a model that is GPT-2's but for them or is to be Llama's.
fn obstacles(config: &ModelConfig, is_gpt2: bool) -> Vec<String> {
    let arch = &config.arch;
    let cap = arch.logit_softcap.map(|cap| format!("with --logit-softcap {cap}"));
    let previous = (arch.previous_tokens > 0).then(|| {
        format!(
            "with --previous-tokens {}, whose rows are sums of several tokens' embeddings",
            arch.previous_tokens
        )
    });
    let llamas = [
        (arch.norm == NormKind::Rms, "--norm rms"),
        (arch.rotary().is_some(), "--positions rotary"),
        (arch.activation == Activation::SwiGlu, "--activation swiglu"),
    ];
    let missing = llamas
        .into_iter()
        .filter(|(is, _)| !is && !is_gpt2)
        .map(|(_, part)| format!("that is not GPT-2's, and has other parts, without {part}"));
    cap.into_iter().chain(previous).chain(missing).collect()
}

/// The parts of a tensor that the files of the Llama family have by themselves, and their columns.
pub(crate) fn parts(config: &ModelConfig, spec: &ParamSpec) -> Vec<(Part, Range<usize>)> {
    let widths: &[(Part, usize)] = match spec.param {
        Param::Block(_, BlockParam::Qkv | BlockParam::QkvBias) => &[
            (Part::Queries, config.query_width()),
            (Part::Keys, config.kv_width()),
            (Part::Values, config.kv_width()),
        ],
        Param::Block(_, BlockParam::Fc | BlockParam::FcBias) if config.arch.is_gated() => {
            &[(Part::Gate, config.d_ff), (Part::Up, config.d_ff)]
        }
        _ => &[(Part::Whole, spec.cols)],
    };
    let mut end = 0;
    let columns = widths.iter().map(|(part, width)| {
        end += width;
        (*part, end - width..end)
    });
    columns.collect()
}

/// Rows that are brought to their columns at a time: a cache line of each row here.
const ROWS: usize = 16;

/// Fills some columns of a tensor from a matrix that has a row for each of them. `read` puts row `n` of
/// that where it is told; `place` says which of the columns, counted from the first, it is.
///
/// # Errors
/// Those of `read`.
pub(crate) fn fill_columns<E>(
    spec: &ParamSpec,
    columns: &Range<usize>,
    tensor: &mut [f32],
    place: impl Fn(usize) -> usize,
    mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut rows = vec![0.0; ROWS * spec.rows];
    let mut first = 0;
    while first < columns.len() {
        let some = ROWS.min(columns.len() - first);
        for (n, row) in rows.chunks_exact_mut(spec.rows).take(some).enumerate() {
            read(first + n, row)?;
        }
        let places: [usize; ROWS] =
            core::array::from_fn(|n| if n < some { columns.start + place(first + n) } else { 0 });
        for (i, to) in tensor.chunks_exact_mut(spec.cols).enumerate() {
            for (n, place) in places.iter().take(some).enumerate() {
                to[*place] = rows[n * spec.rows + i];
            }
        }
        first += some;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cllm_core::ParamTable;

    fn config(arch: Architecture, bias: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 40,
            block_size: 8,
            n_layer: 1,
            n_head: 6,
            d_model: 36,
            d_ff: 50,
            bias,
            tied: true,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch,
        }
    }

    #[test]
    fn parts_are_all_columns_in_their_order() {
        let arch = Architecture { n_kv_head: Some(2), head_size: Some(8), ..Architecture::LLAMA };
        let config = config(arch, true);
        let table = ParamTable::new(&config).unwrap();
        let of = |param| parts(&config, &table.spec(Param::Block(0, param)).unwrap());
        let qkv = vec![(Part::Queries, 0..48), (Part::Keys, 48..64), (Part::Values, 64..80)];
        assert_eq!(of(BlockParam::Qkv), qkv);
        assert_eq!(of(BlockParam::QkvBias), qkv);
        assert_eq!(of(BlockParam::Fc), [(Part::Gate, 0..50), (Part::Up, 50..100)]);
        assert_eq!(of(BlockParam::MlpOut), [(Part::Whole, 0..36)]);
        let spec = table.spec(Param::TokenTable).unwrap();
        assert_eq!(parts(&config, &spec), [(Part::Whole, 0..36)]);
    }

    #[test]
    fn families_are_known_by_their_parts() {
        let family = |arch, bias| Family::of(&config(arch, bias));
        assert_eq!(family(Architecture::GPT2, false), Ok(Family::Gpt2));
        assert_eq!(family(Architecture::LLAMA, true), Ok(Family::Llama));
        let biased = Architecture { qkv_bias: true, ..Architecture::LLAMA };
        assert_eq!(family(biased, false), Ok(Family::Qwen2));
        assert_eq!(family(biased, true), Ok(Family::Llama));
        let odd = Architecture { activation: Activation::Gelu, ..Architecture::LLAMA };
        assert!(family(odd, false).unwrap_err().contains("--activation swiglu"));
        let squared = |arch| Architecture { activation: Activation::Relu2, ..arch };
        assert_eq!(family(squared(Architecture::GPT2), true), Ok(Family::Gpt2));
        let refused = family(squared(Architecture::LLAMA), false).unwrap_err();
        assert!(refused.contains("--activation swiglu"), "{refused}");
        for arch in [Architecture::GPT2, Architecture::LLAMA] {
            let refused = family(Architecture { previous_tokens: 3, ..arch }, false);
            assert!(refused.unwrap_err().contains("--previous-tokens 3"));
            let refused = family(Architecture { logit_softcap: Some(15.0), ..arch }, false);
            assert!(refused.unwrap_err().contains("--logit-softcap 15"));
        }
        // Tables are multiplied on their way out.
        let multiplied = Architecture { embedding_scale: 8.0, ..Architecture::LLAMA };
        assert_eq!(family(multiplied, false), Ok(Family::Llama));
        // All that is in the way at once.
        let much = Architecture {
            previous_tokens: 2,
            logit_softcap: Some(9.0),
            norm: NormKind::Layer,
            ..odd
        };
        let refused = family(much, false).unwrap_err();
        for part in
            ["--logit-softcap 9", "--previous-tokens 2", "--norm rms", "--activation swiglu"]
        {
            assert!(refused.contains(part), "{refused}");
        }
        assert!(!refused.contains("--positions"), "{refused}");
        let normed = Architecture { qk_norm: true, ..Architecture::LLAMA };
        assert_eq!(family(normed, false), Ok(Family::Qwen3));
        let both = Architecture { qk_norm: true, ..biased };
        for error in [family(normed, true), family(both, false), family(both, true)] {
            assert!(error.unwrap_err().contains("--qk-norm and biases"));
        }
    }

    #[test]
    fn rows_become_their_columns() {
        let config = config(Architecture::LLAMA, false);
        let spec = ParamTable::new(&config).unwrap();
        let spec = spec.spec(Param::Block(0, BlockParam::Fc)).unwrap();
        let mut tensor = vec![-1.0; spec.len()];
        let columns = 50..100;
        let read = |n: usize, to: &mut [f32]| {
            for (i, to) in to.iter_mut().enumerate() {
                *to = (100 * n + i) as f32;
            }
            Ok::<(), ()>(())
        };
        // The last row first.
        fill_columns(&spec, &columns, &mut tensor, |n| 49 - n, read).unwrap();
        for (i, row) in tensor.chunks_exact(100).enumerate() {
            assert!(row[..50].iter().all(|x| *x == -1.0));
            for (j, value) in row[50..].iter().enumerate() {
                assert_eq!(*value, (100 * (49 - j) + i) as f32);
            }
        }
        let stop = |n: usize, _: &mut [f32]| if n < 20 { Ok(()) } else { Err(n) };
        assert_eq!(fill_columns(&spec, &columns, &mut tensor, |n| n, stop), Err(20));
    }
}
