//! The table of parameters: the one order that initialiser, optimizer, checkpoint
//! and export know.
//!
//! Weights, gradients and both moments are flat arenas of the same layout: each
//! tensor starts on a cache line and the gap behind it stays zero. Matrices of
//! linear layers are `inputs x outputs` (`y = x W + b`), the token table and the
//! output projection `vocab_size x d_model`. A model has those of the tensors that its
//! architecture and its `bias` ask for; what lies side by side is one tensor, as in GPT-2.

use crate::arithmetic::{ok, some};
use crate::config::{ConfigError, ModelConfig};
use crate::line::LANES;
use core::fmt::Write as _;

/// A tensor of the model; those of a block carry its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// Token table, `vocab_size x d_model`.
    TokenTable,
    /// Position table, `block_size x d_model`; absent where positions are rotary.
    PositionTable,
    /// A tensor of a block.
    Block(usize, BlockParam),
    /// Gain of the final norm.
    FinalGain,
    /// Bias of the final norm.
    FinalBias,
    /// Output projection, `vocab_size x d_model`; absent when tied.
    Head,
}

/// The tensors of one block, in table order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockParam {
    /// Gain of the norm before attention.
    Norm1Gain,
    /// Its bias.
    Norm1Bias,
    /// Queries, keys and values side by side, `d_model x (query_width + 2 kv_width)`.
    Qkv,
    /// Their bias.
    QkvBias,
    /// Gain of the norm of a head of queries, `head_size`; absent without such norms.
    QueryNormGain,
    /// That of a head of keys.
    KeyNormGain,
    /// Output projection of attention, `query_width x d_model`.
    AttnOut,
    /// Its bias.
    AttnOutBias,
    /// Gain of the norm before the feed-forward layer.
    Norm2Gain,
    /// Its bias.
    Norm2Bias,
    /// First matrix of the feed-forward layer, `d_model x d_ff`; with SwiGLU the gate's and then
    /// that of what it lets through, `d_model x 2 d_ff`.
    Fc,
    /// Its bias.
    FcBias,
    /// Second matrix of the feed-forward layer, `d_ff x d_model`.
    MlpOut,
    /// Its bias.
    MlpOutBias,
}

use BlockParam::*;

/// All tensors of a block, in table order.
const BLOCK: [BlockParam; 14] = [
    Norm1Gain,
    Norm1Bias,
    Qkv,
    QkvBias,
    QueryNormGain,
    KeyNormGain,
    AttnOut,
    AttnOutBias,
    Norm2Gain,
    Norm2Bias,
    Fc,
    FcBias,
    MlpOut,
    MlpOutBias,
];

impl BlockParam {
    /// Whether a model has it.
    const fn is_of(self, c: &ModelConfig) -> bool {
        match self {
            Norm1Bias | Norm2Bias => c.has_norm_bias(),
            QkvBias => c.bias || c.arch.qkv_bias,
            AttnOutBias | FcBias | MlpOutBias => c.bias,
            QueryNormGain | KeyNormGain => c.arch.norms_heads(),
            _ => true,
        }
    }

    /// The name behind `h.<block>.`, as GPT-2's published weights spell it.
    fn name(self) -> &'static str {
        match self {
            Norm1Gain => "ln_1.weight",
            Norm1Bias => "ln_1.bias",
            Qkv => "attn.c_attn.weight",
            QkvBias => "attn.c_attn.bias",
            QueryNormGain => "attn.q_norm.weight",
            KeyNormGain => "attn.k_norm.weight",
            AttnOut => "attn.c_proj.weight",
            AttnOutBias => "attn.c_proj.bias",
            Norm2Gain => "ln_2.weight",
            Norm2Bias => "ln_2.bias",
            Fc => "mlp.c_fc.weight",
            FcBias => "mlp.c_fc.bias",
            MlpOut => "mlp.c_proj.weight",
            MlpOutBias => "mlp.c_proj.bias",
        }
    }

    /// Shape; vectors have one row.
    const fn shape(self, c: &ModelConfig) -> (usize, usize) {
        let [qkv, attn_out, fc, mlp_out] = c.matrices();
        match self {
            Norm1Gain | Norm1Bias | Norm2Gain | Norm2Bias | AttnOutBias | MlpOutBias => {
                (1, c.d_model)
            }
            Qkv => qkv,
            QkvBias => (1, qkv.1),
            QueryNormGain | KeyNormGain => (1, c.head_size()),
            AttnOut => attn_out,
            Fc => fc,
            FcBias => (1, fc.1),
            MlpOut => mlp_out,
        }
    }

    /// A gain or a bias.
    pub(crate) const fn is_vector(self) -> bool {
        !matches!(self, Qkv | AttnOut | Fc | MlpOut)
    }
}

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// A name such as `h.11.attn.c_attn.weight`.
pub type Name = heapless::String<40>;

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Which tensor.
    pub param: Param,
    /// Rows; 1 for vectors.
    pub rows: usize,
    /// Columns, contiguous.
    pub cols: usize,
    /// First float in the arenas.
    pub offset: usize,
    /// Weight decay applies: matrices yes, norms and biases no.
    pub decay: bool,
    vector: bool,
    /// Starting values.
    pub init: Init,
}

