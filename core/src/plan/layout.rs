//! Where each buffer lies inside its pool. Offsets count floats and are whole lines.
//!
//! Activations of a block, `N` tokens, `C = d_model`, `F = d_ff`, `H` heads:
//!
//! ```text
//! x (N, C)   norm1 (N, C) + mean, rstd (N)   qkv (N, 3C)   att (N, C)   lse (N*H)
//! mid (N, C) norm2 (N, C) + mean, rstd (N)   fc_pre (N, F) fc (N, F)
//! ```
//! `x` enters the block, `mid` is the residual stream between its two halves, and
//! the next block's `x` leaves it. When only losses are wanted all blocks share
//! one set of buffers: nothing reads a block's `x` once `mid` is there.

use super::{BatchShape, Grain, Mode, PARTIAL_ROWS, head_rows, to_lines, update_block};
use crate::config::ModelConfig;
use crate::params::ParamTable;
use cllm_kernels::Kernels;

/// Hands out offsets one after the other.
struct Bump(usize);

impl Bump {
    fn take(&mut self, floats: usize) -> Option<usize> {
        let at = self.0;
        self.0 = at.checked_add(to_lines(floats)?)?;
        Some(at)
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Option<usize> {
        self.take(rows.checked_mul(cols)?)
    }
}

/// A norm's output and what its backward pass needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormBuffers {
    pub(crate) out: usize,
    pub(crate) mean: usize,
    pub(crate) rstd: usize,
}

/// Offsets of one block's activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockBuffers {
    pub(crate) x: usize,
    pub(crate) norm1: NormBuffers,
    pub(crate) qkv: usize,
    pub(crate) att: usize,
    pub(crate) lse: usize,
    pub(crate) mid: usize,
    pub(crate) norm2: NormBuffers,
    pub(crate) fc_pre: usize,
    pub(crate) fc: usize,
}

impl NormBuffers {
    fn take(bump: &mut Bump, rows: usize, cols: usize) -> Option<Self> {
        Some(Self { out: bump.matrix(rows, cols)?, mean: bump.take(rows)?, rstd: bump.take(rows)? })
    }

    fn shift(self, by: usize) -> Self {
        Self { out: self.out + by, mean: self.mean + by, rstd: self.rstd + by }
    }
}

/// Offsets of one set of the buffers that only training has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradBuffers {
    /// Gradient of a block's output, (N, C).
    pub(crate) dx: usize,
    /// Gradient of `mid`, (N, C).
    pub(crate) dmid: usize,
    /// Gradient of a norm's output, (N, C); one for all sets.
    pub(crate) dnorm: usize,
    /// Gradient of the attention's output, (N, C).
    pub(crate) datt: usize,
    /// Gradient of queries, keys and values, (N, 3C).
    pub(crate) dqkv: usize,
    /// Gradient of `fc_pre`, (N, F).
    pub(crate) dfc: usize,
    /// `dx` and `dmid` behind their dropout masks, (N, C) each; absent without dropout.
    pub(crate) masked_mlp: usize,
    pub(crate) masked_att: usize,
    /// Sums of norm gradients of each [`PARTIAL_ROWS`] rows, (pieces, 2C): the norm above the
    /// block (the next block's first or the final one), and the second norm.
    pub(crate) partial1: usize,
    pub(crate) partial2: usize,
}

impl GradBuffers {
    fn take(bump: &mut Bump, n: usize, c: &ModelConfig, dnorm: usize) -> Option<Self> {
        let (d, f) = (c.d_model, c.d_ff);
        let pieces = n.div_ceil(PARTIAL_ROWS);
        let masked = if c.dropout > 0.0 { n } else { 0 };
        Some(Self {
            dnorm,
            dx: bump.matrix(n, d)?,
            dmid: bump.matrix(n, d)?,
            datt: bump.matrix(n, d)?,
            dqkv: bump.matrix(n, 3 * d)?,
            dfc: bump.matrix(n, f)?,
            masked_mlp: bump.matrix(masked, d)?,
            masked_att: bump.matrix(masked, d)?,
            partial1: bump.matrix(pieces, 2 * d)?,
            partial2: bump.matrix(pieces, 2 * d)?,
        })
    }

