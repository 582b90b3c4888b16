//! The memory plan: how many bytes of which pool, before anything starts.
//!
//! [`Plan::new`] is arithmetic only. It says what the caller must hand over, and
//! the [`Layout`] inside it is the only place that knows where a buffer lies.

mod blocking;
mod buffers;
mod error;
mod fixed;
mod grain;
mod layout;
mod moments;
mod muon;
mod piece;
mod trained;

pub use blocking::{Blocking, BlockingError};
pub(crate) use buffers::{Between, Buffer, Bump, Columns};
pub use error::PlanError;
pub use fixed::Sizes;
pub(crate) use fixed::excess;
pub(crate) use grain::Grain;
pub use grain::ROW_BLOCK;
pub(crate) use layout::{Layout, Panels};
pub(crate) use muon::{parts as muon_parts, taken as muon_takes};
pub use piece::Piece;
pub(crate) use trained::{LOADED_ROWS, Trained};

use crate::adapter::{AdapterTable, Adapters};
use crate::arithmetic::{least, most, ok, some};
use crate::built::{self, ADAPTERS};
use crate::config::{ConfigError, ModelConfig};
use crate::engine::{self, Cut, MAX_TILES, NONE, Slot, Word};
use crate::line::{LANES, Line};
use crate::optimizer::OptimizerKind;
use crate::params::ParamTable;
use crate::program::{self, Op, To};
use cllm_kernels::{KernelSet, Kernels};

/// Rows whose norm gradients are summed up together, before these sums are: part of the
/// promise that bits do not depend on tiles.
pub(crate) const PARTIAL_ROWS: usize = 32;
/// Columns of a tile of bias gradients and of packing.
pub(crate) const COLUMN_BLOCK: usize = 256;
/// Rows of A, or columns of B, in a tile of an adapter's gradient: each goes through all tokens for few
/// products.
pub(crate) const ADAPTER_BLOCK: usize = 256;
/// Most rows of what an adapter reads that are behind its mask at a time, for the gradient of A: a block of the inner
/// dimension of products.
pub(crate) const DROPPED_ROWS: usize = cllm_kernels::KC;
/// Rows of the token or position table in a tile of their gradient.
pub(crate) const TABLE_ROWS: usize = 256;
/// Floats of the gradient whose squares are summed up together, at least: part of the promise.
const SQUARES_BLOCK: usize = 32 * 1024;
/// Most tiles of an arena whose squares are summed up: part of the promise too.
const SQUARES_TILES: usize = 1 << 18;
/// Most tiles of an arena, but for one more of each tensor: well below what an operation can have.
const ARENA_TILES: usize = (MAX_TILES + 1) / 4;
/// Floats of logits of a group of rows, if that allows for [`GROUP_ROWS`]: 8 MiB.
const LOGITS: usize = 2 * 1024 * 1024;
/// Rows of a group of logits come in multiples of this: whole row blocks of every size.
/// The gradient of the output projection is read and written once for each group,
/// 154 MB for GPT-2's vocabulary.
const GROUP_ROWS: usize = 384;

/// Sequences of equal length that are processed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens in each, at most the model's `block_size`.
    pub tokens: usize,
}

/// When weights are laid out as the panels that products read. The bits of a step do not depend
/// on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// All at the start of a step, both ways round, into [`Pool::Packed`].
    Once,
    /// By every product, a piece at a time, into its worker's scratch.
    Fresh,
    /// Once for all steps, both ways round, into [`Pool::Packed`]: matrices beside adapters, which no
    /// step changes. They are not among the parameters then but are handed over a piece after the other
    /// ([`Trainer::load`](crate::Trainer::load)), and the token table stays where the caller has it
    /// ([`Trainer::look_up_in`](crate::Trainer::look_up_in)): a mapped file, or flash. Plans without
    /// adapters, or that do not train, take this for [`Packing::Once`].
    Kept,
}

/// How a step is cut into tiles, where the caller has something to say about it. The bits of a
/// step depend on none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiling {
    /// Number of workers that tiles are to be enough for, at least 1: to measure here what the
    /// tiles for more workers cost. `None` is as many as the plan has.
    pub workers: Option<usize>,
    /// When weights are packed; `None` is as suits the model and the batch.
    pub packing: Option<Packing>,
    /// Sizes of blocks.
    pub blocking: Blocking,
}

