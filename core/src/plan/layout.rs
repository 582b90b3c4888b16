//! Where everything lies: the buffers of activations, packed weights, and a worker's scratch.
//!
//! What the buffers are for, and what takes whose place in them, is in `buffers`.

use super::buffers::{
    Between, BlockBuffers, Buffer, Bump, Columns, GradBuffers, Moments, Place, Wider,
};
use super::{
    ADAPTER_BLOCK, BatchShape, DROPPED_ROWS, Grain, Mode, head_rows, squares_block, to_lines,
};
use crate::adapter::AdapterTable;
use crate::config::ModelConfig;
use crate::program::Matrix;
use cllm_kernels::{Kernels, row_stride};

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
    /// What takes the place of floats that only products read is of bf16.
    halves: bool,
    /// `d_model`.
    width: usize,
    /// Elements from a row of `d_model` of them to the next, and whether they are of bf16, where only
    /// products read them.
    wide: (usize, bool),
    wider: Wider,
    /// Floats from a row of logits to the next.
    vocab: usize,
    blocks: BlockBuffers<Place>,
    n_layer: usize,
    x_last: usize,
    pub(crate) final_norm: Moments,
    pub(crate) losses: usize,
    logits: Place,
    /// Groups of logits that exist at one time.
    pub(crate) logits_buffers: usize,
    grads: GradBuffers<Place>,
    /// Gradients of queries, keys and values have buffers of their own.
    own_dqkv: bool,
    /// Where queries, keys and values start in a row of all of them, and its columns.
    head_columns: [usize; 3],
    qkv_width: usize,
    /// Queries and keys behind norms of heads have buffers of their own.
    normed_heads: bool,
    /// Sum of squares of each optimizer tile of the gradient arena.
    pub(crate) squares: usize,
    pub(crate) activations_len: usize,
    first_packed: PackedBlock,
    packed_stride: usize,
    /// Output projection: `d_model x vocab` and back.
    head: usize,
    head_t: usize,
    pub(crate) packed_len: usize,
    /// Cosines and sines of the angles of a sequence's positions, if they are rotary.
    pub(crate) angles: Option<[usize; 2]>,
    /// Floats of scratch of one worker.
    pub(crate) scratch_len: usize,
    /// Of these, at the start: the norm's output of a row block, then that of GELU or SwiGLU, or the
    /// gradient of the latter.
    pub(crate) held_norm: usize,
    pub(crate) held_fc: usize,
    /// Then what an adapter adds to a row block's product; and rows between the factors of adapters.
    pub(crate) held_addend: usize,
    between: Between<[Place; 4]>,
    /// Floats from a row of that gradient to the next.
    pub(crate) held_fc_stride: usize,
}

