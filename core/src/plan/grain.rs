//! How finely a step is cut into tiles, for a number of workers.
//!
//! Few workers get large tiles, which the kernels run faster; many get small ones, so that
//! there are enough. **The bits of a step do not depend on it**: whatever is summed over
//! tokens is summed in pieces of a fixed size ([`PARTIAL_ROWS`], the logits' groups, the
//! products' own blocks), whatever the tiles are.

use super::blocking::ROW_BLOCKS;
use super::{BatchShape, Blocking, Mode, PARTIAL_ROWS, Packing, Tiling, least_block, to_lines};
use crate::arithmetic::{least, most, some};
use crate::built::{FRESH, WORKERS};
use crate::config::ModelConfig;
use cllm_kernels::{Footprint, KC, Write};

/// Most rows (tokens) of a tile of the forward and backward pass, unless [`Blocking`] says
/// otherwise.
///
/// A multiple of both register blocks (6 and 4 rows). 96 rows of a 1,024-wide
/// activation are 384 KiB: they stay in a 512 KiB L2 from one operation of a chain
/// to the next.
pub const ROW_BLOCK: usize = 96;
/// Rows of a block where every product packs its weights on the way, largest first: some of
/// [`ROW_BLOCKS`]. What is packed is used for one block, so many rows are better. Where adapters are
/// trained blocks may be any of those: packed weights would be most of the memory.
const FRESH_BLOCKS: [usize; 4] = [384, 192, 128, 96];
/// Rows that could be multiplied in the time of packing (8 to 12 with 768 x 3,072 and back, `f32`
/// and bf16, AVX-512, one thread). Taken for reading panels from memory too, which was not measured.
const PACKING_ROWS: usize = 10;
/// Floats of matrices whose gradients are written past the caches: 128 MiB, of which the update or the
/// next micro-batch finds little in caches. GPT-2 124M has four times as many: [`Write::Stream`] says
/// what it gains. Batches of more than one block of [`KC`] rows add to what they have written.
const STREAMED_FLOATS: usize = 32 << 20;
/// Blocks of queries that a span has at least: every span packs the keys that it sees.
const SPAN_BLOCKS: usize = 2;

/// Sizes of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grain {
    /// Rows (tokens) of a tile of the forward and backward pass.
    pub(crate) row_block: usize,
    /// When weights are packed.
    pub(crate) packing: Packing,
    /// Rows and columns of a tile of a weight's gradient.
    pub(crate) weight_rows: usize,
    pub(crate) weight_cols: usize,
    /// How the first of a step's batches writes weights' gradients: past the caches if the next
    /// use of them, by the update, finds none there.
    pub(crate) writes: Write,
    /// Parts that the heads of keys and values of a span are cut into for attention, each with the
    /// heads of queries that it serves.
    head_parts: usize,
    /// Queries of a span of attention: a sequence, or a part of it where there are not
    /// enough heads. Whole blocks of the kernel's.
    pub(crate) span: usize,
    /// Rows of a sequence whose sums of gradients of norms of heads are added up together: spans are
    /// whole pieces, so it depends on the kernels alone.
    pub(crate) piece: usize,
    /// Spans are parts of sequences: gradients of queries are then made apart from those of
    /// keys and values, which costs seven products instead of five.
    pub(crate) parted: bool,
    /// Sets of buffers for the gradients of a block's activations: with two, the gradients
    /// of a block's weights need not be ready before the next block's rows begin.
    pub(crate) gradient_sets: usize,
    /// Rows of logits in flight.
    pub(crate) logits_rows: usize,
    /// Floats of a tile of the update, at least.
    update_floats: usize,
}