impl ParamSpec {
    /// Floats of the tensor.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Never true: every tensor has at least one element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its place in the arenas.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Vectors are one-dimensional outside this crate.
    #[must_use]
    pub fn is_vector(&self) -> bool {
        self.vector
    }

    /// The name that files use.
    #[must_use]
    pub fn name(&self) -> Name {
        let mut name = Name::new();
        let text = match self.param {
            Param::TokenTable => "wte.weight",
            Param::PositionTable => "wpe.weight",
            Param::FinalGain => "ln_f.weight",
            Param::FinalBias => "ln_f.bias",
            Param::Head => "lm_head.weight",
            Param::Block(block, param) => {
                // A block number has at most 9 digits (MAX_DIMENSION), so this fits.
                let _ = write!(name, "h.{block}.");
                param.name()
            }
        };
        let _ = name.push_str(text);
        name
    }
}

/// Where a tensor lies in the arenas, and its shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// A gain or a bias: weight decay does not apply.
    pub(crate) vector: bool,
}

/// Offsets of all tensors of one config, computed without a list.
///
/// ```
/// use cllm_core::{Architecture, BlockParam, ModelConfig, Param, ParamTable};
///
/// # let config = ModelConfig { vocab_size: 300, block_size: 8, n_layer: 2, n_head: 4, d_model: 32,
/// #     d_ff: 80, bias: false, tied: true, dropout: 0.0, norm_eps: 1e-5, arch: Architecture::LLAMA };
/// // For a model of two blocks of Llama's parts, 32 wide, with feed-forward layers of 80.
/// let table = ParamTable::new(&config)?;
/// let gate_and_up = table.spec(Param::Block(1, BlockParam::Fc)).expect("every block has one");
/// assert_eq!(gate_and_up.name(), "h.1.mlp.c_fc.weight");
/// assert_eq!((gate_and_up.rows, gate_and_up.cols), (32, 2 * 80));
/// // Positions are rotary, so they have no table.
/// assert_eq!(table.spec(Param::PositionTable), None);
/// # Ok::<(), cllm_core::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamTable {
    config: ModelConfig,
    /// The token table, matrices of blocks and an output projection of its own are elsewhere.
    without_matrices: bool,
    /// The tensors of a block that the model has, in their order: the first `per_block`.
    of_block: [BlockParam; BLOCK.len()],
    per_block: usize,
    /// Offset of each tensor inside its block.
    in_block: [usize; BLOCK.len()],
    /// Where the position table starts, or would.
    positions_start: usize,
    block_start: usize,
    block_len: usize,
    final_start: usize,
    head_start: usize,
    len: usize,
    count: usize,
    parameters: usize,
}

impl ParamTable {
    /// Lays out the tensors of `config`.
    ///
    /// # Errors
    /// What [`ModelConfig::validate`] finds, or [`ConfigError::Overflow`].
    pub const fn new(config: &ModelConfig) -> Result<Self, ConfigError> {
        Self::of(config, false)
    }

    /// Lays out the tensors of a model whose matrices are kept as panels: without those of blocks,
    /// without an output projection of its own, and without the token table, which is elsewhere.
    ///
    /// # Errors
    /// As for [`ParamTable::new`].
    pub(crate) const fn without_matrices(config: &ModelConfig) -> Result<Self, ConfigError> {
        Self::of(config, true)
    }