impl Layout {
    /// For `trained` floats of what is trained; `None` if a size overflows.
    pub(super) fn new(
        c: &ModelConfig,
        adapters: Option<&AdapterTable>,
        trained: usize,
        batch: BatchShape,
        mode: Mode,
        grain: &Grain,
        kernels: &Kernels,
    ) -> Option<Self> {
        let n = batch.sequences.checked_mul(batch.tokens)?;
        let (d, f, fc) = (c.d_model, c.d_ff, c.fc_width());
        let matrices = c.matrices();
        let train = mode.trains();
        let mut bump = Bump(0);
        let copies = match mode {
            Mode::Train => (c.n_layer, c.n_layer),
            Mode::Recompute => (c.n_layer, grain.gradient_sets.min(c.n_layer)),
            Mode::Evaluate => (1, 1),
        };
        // If no block is made again, nobody wants the first one's input a second time.
        let remakes = mode == Mode::Recompute && copies.1 < c.n_layer;
        let sums = batch.sequences.checked_mul(grain.pieces(batch.tokens))?;
        let sums = sums.checked_mul(c.query_width() + c.kv_width())?;
        let sums = train.then_some(sums);
        let blocks = BlockBuffers::take(&mut bump, n, c, copies, remakes, sums, kernels)?;
        let x_last = bump.matrix(n, d)?;
        let final_norm = Moments::take(&mut bump, c.arch.norm, 1, n)?.of(0);
        let losses = bump.take(n)?;
        let group = head_rows(n, c.vocab_size);
        let logits_buffers = grain.logits_rows.div_ceil(group).min(n.div_ceil(group));
        let logits =
            bump.copies(logits_buffers, group, row_stride(c.vocab_size, size_of::<f32>())?)?;
        let mut grads = GradBuffers::NONE;
        let mut squares = 0;
        if train {
            grads = GradBuffers::take(&mut bump, n, c, grain, mode.shares_layers(), kernels)?;
            squares = bump.take(trained.div_ceil(squares_block(trained)))?;
        }
        let between = Between::take(&mut bump, n, c.n_layer, adapters, mode)?;
        let (t, head_size) = (batch.tokens, c.head_size());
        let angles = match c.arch.rotary() {
            Some(_) => Some([bump.matrix(t, head_size / 2)?, bump.matrix(t, head_size / 2)?]),
            None => None,
        };
        let activations_len = bump.0;

        let mut bump = Bump(0);
        let mut take = |floats| if grain.has_panels() { bump.take(floats) } else { Some(0) };
        let first_packed = packed_block(c, kernels, train, &mut take)?;
        let packed_stride = bump.0;
        bump.take(packed_stride.checked_mul(c.n_layer - 1)?)?;
        let mut take = |floats| if grain.has_panels() { bump.take(floats) } else { Some(0) };
        let head = take(kernels.packed_len(d, c.vocab_size)?)?;
        let head_t = if train { take(kernels.packed_len(c.vocab_size, d)?)? } else { 0 };
        let packed_len = bump.0;

        let mut scratch_len = kernels.attention_scratch_len(t, head_size)?;
        // The deepest product of a row block: backward they are as deep as forward they are wide.
        let deep = matrices.into_iter().chain([(d, c.vocab_size)]);
        let deepest = deep.map(|(k, n)| if train { k.max(n) } else { k }).max()?;
        let rows = grain.row_block.min(n);
        if grain.has_panels() {
            scratch_len = scratch_len.max(kernels.gemm_scratch_len(rows, deepest));
            // Into fc, and back into its gradient.
            scratch_len = scratch_len.max(kernels.gemm_into_halves_scratch_len(rows, d));
        } else {
            let shapes = matrices.into_iter().chain([(d, c.vocab_size)]);
            let both = shapes.flat_map(|(k, n)| [Some((k, n)), train.then_some((n, k))]);
            for (k, n) in both.flatten() {
                // Into fc, and back into its gradient.
                let halves = kernels.keeps_halves_of(f) && [f, fc].contains(&n);
                scratch_len = scratch_len.max(kernels.fresh_scratch_len(rows, k, n, false)?);
                scratch_len = scratch_len.max(kernels.fresh_scratch_len(rows, k, n, halves)?);
            }
        }
        if train {
            // The largest tile of any weight's gradient, as it is stored.
            for (rows, cols) in matrices.into_iter().chain([(c.vocab_size, d)]) {
                let (rows, cols) = (grain.weight_rows.min(rows), grain.weight_cols.min(cols));
                scratch_len = scratch_len.max(kernels.unpacked_scratch_len(rows, cols, n)?);
            }
            let back = kernels.attention_backward_scratch_len(t, head_size)?;
            scratch_len = scratch_len.max(back.checked_add(grain.group_len(c, t)?)?);
            if c.arch.qk_norm {
                scratch_len = scratch_len.max(grain.piece.min(t).checked_mul(head_size)?);
            }
        }
        let mut held_addend = 0;
        for (matrix, (k, n_cols)) in Matrix::OF_BLOCK.into_iter().zip(matrices) {
            let Some([a, _]) = adapters.and_then(|table| table.factors(matrix, 0)) else {
                continue;
            };
            let (ranks, rank) = (a.cols, adapters.map_or(0, |table| table.adapters().rank));
            held_addend = held_addend.max(if train { k.max(n_cols) } else { n_cols });
            let mut there = [Some((k, ranks)), Some((rank, n_cols)), None, None];
            if train {
                (there[2], there[3]) = (Some((n_cols, rank)), Some((ranks, k)));
                let tile = ADAPTER_BLOCK.min(k.max(n_cols));
                for (rows, cols) in [(tile, ranks), (rank, tile)] {
                    scratch_len = scratch_len.max(kernels.unpacked_scratch_len(rows, cols, n)?);
                }
                // With dropout, some of what the adapter reads behind its mask.
                let some = kernels.unpacked_scratch_len(tile, ranks, DROPPED_ROWS)?;
                scratch_len = scratch_len.max(some.checked_add(DROPPED_ROWS * tile)?);
            }
            for (depth, cols) in there.into_iter().flatten() {
                let len = kernels.fresh_scratch_len(rows, depth, cols, false)?;
                scratch_len = scratch_len.max(len);
            }
        }
        let held_addend = to_lines(rows.checked_mul(held_addend)?)?;
        let held_norm = to_lines(kernels.operand_len(rows, d)?)?;
        let held_fc_stride = row_stride(f, size_of::<f32>())?;
        let gradient = if train && c.arch.is_gated() { held_fc_stride } else { 0 };
        let held_fc = kernels.operand_len(rows, f)?.max(rows.checked_mul(gradient)?);
        let held_fc = to_lines(held_fc)?;
        let held = held_norm.checked_add(held_fc)?.checked_add(held_addend)?;
        Some(Self {
            halves: kernels.keeps_halves(),
            width: d,
            wide: (kernels.operand_stride(d)?, kernels.keeps_halves_of(d)),
            wider: Wider::new(c, kernels)?,
            vocab: row_stride(c.vocab_size, size_of::<f32>())?,
            blocks,
            n_layer: c.n_layer,
            x_last,
            final_norm,
            losses,
            logits,
            logits_buffers,
            grads,
            own_dqkv: train && grain.parted,
            head_columns: [0, c.query_width(), c.query_width() + c.kv_width()],
            qkv_width: c.qkv_width(),
            normed_heads: c.arch.qk_norm,
            squares,
            activations_len,
            first_packed,
            packed_stride,
            head,
            head_t,
            packed_len,
            angles,
            scratch_len: to_lines(scratch_len)?.checked_add(held)?,
            held_norm,
            held_fc,
            held_addend,
            between,
            held_fc_stride,
        })
    }

