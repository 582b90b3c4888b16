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

use crate::arithmetic::{least, most, ok, some};
use crate::config::{ConfigError, ModelConfig};
use crate::engine::{self, Cut, MAX_TILES, NONE, Needs, Shape, Stage};
use crate::line::{LANES, Line};
use crate::params::ParamTable;
use crate::plan::{Bump, Panels, PlanError, ROW_BLOCK, excess, to_lines};
use cllm_kernels::{Footprint, KernelSet, Kernels};
use core::ops::Range;

/// Exact sizes of the memory that generation needs besides the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
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
#[derive(Clone, Copy, Debug, PartialEq)]
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
#[derive(Clone, Copy, Debug, PartialEq)]
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
/// Floats of packed weights from which on they are read from memory for each token. Models of 19 and 10 MB
/// generate 0.93 to 1.02 times as many tokens a second if they are taken to, of 38 and 76 MB 1.09 to 1.18 (Zen 4,
/// 32 MiB of L3, one thread and two, `f32` and bf16).
const UNCACHED: usize = 8 << 20;

/// How a row is cut for the engine's counters: not at all, for all stages are lists.
pub(super) const CUT: Cut =
    Cut { rows: 1, row_block: 1, sequence: 1, span: 1, levels: 0, in_place: false };

impl GeneratePlan {
    /// Plans one stream of text, for the calling thread alone.
    ///
    /// # Errors
    /// What is wrong with the config.
    pub const fn new(config: &ModelConfig, kernels: &Kernels) -> Result<Self, PlanError> {
        Self::with_workers(config, 1, kernels)
    }

    /// Plans one stream of text for up to `workers` threads, the calling one among them.
    ///
    /// # Errors
    /// What is wrong with the config; no worker; more stages or tiles than the engine can count.
    pub const fn with_workers(
        config: &ModelConfig,
        workers: usize,
        kernels: &Kernels,
    ) -> Result<Self, PlanError> {
        Self::of_set(config, workers, kernels.set())
    }

    /// As [`GeneratePlan::with_workers`], for the kernels of a name, which need not be there: for other
    /// machines, and in a `const`, where [`GeneratePlan::fixed`] is more handy.
    ///
    /// # Errors
    /// As for [`GeneratePlan::with_workers`], and if there are no kernels of this name on this target.
    pub const fn of_set(
        config: &ModelConfig,
        workers: usize,
        set: KernelSet,
    ) -> Result<Self, PlanError> {
        let Some(kernels) = set.footprint() else { return Err(PlanError::NoKernels(set)) };
        if workers == 0 {
            return Err(PlanError::NoWorker);
        }
        let table = ok!(ParamTable::new(config), PlanError::Config);
        let overflow = PlanError::Config(ConfigError::Overflow);
        let Some(plan) = Self::sizes(config, table, workers, set, kernels) else {
            return Err(overflow);
        };
        // Without an engine nothing is counted.
        if workers == 1 {
            return Ok(plan);
        }
        if plan.slots() >= NONE as usize {
            return Err(overflow);
        }
        let mut id = 0;
        while id < plan.slots() {
            let tiles = plan.tiles(id);
            if tiles > MAX_TILES {
                return Err(PlanError::TooManyTiles { tiles, most: MAX_TILES });
            }
            id += 1;
        }
        Ok(plan)
    }