impl Grain {
    /// `workers` is the number that tiles are for, where `tiling` does not say one; `adapted` is whether
    /// adapters are trained.
    pub(crate) const fn new(
        c: &ModelConfig,
        adapted: bool,
        batch: BatchShape,
        mode: Mode,
        workers: usize,
        tiling: &Tiling,
        kernels: Footprint,
    ) -> Self {
        let rows = batch.sequences * batch.tokens;
        let blocking = &tiling.blocking;
        let workers = match tiling.workers {
            _ if !WORKERS => 1,
            Some(workers) => workers,
            None => workers,
        };
        // Tiles that an operation should have.
        let wanted =
            if workers == 1 { 1 } else { workers.saturating_mul(blocking.tiles_per_worker) };
        let may_keep = adapted && mode.trains();
        // Packed weights of large models come from memory for every block.
        let large = matrix_floats(c) >= blocking.fresh_floats;
        let sizes: &[usize] = if adapted { &ROW_BLOCKS } else { &FRESH_BLOCKS };
        let packing = match tiling.packing {
            _ if !FRESH => Packing::Once,
            Some(Packing::Kept) if !may_keep => Packing::Once,
            Some(packing) => packing,
            None if may_keep && panels_are_no_larger(c, kernels) => Packing::Kept,
            None if large && (adapted || fresh_is_better(rows, workers, blocking)) => {
                Packing::Fresh
            }
            None => Packing::Once,
        };
        let from_cache =
            matches!(packing, Packing::Once) || matches!(packing, Packing::Kept) && !large;
        let row_block = if from_cache {
            row_block(rows, wanted, blocking.row_block)
        } else {
            fresh_block(rows, workers, sizes)
        };
        let (weight_rows, weight_cols) = weight_tile(c, blocking.weight_tiles(), wanted);
        let spans = wanted.div_ceil(batch.sequences.saturating_mul(c.kv_heads()));
        let piece = SPAN_BLOCKS * kernels.attention_block();
        let span = least(batch.tokens.div_ceil(spans).next_multiple_of(piece), batch.tokens);
        let parts = wanted.div_ceil(batch.sequences);
        Self {
            row_block,
            packing,
            weight_rows,
            weight_cols,
            writes: match rows <= KC && matrix_floats(c) >= STREAMED_FLOATS {
                true => Write::Stream,
                false => Write::Overwrite,
            },
            head_parts: least(most(parts, 1), c.kv_heads()),
            span,
            piece,
            parted: WORKERS && span < batch.tokens,
            gradient_sets: if workers == 1 || !mode.trains() { 1 } else { 2 },
            logits_rows: match workers {
                1 => 1,
                _ => workers.saturating_mul(blocking.logits_blocks).saturating_mul(row_block),
            },
            update_floats: blocking.update_floats,
        }
    }

    /// Products read panels from the pool of packed weights.
    pub(crate) const fn has_panels(&self) -> bool {
        !FRESH || !matches!(self.packing, Packing::Fresh)
    }

    /// Floats of a tile of the update of an arena of so many.
    pub(crate) const fn update_block(&self, arena: usize) -> usize {
        most(least_block(arena), self.update_floats)
    }

    /// Tiles of forward attention over a span.
    pub(crate) const fn forward_parts(&self) -> usize {
        if WORKERS { self.head_parts } else { 1 }
    }

    /// Tiles of backward attention over a span: those of queries, then those of keys and
    /// values, if they are made apart.
    pub(crate) const fn backward_parts(&self) -> usize {
        if self.is_parted() { 2 * self.head_parts } else { self.forward_parts() }
    }

    /// Whether spans are parts of sequences.
    pub(crate) const fn is_parted(&self) -> bool {
        WORKERS && self.parted
    }

    /// Pieces of a sequence of `tokens`.
    pub(crate) const fn pieces(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.piece)
    }

    /// Floats of scratch that the backward pass of heads that share keys and values wants besides that
    /// of the kernels: those keys and values, of a sequence of `tokens`, and a head's own gradients;
    /// of spans the gradients alone. 0 if no heads share any; `None` on overflow.
    pub(crate) const fn group_len(&self, c: &ModelConfig, tokens: usize) -> Option<usize> {
        let size = match c.kv_heads() == c.n_head {
            true => 0,
            false => c.head_size(),
        };
        let (matrices, rows) = if self.is_parted() { (2, self.span) } else { (4, tokens) };
        some!(to_lines(some!(rows.checked_mul(size)))).checked_mul(matrices)
    }

    /// Heads of keys and values of part `part` of `heads`, counted over.
    pub(crate) fn heads(&self, part: usize, heads: usize) -> core::ops::Range<usize> {
        let part = part % self.head_parts;
        heads * part / self.head_parts..heads * (part + 1) / self.head_parts
    }
}

/// Rows of a block, one of `sizes`, if weights are packed or come from memory for each: the worker
/// with the most blocks has the least to do. The smallest has 32, so of very few rows some workers
/// have none.
const fn fresh_block(rows: usize, workers: usize, sizes: &[usize]) -> usize {
    let (mut best, mut least_time) = (ROW_BLOCK, usize::MAX);
    let mut i = 0;
    while i < sizes.len() {
        let block = sizes[i];
        let blocks = rows.div_ceil(block).div_ceil(workers);
        let time = blocks.saturating_mul(least(block, rows) + PACKING_ROWS);
        if i == 0 || time < least_time {
            (best, least_time) = (block, time);
        }
        i += 1;
    }
    best
}

