//! nanochat's models, whose class in `transformers` computes what others do in another way.
//!
//! ```text
//! norms without gains               gains of ones
//! the embedding is normed           rows of the table are, once and for all: the head has its own table
//! queries and keys turn backwards   the halves of their heads change places, and turn forwards
//! ... and are normed behind that    a turn does not change what a norm is taken of
//! ```
//! Gains and rows of the table go their own ways as soon as the model is trained, so it cannot go back.

use cllm_core::{Activation, BlockParam, ModelConfig, Param, ParamSpec, ParamTable};

/// Whether a config that `transformers` has a class for is of this one.
pub(super) fn is(config: &ModelConfig) -> bool {
    let arch = &config.arch;
    arch.activation == Activation::Relu2 && arch.rotary().is_some()
}

/// Whether the files have the tensor.
pub(super) fn has(spec: &ParamSpec) -> bool {
    use BlockParam::{KeyNormGain, Norm1Gain, Norm2Gain, QueryNormGain};
    !matches!(
        spec.param,
        Param::FinalGain | Param::Block(_, Norm1Gain | Norm2Gain | QueryNormGain | KeyNormGain)
    )
}

/// Makes the model of what the files have.
pub(super) fn settle(config: &ModelConfig, table: &ParamTable, arena: &mut [f32]) {
    for spec in table.iter() {
        let values = &mut arena[spec.range()];
        match spec.param {
            Param::TokenTable => {
                values.chunks_exact_mut(spec.cols).for_each(|row| norm(row, config.norm_eps));
            }
            Param::Block(_, BlockParam::Qkv) => {
                let (turned, head) = (config.query_width() + config.kv_width(), config.head_size());
                for row in values.chunks_exact_mut(spec.cols) {
                    for head in row[..turned].chunks_exact_mut(head) {
                        head.rotate_left(head.len() / 2);
                    }
                }
            }
            _ if !has(&spec) => values.fill(1.0),
            _ => {}
        }
    }
}

/// RMS norm of a row, without a gain.
fn norm(row: &mut [f32], eps: f32) {
    let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let factor = 1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt();
    for x in row {
        *x = (f64::from(*x) * factor) as f32;
    }
}