    fn shift(self, by: usize) -> Self {
        Self {
            dnorm: self.dnorm,
            dx: self.dx + by,
            dmid: self.dmid + by,
            datt: self.datt + by,
            dqkv: self.dqkv + by,
            dfc: self.dfc + by,
            masked_mlp: self.masked_mlp + by,
            masked_att: self.masked_att + by,
            partial1: self.partial1 + by,
            partial2: self.partial2 + by,
        }
    }
}

/// Offsets of one block's packed weights, both ways round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedBlock {
    pub(crate) qkv: usize,
    pub(crate) att: usize,
    pub(crate) fc: usize,
    pub(crate) mlp: usize,
    pub(crate) qkv_t: usize,
    pub(crate) att_t: usize,
    pub(crate) fc_t: usize,
    pub(crate) mlp_t: usize,
}

/// All offsets of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    first_block: BlockBuffers,
    /// Floats between two blocks' activations: 0 when they share them.
    block_stride: usize,
    n_layer: usize,
    x_last: usize,
    pub(crate) final_norm: NormBuffers,
    pub(crate) losses: usize,
    logits: usize,
    /// Groups of logits that exist at one time.
    pub(crate) logits_buffers: usize,
    logits_stride: usize,
    first_grads: GradBuffers,
    grads_stride: usize,
    gradient_sets: usize,
    /// Sum of squares of each optimizer tile of the gradient arena.
    pub(crate) squares: usize,
    pub(crate) activations_len: usize,
    first_packed: PackedBlock,
    packed_stride: usize,
    /// Output projection: `d_model x vocab` and back.
    pub(crate) head: usize,
    pub(crate) head_t: usize,
    pub(crate) packed_len: usize,
    /// Floats of scratch of one worker.
    pub(crate) scratch_len: usize,
}

impl Layout {
    /// `None` if a size overflows.
    pub(super) fn new(
        c: &ModelConfig,
        batch: BatchShape,
        mode: Mode,
        grain: &Grain,
        kernels: &Kernels,
    ) -> Option<Self> {
        let n = batch.sequences.checked_mul(batch.tokens)?;
        let (d, f) = (c.d_model, c.d_ff);
        let train = mode == Mode::Train;
        let mut bump = Bump(0);
        let first_block = BlockBuffers {
            x: bump.matrix(n, d)?,
            norm1: NormBuffers::take(&mut bump, n, d)?,
            qkv: bump.matrix(n, 3 * d)?,
            att: bump.matrix(n, d)?,
            lse: bump.matrix(n, c.n_head)?,
            mid: bump.matrix(n, d)?,
            norm2: NormBuffers::take(&mut bump, n, d)?,
            fc_pre: bump.matrix(n, f)?,
            fc: bump.matrix(n, f)?,
        };
        let block_stride = if train { bump.0 } else { 0 };
        let others = block_stride.checked_mul(c.n_layer - 1)?;
        bump.take(others)?;
        let x_last = bump.matrix(n, d)?;
        let final_norm = NormBuffers::take(&mut bump, n, d)?;
        let losses = bump.take(n)?;
        let group = head_rows(n, c.vocab_size);
        let logits_buffers = grain.logits_rows.div_ceil(group).min(n.div_ceil(group));
        let logits = bump.0;
        bump.matrix(group, c.vocab_size)?;
        let logits_stride = bump.0 - logits;
        bump.take(logits_stride.checked_mul(logits_buffers - 1)?)?;
        let mut first_grads = GradBuffers::default();
        let (mut grads_stride, mut squares) = (0, 0);
        if train {
            let dnorm = bump.matrix(n, d)?;
            let start = bump.0;
            first_grads = GradBuffers::take(&mut bump, n, c, dnorm)?;
            grads_stride = bump.0 - start;
            bump.take(grads_stride.checked_mul(grain.gradient_sets - 1)?)?;
            let arena = ParamTable::new(c).ok()?.arena_len();
            squares = bump.take(arena.div_ceil(update_block(arena)))?;
        }
        let activations_len = bump.0;

        let mut bump = Bump(0);
        let first_packed = packed_block(c, kernels, train, &mut |floats| bump.take(floats))?;
        let packed_stride = bump.0;
        bump.take(packed_stride.checked_mul(c.n_layer - 1)?)?;
        let head = bump.take(kernels.packed_len(d, c.vocab_size)?)?;
        let head_t = if train { bump.take(kernels.packed_len(c.vocab_size, d)?)? } else { 0 };
        let packed_len = bump.0;

        let (t, head_size) = (batch.tokens, c.head_size());
        let mut scratch_len = kernels.attention_scratch_len(t, head_size)?;
        // The deepest product of a row block: backward they are as deep as forward they are wide.
        let deepest = if train { f.max(3 * d).max(c.vocab_size) } else { f.max(d) };
        scratch_len = scratch_len.max(kernels.gemm_scratch_len(grain.row_block.min(n), deepest));
        if train {
            // The largest tile of any weight's gradient, as it is stored.
            for (rows, cols) in [(d, 3 * d), (d, d), (d, f), (f, d), (c.vocab_size, d)] {
                let (rows, cols) = (grain.weight_rows.min(rows), grain.weight_cols.min(cols));
                scratch_len = scratch_len.max(kernels.unpacked_scratch_len(rows, cols, n)?);
            }
            scratch_len = scratch_len.max(kernels.attention_backward_scratch_len(t, head_size)?);
        }
        Some(Self {
            first_block,
            block_stride,
            n_layer: c.n_layer,
            x_last,
            final_norm,
            losses,
            logits,
            logits_buffers,
            logits_stride,
            first_grads,
            grads_stride,
            gradient_sets: grain.gradient_sets,
            squares,
            activations_len,
            first_packed,
            packed_stride,
            head,
            head_t,
            packed_len,
            scratch_len: to_lines(scratch_len)?,
        })
    }

