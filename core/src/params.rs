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
    /// Weights of the rows of tokens before each one, `previous_tokens x d_model`, those of the last before it first;
    /// absent where there are none.
    Previous,
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
            Param::Previous => "previous.weight",
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
    /// The same of the weights of tokens before.
    previous_start: usize,
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
        let previous_start = some!(positions_start.checked_add(some!(padded(positions))));
        let previous = (config.arch.previous(), config.d_model);
        let block_start = some!(previous_start.checked_add(some!(padded(previous))));
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
            + positions.0 * positions.1
            + previous.0 * previous.1;
        let parameters = tables + block_values * config.n_layer + config.d_model * norm_vectors;
        let shifts = (previous.0 > 0) as usize;
        let tables = has_tokens as usize + learned as usize + shifts + has_head as usize;
        let count = tables + per_block * config.n_layer + norm_vectors;
        Some(Self {
            config: *config,
            without_matrices,
            of_block,
            per_block,
            in_block,
            positions_start,
            previous_start,
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
        // In front of the blocks are at most two tables, and weights of tokens before.
        let has_tokens = !self.without_matrices;
        let learned = self.config.arch.has_table();
        let shifts = (self.config.arch.previous() > 0) as usize;
        let tables = has_tokens as usize + learned as usize + shifts;
        Some(match index {
            0 if has_tokens => Param::TokenTable,
            i if i < tables - shifts => Param::PositionTable,
            i if i < tables => Param::Previous,
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
            Param::FinalBias | Param::Previous => Init::Zeros,
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
            Param::Previous if c.arch.previous() > 0 => {
                (self.previous_start, (c.arch.previous(), c.d_model), false)
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
            Param::TokenTable
            | Param::PositionTable
            | Param::Previous
            | Param::FinalBias
            | Param::Head => return None,
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
mod tests;