    const fn of(config: &ModelConfig, without_matrices: bool) -> Result<Self, ConfigError> {
        ok!(config.validate());
        match Self::laid_out(config, without_matrices) {
            Some(table) => Ok(table),
            None => Err(ConfigError::Overflow),
        }
    }

    /// Of a valid config; `None` if a size overflows.
    const fn laid_out(config: &ModelConfig, without_matrices: bool) -> Option<Self> {
        const fn padded((rows, cols): (usize, usize)) -> Option<usize> {
            match some!(rows.checked_mul(cols)).checked_next_multiple_of(LANES) {
                Some(n) if n <= isize::MAX as usize / 64 => Some(n),
                _ => None,
            }
        }
        let has_head = !config.tied && !without_matrices;
        let has_tokens = !without_matrices;
        let learned = config.arch.has_table();
        let positions = (if learned { config.block_size } else { 0 }, config.d_model);
        let token_table = some!(padded((config.vocab_size, config.d_model)));
        let positions_start = if has_tokens { token_table } else { 0 };
        let block_start = some!(positions_start.checked_add(some!(padded(positions))));
        let (mut of_block, mut in_block) = (BLOCK, [0; BLOCK.len()]);
        let (mut per_block, mut block_len) = (0, 0_usize);
        // In closed form: a hostile header may claim any number of blocks. No product
        // overflows where the padded lengths did not.
        let mut block_values = 0;
        let mut i = 0;
        while i < BLOCK.len() {
            let param = BLOCK[i];
            in_block[param as usize] = block_len;
            if param.is_of(config) && (param.is_vector() || !without_matrices) {
                let (rows, cols) = param.shape(config);
                block_len = some!(block_len.checked_add(some!(padded((rows, cols)))));
                block_values += rows * cols;
                of_block[per_block] = param;
                per_block += 1;
            }
            i += 1;
        }
        let blocks = some!(block_len.checked_mul(config.n_layer));
        let final_start = some!(block_start.checked_add(blocks));
        let norm_vectors = config.norm_vectors();
        let norms = some!(padded((1, config.d_model))) * norm_vectors;
        let head_start = some!(final_start.checked_add(norms));
        let len = some!(head_start.checked_add(if has_head { token_table } else { 0 }));
        if len > isize::MAX as usize / 16 {
            return None;
        }
        let tables = config.vocab_size * config.d_model * (has_tokens as usize + has_head as usize)
            + positions.0 * positions.1;
        let parameters = tables + block_values * config.n_layer + config.d_model * norm_vectors;
        let tables = has_tokens as usize + learned as usize + has_head as usize;
        let count = tables + per_block * config.n_layer + norm_vectors;
        Some(Self {
            config: *config,
            without_matrices,
            of_block,
            per_block,
            in_block,
            positions_start,
            block_start,
            block_len,
            final_start,
            head_start,
            len,
            count,
            parameters,
        })
    }

    /// Floats of each arena, padding included: a whole number of lines.
    #[must_use]
    pub const fn arena_len(&self) -> usize {
        self.len
    }

    /// Number of tensors.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The model's sizes and parts.
    #[must_use]
    pub(crate) const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Number of trained values, padding excluded.
    #[must_use]
    pub const fn parameters(&self) -> usize {
        self.parameters
    }