    /// [`GeneratePlan::with_workers`] for a `const`, for the kernels of a name: what is wrong stops the
    /// compilation. As [`Plan::fixed`](crate::Plan::fixed), it is the plan that those kernels have at run time.
    ///
    /// ```
    /// use cllm_core::generate::GeneratePlan;
    /// use cllm_core::*;
    ///
    /// # const CONFIG: ModelConfig = ModelConfig { vocab_size: 32, block_size: 8, n_layer: 1, n_head: 2,
    /// #     d_model: 16, d_ff: 64, bias: true, tied: true, dropout: 0.0, norm_eps: 1e-5,
    /// #     arch: Architecture::GPT2 };
    /// const PLAN: GeneratePlan = GeneratePlan::fixed(&CONFIG, 1, KernelSet::SCALAR);
    /// const _: () = PLAN.assert_fits(64 * 1024);
    /// static CACHE: [Line; PLAN.cache_lines()] = [Line::ZERO; _];
    /// assert_eq!(GeneratePlan::new(&CONFIG, Kernels::scalar()), Ok(PLAN));
    /// ```
    ///
    /// # Panics
    /// With the message of the error that [`GeneratePlan::of_set`] has; in a `const` that is an error of the
    /// compiler's.
    #[must_use]
    #[track_caller]
    pub const fn fixed(config: &ModelConfig, workers: usize, set: KernelSet) -> Self {
        match Self::of_set(config, workers, set) {
            Ok(plan) => plan,
            Err(error) => error.stop(),
        }
    }

    /// Checks that packed weights, cache and activations fit into so many bytes: for a
    /// `const _: () = PLAN.assert_fits(BYTES);`.
    ///
    /// # Panics
    /// If they do not: with what is needed, by how much it is too much, and the bytes of each; in a `const`
    /// that is an error of the compiler's.
    #[track_caller]
    pub const fn assert_fits(&self, bytes: usize) {
        let line = size_of::<Line>();
        // Each is at most a quarter of what can be addressed.
        let pools = [
            (": packed ", self.packed_lines() * line),
            (", cache ", self.cache_lines() * line),
            (", activations ", self.activation_lines() * line),
        ];
        let need = pools[0].1.saturating_add(pools[1].1).saturating_add(pools[2].1);
        if need <= bytes {
            return;
        }
        let (mut text, mut i) = (excess("the plan", need, bytes), 0);
        while i < pools.len() {
            text.push(pools[i].0);
            text.push_number(pools[i].1);
            i += 1;
        }
        text.panic()
    }