impl Tiling {
    /// As many workers as the plan has, packing as suits, and [`Blocking::DEFAULT`].
    pub const DEFAULT: Self = Self { workers: None, packing: None, blocking: Blocking::DEFAULT };

    /// For so many workers, else as by default.
    #[must_use]
    pub const fn for_workers(workers: usize) -> Self {
        Self { workers: Some(workers), ..Self::DEFAULT }
    }
}

/// What the memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward, backward and optimizer: every layer keeps its activations.
    Train,
    /// As [`Mode::Train`], to the bit, in less memory and more time: every layer keeps its
    /// input and the output of its attention, and the backward pass makes the rest again,
    /// but for the last layers, whose activations are still there
    /// (Chen et al., "Training deep nets with sublinear memory cost", 2016).
    Recompute,
    /// Losses only: layers share their activations.
    Evaluate,
}

impl Mode {
    /// Whether there are gradients.
    pub(crate) const fn trains(self) -> bool {
        matches!(self, Self::Train | Self::Recompute)
    }

    /// Whether layers overwrite one another's activations in the forward pass.
    pub(crate) const fn shares_layers(self) -> bool {
        matches!(self, Self::Recompute | Self::Evaluate)
    }
}

/// A kind of memory that the caller hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The weights, but for those of which only panels are kept, and behind them those of adapters.
    Parameters,
    /// Gradients of what is trained: the weights, or adapters.
    Gradients,
    /// What the optimizer remembers: of AdamW first and second moments, one arena after the other.
    Moments,
    /// Weights laid out as panels for the products, both ways round: [`Packing::Once`] and
    /// [`Packing::Kept`].
    Packed,
    /// Activations, their gradients, partial sums and a block of logits.
    Activations,
    /// Working memory of the tiles, one piece for each worker.
    Scratch,
    /// The engine: operations of a step.
    Operations,
    /// The engine: stages of a step and how many of their tiles are done.
    Slots,
    /// The engine: the workers' shares of every stage, and counters of token blocks.
    Words,
    /// Token ids and targets of one batch.
    Batch,
}

impl Pool {
    /// All pools.
    pub const ALL: [Self; 10] = [
        Self::Parameters,
        Self::Gradients,
        Self::Moments,
        Self::Packed,
        Self::Activations,
        Self::Scratch,
        Self::Operations,
        Self::Slots,
        Self::Words,
        Self::Batch,
    ];

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Packed => "packed",
            Self::Activations => "activations",
            Self::Scratch => "scratch",
            Self::Operations => "operations",
            Self::Slots => "slots",
            Self::Words => "words",
            Self::Batch => "batch",
        }
    }
}

/// Exact sizes of all memory that a model needs for one batch shape on one
/// instruction set, and where everything lies in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub(crate) config: ModelConfig,
    pub(crate) batch: BatchShape,
    pub(crate) mode: Mode,
    pub(crate) table: ParamTable,
    /// What of it lies in the arena of parameters.
    pub(crate) resident: ParamTable,
    /// What is trained in the place of the parameters.
    pub(crate) adapters: Option<AdapterTable>,
    pub(crate) layout: Layout,
    pub(crate) grain: Grain,
    blocking: Blocking,
    optimizer: OptimizerKind,
    piece: Piece,
    set: KernelSet,
    workers: usize,
    ops: usize,
    slots: usize,
}

impl Plan {
    /// Plans the memory for batches of `batch` and `workers` workers, with the default
    /// [`Tiling`].
    ///
    /// The kernels' register block decides the padding of packed weights, so a plan
    /// belongs to one instruction set.
    ///
    /// # Errors
    /// What is wrong with the config, the batch or the number of workers.
    pub const fn new(
        config: &ModelConfig,
        batch: BatchShape,
        workers: usize,
        mode: Mode,
        kernels: &Kernels,
    ) -> Result<Self, PlanError> {
        Self::with_tiling(config, batch, workers, &Tiling::DEFAULT, mode, kernels)
    }

