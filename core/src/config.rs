//! The shape of a model, and the checks that make every later size computation safe.

use crate::architecture::Architecture;
use crate::arithmetic::ok;
use crate::built::{DOCUMENTS, DROPOUT, LLAMA, LeftOut};
use crate::message::Argument::{Float, Number, Word};
use crate::message::Message;
use core::fmt;

/// Architecture of a decoder with norms before its layers: GPT-2's parts or Llama's.
///
/// Build one, then [`ModelConfig::validate`] it; everything that takes a config
/// validates it again and reports the same [`ConfigError`].
///
/// ```
/// use cllm_core::{Architecture, ConfigError, ModelConfig, ParamTable};
///
/// let gpt2 = ModelConfig {
///     vocab_size: 50_257,
///     block_size: 1024,
///     n_layer: 12,
///     n_head: 12,
///     d_model: 768,
///     d_ff: 4 * 768,
///     bias: true,
///     tied: true,
///     dropout: 0.0,
///     norm_eps: 1e-5,
///     arch: Architecture::GPT2,
/// };
/// assert_eq!(gpt2.validate(), Ok(()));
/// assert_eq!(ParamTable::new(&gpt2)?.parameters(), 124_439_808);
///
/// let odd = ModelConfig { n_head: 7, ..gpt2 };
/// assert_eq!(odd.validate(), Err(ConfigError::Heads { d_model: 768, n_head: 7 }));
/// # Ok::<(), ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Longest sequence, in tokens; rows of the position table, if there is one.
    pub block_size: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads, of queries; divides `d_model` unless the architecture has a `head_size`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward layer, usually `4 * d_model`.
    pub d_ff: usize,
    /// Biases in linear layers, and in norms that have any.
    pub bias: bool,
    /// The output projection is the token table.
    pub tied: bool,
    /// Probability of dropout on embeddings, attention and both residual branches.
    pub dropout: f32,
    /// Added to the variance in layer norms, and to the mean of squares in RMS norms.
    pub norm_eps: f32,
    /// What blocks are made of.
    pub arch: Architecture,
}

/// Largest accepted value of any single dimension: keeps products of two in 64 bits
/// and token ids below [`cllm_kernels::IGNORE`].
pub const MAX_DIMENSION: usize = 1 << 28;