    const fn sizes(
        c: &ModelConfig,
        table: ParamTable,
        workers: usize,
        set: KernelSet,
        kernels: Footprint,
    ) -> Option<Self> {
        let (d, f, t) = (c.d_model, c.d_ff, c.block_size);
        let chunk = least(ROW_BLOCK, t);
        let mut panels = Panels { bump: Bump(0), are_kept: true, kernels };
        let [of_qkv, of_att, _, of_mlp] = c.matrices();
        let qkv = some!(panels.take(of_qkv.0, of_qkv.1));
        let att = some!(panels.take(of_att.0, of_att.1));
        let fc = some!(panels.take(d, f));
        let up = if c.arch.is_gated() { some!(panels.take(d, f)) } else { fc };
        let mlp = some!(panels.take(of_mlp.0, of_mlp.1));
        let stride = panels.bump.0;
        some!(panels.bump.take(some!(stride.checked_mul(c.n_layer - 1))));
        let head = some!(panels.take(d, c.vocab_size));
        let packed = PackedPlaces { qkv, att, fc, up, mlp, stride, head };
        let packed_len = panels.bump.0;

        let cache_len = some!(to_lines(some!(t.checked_mul(c.kv_width()))));
        let cache_len = some!(some!(cache_len.checked_mul(2)).checked_mul(c.n_layer));

        let deepest = most(most(d, f), c.query_width());
        let scratch_len = most(
            some!(kernels.attention_scratch_len(t, c.head_size())),
            kernels.gemm_scratch_len(chunk, deepest),
        );
        let half = c.head_size() / 2;
        let mut own = Bump(0);
        let (norm, stats) = (some!(own.matrix(chunk, d)), some!(own.take(2 * chunk)));
        let queries = if c.arch.qk_norm { some!(own.matrix(chunk, c.head_size())) } else { 0 };
        let scratch = some!(own.take(scratch_len));
        let mut bump = Bump(0);
        let places = Places {
            x: some!(bump.matrix(chunk, d)),
            y: some!(bump.matrix(chunk, d)),
            qkv: some!(bump.matrix(chunk, c.qkv_width())),
            att: some!(bump.matrix(chunk, c.query_width())),
            fc_pre: some!(bump.matrix(chunk, c.fc_width())),
            fc: some!(bump.matrix(chunk, f)),
            logits: some!(bump.take(c.vocab_size)),
            angles: match c.arch.rotary() {
                Some(_) => Some([some!(bump.matrix(t, half)), some!(bump.matrix(t, half))]),
                None => None,
            },
            seats: bump.0,
            seat: own.0,
            norm,
            queries,
            stats,
            scratch,
        };
        some!(bump.take(some!(own.0.checked_mul(workers))));
        let activations_len = bump.0;
        if most(most(packed_len, cache_len), activations_len) > isize::MAX as usize / 4 {
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
            set,
            panel: kernels.panel(),
            workers,
        })
    }

    /// The model.
    #[must_use]
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Threads that can work at one time, the calling one among them.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Lines for the weights as panels.
    #[must_use]
    pub const fn packed_lines(&self) -> usize {
        self.packed_len / LANES
    }

    /// Lines for keys and values of a whole context.
    #[must_use]
    pub const fn cache_lines(&self) -> usize {
        self.cache_len / LANES
    }

    /// Lines for the activations of a chunk, logits and scratch.
    #[must_use]
    pub const fn activation_lines(&self) -> usize {
        self.activations_len / LANES
    }

    /// Slots of the queue of an [`crate::Engine`] for several threads.
    #[must_use]
    pub const fn slots(&self) -> usize {
        OF_BLOCK.len().saturating_mul(self.config.n_layer).saturating_add(1)
    }

    /// Words of the queue.
    #[must_use]
    pub const fn words(&self) -> usize {
        match engine::words(self.workers, self.slots(), &CUT) {
            Some(words) => words,
            None => usize::MAX,
        }
    }

    /// What stage `id` does, and in which block.
    pub(super) const fn stage_kind(&self, id: usize) -> (Kind, usize) {
        let block = id / OF_BLOCK.len();
        if block < self.config.n_layer {
            (OF_BLOCK[id % OF_BLOCK.len()], block)
        } else {
            (Kind::Head, 0)
        }
    }

    /// The inner size and the columns of the result of a stage's product; none for attention.
    pub(super) const fn product(&self, kind: Kind) -> Option<(usize, usize)> {
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
    pub(super) const fn tiles(&self, id: usize) -> usize {
        let Some((k, n)) = self.product(self.stage_kind(id).0) else {
            return self.config.kv_heads();
        };
        if self.workers == 1 {
            return 1;
        }
        let by_size = k.saturating_mul(n) / TILE;
        least(most(by_size, TILES_PER_WORKER * self.workers), n.div_ceil(self.panel))
    }

    /// The columns of tile `tile` of stage `id`, a product of `n`.
    pub(super) fn columns(&self, id: usize, tile: usize, n: usize) -> Range<usize> {
        let (tiles, panels) = (self.tiles(id), n.div_ceil(self.panel));
        let start = |tile: usize| (panels * tile / tiles * self.panel).min(n);
        start(tile)..start(tile + 1)
    }

    /// Whether no cache has the packed weights when they are needed next.
    pub(super) const fn is_uncached(&self) -> bool {
        self.packed_len >= UNCACHED
    }

    /// Stage `id` for the engine.
    pub(super) fn stage(&self, id: usize) -> Stage {
        let before = id.checked_sub(1).map_or(NONE, |id| id as u16);
        let needs = Needs { stages: [before, NONE, NONE], ..Needs::NOTHING };
        Stage { first_op: 0, ops: 0, tiles: self.tiles(id) as u32, shape: Shape::List, needs }
    }
}