    /// As [`Plan::new`], cut into tiles as told. For blocks that suit the machine hand over
    /// [`Blocking::for_caches`].
    ///
    /// # Errors
    /// As for [`Plan::new`], and of a [`Blocking`] that it cannot take.
    pub const fn with_tiling(
        config: &ModelConfig,
        batch: BatchShape,
        workers: usize,
        tiling: &Tiling,
        mode: Mode,
        kernels: &Kernels,
    ) -> Result<Self, PlanError> {
        Self::with_adapters(config, None, batch, workers, tiling, mode, kernels)
    }

    /// As [`Plan::with_tiling`], for a model with adapters, which are trained in the place of its
    /// parameters: gradients and moments are theirs alone.
    ///
    /// # Errors
    /// As for [`Plan::with_tiling`], and of [`Adapters`] that the model cannot have.
    pub const fn with_adapters(
        config: &ModelConfig,
        adapters: Option<&Adapters>,
        batch: BatchShape,
        workers: usize,
        tiling: &Tiling,
        mode: Mode,
        kernels: &Kernels,
    ) -> Result<Self, PlanError> {
        Self::of_set(config, adapters, batch, workers, tiling, mode, kernels.set())
    }

    /// As [`Plan::with_adapters`], for the kernels of a name, which need not be there: for other machines,
    /// and in a `const`, where [`Plan::fixed`] is more handy.
    ///
    /// # Errors
    /// As for [`Plan::with_adapters`], and if there are no kernels of this name on this target.
    pub const fn of_set(
        config: &ModelConfig,
        adapters: Option<&Adapters>,
        batch: BatchShape,
        workers: usize,
        tiling: &Tiling,
        mode: Mode,
        set: KernelSet,
    ) -> Result<Self, PlanError> {
        let Some(kernels) = set.footprint() else { return Err(PlanError::NoKernels(set)) };
        let asked = built::Asked {
            adapters: adapters.is_some(),
            fresh: matches!(tiling.packing, Some(Packing::Fresh)),
            recompute: matches!(mode, Mode::Recompute),
            workers: workers > 1 || matches!(tiling.workers, Some(workers) if workers > 1),
        };
        ok!(asked.check(), PlanError::LeftOut);
        let table = ok!(ParamTable::new(config), PlanError::Config);
        if batch.sequences == 0 || batch.tokens == 0 {
            return Err(PlanError::EmptyBatch);
        }
        if batch.tokens > config.block_size {
            let (tokens, block_size) = (batch.tokens, config.block_size);
            return Err(PlanError::TooLong { tokens, block_size });
        }
        if workers == 0 || matches!(tiling.workers, Some(0)) {
            return Err(PlanError::NoWorker);
        }
        ok!(tiling.blocking.check(), PlanError::Blocking);
        let overflow = PlanError::Config(ConfigError::Overflow);
        if batch.sequences.checked_mul(batch.tokens).is_none() {
            return Err(overflow);
        }
        let (adapters, trained) = match adapters {
            Some(adapters) if ADAPTERS => {
                let table = ok!(AdapterTable::new(config, adapters), PlanError::Adapters);
                (Some(table), table.arena_len())
            }
            _ => (None, table.arena_len()),
        };
        let grain = Grain::new(config, adapters.is_some(), batch, mode, workers, tiling, kernels);
        let resident = match grain.packing {
            Packing::Kept if ADAPTERS => {
                ok!(ParamTable::without_matrices(config), PlanError::Config)
            }
            _ => table,
        };
        let layout = Layout::new(config, adapters.as_ref(), trained, batch, mode, &grain, kernels);
        let Some(layout) = layout else { return Err(overflow) };
        let mut plan = Self {
            config: *config,
            batch,
            mode,
            table,
            resident,
            adapters,
            layout,
            grain,
            blocking: tiling.blocking,
            optimizer: OptimizerKind::AdamW,
            piece: Piece::WHOLE,
            set,
            workers,
            ops: 0,
            slots: 0,
        };
        // Every pool must be addressable before tiles are counted in 32 bits.
        if !plan.is_addressable() {
            return Err(overflow);
        }
        let program = program::build(&plan, To::Nowhere);
        (plan.ops, plan.slots) = (program.ops, program.stages);
        // Stages are numbered in 16 bits.
        if !(program.fits && plan.slots < NONE as usize && plan.is_addressable()) {
            return Err(overflow);
        }
        let tiles = program.tiles;
        if tiles > MAX_TILES {
            return Err(PlanError::TooManyTiles { tiles, most: MAX_TILES });
        }
        Ok(plan)
    }

