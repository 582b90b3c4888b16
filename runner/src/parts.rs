//! What the blocks of a model are made of, by the names of the flags: for reports and for runs.

use core::fmt;

use cllm_core::{Activation, Architecture, NormKind, Positions, Rotary, Scaling};
use serde::{Deserialize, Serialize};

/// An [`Architecture`]; what is absent is GPT-2's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// How rows are normalised.
    pub norm: NormChoice,
    /// How a token's place is told.
    pub positions: PositionsChoice,
    /// What is between the two matrices of the feed-forward layer.
    pub activation: ActivationChoice,
    /// Base of the angles of rotary positions.
    pub rope_theta: f32,
    /// What is done to those angles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Heads of keys and values; `None` is as many as of queries.
    pub n_kv_head: Option<usize>,
    /// Columns of a head; `None` is an equal share of the width.
    pub head_size: Option<usize>,
    /// Biases of queries, keys and values in a model without others.
    pub qkv_bias: bool,
    /// Norms of each head of queries and keys.
    pub qk_norm: bool,
    /// The most tokens that a query sees; `None` is all of its sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Logits are kept between this and its negative; `None` is as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_softcap: Option<f32>,
    /// Tokens whose rows of the token table are added to that of the one behind them.
    #[serde(skip_serializing_if = "is_zero")]
    pub previous_tokens: usize,
    /// What embeddings are multiplied by.
    #[serde(skip_serializing_if = "is_one")]
    pub embedding_scale: f32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_one(scale: &f32) -> bool {
    *scale == 1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// [`NormKind`] by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormChoice {
    /// Layer norm.
    #[default]
    Layer,
    /// Root of the mean of squares.
    Rms,
}

/// [`Positions`] by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionsChoice {
    /// A table.
    #[default]
    Learned,
    /// Angles.
    Rotary,
}

/// [`Activation`] by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationChoice {
    /// GELU by tanh.
    #[default]
    Gelu,
    /// A gate's SiLU times what it lets through.
    Swiglu,
    /// The square of what is positive.
    Relu2,
}

/// [`Scaling`], in the words of `transformers`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "kebab-case")]
pub enum RopeScaling {
    /// All angles are divided by the factor.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Those of long waves are.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Waves in the original length up to which all of the factor counts.
        low_freq_factor: f32,
        /// Those from which on none of it does.
        high_freq_factor: f32,
        /// That length in tokens.
        original_max_position_embeddings: u32,
    },
}

/// Base of rotary angles unless told: that of the paper and of the first Llama.
pub const ROPE_THETA: f32 = 10_000.0;

impl Default for Parts {
    fn default() -> Self {
        Self::from(&Architecture::GPT2)
    }
}

impl Parts {
    /// Whether they are GPT-2's, which reports do not mention.
    #[must_use]
    pub fn is_gpt2(&self) -> bool {
        *self == Self::default()
    }

    /// The core's architecture, to be validated by a plan.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        Architecture {
            norm: match self.norm {
                NormChoice::Layer => NormKind::Layer,
                NormChoice::Rms => NormKind::Rms,
            },
            positions: match self.positions {
                PositionsChoice::Learned => Positions::Learned,
                PositionsChoice::Rotary => {
                    let scaling = self.rope_scaling.map_or(Scaling::None, Scaling::from);
                    Positions::Rotary(Rotary { theta: self.rope_theta, scaling })
                }
            },
            activation: match self.activation {
                ActivationChoice::Gelu => Activation::Gelu,
                ActivationChoice::Swiglu => Activation::SwiGlu,
                ActivationChoice::Relu2 => Activation::Relu2,
            },
            n_kv_head: self.n_kv_head,
            head_size: self.head_size,
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_norm,
            window: self.window,
            logit_softcap: self.logit_softcap,
            previous_tokens: self.previous_tokens,
            embedding_scale: self.embedding_scale,
        }
    }
}