/// The largest of [`ROW_BLOCKS`], up to `most`, of which `rows` make the wanted number; or the smallest.
const fn row_block(rows: usize, wanted: usize, most: usize) -> usize {
    let mut i = 0;
    while i < ROW_BLOCKS.len() {
        let block = ROW_BLOCKS[i];
        if block <= most && rows.div_ceil(block) >= wanted {
            return block;
        }
        i += 1;
    }
    PARTIAL_ROWS
}

/// The first of some tiles of weights' gradients of which a block's matrices have the wanted number, or the
/// last.
const fn weight_tile(c: &ModelConfig, sizes: [(usize, usize); 4], wanted: usize) -> (usize, usize) {
    let matrices = c.matrices();
    let mut size = 0;
    while size + 1 < sizes.len() {
        let (height, width) = sizes[size];
        let (mut tiles, mut i) = (0, 0);
        while i < matrices.len() {
            let (m, n) = matrices[i];
            tiles += m.div_ceil(height) * n.div_ceil(width);
            i += 1;
        }
        if tiles >= wanted {
            break;
        }
        size += 1;
    }
    sizes[size]
}

/// Floats of all matrices.
const fn matrix_floats(c: &ModelConfig) -> usize {
    let matrices = c.matrices();
    let (mut block, mut i) = (0_usize, 0);
    while i < matrices.len() {
        let (k, n) = matrices[i];
        block = block.saturating_add(k.saturating_mul(n));
        i += 1;
    }
    let head = c.d_model.saturating_mul(c.vocab_size);
    block.saturating_mul(c.n_layer).saturating_add(head)
}

/// Whether panels of all matrices of blocks, both ways round, take no more memory than their floats, but
/// for some padding: so it is where they are of bf16.
const fn panels_are_no_larger(c: &ModelConfig, kernels: Footprint) -> bool {
    /// Floats of panels, and of the matrices.
    const fn sums(c: &ModelConfig, kernels: Footprint) -> Option<(usize, usize)> {
        let matrices = c.matrices();
        let (mut panels, mut floats, mut i) = (0_usize, 0_usize, 0);
        while i < matrices.len() {
            let (k, n) = matrices[i];
            panels = some!(panels.checked_add(some!(kernels.packed_len(k, n))));
            panels = some!(panels.checked_add(some!(kernels.packed_len(n, k))));
            floats = some!(floats.checked_add(some!(k.checked_mul(n))));
            i += 1;
        }
        Some((panels, floats))
    }
    match sums(c, kernels) {
        Some((panels, floats)) => panels <= floats.saturating_add(floats / 4),
        None => false,
    }
}

/// Whether a large model's weights had better be packed for each block of rows than once for all: if
/// there are few blocks and every worker has one that is large enough.
const fn fresh_is_better(rows: usize, workers: usize, blocking: &Blocking) -> bool {
    rows <= blocking.fresh_rows
        && rows.div_ceil(fresh_block(rows, workers, &FRESH_BLOCKS)) >= workers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;
    use cllm_kernels::{Dtype, Kernels};

    #[test]
    fn adapters_of_a_large_model_have_blocks_for_every_worker() {
        let c = ModelConfig {
            vocab_size: 50257,
            block_size: 1024,
            n_layer: 12,
            n_head: 12,
            d_model: 768,
            d_ff: 3072,
            bias: true,
            tied: true,
            dropout: 0.0,
            norm_eps: 1e-5,
            arch: Architecture::GPT2,
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let kernels = Kernels::detect().with_dtype(dtype);
            for (sequences, tokens, workers, rows) in
                [(1, 64, 2, 32), (4, 64, 2, 128), (4, 64, 8, 32), (1, 33, 2, 32)]
            {
                let (batch, tiling) = (BatchShape { sequences, tokens }, Tiling::default());
                let kernels = kernels.footprint();
                let grain = Grain::new(&c, true, batch, Mode::Train, workers, &tiling, kernels);
                assert_eq!(grain.row_block, rows, "{dtype:?} {batch:?} {workers}");
                assert!((sequences * tokens).div_ceil(rows) >= workers);
                // And its weights are in memory once.
                assert_ne!(grain.packing, Packing::Once, "{dtype:?} {batch:?}");
            }
        }
    }
}
