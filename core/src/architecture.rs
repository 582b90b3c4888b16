//! What the blocks of a model are made of: GPT-2's parts, or those of the Llama family.

use crate::built::{LLAMA, LeftOut};
use crate::config::ConfigError;

/// The parts of a model, its sizes aside. Start from [`Architecture::GPT2`] or
/// [`Architecture::LLAMA`] and change what differs.
///
/// SmolLM2 135M, with a head of keys and values for three of queries:
///
/// ```
/// use cllm_core::{Architecture, ModelConfig, ParamTable, Positions, Rotary, Scaling};
///
/// let arch = Architecture {
///     n_kv_head: Some(3),
///     positions: Positions::Rotary(Rotary { theta: 1e5, scaling: Scaling::None }),
///     ..Architecture::LLAMA
/// };
/// let config = ModelConfig {
///     vocab_size: 49_152,
///     block_size: 8192,
///     n_layer: 30,
///     n_head: 9,
///     d_model: 576,
///     d_ff: 1536,
///     bias: false,
///     tied: true,
///     dropout: 0.0,
///     norm_eps: 1e-5,
///     arch,
/// };
/// assert_eq!((config.head_size(), config.kv_width()), (64, 192));
/// assert_eq!(ParamTable::new(&config)?.parameters(), 134_515_008);
/// # Ok::<(), cllm_core::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// How rows are normalised.
    pub norm: NormKind,
    /// How a token's place is told.
    pub positions: Positions,
    /// What is between the two matrices of the feed-forward layer.
    pub activation: Activation,
    /// Heads of keys and values, each for `n_head / n_kv_head` heads of queries in their order
    /// (Ainslie et al., "GQA: training generalized multi-query transformer models", 2023).
    /// `None`: as many as `n_head`.
    pub n_kv_head: Option<usize>,
    /// Columns of a head. `None`: `d_model / n_head`.
    pub head_size: Option<usize>,
    /// Biases of queries, keys and values in a model that has no others (Qwen2).
    pub qkv_bias: bool,
    /// RMS norms of each head of queries and of keys, with a gain of `head_size` for all heads of
    /// queries and one for those of keys, before they are turned (Qwen3; Henry et al., "Query-key
    /// normalization for transformers", 2020).
    pub qk_norm: bool,
    /// The most tokens that a query sees, the last ones up to its own (Jiang et al., "Mistral 7B",
    /// 2023, section 2); `None`: all of its sequence.
    pub window: Option<usize>,
    /// Logits are kept between this and its negative: `cap tanh(logit / cap)` (Gemma Team, "Gemma 2:
    /// improving open language models at a practical size", 2024, section 2). `None`: they are as they are.
    pub logit_softcap: Option<f32>,
    /// So many tokens before each one have their rows of the token table added to its own, each by a weight
    /// for each column, which is zero at first: what stands together is seen before there is any
    /// attention to it (a shift of tokens as in Peng et al., "RWKV: reinventing RNNs for the transformer era",
    /// 2023, section 3.1, of embeddings alone). At most [`Architecture::MOST_PREVIOUS`].
    pub previous_tokens: usize,
    /// The input of the first block is so many times the sum of its embeddings, of tokens and of what is added to
    /// them; 1: the sum itself. Tables begin small, and an optimizer whose steps are all as long has them grow
    /// slowly (Gemma Team, "Gemma: open models based on Gemini research and technology", 2024, has the root of
    /// `d_model`; IBM's Granite an `embedding_multiplier`).
    pub embedding_scale: f32,
}

/// How rows are normalised, with a gain for each column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Layer norm: mean and variance.
    Layer,
    /// The root of the mean of squares; no mean is taken off, and there is no bias.
    Rms,
}

/// How a token's place in its sequence is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// A table of `block_size x d_model` that is added to the embedding.
    Learned,
    /// Queries and keys are turned by angles that grow with the position.
    Rotary(Rotary),
}

/// Angles of rotary positions: pair `i` of a head of `n` columns turns by
/// `theta^(-2 i / n)` a token, changed by the scaling
/// (Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// The base of the angles.
    pub theta: f32,
    /// How a model is stretched beyond the lengths that it was first trained on.
    pub scaling: Scaling,
}

/// What is done to the angles of a model that was stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Nothing.
    None,
    /// All are divided by the factor (Chen et al., "Extending context window of large language
    /// models via positional interpolation", 2023).
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Those of waves longer than `original / low` tokens are divided by the factor, those of waves
    /// shorter than `original / high` stay, and between the two they go over from one to the other, as
    /// Llama 3.1 does it.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Positive.
        low: f32,
        /// Above `low`.
        high: f32,
        /// Tokens of a sequence before stretching.
        original: u32,
    },
}

/// What is between the two matrices of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form.
    Gelu,
    /// SwiGLU: the first matrix has `2 d_ff` columns, of which the SiLU of the first `d_ff` is
    /// multiplied with the others (Shazeer, "GLU variants improve transformer", 2020).
    SwiGlu,
    /// `max(x, 0)^2` (So et al., "Primer: searching for efficient transformers for language modeling",
    /// 2021, section 4).
    Relu2,
}