    /// The kernels that it is for.
    #[must_use]
    pub const fn set(&self) -> KernelSet {
        self.set
    }

    /// Whether the size of no pool overflows.
    const fn is_addressable(&self) -> bool {
        let mut i = 0;
        while i < Pool::ALL.len() {
            if self.checked_bytes(Pool::ALL[i]).is_none() {
                return false;
            }
            i += 1;
        }
        true
    }

    /// The model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The batch.
    #[must_use]
    pub const fn batch(&self) -> BatchShape {
        self.batch
    }

    /// The table of parameters.
    #[must_use]
    pub const fn table(&self) -> &ParamTable {
        &self.table
    }

    /// Workers that have scratch.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Bytes of a pool, to the byte.
    #[must_use]
    pub const fn bytes(&self, pool: Pool) -> usize {
        match self.checked_bytes(pool) {
            Some(bytes) => bytes,
            // `new` has checked that none overflows.
            None => usize::MAX,
        }
    }

    /// Lines of a pool of floats; 0 for those of the engine and [`Pool::Batch`].
    #[must_use]
    pub const fn lines(&self, pool: Pool) -> usize {
        match pool {
            Pool::Operations | Pool::Slots | Pool::Words | Pool::Batch => 0,
            _ => self.bytes(pool) / size_of::<Line>(),
        }
    }

    /// Operations of [`Pool::Operations`].
    #[must_use]
    pub const fn ops(&self) -> usize {
        self.ops
    }

    /// Slots of [`Pool::Slots`].
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Words of [`Pool::Words`].
    #[must_use]
    pub const fn words(&self) -> usize {
        match engine::words(self.workers, self.slots, &self.cut()) {
            Some(words) => words,
            None => usize::MAX,
        }
    }

    /// How the engine sees the batch.
    pub(crate) const fn cut(&self) -> Cut {
        Cut {
            rows: self.tokens(),
            row_block: self.grain.row_block,
            sequence: self.batch.tokens,
            span: self.grain.span,
            levels: 2 * self.config.n_layer + 2,
            in_place: self.mode.shares_layers(),
        }
    }