    /// Activations of a block.
    pub(crate) fn block(&self, layer: usize) -> BlockBuffers {
        self.blocks.of(layer)
    }

    /// Input of a block's activation; once the backward pass has been there its output.
    pub(crate) fn fc(&self, layer: usize) -> Buffer {
        let Wider { stride: width, halves } = self.wider;
        Buffer { at: self.block(layer).fc_pre, width, halves }
    }

    /// Gradient of that input.
    pub(crate) fn dfc(&self, layer: usize) -> Buffer {
        let Wider { stride: width, halves } = self.wider;
        Buffer { at: self.grads(layer).dfc, width, halves }
    }

    /// Output of a norm that has taken the place of its input, of which rows of both start
    /// at the same places.
    pub(crate) fn norm_in_place(&self, at: usize) -> Buffer {
        let width = if self.halves { 2 * self.width } else { self.width };
        Buffer { at, width, halves: self.halves }
    }

    /// Output of a block's first norm.
    pub(crate) fn norm1(&self, layer: usize) -> Buffer {
        let at = self.block(layer).norm1_out;
        let (width, halves) = self.wide;
        if self.norm1_in_place() { self.norm_in_place(at) } else { Buffer { at, width, halves } }
    }

    /// Gradients of a group's logits, in the place of those: rows start where theirs do.
    pub(crate) fn dlogits(&self, group: usize) -> Buffer {
        let Buffer { at, width, .. } = self.logits(group);
        Buffer { at, width: if self.halves { 2 * width } else { width }, halves: self.halves }
    }