    /// Activations of a block.
    pub(crate) fn block(&self, layer: usize) -> BlockBuffers {
        let by = layer * self.block_stride;
        let b = &self.first_block;
        BlockBuffers {
            x: b.x + by,
            norm1: b.norm1.shift(by),
            qkv: b.qkv + by,
            att: b.att + by,
            lse: b.lse + by,
            mid: b.mid + by,
            norm2: b.norm2.shift(by),
            fc_pre: b.fc_pre + by,
            fc: b.fc + by,
        }
    }

    /// Residual stream that leaves a block.
    pub(crate) fn block_output(&self, layer: usize) -> usize {
        if layer + 1 < self.n_layer { self.block(layer + 1).x } else { self.x_last }
    }

    /// Gradients of the activations of a block.
    pub(crate) fn grads(&self, layer: usize) -> GradBuffers {
        self.grads_into(layer + 1)
    }

    /// Gradients of what enters a block: those of the block before it, and in the first
    /// block those of the embedding.
    pub(crate) fn grads_into(&self, layer: usize) -> GradBuffers {
        self.first_grads.shift(layer % self.gradient_sets * self.grads_stride)
    }

    /// Logits of a group of rows.
    pub(crate) fn logits(&self, group: usize) -> usize {
        self.logits + group % self.logits_buffers * self.logits_stride
    }

    /// Packed weights of a block.
    pub(crate) fn packed(&self, layer: usize) -> PackedBlock {
        let by = layer * self.packed_stride;
        let p = &self.first_packed;
        PackedBlock {
            qkv: p.qkv + by,
            att: p.att + by,
            fc: p.fc + by,
            mlp: p.mlp + by,
            qkv_t: p.qkv_t + by,
            att_t: p.att_t + by,
            fc_t: p.fc_t + by,
            mlp_t: p.mlp_t + by,
        }
    }
}

/// Lays out one block's packed weights with `take`; the transposes only for training.
pub(crate) fn packed_block(
    c: &ModelConfig,
    kernels: &Kernels,
    transposes: bool,
    take: &mut dyn FnMut(usize) -> Option<usize>,
) -> Option<PackedBlock> {
    let (d, f) = (c.d_model, c.d_ff);
    let mut of = |k: usize, n: usize, wanted: bool| {
        if wanted { take(kernels.packed_len(k, n)?) } else { Some(0) }
    };
    Some(PackedBlock {
        qkv: of(d, 3 * d, true)?,
        att: of(d, d, true)?,
        fc: of(d, f, true)?,
        mlp: of(f, d, true)?,
        qkv_t: of(3 * d, d, transposes)?,
        att_t: of(d, d, transposes)?,
        fc_t: of(f, d, transposes)?,
        mlp_t: of(d, f, transposes)?,
    })
}
