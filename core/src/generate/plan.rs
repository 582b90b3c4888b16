//! What generation needs: exact sizes, where everything lies, and the stages of a chunk.
//!
//! ```text
//! for each block   Qkv        norm, then columns of queries, keys and values
//!                  Attention  heads of keys and values: new ones into the cache, then attention
//!                             of the heads of queries that they serve, both turned if need be
//!                  AttnOut    columns of the residual stream:  x -> y
//!                  Fc         norm, then columns of the feed-forward layer, with its gate if it has
//!                             one, and of the activation
//!                  MlpOut     columns of the residual stream:  y -> x
//! Head             norm of the last row, then columns of logits
//! ```
//! A stage waits for the one before it. Its tiles are columns of one product, cut between
//! panels, so the bits depend neither on how many there are nor on who computes them. Each
//! tile that multiplies a norm makes the norm for itself: it is a row, and cheaper than to wait
//! for another thread.

use crate::config::{ConfigError, ModelConfig};
use crate::engine::{self, Cut, MAX_TILES, NONE, Needs, Shape, Stage};
use crate::line::LANES;
use crate::params::ParamTable;
use crate::plan::{Bump, PlanError, ROW_BLOCK, to_lines};
use cllm_kernels::{KernelSet, Kernels};
use core::ops::Range;

/// Exact sizes of the memory that generation needs besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct GeneratePlan {
    pub(super) config: ModelConfig,
    pub(super) table: ParamTable,
    pub(super) packed: PackedPlaces,
    pub(super) packed_len: usize,
    pub(super) cache_len: usize,
    pub(super) places: Places,
    pub(super) activations_len: usize,
    /// Most tokens that are fed at one time.
    pub(super) chunk: usize,
    pub(super) scratch_len: usize,
    pub(super) set: KernelSet,
    panel: usize,
    workers: usize,
}

/// Where packed weights lie: a block's from its start, `stride` floats from one to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedPlaces {
    pub(super) qkv: usize,
    pub(super) att: usize,
    /// The first matrix of the feed-forward layer: with a gate, that one's half.
    pub(super) fc: usize,
    /// Its other half.
    pub(super) up: usize,
    pub(super) mlp: usize,
    pub(super) stride: usize,
    pub(super) head: usize,
}

/// Where the buffers of the activations pool begin, in floats. Rows are of a token each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The residual stream before and behind a block, and in its middle.
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) qkv: usize,
    pub(super) att: usize,
    pub(super) fc_pre: usize,
    pub(super) fc: usize,
    pub(super) logits: usize,
    /// Cosines and sines of the angles of all positions, if they are rotary.
    pub(super) angles: Option<[usize; 2]>,
    /// What the first worker has for itself, and the floats from one to the next.
    pub(super) seats: usize,
    pub(super) seat: usize,
    /// In a worker's part: rows of a norm, queries of a head behind theirs, statistics of rows, scratch
    /// of the kernels.
    pub(super) norm: usize,
    pub(super) queries: usize,
    pub(super) stats: usize,
    pub(super) scratch: usize,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Qkv,
    Attention,
    AttnOut,
    Fc,
    MlpOut,
    Head,
}

/// Of a block, in their order.
const OF_BLOCK: [Kind; 5] = [Kind::Qkv, Kind::Attention, Kind::AttnOut, Kind::Fc, Kind::MlpOut];

/// Tiles that a worker has of each product at least, so that one which was held up is helped.
const TILES_PER_WORKER: usize = 2;
/// Floats of packed weights in a tile at most, if there are several workers: some 50 us of
/// reading memory, beside which handing a tile over is nothing.
const TILE: usize = 256 * 1024;

/// How a row is cut for the engine's counters: not at all, for all stages are lists.
pub(super) const CUT: Cut =
    Cut { rows: 1, row_block: 1, sequence: 1, span: 1, levels: 0, in_place: false };

impl GeneratePlan {
    /// Plans one stream of text, for the calling thread alone.
    ///
    /// # Errors
    /// What is wrong with the config.
    pub fn new(config: &ModelConfig, kernels: &Kernels) -> Result<Self, PlanError> {
        Self::with_workers(config, 1, kernels)
    }

    /// Plans one stream of text for up to `workers` threads, the calling one among them.
    ///
    /// # Errors
    /// What is wrong with the config; no worker; more stages or tiles than the engine can count.
    pub fn with_workers(
        config: &ModelConfig,
        workers: usize,
        kernels: &Kernels,
    ) -> Result<Self, PlanError> {
        if workers == 0 {
            return Err(PlanError::NoWorker);
        }
        let table = ParamTable::new(config)?;
        let overflow = PlanError::Config(ConfigError::Overflow);
        let plan = Self::sizes(config, table, workers, kernels).ok_or(overflow)?;
        let fits = plan.slots() < usize::from(NONE)
            && (0..plan.slots()).all(|id| plan.tiles(id) <= MAX_TILES);
        // Without an engine nothing is counted.
        if fits || workers == 1 { Ok(plan) } else { Err(overflow) }
    }