/// What is wrong with a [`ModelConfig`]. Field names are those of the config.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConfigError {
    /// The field must be at least 1.
    Zero(&'static str),
    /// The field exceeds [`MAX_DIMENSION`].
    TooLarge(&'static str, usize),
    /// `d_model` is not a multiple of `n_head`.
    Heads {
        /// The width.
        d_model: usize,
        /// The heads that do not divide it.
        n_head: usize,
    },
    /// Dropout outside `0.0..1.0` (or NaN).
    Dropout(f32),
    /// `norm_eps` is not a positive finite number.
    NormEps(f32),
    /// `n_head` is not a multiple of `n_kv_head`.
    KvHeads {
        /// Heads of queries.
        n_head: usize,
        /// The heads of keys and values that do not divide them.
        n_kv_head: usize,
    },
    /// Rotary positions turn pairs of columns, of which a head of this size does not consist.
    OddHead(usize),
    /// The base of rotary angles is not above 1.
    Theta(f32),
    /// The factor of the scaling of rotary angles is not at least 1.
    ScalingFactor(f32),
    /// The waves of the scaling of rotary angles are not `0 < low < high`, of at least one token.
    Scaling,
    /// The cap of logits is not at least 0.001 and at most a million.
    LogitSoftcap(f32),
    /// There are more than [`Architecture::MOST_PREVIOUS`] previous tokens.
    PreviousTokens(usize),
    /// The scale of embeddings is not at least 0.001 and at most a million.
    EmbeddingScale(f32),
    /// A part of the model is not built into this program.
    LeftOut(LeftOut),
    /// Some size overflows this machine's address space.
    Overflow,
}

impl ConfigError {
    /// What is said of it.
    pub(crate) const fn message(&self) -> Message {
        match *self {
            Self::Zero(field) => Message::one("", Word(field), " is 0: it must be at least 1"),
            Self::TooLarge(field, value) => Message::three(
                Word(field),
                " is ",
                Number(value),
                ": the largest accepted value is ",
                Number(MAX_DIMENSION),
            ),
            Self::Heads { d_model, n_head } => Message::two(
                "d_model ",
                Number(d_model),
                " is not a multiple of n_head ",
                Number(n_head),
                ": every head needs as many columns",
            ),
            Self::Dropout(p) => {
                Message::one("dropout is ", Float(p), ": it must be at least 0 and below 1")
            }
            Self::NormEps(eps) => Message::one("norm_eps is ", Float(eps), ": it must be positive"),
            Self::KvHeads { n_head, n_kv_head } => Message::two(
                "n_head ",
                Number(n_head),
                " is not a multiple of n_kv_head ",
                Number(n_kv_head),
                ": every head of keys and values serves as many of queries",
            ),
            Self::OddHead(size) => Message::one(
                "heads have ",
                Number(size),
                " columns: rotary positions turn pairs, so it must be an even number",
            ),
            Self::Theta(theta) => Message::one(
                "the theta of rotary positions is ",
                Float(theta),
                ": it must be above 1",
            ),
            Self::ScalingFactor(factor) => Message::one(
                "the factor of rotary scaling is ",
                Float(factor),
                ": it must be at least 1",
            ),
            Self::Scaling => Message::plain(
                "rotary scaling needs 0 < low < high frequency factors, and an original length of at least 1",
            ),
            Self::LogitSoftcap(cap) => Message::one(
                "logit_softcap is ",
                Float(cap),
                ": it must be at least 0.001 and at most 1000000; models without have none",
            ),
            Self::PreviousTokens(count) => Message::two(
                "previous_tokens is ",
                Number(count),
                ": at most ",
                Number(Architecture::MOST_PREVIOUS),
                " are added to each token",
            ),
            Self::EmbeddingScale(scale) => Message::one(
                "embedding_scale is ",
                Float(scale),
                ": it must be at least 0.001 and at most 1000000; 1 leaves them as they are",
            ),
            Self::LeftOut(missing) => missing.message(),
            Self::Overflow => {
                Message::plain("the model is too large: its size overflows the address space")
            }
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl core::error::Error for ConfigError {}

impl ModelConfig {
    /// Checks every field. After `Ok`, products of any two dimensions fit in 64 bits.
    ///
    /// # Errors
    /// The first field found wrong.
    pub const fn validate(&self) -> Result<(), ConfigError> {
        const fn or_one(value: Option<usize>) -> usize {
            match value {
                Some(value) => value,
                None => 1,
            }
        }
        let fields = [
            ("vocab_size", self.vocab_size),
            ("block_size", self.block_size),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("d_model", self.d_model),
            ("d_ff", self.d_ff),
            ("n_kv_head", self.kv_heads()),
            ("head_size", or_one(self.arch.head_size)),
            ("window", or_one(self.arch.window)),
        ];
        let mut i = 0;
        while i < fields.len() {
            let (field, value) = fields[i];
            if value == 0 {
                return Err(ConfigError::Zero(field));
            }
            if value > MAX_DIMENSION {
                return Err(ConfigError::TooLarge(field, value));
            }
            i += 1;
        }
        if self.arch.head_size.is_none() && !self.d_model.is_multiple_of(self.n_head) {
            return Err(ConfigError::Heads { d_model: self.d_model, n_head: self.n_head });
        }
        let width = self.n_head.saturating_mul(self.head_size());
        if width > MAX_DIMENSION {
            return Err(ConfigError::TooLarge("n_head * head_size", width));
        }
        let (n_head, n_kv_head) = (self.n_head, self.kv_heads());
        if !n_head.is_multiple_of(n_kv_head) {
            return Err(ConfigError::KvHeads { n_head, n_kv_head });
        }
        if self.arch.rotary().is_some() && !self.head_size().is_multiple_of(2) {
            return Err(ConfigError::OddHead(self.head_size()));
        }
        ok!(self.arch.check());
        if !(self.dropout >= 0.0 && self.dropout < 1.0) {
            return Err(ConfigError::Dropout(self.dropout));
        }
        if !DROPOUT && self.dropout > 0.0 {
            return Err(ConfigError::LeftOut(LeftOut { part: "dropout", feature: "dropout" }));
        }
        if !DOCUMENTS && self.arch.window.is_some() {
            let (part, feature) = ("windows of attention", "documents");
            return Err(ConfigError::LeftOut(LeftOut { part, feature }));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(ConfigError::NormEps(self.norm_eps));
        }
        Ok(())
    }

    /// The same model with nothing said that goes without saying: as many heads of keys and values as of
    /// queries, heads of an equal share of the width, biases of queries, keys and values where all have
    /// them, a window of the longest sequence. So models that compute the same are equal.
    #[must_use]
    pub fn normal(self) -> Self {
        let Self { block_size, n_head, d_model, bias, arch, .. } = self;
        let n_kv_head = arch.n_kv_head.filter(|heads| *heads != n_head);
        let head_size = arch.head_size.filter(|size| size.checked_mul(n_head) != Some(d_model));
        let qkv_bias = arch.qkv_bias && !bias;
        let window = arch.window.filter(|window| *window < block_size);
        Self { arch: Architecture { n_kv_head, head_size, qkv_bias, window, ..arch }, ..self }
    }

    /// Columns of a head.
    #[must_use]
    #[cfg_attr(feature = "compact", inline(never))]
    pub const fn head_size(&self) -> usize {
        match self.arch.head_size {
            Some(size) => size,
            None => self.d_model / self.n_head,
        }
    }

    /// Heads of keys and values.
    #[must_use]
    pub const fn kv_heads(&self) -> usize {
        match self.arch.n_kv_head {
            Some(heads) if LLAMA => heads,
            _ => self.n_head,
        }
    }

    /// Columns of all heads of queries, and of the output of attention.
    #[must_use]
    #[cfg_attr(feature = "compact", inline(never))]
    pub const fn query_width(&self) -> usize {
        self.n_head * self.head_size()
    }

    /// Columns of all keys, and as many of all values.
    #[must_use]
    pub const fn kv_width(&self) -> usize {
        self.kv_heads() * self.head_size()
    }

    /// Columns of queries, keys and values side by side.
    #[must_use]
    pub const fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Columns of the first matrix of the feed-forward layer: with a gate twice `d_ff`.
    #[must_use]
    pub const fn fc_width(&self) -> usize {
        if self.arch.is_gated() { 2 * self.d_ff } else { self.d_ff }
    }

    /// Inputs and outputs of the four matrices of a block: queries, keys and values; output of
    /// attention; the two of the feed-forward layer.
    pub(crate) const fn matrices(&self) -> [(usize, usize); 4] {
        let d = self.d_model;
        [(d, self.qkv_width()), (self.query_width(), d), (d, self.fc_width()), (self.d_ff, d)]
    }

    /// Whether norms have biases.
    pub(crate) const fn has_norm_bias(&self) -> bool {
        self.bias && self.arch.has_means()
    }

    /// Vectors of a norm: the gain, and the bias if there is one.
    pub(crate) const fn norm_vectors(&self) -> usize {
        1 + self.has_norm_bias() as usize
    }

    /// Floating-point operations of one training step of `sequences` sequences of
    /// `tokens` tokens: `6 (n_layer (d (a + 2 b) + a d + d f' + f d) + V d)` a token for the matrix
    /// products, with the widths a of queries, b of keys, f of the feed-forward layer and f' of
    /// its first matrix, plus `6 n_layer T a` a token for causal attention. Norms, biases,
    /// activations, rotations and the optimizer are not counted; nor is recomputed work.
    ///
    /// For GPT-2, with `a = b = d` and `f' = f`, that is `6 (n_layer (4 d^2 + 2 d f) + V d)` and
    /// `6 n_layer T d`.
    #[must_use]
    pub fn step_flops(&self, sequences: usize, tokens: usize) -> f64 {
        let products = 6.0 * self.matrix_values();
        (products + self.attention_flops(tokens)) * sequences as f64 * tokens as f64
    }

    /// Values of all matrices that a token is multiplied with.
    pub(crate) fn matrix_values(&self) -> f64 {
        let float = |x: usize| x as f64;
        let block: f64 = self.matrices().iter().map(|(k, n)| float(*k) * float(*n)).sum();
        float(self.n_layer) * block + float(self.vocab_size) * float(self.d_model)
    }

    /// Floating-point operations of causal attention for a token of a sequence of `tokens`, there and
    /// back.
    pub(crate) fn attention_flops(&self, tokens: usize) -> f64 {
        6.0 * self.n_layer as f64 * tokens as f64 * self.query_width() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: ModelConfig = ModelConfig {
        vocab_size: 5000,
        block_size: 128,
        n_layer: 4,
        n_head: 8,
        d_model: 256,
        d_ff: 1024,
        bias: true,
        tied: true,
        dropout: 0.0,
        norm_eps: 1e-5,
        arch: Architecture::GPT2,
    };

    #[test]
    fn each_field_is_checked() {
        assert_eq!(GOOD.validate(), Ok(()));
        let zero = ModelConfig { n_layer: 0, ..GOOD };
        assert_eq!(zero.validate(), Err(ConfigError::Zero("n_layer")));
        let huge = ModelConfig { vocab_size: usize::MAX, ..GOOD };
        assert_eq!(huge.validate(), Err(ConfigError::TooLarge("vocab_size", usize::MAX)));
        let heads = ModelConfig { n_head: 7, ..GOOD };
        assert_eq!(heads.validate(), Err(ConfigError::Heads { d_model: 256, n_head: 7 }));
        for p in [1.0, -0.1, f32::NAN] {
            assert!(matches!(
                ModelConfig { dropout: p, ..GOOD }.validate(),
                Err(ConfigError::Dropout(_))
            ));
        }
        for eps in [0.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(
                ModelConfig { norm_eps: eps, ..GOOD }.validate(),
                Err(ConfigError::NormEps(_))
            ));
        }
    }

    #[test]
    fn parts_of_the_llama_family_are_checked() {
        use crate::architecture::{Positions, Rotary, Scaling};
        let with = |change: fn(&mut Architecture)| {
            let mut arch = Architecture::LLAMA;
            change(&mut arch);
            ModelConfig { bias: false, arch, ..GOOD }.validate()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|a| a.n_kv_head = Some(2)), Ok(()));
        assert_eq!(
            with(|a| a.n_kv_head = Some(3)),
            Err(ConfigError::KvHeads { n_head: 8, n_kv_head: 3 })
        );
        assert_eq!(with(|a| a.n_kv_head = Some(0)), Err(ConfigError::Zero("n_kv_head")));
        assert_eq!(with(|a| a.head_size = Some(0)), Err(ConfigError::Zero("head_size")));
        assert_eq!(with(|a| a.window = Some(0)), Err(ConfigError::Zero("window")));
        assert_eq!(with(|a| a.window = Some(1)), Ok(()));
        assert_eq!(with(|a| a.head_size = Some(7)), Err(ConfigError::OddHead(7)));
        assert_eq!(
            with(|a| a.head_size = Some(MAX_DIMENSION)),
            Err(ConfigError::TooLarge("n_head * head_size", 8 * MAX_DIMENSION))
        );
        let turned = |theta: f32, scaling: Scaling| {
            let positions = Positions::Rotary(Rotary { theta, scaling });
            let arch = Architecture { positions, ..Architecture::LLAMA };
            ModelConfig { bias: false, arch, ..GOOD }.validate()
        };
        for theta in [1.0, -5.0, f32::INFINITY] {
            assert_eq!(turned(theta, Scaling::None), Err(ConfigError::Theta(theta)));
        }
        assert!(matches!(turned(f32::NAN, Scaling::None), Err(ConfigError::Theta(_))));
        assert_eq!(
            turned(1e4, Scaling::Linear { factor: 0.5 }),
            Err(ConfigError::ScalingFactor(0.5))
        );
        let llama3 = |factor, low, high, original| {
            turned(5e5, Scaling::Llama3 { factor, low, high, original })
        };
        assert_eq!(llama3(8.0, 1.0, 4.0, 8192), Ok(()));
        assert_eq!(llama3(8.0, 4.0, 4.0, 8192), Err(ConfigError::Scaling));
        assert_eq!(llama3(8.0, 1.0, 4.0, 0), Err(ConfigError::Scaling));
        // A head may be wider than its share of the model, or not divide it.
        let wide = Architecture { head_size: Some(10), ..Architecture::LLAMA };
        let config = ModelConfig { n_head: 7, bias: false, arch: wide, ..GOOD };
        assert_eq!(config.validate(), Ok(()));
        assert_eq!((config.query_width(), config.qkv_width()), (70, 210));
    }

    #[test]
    fn what_goes_without_saying_makes_no_other_model() {
        let said = Architecture {
            n_kv_head: Some(8),
            head_size: Some(32),
            qkv_bias: true,
            window: Some(128),
            ..Architecture::GPT2
        };
        let config = ModelConfig { arch: said, ..GOOD };
        assert_eq!((config.validate(), config.normal()), (Ok(()), GOOD));
        let other =
            Architecture { n_kv_head: Some(4), head_size: Some(16), window: Some(127), ..said };
        let config = ModelConfig { arch: other, bias: false, ..GOOD };
        assert_eq!(config.normal(), config);
    }

    #[test]
    fn a_models_own_widths_are_counted() {
        let arch = Architecture { n_kv_head: Some(2), head_size: Some(64), ..Architecture::LLAMA };
        let config = ModelConfig { bias: false, arch, ..GOOD };
        // 8 and 2 heads of 64, d 256, f 1024 and its gate.
        let block = 256.0 * (512.0 + 2.0 * 128.0) + 512.0 * 256.0 + 3.0 * 256.0 * 1024.0;
        let token = 6.0 * (4.0 * block + 5000.0 * 256.0) + 6.0 * 4.0 * 128.0 * 512.0;
        assert_eq!(config.step_flops(1, 128), token * 128.0);
    }

    #[test]
    fn flops_follow_the_published_formula() {
        // 26.5 + 0.8 = 27.3 MFLOP a token for the reference model.
        let per_token = GOOD.step_flops(32, 128) / 4096.0;
        assert!((per_token - 27.3e6).abs() < 0.1e6, "{per_token}");
    }
}