    /// The tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = ParamSpec> + '_ {
        (0..self.count).filter_map(|i| self.get(i))
    }

    /// The `index`-th tensor.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<ParamSpec> {
        self.spec(self.param(index)?)
    }

    /// Which the `index`-th tensor is.
    pub(crate) const fn param(&self, index: usize) -> Option<Param> {
        let blocks = self.per_block * self.config.n_layer;
        // In front of the blocks are at most two tables.
        let has_tokens = !self.without_matrices;
        let learned = self.config.arch.has_table();
        let tables = has_tokens as usize + learned as usize;
        Some(match index {
            0 if has_tokens => Param::TokenTable,
            i if i < tables => Param::PositionTable,
            i if i < tables + blocks => {
                let (block, within) =
                    ((i - tables) / self.per_block, (i - tables) % self.per_block);
                Param::Block(block, self.of_block[within])
            }
            i if i < self.count => match i - tables - blocks {
                0 => Param::FinalGain,
                1 if self.config.has_norm_bias() => Param::FinalBias,
                _ => Param::Head,
            },
            _ => return None,
        })
    }

    /// The row of one tensor; `None` if this config does not have it.
    #[must_use]
    pub fn spec(&self, param: Param) -> Option<ParamSpec> {
        // GPT-2: 0.02, and less for projections into the residual stream, whose
        // variance grows with the number of branches (Radford et al. 2019, section 2.3).
        const STD: f32 = 0.02;
        let Place { offset, rows, cols, vector } = self.place(param)?;
        let init = match param {
            Param::TokenTable | Param::PositionTable | Param::Head => Init::Normal(STD),
            Param::FinalGain => Init::Ones,
            Param::FinalBias => Init::Zeros,
            Param::Block(_, param) => match param {
                Norm1Gain | Norm2Gain | QueryNormGain | KeyNormGain => Init::Ones,
                Qkv | Fc => Init::Normal(STD),
                AttnOut | MlpOut => {
                    Init::Normal(STD / libm::sqrtf(2.0 * self.config.n_layer as f32))
                }
                _ => Init::Zeros,
            },
        };
        Some(ParamSpec { param, rows, cols, offset, decay: !vector, vector, init })
    }

    /// Where a tensor lies; `None` if this config does not have it.
    pub(crate) const fn place(&self, param: Param) -> Option<Place> {
        let c = &self.config;
        let (offset, (rows, cols), vector) = match param {
            Param::TokenTable if !self.without_matrices => (0, (c.vocab_size, c.d_model), false),
            Param::PositionTable if c.arch.has_table() => {
                (self.positions_start, (c.block_size, c.d_model), false)
            }
            Param::Block(block, param) => {
                let elsewhere = self.without_matrices && !param.is_vector();
                if block >= c.n_layer || !param.is_of(c) || elsewhere {
                    return None;
                }
                let start = self.block_start + block * self.block_len;
                (start + self.in_block[param as usize], param.shape(c), param.is_vector())
            }
            Param::FinalGain => (self.final_start, (1, c.d_model), true),
            Param::FinalBias if c.has_norm_bias() => {
                (self.final_start + c.d_model.next_multiple_of(LANES), (1, c.d_model), true)
            }
            Param::Head if !c.tied && !self.without_matrices => {
                (self.head_start, (c.vocab_size, c.d_model), false)
            }
            Param::TokenTable | Param::PositionTable | Param::FinalBias | Param::Head => {
                return None;
            }
        };
        Some(Place { offset, rows, cols, vector })
    }

    /// The matrix that the output projection uses: its own or the token table.
    #[must_use]
    pub const fn head(&self) -> Param {
        if self.config.tied { Param::TokenTable } else { Param::Head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    extern crate std;
    use std::string::ToString;
    use std::vec::Vec;

    fn config(bias: bool, tied: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 37,
            block_size: 9,
            n_layer: 3,
            n_head: 3,
            d_model: 21,
            d_ff: 50,
            bias,
            tied,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch: Architecture::GPT2,
        }
    }

    /// Every kind of architecture, with biases and without.
    fn architectures() -> impl Iterator<Item = ModelConfig> {
        let grouped = Architecture { n_kv_head: Some(1), ..Architecture::LLAMA };
        let wide = Architecture { head_size: Some(10), qkv_bias: true, ..grouped };
        let normed = Architecture { qk_norm: true, ..wide };
        let kinds = [Architecture::GPT2, Architecture::LLAMA, grouped, wide, normed];
        let flags = [(true, true), (true, false), (false, true), (false, false)];
        kinds.into_iter().flat_map(move |arch| {
            let even = |c: ModelConfig| match arch.rotary() {
                Some(_) => ModelConfig { d_model: 24, ..c },
                None => c,
            };
            flags.map(|(bias, tied)| ModelConfig { arch, ..even(config(bias, tied)) })
        })
    }

    #[test]
    fn tensors_are_adjacent_aligned_and_in_one_order() {
        for config in architectures() {
            let table = ParamTable::new(&config).unwrap();
            let specs: Vec<_> = table.iter().collect();
            assert_eq!(specs.len(), table.count());
            let (mut end, mut values) = (0, 0);
            for spec in &specs {
                assert_eq!(spec.offset, end, "{}", spec.name());
                values += spec.len();
                assert_eq!(spec.offset % LANES, 0);
                assert_eq!(table.spec(spec.param).as_ref(), Some(spec));
                end = (spec.offset + spec.len()).next_multiple_of(LANES);
            }
            assert_eq!(end, table.arena_len());
            assert_eq!(values, table.parameters());
            assert!(table.get(table.count()).is_none());
        }
    }

    #[test]
    fn names_shapes_and_decay_are_gpt2s() {
        let table = ParamTable::new(&config(true, false)).unwrap();
        let find = |name: &str| table.iter().find(|s| s.name().as_str() == name).unwrap();
        let qkv = find("h.2.attn.c_attn.weight");
        assert_eq!((qkv.rows, qkv.cols, qkv.decay), (21, 63, true));
        let bias = find("h.0.mlp.c_fc.bias");
        assert_eq!((bias.rows, bias.cols, bias.decay), (1, 50, false));
        assert!(!find("ln_f.weight").decay);
        assert!(find("wpe.weight").decay);
        assert_eq!(table.iter().last().unwrap().name().to_string(), "lm_head.weight");
        // 37*21*2 + 9*21 + 3 * (6*21 + 21*63 + 63 + 21*21 + 21*50 + 50 + 50*21) + 2*21
        let block = 6 * 21 + 21 * 63 + 63 + 21 * 21 + 21 * 50 + 50 + 50 * 21;
        assert_eq!(table.parameters(), 37 * 21 * 2 + 9 * 21 + 3 * block + 2 * 21);
    }

    #[test]
    fn llamas_tensors_have_their_own_shapes() {
        let arch = Architecture { n_kv_head: Some(1), head_size: Some(10), ..Architecture::LLAMA };
        let table = ParamTable::new(&ModelConfig { arch, ..config(false, true) }).unwrap();
        let shapes: Vec<_> =
            table.iter().take(7).map(|s| (s.name().to_string(), s.rows, s.cols)).collect();
        let named = |name: &str, rows, cols| (name.to_string(), rows, cols);
        assert_eq!(
            shapes,
            [
                named("wte.weight", 37, 21),
                named("h.0.ln_1.weight", 1, 21),
                named("h.0.attn.c_attn.weight", 21, 50),
                named("h.0.attn.c_proj.weight", 30, 21),
                named("h.0.ln_2.weight", 1, 21),
                named("h.0.mlp.c_fc.weight", 21, 100),
                named("h.0.mlp.c_proj.weight", 50, 21),
            ]
        );
        assert_eq!(table.count(), 1 + 3 * 6 + 1);
        let qwen = Architecture { qkv_bias: true, ..arch };
        let table = ParamTable::new(&ModelConfig { arch: qwen, ..config(false, true) }).unwrap();
        assert!(table.spec(Param::Block(0, QkvBias)).is_some_and(|spec| spec.cols == 50));
        assert_eq!(table.count(), 1 + 3 * 7 + 1);
        let qwen3 = Architecture { qk_norm: true, ..arch };
        let table = ParamTable::new(&ModelConfig { arch: qwen3, ..config(false, true) }).unwrap();
        let gain = table.spec(Param::Block(2, KeyNormGain)).unwrap();
        assert_eq!((gain.cols, gain.decay, gain.init), (10, false, Init::Ones));
        assert_eq!(gain.name().as_str(), "h.2.attn.k_norm.weight");
        assert_eq!(table.count(), 1 + 3 * 8 + 1);
    }

    #[test]
    fn absurd_sizes_are_an_error_not_an_overflow() {
        let huge = ModelConfig {
            vocab_size: 1 << 28,
            d_model: 1 << 28,
            d_ff: 1 << 28,
            n_layer: 1 << 28,
            n_head: 1,
            ..config(true, true)
        };
        assert_eq!(ParamTable::new(&huge).unwrap_err(), ConfigError::Overflow);
    }
}