    /// Tokens of one batch, each with a target: [`Pool::Batch`] holds twice as many `u32`.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.batch.sequences * self.batch.tokens
    }

    /// Floating-point operations that the backward pass of a batch does a second time, counted
    /// as by [`ModelConfig::step_flops`], which leaves them out: of every matrix of a block but
    /// the last, for each block that is made again; for GPT-2 `6 d^2 + 2 d^2 + 2 d d_ff` a token. 0 unless this is [`Mode::Recompute`].
    #[must_use]
    pub fn recomputed_flops(&self) -> f64 {
        if self.mode != Mode::Recompute {
            return 0.0;
        }
        let remade = (0..self.config.n_layer).filter(|layer| self.layout.is_remade(*layer));
        let made_again = &self.config.matrices()[..3];
        let block: f64 = made_again.iter().map(|(k, n)| 2.0 * *k as f64 * *n as f64).sum();
        remade.count() as f64 * block * self.tokens() as f64
    }

    /// Sizes of blocks that the caller handed over. The plan's own may be smaller, and its row blocks
    /// are larger where weights are packed on the way.
    #[must_use]
    pub const fn blocking(&self) -> &Blocking {
        &self.blocking
    }

    /// Whether a step is cut into the same tiles as that of another plan for the same model and
    /// batch: other sizes of [`Blocking`] need not make a difference.
    #[must_use]
    pub fn has_tiles_of(&self, other: &Self) -> bool {
        self.grain == other.grain
    }

    /// When weights are packed.
    #[must_use]
    pub const fn packing(&self) -> Packing {
        self.grain.packing
    }

    /// What the memory is for.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Bytes of all pools; `None` if the sum overflows.
    #[must_use]
    pub const fn total_bytes(&self) -> Option<usize> {
        let (mut sum, mut i) = (0_usize, 0);
        while i < Pool::ALL.len() {
            sum = some!(sum.checked_add(self.bytes(Pool::ALL[i])));
            i += 1;
        }
        Some(sum)
    }

    /// Makes the tables of rotary angles in the pool of activations, if the model has any.
    pub(crate) fn fill_angles(&self, activations: &mut [f32]) {
        if let (Some(rotary), Some(places)) = (self.config.arch.rotary(), self.layout.angles) {
            rotary.fill(self.config.head_size(), self.batch.tokens, places, activations);
        }
    }

    /// Checks that the plan was made for these kernels.
    pub(crate) fn check_kernels(&self, kernels: &Kernels) -> Result<(), PlanError> {
        check_kernels(self.set, kernels)
    }

    /// Checks a pool's size against the plan.
    pub(crate) fn check(&self, pool: Pool, got: usize) -> Result<(), PlanError> {
        let need = self.bytes(pool);
        if got < need { Err(PlanError::TooSmall { pool, need, got }) } else { Ok(()) }
    }

    const fn checked_bytes(&self, pool: Pool) -> Option<usize> {
        let train = self.mode.trains() as usize;
        let arena = self.trained_len();
        let floats = match pool {
            Pool::Parameters => some!(self.trained_at().checked_add(arena)),
            Pool::Gradients => arena * train,
            Pool::Moments => some!(self.moments_len()),
            Pool::Packed => self.layout.packed_len,
            Pool::Activations => self.layout.activations_len,
            Pool::Scratch => some!(self.scratch_len().checked_mul(self.workers)),
            Pool::Operations => return self.ops.checked_mul(size_of::<Op>()),
            Pool::Slots => return self.slots.checked_mul(size_of::<Slot>()),
            Pool::Words => {
                let words = some!(engine::words(self.workers, self.slots, &self.cut()));
                return words.checked_mul(size_of::<Word>());
            }
            Pool::Batch => {
                let tokens = some!(self.batch.sequences.checked_mul(self.batch.tokens));
                some!(tokens.checked_mul(2))
            }
        };
        match floats.checked_mul(size_of::<f32>()) {
            Some(bytes) if bytes <= isize::MAX as usize => Some(bytes),
            _ => None,
        }
    }
}

/// Weights packed for some kernels are nonsense to others.
pub(crate) fn check_kernels(plan: KernelSet, kernels: &Kernels) -> Result<(), PlanError> {
    let kernels = kernels.set();
    if plan == kernels { Ok(()) } else { Err(PlanError::WrongKernels { plan, kernels }) }
}

/// Rounds floats up to whole lines.
pub(crate) const fn to_lines(floats: usize) -> Option<usize> {
    floats.checked_next_multiple_of(LANES)
}

/// Floats of a tile of an arena, if there are as many tiles as an operation can well have.
const fn least_block(arena: usize) -> usize {
    tile_of(arena, ARENA_TILES)
}

/// Floats of whole lines that so many tiles of an arena have at most.
const fn tile_of(arena: usize, tiles: usize) -> usize {
    arena.div_ceil(tiles).next_multiple_of(LANES)
}

/// Floats of the gradient arena whose squares are summed up together.
///
/// The sums are added up tile by tile, so it depends on the model alone: bits must not depend
/// on the number of workers, nor on [`Blocking`].
pub(crate) const fn squares_block(arena: usize) -> usize {
    most(tile_of(arena, SQUARES_TILES), SQUARES_BLOCK)
}

/// Rows of a group of the output projection.
///
/// The gradient of its weights is summed up group by group, so the size depends on the
/// vocabulary alone: bits must not depend on the number of workers.
pub(crate) const fn head_rows(rows: usize, vocab: usize) -> usize {
    least(most(LOGITS / vocab / GROUP_ROWS, 1).saturating_mul(GROUP_ROWS), rows)
}