impl fmt::Display for Parts {
    /// All that the flags say, in a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.norm {
            NormChoice::Layer => "layer norm",
            NormChoice::Rms => "rms norm",
        })?;
        match (self.positions, &self.rope_scaling) {
            (PositionsChoice::Learned, _) => f.write_str(", learned positions")?,
            (PositionsChoice::Rotary, None) => {
                write!(f, ", rotary positions (theta {})", self.rope_theta)?;
            }
            (PositionsChoice::Rotary, Some(scaling)) => {
                let (kind, factor) = match scaling {
                    RopeScaling::Linear { factor } => ("linear", factor),
                    RopeScaling::Llama3 { factor, .. } => ("llama3", factor),
                };
                let theta = self.rope_theta;
                write!(f, ", rotary positions (theta {theta}, {kind} scaling by {factor})")?;
            }
        }
        f.write_str(match self.activation {
            ActivationChoice::Gelu => ", gelu",
            ActivationChoice::Swiglu => ", swiglu",
            ActivationChoice::Relu2 => ", relu2",
        })?;
        if let Some(heads) = self.n_kv_head {
            write!(f, ", {heads} heads of keys and values")?;
        }
        if let Some(size) = self.head_size {
            write!(f, ", heads of {size} columns")?;
        }
        if self.qkv_bias {
            f.write_str(", biases of queries, keys and values")?;
        }
        if self.qk_norm {
            f.write_str(", norms of heads of queries and keys")?;
        }
        if let Some(window) = self.window {
            write!(f, ", a window of {window} tokens")?;
        }
        if let Some(cap) = self.logit_softcap {
            write!(f, ", logits capped at {cap}")?;
        }
        if self.previous_tokens > 0 {
            write!(f, ", embeddings of {} previous tokens", self.previous_tokens)?;
        }
        if self.embedding_scale != 1.0 {
            write!(f, ", embeddings times {}", self.embedding_scale)?;
        }
        Ok(())
    }
}

impl From<&Architecture> for Parts {
    fn from(arch: &Architecture) -> Self {
        let (positions, rope_theta, rope_scaling) = match arch.positions {
            Positions::Learned => (PositionsChoice::Learned, ROPE_THETA, None),
            Positions::Rotary(Rotary { theta, scaling }) => {
                (PositionsChoice::Rotary, theta, RopeScaling::of(scaling))
            }
        };
        Self {
            norm: match arch.norm {
                NormKind::Layer => NormChoice::Layer,
                NormKind::Rms => NormChoice::Rms,
            },
            positions,
            activation: match arch.activation {
                Activation::Gelu => ActivationChoice::Gelu,
                Activation::SwiGlu => ActivationChoice::Swiglu,
                Activation::Relu2 => ActivationChoice::Relu2,
            },
            rope_theta,
            rope_scaling,
            n_kv_head: arch.n_kv_head,
            head_size: arch.head_size,
            qkv_bias: arch.qkv_bias,
            qk_norm: arch.qk_norm,
            window: arch.window,
            logit_softcap: arch.logit_softcap,
            previous_tokens: arch.previous_tokens,
            embedding_scale: arch.embedding_scale,
        }
    }
}

impl RopeScaling {
    /// `None` if nothing is scaled.
    #[must_use]
    pub fn of(scaling: Scaling) -> Option<Self> {
        match scaling {
            Scaling::None => None,
            Scaling::Linear { factor } => Some(Self::Linear { factor }),
            Scaling::Llama3 { factor, low, high, original } => Some(Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            }),
        }
    }
}

impl From<RopeScaling> for Scaling {
    fn from(scaling: RopeScaling) -> Self {
        match scaling {
            RopeScaling::Linear { factor } => Self::Linear { factor },
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => Self::Llama3 { factor, low, high, original },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_read_again() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 };
        let positions = Positions::Rotary(Rotary { theta: 5e5, scaling });
        let large = Architecture {
            positions,
            n_kv_head: Some(2),
            head_size: Some(64),
            qkv_bias: true,
            qk_norm: true,
            window: Some(512),
            logit_softcap: Some(15.0),
            previous_tokens: 3,
            embedding_scale: 8.0,
            ..Architecture::LLAMA
        };
        let squared = Architecture { activation: Activation::Relu2, ..Architecture::GPT2 };
        assert!(Parts::from(&squared).to_string().ends_with(", relu2"));
        for arch in [Architecture::GPT2, Architecture::LLAMA, large, squared] {
            let text = serde_json::to_string(&Parts::from(&arch)).unwrap();
            let parts: Parts = serde_json::from_str(&text).unwrap();
            assert_eq!(parts.architecture(), arch, "{text}");
            assert_eq!(parts.is_gpt2(), arch == Architecture::GPT2);
        }
        let large = Parts::from(&large).to_string();
        let expected = "rms norm, rotary positions (theta 500000, llama3 scaling by 8), swiglu, \
            2 heads of keys and values, heads of 64 columns, biases of queries, keys and values, \
            norms of heads of queries and keys, a window of 512 tokens, logits capped at 15, \
            embeddings of 3 previous tokens, embeddings times 8";
        assert_eq!(large, expected);
        let parts: Parts = serde_json::from_str(r#"{"norm": "rms"}"#).unwrap();
        let rms = Architecture { norm: NormKind::Rms, ..Architecture::GPT2 };
        assert_eq!(parts.architecture(), rms);
    }
}
