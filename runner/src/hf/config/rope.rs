//! Angles of rotary positions in a `config.json`: `rope_theta` and `rope_scaling`, or, in newer ones, both
//! of them in `rope_parameters`.

use cllm_core::{Rotary, Scaling};
use serde_json::{Value, json};

use super::fields::Fields;
use super::{digits, unsupported};
use crate::parts::ROPE_THETA;

/// The angles of a model whose sequences have up to `length` tokens.
pub(super) fn read(fields: Fields<'_>, length: usize) -> Result<Rotary, String> {
    // The older comes first, as it does there; an empty one counts as none.
    let inner = match fields.inner("rope_scaling")? {
        Some(inner) if !inner.is_empty() => inner,
        _ => fields.inner("rope_parameters")?.unwrap_or_default(),
    };
    if let Some(layers) = inner.first_object() {
        return Err(format!("{layers} is not supported: all layers have the same angles here"));
    }
    let theta = match inner.optional("rope_theta", None)? {
        Some(theta) => theta,
        None => fields.or("rope_theta", ROPE_THETA)?,
    };
    for fields in [fields, inner] {
        let turned = fields.optional("partial_rotary_factor", None)?.unwrap_or(1.0_f32);
        if turned != 1.0 {
            return Err(unsupported("partial_rotary_factor", &turned, &1));
        }
    }
    let kind: Option<String> = inner.optional("rope_type", None)?;
    let kind = match kind {
        Some(kind) => kind,
        None => inner.or("type", "default".to_owned())?,
    };
    let scaling = match kind.as_str() {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: inner.wanted("factor")? },
        "llama3" => {
            let original = "original_max_position_embeddings";
            let given: Option<usize> = match fields.optional(original, None)? {
                Some(given) => Some(given),
                None => inner.optional(original, None)?,
            };
            Scaling::Llama3 {
                factor: inner.wanted("factor")?,
                low: inner.wanted("low_freq_factor")?,
                high: inner.wanted("high_freq_factor")?,
                original: u32::try_from(given.unwrap_or(length))
                    .map_err(|_| format!("{original} is too large"))?,
            }
        }
        other => {
            return Err(format!(
                "{} of rope_type {other:?} is not supported; \"default\", \"linear\" and \"llama3\" are",
                inner.name()
            ));
        }
    };
    Ok(Rotary { theta, scaling })
}

/// What `rope_scaling` is written as.
pub(super) fn scaling(scaling: Scaling) -> Value {
    match scaling {
        Scaling::None => Value::Null,
        Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": digits(factor) }),
        Scaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3",
            "factor": digits(factor),
            "low_freq_factor": digits(low),
            "high_freq_factor": digits(high),
            "original_max_position_embeddings": original,
        }),
    }
}
