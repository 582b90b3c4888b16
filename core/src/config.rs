//! The shape of a model, and the checks that make every later size computation safe.

use core::fmt;

/// Architecture of a GPT-2 style decoder: learned positions, pre-norm, GELU (tanh form).
///
/// Build one, then [`ModelConfig::validate`] it; everything that takes a config
/// validates it again and reports the same [`ConfigError`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Longest sequence, in tokens: rows of the position table.
    pub block_size: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads; divides `d_model`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward layer, usually `4 * d_model`.
    pub d_ff: usize,
    /// Biases in linear layers and norms.
    pub bias: bool,
    /// The output projection is the token table.
    pub tied: bool,
    /// Probability of dropout on embeddings, attention and both residual branches.
    pub dropout: f32,
    /// Added to the variance in layer norms.
    pub norm_eps: f32,
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
    /// Some size overflows this machine's address space.
    Overflow,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Zero(field) => write!(f, "{field} is 0: it must be at least 1"),
            Self::TooLarge(field, value) => {
                write!(f, "{field} is {value}: the largest accepted value is {MAX_DIMENSION}")
            }
            Self::Heads { d_model, n_head } => write!(
                f,
                "d_model {d_model} is not a multiple of n_head {n_head}: every head needs as many columns"
            ),
            Self::Dropout(p) => write!(f, "dropout is {p}: it must be at least 0 and below 1"),
            Self::NormEps(eps) => write!(f, "norm_eps is {eps}: it must be positive"),
            Self::Overflow => {
                f.write_str("the model is too large: its size overflows the address space")
            }
        }
    }
}

impl core::error::Error for ConfigError {}

impl ModelConfig {
    /// Checks every field. After `Ok`, products of any two dimensions fit in 64 bits.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("block_size", self.block_size),
            ("n_layer", self.n_layer),
            ("n_head", self.n_head),
            ("d_model", self.d_model),
            ("d_ff", self.d_ff),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(field));
            }
            if value > MAX_DIMENSION {
                return Err(ConfigError::TooLarge(field, value));
            }
        }
        if !self.d_model.is_multiple_of(self.n_head) {
            return Err(ConfigError::Heads { d_model: self.d_model, n_head: self.n_head });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::Dropout(self.dropout));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return Err(ConfigError::NormEps(self.norm_eps));
        }
        Ok(())
    }

    /// Columns of a head.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.d_model / self.n_head
    }

    /// Floating-point operations of one training step of `sequences` sequences of
    /// `tokens` tokens: `6 (n_layer (4 d^2 + 2 d d_ff) + V d)` a token for the matrix
    /// products, plus `6 n_layer T d` a token for causal attention. Norms, biases,
    /// activations and the optimizer are not counted; nor is recomputed work.
    #[must_use]
    pub fn step_flops(&self, sequences: usize, tokens: usize) -> f64 {
        let [v, l, d, f] =
            [self.vocab_size, self.n_layer, self.d_model, self.d_ff].map(|x| x as f64);
        let products = 6.0 * (l * (4.0 * d * d + 2.0 * d * f) + v * d);
        let attention = 6.0 * l * tokens as f64 * d;
        (products + attention) * sequences as f64 * tokens as f64
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
    fn flops_follow_the_published_formula() {
        // 26.5 + 0.8 = 27.3 MFLOP a token for the reference model.
        let per_token = GOOD.step_flops(32, 128) / 4096.0;
        assert!((per_token - 27.3e6).abs() < 0.1e6, "{per_token}");
    }
}