/// The smallest and the largest cap of logits and scale of embeddings: far beyond what is of use, and safe to divide by.
const SCALES: [f32; 2] = [1e-3, 1e6];

impl Architecture {
    /// GPT-2: layer norm, learned positions, GELU, a head of keys and values for each of queries.
    pub const GPT2: Self = Self {
        norm: NormKind::Layer,
        positions: Positions::Learned,
        activation: Activation::Gelu,
        n_kv_head: None,
        head_size: None,
        qkv_bias: false,
        qk_norm: false,
        window: None,
        logit_softcap: None,
        previous_tokens: 0,
        embedding_scale: 1.0,
    };

    /// The most tokens before each one: more are rather seen by attention.
    pub const MOST_PREVIOUS: usize = 16;

    /// Llama: RMS norm, rotary positions, SwiGLU. Its models have no biases.
    pub const LLAMA: Self = Self {
        norm: NormKind::Rms,
        positions: Positions::Rotary(Rotary { theta: 10_000.0, scaling: Scaling::None }),
        activation: Activation::SwiGlu,
        ..Self::GPT2
    };

    /// The angles, if positions are rotary.
    #[must_use]
    pub const fn rotary(&self) -> Option<Rotary> {
        match self.positions {
            Positions::Rotary(rotary) if LLAMA => Some(rotary),
            _ => None,
        }
    }

    /// Whether the first matrix of the feed-forward layer has a gate beside what it lets through.
    #[must_use]
    pub const fn is_gated(&self) -> bool {
        LLAMA && matches!(self.activation, Activation::SwiGlu)
    }

    /// Whether norms take means off, and may have biases.
    pub(crate) const fn has_means(&self) -> bool {
        !LLAMA || matches!(self.norm, NormKind::Layer)
    }

    /// Whether there is a table of positions.
    pub(crate) const fn has_table(&self) -> bool {
        !LLAMA || matches!(self.positions, Positions::Learned)
    }

    /// Whether heads of queries and keys are normalised.
    pub(crate) const fn norms_heads(&self) -> bool {
        LLAMA && self.qk_norm
    }

    /// The cap of logits.
    pub(crate) const fn cap(&self) -> Option<f32> {
        if LLAMA { self.logit_softcap } else { None }
    }

    /// Tokens whose rows are added to that of the one behind them.
    pub(crate) const fn previous(&self) -> usize {
        if LLAMA { self.previous_tokens } else { 0 }
    }

    /// What embeddings are multiplied by, if it makes a difference.
    pub(crate) const fn scale(&self) -> Option<f32> {
        if LLAMA && self.embedding_scale != 1.0 { Some(self.embedding_scale) } else { None }
    }

    /// What of it GPT-2 has not.
    const fn part_of_llama(&self) -> Option<&'static str> {
        if self.embedding_scale != 1.0 {
            return Some("scaled embeddings");
        }
        Some(match self {
            Self { norm: NormKind::Rms, .. } => "RMS norms",
            Self { positions: Positions::Rotary(_), .. } => "rotary positions",
            Self { activation: Activation::SwiGlu, .. } => "SwiGLU",
            Self { n_kv_head: Some(_), .. } => "heads that share keys and values",
            Self { qk_norm: true, .. } => "norms of heads",
            Self { logit_softcap: Some(_), .. } => "capped logits",
            Self { previous_tokens: 1.., .. } => "embeddings of previous tokens",
            _ => return None,
        })
    }

    /// # Errors
    /// A part that is not built; a cap or an angle of no use.
    pub(crate) const fn check(&self) -> Result<(), ConfigError> {
        /// NaN is no larger than anything.
        const fn above(x: f32, least: f32) -> bool {
            x > least && x.is_finite()
        }
        if !LLAMA && let Some(part) = self.part_of_llama() {
            return Err(ConfigError::LeftOut(LeftOut { part, feature: "llama" }));
        }
        match self.logit_softcap {
            Some(cap) if !(cap >= SCALES[0] && cap <= SCALES[1]) => {
                return Err(ConfigError::LogitSoftcap(cap));
            }
            _ => {}
        }
        if self.previous_tokens > Self::MOST_PREVIOUS {
            return Err(ConfigError::PreviousTokens(self.previous_tokens));
        }
        let scale = self.embedding_scale;
        if !(scale >= SCALES[0] && scale <= SCALES[1]) {
            return Err(ConfigError::EmbeddingScale(scale));
        }
        let Some(Rotary { theta, scaling }) = self.rotary() else { return Ok(()) };
        if !above(theta, 1.0) {
            return Err(ConfigError::Theta(theta));
        }
        let (factor, fits) = match scaling {
            Scaling::None => return Ok(()),
            Scaling::Linear { factor } => (factor, true),
            Scaling::Llama3 { factor, low, high, original } => {
                (factor, above(low, 0.0) && above(high, low) && original > 0)
            }
        };
        if factor == 1.0 || above(factor, 1.0) {
            return if fits { Ok(()) } else { Err(ConfigError::Scaling) };
        }
        Err(ConfigError::ScalingFactor(factor))
    }
}