    /// Whether the inner activations of a block are overwritten in the forward pass, so that
    /// the backward pass has to make them again.
    pub(crate) fn is_remade(&self, layer: usize) -> bool {
        layer + self.blocks.mid.copies < self.n_layer
    }

    /// The first norm's output lies in `x`, once the backward pass has been there.
    pub(crate) fn norm1_in_place(&self) -> bool {
        self.blocks.norm1_out.at == self.blocks.x.at
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
        self.grads.of(layer)
    }

    /// Queries, keys and values of a block, as attention takes them.
    pub(crate) fn heads(&self, layer: usize) -> [Columns; 3] {
        let b = self.block(layer);
        let qkv = self.head_columns.map(|at| Columns { at: b.qkv + at, stride: self.qkv_width });
        if !self.normed_heads {
            return qkv;
        }
        let [queries, keys, width] = self.head_columns;
        let of = |at: usize| Columns { at: b.heads + at, stride: width };
        [of(queries), of(keys), qkv[2]]
    }

    /// Gradients of those, before they go back through norms of heads.
    pub(crate) fn dheads(&self, layer: usize) -> [Columns; 3] {
        if !self.own_dqkv {
            return self.heads(layer);
        }
        let at = self.grads(layer).dqkv;
        self.head_columns.map(|column| Columns { at: at + column, stride: self.qkv_width })
    }

    /// Gradients of queries, keys and values of a block, and whether they have a buffer of
    /// their own rather than take the place of those.
    pub(crate) fn dqkv(&self, layer: usize) -> (usize, bool) {
        let at = if self.own_dqkv { self.grads(layer).dqkv } else { self.block(layer).qkv };
        (at, self.own_dqkv)
    }

    /// Rows between the factors of a matrix's adapter.
    pub(crate) fn between(&self, matrix: Matrix, layer: usize) -> Between {
        self.between.of(matrix, layer)
    }

    /// Logits of a group of rows.
    pub(crate) fn logits(&self, group: usize) -> Buffer {
        Buffer::floats(self.logits.of(group), self.vocab)
    }

    /// Panels of a block's matrix, or of its transpose.
    pub(crate) fn panels(&self, matrix: Matrix, layer: usize, transposed: bool) -> usize {
        let p = &self.first_packed;
        let (there, back) = match matrix {
            Matrix::Qkv => (p.qkv, p.qkv_t),
            Matrix::AttnOut => (p.att, p.att_t),
            Matrix::Fc => (p.fc, p.fc_t),
            Matrix::MlpOut => (p.mlp, p.mlp_t),
            Matrix::Head => return if transposed { self.head_t } else { self.head },
        };
        layer * self.packed_stride + if transposed { back } else { there }
    }
}

/// Lays out one block's packed weights with `take`; the transposes only for training.
fn packed_block(
    c: &ModelConfig,
    kernels: &Kernels,
    transposes: bool,
    take: &mut dyn FnMut(usize) -> Option<usize>,
) -> Option<PackedBlock> {
    let matrices = c.matrices();
    let mut there = [0; 4];
    for (to, (k, n)) in there.iter_mut().zip(matrices) {
        *to = take(kernels.packed_len(k, n)?)?;
    }
    let mut back = [0; 4];
    for (to, (k, n)) in back.iter_mut().zip(matrices).filter(|_| transposes) {
        *to = take(kernels.packed_len(n, k)?)?;
    }
    let ([qkv, att, fc, mlp], [qkv_t, att_t, fc_t, mlp_t]) = (there, back);
    Some(PackedBlock { qkv, att, fc, mlp, qkv_t, att_t, fc_t, mlp_t })
}