    fn sizes(
        c: &ModelConfig,
        table: ParamTable,
        workers: usize,
        kernels: &Kernels,
    ) -> Option<Self> {
        let (d, f, t) = (c.d_model, c.d_ff, c.block_size);
        let chunk = ROW_BLOCK.min(t);
        let mut bump = Bump(0);
        let mut panels = |(k, n): (usize, usize)| bump.take(kernels.packed_len(k, n)?);
        let [of_qkv, of_att, _, of_mlp] = c.matrices();
        let (qkv, att, fc) = (panels(of_qkv)?, panels(of_att)?, panels((d, f))?);
        let up = if c.arch.is_gated() { panels((d, f))? } else { fc };
        let mlp = panels(of_mlp)?;
        let stride = bump.0;
        bump.take(stride.checked_mul(c.n_layer - 1)?)?;
        let head = bump.take(kernels.packed_len(d, c.vocab_size)?)?;
        let packed = PackedPlaces { qkv, att, fc, up, mlp, stride, head };
        let packed_len = bump.0;

        let cache_len = to_lines(t.checked_mul(c.kv_width())?)?;
        let cache_len = cache_len.checked_mul(2)?.checked_mul(c.n_layer)?;

        let scratch_len = kernels
            .attention_scratch_len(t, c.head_size())?
            .max(kernels.gemm_scratch_len(chunk, d.max(f).max(c.query_width())));
        let (wide, rows) = (chunk.checked_mul(d)?, |cols: usize| chunk.checked_mul(cols));
        let half = c.head_size() / 2;
        let mut own = Bump(0);
        let (norm, stats) = (own.take(wide)?, own.take(2 * chunk)?);
        let queries = if c.arch.qk_norm { own.take(rows(c.head_size())?)? } else { 0 };
        let scratch = own.take(scratch_len)?;
        let mut bump = Bump(0);
        let places = Places {
            x: bump.take(wide)?,
            y: bump.take(wide)?,
            qkv: bump.take(rows(c.qkv_width())?)?,
            att: bump.take(rows(c.query_width())?)?,
            fc_pre: bump.take(rows(c.fc_width())?)?,
            fc: bump.take(rows(f)?)?,
            logits: bump.take(c.vocab_size)?,
            angles: match c.arch.rotary() {
                Some(_) => {
                    Some([bump.take(t.checked_mul(half)?)?, bump.take(t.checked_mul(half)?)?])
                }
                None => None,
            },
            seats: bump.0,
            seat: own.0,
            norm,
            queries,
            stats,
            scratch,
        };
        bump.take(own.0.checked_mul(workers)?)?;
        let activations_len = bump.0;
        let bytes = [packed_len, cache_len, activations_len];
        if bytes.iter().any(|n| *n > isize::MAX as usize / 4) {
            return None;
        }
        Some(Self {
            config: *c,
            table,
            packed,
            packed_len,
            cache_len,
            places,
            activations_len,
            chunk,
            scratch_len,
            set: kernels.set(),
            panel: kernels.panel(),
            workers,
        })
    }

    /// The model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Threads that can work at one time, the calling one among them.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Lines for the weights as panels.
    #[must_use]
    pub fn packed_lines(&self) -> usize {
        self.packed_len / LANES
    }

    /// Lines for keys and values of a whole context.
    #[must_use]
    pub fn cache_lines(&self) -> usize {
        self.cache_len / LANES
    }

    /// Lines for the activations of a chunk, logits and scratch.
    #[must_use]
    pub fn activation_lines(&self) -> usize {
        self.activations_len / LANES
    }

    /// Slots of the queue of an [`crate::Engine`] for several threads.
    #[must_use]
    pub fn slots(&self) -> usize {
        OF_BLOCK.len().saturating_mul(self.config.n_layer).saturating_add(1)
    }

    /// Words of the queue.
    #[must_use]
    pub fn words(&self) -> usize {
        engine::words(self.workers, self.slots(), &CUT).unwrap_or(usize::MAX)
    }

    /// What stage `id` does, and in which block.
    pub(super) fn stage_kind(&self, id: usize) -> (Kind, usize) {
        let block = id / OF_BLOCK.len();
        if block < self.config.n_layer {
            (OF_BLOCK[id % OF_BLOCK.len()], block)
        } else {
            (Kind::Head, 0)
        }
    }

    /// The inner size and the columns of the result of a stage's product; none for attention.
    pub(super) fn product(&self, kind: Kind) -> Option<(usize, usize)> {
        let c = &self.config;
        let [qkv, attn_out, _, mlp_out] = c.matrices();
        Some(match kind {
            Kind::Qkv => qkv,
            Kind::AttnOut => attn_out,
            Kind::Fc => (c.d_model, c.d_ff),
            Kind::MlpOut => mlp_out,
            Kind::Head => (c.d_model, c.vocab_size),
            Kind::Attention => return None,
        })
    }

    /// Tiles of stage `id`.
    pub(super) fn tiles(&self, id: usize) -> usize {
        let Some((k, n)) = self.product(self.stage_kind(id).0) else {
            return self.config.kv_heads();
        };
        if self.workers == 1 {
            return 1;
        }
        let by_size = k.saturating_mul(n) / TILE;
        by_size.max(TILES_PER_WORKER * self.workers).min(n.div_ceil(self.panel))
    }

    /// The columns of tile `tile` of stage `id`, a product of `n`.
    pub(super) fn columns(&self, id: usize, tile: usize, n: usize) -> Range<usize> {
        let (tiles, panels) = (self.tiles(id), n.div_ceil(self.panel));
        let start = |tile: usize| (panels * tile / tiles * self.panel).min(n);
        start(tile)..start(tile + 1)
    }

    /// Stage `id` for the engine.
    pub(super) fn stage(&self, id: usize) -> Stage {
        let before = id.checked_sub(1).map_or(NONE, |id| id as u16);
        let needs = Needs { stages: [before, NONE, NONE], ..Needs::NOTHING };
        Stage { first_op: 0, ops: 0, tiles: self.tiles(id) as u32, shape: Shape::List, needs }
    }
}
