//! Where everything lies: the buffers of activations, packed weights, and a worker's scratch.
//!
//! What the buffers are for, and what takes whose place in them, is in `buffers`.

use super::buffers::{
    Between, BlockBuffers, Buffer, Bump, Columns, GradBuffers, Moments, Place, Wider,
};
use super::muon;
use super::{
    ADAPTER_BLOCK, BatchShape, DROPPED_ROWS, Grain, Mode, head_rows, squares_block, to_lines,
};
use crate::adapter::AdapterTable;
use crate::arithmetic::{least, most, some};
use crate::built::{OPTIMIZERS, RECOMPUTE, WORKERS};
use crate::config::ModelConfig;
use crate::program::Matrix;
use cllm_kernels::{Footprint, row_stride};

/// Offsets of one block's packed weights, both ways round.
#[derive(Clone, Copy, Debug, PartialEq)]
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
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Floats of scratch of one worker: see [`Plan::scratch_len`].
    pub(super) scratch_len: usize,
    /// The same if Muon updates: the most there are where they overflow.
    pub(super) muon_scratch_len: usize,
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
    pub(super) const fn new(
        c: &ModelConfig,
        adapters: Option<&AdapterTable>,
        trained: usize,
        batch: BatchShape,
        mode: Mode,
        grain: &Grain,
        kernels: Footprint,
    ) -> Option<Self> {
        let n = some!(batch.sequences.checked_mul(batch.tokens));
        let (d, f) = (c.d_model, c.d_ff);
        let train = mode.trains();
        let mut bump = Bump(0);
        let copies = match mode {
            Mode::Train => (c.n_layer, c.n_layer),
            Mode::Recompute => (c.n_layer, least(grain.gradient_sets, c.n_layer)),
            Mode::Evaluate => (1, 1),
        };
        // If no block is made again, nobody wants the first one's input a second time.
        let remakes = matches!(mode, Mode::Recompute) && copies.1 < c.n_layer;
        let sums = some!(batch.sequences.checked_mul(grain.pieces(batch.tokens)));
        let sums = some!(sums.checked_mul(c.query_width() + c.kv_width()));
        let sums = if train { Some(sums) } else { None };
        let blocks = some!(BlockBuffers::take(&mut bump, n, c, copies, remakes, sums, kernels));
        let x_last = some!(bump.matrix(n, d));
        let final_norm = some!(Moments::take(&mut bump, c.arch.norm, 1, n)).of(0);
        let losses = some!(bump.take(n));
        let group = head_rows(n, c.vocab_size);
        let logits_buffers = least(grain.logits_rows.div_ceil(group), n.div_ceil(group));
        let vocab = some!(logits_stride(c));
        let logits = some!(bump.copies(logits_buffers, group, vocab));
        let mut grads = GradBuffers::NONE;
        let mut squares = 0;
        if train {
            let in_place = mode.shares_layers();
            grads = some!(GradBuffers::take(&mut bump, n, c, grain, in_place, kernels));
            squares = some!(bump.take(trained.div_ceil(squares_block(trained))));
        }
        let between = some!(Between::take(&mut bump, n, c.n_layer, adapters, mode));
        let (t, half) = (batch.tokens, c.head_size() / 2);
        let angles = match c.arch.rotary() {
            Some(_) => Some([some!(bump.matrix(t, half)), some!(bump.matrix(t, half))]),
            None => None,
        };
        let activations_len = bump.0;

        let mut panels = Panels { bump: Bump(0), are_kept: grain.has_panels(), kernels };
        let first_packed = some!(packed_block(c, train, &mut panels));
        let packed_stride = panels.bump.0;
        some!(panels.bump.take(some!(packed_stride.checked_mul(c.n_layer - 1))));
        let head = some!(panels.take(d, c.vocab_size));
        let head_t = if train { some!(panels.take(c.vocab_size, d)) } else { 0 };
        let packed_len = panels.bump.0;

        let rows = least(grain.row_block, n);
        let held_fc_stride = some!(row_stride(f, size_of::<f32>()));
        let gradient = if train && c.arch.is_gated() { held_fc_stride } else { 0 };
        let held_fc = most(some!(kernels.operand_len(rows, f)), some!(rows.checked_mul(gradient)));
        let held_fc = some!(to_lines(held_fc));
        let held_norm = some!(to_lines(some!(kernels.operand_len(rows, d))));
        let held_addend = held_addend_len(c, adapters, train);
        let held_addend = some!(to_lines(some!(rows.checked_mul(held_addend))));
        let held = some!(some!(held_norm.checked_add(held_fc)).checked_add(held_addend));
        let scratch_len = some!(scratch_len(c, batch, train, grain, kernels));
        let scratch_len = match adapters {
            Some(table) => {
                most(scratch_len, some!(adapter_scratch_len(c, table, n, rows, train, kernels)))
            }
            None => scratch_len,
        };
        Some(Self {
            halves: kernels.keeps_halves(),
            width: d,
            wide: (some!(kernels.operand_stride(d)), kernels.keeps_halves_of(d)),
            wider: some!(Wider::new(c, kernels)),
            vocab,
            blocks,
            n_layer: c.n_layer,
            x_last,
            final_norm,
            losses,
            logits,
            logits_buffers,
            grads,
            own_dqkv: train && grain.is_parted(),
            head_columns: [0, c.query_width(), c.query_width() + c.kv_width()],
            qkv_width: c.qkv_width(),
            normed_heads: c.arch.norms_heads(),
            squares,
            activations_len,
            first_packed,
            packed_stride,
            head,
            head_t,
            packed_len,
            angles,
            scratch_len: some!(some!(to_lines(scratch_len)).checked_add(held)),
            muon_scratch_len: if train && OPTIMIZERS {
                muon_scratch_len(c, held, kernels)
            } else {
                0
            },
            held_norm,
            held_fc,
            held_addend,
            between,
            held_fc_stride,
        })
    }

    /// Activations of a block.
    pub(crate) const fn block(&self, layer: usize) -> BlockBuffers {
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
    pub(crate) const fn is_remade(&self, layer: usize) -> bool {
        RECOMPUTE && layer + self.blocks.mid.copies < self.n_layer
    }

    /// The first norm's output lies in `x`, once the backward pass has been there.
    pub(crate) const fn norm1_in_place(&self) -> bool {
        !RECOMPUTE || self.blocks.norm1_out.at == self.blocks.x.at
    }

    /// Residual stream that leaves a block.
    pub(crate) fn block_output(&self, layer: usize) -> usize {
        if layer + 1 < self.n_layer { self.block(layer + 1).x } else { self.x_last }
    }

    /// Gradients of the activations of a block.
    pub(crate) const fn grads(&self, layer: usize) -> GradBuffers {
        self.grads_into(layer + 1)
    }

    /// Gradients of what enters a block: those of the block before it, and in the first
    /// block those of the embedding.
    pub(crate) const fn grads_into(&self, layer: usize) -> GradBuffers {
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
        if !WORKERS || !self.own_dqkv {
            return self.heads(layer);
        }
        let at = self.grads(layer).dqkv;
        self.head_columns.map(|column| Columns { at: at + column, stride: self.qkv_width })
    }

    /// Gradients of queries, keys and values of a block, and whether they have a buffer of
    /// their own rather than take the place of those.
    pub(crate) const fn dqkv(&self, layer: usize) -> (usize, bool) {
        let own = WORKERS && self.own_dqkv;
        let at = if own { self.grads(layer).dqkv } else { self.block(layer).qkv };
        (at, own)
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

/// Hands out places for packed matrices, if panels are kept.
pub(crate) struct Panels {
    pub(crate) bump: Bump,
    pub(crate) are_kept: bool,
    pub(crate) kernels: Footprint,
}

impl Panels {
    /// Where a packed `k x n` matrix begins, `None` on overflow.
    pub(crate) const fn take(&mut self, k: usize, n: usize) -> Option<usize> {
        let floats = some!(self.kernels.packed_len(k, n));
        if self.are_kept { self.bump.take(floats) } else { Some(0) }
    }
}

/// Lays out one block's packed weights; the transposes only for training.
const fn packed_block(
    c: &ModelConfig,
    transposes: bool,
    panels: &mut Panels,
) -> Option<PackedBlock> {
    let matrices = c.matrices();
    let (mut there, mut back) = ([0; 4], [0; 4]);
    let mut i = 0;
    while i < matrices.len() {
        let (k, n) = matrices[i];
        there[i] = some!(panels.take(k, n));
        i += 1;
    }
    i = 0;
    while i < matrices.len() && transposes {
        let (k, n) = matrices[i];
        back[i] = some!(panels.take(n, k));
        i += 1;
    }
    let ([qkv, att, fc, mlp], [qkv_t, att_t, fc_t, mlp_t]) = (there, back);
    Some(PackedBlock { qkv, att, fc, mlp, qkv_t, att_t, fc_t, mlp_t })
}

/// Floats of a worker's scratch behind `held` ones for Muon's matrices; the most there are on overflow.
const fn muon_scratch_len(c: &ModelConfig, held: usize, kernels: Footprint) -> usize {
    match muon::scratch_len(c, kernels) {
        Some(len) => len.saturating_add(held),
        None => usize::MAX,
    }
}

/// Floats from a row of logits to the next.
const fn logits_stride(c: &ModelConfig) -> Option<usize> {
    row_stride(c.vocab_size, size_of::<f32>())
}

/// Floats of scratch that the kernels want of one worker, adapters aside; `None` on overflow.
const fn scratch_len(
    c: &ModelConfig,
    batch: BatchShape,
    train: bool,
    grain: &Grain,
    kernels: Footprint,
) -> Option<usize> {
    let (n, t, head_size) = (batch.sequences * batch.tokens, batch.tokens, c.head_size());
    let (d, f, fc) = (c.d_model, c.d_ff, c.fc_width());
    let [qkv, att, into_fc, mlp] = c.matrices();
    let matrices = [qkv, att, into_fc, mlp, (d, c.vocab_size)];
    let rows = least(grain.row_block, n);
    let mut len = some!(kernels.attention_scratch_len(t, head_size));
    // The deepest product of a row block: backward they are as deep as forward they are wide.
    let (mut deepest, mut i) = (0, 0);
    while i < matrices.len() {
        let (k, n) = matrices[i];
        deepest = most(deepest, if train { most(k, n) } else { k });
        i += 1;
    }
    if grain.has_panels() {
        len = most(len, kernels.gemm_scratch_len(rows, deepest));
        // Into fc, and back into its gradient.
        len = most(len, kernels.gemm_into_halves_scratch_len(rows, d));
    }
    i = 0;
    while i < matrices.len() && !grain.has_panels() {
        let (k, n) = matrices[i];
        let ways = [(k, n), (n, k)];
        let mut way = 0;
        while way < if train { 2 } else { 1 } {
            let (k, n) = ways[way];
            // Into fc, and back into its gradient.
            let halves = kernels.keeps_halves_of(f) && (n == f || n == fc);
            len = most(len, some!(kernels.fresh_scratch_len(rows, k, n, false)));
            len = most(len, some!(kernels.fresh_scratch_len(rows, k, n, halves)));
            way += 1;
        }
        i += 1;
    }
    if !train {
        return Some(len);
    }
    // The largest tile of any weight's gradient, as it is stored; of operands in rows so far apart.
    let (wider, vocab) = (some!(Wider::new(c, kernels)).stride, some!(logits_stride(c)));
    let stored = [
        (qkv, (d, c.qkv_width())),
        (att, (c.query_width(), d)),
        (into_fc, (d, wider)),
        (mlp, (wider, d)),
        ((c.vocab_size, d), (vocab, d)),
    ];
    i = 0;
    while i < stored.len() {
        let ((rows, cols), (x, dy)) = stored[i];
        let (x, dy) = ((rows, Some(x)), (cols, Some(dy)));
        let tile = (grain.weight_rows, grain.weight_cols);
        len = most(len, some!(kernels.lying_tiles_scratch_len(x, dy, n, tile)));
        i += 1;
    }
    let back = some!(kernels.attention_backward_scratch_len(t, head_size));
    len = most(len, some!(back.checked_add(some!(grain.group_len(c, t)))));
    if c.arch.norms_heads() {
        len = most(len, some!(least(grain.piece, t).checked_mul(head_size)));
    }
    Some(len)
}

/// Columns of what adapters add to a product of a row block; 0 without adapters.
const fn held_addend_len(c: &ModelConfig, adapters: Option<&AdapterTable>, train: bool) -> usize {
    let Some(table) = adapters else { return 0 };
    let matrices = c.matrices();
    let (mut len, mut i) = (0, 0);
    while i < matrices.len() {
        let (k, n) = matrices[i];
        if table.factors(Matrix::OF_BLOCK[i], 0).is_some() {
            len = most(len, if train { most(k, n) } else { n });
        }
        i += 1;
    }
    len
}

/// Floats of scratch that products of adapters want of one worker, for blocks of so many of `n` rows; `None`
/// on overflow.
const fn adapter_scratch_len(
    c: &ModelConfig,
    table: &AdapterTable,
    n: usize,
    rows: usize,
    train: bool,
    kernels: Footprint,
) -> Option<usize> {
    let (matrices, rank) = (c.matrices(), table.adapters().rank);
    let (mut len, mut i) = (0, 0);
    while i < matrices.len() {
        let (k, n_cols) = matrices[i];
        let factors = table.factors(Matrix::OF_BLOCK[i], 0);
        i += 1;
        let Some([a, _]) = factors else { continue };
        let ranks = a.cols;
        let products = [(k, ranks), (rank, n_cols), (n_cols, rank), (ranks, k)];
        let mut product = 0;
        while product < if train { 4 } else { 2 } {
            let (depth, cols) = products[product];
            len = most(len, some!(kernels.fresh_scratch_len(rows, depth, cols, false)));
            product += 1;
        }
        if train {
            let tile = least(ADAPTER_BLOCK, most(k, n_cols));
            len = most(len, some!(kernels.unpacked_scratch_len(tile, ranks, n)));
            len = most(len, some!(kernels.unpacked_scratch_len(rank, tile, n)));
            // With dropout, some of what the adapter reads behind its mask.
            let dropped = least(DROPPED_ROWS, n);
            let product = some!(kernels.unpacked_scratch_len(tile, ranks, dropped));
            len = most(len, some!(product.checked_add(dropped * tile)));
        }
    }
    Some(len)
}
